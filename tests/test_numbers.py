"""Steps that are not finite: skipped, reported, counted, and never saved."""

import json
import math

import pytest
import torch
import toy_runs
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS
from test_resume import assert_same, newest, numbers_in
from torch import nn

from convnext_dense.compat import read_checkpoint
from convnext_dense.compat.errors import NotFiniteError
from convnext_dense.train import numbers


@HOOKS.register_module()
class StateHook(Hook):
    """Notes weights, running statistics and the optimizer's state of the latest run, after each step."""

    priority = 'LOWEST'
    states: list = []

    def before_train(self, runner):
        StateHook.states = []
        self.after_train_iter(runner)

    def after_train_iter(self, runner, batch_idx=0, data_batch=None, outputs=None):
        parts = dict(model=runner.model.state_dict(), optimizer=runner.optim_wrapper.optimizer.state_dict()['state'])
        state = {name: number.clone() for name, number in numbers_in(parts) if 'num_batches' not in name}
        StateHook.states.append(state)


def spoilt(steps, value=math.nan):
    return [dict(type='SpoilHook', steps=list(steps), value=value), dict(type='StateHook')]


def has_changed(step: int) -> bool:
    before, after = StateHook.states[step : step + 2]
    return any(not torch.equal(after[name], number) for name, number in before.items())


@pytest.mark.parametrize('value', [math.nan, math.inf])
@pytest.mark.parametrize('clip', [None, dict(max_norm=1.0), dict(type='value', clip_value=1.0)])
def test_a_step_that_is_not_finite_changes_nothing(value, clip, tmp_path, capfd):
    options = {'optim_wrapper.clip_grad': clip, 'optim_wrapper.accumulative_counts': 1}
    toy_runs.train(tmp_path, custom_hooks=spoilt([5, 9], value), **options)
    assert [step for step in range(16) if not has_changed(step)] == [5, 9]
    assert all(number.isfinite().all() for number in StateHook.states[-1].values())
    first, second = sorted((tmp_path / 'run/nonfinite').iterdir())
    assert (first.name, second.name) == ('step_0000006_process_0.json', 'step_0000010_process_0.json')
    facts = json.loads(first.read_text())
    assert facts['step'] == 6
    assert not math.isfinite(facts['losses']['loss'])
    said = capfd.readouterr().out
    assert 'step 6: loss nan' in said
    assert 'the 1. in a row and the 2. in all' in said
    assert '2 steps were skipped, because they were not finite' in said


def test_a_sum_of_gradients_with_one_that_is_not_finite_is_dropped_as_a_whole(tmp_path):
    toy_runs.train(tmp_path, custom_hooks=spoilt([4]), **{'optim_wrapper.accumulative_counts': 4})
    weights = [name for name in StateHook.states[0] if name.startswith('.model') and 'running' not in name]
    changed = [
        any(not torch.equal(StateHook.states[step][name], StateHook.states[step + 1][name]) for name in weights)
        for step in range(16)
    ]
    assert [step for step in range(16) if changed[step]] == [3, 11, 15]  # not 7


def test_skipped_steps_are_counted_across_a_resume(tmp_path):
    toy_runs.train(tmp_path, kill=9, custom_hooks=spoilt([5, 9]))
    toy_runs.train(tmp_path, custom_hooks=spoilt([5, 9]))
    toy_runs.train(tmp_path, 'whole', custom_hooks=spoilt([5, 9]))
    assert_same(newest(tmp_path / 'whole'), newest(tmp_path / 'run'))
    assert read_checkpoint(newest(tmp_path / 'run'))['message_hub']['runtime_info'][numbers.SKIPPED] == 2


@pytest.mark.parametrize(
    ('steps', 'in_row', 'total'),
    [(range(6, 99), 3, 3), (range(0, 99, 2), 1, 3)],
    ids=['in a row', 'in all'],
)
def test_too_many_end_the_training_and_leave_a_sound_checkpoint(steps, in_row, total, tmp_path):
    hooks = [*spoilt(steps), dict(type='FiniteHook', max_skipped=2)]
    with pytest.raises(NotFiniteError, match=f'{in_row} steps in a row and {total} of') as error:
        toy_runs.train(tmp_path, custom_hooks=hooks)
    assert error.value.code == 3
    file = newest(tmp_path / 'run')
    assert f'It continues from {file} with --resume.' in str(error.value)
    assert str(tmp_path / 'run/nonfinite') in str(error.value)
    assert all(number.isfinite().all() for _, number in numbers_in(read_checkpoint(file)['state_dict']))


def test_the_cure_that_the_error_names_is_one(tmp_path):
    """An lr at which weights explode."""
    wild = {'optim_wrapper.optimizer': dict(type='SGD', lr=1e5), 'param_scheduler': None}
    with pytest.raises(NotFiniteError) as error:
        toy_runs.train(tmp_path, 'wild', **wild)
    assert all(cure in str(error.value) for cure in ('optimizer.lr', 'clip_grad.max_norm=1', 'warm-up'))
    calm = {**wild, 'optim_wrapper.optimizer': dict(type='SGD', lr=1e-2), 'optim_wrapper.clip_grad.max_norm': 1}
    assert toy_runs.train(tmp_path, 'calm', **calm).iter == 16


@HOOKS.register_module()
class PoisonHook(Hook):
    """Makes a weight NaN."""

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter == 6:
            runner.model.layers[0].weight.data[0, 0] = math.nan


def test_weights_that_are_nan_replace_no_sound_checkpoint(tmp_path):
    options = {'default_hooks.checkpoint': dict(by_epoch=False, interval=1, max_keep_ckpts=1)}
    with pytest.raises(NotFiniteError, match=r'after step 7, and were not saved: layers\.0\.weight'):
        toy_runs.train(tmp_path, custom_hooks=[dict(type='PoisonHook')], **options)
    assert [file.name for file in (tmp_path / 'run').glob('*.pth')] == ['iter_6.pth']


class ScaledWrapper(OptimWrapper):
    """MMEngine's wrapper of mixed precision, which needs a GPU, in what it does with the optimizer."""

    def __init__(self, optimizer, **options):
        super().__init__(optimizer)
        self.loss_scaler = torch.amp.GradScaler('cpu', **options)

    def backward(self, loss, **kwargs):
        self.loss_scaler.scale(loss).backward(**kwargs)
        self._inner_count += 1

    def step(self, **kwargs):
        self.loss_scaler.step(self.optimizer, **kwargs)
        self.loss_scaler.update()


def test_mixed_precision_may_look_for_its_scale_but_not_for_ever():
    layer = nn.Linear(1, 1)
    wrapper = ScaledWrapper(torch.optim.SGD(layer.parameters(), lr=0.1), init_scale=2.0**16)
    hook = numbers.FiniteHook()
    hook.wrappers = [wrapper]
    wrapper.optimizer.register_step_pre_hook(lambda *_: hook.check(wrapper))
    skipped = []
    for step in range(30):
        hook.norms = []
        loss = layer(torch.ones(1, 1)).sum() * (math.inf if 2 <= step < 25 else 1.0)
        wrapper.update_params(loss)
        skipped.append(hook.was_skipped_by_scaler())
    assert [step for step in range(30) if skipped[step]] == [22, 23, 24]


def test_the_norm_is_that_of_all_gradients():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model(torch.randn(5, 3)).square().sum().backward()
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    expected = torch.cat([parameter.grad.ravel() for parameter in model.parameters()]).double().norm()
    assert numbers.gradient_norm(wrapper) == pytest.approx(expected.item(), rel=1e-6)
    wrapper.optimizer.zero_grad()
    assert numbers.gradient_norm(wrapper) == 0.0
