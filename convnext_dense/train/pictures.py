"""Pictures of a run: logged values -> curves; data samples -> ground truth beside predictions."""

import contextlib
import json
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.structures import BaseDataElement, PixelData
from mmengine.visualization import Visualizer

DRAWN_FIELDS = ('gt_instances', 'pred_instances', 'gt_sem_seg', 'pred_sem_seg')
MIN_SCORE = 0.5
MIN_SIDE = 320  # pixels; smaller images are enlarged so that labels can be read


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
    cells = []
    for sample in samples:
        image = cv2.cvtColor(cv2.imread(sample.img_path), cv2.COLOR_BGR2RGB)
        factor = max(1, round(MIN_SIDE / min(image.shape[:2])))
        image = image.repeat(factor, axis=0).repeat(factor, axis=1)
        with warnings.catch_warnings():  # the visualizer warns of boxes that touch the border
            warnings.simplefilter('ignore', UserWarning)
            pair = []
            for half in ('gt', 'pred'):  # one by one: MMSegmentation's visualizer returns the last one alone
                only = dict(draw_gt=half == 'gt', draw_pred=half == 'pred')
                with without_backends(visualizer):
                    drawn = keep_confident(enlarge(sample, factor))
                    visualizer.add_datasample('sample', image, drawn, show=False, **only)
                pair.append(visualizer.get_image())
        cells.append(np.concatenate(pair, axis=1))
    rows = [hstack(cells[i : i + columns]) for i in range(0, len(cells), columns)]
    grid = vstack(rows)
    cv2.imwrite(str(file), cv2.cvtColor(grid, cv2.COLOR_RGB2BGR))


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


def hstack(images: Sequence[np.ndarray]) -> np.ndarray:
    """Put images side by side on white, aligned at the top."""
    height = max(image.shape[0] for image in images)
    return np.concatenate([pad(image, height, image.shape[1]) for image in images], axis=1)


def vstack(images: Sequence[np.ndarray]) -> np.ndarray:
    """Put images on top of each other on white, aligned at the left."""
    width = max(image.shape[1] for image in images)
    return np.concatenate([pad(image, image.shape[0], width) for image in images], axis=0)


def pad(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Extend an image to a size with white, and by a margin of 6 pixels."""
    bottom, right = height - image.shape[0] + 6, width - image.shape[1] + 6
    return np.pad(image, ((0, bottom), (0, right), (0, 0)), constant_values=255)
