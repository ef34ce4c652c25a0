"""Every leaf trains one step and predicts, with narrow heads, on small drawings; its pipelines run on real files."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, MODELS, init_default_scope
from torch import nn

from convnext_dense.configs import walk
from convnext_dense.data.samples import draw_batch
from convnext_dense.train.config import fit_to_cpu
from convnext_dense.variants import VARIANTS

ROOT = Path(__file__).parent.parent
LEAVES = sorted([*(ROOT / 'configs').glob('det/*.py'), *(ROOT / 'configs').glob('seg/*.py')])
ADE20K_SAMPLES = ROOT.parent / 'shared/data/ade20k_samples'
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
        metafunc.parametrize('leaf', LEAVES, ids=lambda leaf: leaf.stem)


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
    if backbone.get('arch') in ('large', 'xlarge', 'huge'):
        backbone.arch = dict(depths=(1, 1, 1, 1), dims=VARIANTS[backbone.arch].dims)
    cfg.launcher = 'none'
    fit_to_cpu(cfg)


def build(cfg: Config) -> nn.Module:
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    if cfg.model.type == 'DINO':
        model.init_weights()  # its level embedding is any numbers before
    return revert_sync_batchnorm(model)


def draw(cfg: Config, count: int, side: int) -> dict:
    """Return drawings with the ground truth that a config's pipeline loads."""
    batch = draw_batch(cfg.default_scope, range(count), side)
    if not any(step.get('with_mask') for step in walk(cfg.train_dataloader)):
        for sample in batch['data_samples']:
            sample.get('gt_instances', {}).pop('masks', None)
    return batch


def test_one_step_and_one_prediction(leaf):
    cfg = Config.fromfile(leaf)
    shrink(cfg)
    scope = cfg.default_scope
    model = build(cfg).train()
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}

    losses = model.train_step(draw(cfg, 2, SIDE), wrapper)
    assert torch.isfinite(losses['loss'])
    parameters, state = dict(model.named_parameters()), wrapper.optimizer.state
    assert all(torch.isfinite(p).all() for p in parameters.values())
    assert all(torch.equal(parameters[name], p) for name, p in frozen.items())
    is_probe = cfg.model.get('decode_head', {}).get('type') == 'LinearHead'
    assert all(name in frozen for name in parameters if name.startswith('backbone.')) == is_probe
    stepped = {name for name, p in parameters.items() if p in state}
    assert {name for name in parameters if is_probe or name.startswith('backbone.')} - {*frozen} <= stepped
    for name, lr in rates_of_zeros(cfg, model).items():
        bias = parameters[f'backbone.{name}']
        grad = state[bias]['exp_avg'] / 0.1
        assert grad.any()
        step = -lr * grad / (grad.abs() + 1e-8)  # AdamW's first
        torch.testing.assert_close(bias.detach(), step, rtol=1e-3, atol=0)

    model.eval()
    side = SIDE + 32  # more than one window
    with torch.no_grad():
        (sample,) = model.test_step(draw(cfg, 1, side))
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


def rates_of_zeros(cfg: Config, model: nn.Module) -> dict[str, float]:
    """Return the rates of a ConvNeXt's first and last bias, which both start at 0, where they are not all the same."""
    names, optim = ('downsample_layers.0.1.bias', 'norm3.bias'), cfg.optim_wrapper
    lr, paramwise = optim.optimizer.lr, optim.get('paramwise_cfg', {})
    if 'constructor' in optim:
        slots = 3 + math.ceil(model.backbone.depths[2] / 3) + 1
        return dict(zip(names, (lr * paramwise.decay_rate**slots, lr), strict=True))
    return dict.fromkeys(names, 0.1 * lr) if cfg.model.type in ('DINO', 'Mask2Former') else {}


@pytest.mark.slow
def test_full_size_predicts(leaf):
    cfg = Config.fromfile(leaf)
    cfg.model.backbone.init_cfg = None
    for node in walk(cfg.model):
        if 'crop_size' in node:
            node['mode'] = 'whole'
    model = build(cfg).eval()
    side = 224 if cfg.model.type == 'DINO' else 128  # as many places as queries
    with torch.no_grad():
        (sample,) = model.test_step(draw(cfg, 1, side))
    assert 'pred_sem_seg' in sample if cfg.default_scope == 'mmseg' else 'pred_instances' in sample


def test_norm_of_a_probe_stays_as_it_was_trained():
    cfg = Config.fromfile(ROOT / 'configs/seg/linear_convnext_t_dinov3_ade20k.py')
    shrink(cfg)
    model = build(cfg).train()
    assert not model.backbone.norm3.weight.requires_grad
    assert not model.backbone.norm3.training
    assert not any(p.requires_grad for p in model.backbone.parameters())
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        'decode_head.norm.weight',
        'decode_head.norm.bias',
        'decode_head.conv_seg.weight',
        'decode_head.conv_seg.bias',
    }


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


# ------------------------------------------------------------------------------------------------------- pipelines


def sample_of(pipeline: list, split: str = 'training') -> dict:
    """Run a pipeline of an ADE20K config on the first sample picture."""
    init_default_scope('mmseg')
    dataset = DATASETS.build(
        dict(
            type='ADE20KDataset',
            data_root=str(ADE20K_SAMPLES),
            data_prefix=dict(img_path='images', seg_map_path='annotations'),
            pipeline=pipeline,
        )
    )
    return dataset[0]


needs_samples = pytest.mark.skipif(not ADE20K_SAMPLES.is_dir(), reason='the ADE20K samples are not here')


@needs_samples
@pytest.mark.parametrize('name', ['upernet_convnext_t_ade20k', 'upernet_convnext_b_in22k_ade20k'])
def test_pipelines_of_ade20k(name):
    import cv2

    cfg = Config.fromfile(ROOT / f'configs/seg/{name}.py')
    height, width = cv2.imread(str(sorted((ADE20K_SAMPLES / 'images').glob('*.jpg'))[0])).shape[:2]
    crop = cfg.crop_size[0]
    train = sample_of(cfg.train_pipeline)
    assert max(train['inputs'].shape[1:]) <= crop
    assert train['data_samples'].gt_sem_seg.shape == tuple(train['inputs'].shape[1:])
    test = sample_of(cfg.test_pipeline)
    assert min(test['inputs'].shape[1:]) == crop
    assert test['data_samples'].gt_sem_seg.shape == (height, width)
    views = sample_of(cfg.tta_pipeline)
    shortest = [min(view.shape[1:]) for view in views['inputs']]
    assert shortest == [int(ratio * crop) for ratio in (0.5, 0.75, 1, 1.25, 1.5, 1.75) for _ in range(2)]
    assert [sample.flip for sample in views['data_samples']] == [False, True] * 6
    assert all(sample.gt_sem_seg.shape == (height, width) for sample in views['data_samples'])
    still, mirrored = views['inputs'][4:6]
    assert torch.equal(still.flip(-1), mirrored)


@needs_samples
def test_labels_of_ade20k_count_from_zero_without_the_unlabelled():
    import cv2

    init_default_scope('mmseg')
    cfg = Config.fromfile(ROOT / 'configs/seg/upernet_convnext_t_ade20k.py')
    dataset = dict(cfg.test_dataloader.dataset, data_root=str(ADE20K_SAMPLES))
    dataset['data_prefix'] = dict(img_path='images', seg_map_path='annotations')
    dataset = DATASETS.build(dataset)
    assert len(dataset) == 3
    seen, names = set(), []
    for item in dataset:
        sample = item['data_samples']
        stored = cv2.imread(sample.seg_map_path, cv2.IMREAD_UNCHANGED).astype(np.int64)
        seen.update(np.unique(stored))
        expected = np.where(stored == 0, 255, stored - 1)
        labels = sample.gt_sem_seg.data[0].numpy()
        assert np.array_equal(labels, expected)
        names.append({dataset.metainfo['classes'][label] for label in np.unique(labels) if label != 255})
    # a farm, a church, a street with a bus
    assert names[0] >= {'sky', 'building', 'grass', 'wall', 'tree', 'road'}
    assert names[1] >= {'sky', 'building', 'tree'}
    assert names[2] >= {'road', 'sky', 'sidewalk', 'car', 'bus', 'van', 'streetlight'}
    assert max(seen) <= 150
    assert len(seen) > 10


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    from convnext_dense.data import write_shapes

    return write_shapes(tmp_path_factory.mktemp('data') / 'shapes', num_train=8, num_val=2, size=64)


@pytest.mark.filterwarnings('ignore:__array__ implementation:DeprecationWarning')  # in pycocotools
@pytest.mark.parametrize(
    'name', ['cascade_convnext_t_coco', 'mask_rcnn_convnextv2_b_coco', 'mask_rcnn_convnextv2_b_lsj_coco']
)
def test_pipelines_of_coco(name, shapes):
    np.random.seed(0)
    init_default_scope('mmdet')
    cfg = Config.fromfile(ROOT / f'configs/det/{name}.py')
    data = dict(type='CocoDataset', data_root=str(shapes), metainfo=dict(classes=('circle', 'square', 'triangle')))
    train = DATASETS.build(
        dict(
            data,
            ann_file='annotations/instances_train.json',
            data_prefix=dict(img='images/train/'),
            pipeline=cfg.train_pipeline,
        )
    )
    resized = []
    for index in range(6):
        item = train[index]
        shape, sample = tuple(item['inputs'].shape[1:]), item['data_samples']
        assert sample.gt_instances.masks.masks.shape[1:] == shape
        factors = reversed(sample.scale_factor)  # of width and height
        resized.append([round(side * factor) for side, factor in zip(sample.ori_shape, factors, strict=True)])
        if name == 'cascade_convnext_t_coco':
            assert 480 <= min(shape) <= 800
            assert max(shape) <= 1333
        else:  # both recipes cut what is larger than 1024 pixels, and to that size
            assert shape == tuple(min(side, 1024) for side in resized[-1])
    if name != 'cascade_convnext_t_coco':
        longest = [max(sides) for sides in resized]
        assert 102 <= min(longest) < 1024 < max(longest) <= 2048
    views = DATASETS.build(
        dict(
            data,
            ann_file='annotations/instances_val.json',
            data_prefix=dict(img='images/val/'),
            pipeline=cfg.tta_pipeline,
            test_mode=True,
        )
    )[0]
    assert [min(view.shape[1:]) for view in views['inputs']] == [600, 600, 800, 800, 1000, 1000]
    assert [sample.flip for sample in views['data_samples']] == [False, True] * 3
