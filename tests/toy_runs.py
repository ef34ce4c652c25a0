"""A training of a few numbers in milliseconds, with everything random that a real one has."""

import contextlib
import itertools
import os
import random
import sys
import time
from pathlib import Path

import numpy as np
import torch
from mmengine.dataset import BaseDataset
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, HOOKS, METRICS, MODELS
from mmengine.structures import BaseDataElement
from torch import nn

from convnext_dense import cli
from convnext_dense.compat.errors import RunStopped
from convnext_dense.train import launch
from convnext_dense.train import run as runs

CONFIG = """
default_scope = 'mmengine'
runner_type = 'OneLineRunner'
model = dict(type='ToyModel')
loader = dict(batch_size=3, num_workers=0, dataset=dict(type='ToyDataset', serialize_data=False))  # for speed
train_dataloader = dict(**loader, sampler=dict(type='DefaultSampler', shuffle=True))
val_dataloader = dict(**loader, sampler=dict(type='DefaultSampler', shuffle=False))
val_evaluator, val_cfg = dict(type='ToyMetric'), dict()
train_cfg = dict(by_epoch=BY_EPOCH)
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=0.01))
param_scheduler = [dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=9)]
default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=1))
custom_hooks = [dict(type='RunSummaryHook', num_pictures=0)]
"""


@DATASETS.register_module()
class ToyDataset(BaseDataset):
    """Eleven samples, with noise of all three generators."""

    def load_data_list(self):
        return [dict(value=float(i)) for i in range(11)]

    def prepare_data(self, idx):
        noise = random.random(), np.random.rand(), torch.rand(2)
        return dict(inputs=self.get_data_info(idx)['value'] + sum(noise))


@MODELS.register_module()
class ToyModel(BaseModel):
    """Two layers with dropout and batch statistics."""

    def __init__(self, width=8, data_preprocessor=None):
        super().__init__(data_preprocessor)
        self.factor = 1.0  # of the losses
        self.layers = nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width), nn.Dropout(0.5), nn.Linear(width, 1))

    def forward(self, inputs, mode='tensor'):
        output = self.layers(torch.stack(list(inputs)) * self.factor)  # NaN reaches running statistics too
        return (
            dict(loss=output.square().mean() + random.random() * output.mean())
            if mode == 'loss'
            else [BaseDataElement()]
        )


@METRICS.register_module()
class ToyMetric:
    """A metric that improves or not, by chance; it disturbs the generators, as the numbers of a real one may."""

    def __init__(self, **options):
        self.options, self.dataset_meta = options, None

    def process(self, data_batch, data_samples):
        torch.rand(3), np.random.rand(3), random.random()

    def evaluate(self, size):
        return dict(score=next(SCORES))


SCORES = iter(itertools.count())


@HOOKS.register_module()
class SignalHook(Hook):
    """Sends a signal to its own process in a step, or in a validation, on one process of the run; once in a life.

    Args:
        number: Of the signal.
        step: In which it is sent.
        place: Method of a hook.
        rank: Process that gets it.
        repeated: Send it again so many seconds later.
    """

    done = False

    def __init__(self, number, step, place='after_train_iter', rank=0, repeated=None):
        self.number, self.step, self.rank, self.repeated = number, step, rank, repeated
        setattr(self, place, self.send)

    def send(self, runner, *args, **kwargs):
        if runner.iter != self.step or launch.process_rank() != self.rank or SignalHook.done:
            return
        SignalHook.done = True
        os.kill(os.getpid(), self.number)
        if self.repeated is not None:
            time.sleep(self.repeated)
            os.kill(os.getpid(), self.number)


@HOOKS.register_module()
class SpoilHook(Hook):
    """Makes losses NaN or infinite in some steps, on one process of the run."""

    priority = 'LOWEST'

    def __init__(self, steps, value=float('nan'), rank=0):
        self.steps, self.value, self.rank = steps, value, rank

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        model = getattr(runner.model, 'module', runner.model)
        is_spoilt = runner.iter in self.steps and launch.process_rank() == self.rank
        model.factor = self.value if is_spoilt else 1.0


@HOOKS.register_module()
class HangHook(Hook):
    """Lets the second process wait before a step."""

    priority = 0  # before any other

    def __init__(self, step):
        self.step = step

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.step and launch.process_rank() == 1:
            time.sleep(15)


class Killed(BaseException):
    """What stands for a kill."""


@HOOKS.register_module()
class KillHook(Hook):
    """Ends a run before a step."""

    priority = 'VERY_HIGH'

    def __init__(self, step):
        self.step = step

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.step:
            raise Killed


def train(
    folder: Path,
    name: str = 'run',
    kill: int | None = None,
    resume: str | None = 'auto',
    by_iter: bool = False,
    **options,
):
    """Train 16 steps in ``folder/name`` and return the runner; with ``kill``, end before that step and return None."""
    config = folder / 'toy.py'
    by = 'False, max_iters=16, val_interval=3' if by_iter else 'True, max_epochs=4'
    draft = folder / f'{os.getpid()}.py'
    draft.write_text(CONFIG.replace('BY_EPOCH', by))
    draft.replace(config)  # in one step: the other process reads it
    options = {'visualizer.type': 'Visualizer', 'randomness.seed': 5, **options}
    if kill is not None:
        options['custom_hooks'] = [*options.get('custom_hooks', []), dict(type='KillHook', step=kill)]
    if 'custom_hooks' in options:
        options['custom_hooks'] = [*options['custom_hooks'], dict(type='RunSummaryHook', num_pictures=0)]
    try:
        return runs.train(config, str(folder / name), cfg_options=options, resume=resume, check=False)
    except Killed:
        return None


def train_with_signals(folder: Path) -> None:
    """Train with a signal to the second process and go on, without it, and with a second process that hangs.

    The second process has a loss that is not finite.
    """
    spoilt = dict(type='SpoilHook', steps=[2], rank=1)
    told = dict(type='SignalHook', number=10, step=6, rank=1)
    with contextlib.suppress(RunStopped):
        train(folder, 'stopped', custom_hooks=[spoilt, told], **ENDLESS)
    torch.distributed.barrier()
    train(folder, 'stopped', custom_hooks=[spoilt], **ENDLESS)
    torch.distributed.barrier()
    train(folder, 'spoilt', custom_hooks=[spoilt], **ENDLESS)
    torch.distributed.barrier()
    train(folder, 'hung', custom_hooks=[dict(type='HangHook', step=5)], **{**ENDLESS, 'env_cfg.dist_cfg.timeout': 4})


def train_and_die(folder: Path) -> None:
    """Train without a break, and with a kill of the second process inside of a sum of gradients, in the first life."""
    is_first = os.environ['TORCHELASTIC_RESTART_COUNT'] == '0'
    if is_first:
        train(folder, 'whole', **ENDLESS)
        torch.distributed.barrier()  # the first process may still write
    hooks = [dict(type='SignalHook', number=9, step=7, rank=1)] if is_first else []
    train(folder, 'killed', resume=None, custom_hooks=hooks, **ENDLESS)


ENDLESS = {
    'by_iter': True,
    'default_hooks.checkpoint': dict(by_epoch=False, interval=3),
    'train_dataloader.sampler': dict(type='InfiniteSampler', shuffle=True),
    'optim_wrapper.accumulative_counts': 5,
}

if __name__ == '__main__':  # under torchrun: the folder, and the name of a function
    launch.join_group(60)
    launch.leave_group = torch.distributed.barrier  # torchrun's store serves one group: all trainings share it
    with cli.user_errors():
        globals()[sys.argv[2]](Path(sys.argv[1]))
    torch.distributed.destroy_process_group()
