"""The end of a run: a table of the metrics, curves and pictures, and the names of the files that were written."""

import contextlib
import json
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.dist import is_main_process
from mmengine.evaluator import Evaluator
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement, PixelData
from mmengine.visualization import Visualizer

COCO_ROWS = {'AP': 'mAP', 'AP50': 'mAP_50', 'AP75': 'mAP_75', 'APs': 'mAP_s', 'APm': 'mAP_m', 'APl': 'mAP_l'}
COCO_COLUMNS = {'box': 'bbox', 'mask': 'segm'}
CURVES = ('coco/bbox_mAP', 'coco/bbox_mAP_50', 'coco/segm_mAP', 'coco/segm_mAP_50', 'mIoU', 'mAcc')
DRAWN_FIELDS = ('gt_instances', 'pred_instances', 'gt_sem_seg', 'pred_sem_seg')
MIN_SCORE = 0.5
MIN_SIDE = 320  # pixels; smaller images are enlarged so that labels can be read
MARGIN = 6  # pixels of white around a picture


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
        self.evaluator: Evaluator | None = None
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
        self.metrics, self.evaluator = dict(metrics or {}), runner.val_loop.evaluator

    before_test_epoch = before_val_epoch
    after_test_iter = after_val_iter

    def after_test_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        """Keep the metrics."""
        self.metrics, self.evaluator = dict(metrics or {}), runner.test_loop.evaluator

    def after_train(self, runner: Runner) -> None:
        """Write the pictures and print the summary of a training run."""
        if not is_main_process():
            return
        seconds = time.monotonic() - self.started
        num_iters = runner.iter - self.first_iter
        lines = [*self.describe_metrics(), f'{num_iters} iterations in {describe_seconds(seconds)}', '']
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
        runner.logger.info('\n'.join(['test finished', *self.describe_metrics(), *files]))

    def describe_metrics(self) -> list[str]:
        """Return the table of the metrics, or why there are none."""
        return metric_table(self.metrics) if self.metrics else [explain_no_metrics(self.evaluator)]

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
    return lines


def explain_no_metrics(evaluator: Evaluator | None) -> str:
    """Return why a run has no metrics.

    Args:
        evaluator: What evaluated the predictions; None where nothing did.
    """
    if evaluator is None:
        return 'no metrics: no validation ran'
    if not evaluator.metrics:
        return 'no metrics: the evaluator of the config asks for none'
    names = ', '.join(type(metric).__name__ for metric in evaluator.metrics)
    return f'no metrics: {names} gave none, as for a model that predicts nothing'


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


def read_scalars(files: Iterable[Path]) -> list[dict]:
    """Return the rows of JSON-lines files in the order of their training step; later files win over repeated steps."""
    rows = {}
    for file in files:
        for line in file.read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):  # the last line of a run that was killed
                row = json.loads(line)
                rows[row.get('step', 0), 'loss' in row] = row
    return [rows[key] for key in sorted(rows)]


def draw_curves(rows: Sequence[dict], metrics: Sequence[str], file: Path) -> None:
    """Write a PNG with the loss over the iterations on the left and the metrics over training on the right."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9, 3.4), layout='constrained')
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    losses = [row for row in rows if 'loss' in row]
    left.plot([row['step'] for row in losses], [row['loss'] for row in losses])
    left.set(xlabel='iteration', ylabel='loss', title='training loss', ylim=(0, None))
    for name in [name for name in metrics if any(name in row for row in rows)]:
        points = [(row['step'], row[name]) for row in rows if name in row]
        right.plot(*zip(*points, strict=True), marker='o', label=name.split('/')[-1])
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    right.set(xlabel='epoch' if rows_by_epoch(rows) else 'iteration', title='validation', ylim=(0, None))
    if right.lines:
        right.legend()
    figure.savefig(file, dpi=110)


def rows_by_epoch(rows: Sequence[dict]) -> bool:
    """Tell whether the validation rows count epochs (training rows always count iterations)."""
    return any('epoch' in row for row in rows if 'loss' in row)


def draw_predictions(visualizer: Visualizer, samples: Sequence[BaseDataElement], file: Path, columns: int = 2) -> None:
    """Write a PNG grid; each cell has an image with its ground truth on the left, its predictions on the right.

    Args:
        visualizer: MMDetection's or MMSegmentation's local visualizer, with its ``dataset_meta`` set.
        samples: What the model returned, with ``img_path`` and ground truth at the original image size.
        file: The PNG to write.
        columns: Cells in a row.
    """
    cells = [draw_pair(visualizer, sample) for sample in samples]
    rows = [stack(cells[i : i + columns], axis=1) for i in range(0, len(cells), columns)]
    cv2.imwrite(str(file), cv2.cvtColor(stack(rows, axis=0), cv2.COLOR_RGB2BGR))


def draw_pair(visualizer: Visualizer, sample: BaseDataElement) -> np.ndarray:
    """Return the image (H, W, 3) of a sample, with its ground truth on the left and its predictions on the right."""
    image = cv2.cvtColor(cv2.imread(sample.img_path), cv2.COLOR_BGR2RGB)
    factor = max(1, round(MIN_SIDE / min(image.shape[:2])))
    image = image.repeat(factor, axis=0).repeat(factor, axis=1)
    halves = []
    for half in ('gt', 'pred'):  # one by one: MMSegmentation's visualizer returns the last one alone
        with without_backends(visualizer), warnings.catch_warnings():
            warnings.simplefilter('ignore', UserWarning)  # the visualizer warns of boxes that touch the border
            drawn, only = keep_confident(enlarge(sample, factor)), dict(draw_gt=half == 'gt', draw_pred=half == 'pred')
            visualizer.add_datasample('sample', image, drawn, show=False, **only)
        halves.append(visualizer.get_image())
    return np.concatenate(halves, axis=1)


@contextlib.contextmanager
def without_backends(visualizer: Visualizer) -> Iterator[None]:
    """Draw in this block without storing each picture where the run's backends put theirs."""
    backends, visualizer._vis_backends = visualizer._vis_backends, {}
    try:
        yield
    finally:
        visualizer._vis_backends = backends


def keep_confident(sample: BaseDataElement) -> BaseDataElement:
    """Return a detector's sample without the predictions below ``MIN_SCORE``; a segmentor's as it is."""
    if 'pred_instances' in sample:
        sample.pred_instances = sample.pred_instances[sample.pred_instances.scores >= MIN_SCORE]
    return sample


def keep_drawn(sample: BaseDataElement) -> BaseDataElement:
    """Return a copy on the CPU with what is drawn alone: a segmentor's logits are large."""
    kept = type(sample)(metainfo=sample.metainfo)
    for name in DRAWN_FIELDS:
        if name in sample:
            setattr(kept, name, sample.get(name))
    return kept.cpu()


def has_objects(sample: BaseDataElement) -> bool:
    """Tell whether there is something to see: a segmentor's label map, or a detector's ground truth with objects."""
    return 'gt_instances' not in sample or len(sample.gt_instances) > 0


def enlarge(sample: BaseDataElement, factor: int) -> BaseDataElement:
    """Return a copy of a data sample on the CPU for an image enlarged by an integer factor."""
    sample = sample.cpu().clone()
    for name in ('gt_instances', 'pred_instances'):
        if name in sample:
            instances = sample.get(name)
            instances.bboxes = getattr(instances.bboxes, 'tensor', instances.bboxes) * factor
            if 'masks' in instances:
                masks = instances.masks
                masks = masks.masks if hasattr(masks, 'masks') else masks.numpy()
                instances.masks = torch.from_numpy(
                    np.ascontiguousarray(masks.repeat(factor, axis=1).repeat(factor, axis=2)).astype(bool)
                )
    for name in ('gt_sem_seg', 'pred_sem_seg'):
        if name in sample:
            labels = sample.get(name).data.repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2)
            setattr(sample, name, PixelData(data=labels))
    return sample


def stack(images: Sequence[np.ndarray], axis: int) -> np.ndarray:
    """Put images below each other (axis 0) or side by side (axis 1), aligned at the top left, with white margins."""
    height, width = (max(image.shape[side] for image in images) for side in (0, 1))
    padded = []
    for image in images:
        bottom, right = (height - image.shape[0], 0) if axis == 1 else (0, width - image.shape[1])
        padded.append(np.pad(image, ((0, bottom + MARGIN), (0, right + MARGIN), (0, 0)), constant_values=255))
    return np.concatenate(padded, axis=axis)
