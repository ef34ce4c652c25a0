"""The checkpoints that a run keeps: a new one is on the disk, read back, before an older one goes.

Whatever a checkpoint or a full disk says, only files of the run's own folder are deleted, by the names that the hook
gives them.
"""

import contextlib
import copy
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from convnext_dense.compat.errors import UserError
from convnext_dense.compat.files import remove_drafts
from convnext_dense.train.numbers import wrappers_of
from convnext_dense.train.resume import tensors_of
from convnext_dense.weights.load import unwrap_model

STOP_FILE = 'stop_checkpoint'  # in the log of a run: the name of the one that was saved for a signal
MEMORY = ('keep_ckpt_ids', 'last_ckpt', 'best_ckpt_path', 'best_ckpt_path_dict')  # of the hook, on what it has saved


def own_names(template: str) -> re.Pattern:
    """Return a pattern of the names of checkpoints, from a template such as ``epoch_{}.pth``.

    >>> [bool(own_names('iter_{}.pth').fullmatch(name)) for name in ('iter_8.pth', 'best_mIoU_iter_8.pth', 'a.pth')]
    [True, True, False]
    """
    before, _, after = template.partition('{}')
    return re.compile(rf'(best_[^/\\]+_)?{re.escape(before)}\d+{re.escape(after)}')


class OwnFiles(LocalBackend):
    """The local disk, as a hook sees it that deletes checkpoints: nothing goes at once, and nothing of others.

    A file is known by its name: one that a run has noted with the path of another folder is looked for in this one.
    """

    def __init__(self, folder: Path, names: re.Pattern) -> None:
        super().__init__()
        self.folder, self.names = folder, names
        self.doomed: list[Path] = []

    def isfile(self, filepath: str | Path) -> bool:
        """Tell whether the folder has a checkpoint of this name."""
        name = Path(filepath).name
        return bool(self.names.fullmatch(name)) and (self.folder / name).is_file()

    def isdir(self, filepath: str | Path) -> bool:
        """Return False: a folder is never deleted."""
        return False

    def remove(self, filepath: str | Path) -> None:
        """Note a file that is to go."""
        self.doomed.append(self.folder / Path(filepath).name)

    def remove_stopped(self, work_dir: Path, name: str) -> None:
        """Note the checkpoint of a training that a signal has ended, which a newer one replaces."""
        if own_names('iter_{}.pth').fullmatch(str(name)) and (work_dir / name).is_file():
            self.doomed.append(work_dir / name)

    def remove_doomed(self, kept: set[str]) -> None:
        """Delete what was to go, but for some names."""
        for file in self.doomed:
            if file.name not in kept:
                file.unlink(missing_ok=True)
        self.doomed.clear()


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """MMEngine's hook, which deletes an old checkpoint when the new one is sound on the disk.

    A save that fails, as on a full disk, is told in one message and leaves everything as it was; the run goes on.
    """

    failure: str | None = None  # what the latest save has said, if it failed

    def before_train(self, runner: Runner) -> None:
        """Remove the drafts that a killed run has left here, and tell whether the disk has room."""
        excess = self.forget_excess(runner)
        super().before_train(runner)
        if not isinstance(self.file_backend, LocalBackend):
            return
        folder = Path(self.out_dir)
        self.file_backend = OwnFiles(folder, own_names(self.filename_tmpl))
        if is_main_process() and folder.is_dir():
            for step in excess:
                self.file_backend.remove(self.filename_tmpl.format(step))
            self.file_backend.remove_doomed(set())
            if number := remove_drafts(folder, self.file_backend.names):
                runner.logger.info(f'{number} unfinished checkpoints of a killed run were removed from {folder}')
            self.check_space(runner, folder)

    def forget_excess(self, runner: Runner) -> list[int]:
        """Shorten the run's list of checkpoints, which MMEngine would do with the files too; return what falls off."""
        hub = runner.message_hub
        if self.max_keep_ckpts <= 0 or 'keep_ckpt_ids' not in hub.runtime_info:
            return []
        steps = [step for step in hub.get_info('keep_ckpt_ids') if isinstance(step, int)]
        hub.update_info('keep_ckpt_ids', steps[-self.max_keep_ckpts :])
        return steps[: -self.max_keep_ckpts]

    def check_space(self, runner: Runner, folder: Path) -> None:
        """Warn where the disk has no room for the checkpoints that the run will keep."""
        size, free = checkpoint_bytes(runner), shutil.disk_usage(folder).free
        number = self.max_keep_ckpts if self.max_keep_ckpts > 0 else self.num_saves(runner)
        present = sum(bool(self.file_backend.names.fullmatch(file.name)) for file in folder.iterdir())
        needed = size * max(number + 1 + len(self.save_best or ()) - present, 1)  # an old one goes after the new one
        if needed > free:
            runner.logger.warning(
                f'The disk of {folder} may become full: this run needs about {megabytes(needed)} more for checkpoints '
                f'({megabytes(size)} each), and {megabytes(free)} are free. Make room, or keep fewer with '
                '--cfg-options default_hooks.checkpoint.max_keep_ckpts=1.'
            )

    def num_saves(self, runner: Runner) -> int:
        """Return how often the rest of the run will save."""
        left = runner.max_epochs - runner.epoch if self.by_epoch else runner.max_iters - runner.iter
        return (left // self.interval if self.interval > 0 else 0) + self.save_last

    def after_train(self, runner: Runner) -> None:
        """Publish what the config asks for.

        Raises:
            UserError: The last checkpoint could not be saved.
        """
        super().after_train(runner)
        if self.failure:
            raise UserError(f'The training has ended, but its last save failed. {self.failure}')

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        self.failure = None
        stopped = runner.message_hub.runtime_info.pop(STOP_FILE, None)
        with self.whole_save(runner, self.filename_tmpl.format(step)):
            super()._save_checkpoint_with_step(runner, step, meta)
            if isinstance(self.file_backend, OwnFiles) and is_main_process() and stopped:
                self.file_backend.remove_stopped(Path(runner.work_dir), stopped)

    def _save_best_checkpoint(self, runner: Runner, metrics: Mapping[str, Any]) -> None:
        with self.whole_save(runner, 'The best checkpoint'):
            super()._save_best_checkpoint(runner, metrics)

    @contextlib.contextmanager
    def whole_save(self, runner: Runner, name: str) -> Iterator[None]:
        """Let old files go after a save; where it fails, the hook and the run forget it, and the user is told."""
        before = {key: copy.copy(getattr(self, key, None)) for key in MEMORY}
        hub = dict(runner.message_hub.runtime_info)
        doomed = getattr(self.file_backend, 'doomed', [])
        try:
            yield
        except OSError as error:
            vars(self).update(before)
            runner.message_hub.runtime_info.clear()
            runner.message_hub.runtime_info.update(hub)
            doomed.clear()
            self.failure = self.explain(runner, name, error)
            runner.logger.warning(f'{self.failure} The run goes on to its next save.')
        else:
            if isinstance(self.file_backend, OwnFiles) and is_main_process():
                self.file_backend.remove_doomed(self.current_names())

    def current_names(self) -> set[str]:
        """Return the names of the latest and of the best checkpoints."""
        best = [getattr(self, 'best_ckpt_path', None), *(getattr(self, 'best_ckpt_path_dict', None) or {}).values()]
        return {Path(file).name for file in (self.last_ckpt, *best) if file}

    def explain(self, runner: Runner, name: str, error: OSError) -> str:
        """Say what was not saved, why, and what room it needs."""
        free = shutil.disk_usage(runner.work_dir).free
        return (
            f'{name} was not saved in {self.out_dir} ({error.strerror or error}): it needs about '
            f'{megabytes(checkpoint_bytes(runner))}, and {megabytes(free)} are free. The checkpoints before it are '
            'complete. Make room on the disk.'
        )


def checkpoint_bytes(runner: Runner) -> int:
    """Return about how large a checkpoint is: the model, its averages, and what the optimizer knows or will know."""
    model = unwrap_model(runner.model)
    averages = [hook.ema_model.state_dict() for hook in runner.hooks if hasattr(hook, 'ema_model')]
    state = tensor_bytes([[*wrapper.optimizer.state.values()] for wrapper in wrappers_of(runner.optim_wrapper)])
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]  # AdamW knows two numbers each
    return tensor_bytes(model.state_dict()) + tensor_bytes(averages) + (state or 2 * tensor_bytes(trained))


def tensor_bytes(tree: Any) -> int:
    """Return the bytes of all tensors in nested containers."""
    return sum(tensor.numel() * tensor.element_size() for _, tensor in tensors_of(tree, ''))


def megabytes(size: float) -> str:
    """Return a size as text.

    >>> megabytes(3_210_000)
    '3.2 MB'
    """
    return f'{size / 1e6:,.1f} MB'
