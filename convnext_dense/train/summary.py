"""The end of a run: a short table of the metrics, pictures, and where everything was written."""

import time
from collections.abc import Callable, Mapping
from numbers import Real
from pathlib import Path

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from convnext_dense.train.pictures import draw_curves, draw_predictions, has_objects, keep_drawn, read_scalars

COCO_ROWS = {'AP': 'mAP', 'AP50': 'mAP_50', 'AP75': 'mAP_75', 'APs': 'mAP_s', 'APm': 'mAP_m', 'APl': 'mAP_l'}
COCO_COLUMNS = {'box': 'bbox', 'mask': 'segm'}
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
        self.started = time.monotonic()

    def before_train(self, runner: Runner) -> None:
        """Start the clock."""
        self.started = time.monotonic()
        self.first_iter = runner.iter

    def before_val_epoch(self, runner: Runner) -> None:
        """Forget the predictions of the validation before."""
        self.samples = []

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Keep the first predictions."""
        missing = self.num_pictures - len(self.samples)
        if missing > 0:
            self.samples += [keep_drawn(sample) for sample in outputs if has_objects(sample)][:missing]

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        """Keep the latest metrics."""
        self.metrics = dict(metrics or {})

    before_test_epoch = before_val_epoch
    after_test_iter = after_val_iter
    after_test_epoch = after_val_epoch

    def after_train(self, runner: Runner) -> None:
        """Write the pictures and print the summary of a training run."""
        if not is_main_process():
            return
        seconds = time.monotonic() - self.started
        num_iters = runner.iter - self.first_iter
        lines = [*metric_table(self.metrics), f'{num_iters} iterations in {describe_seconds(seconds)}', '']
        work_dir = Path(runner.work_dir)
        scalars = sorted(work_dir.glob('*/vis_data/scalars.json'))
        written = {'checkpoint': runner.message_hub.get_info('last_ckpt', None)}
        if scalars:
            written['metrics'] = scalars[-1]
            is_resumed = self.first_iter > 0
            rows = read_scalars(scalars if is_resumed else scalars[-1:])
            written['curves'] = self.draw(runner, draw_curves, rows, CURVES, file=work_dir / 'curves.png')
        written['predictions'] = self.draw_samples(runner, work_dir / 'predictions.png')
        runner.logger.info('\n'.join(['training finished', *lines, *describe_files(written)]))

    def after_test(self, runner: Runner) -> None:
        """Write the picture and print the summary of a test."""
        if not is_main_process():
            return
        predictions = self.draw_samples(runner, Path(runner.log_dir) / 'predictions.png')
        log = Path(runner.log_dir) / f'{runner.timestamp}.json'
        files = describe_files({'metrics': log, 'predictions': predictions})
        runner.logger.info('\n'.join(['test finished', *metric_table(self.metrics), *files]))

    def draw_samples(self, runner: Runner, file: Path) -> Path | None:
        """Draw the kept predictions; None where there are none, or where nobody can draw them."""
        if not self.samples or not hasattr(runner.visualizer, 'dataset_meta'):
            return None
        return self.draw(runner, draw_predictions, runner.visualizer, self.samples, file=file)

    def draw(self, runner: Runner, function: Callable, *args, file: Path) -> Path | None:
        """Draw a file; a finished run must not fail for want of a picture, so that errors become a warning."""
        try:
            function(*args, file=file)
        except Exception as error:
            runner.logger.warning(f'{file} could not be drawn: {error!r}')
            return None
        return file


def metric_table(metrics: Mapping[str, float]) -> list[str]:
    """Return the lines of a table: AP by box and mask for COCO metrics, name and value for others."""
    columns = [name for name, key in COCO_COLUMNS.items() if f'coco/{key}_mAP' in metrics]
    lines = []
    if columns:
        lines.append(f'{"":8}' + ''.join(f'{name:>8}' for name in columns))
        for label, key in COCO_ROWS.items():
            values = [metrics.get(f'coco/{COCO_COLUMNS[name]}_{key}', -1) for name in columns]
            # COCO gives -1 where there is no object of that size
            lines.append(f'{label:8}' + ''.join(f'{value:8.3f}' if value >= 0 else f'{"-":>8}' for value in values))
    in_table = {f'coco/{kind}_{key}' for kind in COCO_COLUMNS.values() for key in COCO_ROWS.values()}
    others = {name.split('/')[-1]: value for name, value in metrics.items() if name not in in_table}
    lines += [f'{name:8}{value:8.3f}' for name, value in others.items() if isinstance(value, Real)]
    return lines if metrics else ['no metrics: the model predicted nothing']


def describe_files(written: Mapping[str, object]) -> list[str]:
    """Return a line for each file that was written."""
    return [f'{what:12}{path}' for what, path in written.items() if path]


def describe_seconds(seconds: float) -> str:
    """Return a duration in words.

    >>> describe_seconds(3671)
    '1 h 1 min 11 s'
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, 'h'), (minutes, 'min'), (rest, 's')]
    return ' '.join(f'{value} {unit}' for value, unit in parts if value) or '0 s'
