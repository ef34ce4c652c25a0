"""A training of a few numbers in milliseconds, with everything random that a real one has."""

import itertools
import random
import sys
from pathlib import Path

import numpy as np
import torch
from mmengine.dataset import BaseDataset
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, HOOKS, METRICS, MODELS
from mmengine.structures import BaseDataElement
from torch import nn

from convnext_dense.compat.files import write_text
from convnext_dense.train import launch
from convnext_dense.train import run as runs

NUMBERS = itertools.count()
CONFIG = """
default_scope = 'mmengine'
runner_type = 'OneLineRunner'
model = dict(type='ToyModel')
loader = dict(batch_size=3, num_workers=0, dataset=dict(type='ToyDataset'))
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
        self.layers = nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width), nn.Dropout(0.5), nn.Linear(width, 1))

    def forward(self, inputs, mode='tensor'):
        output = self.layers(torch.stack(list(inputs)))
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
    write_text(CONFIG.replace('BY_EPOCH', by), config)  # in one step: the other process reads it
    number = next(NUMBERS)
    options = {'experiment_name': f'toy_{number}', 'visualizer.name': f'toy_{number}', 'randomness.seed': 5, **options}
    options['visualizer.type'] = 'Visualizer'
    if kill is not None:
        options['custom_hooks'] = [
            *options.get('custom_hooks', []),
            dict(type='RunSummaryHook', num_pictures=0),
            dict(type='KillHook', step=kill),
        ]
    try:
        return runs.train(config, str(folder / name), cfg_options=options, resume=resume, check=False)
    except Killed:
        return None


if __name__ == '__main__':  # under torchrun: a training without a break, and one with two
    torch.distributed.init_process_group('gloo')
    launch.leave_group = torch.distributed.barrier  # torchrun's store serves one group: all trainings share it
    options = {
        'by_iter': True,
        'default_hooks.checkpoint': dict(by_epoch=False, interval=3),
        'train_dataloader.sampler': dict(type='InfiniteSampler', shuffle=True),
        'optim_wrapper.accumulative_counts': 5,
    }
    for name, steps in (('whole', [None]), ('killed', [7, 11, None])):
        for step in steps:
            train(Path(sys.argv[1]), name, kill=step, **options)
            torch.distributed.barrier()  # the first process may still write
    torch.distributed.destroy_process_group()
