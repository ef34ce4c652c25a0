"""The end of a run: a table of the metrics, curves and pictures, and the names of the files that were written."""

import datetime
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real
from pathlib import Path

from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from convnext_dense.train.damage import LEFT_OUT
from convnext_dense.train.numbers import SKIPPED
from convnext_dense.train.pictures import draw_batch, draw_predictions
from convnext_dense.weights.meta import read_scalars

COCO_ROWS = {'AP': 'mAP', 'AP50': 'mAP_50', 'AP75': 'mAP_75', 'APs': 'mAP_s', 'APm': 'mAP_m', 'APl': 'mAP_l'}
COCO_COLUMNS = {'box': 'coco/bbox_', 'mask': 'coco/segm_'}
CURVES = ('coco/bbox_mAP', 'coco/bbox_mAP_50', 'coco/segm_mAP', 'coco/segm_mAP_50', 'mIoU', 'mAcc')


@HOOKS.register_module()
class RunSummaryHook(Hook):
    """Draw curves and predictions after training or a test, and print what was reached and written.

    Args:
        num_pictures: Validation or test images shown with their predictions; 0 for none.
    """

    priority = 'LOWEST'

    def __init__(self, num_pictures: int = 6) -> None:
        self.num_pictures = num_pictures
        self.samples: list = []
        self.metrics: dict[str, float] = {}

    def before_train(self, runner: Runner) -> None:
        """Start the clock."""
        self.started, self.first_iter = time.monotonic(), runner.iter

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        """Draw the first batch as the model gets it."""
        if runner.iter == self.first_iter and hasattr(runner.visualizer, 'dataset_meta'):
            self.draw_first_batch(runner, data_batch)

    @master_only
    def draw_first_batch(self, runner: Runner, batch: dict) -> None:
        """Write ``first_batch.png``; the batches of semi-supervised models and of videos are of other kinds."""
        if isinstance(batch, dict) and all(isinstance(batch.get(key), list) for key in ('inputs', 'data_samples')):
            file = Path(runner.work_dir, 'first_batch.png')
            if self.draw(runner, file, draw_batch, runner.visualizer, batch['inputs'], batch['data_samples']):
                runner.logger.info(f'the first batch as the model gets it: {file}')

    # MMEngine calls the following two for training, validation and test.

    def _before_epoch(self, runner: Runner, mode: str = 'train') -> None:
        if mode != 'train':
            self.samples = []

    def _after_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None, mode: str = 'train') -> None:
        for sample in outputs if mode != 'train' else ():
            is_empty = 'gt_instances' in sample and len(sample.gt_instances) == 0
            if len(self.samples) < self.num_pictures and not is_empty:
                kept = sample.new()
                kept.pop('seg_logits', None)  # they are large
                self.samples.append(kept.cpu())

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        """Keep the latest metrics."""
        self.metrics = dict(metrics or {})

    after_test_epoch = after_val_epoch

    @master_only
    def after_train(self, runner: Runner) -> None:
        """Write the pictures and print the summary of a training run."""
        duration = datetime.timedelta(seconds=round(time.monotonic() - self.started))
        work_dir = Path(runner.work_dir)
        written, rows = {'checkpoint': runner.message_hub.get_info('last_ckpt', None)}, []
        if scalars := sorted(work_dir.glob('*/vis_data/scalars.json')):
            written['metrics'] = scalars[-1]
            rows = read_scalars(scalars if self.first_iter > 0 else scalars[-1:])  # a resumed run has those before
            written['curves'] = self.draw(runner, work_dir / 'curves.png', draw_curves, rows, CURVES)
        written['predictions'] = self.draw_samples(runner, work_dir)
        length = f'{runner.iter - self.first_iter} iterations in {duration}{waiting(rows)}'
        left_out = losses_of(runner.message_hub.runtime_info)
        self.show(runner, 'training finished', written, length, *left_out, '')

    @master_only
    def after_test(self, runner: Runner) -> None:
        """Write the picture and print the summary of a test."""
        folder = Path(runner.log_dir)
        written = {'metrics': folder / f'{runner.timestamp}.json', 'predictions': self.draw_samples(runner, folder)}
        self.show(runner, 'test finished', written)

    def show(self, runner: Runner, title: str, written: Mapping[str, object], *lines: str) -> None:
        """Print the table of the metrics, some lines, and the files that were written."""
        files = [f'{what:12}{path}' for what, path in written.items() if path]
        runner.logger.info('\n'.join([title, *metric_table(self.metrics), *lines, *files]))

    def draw_samples(self, runner: Runner, folder: Path) -> Path | None:
        """Draw the kept predictions; None where there are none, or where nobody can draw them."""
        if not self.samples or not hasattr(runner.visualizer, 'dataset_meta'):
            return None
        return self.draw(runner, folder / 'predictions.png', draw_predictions, runner.visualizer, self.samples)

    def draw(self, runner: Runner, file: Path, function: Callable, *args) -> Path | None:
        """Draw a file; a finished run must not fail for want of a picture, so that errors become a warning."""
        try:
            function(*args, file)
        except Exception as error:
            runner.logger.warning(f'{file} could not be drawn: {error!r}')
            return None
        return file


def waiting(rows: Iterable[Mapping]) -> str:
    """Return what share of the time of its steps a training waited for data; empty where the log does not tell.

    >>> waiting([{'loss': 1.0, 'time': 2.0, 'data_time': 0.5}, {'mIoU': 40.0, 'time': 9.0, 'data_time': 1.0}])
    '; the steps waited for data 25% of their time'
    """
    steps = [row for row in rows if 'loss' in row and 'data_time' in row]
    total = sum(row['time'] for row in steps)
    share = sum(row['data_time'] for row in steps) / total if total else 0
    return f'; the steps waited for data {share:.0%} of their time' if total else ''


def losses_of(log: Mapping) -> list[str]:
    """Return lines on the steps and the files that a training has left out.

    >>> losses_of({'skipped_steps': 2})
    ['2 steps were skipped, because they were not finite']
    """
    skipped, left_out = log.get(SKIPPED, 0), len(log.get(LEFT_OUT, ()))
    lines = {
        f'{skipped} steps were skipped, because they were not finite': skipped,
        f'{left_out} damaged files were left out': left_out,
    }
    return [line for line, number in lines.items() if number]


def metric_table(metrics: Mapping[str, float]) -> list[str]:
    """Return the lines of a table: AP by box and mask for COCO metrics, name and value for others."""
    if not metrics:
        return ['no metrics: no validation ran, the evaluator asks for none, or the model predicts nothing']
    prefixes = {name: prefix for name, prefix in COCO_COLUMNS.items() if f'{prefix}mAP' in metrics}
    others, lines = dict(metrics), []
    if prefixes:
        lines.append(f'{"":8}' + ''.join(f'{name:>8}' for name in prefixes))
        for label, key in COCO_ROWS.items():
            values = [others.pop(prefix + key, -1) for prefix in prefixes.values()]
            # COCO gives -1 where there is no object of that size
            lines.append(f'{label:8}' + ''.join(f'{value:8.3f}' if value >= 0 else f'{"-":>8}' for value in values))
    rest = [(name.split('/')[-1], value) for name, value in others.items() if isinstance(value, Real)]
    return lines + [f'{name:8}{value:8.3f}' for name, value in rest]


def draw_curves(rows: Sequence[dict], metrics: Sequence[str], file: Path) -> None:
    """Write a PNG with the loss over the iterations on the left and the metrics over training on the right."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9, 3.4), layout='constrained')
    left, right = figure.subplots(1, 2)
    losses = [row for row in rows if 'loss' in row]
    left.plot([row['step'] for row in losses], [row['loss'] for row in losses])
    left.set(xlabel='iteration', ylabel='loss', title='training loss', ylim=(0, None))
    for name in metrics:
        points = [(row['step'], row[name]) for row in rows if name in row]
        if points:
            right.plot(*zip(*points, strict=True), marker='o', label=name.split('/')[-1])
    by_epoch = any('epoch' in row for row in losses)  # validations are then counted by epochs, losses never
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    right.set(xlabel='epoch' if by_epoch else 'iteration', title='validation', ylim=(0, None))
    if right.lines:
        right.legend()
    figure.savefig(file, dpi=110)
