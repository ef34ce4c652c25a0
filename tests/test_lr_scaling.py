"""The lr for any number of processes: config and number go in, a scaled config and a note come out."""

import copy
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS
from mmengine.runner import Runner

from convnext_dense import ConvNeXt, UserError
from convnext_dense.train import config as run_config


def recipe(**changes) -> Config:
    cfg = dict(
        train_dataloader=dict(batch_size=2),
        optim_wrapper=dict(
            type='OptimWrapper',
            constructor='ConvNeXtLayerDecay',
            paramwise_cfg=dict(decay_rate=0.7, custom_keys=dict(head=dict(lr_mult=10))),
            optimizer=dict(type='AdamW', lr=2e-4, betas=(0.9, 0.999), weight_decay=0.05),
        ),
        param_scheduler=[
            dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=5),
            dict(type='CosineAnnealingLR', T_max=10, by_epoch=False, begin=5, end=15, eta_min=1e-6),
        ],
        auto_scale_lr=dict(enable=False, base_batch_size=16),
    )
    return Config({**cfg, **changes})


@pytest.mark.parametrize('num_processes', [1, 2, 8, 64])
def test_lr_is_scaled_by_the_total_batch(num_processes):
    cfg = recipe()
    run_config.enable_auto_scale_lr(cfg)
    (note,) = run_config.fit_lr(cfg, num_processes)
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(2e-4 * num_processes * 2 / 16)
    assert f'lr scaled by {num_processes / 8:g}: 0.0002 -> ' in note
    assert f'(total batch {2 * num_processes} = {num_processes} process' in note


def test_note_of_a_scaled_lr(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    cfg = recipe()
    run_config.enable_auto_scale_lr(cfg)
    assert run_config.fit_lr(cfg, 2) == [
        'lr scaled by 0.25: 0.0002 -> 5e-05 (total batch 4 = 2 GPUs x 2 images, recipe 16)'
    ]
    assert cfg.auto_scale_lr.to_dict() == dict(enable=False, base_batch_size=4)
    run_config.enable_auto_scale_lr(cfg)  # the copy in the work dir, run with the option again
    assert run_config.fit_lr(cfg, 2) == ['lr scaled by 1: 5e-05 -> 5e-05 (total batch 4 = 2 GPUs x 2 images, recipe 4)']


def test_forgotten_scaling_is_noted(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    cfg = recipe()
    assert run_config.fit_lr(cfg, 1) == [
        'lr kept at 0.0002, for another batch size (total batch 2 = 1 GPU x 2 images, recipe 16); '
        '--auto-scale-lr scales it by 0.125'
    ]
    assert run_config.fit_lr(cfg, 8) == []
    assert cfg.optim_wrapper.optimizer.lr == 2e-4
    assert run_config.fit_lr(recipe(auto_scale_lr=None), 1) == []
    assert run_config.fit_lr(recipe(optim_wrapper=dict(optimizer=dict(type='AdamW'))), 1) == []
    assert run_config.fit_lr(recipe(optim_wrapper=dict(optimizer=dict(type='Adafactor', lr=None))), 1) == []


def test_accumulated_steps_count():
    cfg = recipe()
    cfg.optim_wrapper.accumulative_counts = 4
    assert run_config.fit_lr(cfg, 2) == []
    run_config.enable_auto_scale_lr(cfg)
    (note,) = run_config.fit_lr(cfg, 1)
    assert 'by 0.5: 0.0002 -> 0.0001 (total batch 8 = 1 process x 2 images x 4 accumulated steps, recipe 16)' in note


def test_scaling_before_a_resumed_training():
    cfg = recipe(resume=True)
    assert run_config.fit_lr(cfg, 1) == []
    run_config.enable_auto_scale_lr(cfg)
    assert run_config.fit_lr(cfg, 1) == [
        'the lr is that of the checkpoint; --auto-scale-lr acts when a training starts'
    ]
    assert cfg.optim_wrapper.optimizer.lr == 2e-4
    assert not cfg.auto_scale_lr.enable


def test_scaling_of_several_optimizers_and_schedules():
    optimizer = dict(type='SGD', lr=0.1)
    schedules = dict(
        a=[dict(type='PolyLR', eta_min=1e-4)],
        b=[dict(type='OneCycleLR', eta_max=0.4), dict(type='CosineAnnealingMomentum', eta_min=0.8)],
    )
    wrappers = dict(constructor='Own', a=dict(optimizer=optimizer), b=dict(optimizer=dict(optimizer, lr=0.2)))
    cfg = recipe(optim_wrapper=wrappers, param_scheduler=schedules)
    run_config.enable_auto_scale_lr(cfg)
    (note,) = run_config.fit_lr(cfg, 4)
    assert note.startswith('lr scaled by 0.5: 0.1, 0.2 -> 0.05, 0.1 (')
    assert (cfg.param_scheduler.a[0].eta_min, cfg.param_scheduler.b[0].eta_max) == (5e-5, 0.2)
    assert cfg.param_scheduler.b[1].eta_min == 0.8


@pytest.mark.parametrize('size', [None, 0, -8, '16', 2.5])
def test_scaling_needs_a_recipes_batch_size(size):
    cfg = recipe(auto_scale_lr=dict(base_batch_size=size))
    with pytest.raises(UserError, match='--auto-scale-lr needs the batch size for which the lr was chosen: set'):
        run_config.enable_auto_scale_lr(cfg)
    assert run_config.fit_lr(cfg, 1) == []


def test_scaling_needs_an_lr():
    cfg = recipe(optim_wrapper=dict(optimizer=dict(type='AdamW')))
    with pytest.raises(UserError, match=r'--auto-scale-lr needs optim_wrapper\.optimizer\.lr in the config'):
        run_config.enable_auto_scale_lr(cfg)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (
            {'train_dataloader.batch_size': 'abc'},
            "train_dataloader.batch_size must be a whole number of 1 or more; got 'abc'.",
        ),
        ({'train_dataloader.batch_size': 0}, 'train_dataloader.batch_size must be a whole number of 1 or more; got 0.'),
        (
            {'optim_wrapper.accumulative_counts': 0},
            'optim_wrapper.accumulative_counts must be a whole number of 1 or more; got 0.',
        ),
        ({'optim_wrapper.optimizer.lr': 'abc'}, "optim_wrapper.optimizer.lr must be a number; got 'abc'."),
        ({'auto_scale_lr': 5}, 'auto_scale_lr must be a dict, such as dict(base_batch_size=16); got 5.'),
    ],
)
@pytest.mark.parametrize('scale', [run_config.enable_auto_scale_lr, lambda cfg: run_config.fit_lr(cfg, 2)])
def test_numbers_that_are_none(changes, message, scale):
    cfg = recipe()
    cfg.merge_from_dict(changes)
    with pytest.raises(UserError) as error:
        scale(cfg)
    assert str(error.value) == message


@pytest.mark.parametrize('constructor', ['ConvNeXtLayerDecay', 'ConvNeXtStageDecay'])
@pytest.mark.parametrize('late', ['CosineAnnealingLR', 'PolyLR'])
def test_every_rate_of_the_schedule_is_scaled_alike(constructor, late):
    """Warm-up, decay and floor, of every group and of the base rate in the log."""
    cfg = recipe()
    cfg.optim_wrapper.constructor = constructor
    cfg.param_scheduler[1] = dict(type=late, by_epoch=False, begin=5, end=15, eta_min=1e-6)
    before = schedule_of(cfg)
    run_config.enable_auto_scale_lr(cfg)
    run_config.fit_lr(cfg, 2)
    after = schedule_of(cfg)
    assert before.shape == after.shape == (16, before.shape[1])
    assert before.shape[1] > 10
    assert len(np.unique(before[8])) > 5
    np.testing.assert_allclose(after, before / 4, rtol=1e-9)


def test_rates_are_those_of_mmengines_scaling():
    """Of the optimizer's groups before any schedule; there the two must agree."""
    cfg = recipe()
    wrapper = build_optim_wrapper(SmallModel(), copy.deepcopy(cfg.optim_wrapper))
    runner = SimpleNamespace(
        _train_dataloader=dict(batch_size=2), world_size=2, logger=logging.getLogger('reference'), param_schedulers=None
    )
    Runner.scale_lr(runner, wrapper, dict(enable=True, base_batch_size=16))
    run_config.enable_auto_scale_lr(cfg)
    run_config.fit_lr(cfg, 2)
    scaled = build_optim_wrapper(SmallModel(), cfg.optim_wrapper)
    expected = [group['lr'] for group in wrapper.optimizer.param_groups]
    assert [group['lr'] for group in scaled.optimizer.param_groups] == pytest.approx(expected)


class SmallModel(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = ConvNeXt('atto')
        self.head = torch.nn.Linear(1, 1)


def schedule_of(cfg: Config) -> np.ndarray:
    """Return the rates of each step, a column for each group and one for the base rate."""
    wrapper = build_optim_wrapper(SmallModel(), copy.deepcopy(cfg.optim_wrapper))
    schedules = [PARAM_SCHEDULERS.build(dict(schedule, optimizer=wrapper)) for schedule in cfg.param_scheduler]
    rows = []
    for _ in range(16):
        rows.append([group['lr'] for group in wrapper.param_groups])
        wrapper.step()
        for schedule in schedules:
            schedule.step()
    return np.array(rows)
