"""Runs of ``convnext_dense.train.run``, one after the other, in each process of a group...

In: a list of ``[function, arguments]``. Out: a file ``record_<rank>.jsonl`` in the work dir of each run, with the
images, losses and rates of every iteration, the digest of the weights before and after, and the metrics.
"""

import hashlib
import json
import os
import sys
import time
from pathlib import Path

from convnext_dense.train import launch  # before mmdet, which needs the ops that it serves
from convnext_dense.train import run as runs

# isort: split
import torch
from mmdet.models.task_modules.samplers import RandomSampler
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, TASK_UTILS


@HOOKS.register_module()
class RecordHook(Hook):
    """Writes what this process sees of a run."""

    priority = 'VERY_LOW'

    def write(self, runner, **row) -> None:
        with (Path(runner.work_dir) / f'record_{launch.process_rank()}.jsonl').open('a') as file:
            file.write(json.dumps(row) + '\n')

    def before_train(self, runner) -> None:
        self.write(runner, weights=digest(runner.model))

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        self.rates = [group['lr'] for group in runner.optim_wrapper.param_groups]  # this step's, not the next one's

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self.write(
            runner,
            step=runner.iter + 1,
            images=[Path(sample.img_path).name for sample in data_batch['data_samples']],
            losses={name: float(value.detach()) for name, value in outputs.items() if 'loss' in name},
            rates=self.rates,
            positives=count_positives(getattr(runner.model, 'module', runner.model)),
        )

    def after_train(self, runner) -> None:
        self.write(runner, weights=digest(runner.model))

    def after_test_epoch(self, runner, metrics=None) -> None:
        self.write(runner, metrics={name: float(value) for name, value in metrics.items()})


@TASK_UTILS.register_module()
class FirstSampler(RandomSampler):
    """Takes the first candidates instead of random ones, so that an image's sample does not depend on its process."""

    num_positives = 0

    def sample(self, *args, **kwargs):
        result = super().sample(*args, **kwargs)
        self.num_positives += result.num_pos
        return result

    def random_choice(self, gallery, num):
        return gallery[:num]


def count_positives(model: torch.nn.Module) -> list[int]:
    """Return how many positive samples each stage of a cascade has seen so far."""
    return [sampler.num_positives for sampler in getattr(getattr(model, 'roi_head', None), 'bbox_sampler', [])]


def digest(model: torch.nn.Module) -> str:
    state_dict = getattr(model, 'module', model).state_dict()
    return hashlib.sha256(b''.join(value.numpy().tobytes() for value in state_dict.values())).hexdigest()


def wait_for(file: Path, seconds: float = 120) -> None:
    """Wait for a checkpoint that another run writes."""
    deadline = time.monotonic() + seconds
    while not file.exists():
        assert time.monotonic() < deadline, f'{file} does not come'
        time.sleep(0.1)


if __name__ == '__main__':
    if 'RANK' in os.environ:
        torch.distributed.init_process_group('gloo')
        launch.leave_group = torch.distributed.barrier  # torchrun's store serves one group: all jobs share it
    for function, arguments in json.loads(Path(sys.argv[1]).read_text()):
        if function == 'test':
            wait_for(Path(arguments['checkpoint']))
        getattr(runs, function)(**arguments)
    if 'RANK' in os.environ:
        torch.distributed.destroy_process_group()
