"""The published recipes number by number: tables typed a second time, compared with what the configs resolve to."""

import copy
import math
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import DATASETS, PARAM_SCHEDULERS, init_default_scope
from torch import nn

from convnext_dense.train.config_header import read_header
from convnext_dense.train.stats import build_on_meta

CONFIGS = Path(__file__).parent.parent / 'configs'


class Row(NamedTuple):
    """A published row: what stands in its leaf, and no more."""

    arch: str
    weights: str
    drop_path: float
    lr: float
    rate: float
    amp: bool


# facebookresearch/ConvNeXt object_detection: Table 3 of arXiv 2201.03545
COCO = {
    'mask_rcnn_convnext_t_coco': Row('tiny', 'convnext://tiny_1k', 0.4, 1e-4, 0.95, True),
    'cascade_convnext_t_coco': Row('tiny', 'convnext://tiny_1k', 0.4, 2e-4, 0.7, True),
    'cascade_convnext_s_coco': Row('small', 'convnext://small_1k', 0.6, 2e-4, 0.7, True),
    'cascade_convnext_b_coco': Row('base', 'convnext://base_1k', 0.7, 2e-4, 0.8, True),
    'cascade_convnext_b_in22k_coco': Row('base', 'convnext://base_22k', 0.6, 1e-4, 0.8, True),
    'cascade_convnext_l_in22k_coco': Row('large', 'convnext://large_22k', 0.7, 1e-4, 0.7, False),
    'cascade_convnext_xl_in22k_coco': Row('xlarge', 'convnext://xlarge_22k', 0.8, 1e-4, 0.7, False),
}
# Mask R-CNN's row without its masks
BOXES_ALONE = {'faster_rcnn_convnext_t_coco': COCO['mask_rcnn_convnext_t_coco']}
# facebookresearch/ConvNeXt semantic_segmentation: Table 4
ADE20K = {
    'upernet_convnext_t_ade20k': Row('tiny', 'convnext://tiny_1k', 0.4, 1e-4, 0.9, True),
    'upernet_convnext_s_ade20k': Row('small', 'convnext://small_1k', 0.3, 1e-4, 0.9, True),
    'upernet_convnext_b_ade20k': Row('base', 'convnext://base_1k', 0.4, 1e-4, 0.9, True),
    'upernet_convnext_b_in22k_ade20k': Row('base', 'convnext://base_22k', 0.4, 1e-4, 0.9, True),
    'upernet_convnext_l_in22k_ade20k': Row('large', 'convnext://large_22k', 0.4, 1e-4, 0.9, False),
    'upernet_convnext_xl_in22k_ade20k': Row('xlarge', 'convnext://xlarge_22k', 0.4, 8e-5, 0.9, False),
}
# arXiv 2301.00808 gives lr and the ranges of decay rate and drop path alone
V2_COCO = {
    'mask_rcnn_convnextv2_t_coco': Row('tiny', 'convnext://v2_tiny_fcmae', 0.2, 1e-4, 0.95, True),
    'mask_rcnn_convnextv2_b_coco': Row('base', 'convnext://v2_base_fcmae', 0.4, 1e-4, 0.95, True),
    'mask_rcnn_convnextv2_b_lsj_coco': Row('base', 'convnext://v2_base_fcmae', 0.4, 1e-4, 0.95, True),
    'mask_rcnn_convnextv2_l_coco': Row('large', 'convnext://v2_large_fcmae', 0.5, 1e-4, 0.95, False),
    'mask_rcnn_convnextv2_h_coco': Row('huge', 'convnext://v2_huge_fcmae', 0.5, 1e-4, 0.95, False),
    'cascade_convnextv2_t_coco': Row('tiny', 'convnext://v2_tiny_fcmae', 0.2, 1e-4, 0.95, True),
    'cascade_convnextv2_b_coco': Row('base', 'convnext://v2_base_fcmae', 0.4, 1e-4, 0.95, True),
    'cascade_convnextv2_l_coco': Row('large', 'convnext://v2_large_fcmae', 0.5, 1e-4, 0.95, False),
    'cascade_convnextv2_h_coco': Row('huge', 'convnext://v2_huge_fcmae', 0.5, 1e-4, 0.95, False),
}
V2_ADE20K = {
    'upernet_convnextv2_t_ade20k': Row('tiny', 'convnext://v2_tiny_1k', 0.2, 1e-4, 0.9, True),
    'upernet_convnextv2_b_ade20k': Row('base', 'convnext://v2_base_1k', 0.3, 1e-4, 0.9, True),
    'upernet_convnextv2_l_ade20k': Row('large', 'convnext://v2_large_1k', 0.4, 1e-4, 0.9, False),
    'upernet_convnextv2_h_ade20k': Row('huge', 'convnext://v2_huge_1k', 0.4, 1e-4, 0.9, False),
    'upernet_convnextv2_h_in22k_ade20k': Row('huge', 'convnext://v2_huge_22k_1k_512', 0.4, 1e-4, 0.9, False),
}
DINOV3_COCO = {
    'cascade_convnext_t_dinov3_coco': Row('tiny', 'timm://convnext_tiny.dinov3_lvd1689m', 0.4, 2e-4, 0.7, True),
    'cascade_convnext_s_dinov3_coco': Row('small', 'timm://convnext_small.dinov3_lvd1689m', 0.6, 2e-4, 0.7, True),
    'cascade_convnext_b_dinov3_coco': Row('base', 'timm://convnext_base.dinov3_lvd1689m', 0.7, 2e-4, 0.8, True),
    'cascade_convnext_l_dinov3_coco': Row('large', 'timm://convnext_large.dinov3_lvd1689m', 0.7, 1e-4, 0.7, False),
}
DINOV3_ADE20K = {
    'upernet_convnext_t_dinov3_ade20k': Row('tiny', 'timm://convnext_tiny.dinov3_lvd1689m', 0.4, 1e-4, 0.9, True),
    'upernet_convnext_s_dinov3_ade20k': Row('small', 'timm://convnext_small.dinov3_lvd1689m', 0.3, 1e-4, 0.9, True),
    'upernet_convnext_b_dinov3_ade20k': Row('base', 'timm://convnext_base.dinov3_lvd1689m', 0.4, 1e-4, 0.9, True),
    'upernet_convnext_l_dinov3_ade20k': Row('large', 'timm://convnext_large.dinov3_lvd1689m', 0.4, 1e-4, 0.9, False),
}
PROBES = {
    'linear_convnext_t_dinov3_ade20k': ('tiny', 'timm://convnext_tiny.dinov3_lvd1689m', 768),
    'linear_convnext_s_dinov3_ade20k': ('small', 'timm://convnext_small.dinov3_lvd1689m', 768),
    'linear_convnext_b_dinov3_ade20k': ('base', 'timm://convnext_base.dinov3_lvd1689m', 1024),
    'linear_convnext_l_dinov3_ade20k': ('large', 'timm://convnext_large.dinov3_lvd1689m', 1536),
}
# width, depth of the third stage, drop path, file
SWIN = {
    'mask_rcnn_swin_t_coco': (96, 6, 0.2, 'swin_tiny_patch4_window7_224.pth'),
    'cascade_swin_t_coco': (96, 6, 0.2, 'swin_tiny_patch4_window7_224.pth'),
    'cascade_swin_s_coco': (96, 18, 0.2, 'swin_small_patch4_window7_224.pth'),
    'cascade_swin_b_in22k_coco': (128, 18, 0.3, 'swin_base_patch4_window7_224_22k.pth'),
    'upernet_swin_t_ade20k': (96, 6, 0.3, 'swin_tiny_patch4_window7_224_20220317-1cdeb081.pth'),
    'upernet_swin_s_ade20k': (96, 18, 0.3, 'swin_small_patch4_window7_224_20220317-7ba6d6dd.pth'),
    'upernet_swin_b_in22k_ade20k': (128, 18, 0.3, 'swin_base_patch4_window7_224_22k_20220317-4f79f7c0.pth'),
}
RESNET = ('cascade_r50_coco', 'upernet_r50_ade20k')
DRAWN = ('cascade_convnext_atto_shapes', 'upernet_convnext_atto_shapes')
CONVNEXT = {**COCO, **BOXES_ALONE, **V2_COCO, **DINOV3_COCO, **ADE20K, **V2_ADE20K, **DINOV3_ADE20K}
OF_THE_PAPERS = {*CONVNEXT, *PROBES, *SWIN, *RESNET}
ON_COCO = sorted(name for name in OF_THE_PAPERS if name.endswith('_coco'))
ON_ADE20K = sorted(name for name in OF_THE_PAPERS if name.endswith('_ade20k'))
WITH_LARGE_JITTER = {name for name in V2_COCO if name.startswith('mask_rcnn')}
CROPS_OF_640 = {
    *('upernet_convnext_b_in22k_ade20k', 'upernet_convnext_l_in22k_ade20k', 'upernet_convnext_xl_in22k_ade20k'),
    *('upernet_convnext_l_dinov3_ade20k', 'upernet_convnextv2_h_in22k_ade20k', 'upernet_swin_b_in22k_ade20k'),
}
DIMS = {
    'tiny': [96, 192, 384, 768],
    'small': [96, 192, 384, 768],
    'base': [128, 256, 512, 1024],
    'large': [192, 384, 768, 1536],
    'xlarge': [256, 512, 1024, 2048],
    'huge': [352, 704, 1408, 2816],
}


# upstream's heads; in the first two the backbone has one rate, a tenth of the others'
DINO = {  # IDEA-Research/detrex, projects/dino/configs/dino-convnext
    'dino_convnext_t_coco': Row('tiny', 'convnext://tiny_1k', 0.0, 1e-4, 0.1, False),
    'dino_convnext_t_in22k_coco': Row('tiny', 'convnext://tiny_22k_1k_384', 0.0, 1e-4, 0.1, False),
    'dino_convnext_b_in22k_coco': Row('base', 'convnext://base_22k_1k_384', 0.0, 1e-4, 0.1, False),
}
MASK2FORMER = {  # arXiv 2112.01527, Section 4.2; drop path of facebookresearch/Mask2Former for Swin
    'mask2former_convnext_t_coco': Row('tiny', 'convnext://tiny_1k', 0.3, 1e-4, 0.1, False),
    'mask2former_convnext_b_in22k_coco': Row('base', 'convnext://base_22k', 0.3, 1e-4, 0.1, False),
    'mask2former_convnext_t_ade20k': Row('tiny', 'convnext://tiny_1k', 0.3, 1e-4, 0.1, False),
    'mask2former_convnext_b_in22k_ade20k': Row('base', 'convnext://base_22k', 0.3, 1e-4, 0.1, False),
}
RTMDET = {  # open-mmlab/mmdetection, rtmdet_l_convnext_b_4xb32-100e_coco.py
    'rtmdet_convnext_t_coco': Row('tiny', 'convnext://tiny_1k', 0.4, 1e-3, 0.8, False),
    'rtmdet_convnext_b_in22k_coco': Row('base', 'convnext://base_22k_1k_384', 0.7, 1e-3, 0.8, False),
}
# PVT's RetinaNet (arXiv 2102.12122, Section 5.2), decayed as Mask R-CNN
RETINANET = {'retinanet_convnext_t_coco': Row('tiny', 'convnext://tiny_1k', 0.2, 1e-4, 0.95, True)}
MODERN = {**DINO, **MASK2FORMER, **RTMDET, **RETINANET}


def file_of(name: str) -> Path:
    (file,) = CONFIGS.glob(f'*/{name}.py')
    return file


@cache
def load(name: str) -> Config:
    """Read a leaf once for all tests, which only look at it."""
    return Config.fromfile(file_of(name))


def test_every_leaf_is_in_a_table():
    leaves = {file.stem for folder in ('det', 'seg') for file in (CONFIGS / folder).glob('*.py')}
    assert leaves == {*OF_THE_PAPERS, *MODERN, *DRAWN}


# --------------------------------------------------------------------------------- results

# box and mask AP; mIoU with one and with several sizes
PUBLISHED_COCO = {
    'mask_rcnn_convnext_t_coco': '46.2 41.7',
    'cascade_convnext_t_coco': '50.4 43.7',
    'cascade_convnext_s_coco': '51.9 45.0',
    'cascade_convnext_b_coco': '52.7 45.6',
    'cascade_convnext_b_in22k_coco': '54.0 46.9',
    'cascade_convnext_l_in22k_coco': '54.8 47.6',
    'cascade_convnext_xl_in22k_coco': '55.2 47.7',
    'cascade_r50_coco': '46.3 40.1',
    'cascade_swin_t_coco': '50.4 43.7',
    'cascade_swin_s_coco': '51.9 45.0',
    'cascade_swin_b_in22k_coco': '53.0 45.8',
    'mask_rcnn_swin_t_coco': '46.0 41.6',
    'mask_rcnn_convnextv2_b_coco': '52.9 46.6',
    'mask_rcnn_convnextv2_b_lsj_coco': '52.9 46.4',
    'mask_rcnn_convnextv2_l_coco': '54.4 47.7',
    'mask_rcnn_convnextv2_h_coco': '55.7 48.9',
    # detrex: arXiv 2306.07265, and the model zoo of its repository
    'dino_convnext_t_coco': '51.4 -',
    'dino_convnext_t_in22k_coco': '52.4 -',
    'dino_convnext_b_in22k_coco': '55.1 -',
    'rtmdet_convnext_b_in22k_coco': '53.1 -',
}
PUBLISHED_ADE20K = {
    'upernet_convnext_t_ade20k': '46.0 46.7',
    'upernet_convnext_s_ade20k': '48.7 49.6',
    'upernet_convnext_b_ade20k': '49.1 49.9',
    'upernet_convnext_b_in22k_ade20k': '52.6 53.1',
    'upernet_convnext_l_in22k_ade20k': '53.2 53.7',
    'upernet_convnext_xl_in22k_ade20k': '53.6 54.0',
    'upernet_r50_ade20k': '42.05 42.78',
    'upernet_swin_t_ade20k': '- 45.8',
    'upernet_swin_s_ade20k': '- 49.5',
    'upernet_swin_b_in22k_ade20k': '- 51.7',
    'upernet_convnextv2_b_ade20k': '- 52.1',
    'upernet_convnextv2_l_ade20k': '- 53.7',
    'upernet_convnextv2_h_ade20k': '- 55.0',
    'upernet_convnextv2_h_in22k_ade20k': '- 57.0',
    'linear_convnext_t_dinov3_ade20k': '42.7 -',
    'linear_convnext_s_dinov3_ade20k': '44.8 -',
    'linear_convnext_b_dinov3_ade20k': '46.3 -',
    'linear_convnext_l_dinov3_ade20k': '47.8 -',
}


@pytest.mark.parametrize('name', [*ON_COCO, *ON_ADE20K, *MODERN])
def test_published_results(name):
    names = ('box AP', 'mask AP') if name.endswith('_coco') else ('mIoU (ss)', 'mIoU (ms)')
    values = {**PUBLISHED_COCO, **PUBLISHED_ADE20K}.get(name, '- -').split()
    header = read_header(file_of(name))
    expected = [f'{metric} {value}' for metric, value in zip(names, values, strict=True) if value != '-']
    assert [str(metric) for metric in header.metrics] == expected
    assert ('(unpublished)' in header.title) == (not expected)


# --------------------------------------------------------------------------------- backbone, optimizer


@pytest.mark.parametrize('name', CONVNEXT)
def test_backbone_and_optimizer(name):
    row, cfg = CONVNEXT[name], load(name)
    assert cfg.model.backbone.to_dict() == dict(
        type='ConvNeXt',
        arch=row.arch,
        layer_scale_init_value=1.0,
        drop_path_rate=row.drop_path,
        init_cfg=dict(type='Pretrained', checkpoint=row.weights),
        **(dict(grn=True) if 'convnextv2' in name else {}),
    )
    assert cfg.optim_wrapper.to_dict() == dict(
        type='AmpOptimWrapper' if row.amp else 'OptimWrapper',
        constructor='ConvNeXtStageDecay' if name.endswith('_ade20k') else 'ConvNeXtLayerDecay',
        optimizer=dict(type='AdamW', lr=row.lr, betas=(0.9, 0.999), weight_decay=0.05),
        paramwise_cfg=dict(decay_rate=row.rate),
    )
    if name.endswith('_coco'):
        assert cfg.model.neck.in_channels == DIMS[row.arch]
    else:
        assert cfg.model.decode_head.in_channels == DIMS[row.arch]
        assert cfg.model.auxiliary_head.in_channels == DIMS[row.arch][2]


@pytest.mark.parametrize('name', SWIN)
def test_swin(name):
    (width, depth, drop_path, file), cfg = SWIN[name], load(name)
    backbone = cfg.model.backbone.to_dict()
    weights = backbone.pop('init_cfg')
    assert weights['type'] == 'Pretrained'
    assert weights['checkpoint'].rpartition('/')[2] == file
    is_detector = name.endswith('_coco')
    assert backbone.pop('convert_weights', False) == is_detector  # MMSegmentation's files are converted already
    heads = {96: [3, 6, 12, 24], 128: [4, 8, 16, 32]}[width]
    assert backbone == dict(
        type='SwinTransformer', embed_dims=width, depths=[2, 2, depth, 2], num_heads=heads, drop_path_rate=drop_path
    )
    no_decay = dict(decay_mult=0.0)
    assert cfg.optim_wrapper.to_dict() == dict(
        type='AmpOptimWrapper' if is_detector else 'OptimWrapper',
        optimizer=dict(
            type='AdamW',
            lr=1e-4 if is_detector else 6e-5,
            betas=(0.9, 0.999),
            weight_decay=0.05 if is_detector else 0.01,
        ),
        paramwise_cfg=dict(
            custom_keys=dict(absolute_pos_embed=no_decay, relative_position_bias_table=no_decay, norm=no_decay)
        ),
    )
    model = cfg.model
    channels = [width, 2 * width, 4 * width, 8 * width]
    assert (model.neck if is_detector else model.decode_head).in_channels == channels
    assert is_detector or model.auxiliary_head.in_channels == 4 * width


def test_resnet_50():
    detector, segmentor = map(load, RESNET)
    swin = load('cascade_swin_t_coco')
    assert detector.optim_wrapper == swin.optim_wrapper
    assert detector.model.roi_head == swin.model.roi_head
    assert detector.model.backbone.to_dict() == dict(
        type='ResNet',
        depth=50,
        norm_cfg=dict(type='BN', requires_grad=True),
        norm_eval=True,
        frozen_stages=1,
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50'),
    )
    assert segmentor.model.backbone.to_dict() == dict(
        type='ResNetV1c',
        depth=50,
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        init_cfg=dict(type='Pretrained', checkpoint='open-mmlab://resnet50_v1c'),
    )
    assert segmentor.optim_wrapper.to_dict() == dict(
        type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=5e-4)
    )
    channels = [256, 512, 1024, 2048]
    assert detector.model.neck.in_channels == segmentor.model.decode_head.in_channels == channels
    assert segmentor.model.auxiliary_head.in_channels == 1024


@pytest.mark.parametrize('name', PROBES)
def test_linear_probe(name):
    (arch, weights, channels), cfg = PROBES[name], load(name)
    assert cfg.model.backbone.to_dict() == dict(
        type='ConvNeXt',
        arch=arch,
        layer_scale_init_value=1.0,
        out_indices=(3,),
        frozen_stages=4,
        frozen_norms=True,
        init_cfg=dict(type='Pretrained', checkpoint=weights, final_norm=True),
    )
    assert cfg.model.decode_head.to_dict() == dict(
        type='LinearHead',
        in_channels=channels,
        in_index=0,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    )
    assert cfg.model.auxiliary_head is None
    assert cfg.optim_wrapper.to_dict() == dict(
        type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.999), weight_decay=1e-3)
    )
    assert cfg.train_cfg.to_dict() == dict(type='IterBasedTrainLoop', max_iters=40000, val_interval=5000)


def test_drawn_data():
    for name in DRAWN:
        cfg = load(name)
        assert cfg.model.backbone.to_dict() == dict(
            type='ConvNeXt', arch='atto', layer_scale_init_value=1.0, drop_path_rate=0.0
        )
        assert cfg.optim_wrapper.type == 'OptimWrapper'
        assert cfg.optim_wrapper.optimizer.lr == 1e-3
        assert cfg.optim_wrapper.paramwise_cfg.decay_rate == 1.0


# --------------------------------------------------------------------------------- decay, golden

# layer_wise and stage_wise exponents of the decay rate for 12 and 6 layers; the third stage's blocks by threes
EXPONENTS = {
    ('layer', 12): dict(downsample_layers=(13, 11, 10, 1), stages=(12, 11, (10, 9, 8, 7, 6, 5, 4, 3, 2), 1)),
    ('layer', 6): dict(downsample_layers=(7, 5, 4, 1), stages=(6, 5, (4, 3, 2), 1)),
    ('stage', 12): dict(downsample_layers=(13, 13, 13, 13), stages=(12, 11, (10,) * 9, 9)),
    ('stage', 6): dict(downsample_layers=(7, 7, 7, 7), stages=(6, 5, (4,) * 3, 3)),
}
NUM_LAYERS = {'tiny': 6, 'small': 12, 'base': 12, 'large': 12, 'xlarge': 12, 'huge': 12}


def exponent(name: str, kind: str, num_layers: int) -> int:
    """Return the power of the decay rate for a parameter, by its full name."""
    where, part, *rest = name.split('.')
    if where != 'backbone' or part.startswith('norm'):
        return 0
    value = EXPONENTS[kind, num_layers][part][int(rest[0])]
    return value[int(rest[1]) // 3] if isinstance(value, tuple) else value


def optimized(name: str, **backbone) -> dict[str, tuple[nn.Parameter, float, float]]:
    """Return each trainable parameter of a leaf's full-size model with its learning rate and weight decay, by name."""
    cfg = copy.deepcopy(load(name))  # some models change their config
    cfg.model.backbone.update(backbone)
    init_default_scope(cfg.default_scope)
    model = build_on_meta(cfg.model)
    optimizer = build_optim_wrapper(model, Config(dict(cfg.optim_wrapper, type='OptimWrapper'))._cfg_dict).optimizer
    names = {id(param): full_name for full_name, param in model.named_parameters()}
    found = [
        (names[id(param)], (param, group['lr'], group['weight_decay']))
        for group in optimizer.param_groups
        for param in group['params']
        if param.requires_grad
    ]
    assert len(dict(found)) == len(found)
    assert {full_name for full_name, _ in found} == {n for n, p in model.named_parameters() if p.requires_grad}
    return dict(found)


@pytest.mark.parametrize('name', [*CONVNEXT, *RTMDET, *RETINANET])
def test_rate_and_weight_decay_of_every_parameter(name):
    row, parameters = {**CONVNEXT, **MODERN}[name], optimized(name)
    kind = 'stage' if name.endswith('_ade20k') else 'layer'
    for full_name, (param, lr, weight_decay) in parameters.items():
        expected = row.lr * row.rate ** exponent(full_name, kind, NUM_LAYERS[row.arch])
        is_exempt = param.ndim == 1 or full_name.endswith('.bias') or '.grn.' in full_name
        assert (lr, weight_decay) == (pytest.approx(expected, rel=1e-9), 0.0 if is_exempt else 0.05), full_name
    grn = {full_name: tuple(param.shape) for full_name, (param, *_) in parameters.items() if '.grn.' in full_name}
    depths = (3, 3, 9 if row.arch == 'tiny' else 27, 3)
    assert grn == {
        f'backbone.stages.{i}.{block}.grn.{part}': (1, 1, 1, 4 * DIMS[row.arch][i])
        for i, depth in enumerate(depths if 'convnextv2' in name else ())
        for block in range(depth)
        for part in ('gamma', 'beta')
    }


SCALES = re.compile(r'norm|gamma|\.downsample_layers\.(0\.1|[123]\.0)\.')  # and shifts of channels in a ConvNeXt
NORMS = re.compile(r'norm|\.gn\.')
EMBEDDINGS = re.compile(r'query_embed|query_feat|level_embed')


@pytest.mark.parametrize('name', MASK2FORMER)
def test_mask2former_decays_neither_norms_nor_embeddings(name):
    """Norms and embeddings as in facebookresearch/Mask2Former, layer scale as in ConvNeXt's recipes."""
    exempt = dict.fromkeys(('scales', 'norms', 'embeddings'), 0)
    for full_name, (_, lr, weight_decay) in optimized(name).items():
        in_backbone = full_name.startswith('backbone.')
        rules = dict(scales=SCALES) if in_backbone else dict(norms=NORMS, embeddings=EMBEDDINGS)
        found = [rule for rule, names in rules.items() if names.search(full_name)]
        for rule in found:
            exempt[rule] += 1
        assert (lr, weight_decay) == (pytest.approx(1e-5 if in_backbone else 1e-4), 0.0 if found else 0.05), full_name
    blocks = 18 if MASK2FORMER[name].arch == 'tiny' else 36
    norms = 2 * 6 + 3 * 9 + 1 + 5  # of the encoder's and the decoder's layers, behind them, around the pixel decoder
    assert exempt == dict(scales=3 * blocks + 2 * (4 + 4), norms=2 * norms, embeddings=3)


def test_mask2former_with_convnext_v2_does_not_decay_its_grn():
    found = [
        values[1:] for name, values in optimized('mask2former_convnext_t_coco', grn=True).items() if '.grn.' in name
    ]
    assert found == [(pytest.approx(1e-5), 0.0)] * 2 * 18


@pytest.mark.parametrize('name', DINO)
def test_dino_decays_all_but_the_norms_of_its_heads(name):
    """In detrex ConvNeXt's norms are of a class of their own, which its rule for norms does not know."""
    for full_name, (_, lr, weight_decay) in optimized(name).items():
        if full_name.startswith('backbone.'):
            assert (lr, weight_decay) == (pytest.approx(1e-5), 1e-4), full_name
        else:
            assert (lr, weight_decay) == (1e-4, 0.0 if NORMS.search(full_name) else 1e-4), full_name


@pytest.mark.parametrize('name', PROBES)
def test_a_probe_trains_its_head_alone(name):
    parameters = optimized(name)
    assert {full_name: values[1:] for full_name, values in parameters.items()} == {
        f'decode_head.{layer}.{part}': (1e-3, 1e-3) for layer in ('norm', 'conv_seg') for part in ('weight', 'bias')
    }


@pytest.mark.parametrize('name', SWIN)
def test_swin_decays_neither_norms_nor_position_biases(name):
    _, depth, *_ = SWIN[name]
    blocks = [f'stages.{i}.blocks.{b}' for i, blocks in enumerate((2, 2, depth, 2)) for b in range(blocks)]
    norms = [f'{block}.norm{i}' for block in blocks for i in (1, 2)]
    norms += ['patch_embed.norm', *(f'stages.{i}.downsample.norm' for i in range(3)), *(f'norm{i}' for i in range(4))]
    exempt = {f'backbone.{norm}.{part}' for norm in norms for part in ('weight', 'bias')}
    exempt |= {f'backbone.{block}.attn.w_msa.relative_position_bias_table' for block in blocks}
    assert len(exempt) == {6: 76, 18: 136}[depth]
    rate, decay = (1e-4, 0.05) if name.endswith('_coco') else (6e-5, 0.01)
    for full_name, (_, lr, weight_decay) in optimized(name).items():
        assert (lr, weight_decay) == (rate, 0.0 if full_name in exempt else decay), full_name


def test_resnet_50_decays_everything():
    detector, segmentor = map(optimized, RESNET)
    # no layer of ResNet's has 'norm' in its name; stem and first stage are frozen
    assert {values[1:] for values in detector.values()} == {(1e-4, 0.05)}
    stages = {full_name.split('.')[1] for full_name in detector if full_name.startswith('backbone.')}
    assert stages == {'layer2', 'layer3', 'layer4'}
    assert {values[1:] for values in segmentor.values()} == {(0.01, 5e-4)}
    stages = {full_name.split('.')[1] for full_name in segmentor if full_name.startswith('backbone.')}
    assert stages == {'stem', 'layer1', 'layer2', 'layer3', 'layer4'}


# --------------------------------------------------------------------------------- schedule


def rates(schedulers: list, num_steps: int) -> list[float]:
    """Return the rate at every step, of an optimizer with base rate 1 that MMEngine's schedulers act on."""
    wrapper = OptimWrapper(torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0))
    built = [PARAM_SCHEDULERS.build({**scheduler, 'optimizer': wrapper}) for scheduler in schedulers]
    wrapper.step()  # MMEngine warns of a scheduler that is ahead of its optimizer
    (group,) = wrapper.param_groups
    found = []
    for _ in range(num_steps):
        found.append(group['lr'])
        for scheduler in built:
            scheduler.step()
    return found


@pytest.mark.parametrize('name', ON_COCO)
def test_schedule_on_coco(name):
    cfg = load(name)
    warmup_end = 1000 if name == 'mask_rcnn_convnextv2_b_lsj_coco' else 501
    assert [scheduler.to_dict() for scheduler in cfg.param_scheduler] == [
        dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=warmup_end),
        dict(type='MultiStepLR', begin=0, end=36, by_epoch=True, milestones=[27, 33], gamma=0.1),
    ]
    assert cfg.train_cfg.to_dict() == dict(type='EpochBasedTrainLoop', max_epochs=36, val_interval=1)
    assert 'clip_grad' not in cfg.optim_wrapper
    assert 'accumulative_counts' not in cfg.optim_wrapper


def test_rates_on_coco():
    warmup, steps = load('cascade_convnext_t_coco').param_scheduler
    by_iteration = rates([warmup], 600)
    for i in (0, 1, 250, 499, 500, 599):  # linear from 1e-3 of the lr over 500 iterations
        assert by_iteration[i] == pytest.approx(min(1, 0.001 + 0.999 * i / 500)), i
    assert rates([steps], 36) == pytest.approx([1.0] * 27 + [0.1] * 6 + [0.01] * 3)


@pytest.mark.parametrize('name', ON_ADE20K)
def test_schedule_on_ade20k(name):
    cfg = load(name)
    warmup = dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1501)
    if name in PROBES:
        schedule = [
            warmup,
            dict(type='CosineAnnealingLR', T_max=40000, eta_min=0.0, by_epoch=False, begin=0, end=40000),
        ]
    elif name in RESNET:
        schedule = [dict(type='PolyLR', power=0.9, eta_min=1e-4, by_epoch=False, begin=0, end=160001)]
    else:
        schedule = [warmup, dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=0, end=160001)]
    assert [scheduler.to_dict() for scheduler in cfg.param_scheduler] == schedule
    if name not in PROBES:
        assert cfg.train_cfg.to_dict() == dict(type='IterBasedTrainLoop', max_iters=160000, val_interval=16000)
    checkpoint = cfg.default_hooks.checkpoint
    assert (checkpoint.by_epoch, checkpoint.interval) == (False, cfg.train_cfg.val_interval)
    assert cfg.log_processor.by_epoch is False
    assert 'clip_grad' not in cfg.optim_wrapper


def warmup_of_mmcv(t: int) -> float:
    """Return the factor of MMCV 1's linear warm-up of 1500 iterations from a ratio of 1e-6."""
    return 1 - (1 - t / 1500) * (1 - 1e-6) if t < 1500 else 1.0


def test_rates_on_ade20k():
    found = rates(load('upernet_convnext_t_ade20k').param_scheduler, 160000)
    for t in (0, 1, 2, 750, 1499, 1500, 1501, 80000, 159998, 159999):
        assert found[t] == pytest.approx((1 - t / 160000) * warmup_of_mmcv(t), rel=1e-6), t


def test_rates_of_a_probe():
    found = rates(load('linear_convnext_t_dinov3_ade20k').param_scheduler, 40000)
    for t in (0, 1, 750, 1499, 1500, 20000, 39998, 39999):
        cosine = (1 + math.cos(math.pi * t / 40000)) / 2
        assert found[t] == pytest.approx(cosine * warmup_of_mmcv(t), rel=1e-4), t


# --------------------------------------------------------------------------------- data

WIDE = [(side, 1333) for side in (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)]
RESIZE = dict(type='RandomChoiceResize', scales=WIDE, keep_ratio=True)


def multi_scale(longest: int) -> list[dict]:
    """Return the augmentation of DETR; images are at most ``longest`` pixels long before they are cut."""
    scales = [(side, longest) for side in (400, 500, 600)]
    cut = [
        dict(type='RandomChoiceResize', scales=scales, keep_ratio=True),
        dict(type='RandomCrop', crop_type='absolute_range', crop_size=(384, 600), allow_negative_crop=True),
        RESIZE,
    ]
    return [dict(type='RandomFlip', prob=0.5), dict(type='RandomChoice', transforms=[[RESIZE], cut])]


LARGE_JITTER = [
    dict(type='RandomResize', scale=(1024, 1024), ratio_range=(0.1, 2.0), keep_ratio=True),
    dict(
        type='RandomCrop',
        crop_type='absolute',
        crop_size=(1024, 1024),
        recompute_bbox=True,
        allow_negative_crop=True,
    ),
    dict(type='FilterAnnotations', min_gt_bbox_wh=(0.01, 0.01)),
    dict(type='RandomFlip', prob=0.5),
]


@pytest.mark.parametrize('name', ON_COCO)
def test_data_of_coco(name):
    cfg = load(name)
    augmentation, batch_size, padding = multi_scale(1333), 2, None
    if name in WITH_LARGE_JITTER:
        augmentation, batch_size = LARGE_JITTER, 4
        padding = [dict(type='BatchFixedSizePad', size=(1024, 1024), pad_mask=True)]
    if name == 'mask_rcnn_convnextv2_b_lsj_coco':
        padding = None
    train, val = cfg.train_dataloader.to_dict(), cfg.val_dataloader.to_dict()
    has_masks = name not in BOXES_ALONE
    load_both = [
        dict(type='LoadImageFromFile', backend_args=None),
        dict(type='LoadAnnotations', with_bbox=True, with_mask=has_masks),
    ]
    assert train['dataset']['pipeline'] == [*load_both, *augmentation, dict(type='PackDetInputs')]
    assert train['dataset']['type'] == val['dataset']['type'] == 'CocoDataset'
    assert train['dataset']['ann_file'] == 'annotations/instances_train2017.json'
    assert train['dataset']['data_prefix'] == dict(img='train2017/')
    assert train['dataset']['filter_cfg'] == dict(filter_empty_gt=True, min_size=32)
    assert train['batch_size'] == batch_size
    assert train['sampler'] == dict(type='DefaultSampler', shuffle=True)
    assert train['batch_sampler'] == dict(type='AspectRatioBatchSampler')
    assert cfg.auto_scale_lr.to_dict() == dict(enable=False, base_batch_size=8 * batch_size)
    assert cfg.model.data_preprocessor.get('batch_augments') == padding
    image, objects = load_both
    assert val['dataset']['pipeline'] == [
        image,
        dict(type='Resize', scale=(1333, 800), keep_ratio=True),
        objects,
        dict(type='PackDetInputs'),
    ]
    assert val['dataset']['ann_file'] == 'annotations/instances_val2017.json'
    assert val['batch_size'] == 1
    assert cfg.test_dataloader == cfg.val_dataloader
    assert cfg.val_evaluator.metric == (['bbox', 'segm'] if has_masks else 'bbox')


FLIPS = [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)]


@pytest.mark.parametrize('name', ON_COCO)
def test_several_sizes_on_coco(name):
    cfg = load(name)
    nms = dict(type='nms', iou_threshold=0.5)
    assert cfg.tta_model.to_dict() == dict(type='InstanceTTA', tta_cfg=dict(nms=nms, max_per_img=100))
    image, views = Config(dict(steps=cfg.tta_pipeline)).to_dict()['steps']
    assert image == dict(type='LoadImageFromFile', backend_args=None)
    assert views == dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='Resize', scale=scale, keep_ratio=True) for scale in ((1000, 600), (1333, 800), (1666, 1000))],
            FLIPS,
            [dict(type='LoadAnnotations', with_bbox=True, with_mask=name not in BOXES_ALONE)],
            [dict(type='PackDetInputs')],
        ],
    )


@pytest.mark.parametrize('name', DRAWN)
def test_several_sizes_of_drawings(name):
    cfg = load(name)
    is_detector = cfg.default_scope == 'mmdet'
    assert cfg.tta_model.type == ('InstanceTTA' if is_detector else 'WholeImageTTA')
    load_image, views = cfg.tta_pipeline
    assert (load_image.type, views.type) == ('LoadImageFromFile', 'TestTimeAug')
    factors = (1.0, 1.5) if is_detector else (0.75, 1.0, 1.25)
    resizes, flips, annotate, pack = views.transforms
    assert resizes == [dict(type='Resize', scale_factor=factor) for factor in factors]
    assert flips == FLIPS
    assert [step.type for step in (*annotate, *pack)] == [
        'LoadAnnotations',
        'PackDetInputs' if is_detector else 'PackSegInputs',
    ]


@pytest.mark.parametrize('name', ON_ADE20K)
def test_data_of_ade20k(name):
    cfg = load(name)
    crop, stride = (640, 426) if name in CROPS_OF_640 else (512, 341)
    scale = (2560, 640) if name in CROPS_OF_640 else (2048, 512)
    train, val = cfg.train_dataloader.to_dict(), cfg.val_dataloader.to_dict()
    image = dict(type='LoadImageFromFile', backend_args=None)
    labels = dict(type='LoadAnnotations', backend_args=None)
    pack = dict(type='PackSegInputs')
    assert train['dataset']['pipeline'] == [
        image,
        labels,
        dict(type='RandomResize', scale=scale, ratio_range=(0.5, 2.0), keep_ratio=True),
        dict(type='RandomCrop', crop_size=(crop, crop), cat_max_ratio=0.75),
        dict(type='RandomFlip', prob=0.5),
        dict(type='PhotoMetricDistortion'),
        pack,
    ]
    assert val['dataset']['pipeline'] == [image, dict(type='Resize', scale=scale, keep_ratio=True), labels, pack]
    for loader, folder in ((train, 'training'), (val, 'validation')):
        dataset = loader['dataset']
        assert dataset['type'] == 'ADE20KDataset'
        assert dataset['reduce_zero_label'] is True
        assert dataset['data_prefix'] == dict(img_path=f'images/{folder}', seg_map_path=f'annotations/{folder}')
    assert train['sampler'] == dict(type='InfiniteSampler', shuffle=True)
    assert (train['batch_size'], val['batch_size']) == (2, 1)
    assert cfg.auto_scale_lr.base_batch_size == 16
    assert cfg.test_dataloader == cfg.val_dataloader
    assert cfg.val_evaluator.to_dict() == dict(type='IoUMetric', iou_metrics=['mIoU'])
    windows = dict(mode='slide', crop_size=(crop, crop), stride=(stride, stride))
    assert cfg.model.test_cfg.to_dict() == (dict(mode='whole') if name in RESNET else windows)
    assert cfg.model.data_preprocessor.to_dict() == dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(crop, crop),
    )


# the first names in objectInfo150.txt of CSAILVision/sceneparsing, and the colours of DeepLab in tensorflow/models
CLASSES = """
wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person, earth, door, table,
mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, mirror, rug, field, armchair, seat,
fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, box, column, signboard, chest of drawers, counter,
sand, sink, skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, case, pool table, pillow,
screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet, flower, book, hill, bench, countertop,
stove, palm, kitchen island, computer, swivel chair, boat, bar, arcade machine, hovel, bus, towel, light, truck, tower,
chandelier, awning, streetlight, booth, television receiver, airplane, dirt track, apparel, pole, land, bannister,
escalator, ottoman, bottle, buffet, poster, stage, van, ship, fountain, conveyer belt, canopy, washer, plaything,
swimming pool, stool, barrel, basket, waterfall, tent, bag, minibike, cradle, oven, ball, food, step, tank, trade name,
microwave, pot, animal, bicycle, lake, dishwasher, screen, blanket, sculpture, hood, sconce, vase, traffic light, tray,
ashcan, fan, pier, crt screen, plate, monitor, bulletin board, shower, radiator, glass, clock, flag
"""
PALETTE = """
787878 b47878 06e6e6 503232 04c803 787850 8c8c8c cc05ff e6e6e6 04fa07 e005ff ebff07 96053d 787846 08ff33 ff0652 8fff8c
ccff04 ff3307 cc4603 0066c8 3de6fa ff0633 0b66ff ff0747 ff09e0 0907e6 dcdcdc ff095c 7009ff 08ffd6 07ffe0 ffb806 0aff47
ff290a 07ffff e0ff08 6608ff ff3d06 ffc207 ff7a08 00ff14 ff0829 ff0599 0633ff eb0cff a09614 00a3ff 8c8c8c fa0a0f 14ff00
1fff00 ff1f00 ffe000 99ff00 0000ff ff4700 00ebff 00adff 1f00ff 0bc8c8 ff5200 00fff5 003dff 00ff70 00ff85 ff0000 ffa300
ff6600 c2ff00 008fff 33ff00 0052ff 00ff29 00ffad 0a00ff adff00 00ff99 ff5c00 ff00ff ff00f5 ff0066 ffad00 ff0014 ffb8b8
001fff 00ff3d 0047ff ff00cc 00ffc2 00ff52 000aff 0070ff 3300ff 00c2ff 007aff 00ffa3 ff9900 00ff0a ff7000 8fff00 5200ff
a3ff00 ffeb00 08b8aa 8500ff 00ff5c b800ff ff001f 00b8ff 00d6ff ff0070 5cff00 00e0ff 70e0ff 46b8a0 a300ff 9900ff 47ff00
ff00a3 ffcc00 ff008f 00ffeb 85ff00 ff00eb f500ff ff007a fff500 0abed4 d6ff00 00ccff 1400ff ffff00 0099ff 0029ff 00ffcc
2900ff 29ff00 ad00ff 00f5ff 4700ff 7a00ff 00ffb8 005cff b8ff00 0085ff ffd600 19c2c2 66ff00 5c00ff
"""


def test_classes_and_palette_of_ade20k():
    init_default_scope('mmseg')
    dataset = DATASETS.build(dict(type='ADE20KDataset', serialize_data=False, lazy_init=True, pipeline=[]))
    names = [' '.join(name.split()) for name in CLASSES.split(',')]
    assert len(names) == 150
    assert [name.strip() for name in dataset.metainfo['classes']] == names
    colours = [list(bytes.fromhex(code)) for code in PALETTE.split()]
    assert [list(colour) for colour in dataset.metainfo['palette']] == colours
    assert dataset.reduce_zero_label


@pytest.mark.parametrize('name', ON_ADE20K)
def test_multi_scale_test_on_ade20k(name):
    cfg = load(name)
    long, short = (2560, 640) if name in CROPS_OF_640 else (2048, 512)
    ratios = (0.75, 0.875, 1.0, 1.125, 1.25) if name in V2_ADE20K else (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    assert cfg.tta_model.to_dict() == dict(type='WholeImageTTA')
    image, views = Config(dict(steps=cfg.tta_pipeline)).to_dict()['steps']
    assert image == dict(type='LoadImageFromFile', backend_args=None)
    scales = [(int(long * ratio), int(short * ratio)) for ratio in ratios]
    assert views == dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='Resize', scale=scale, keep_ratio=True) for scale in scales],
            FLIPS,
            [dict(type='LoadAnnotations', backend_args=None)],
            [dict(type='PackSegInputs')],
        ],
    )


# --------------------------------------------------------------------------------- heads


@pytest.mark.parametrize('name', [name for name in ON_COCO if name.startswith('cascade')])
def test_cascade_heads(name):
    model = load(name).model
    assert model.type == 'CascadeRCNN'
    stds = [[0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1], [0.033, 0.033, 0.067, 0.067]]
    for head, std in zip(model.roi_head.bbox_head, stds, strict=True):
        assert head.to_dict() == dict(
            type='ConvFCBBoxHead',
            num_shared_convs=4,
            num_shared_fcs=1,
            in_channels=256,
            conv_out_channels=256,
            fc_out_channels=1024,
            roi_feat_size=7,
            num_classes=80,
            bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_means=[0.0] * 4, target_stds=std),
            reg_class_agnostic=False,
            reg_decoded_bbox=True,
            norm_cfg=dict(type='SyncBN', requires_grad=True),
            loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
            loss_bbox=dict(type='GIoULoss', loss_weight=10.0),
        )
    assert [stage.assigner.pos_iou_thr for stage in model.train_cfg.rcnn] == [0.5, 0.6, 0.7]
    assert model.roi_head.stage_loss_weights == [1, 0.5, 0.25]
    assert model.test_cfg.rcnn.nms.to_dict() == dict(type='nms', iou_threshold=0.5)


@pytest.mark.parametrize('name', [name for name in ON_COCO if name.startswith('mask_rcnn')])
def test_mask_rcnn_heads(name):
    model = load(name).model
    assert (model.type, model.roi_head.bbox_head.type) == ('MaskRCNN', 'Shared2FCBBoxHead')
    assert model.roi_head.bbox_head.loss_bbox.to_dict() == dict(type='L1Loss', loss_weight=1.0)
    nms = 'soft_nms' if name in WITH_LARGE_JITTER else 'nms'
    assert model.test_cfg.rcnn.nms.to_dict() == dict(type=nms, iou_threshold=0.5)
    assert model.test_cfg.rpn.nms.type == 'nms'


@pytest.mark.parametrize('name', [name for name in ON_ADE20K if name.startswith('upernet')])
def test_upernet_heads(name):
    model = load(name).model
    shared = dict(
        dropout_ratio=0.1, num_classes=150, norm_cfg=dict(type='SyncBN', requires_grad=True), align_corners=False
    )
    loss = dict(type='CrossEntropyLoss', use_sigmoid=False)
    decode, auxiliary = model.decode_head.to_dict(), model.auxiliary_head.to_dict()
    assert len(decode.pop('in_channels')) == 4
    assert auxiliary.pop('in_channels') == model.decode_head.in_channels[2]
    assert decode == dict(
        type='UPerHead',
        in_index=[0, 1, 2, 3],
        channels=512,
        pool_scales=(1, 2, 3, 6),
        loss_decode=dict(loss, loss_weight=1.0),
        **shared,
    )
    assert auxiliary == dict(
        type='FCNHead',
        in_index=2,
        channels=256,
        num_convs=1,
        concat_input=False,
        loss_decode=dict(loss, loss_weight=0.4),
        **shared,
    )


# --------------------------------------------------------------------------------- modern heads


def without_scopes(node):
    """Return a piece of a config as plain dicts and lists, without the marks that upstream's files leave in it."""
    if isinstance(node, dict):
        return {key: without_scopes(child) for key, child in node.items() if key != '_scope_'}
    return [without_scopes(child) for child in node] if isinstance(node, list) else node


def method_of(name: str) -> str:
    return name.split('_')[0] + ('_ade20k' if name.endswith('_ade20k') else '')


STEPS = dict(type='MultiStepLR', begin=0, by_epoch=True, gamma=0.1)
EPOCHS = dict(type='EpochBasedTrainLoop', val_interval=1)
SCHEDULES = {
    'dino': ([dict(STEPS, end=12, milestones=[11])], dict(EPOCHS, max_epochs=12)),
    'retinanet': (
        [
            dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
            dict(STEPS, end=12, milestones=[8, 11]),
        ],
        dict(EPOCHS, max_epochs=12),
    ),
    'rtmdet': (
        [
            dict(type='LinearLR', start_factor=1e-5, by_epoch=False, begin=0, end=1000),
            dict(
                type='CosineAnnealingLR',
                eta_min=5e-5,  # 0.05 of the lr
                begin=50,
                end=100,
                T_max=50,
                by_epoch=True,
                convert_to_iter_based=True,
            ),
        ],
        dict(type='EpochBasedTrainLoop', max_epochs=100, val_interval=10, dynamic_intervals=[(90, 1)]),
    ),
    'mask2former': (  # 50 epochs
        dict(STEPS, end=368750, by_epoch=False, milestones=[327778, 355092]),
        dict(type='IterBasedTrainLoop', max_iters=368750, val_interval=5000, dynamic_intervals=[(365001, 368750)]),
    ),
    'mask2former_ade20k': (
        [dict(type='PolyLR', eta_min=0, power=0.9, begin=0, end=160000, by_epoch=False)],
        dict(type='IterBasedTrainLoop', max_iters=160000, val_interval=5000),
    ),
}


@pytest.mark.parametrize('name', MODERN)
def test_backbone_and_schedule_of_modern_heads(name):
    row, cfg, method = MODERN[name], load(name), method_of(name)
    coarse = 'mask2former' not in name  # the map at stride 4 is left out
    assert cfg.model.backbone.to_dict() == dict(
        type='ConvNeXt',
        arch=row.arch,
        drop_path_rate=row.drop_path,
        init_cfg=dict(type='Pretrained', checkpoint=row.weights),
        **(dict(out_indices=(1, 2, 3)) if coarse else {}),
    )
    head = cfg.model.get({'mask2former': 'panoptic_head', 'mask2former_ade20k': 'decode_head'}.get(method, 'neck'))
    assert head.in_channels == DIMS[row.arch][coarse:]
    assert cfg.default_hooks.checkpoint.max_keep_ckpts == 3
    schedule, loop = SCHEDULES[method]
    assert without_scopes(cfg.param_scheduler) == schedule
    assert without_scopes(cfg.train_cfg) == loop


ADAMW = dict(type='AdamW', lr=1e-4, weight_decay=0.05, betas=(0.9, 0.999))
OPTIMIZERS = {
    'dino': dict(optimizer=dict(type='AdamW', lr=1e-4, weight_decay=1e-4), clip_grad=dict(max_norm=0.1, norm_type=2)),
    'retinanet': dict(optimizer=ADAMW),
    'rtmdet': dict(optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05)),
    'mask2former': dict(optimizer=dict(ADAMW, eps=1e-8), clip_grad=dict(max_norm=0.01, norm_type=2)),
}


@pytest.mark.parametrize('name', MODERN)
def test_optimizer_of_modern_heads(name):
    row, cfg, method = MODERN[name], load(name), method_of(name)
    wrapper = without_scopes(cfg.optim_wrapper)
    paramwise = wrapper.pop('paramwise_cfg')  # the tests of the rates say what it does
    assert wrapper.pop('type') == ('AmpOptimWrapper' if row.amp else 'OptimWrapper')
    if method in ('rtmdet', 'retinanet'):
        assert wrapper.pop('constructor') == 'ConvNeXtLayerDecay'
        assert paramwise == dict(decay_rate=row.rate)
    assert wrapper == OPTIMIZERS[method.removesuffix('_ade20k')]
    # 8 GPUs
    assert cfg.auto_scale_lr.base_batch_size == 8 * cfg.train_dataloader.batch_size == (128 if name in RTMDET else 16)


LOAD_COCO = [dict(type='LoadImageFromFile', backend_args=None), dict(type='LoadAnnotations', with_bbox=True)]
LOAD_MASKS = [dict(LOAD_COCO[0], to_float32=True), dict(LOAD_COCO[1], with_mask=True)]
LOAD_ADE = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', reduce_zero_label=True)]
PACK_COCO = [dict(type='PackDetInputs')]
FLIP = dict(type='RandomFlip', prob=0.5)
GREY = (114, 114, 114)
PAD_640 = dict(type='Pad', size=(640, 640), pad_val=dict(img=GREY))
JITTER_AND_CROP_640 = [
    dict(type='RandomResize', scale=(1280, 1280), ratio_range=(0.1, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(640, 640)),
    dict(type='YOLOXHSVRandomAug'),
    FLIP,
    PAD_640,
]


def shortest_edges(crop: int) -> dict:
    """Return the random sizes of ADE20K: 0.5 to 2 times the crop in steps of 0.1, at most 4 times as long."""
    scales = [crop * tenths // 10 for tenths in range(5, 21)]
    return dict(type='RandomChoiceResize', scales=scales, resize_type='ResizeShortestEdge', max_size=4 * crop)


def training_pipeline(name: str) -> list[dict]:
    crop = 640 if MODERN[name].arch == 'base' else 512
    return {
        'dino': [*LOAD_COCO, *multi_scale(4200), *PACK_COCO],
        'retinanet': [*LOAD_COCO, dict(type='Resize', scale=(1333, 800), keep_ratio=True), FLIP, *PACK_COCO],
        'rtmdet': [
            *LOAD_COCO,
            dict(type='CachedMosaic', img_scale=(640, 640), pad_val=114.0),
            *JITTER_AND_CROP_640,
            dict(type='CachedMixUp', img_scale=(640, 640), ratio_range=(1.0, 1.0), max_cached_images=20, pad_val=GREY),
            *PACK_COCO,
        ],
        'mask2former': [
            *LOAD_MASKS,
            FLIP,
            dict(LARGE_JITTER[0], resize_type='Resize'),
            LARGE_JITTER[1],
            dict(type='FilterAnnotations', min_gt_bbox_wh=(1e-5, 1e-5), by_mask=True),
            *PACK_COCO,
        ],
        'mask2former_ade20k': [
            *LOAD_ADE,
            shortest_edges(crop),
            dict(type='RandomCrop', crop_size=(crop, crop), cat_max_ratio=0.75),
            FLIP,
            dict(type='PhotoMetricDistortion'),
            dict(type='PackSegInputs'),
        ],
    }[method_of(name)]


@pytest.mark.parametrize('name', MODERN)
def test_data_of_modern_heads(name):
    cfg, on_coco = load(name), name.endswith('_coco')
    train, val = without_scopes(cfg.train_dataloader), without_scopes(cfg.val_dataloader)
    assert train['dataset']['pipeline'] == training_pipeline(name)
    assert train['dataset']['type'] == val['dataset']['type'] == ('CocoDataset' if on_coco else 'ADE20KDataset')
    resize = next(step for step in val['dataset']['pipeline'] if step['type'] == 'Resize')
    sizes = {'rtmdet': (640, 640), 'mask2former_ade20k': (2560, 640) if MODERN[name].arch == 'base' else (2048, 512)}
    assert resize == dict(type='Resize', scale=sizes.get(method_of(name), (1333, 800)), keep_ratio=True)
    if on_coco:
        assert train['dataset']['ann_file'] == 'annotations/instances_train2017.json'
        assert val['dataset']['ann_file'] == 'annotations/instances_val2017.json'
        assert train['dataset']['filter_cfg'] == dict(filter_empty_gt=name not in DINO, min_size=32)
        assert cfg.val_evaluator.metric == (['bbox', 'segm'] if name in MASK2FORMER else 'bbox')
    else:
        assert train['dataset']['data_prefix'] == dict(img_path='images/training', seg_map_path='annotations/training')
        assert cfg.val_evaluator.iou_metrics == ['mIoU']
    assert cfg.test_dataloader == cfg.val_dataloader
    preprocessor = cfg.model.data_preprocessor
    assert (preprocessor.mean, preprocessor.std) == ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
    assert preprocessor.bgr_to_rgb  # what the initial weights saw


@pytest.mark.parametrize('name', RTMDET)
def test_last_epochs_of_rtmdet(name):
    average, switch = without_scopes(load(name).custom_hooks)
    assert average == dict(type='EMAHook', ema_type='ExpMomentumEMA', momentum=0.0002, update_buffers=True, priority=49)
    jitter = dict(JITTER_AND_CROP_640[0], scale=(640, 640))
    assert switch == dict(
        type='PipelineSwitchHook',
        switch_epoch=90,
        switch_pipeline=[*LOAD_COCO, jitter, *JITTER_AND_CROP_640[1:], *PACK_COCO],
    )


def test_heads_of_dino():
    model = load('dino_convnext_t_coco').model
    assert (model.type, model.num_queries, model.with_box_refine, model.as_two_stage) == ('DINO', 900, True, True)
    assert (model.encoder.num_layers, model.decoder.num_layers, model.neck.num_outs) == (6, 6, 4)
    assert model.dn_cfg.group_cfg.to_dict() == dict(dynamic=True, num_groups=None, num_dn_queries=100)
    losses = [model.bbox_head[f'loss_{kind}'] for kind in ('cls', 'bbox', 'iou')]
    assert [(loss.type, loss.loss_weight) for loss in losses] == [('FocalLoss', 1), ('L1Loss', 5), ('GIoULoss', 2)]
    assert (model.bbox_head.num_classes, model.test_cfg.max_per_img) == (80, 300)


@pytest.mark.parametrize('name', MASK2FORMER)
def test_heads_of_mask2former(name):
    model = load(name).model
    head = model.panoptic_head if name.endswith('_coco') else model.decode_head
    assert (head.type, head.num_queries, head.transformer_decoder.num_layers) == ('Mask2FormerHead', 100, 9)
    assert (head.pixel_decoder.type.split('.')[-1], head.pixel_decoder.encoder.num_layers) == (
        'MSDeformAttnPixelDecoder',
        6,
    )
    losses = [head[f'loss_{kind}'] for kind in ('cls', 'mask', 'dice')]
    assert [loss.loss_weight for loss in losses] == [2, 5, 5]
    num_classes = 80 if name.endswith('_coco') else 150
    assert head.loss_cls.class_weight == [1.0] * num_classes + [0.1]
    assert head.get('num_things_classes', 0) + head.get('num_stuff_classes', 0) + head.get('num_classes', 0) == (
        num_classes
    )
    assert (head if name.endswith('_ade20k') else model).train_cfg.num_points == 112 * 112
    if name.endswith('_coco'):
        padding = dict(type='BatchFixedSizePad', size=(1024, 1024), img_pad_value=0, pad_mask=True, mask_pad_value=0)
        assert without_scopes(model.data_preprocessor.batch_augments) == [dict(padding, pad_seg=False)]
    else:
        crop = 640 if MODERN[name].arch == 'base' else 512
        assert model.data_preprocessor.size == (crop, crop)
        assert model.test_cfg.mode == 'whole'


@pytest.mark.parametrize('name', RTMDET)
def test_heads_of_rtmdet(name):
    model = load(name).model
    assert (model.neck.type, model.bbox_head.type) == ('CSPNeXtPAFPN', 'RTMDetSepBNHead')
    group_norm = dict(type='GN', num_groups=32)
    assert model.neck.norm_cfg == model.bbox_head.norm_cfg == group_norm
    assert (model.neck.num_csp_blocks, model.neck.expand_ratio, model.neck.out_channels) == (3, 0.5, 256)
    assert (model.bbox_head.stacked_convs, model.bbox_head.num_classes) == (2, 80)


def test_heads_of_retinanet():
    model = load('retinanet_convnext_t_coco').model
    pyramid = dict(type='FPN', start_level=0, add_extra_convs='on_input', out_channels=256, num_outs=5)
    assert without_scopes(model.neck) == dict(pyramid, in_channels=DIMS['tiny'][1:])
    head = model.bbox_head
    assert (head.type, head.stacked_convs, head.num_classes) == ('RetinaHead', 4, 80)
    focal = dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0)
    assert head.loss_cls.to_dict() == focal
