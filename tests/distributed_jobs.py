"""Runs of ``convnext_dense.train.run``, one after the other, in each process of a group.

The first argument is a list of ``[function, arguments]`` as JSON. Each process writes ``record_<rank>.jsonl`` to
the work dir of each run: images, losses and rates of every iteration, the digest of the weights before and after, and
the metrics.
"""

import hashlib
import json
import sys
import time
from pathlib import Path

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from convnext_dense.train import launch
from convnext_dense.train import run as runs


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
        )

    def after_train(self, runner) -> None:
        self.write(runner, weights=digest(runner.model))

    def after_test_epoch(self, runner, metrics=None) -> None:
        self.write(runner, metrics={name: float(value) for name, value in metrics.items()})


def digest(model: torch.nn.Module) -> str:
    values = getattr(model, 'module', model).state_dict().values()
    whole = (value.full_tensor() if hasattr(value, 'full_tensor') else value for value in values)  # with --fsdp
    return hashlib.sha256(b''.join(value.numpy().tobytes() for value in whole)).hexdigest()


def wait_for(file: Path, seconds: float = 120) -> None:
    """Wait for a checkpoint that another run writes."""
    deadline = time.monotonic() + seconds
    while not file.exists():
        assert time.monotonic() < deadline, f'{file} does not come'
        time.sleep(0.1)


def run_jobs(jobs: list[tuple[str, dict]]) -> None:
    """Make the runs."""
    for function, arguments in jobs:
        if function == 'test':
            wait_for(Path(arguments['checkpoint']))
        getattr(runs, function)(**arguments)


if __name__ == '__main__':
    torch.distributed.init_process_group('gloo')
    launch.leave_group = torch.distributed.barrier  # torchrun's store serves one group: all jobs share it
    run_jobs(json.loads(sys.argv[1]))
    torch.distributed.destroy_process_group()
