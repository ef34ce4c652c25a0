"""A progress bar with the time left, on a terminal alone."""

import sys

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from tqdm import tqdm


@HOOKS.register_module()
class ProgressBarHook(Hook):
    """Show one bar for the training iterations and one for each validation or test.

    Where standard error is no terminal there is no bar, and the log lines stand alone.
    """

    priority = 'VERY_LOW'

    def __init__(self) -> None:
        self.bars: dict[str, tqdm] = {}

    def open(self, mode: str, total: int, initial: int = 0) -> None:
        """Start the bar of a loop; a bar left over from a loop that broke off is closed first."""
        self.close(mode)
        is_shown = is_main_process() and sys.stderr.isatty()
        self.bars[mode] = tqdm(
            total=total, initial=initial, desc=mode, unit='it', dynamic_ncols=True, leave=False, disable=not is_shown
        )

    def close(self, mode: str) -> None:
        """Remove the bar of a loop."""
        if mode in self.bars:
            self.bars.pop(mode).close()

    def before_train(self, runner: Runner) -> None:
        """Open the training bar at the iteration from which the run starts or resumes."""
        self.open('train', runner.max_iters, runner.iter)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs: dict | None = None) -> None:
        """Advance by an iteration; show the loss where the line is drawn anew."""
        bar = self.bars['train']
        bar.update()
        if not bar.disable and outputs and 'loss' in outputs and self.every_n_inner_iters(batch_idx, 10):
            bar.set_postfix(loss=f'{float(outputs["loss"]):.3f}', refresh=False)

    def after_train(self, runner: Runner) -> None:
        """Remove the training bar."""
        self.close('train')

    def before_val_epoch(self, runner: Runner) -> None:
        """Open the validation bar."""
        self.open('val', len(runner.val_dataloader))

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Advance by a batch."""
        self.bars['val'].update()

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        """Remove the validation bar."""
        self.close('val')

    def before_test_epoch(self, runner: Runner) -> None:
        """Open the test bar."""
        self.open('test', len(runner.test_dataloader))

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Advance by a batch."""
        self.bars['test'].update()

    def after_test_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        """Remove the test bar."""
        self.close('test')
