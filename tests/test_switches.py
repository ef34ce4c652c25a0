"""Switches of a training: what each changes, and a run with all of them."""

import sys
from types import ModuleType

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config

from convnext_dense import UserError, cli, train
from convnext_dense.configs import load_config, walk
from convnext_dense.train import switches
from convnext_dense.train.switches import (
    SWITCHES,
    GuardedVisBackend,
    apply_switches,
    image_side,
    largest_batch,
    try_steps,
)

DET, SEG = 'det/cascade_convnext_atto_shapes', 'seg/upernet_convnext_atto_shapes'


def changed(name, value, config=DET):
    cfg = load_config(config)
    cfg.work_dir = 'w'
    notes = apply_switches(cfg, **{name: value})
    return cfg, notes


@pytest.mark.parametrize(
    ('name', 'value', 'place', 'expected'),
    [
        ('batch', '6', 'train_dataloader.batch_size', 6),
        ('polygons', True, 'train_dataloader.dataset.pipeline.1.poly2mask', False),
        ('accumulate', 4, 'optim_wrapper.accumulative_counts', 4),
        ('freeze', 2, 'model.backbone.frozen_stages', 2),
        ('save_best', True, 'default_hooks.checkpoint.save_best', 'coco/bbox_mAP'),
        ('balance', True, 'train_dataloader.dataset.type', 'ClassBalancedDataset'),
        ('ema', True, 'custom_hooks.1.type', 'EMAHook'),
        ('early_stop', 3, 'custom_hooks.1.patience', 3),
        ('profile', True, 'custom_hooks.1.json_trace_path', 'w/profile.json'),
        ('log', 'wandb', 'visualizer.vis_backends.1.backend', 'WandbVisBackend'),
    ],
)
def test_what_each_changes(name, value, place, expected):
    cfg, (note,) = changed(name, value)
    node = cfg
    for key in place.split('.'):
        node = node[int(key)] if key.isdigit() else node[key]
    assert node == expected
    assert name.replace('_', '-') in note
    assert changed(name, None)[1] == []


@pytest.mark.parametrize(
    ('name', 'value', 'config', 'named'),
    [
        ('batch', 'many', DET, ('--batch', 'auto', 'many')),
        ('batch', '²', DET, ('--batch', 'auto', '²')),
        ('polygons', True, SEG, ('--polygons', 'with_mask=True')),
        ('fast_jpeg', True, DET, ('--fast-jpeg', '--size PIXELS')),
        ('accumulate', 0, DET, ('--accumulate', '1 or more', '0')),
        ('early_stop', -1, DET, ('--early-stop', '1 or more')),
        ('freeze', 5, DET, ('--freeze', '0', '4', '5')),
        ('log', 'excel', DET, ('--log', 'tensorboard', 'excel')),
        ('balance', True, SEG, ('--balance', 'detector')),
        ('size', 20, DET, ('--size', '64', '20')),
    ],
)
def test_values_out_of_range(name, value, config, named):
    with pytest.raises(UserError) as error:
        changed(name, value, config)
    assert all(word in str(error.value) for word in named)


@pytest.mark.parametrize(
    ('config', 'trained', 'tested', 'padded'),
    [
        (DET, {'Resize': (240, 240)}, (240, 240), None),
        (SEG, {'Resize': (240, 240)}, (240, 240), (240, 240)),
        ('det/cascade_convnext_t_coco', {'RandomCrop': (69, 108)}, (240, 144), None),
        ('det/rtmdet_convnext_t_coco', {'CachedMosaic': (240, 240), 'RandomResize': (480, 480)}, (240, 240), None),
        (
            'seg/upernet_convnext_t_ade20k',
            {'RandomResize': (960, 240), 'RandomCrop': (240, 240)},
            (960, 240),
            (240, 240),
        ),
    ],
)
def test_images_of_another_size(config, trained, tested, padded):
    cfg, _ = changed('size', 240, config)
    steps = {step.type: step for step in walk(cfg.train_dataloader.dataset) if 'type' in step}
    for name, size in trained.items():
        assert size in [tuple(steps[name].get(key) or ()) for key in ('scale', 'img_scale', 'crop_size')]
    for split in ('val', 'test'):
        (resize,) = (step for step in cfg[f'{split}_dataloader'].dataset.pipeline if step.type == 'Resize')
        assert tuple(resize.scale) == tested
    assert cfg.model.data_preprocessor.get('size') == padded
    views = [step.scale for step in walk(cfg.tta_pipeline) if step.get('type') == 'Resize']
    assert tested in map(tuple, views)
    assert all(isinstance(side, int) for view in views for side in view)


def test_a_metric_must_be_known():
    cfg = Config(dict(val_evaluator=dict(type='CityscapesMetric')))
    with pytest.raises(UserError, match='CocoMetric, IoUMetric.*CityscapesMetric'):
        apply_switches(cfg, early_stop=2)


def test_the_command_line_has_every_switch():
    flags = {flags[0].lstrip('-').replace('-', '_') for flags, _ in cli.SWITCHES}
    assert flags == set(SWITCHES)


def test_a_run_with_all_of_them(drawn, tmp_path):
    options = drawn | {'train_cfg.max_iters': 4, 'train_cfg.val_interval': 2, 'train_dataloader.batch_size': 2}
    options |= {'default_hooks.checkpoint.interval': 2}
    runner = train.train(
        SEG, str(tmp_path / 'w'), cfg_options=options, ema=True, early_stop=9, save_best=True, accumulate=2, freeze=1,
        log='mlflow', profile=False,
    )  # fmt: skip
    assert runner.iter == 4
    assert list((tmp_path / 'w').glob('best_mIoU*.pth'))
    frozen = [name for name, p in runner.model.backbone.named_parameters() if not p.requires_grad]
    assert {name.split('.')[0] for name in frozen} == {'downsample_layers', 'stages'}
    assert any(type(hook).__name__ == 'EMAHook' for hook in runner.hooks)


@pytest.mark.parametrize(('room', 'expected'), [(1, 1), (2, 2), (3, 3), (5, 4), (13, 12), (10**6, 256)])
def test_the_largest_batch(room, expected):
    tried = []
    assert largest_batch(lambda images: tried.append(images) or images <= room) == expected
    assert len(tried) <= 10
    with pytest.raises(UserError, match='not even one image'):
        largest_batch(lambda images: False)


def test_without_a_gpu_the_batch_stays():
    if torch.cuda.is_available():
        pytest.skip('is about machines without a GPU')
    cfg, (note,) = changed('batch', 'auto')
    assert cfg.train_dataloader.batch_size == 8
    assert 'GPU' in note


def test_the_batch_is_tried_at_the_size_of_the_images():
    side = image_side(load_config('det/cascade_convnext_t_coco'))
    assert side**2 >= 800 * 1333
    assert side % 32 == 0
    assert image_side(load_config('seg/upernet_convnext_t_ade20k')) >= 512


def test_the_steps_that_are_tried_run():
    cfg = load_config(SEG)
    cfg.model.decode_head.num_classes = 8
    try_steps(cfg, 2)  # on the CPU where there is no GPU


def test_trackio_gets_the_numbers(tmp_path, monkeypatch):
    calls = []
    module = ModuleType('trackio')
    for name in ('init', 'log', 'finish'):
        setattr(module, name, lambda *args, name=name, **options: calls.append((name, args, options)))
    monkeypatch.setitem(sys.modules, 'trackio', module)
    backend = GuardedVisBackend(str(tmp_path), 'TrackioVisBackend')
    assert calls == []  # it starts when it is first used
    backend.add_scalars(dict(loss=torch.tensor(1.5), lr=0.1), step=3)
    backend.add_scalar('mIoU', 50.0, step=4)
    backend.close()
    assert [name for name, *_ in calls] == ['init', 'log', 'log', 'finish']
    assert calls[1][1:] == (({'loss': 1.5, 'lr': 0.1},), {'step': 3})


def test_a_logger_that_fails_is_switched_off(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(switches, 'print_log', lambda note, **options: said.append(note))
    backend = GuardedVisBackend(str(tmp_path), 'LocalVisBackend')
    calls = []

    class Broken:
        def add_scalar(self, *args, **options):
            calls.append(args)
            raise ConnectionError('no route')

    backend.backend = Broken()
    backend.add_scalar('loss', 1.0)
    backend.add_scalar('loss', 0.5)
    backend.close()
    assert len(calls) == 1
    assert backend.experiment is None
    (note,) = said
    assert note == 'Broken failed and is switched off; the run goes on: ConnectionError: no route'


def test_targets_of_polygons_are_those_of_bitmaps_within_a_pixel():
    from mmdet.structures.mask import BitmapMasks, PolygonMasks

    rng = np.random.default_rng(0)
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    outlines = []
    for _ in range(30):
        radii = rng.uniform(15, 60) * rng.uniform(0.6, 1, 24)
        centre = rng.uniform(70, 130, (2, 1))
        outlines.append((centre + radii * [np.cos(angles), np.sin(angles)]).T.ravel())
    polygons = PolygonMasks([[outline] for outline in outlines], 200, 200)
    bitmaps = BitmapMasks(polygons.to_ndarray(), 200, 200)
    corners = np.array([[*o.reshape(-1, 2).min(0), *o.reshape(-1, 2).max(0)] for o in outlines])
    boxes = (corners + rng.uniform(-5, 5, corners.shape)).astype(np.float32)
    drawn, cropped = (
        each.crop_and_resize(boxes, (28, 28), np.arange(30)).to_ndarray().astype(np.uint8)
        for each in (polygons, bitmaps)
    )
    square = np.ones((3, 3), np.uint8)
    for one, other in zip(drawn, cropped, strict=True):
        assert other.any()
        assert (one <= cv2.dilate(other, square)).all()
        assert (one >= cv2.erode(other, square, borderType=cv2.BORDER_CONSTANT, borderValue=0)).all()


def test_a_training_with_polygons(drawn_boxes, tmp_path):
    options = drawn_boxes | {'train_cfg.max_epochs': 1}
    runner = train.train(DET, str(tmp_path / 'w'), cfg_options=options, polygons=True)
    assert runner.iter == 2


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore:The .grad attribute of a Tensor:UserWarning')  # torch.compile looks at it
@pytest.mark.parametrize('compiled', [True, dict(backend='eager'), dict(mode='reduce-overhead', dynamic=None)])
def test_a_training_with_compiled_maps(compiled, drawn_boxes, tmp_path):
    options = drawn_boxes | {'train_cfg.max_epochs': 1, 'compile_maps': compiled}
    runner = train.train(DET, str(tmp_path / 'w'), cfg_options=options)
    assert runner.iter > 0
    assert all(part._compiled_call_impl for part in (runner.model.backbone, runner.model.neck))
