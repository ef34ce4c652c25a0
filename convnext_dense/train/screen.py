"""What the user's screen shows of a run: single lines and a progress bar; blocks of text stay in the log file."""

import contextlib
import datetime
import logging
import re
import sys
import warnings
from collections.abc import Iterator
from numbers import Real
from pathlib import Path

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.registry import HOOKS, LOG_PROCESSORS
from mmengine.runner import LogProcessor, Runner
from tqdm import tqdm
from tqdm.contrib import DummyTqdmFile

from convnext_dense.train.launch import process_rank

# What tells the reader of a screen little, by how it begins; the log file keeps it.
NOISE = (
    'Exp name:',
    'Hooks will be executed',
    'Distributed training is not used',
    'Evaluating ',
    'bbox_mAP_copypaste',
    'segm_mAP_copypaste',
    'paramwise_options -- ',
    'per class results:',  # whose table has several lines
    'slot  tensors',  # the table of learning rates
)
# What MMEngine says of a training that continues, and this package does otherwise: gradients are kept, data skipped.
UNTRUE = ('Resumed iteration number is not divisible by', 'Advance dataloader')
# Modules that print what they do and a table of which MMDetection logs the values.
PRINTERS = (
    'pycocotools.coco',
    'pycocotools.cocoeval',
    'mmdet.datasets.api_wrappers.coco_api',
    'mmdet.datasets.api_wrappers.cocoeval_mp',
)
TRAINING_LINE = {
    'loss': 'loss {loss:.4f}',
    'base_lr': 'lr {base_lr:.2e}',
    'rates': '({lr_min:.1e} to {lr_max:.1e})',
    'time': '{time:.2f} s/iter',
    'memory': '{memory} MB',
    'eta': 'eta {eta}',
}
OURS = str(Path(__file__).parents[1])  # where the code lies whose records are shown however many lines they have


def is_for_the_screen(record: logging.LogRecord) -> bool:
    """Tell whether a record is a true warning, one of ours, or a single line that is no noise."""
    message = record.getMessage()
    if record.levelno >= logging.WARNING:
        return not message.startswith(UNTRUE)
    is_short = record.pathname.startswith(OURS) or '\n' not in message.strip()
    return is_short and not message.startswith(NOISE)


def tame_console(logger: MMLogger) -> None:
    """Let the stream handlers of an MMEngine logger show single lines above the progress bar."""
    for handler in logger.handlers:
        if type(handler) is logging.StreamHandler:
            handler.addFilter(is_for_the_screen)
            handler.setStream(DummyTqdmFile(handler.stream))


def write_to_log(logger: logging.Logger, text: str) -> None:
    """Write to the log file alone."""
    record = logger.makeRecord(logger.name, logging.INFO, __file__, 0, text, (), None)
    for handler in logger.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)


@contextlib.contextmanager
def prints_in_log(logger: logging.Logger) -> Iterator[None]:
    """Write to the log file what the modules in ``PRINTERS`` print; anything else is printed as ever."""

    def write(*values) -> None:
        write_to_log(logger, ' '.join(map(str, values)))

    modules = [sys.modules[name] for name in PRINTERS if name in sys.modules]
    try:
        for module in modules:
            module.print = write  # found before the built-in function of this name
        yield
    finally:
        for module in modules:
            vars(module).pop('print', None)


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
        eta = datetime.timedelta(seconds=int(runner.message_hub.get_info('eta', 0)))
        shown = {'base_lr': values['lr_max'], 'eta': eta, **values}
        if values['lr_min'] < values['lr_max']:
            shown['rates'] = None
        parts = [part.format(**shown) for name, part in TRAINING_LINE.items() if name in shown]
        return values, '  '.join([shorten_head(text), *parts])

    def get_log_after_epoch(
        self, runner: Runner, batch_idx: int, mode: str, with_non_scalar: bool = False
    ) -> tuple[dict, str]:
        """Return (metrics for the JSON lines, text for the screen) of a validation or test."""
        values, text = super().get_log_after_epoch(runner, batch_idx, mode, with_non_scalar)
        parts = [shorten_head(text)]
        for name, value in values.items():
            if isinstance(value, Real) and 'time' not in name and value >= 0:
                parts.append(f'{name.split("/")[-1]} {value:.3f}')
        return values, '  '.join(parts)


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


def tell(*notes: str) -> None:
    """Print notes for the user on standard error, from the first process of a run."""
    if process_rank() == 0:
        for note in notes:
            print(f'note: {note}', file=sys.stderr)


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
        if mode in self.bars:
            self.bars[mode].close()
        is_hidden = not (is_main_process() and sys.stderr.isatty())
        options = dict(total=total, initial=initial, desc=mode, disable=is_hidden)
        self.bars[mode] = tqdm(unit='it', dynamic_ncols=True, leave=False, **options)

    def before_train(self, runner: Runner) -> None:
        """Open the training bar at the iteration from which the run starts or resumes."""
        self.open('train', runner.max_iters, runner.iter)

    # MMEngine calls the following two for each epoch and iteration of training, validation and test.

    def _before_epoch(self, runner: Runner, mode: str = 'train') -> None:
        if mode != 'train':
            self.open(mode, len(getattr(runner, f'{mode}_dataloader')))

    def _after_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None, mode: str = 'train') -> None:
        bar = self.bars[mode]
        bar.update()
        is_drawn_anew = not bar.disable and self.every_n_inner_iters(batch_idx, 10)
        if mode == 'train' and is_drawn_anew and outputs and 'loss' in outputs:
            bar.set_postfix(loss=f'{float(outputs["loss"]):.3f}', refresh=False)
        if bar.n == bar.total:
            bar.close()
