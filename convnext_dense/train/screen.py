"""What the user's screen shows: log records go in, one line each comes out; blocks of text stay in the log file."""

import contextlib
import datetime
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from numbers import Real
from pathlib import Path

from mmengine.logging import MMLogger
from mmengine.registry import LOG_PROCESSORS
from mmengine.runner import LogProcessor, Runner
from tqdm import tqdm

# Lines of MMEngine that tell the reader of a screen nothing; the log file keeps them.
NOISE = (
    'Exp name:',
    'Hooks will be executed',
    'Distributed training is not used',
    'Evaluating ',
    'bbox_mAP_copypaste',
    'segm_mAP_copypaste',
    'paramwise_options -- ',
)
OURS = str(Path(__file__).parents[1])  # where the code lies whose records are shown however many lines they have


class ConsoleHandler(logging.StreamHandler):
    """Writes single-line records, warnings and tables to a stream, above a progress bar where there is one."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep out INFO records of other packages that are blocks of text or noise."""
        if not super().filter(record):
            return False
        if record.levelno >= logging.WARNING or record.pathname.startswith(OURS):
            return True
        message = record.getMessage()
        return '\n' not in message.strip() and not message.startswith(NOISE)

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record through tqdm, which keeps a bar at the bottom in one piece."""
        try:
            tqdm.write(self.format(record), file=self.stream)
            self.flush()
        except Exception:
            self.handleError(record)


def tame_console(logger: MMLogger) -> None:
    """Replace the stream handlers of an MMEngine logger by a :class:`ConsoleHandler` of the same level and format."""
    for i, handler in enumerate(logger.handlers):
        if type(handler) is logging.StreamHandler:
            console = ConsoleHandler(handler.stream)
            console.setLevel(handler.level)
            console.setFormatter(handler.formatter)
            console.filters = handler.filters
            logger.handlers[i] = console


@contextlib.contextmanager
def prints_to(file: Path) -> Iterator[None]:
    """Send what third parties print (pycocotools) to a file; log records still reach the screen."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open('a') as stream, contextlib.redirect_stdout(stream):
        yield


@LOG_PROCESSORS.register_module()
class OneLineLogProcessor(LogProcessor):
    """MMEngine's log processor with a training line that fits one row of a terminal.

    All values (each loss, lr of the first and of the fastest group) still go to the JSON lines; the screen gets the
    total loss, the base lr with the range over the parameter groups, seconds per iteration and the time left.
    """

    def get_log_after_iter(self, runner: Runner, batch_idx: int, mode: str) -> tuple[dict, str]:
        """Return (values for the JSON lines, text for the screen); arguments as in MMEngine."""
        values, text = super().get_log_after_iter(runner, batch_idx, mode)
        if mode != 'train':
            return values, text
        rates = [group['lr'] for group in runner.optim_wrapper.param_groups]
        values['lr_min'], values['lr_max'] = min(rates), max(rates)
        base = values.get('base_lr', values['lr_max'])
        eta = datetime.timedelta(seconds=int(runner.message_hub.get_info('eta', 0)))
        parts = [
            shorten_head(text),
            f'loss {values["loss"]:.4f}' if 'loss' in values else '',
            f'lr {base:.2e} ({values["lr_min"]:.1e} to {values["lr_max"]:.1e})',
            f'{values["time"]:.2f} s/iter' if 'time' in values else '',
            f'{values["memory"]} MB' if 'memory' in values else '',
            f'eta {eta}',
        ]
        return values, '  '.join(part for part in parts if part)

    def get_log_after_epoch(
        self, runner: Runner, batch_idx: int, mode: str, with_non_scalar: bool = False
    ) -> tuple[dict, str]:
        """Return (metrics for the JSON lines, text for the screen) of a validation or test."""
        values, text = super().get_log_after_epoch(runner, batch_idx, mode, with_non_scalar)
        shown = {
            name.split('/')[-1]: value
            for name, value in values.items()
            if isinstance(value, Real) and 'time' not in name and value >= 0
        }
        return values, '  '.join([shorten_head(text), *(f'{name} {value:.3f}' for name, value in shown.items())])


def shorten_head(text: str) -> str:
    """Return where a log line stands in the run.

    >>> shorten_head('Epoch(train)  [3][ 20/100]  lr: 1e-4')
    'Epoch(train) [3][ 20/100]'
    """
    loop, places = re.match(r'(\S+\)) *((?:\[[^\]]*\])+)', text).groups()
    return f'{loop} {places}'


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the messages and warnings of models off the screen, but for errors."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            logger.setLevel(logging.ERROR)
            yield
    finally:
        logger.setLevel(level)


def process_rank() -> int:
    """Return the number of this process in its run, before torch.distributed is up; the process 0 speaks."""
    return int(os.environ.get('RANK', os.environ.get('SLURM_PROCID', 0)))


def tell(*notes: str) -> None:
    """Print notes for the user on standard error, from one process."""
    if process_rank() == 0:
        for note in notes:
            print(f'note: {note}', file=sys.stderr)
