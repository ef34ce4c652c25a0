"""What each step of a training sees and draws: its batch and its random numbers.

Both follow from the seed, the process and the number of the step. A training that continues at a step sees and draws
what one without a break does, with any number of workers, and whatever was validated or loaded ahead in between.
"""

import itertools
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import DATA_SAMPLERS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch.utils.data import BatchSampler, Dataset, Sampler

from convnext_dense.train.damage import load_sample

DATA, MODEL = range(2)  # who draws; each has numbers of its own
RECENT = 1000  # batches of which the places are known; workers load fewer ahead


def seed_all(*numbers: int) -> None:
    """Seed torch, NumPy and random from several whole numbers of 0 or more."""
    first, second = np.random.SeedSequence(numbers).generate_state(2, np.uint64).tolist()
    torch.manual_seed(first)  # on all devices
    np.random.seed(second % 2**32)
    random.seed(second)


class StepSeedHook(Hook):
    """Seed what the model draws in a step; it is the last to act before the step."""

    priority = 'LOWEST'

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Seed the step."""
        seed_all(runner.seed, get_rank(), runner.iter, MODEL)


class MissedValidationHook(Hook):
    """Validate before the first step of a training that continues where a validation is due.

    The training before it was ended in that validation, or after it; what it found is not in the checkpoint.
    """

    priority = 'LOWEST'

    def before_train(self, runner: Runner) -> None:
        """Validate."""
        loop = runner.train_loop
        if runner.val_loop is None or not loop.iter or getattr(loop, 'num_seen', 0):
            return
        loop._decide_current_val_interval()
        by_epoch = isinstance(loop, EpochBasedTrainLoop)
        count, end = (loop.epoch, loop.max_epochs) if by_epoch else (loop.iter, loop.max_iters)
        if loop.val_begin <= count <= end and (count % loop.val_interval == 0 or count == end):
            runner.val_loop.run()


class StepBatch(list):
    """The places of a batch's samples in the dataset.

    Attributes:
        seed: What :func:`seed_all` gets before the samples are loaded.
    """

    seed: tuple[int, ...]


class StepBatches:
    """A batch sampler that knows the number of the step for which a batch is, and begins at any.

    Args:
        sampler: Gives places in the dataset.
        batch_size: Samples of a batch.
        batches: Config of the batch sampler that makes the batches; by default they are cut as the places come.
        drop_last: Leave out a last batch that is not full.
        seed: Of the training.
        step: Number of the step that gets the first batch.
        endless: Begin the sampler again where it ends, and skip the batches of the steps before ``step``.
    """

    def __init__(
        self,
        sampler: Sampler,
        batch_size: int,
        batches: Mapping | None = None,
        drop_last: bool = False,
        seed: int = 0,
        step: int = 0,
        endless: bool = False,
    ) -> None:
        self.sampler, self.batch_size, self.seed, self.step, self.endless = sampler, batch_size, seed, step, endless
        self.skipped = step if endless else 0  # batches
        self.recent: dict[int, list[int]] = {}  # step -> the places of its samples
        options = dict(sampler=sampler, batch_size=batch_size)
        if batches is None:
            self.batches = BatchSampler(**options, drop_last=drop_last)
        else:
            self.batches = DATA_SAMPLERS.build(batches, default_args=options)

    def __len__(self) -> int:
        """Return the number of batches of the whole sampler."""
        return len(self.batches)

    def __iter__(self) -> Iterator[StepBatch]:
        """Yield the batches from the current step on; those before are skipped, not loaded."""
        batches = self.passes() if self.endless else iter(self.batches)
        for step, places in enumerate(itertools.islice(batches, self.skipped, None), self.step):
            batch = StepBatch(places)
            batch.seed = (self.seed, get_rank(), step, DATA)
            self.recent[step] = places
            self.recent.pop(step - RECENT, None)
            yield batch

    def passes(self) -> Iterator[list[int]]:
        """Yield the batches of one pass over the sampler after the other."""
        for epoch in itertools.count():
            if hasattr(self.sampler, 'set_epoch'):
                self.sampler.set_epoch(epoch)
            places = None
            for places in self.batches:
                yield places
            if places is None:  # an empty dataset
                return


def load_batch(dataset: Dataset, batch: list[int]) -> list:
    """Seed, and return the samples of a batch; sound ones stand in the place of damaged ones."""
    if isinstance(batch, StepBatch):
        seed_all(*batch.seed)
    return [load_sample(dataset, place) for place in batch]


def by_steps(dataloader: Any, runner: Runner, step: int = 0, endless: bool = False) -> Any:
    """Return the config of a data loader whose batches are :class:`StepBatches`; a data loader stays as it is."""
    if not isinstance(dataloader, Mapping):
        return dataloader
    options, batches = dict(dataloader), dataloader.get('batch_sampler')
    sampler = dict(type=StepBatches, batches=batches, seed=runner.seed, step=step, endless=endless)
    if batches is None:
        sampler['drop_last'] = options.pop('drop_last', False)
    return {**options, 'batch_sampler': sampler}


class EpochLoop(EpochBasedTrainLoop):
    """MMEngine's loop over epochs, of which the first one can begin at any batch.

    Attributes:
        num_seen: Batches of the next epoch that an earlier run has seen.
    """

    num_seen = 0

    def __init__(self, runner: Runner, dataloader: Any, **options: Any) -> None:
        super().__init__(runner, by_steps(dataloader, runner), **options)

    def run_epoch(self) -> None:
        """Train on the batches of an epoch that were not seen."""
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        batches, seen, self.num_seen = self.dataloader.batch_sampler, self.num_seen, 0
        if isinstance(batches, StepBatches):
            batches.step, batches.skipped = self._iter, seen
        for number, batch in enumerate(self.dataloader, seen):
            self.run_iter(number, batch)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1


class Chain(itertools.chain):
    """One iterator after the other."""

    def skip_iter(self, number: int) -> None:
        """Drop so many items; MMEngine of onedl calls it where the original calls ``next``."""
        for _ in range(number):
            next(self)


class IterLoop(IterBasedTrainLoop):
    """MMEngine's loop over iterations; where it continues, the data that were seen are not loaded again."""

    def __init__(self, runner: Runner, dataloader: Any, max_iters: int, **options: Any) -> None:
        step = runner.first_step if runner.first_step < max_iters else 0  # workers load ahead from it
        super().__init__(runner, by_steps(dataloader, runner, step, endless=True), max_iters, **options)

    def run(self) -> torch.nn.Module:
        """Train; MMEngine takes the batches that were seen from the iterator, and these come from nowhere."""
        self._iter = min(self._iter, self._max_iters)
        batches = self.dataloader.batch_sampler
        num_skipped = batches.skipped if isinstance(batches, StepBatches) else 0
        if self._iter == self._max_iters:  # no data are needed
            num_skipped = self._iter
        if getattr(self, 'fast_forward_on_resume', False):  # of onedl-mmengine, which then takes none
            num_skipped = 0
        self.dataloader_iterator = Chain(itertools.repeat(None, num_skipped), self.dataloader_iterator)
        return super().run()


LOOPS_BY_STEPS = {'EpochBasedTrainLoop': EpochLoop, 'IterBasedTrainLoop': IterLoop}
