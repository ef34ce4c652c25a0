"""The lr is scaled with the batch size, for any number of processes, optimizers and schedules."""

import copy

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS

from convnext_dense import ConvNeXt, UserError
from convnext_dense.train.config import fit_lr


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


@pytest.mark.parametrize(
    ('num_processes', 'steps', 'factor'), [(1, 1, 1 / 8), (2, 1, 1 / 4), (8, 1, 1), (64, 1, 8), (1, 4, 1 / 2)]
)
def test_lr_is_scaled_by_the_total_batch(num_processes, steps, factor):
    cfg, batch = recipe(), 2 * num_processes * steps
    cfg.optim_wrapper.accumulative_counts = steps
    by_the_config = copy.deepcopy(cfg)
    by_the_config.auto_scale_lr.enable = True
    (note,) = fit_lr(cfg, num_processes, auto_scale_lr=True)
    assert fit_lr(by_the_config, num_processes) == ([] if factor == 1 else [note])
    assert by_the_config.to_dict() == cfg.to_dict()
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(2e-4 * factor)
    assert f'scaled by {factor:g}: 0.0002 -> {2e-4 * factor:g} (total batch {batch} = ' in note
    assert cfg.auto_scale_lr.to_dict() == dict(enable=False, base_batch_size=batch)
    lr = cfg.optim_wrapper.optimizer.lr
    fit_lr(cfg, num_processes, auto_scale_lr=True)  # the copy in the work dir, run with the option again
    assert cfg.optim_wrapper.optimizer.lr == lr


def test_forgotten_scaling_is_noted():
    cfg = recipe()
    (note,) = fit_lr(cfg, 1)
    for words in ('0.0002', 'total batch 2', 'recipe 16', '--auto-scale-lr', '0.125'):
        assert words in note
    assert cfg.optim_wrapper.optimizer.lr == 2e-4
    assert fit_lr(cfg, 8) == []


@pytest.mark.parametrize(
    ('changes', 'missing'),
    [
        (dict(auto_scale_lr=None), r'auto_scale_lr\.base_batch_size'),
        (dict(optim_wrapper=dict(optimizer=dict(type='AdamW'))), r'optim_wrapper\.optimizer\.lr'),
        (dict(optim_wrapper=dict(optimizer=dict(type='Adafactor', lr=None))), r'optim_wrapper\.optimizer\.lr'),
    ],
)
def test_scaling_needs_a_recipes_batch_size_and_an_lr(changes, missing):
    assert fit_lr(recipe(**changes), 1) == []
    with pytest.raises(UserError, match=f'--auto-scale-lr needs {missing} in the config'):
        fit_lr(recipe(**changes), 1, auto_scale_lr=True)


def test_scaling_before_a_resumed_training():
    cfg = recipe(resume=True)
    assert fit_lr(cfg, 1) == []
    (note,) = fit_lr(cfg, 1, auto_scale_lr=True)
    assert 'lr is that of the checkpoint' in note
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
    (note,) = fit_lr(cfg, 4, auto_scale_lr=True)
    assert note.startswith('lr scaled by 0.5: 0.1, 0.2 -> 0.05, 0.1 (')
    assert (cfg.param_scheduler.a[0].eta_min, cfg.param_scheduler.b[0].eta_max) == (5e-5, 0.2)
    assert cfg.param_scheduler.b[1].eta_min == 0.8


@pytest.mark.parametrize(
    ('name', 'value', 'allowed'),
    [
        ('train_dataloader.batch_size', 'abc', 'a whole number of 1 or more'),
        ('train_dataloader.batch_size', 0, 'a whole number of 1 or more'),
        ('optim_wrapper.accumulative_counts', 0, 'a whole number of 1 or more'),
        ('auto_scale_lr.base_batch_size', 2.5, 'a whole number of 1 or more'),
        ('auto_scale_lr.base_batch_size', -8, 'a whole number of 1 or more'),
        ('optim_wrapper.optimizer.lr', 'abc', 'a number'),
        ('auto_scale_lr', 5, 'a dict'),
    ],
)
@pytest.mark.parametrize('auto_scale_lr', [True, False])
def test_numbers_that_are_none(name, value, allowed, auto_scale_lr):
    cfg = recipe()
    cfg.merge_from_dict({name: value})
    with pytest.raises(UserError, match=f'^{name} must be {allowed}.* got {value!r}'):
        fit_lr(cfg, 2, auto_scale_lr)


@pytest.mark.parametrize('constructor', ['ConvNeXtLayerDecay', 'ConvNeXtStageDecay'])
@pytest.mark.parametrize('late', ['CosineAnnealingLR', 'PolyLR'])
def test_every_rate_of_the_schedule_is_scaled_alike(constructor, late):
    """Warm-up, decay and floor, of every group and of the base rate in the log."""
    cfg = recipe()
    cfg.optim_wrapper.constructor = constructor
    cfg.param_scheduler[1] = dict(type=late, by_epoch=False, begin=5, end=15, eta_min=1e-6)
    before = schedule_of(cfg)
    fit_lr(cfg, 2, auto_scale_lr=True)
    after = schedule_of(cfg)
    assert before.shape == after.shape == (16, before.shape[1])
    assert before.shape[1] > 10
    assert len(np.unique(before[8])) > 5
    np.testing.assert_allclose(after, before / 4, rtol=1e-9)


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
