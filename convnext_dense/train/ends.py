"""How a training ends before its time: what a signal asks for, and what the process tells whoever has started it."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from mmengine.dist import get_world_size, is_main_process
from mmengine.hooks import EMAHook, Hook
from mmengine.runner import Runner

from convnext_dense.compat.errors import RunStopped, UserError
from convnext_dense.compat.files import write_text
from convnext_dense.train.launch import process_rank
from convnext_dense.train.resume import how_to_continue
from convnext_dense.train.saves import STOP_FILE

STOPPED, INTERRUPTED = 75, 130  # exit codes: "try again later" of sysexits.h, and that of shells for Ctrl-C
CODES = {'SIGTERM': STOPPED, 'SIGUSR1': STOPPED, 'SIGINT': INTERRUPTED}  # in the order in which they count
SIGNALS = {getattr(signal, name): code for name, code in CODES.items() if hasattr(signal, name)}  # of this system
REPEATED = 1.0  # seconds within which two Ctrl-C are one: a launcher hands on what the terminal has sent as well
LINGER = 30  # seconds for which a worker of a data loader goes on after a signal to all processes of a job


@contextlib.contextmanager
def caught_signals(runner: Runner) -> Iterator[None]:
    """Note a signal as ``runner.signal``, for :class:`StopHook`; a second Ctrl-C ends the training at once."""
    runner.signal = None
    is_main = threading.current_thread() is threading.main_thread()  # which alone may handle signals
    handler = SignalHandler(runner)
    before = {number: signal.signal(number, handler) for number in SIGNALS} if is_main else {}
    try:
        yield
    except KeyboardInterrupt as error:
        text = f'The training was interrupted in step {runner.iter + 1}. {how_to_continue(runner.cfg)}'
        raise RunStopped(INTERRUPTED, text) from error
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


class SignalHandler:
    """Notes the first signal of a run as ``runner.signal``; the workers of its data loaders inherit it."""

    def __init__(self, runner: Runner) -> None:
        self.runner, self.owner, self.first = runner, os.getpid(), 0.0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Note the first signal; let a later Ctrl-C end the run at once."""
        if os.getpid() != self.owner:
            if number == signal.SIGTERM:  # a worker of a data loader serves the step that is to be finished
                signal.alarm(LINGER)
        elif self.runner.signal is None:
            self.runner.signal, self.first = number, time.monotonic()
            if process_rank() == 0:
                again = '; a second one ends at once' if number == signal.SIGINT else ''
                os.write(2, f'{signal.Signals(number).name}: the step is finished and saved{again}\n'.encode())
        elif number == signal.SIGINT and time.monotonic() - self.first > REPEATED:
            raise KeyboardInterrupt


class StopHook(Hook):
    """End a training between two steps, on all processes, when one has got a signal; what was done is saved.

    A validation is broken off. On several processes nothing is saved then, because each is at another image.
    """

    priority = 'HIGHEST'

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Stop before a step."""
        self.stop_together(runner)

    def before_val(self, runner: Runner) -> None:
        """Stop before a validation of a training."""
        if runner.roll_call is not None:
            self.stop_together(runner)

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Break off a validation of a training."""
        if runner.signal is None:
            return
        if get_world_size() == 1:
            for hook in runner.hooks:
                if isinstance(hook, EMAHook):  # which has put the averages in the place of the weights
                    hook.after_val_epoch(runner)
            save_here(runner)
        end(runner, runner.signal)

    def stop_together(self, runner: Runner) -> None:
        """Save and stop where any process has got a signal."""
        counts = runner.roll_call.total(*(int(runner.signal == number) for number in SIGNALS))
        for number, count in zip(SIGNALS, counts, strict=True):
            if count:
                save_here(runner)
                runner.roll_call.total()  # the first process that ends lets its launcher kill the others
                end(runner, number)


def save_here(runner: Runner) -> None:
    """Save where the training is, unless that is saved; a later save of the checkpoint hook removes the file again."""
    if runner.saved_step == runner.iter:
        return
    name = f'iter_{runner.iter}.pth'
    runner.message_hub.update_info(STOP_FILE, name)
    try:
        place = dict(epoch=runner.epoch, iter=runner.iter)
        runner.save_checkpoint(runner.work_dir, name, meta=place, by_epoch=False)
        if is_main_process():
            write_text(str(Path(runner.work_dir, name)), Path(runner.work_dir, 'last_checkpoint'))
    except (OSError, UserError) as error:
        runner.logger.warning(f'{name} was not saved: {error}')


def end(runner: Runner, number: int) -> NoReturn:
    """Leave a training with the exit code of a signal."""
    text = f'{signal.Signals(number).name}: the training stopped after {runner.iter} steps.'
    raise RunStopped(SIGNALS[number], f'{text} {how_to_continue(runner.cfg)}')
