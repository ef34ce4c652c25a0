"""MMEngine's runner with a quiet screen, whole checkpoints, and trainings that continue where they stopped."""

import errno
import functools
import weakref
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar
from zipfile import BadZipFile

from mmengine.device import get_device
from mmengine.dist import master_only
from mmengine.fileio import LocalBackend, get_file_backend
from mmengine.hooks import Hook
from mmengine.registry import RUNNERS
from mmengine.runner import BaseLoop, Runner, load_checkpoint
from mmengine.visualization import Visualizer
from torch import nn
from torch.utils.data import DataLoader

from convnext_dense.compat.checkpoints import read_checkpoint
from convnext_dense.compat.checksums import check_records, seal_archive
from convnext_dense.compat.errors import UserError
from convnext_dense.compat.files import replaced
from convnext_dense.speed import compile_maps, keep_boxes_precise, speed_up, speed_up_data
from convnext_dense.train.config import run_timeout
from convnext_dense.train.ends import StopHook
from convnext_dense.train.fits import check_fits
from convnext_dense.train.launch import RollCall
from convnext_dense.train.numbers import check_finite, fetched
from convnext_dense.train.resume import INEXACT, STATE_KEY, restore, training_state
from convnext_dense.train.saves import SafeCheckpointHook
from convnext_dense.train.screen import tame_console
from convnext_dense.train.shards import divide, shard, whole_state
from convnext_dense.train.steps import LOOPS_BY_STEPS, MissedValidationHook, StepBatches, StepSeedHook, load_batch

STAMP = '%Y%m%d_%H%M%S'  # how MMEngine writes the start of a run


class EndingLoader(DataLoader):
    """A data loader whose processes can be ended; after an error they would live as long as its traceback."""

    _latest: Callable = type(None)  # its iterator, while that exists

    def _get_iterator(self) -> Any:
        iterator = super()._get_iterator()
        self._latest = weakref.ref(iterator)
        return iterator

    def end_workers(self) -> None:
        """End the processes of the latest iterator, if it has any."""
        if hasattr(iterator := self._latest(), '_shutdown_workers'):
            iterator._shutdown_workers()
        self._iterator = None


def end_workers(*loops: Any) -> None:
    """End the processes that load data for loops; Python waits 5 seconds for each that it finds in its garbage."""
    for loop in loops:
        if isinstance(loader := getattr(loop, 'dataloader', None), EndingLoader):
            loader.end_workers()


@RUNNERS.register_module()
class OneLineRunner(Runner):
    """MMEngine's runner; its loops, its data and its checkpoint hook are exchanged for those of this package."""

    _entries: Mapping = MappingProxyType({})  # that the checkpoint gets which is being saved
    signal: int | None = None  # that has come
    roll_call: RollCall | None = None  # while the run trains
    saved_step: int = -1  # the latest that can be resumed
    _starts: ClassVar[set[str]] = set()  # of the runs in this process

    def setup_env(self, env_cfg: dict) -> None:
        """Set up the process; a run that starts in the second of an earlier one gets the next free second as its start.

        MMEngine finds a run's logger, scalars and default scope by this start, so that runs of one second shared them.
        """
        super().setup_env(env_cfg)
        while self._timestamp in self._starts:
            self._timestamp = (datetime.strptime(self._timestamp, STAMP) + timedelta(seconds=1)).strftime(STAMP)
        self._starts.add(self._timestamp)

    def build_visualizer(self, visualizer: Visualizer | dict | None = None) -> Visualizer:
        """Build the visualizer under the run's name; the config's name is that of every run in one process."""
        if isinstance(visualizer, dict):
            visualizer = {**visualizer, 'name': self.experiment_name}
        return super().build_visualizer(visualizer)

    def build_model(self, model: nn.Module | dict) -> nn.Module:
        """Build the model; with our backbone it gets faster layers, unless the config has ``speed_up = False``.

        With ``compile_maps = True``, or a dict of options for ``torch.compile``, backbone and neck are compiled.
        """
        built = keep_boxes_precise(super().build_model(model))
        if self.cfg.get('speed_up', True):
            speed_up(built)
        options = self.cfg.get('compile_maps')
        if options not in (None, False):
            compile_maps(built, **(options if isinstance(options, dict) else {}))
        return built

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """Wrap a model for several processes; one that is divided among them gets its weights before."""
        if not self.is_divided:
            return super().wrap_model(model_wrapper_cfg, model)
        self.model = model.to(get_device())
        super()._init_model_weights()
        if self._load_from:
            load_checkpoint(self.model, self._load_from, map_location='cpu')
        return shard(self.model)

    def _init_model_weights(self) -> None:
        """Initialise the model; one that is divided has its weights."""
        if not self.is_divided:
            super()._init_model_weights()

    def load_checkpoint(self, filename: str, map_location: Any = 'cpu', *args, **kwargs) -> dict:
        """Load weights; a model that is divided has those, and its optimizer's moments are divided."""
        if not self.is_divided:
            return super().load_checkpoint(filename, map_location, *args, **kwargs)
        checkpoint = read_checkpoint(filename, map_location=map_location)
        self.call_hook('after_load_checkpoint', checkpoint=checkpoint)
        if self._resume:
            divide(checkpoint['optimizer'], self.optim_wrapper.optimizer)
        self._has_loaded = True
        return checkpoint

    def build_logger(self, *args, **kwargs):
        """Build MMEngine's logger; its screen half shows single lines."""
        logger = super().build_logger(*args, **kwargs)
        tame_console(logger)
        return logger

    def register_hook(self, hook: Hook | dict, priority: Any = None) -> None:
        """Register a hook; MMEngine's own for checkpoints becomes ours, with the same options."""
        if isinstance(hook, dict) and hook.get('type') == 'CheckpointHook':
            hook = {**hook, 'type': SafeCheckpointHook}
        super().register_hook(hook, priority)

    def register_hooks(self, *args, **kwargs) -> None:
        """Register all hooks, then those of every training."""
        super().register_hooks(*args, **kwargs)
        for hook in (StopHook(), MissedValidationHook(), StepSeedHook()):
            self.register_hook(hook)

    @property
    def is_divided(self) -> bool:
        """Whether each process has a part of the model."""
        return self.cfg.get('fsdp', False) and self.distributed

    def train(self) -> nn.Module:
        """Train; signals and mistakes in the middle of it are those of all processes."""
        self.roll_call = RollCall(run_timeout(self.cfg))
        try:
            return super().train()
        finally:
            self.roll_call = None
            end_workers(self._train_loop, self._val_loop)

    def test(self) -> dict[str, float]:
        """Test."""
        try:
            return super().test()
        finally:
            end_workers(self._test_loop)  # a hook may test in the middle of a training

    def build_train_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        """Build the training loop; MMEngine's two become ours, with the same options."""
        if isinstance(loop, Mapping):
            options = dict(loop)
            name = options.pop('type', None)
            if name is None and 'by_epoch' in options:
                name = 'EpochBasedTrainLoop' if options.pop('by_epoch') else 'IterBasedTrainLoop'
            if name in LOOPS_BY_STEPS and 'by_epoch' not in options:
                loop = {**options, 'type': LOOPS_BY_STEPS[name]}
        return super().build_train_loop(loop)

    @staticmethod
    def build_dataloader(dataloader: DataLoader | dict, *args, **kwargs) -> DataLoader:
        """Build a data loader; that of a training seeds each batch."""
        loader = Runner.build_dataloader(dataloader, *args, **kwargs)
        if type(loader) is DataLoader:
            loader.__class__ = EndingLoader
        speed_up_data(loader.dataset)
        if isinstance(loader.batch_sampler, StepBatches):
            loader.dataset.__getitems__ = functools.partial(load_batch, loader.dataset)  # PyTorch asks it for a batch
        return loader

    @functools.cached_property
    def first_step(self) -> int:
        """The number of the step at which the training begins."""
        if not (self._resume and self._load_from and Path(self._load_from).is_file()):
            return 0
        return read_checkpoint(self._load_from, map_location='cpu', mmap=True)['meta']['iter']

    def resume(self, filename: str, *args, **kwargs) -> None:
        """Continue from a checkpoint, as MMEngine does, and exactly where it can be; tell where not.

        Raises:
            UserError: The checkpoint is of a training of another shape.
        """
        is_here = Path(filename).is_file()
        checkpoint = read_checkpoint(filename, map_location='cpu', mmap=True) if is_here else {}
        if is_here:
            check_fits(checkpoint, self, filename)
        super().resume(filename, *args, **kwargs)
        if problem := restore(self, checkpoint.get(STATE_KEY)):
            self.logger.warning(f'{INEXACT}: {problem}')

    def save_checkpoint(self, *args, **kwargs) -> None:
        """Save a checkpoint, with what an exact continuation needs; all processes call it together."""
        is_whole = kwargs.get('save_optimizer', True)
        state = {STATE_KEY: training_state(self)} if is_whole else {}
        self._entries = state | whole_state(self, is_whole)
        self._save_checkpoint(*args, **kwargs)
        self._entries = {}  # a whole model is large
        if is_whole:
            place = kwargs.get('meta') or {}
            self.saved_step = place.get('iter', self.iter + (not kwargs.get('by_epoch', True)))

    def call_hook(self, fn_name: str, **kwargs) -> None:
        """Call the hooks; losses leave the GPU in one piece first, and a checkpoint is looked at and completed."""
        if fn_name == 'after_train_iter':
            kwargs['outputs'] = fetched(kwargs.get('outputs'))
        super().call_hook(fn_name, **kwargs)
        if fn_name == 'before_save_checkpoint':
            kwargs['checkpoint'].update(self._entries)
            check_finite(kwargs['checkpoint'], self.cfg)

    @master_only
    def _save_checkpoint(self, out_dir: str, filename: str, *args, backend_args: dict | None = None, **kwargs) -> None:
        """Write a draft, read it back, flush it, and rename it: a full disk or a kill leaves the old file or the new.

        Other places than the local disk get MMEngine's way of saving.
        """
        kwargs['backend_args'] = backend_args
        if not isinstance(get_file_backend(out_dir, backend_args=backend_args), LocalBackend):
            super().save_checkpoint(out_dir, filename, *args, **kwargs)
            return
        with replaced(Path(out_dir, filename)) as draft:
            super().save_checkpoint(str(draft.parent), draft.name, *args, **kwargs)
            try:
                seal_archive(draft)
                check_records(draft)
            except (UserError, BadZipFile) as error:
                raise OSError(errno.EIO, 'the disk gives back other data than were written') from error
