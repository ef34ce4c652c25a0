"""The published recipes number by number: a second table, written from the papers, and closed forms of rates."""

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
from mmengine.registry import PARAM_SCHEDULERS, init_default_scope
from test_lr_decay import does_not_decay, exponent, settings
from torch import nn

from convnext_dense.configs import config_folder
from convnext_dense.train.stats import build_on_meta

CONFIGS = Path(__file__).parent.parent / 'configs'


class Row(NamedTuple):
    """A published row."""

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
# facebookresearch/ConvNeXt semantic_segmentation: Table 4
ADE20K = {
    'upernet_convnext_t_ade20k': Row('tiny', 'convnext://tiny_1k', 0.4, 1e-4, 0.9, True),
    'upernet_convnext_s_ade20k': Row('small', 'convnext://small_1k', 0.3, 1e-4, 0.9, True),
    'upernet_convnext_b_ade20k': Row('base', 'convnext://base_1k', 0.4, 1e-4, 0.9, True),
    'upernet_convnext_b_in22k_ade20k': Row('base', 'convnext://base_22k', 0.4, 1e-4, 0.9, True),
    'upernet_convnext_l_in22k_ade20k': Row('large', 'convnext://large_22k', 0.4, 1e-4, 0.9, False),
    'upernet_convnext_xl_in22k_ade20k': Row('xlarge', 'convnext://xlarge_22k', 0.4, 8e-5, 0.9, False),
}
PUBLISHED = {**COCO, **ADE20K}
NAMES = sorted(file.stem for folder in ('det', 'seg') for file in (CONFIGS / folder).glob('*.py'))
TWO_STAGE = [name for name in NAMES if name.startswith(('cascade', 'mask_rcnn', 'faster')) and name.endswith('_coco')]
UPERNET = [name for name in NAMES if name.startswith('upernet') and name.endswith('_ade20k')]
PROBES = [name for name in NAMES if name.startswith('linear')]
V2 = [name for name in NAMES if 'convnextv2' in name]
LARGE_JITTER = [name for name in V2 if name.startswith('mask_rcnn')]
CROPS_OF_640 = [name for name in UPERNET if 'in22k' in name]


def file_of(name: str) -> Path:
    (file,) = CONFIGS.glob(f'*/{name}.py')
    return file


@cache
def load(name: str) -> Config:
    """Read a leaf once for all tests, which only look at it."""
    return Config.fromfile(file_of(name))


# --------------------------------------------------------------------------------- backbone, optimizer


@pytest.mark.parametrize('name', PUBLISHED)
def test_backbone_and_optimizer(name):
    row, cfg = PUBLISHED[name], load(name)
    assert cfg.model.backbone.to_dict() == dict(
        type='ConvNeXt',
        arch=row.arch,
        layer_scale_init_value=1.0,
        drop_path_rate=row.drop_path,
        init_cfg=dict(type='Pretrained', checkpoint=row.weights),
    )
    assert cfg.optim_wrapper.to_dict() == dict(
        type='AmpOptimWrapper' if row.amp else 'OptimWrapper',
        constructor='ConvNeXtStageDecay' if name in ADE20K else 'ConvNeXtLayerDecay',
        optimizer=dict(type='AdamW', lr=row.lr, betas=(0.9, 0.999), weight_decay=0.05),
        paramwise_cfg=dict(decay_rate=row.rate),
    )
    assert cfg.auto_scale_lr.to_dict() == dict(enable=False, base_batch_size=16)


@pytest.mark.parametrize('name', V2)
def test_v2_stays_in_the_ranges_that_were_swept(name):
    """arXiv 2301.00808, Sections A.3 and A.4; what won was not published."""
    cfg = load(name)
    assert cfg.model.backbone.grn
    assert cfg.model.backbone.drop_path_rate in (0.1, 0.2, 0.3, 0.4, 0.5)
    assert cfg.optim_wrapper.optimizer.lr == 1e-4
    assert cfg.optim_wrapper.paramwise_cfg.decay_rate in (0.9, 0.95)
    assert (cfg.optim_wrapper.type == 'AmpOptimWrapper') == (cfg.model.backbone.arch in ('tiny', 'base'))


@pytest.mark.parametrize('name', [name for name in NAMES if name.endswith(('t_dinov3_coco', 't_dinov3_ade20k'))])
def test_dinov3_starts_from_other_weights(name):
    cfg = load(name).to_dict()
    checkpoint = cfg['model']['backbone']['init_cfg'].pop('checkpoint')
    assert checkpoint == 'timm://convnext_tiny.dinov3_lvd1689m'
    if name not in PROBES:
        other = load(name.replace('_dinov3', '')).to_dict()
        other['model']['backbone']['init_cfg'].pop('checkpoint')
        assert {**cfg, 'weights': None} == {**other, 'weights': None}


def test_faster_rcnn_is_mask_rcnn_without_masks():
    ours, other = load('faster_rcnn_convnext_t_coco'), load('mask_rcnn_convnext_t_coco')
    assert ours.optim_wrapper == other.optim_wrapper
    assert ours.model.backbone == other.model.backbone
    assert ours.model.roi_head.mask_head is None
    assert ours.val_evaluator.metric == 'bbox'


# --------------------------------------------------------------------------------- decay


def optimized(name: str, **backbone) -> dict[str, tuple[nn.Parameter, float, float]]:
    """Return each trainable parameter of a leaf's full-size model with its learning rate and weight decay, by name."""
    cfg = copy.deepcopy(load(name))  # some models change their config
    cfg.model.backbone.update(backbone)
    init_default_scope(cfg.default_scope)
    model = build_on_meta(cfg.model)
    wrapper = build_optim_wrapper(model, Config(dict(cfg.optim_wrapper, type='OptimWrapper'))._cfg_dict)
    parameters = dict(model.named_parameters())
    return {full_name: (parameters[full_name], *rates) for full_name, rates in settings(model, wrapper).items()}


OF_OTHERS = ['rtmdet_convnext_t_coco', 'retinanet_convnext_t_coco', 'cascade_convnextv2_t_coco']
OF_OTHERS += ['upernet_convnextv2_b_ade20k']


@pytest.mark.parametrize('name', [*PUBLISHED, *OF_OTHERS])
def test_rate_and_weight_decay_of_every_parameter(name):
    cfg, parameters = load(name), optimized(name)
    arch, wrapper = cfg.model.backbone.arch, cfg.optim_wrapper
    kind = 'stage' if name.endswith('_ade20k') else 'layer'
    for full_name, (param, lr, weight_decay) in parameters.items():
        slots = exponent(full_name, kind, 6 if arch == 'tiny' else 12)
        expected = wrapper.optimizer.lr * wrapper.paramwise_cfg.decay_rate**slots
        decay = 0.0 if does_not_decay(full_name, param) else 0.05
        assert (lr, weight_decay) == (pytest.approx(expected, rel=1e-9), decay), full_name
    blocks = 18 if arch == 'tiny' else 36
    assert sum('.grn.' in full_name for full_name in parameters) == (2 * blocks if name in V2 else 0)


SCALES = re.compile(r'norm|gamma|\.downsample_layers\.(0\.1|[123]\.0)\.')  # and shifts of channels in a ConvNeXt
NORMS = re.compile(r'norm|\.gn\.')
EMBEDDINGS = re.compile(r'query_embed|query_feat|level_embed')


@pytest.mark.parametrize('name', ['mask2former_convnext_t_coco', 'mask2former_convnext_t_ade20k'])
def test_mask2former_decays_neither_norms_nor_embeddings(name):
    """Norms and embeddings as in facebookresearch/Mask2Former, layer scale and GRN as in ConvNeXt's recipes."""
    exempt = dict.fromkeys(('scales', 'norms', 'embeddings'), 0)
    for full_name, (_, lr, weight_decay) in optimized(name, grn=name.endswith('_ade20k')).items():
        in_backbone = full_name.startswith('backbone.')
        rules = dict(scales=SCALES) if in_backbone else dict(norms=NORMS, embeddings=EMBEDDINGS)
        found = [rule for rule, names in rules.items() if names.search(full_name) or '.grn.' in full_name]
        for rule in found:
            exempt[rule] += 1
        assert (lr, weight_decay) == (pytest.approx(1e-5 if in_backbone else 1e-4), 0.0 if found else 0.05), full_name
    scales = 3 * 18 if name.endswith('_coco') else 4 * 18  # of a block: norm and layer scale, or norm and GRN
    norms = 2 * 6 + 3 * 9 + 1 + 5  # of the encoder's and the decoder's layers, behind them, around the pixel decoder
    assert exempt == dict(scales=scales + 2 * (4 + 4), norms=2 * norms, embeddings=3)


def test_dino_decays_all_but_the_norms_of_its_heads():
    """In detrex ConvNeXt's norms are of a class of their own, which its rule for norms does not know."""
    for full_name, (_, lr, weight_decay) in optimized('dino_convnext_t_coco').items():
        if full_name.startswith('backbone.'):
            assert (lr, weight_decay) == (pytest.approx(1e-5), 1e-4), full_name
        else:
            assert (lr, weight_decay) == (1e-4, 0.0 if NORMS.search(full_name) else 1e-4), full_name


def test_a_probe_trains_its_head_alone():
    parameters = optimized(PROBES[-1])
    assert {full_name: values[1:] for full_name, values in parameters.items()} == {
        f'decode_head.{layer}.{part}': (1e-3, 1e-3) for layer in ('norm', 'conv_seg') for part in ('weight', 'bias')
    }


@pytest.mark.parametrize(
    ('name', 'lr', 'decay'), [('cascade_swin_t_coco', 1e-4, 0.05), ('upernet_swin_t_ade20k', 6e-5, 0.01)]
)
def test_swin_decays_neither_norms_nor_position_biases(name, lr, decay):
    blocks = [f'stages.{i}.blocks.{b}' for i, blocks in enumerate((2, 2, 6, 2)) for b in range(blocks)]
    norms = [f'{block}.norm{i}' for block in blocks for i in (1, 2)]
    norms += ['patch_embed.norm', *(f'stages.{i}.downsample.norm' for i in range(3)), *(f'norm{i}' for i in range(4))]
    exempt = {f'backbone.{norm}.{part}' for norm in norms for part in ('weight', 'bias')}
    exempt |= {f'backbone.{block}.attn.w_msa.relative_position_bias_table' for block in blocks}
    for full_name, values in optimized(name).items():
        assert values[1:] == (lr, 0.0 if full_name in exempt else decay), full_name


def test_resnet_50_decays_everything():
    detector, segmentor = map(optimized, ('cascade_r50_coco', 'upernet_r50_ade20k'))
    # no layer of ResNet's has 'norm' in its name; stem and first stage of the detector are frozen
    assert {values[1:] for values in detector.values()} == {(1e-4, 0.05)}
    assert {name.split('.')[1] for name in detector if name.startswith('backbone.')} == {'layer2', 'layer3', 'layer4'}
    assert {values[1:] for values in segmentor.values()} == {(0.01, 5e-4)}


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


@pytest.mark.parametrize('name', TWO_STAGE)
def test_schedule_on_coco(name):
    cfg, reference = load(name), load('cascade_convnext_t_coco')
    if name != 'mask_rcnn_convnextv2_b_lsj_coco':  # another test tells what it changes
        assert cfg.param_scheduler == reference.param_scheduler
    assert cfg.train_cfg.to_dict() == dict(type='EpochBasedTrainLoop', max_epochs=36, val_interval=1)
    assert not {'clip_grad', 'accumulative_counts'} & cfg.optim_wrapper.keys()


def test_rates_on_coco():
    warmup, steps = load('cascade_convnext_t_coco').param_scheduler
    by_iteration = rates([warmup], 600)
    for i in (0, 1, 250, 499, 500, 599):  # linear from 1e-3 of the lr over 500 iterations
        assert by_iteration[i] == pytest.approx(min(1, 0.001 + 0.999 * i / 500)), i
    assert rates([steps], 36) == pytest.approx([1.0] * 27 + [0.1] * 6 + [0.01] * 3)


@pytest.mark.parametrize('name', [*UPERNET, *PROBES])
def test_schedule_on_ade20k(name):
    cfg = load(name)
    if name != 'upernet_r50_ade20k':  # which is MMSegmentation's
        reference = load(PROBES[0] if name in PROBES else 'upernet_convnext_t_ade20k')
        assert cfg.param_scheduler == reference.param_scheduler
    assert cfg.train_cfg.max_iters == (40000 if name in PROBES else 160000)
    checkpoint = cfg.default_hooks.checkpoint
    assert (checkpoint.by_epoch, checkpoint.interval) == (False, cfg.train_cfg.val_interval)
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


CUT = [
    dict(type='RandomChoiceResize', scales=[(side, 1333) for side in (400, 500, 600)], keep_ratio=True),
    dict(type='RandomCrop', crop_type='absolute_range', crop_size=(384, 600), allow_negative_crop=True),
    RESIZE,
]
MULTI_SCALE = [dict(type='RandomFlip', prob=0.5), dict(type='RandomChoice', transforms=[[RESIZE], CUT])]


JITTER = [
    dict(type='RandomResize', scale=(1024, 1024), ratio_range=(0.1, 2.0), keep_ratio=True),
    dict(
        type='RandomCrop', crop_type='absolute', crop_size=(1024, 1024), recompute_bbox=True, allow_negative_crop=True
    ),
    dict(type='FilterAnnotations', min_gt_bbox_wh=(0.01, 0.01)),
    dict(type='RandomFlip', prob=0.5),
]
FLIPS = [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)]


@pytest.mark.parametrize('name', TWO_STAGE)
def test_data_of_coco(name):
    cfg = load(name)
    batch_size, augmentation = (4, JITTER) if name in LARGE_JITTER else (2, MULTI_SCALE)
    image = dict(type='LoadImageFromFile', backend_args=None)
    objects = dict(type='LoadAnnotations', with_bbox=True, with_mask=not name.startswith('faster'))
    pack = dict(type='PackDetInputs')
    train, val = cfg.train_dataloader.to_dict(), cfg.val_dataloader.to_dict()
    assert train['dataset']['pipeline'] == [image, objects, *augmentation, pack]
    assert val['dataset']['pipeline'] == [
        image, dict(type='Resize', scale=(1333, 800), keep_ratio=True), objects, pack
    ]  # fmt: skip
    assert train['dataset']['ann_file'] == 'annotations/instances_train2017.json'
    assert train['dataset']['filter_cfg'] == dict(filter_empty_gt=True, min_size=32)
    assert train['sampler'] == dict(type='DefaultSampler', shuffle=True)
    assert (train['batch_size'], val['batch_size']) == (batch_size, 1)
    assert cfg.auto_scale_lr.to_dict() == dict(enable=False, base_batch_size=8 * batch_size)
    assert val['dataset']['ann_file'] == 'annotations/instances_val2017.json'
    assert cfg.test_dataloader == cfg.val_dataloader
    views = cfg.tta_pipeline[1].to_dict()
    scales = ((1000, 600), (1333, 800), (1666, 1000))
    sizes = [dict(type='Resize', scale=scale, keep_ratio=True) for scale in scales]
    assert views == dict(type='TestTimeAug', transforms=[sizes, FLIPS, [objects], [pack]])
    assert cfg.tta_model.tta_cfg.to_dict() == dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)


@pytest.mark.parametrize('name', [*UPERNET, *PROBES])
def test_data_of_ade20k(name):
    cfg = load(name)
    crop, stride, scale = (640, 426, (2560, 640)) if name in CROPS_OF_640 else (512, 341, (2048, 512))
    image, labels = dict(type='LoadImageFromFile', backend_args=None), dict(type='LoadAnnotations', backend_args=None)
    pack = dict(type='PackSegInputs')
    train, val = cfg.train_dataloader.to_dict(), cfg.val_dataloader.to_dict()
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
        assert (dataset['type'], dataset['reduce_zero_label']) == ('ADE20KDataset', True)
        assert dataset['data_prefix'] == dict(img_path=f'images/{folder}', seg_map_path=f'annotations/{folder}')
    assert (train['batch_size'], val['batch_size'], cfg.auto_scale_lr.base_batch_size) == (2, 1, 16)
    assert cfg.test_dataloader == cfg.val_dataloader
    windows = dict(mode='slide', crop_size=(crop, crop), stride=(stride, stride))
    assert cfg.model.test_cfg.to_dict() == (dict(mode='whole') if 'r50' in name else windows)
    assert cfg.model.data_preprocessor.size == (crop, crop)
    ratios = (0.75, 0.875, 1.0, 1.125, 1.25) if name in V2 else (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    views = cfg.tta_pipeline[1].to_dict()
    scales = [tuple(int(ratio * side) for side in scale) for ratio in ratios]
    sizes = [dict(type='Resize', scale=scale, keep_ratio=True) for scale in scales]
    assert views == dict(type='TestTimeAug', transforms=[sizes, FLIPS, [labels], [pack]])
    assert cfg.tta_model.type == 'WholeImageTTA'


@pytest.mark.parametrize('name', NAMES)
def test_images_are_normed_as_the_initial_weights_saw_them(name):
    preprocessor = load(name).model.data_preprocessor
    assert (preprocessor.mean, preprocessor.std) == ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
    assert preprocessor.bgr_to_rgb


# --------------------------------------------------------------------------------- heads


def test_heads_of_a_cascade():
    model = load('cascade_convnext_t_coco').model
    stds = [[0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1], [0.033, 0.033, 0.067, 0.067]]
    for head, std in zip(model.roi_head.bbox_head, stds, strict=True):
        assert (head.type, head.num_shared_convs, head.num_shared_fcs) == ('ConvFCBBoxHead', 4, 1)
        assert (head.reg_class_agnostic, head.reg_decoded_bbox) == (False, True)
        assert head.norm_cfg.type == 'SyncBN'
        assert head.loss_bbox.to_dict() == dict(type='GIoULoss', loss_weight=10.0)
        assert head.bbox_coder.target_stds == std
    assert [stage.assigner.pos_iou_thr for stage in model.train_cfg.rcnn] == [0.5, 0.6, 0.7]
    assert model.roi_head.stage_loss_weights == [1, 0.5, 0.25]


ZERO_LABELS = {
    f'{split}_{place}.reduce_zero_label'
    for split in ('train', 'val', 'test')
    for place in ('pipeline', 'dataloader.dataset', 'dataloader.dataset.pipeline')
}
# Leaves that follow a config of MMDetection's or MMSegmentation's, and what they change in it
MASK2FORMER = {'model.panoptic_head.in_channels', 'model.decode_head.in_channels', 'optim_wrapper.paramwise_cfg'}
RTMDET = {
    *('model.neck.in_channels', 'optim_wrapper.constructor', 'optim_wrapper.paramwise_cfg'),
    *('train_dataloader.batch_size', 'auto_scale_lr.base_batch_size'),
}
RETINANET = {
    *('model.neck.in_channels', 'model.neck.start_level', 'optim_wrapper.type', 'optim_wrapper.constructor'),
    *('optim_wrapper.optimizer', 'optim_wrapper.paramwise_cfg'),
}
INHERITING = {
    'dino_convnext_t_coco': (
        'mmdet/dino/dino-4scale_r50_8xb2-12e_coco.py',
        {'model.neck.in_channels', 'optim_wrapper.paramwise_cfg.norm_decay_mult'},
    ),
    'mask2former_convnext_t_coco': ('mmdet/mask2former/mask2former_r50_8xb2-lsj-50e_coco.py', MASK2FORMER),
    'mask2former_convnext_t_ade20k': ('mmseg/mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py', MASK2FORMER),
    'rtmdet_convnext_t_coco': ('mmdet/rtmdet/rtmdet_l_convnext_b_4xb32-100e_coco.py', RTMDET),
    'rtmdet_convnext_b_in22k_coco': ('mmdet/rtmdet/rtmdet_l_convnext_b_4xb32-100e_coco.py', RTMDET),
    'retinanet_convnext_t_coco': ('mmdet/retinanet/retinanet_r50_fpn_1x_coco.py', RETINANET),
}
# These inherit from this package alone: what both configs have is compared.
ALIKE = {
    'cascade_convnext_t_coco': (
        'mmdet/_base_/models/cascade-mask-rcnn_r50_fpn.py',
        {'model.neck.in_channels', 'model.roi_head.bbox_head'},
    ),
    'mask_rcnn_convnext_t_coco': ('mmdet/_base_/models/mask-rcnn_r50_fpn.py', {'model.neck.in_channels'}),
    'mask_rcnn_convnextv2_b_coco': (
        'mmdet/_base_/models/mask-rcnn_r50_fpn.py',
        {'model.neck.in_channels', 'model.data_preprocessor.batch_augments', 'model.test_cfg.rcnn.nms.type'},
    ),
    'upernet_r50_ade20k': (
        'mmseg/upernet/upernet_r50_4xb4-160k_ade20k-512x512.py',
        {
            # of 8 GPUs, not of 4; the data set itself takes the zero label away; the last step of a schedule
            *('train_dataloader.batch_size', *ZERO_LABELS, 'param_scheduler.end'),
            *('default_hooks.logger', 'log_processor', 'visualizer.alpha'),
        },
    ),
}
FOLLOWED = INHERITING | ALIKE
EVERYWHERE = {'model.backbone', 'custom_imports'}
OWN = ('tta_model', 'tta_pipeline', 'rates', 'slow', 'norms', 'embeddings', 'weights', 'norm_cfg', 'checkpoint')


def differing(ours, theirs, name=''):
    """Yield the dotted names at which two configs differ."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in (ours.keys() | theirs.keys()) - {'_scope_', 'pretrained', *OWN}:
            yield from differing(ours.get(key), theirs.get(key), f'{name}.{key}'.lstrip('.'))
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for one, other in zip(ours, theirs, strict=True):
            yield from differing(one, other, name)
    elif ours != theirs:
        yield name


@pytest.mark.parametrize('name', FOLLOWED)
def test_a_leaf_changes_only_what_it_says(name):
    file, changed = FOLLOWED[name]
    library, _, inner = file.partition('/')
    ours = load(name).to_dict()
    theirs = Config.fromfile(config_folder(library) / inner, import_custom_modules=False).to_dict()
    if name in ALIKE:
        both = ours.keys() & theirs.keys()
        ours, theirs = ({key: cfg[key] for key in both} for cfg in (ours, theirs))
    found = set(differing(ours, theirs))
    assert {each for each in found if not each.startswith((*EVERYWHERE, *changed))} == set()
    assert any(each.startswith('model.backbone') for each in found)


def test_mask_rcnn_of_v2():
    """Soft NMS and images padded to one size are the paper's; MMDetection's own recipe for it has other batches."""
    paper, other = (load(f'mask_rcnn_convnextv2_b{name}_coco').to_dict() for name in ('', '_lsj'))
    assert paper['model']['test_cfg']['rcnn']['nms']['type'] == 'soft_nms'
    padding = dict(type='BatchFixedSizePad', size=(1024, 1024), pad_mask=True)
    assert paper['model']['data_preprocessor']['batch_augments'] == [padding]
    assert other['model']['data_preprocessor']['batch_augments'] is None
    assert [recipe['param_scheduler'][0]['end'] for recipe in (paper, other)] == [501, 1000]
    changed = {'model.data_preprocessor.batch_augments', 'param_scheduler.end', 'warmup', 'steps'}
    assert set(differing(paper, other)) == changed


def test_upernet_r50_starts_and_steps_as_mmsegmentations():
    ours = load('upernet_r50_ade20k')
    theirs = Config.fromfile(config_folder('mmseg') / FOLLOWED['upernet_r50_ade20k'][0].removeprefix('mmseg/'))
    assert (ours.model.backbone.type, ours.model.backbone.depth) == (theirs.model.backbone.type, 50)
    assert ours.model.backbone.init_cfg.checkpoint == theirs.model.pretrained
    assert ours.auto_scale_lr.base_batch_size == 4 * theirs.train_dataloader.batch_size  # both steps are of 16 images
