"""The configs: short leaves, models that fit together, and the published recipe number by number."""

import ast
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, PARAM_SCHEDULERS, init_default_scope
from torch import nn

from convnext_dense.run_config import load_config
from convnext_dense.variants import VARIANTS

ROOT = Path(__file__).parent.parent
LEAVES = sorted([*(ROOT / 'configs').glob('det/*.py'), *(ROOT / 'configs').glob('seg/*.py')])
RECIPE = ROOT / 'configs/det/cascade_convnext_t_coco.py'


def pytest_generate_tests(metafunc):
    if 'leaf' in metafunc.fixturenames:
        metafunc.parametrize('leaf', LEAVES, ids=lambda leaf: leaf.stem)


def build_on_meta(cfg: Config) -> nn.Module:
    init_default_scope(cfg.default_scope)
    with torch.device('meta'):
        return MODELS.build(cfg.model)


def test_leaf_is_short_and_says_what_it_is(leaf):
    text = leaf.read_text()
    assert len(text.splitlines()) <= 20
    header = ast.get_docstring(ast.parse(text))
    assert f'tools/train.py configs/{leaf.parent.name}/{leaf.name}' in header
    assert 'Expected:' in header


def test_leaf_builds_and_its_channels_agree(leaf):
    cfg = Config.fromfile(leaf)
    assert cfg.custom_imports.imports == ['convnext_dense']
    model = build_on_meta(cfg)
    dims = VARIANTS[cfg.model.backbone.arch].dims
    assert model.backbone.dims == dims
    if model.with_neck:
        assert list(model.neck.in_channels) == list(dims)


def test_leaf_survives_a_dump(leaf, tmp_path):
    cfg = load_config(leaf)
    cfg.dump(tmp_path / 'dumped.py')
    dumped = Config.fromfile(tmp_path / 'dumped.py')
    assert dumped.model.to_dict() == cfg.model.to_dict()
    assert dumped.train_dataloader.to_dict() == cfg.train_dataloader.to_dict()


def test_recipe_of_the_optimizer():
    cfg = Config.fromfile(RECIPE)
    assert cfg.optim_wrapper.type == 'AmpOptimWrapper'
    assert cfg.optim_wrapper.optimizer.to_dict() == dict(type='AdamW', lr=2e-4, betas=(0.9, 0.999), weight_decay=0.05)
    assert cfg.optim_wrapper.constructor == 'ConvNeXtLayerDecay'
    assert cfg.optim_wrapper.paramwise_cfg.decay_rate == 0.7
    assert 'clip_grad' not in cfg.optim_wrapper
    assert cfg.model.backbone.drop_path_rate == 0.4
    assert cfg.model.backbone.layer_scale_init_value == 1.0
    assert cfg.train_cfg.max_epochs == 36
    assert cfg.train_dataloader.batch_size == 2
    assert cfg.auto_scale_lr.base_batch_size == 16


def test_recipe_of_the_schedule():
    cfg = Config.fromfile(RECIPE)
    model = nn.Linear(1, 1)
    optim_wrapper = build_optim_wrapper(model, dict(optimizer=dict(type='AdamW', lr=2e-4)))
    warmup, steps = (PARAM_SCHEDULERS.build({**s, 'optimizer': optim_wrapper}) for s in cfg.param_scheduler)
    rates = []
    for _ in range(600):
        rates.append(optim_wrapper.get_lr()['lr'][0])
        optim_wrapper.step()
        warmup.step()
    for i in (0, 1, 250, 499, 500, 599):  # the closed form: linear from 1e-3 of the lr over 500 iterations
        assert rates[i] == pytest.approx(2e-4 * min(1, 0.001 + 0.999 * i / 500)), i
    by_epoch = []
    for _ in range(36):
        by_epoch.append(optim_wrapper.get_lr()['lr'][0])
        optim_wrapper.step()
        steps.step()
    assert by_epoch == pytest.approx([2e-4] * 27 + [2e-5] * 6 + [2e-6] * 3)


def test_recipe_of_the_augmentation():
    cfg = Config.fromfile(RECIPE)
    flip, choice = cfg.train_pipeline[2:4]
    assert flip.to_dict() == dict(type='RandomFlip', prob=0.5)
    (plain,), (first, crop, second) = choice.transforms
    wide = [(side, 1333) for side in range(480, 801, 32)]
    assert plain.scales == second.scales == wide
    assert first.scales == [(400, 1333), (500, 1333), (600, 1333)]
    assert (crop.crop_type, crop.crop_size, crop.allow_negative_crop) == ('absolute_range', (384, 600), True)
    assert cfg.train_dataloader.dataset.pipeline == cfg.train_pipeline
    assert cfg.test_pipeline[1].scale == (1333, 800)


def test_recipe_of_the_heads():
    model = Config.fromfile(RECIPE).model
    stds = [head.bbox_coder.target_stds for head in model.roi_head.bbox_head]
    assert stds == [[0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1], [0.033, 0.033, 0.067, 0.067]]
    for head in model.roi_head.bbox_head:
        assert (head.num_shared_convs, head.num_shared_fcs, head.norm_cfg.type) == (4, 1, 'SyncBN')
        assert head.reg_decoded_bbox
        assert not head.reg_class_agnostic
        assert head.loss_bbox.to_dict() == dict(type='GIoULoss', loss_weight=10.0)
    assert [stage.assigner.pos_iou_thr for stage in model.train_cfg.rcnn] == [0.5, 0.6, 0.7]
    assert model.roi_head.stage_loss_weights == [1, 0.5, 0.25]


def test_heads_differ_from_mmdetections_cascade_only_where_the_recipe_does():
    ours = Config.fromfile(RECIPE).model
    theirs = Config.fromfile(find_mmdet_config('_base_/models/cascade-mask-rcnn_r50_fpn.py')).model
    for part in ('data_preprocessor', 'rpn_head', 'train_cfg', 'test_cfg'):
        assert ours[part].to_dict() == theirs[part].to_dict(), part
    for part in ('bbox_roi_extractor', 'mask_roi_extractor', 'mask_head', 'type', 'num_stages', 'stage_loss_weights'):
        assert ours.roi_head[part] == theirs.roi_head[part], part


def find_mmdet_config(name: str) -> Path:
    import mmdet

    return Path(mmdet.__file__).parent / '.mim/configs' / name


def test_parameters_equal_the_published_number():
    model = build_on_meta(Config.fromfile(RECIPE))
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == 86
