"""One leaf of each method (all of them in the slow set) trains a step and predicts; pipelines run on files.

Heads are narrow and images small drawings.
"""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, MODELS, init_default_scope
from torch import nn

from convnext_dense.configs import walk
from convnext_dense.data.samples import draw_for
from convnext_dense.speed import speed_up
from convnext_dense.train.config import fit_to_cpu
from convnext_dense.variants import VARIANTS

ROOT = Path(__file__).parent.parent
LEAVES = sorted([*(ROOT / 'configs').glob('det/*.py'), *(ROOT / 'configs').glob('seg/*.py')])
ONE_A_METHOD = {
    *('cascade_convnextv2_t_coco', 'cascade_swin_t_coco', 'mask_rcnn_convnext_t_coco', 'faster_rcnn_convnext_t_coco'),
    *('retinanet_convnext_t_coco', 'rtmdet_convnext_t_coco', 'dino_convnext_t_coco', 'mask2former_convnext_t_coco'),
    *('upernet_convnext_t_ade20k', 'upernet_r50_ade20k', 'linear_convnext_t_dinov3_ade20k'),
    'mask2former_convnext_t_ade20k',
}
SIDE = 64
WIDTHS = {256: 16, 512: 16, 1024: 32}  # of heads
NUM_PROPOSALS = 16
SMALL = {
    **dict.fromkeys(('nms_pre', 'max_per_img', 'num', 'num_queries'), NUM_PROPOSALS),
    **dict.fromkeys(('size', 'crop_size'), (SIDE, SIDE)),
    'stride': (2 * SIDE // 3, 2 * SIDE // 3),
    'score_thr': 0.0,  # untrained heads are sure of nothing
    'num_groups': 8,  # of a norm, with narrow maps
    'num_layers': 2,  # of a transformer
}

# mmcv's, of what DINO and Mask2Former have upstream; Python shows it to nobody
pytestmark = pytest.mark.filterwarnings('ignore:The arguments `dropout` in MultiheadAttention:DeprecationWarning')


def pytest_generate_tests(metafunc):
    if 'leaf' in metafunc.fixturenames:
        marks = {leaf: () if leaf.stem in ONE_A_METHOD else pytest.mark.slow for leaf in LEAVES}
        leaves = [pytest.param(leaf, id=leaf.stem, marks=mark) for leaf, mark in marks.items()]
        metafunc.parametrize('leaf', leaves)


def shrink(cfg: Config) -> None:
    """Fit a config in place to small pictures and a CPU: narrow heads, few boxes, above size B few blocks."""
    model, backbone = cfg.model, cfg.model.backbone
    nodes = list(walk(model))
    fixed = 'in_channels' if cfg.default_scope == 'mmseg' else None  # there it is a width of the backbone
    widths = {} if any('num_queries' in node for node in nodes) else WIDTHS  # transformers stay as they are
    for node in nodes:
        for key, value in node.items():
            if key.endswith('channels') and key != fixed and isinstance(value, int):
                node[key] = widths.get(value, value)
            elif key in SMALL:
                node[key] = SMALL[key]
    backbone.init_cfg = None
    if backbone.get('arch') in VARIANTS:
        backbone.arch = dict(depths=(1, 1, 1, 1), dims=VARIANTS[backbone.arch].dims)
    cfg.launcher = 'none'
    fit_to_cpu(cfg)


def build(cfg: Config) -> nn.Module:
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    if cfg.model.type == 'DINO':
        model.init_weights()  # its level embedding is any numbers before
    return speed_up(revert_sync_batchnorm(model))


def test_one_step_and_one_prediction(leaf):
    cfg = Config.fromfile(leaf)
    shrink(cfg)
    scope = cfg.default_scope
    model = build(cfg).train()
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}

    losses = model.train_step(draw_for(cfg, range(2), True, SIDE), wrapper)
    assert torch.isfinite(losses['loss'])
    parameters, state = dict(model.named_parameters()), wrapper.optimizer.state
    assert all(torch.isfinite(p).all() for p in parameters.values())
    assert all(torch.equal(parameters[name], p) for name, p in frozen.items())
    is_probe = cfg.model.get('decode_head', {}).get('type') == 'LinearHead'
    assert all(name in frozen for name in parameters if name.startswith('backbone.')) == is_probe
    assert not is_probe or not model.backbone.norm3.training  # it stays as it was trained
    stepped = {name for name, p in parameters.items() if p in state}
    assert {name for name in parameters if is_probe or name.startswith('backbone.')} - {*frozen} <= stepped

    model.eval()
    side = SIDE + 32  # more than one window
    with torch.no_grad():
        (sample,) = model.test_step(draw_for(cfg, range(1), False, side))
    if scope == 'mmseg':
        assert sample.pred_sem_seg.data.shape == (1, side, side)
        assert sample.seg_logits.data.shape == (cfg.model.decode_head.num_classes, side, side)
        assert torch.isfinite(sample.seg_logits.data).all()
    else:
        predicted = sample.pred_instances
        assert len(predicted) > 0
        assert predicted.bboxes.shape == (len(predicted), 4)
        assert ('masks' in predicted) == ('segm' in cfg.val_evaluator.metric)
        assert 'masks' not in predicted or predicted.masks.shape == (len(predicted), side, side)


def test_linear_head_is_dropout_batch_norm_and_one_layer():
    cfg = Config.fromfile(ROOT / 'configs/seg/linear_convnext_t_dinov3_ade20k.py')
    shrink(cfg)
    head = build(cfg).decode_head.eval()
    head.norm.running_mean.uniform_(-1, 1)
    head.norm.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 768, 3, 4)
    normed = (x - head.norm.running_mean[:, None, None]) / (head.norm.running_var[:, None, None] + 1e-5).sqrt()
    weight, bias = head.conv_seg.weight[:, :, 0, 0], head.conv_seg.bias
    expected = torch.einsum('kc,nchw->nkhw', weight, normed) + bias[:, None, None]
    torch.testing.assert_close(head([x]), expected, rtol=1e-4, atol=1e-5)
    assert head.dropout.p == 0.1


@pytest.fixture(scope='module')
def ade20k(tmp_path_factory):
    """Write two pictures with labels of all 150 classes and of the unlabelled, 0, as ADE20K has them."""
    root = tmp_path_factory.mktemp('ade20k')
    for folder in ('images', 'annotations'):
        (root / folder).mkdir()
    labels = np.arange(151, dtype=np.uint8).repeat(160).reshape(151, 160)
    image = np.random.default_rng(0).integers(0, 256, (151, 160, 3), dtype=np.uint8)
    for name in ('1', '2'):
        cv2.imwrite(str(root / f'images/{name}.jpg'), image)
        cv2.imwrite(str(root / f'annotations/{name}.png'), labels)
    return dict(data_root=str(root), data_prefix=dict(img_path='images', seg_map_path='annotations')), labels


@pytest.mark.parametrize('name', ['upernet_convnext_t_ade20k', 'upernet_convnext_b_in22k_ade20k'])
def test_pipelines_of_ade20k(name, ade20k):
    init_default_scope('mmseg')
    cfg, (data, labels) = Config.fromfile(ROOT / f'configs/seg/{name}.py'), ade20k
    datasets = [
        DATASETS.build(dict(cfg.train_dataloader.dataset, **data, pipeline=pipeline))
        for pipeline in (cfg.train_pipeline, cfg.test_pipeline, cfg.tta_pipeline)
    ]
    assert [len(dataset) for dataset in datasets] == [2] * 3
    train, test, views = (dataset[0] for dataset in datasets)
    crop = cfg.crop_size[0]
    assert max(train['inputs'].shape[1:]) <= crop
    assert train['data_samples'].gt_sem_seg.shape == tuple(train['inputs'].shape[1:])
    assert min(test['inputs'].shape[1:]) == crop
    # labels count from zero without the unlabelled, at the size of the file
    expected = np.where(labels == 0, 255, labels.astype(np.int64) - 1)
    assert np.array_equal(test['data_samples'].gt_sem_seg.data[0].numpy(), expected)
    assert all(sample.gt_sem_seg.shape == labels.shape for sample in views['data_samples'])
    shortest = [min(view.shape[1:]) for view in views['inputs']]
    assert shortest == [int(ratio * crop) for ratio in (0.5, 0.75, 1, 1.25, 1.5, 1.75) for _ in range(2)]
    assert [sample.flip for sample in views['data_samples']] == [False, True] * 6
    still, mirrored = views['inputs'][4:6]
    assert torch.equal(still.flip(-1), mirrored)


@pytest.mark.parametrize('name', ['cascade_convnext_t', 'mask_rcnn_convnextv2_b', 'mask_rcnn_convnextv2_b_lsj'])
def test_pipelines_of_coco(name, drawn):
    np.random.seed(0)
    init_default_scope('mmdet')
    cfg = Config.fromfile(ROOT / f'configs/det/{name}_coco.py')
    classes = dict(classes=('circle', 'square', 'triangle'))
    train, test = (
        dict(
            type='CocoDataset',
            data_root=drawn['train_dataloader.dataset.data_root'],
            metainfo=classes,
            ann_file=f'annotations/instances_{split}.json',
            data_prefix=dict(img=f'images/{split}/'),
        )
        for split in ('train', 'val')
    )
    dataset, resized = DATASETS.build(dict(train, pipeline=cfg.train_pipeline)), []
    for item in [dataset[index] for index in range(6)]:
        shape, sample = tuple(item['inputs'].shape[1:]), item['data_samples']
        assert sample.gt_instances.masks.masks.shape[1:] == shape
        factors = reversed(sample.scale_factor)  # of width and height
        resized.append([round(side * factor) for side, factor in zip(sample.ori_shape, factors, strict=True)])
        if name == 'cascade_convnext_t':
            assert 480 <= min(shape) <= 800
            assert max(shape) <= 1333
        else:  # both recipes cut what is larger than 1024 pixels, and to that size
            assert shape == tuple(min(side, 1024) for side in resized[-1])
    longest = [max(sides) for sides in resized]
    assert name == 'cascade_convnext_t' or 102 <= min(longest) < 1024 < max(longest) <= 2048
    views = DATASETS.build(dict(test, pipeline=cfg.tta_pipeline, test_mode=True))[0]
    assert [min(view.shape[1:]) for view in views['inputs']] == [600, 600, 800, 800, 1000, 1000]
    assert [sample.flip for sample in views['data_samples']] == [False, True] * 3
