"""Whether an exported model predicts what PyTorch predicts, image by image, and how fast."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from convnext_dense.compat.errors import UserError
from convnext_dense.data.shapes import draw_scene
from convnext_dense.predict.inputs import find_sources
from convnext_dense.predict.model import Model
from convnext_dense.results import LabelMap, Objects, Result
from convnext_dense.runtime import Exported

SIZES = ((240, 320), (331, 247), (97, 131), (384, 512))  # of drawn images, height and width
GIVEN = 12  # images of the user that are compared at most
LIMITS = {'boxes': 1e-3, 'scores': 1e-5, 'pixels': 1e-4}  # pixels; from 0 to 1; share of those of masks or label maps
NEAR = 1.0  # pixels: boxes of one object are not farther apart, or one of them is missing


@dataclass(frozen=True)
class Difference:
    """How the predictions of an image differ."""

    image: str  # its name
    size: tuple[int, int]  # its height and width
    objects: int  # how many PyTorch finds; of a segmentor, how many classes are on the label map
    missing: int  # how many are found by one of both alone
    boxes: float  # the largest difference of the sides of boxes in pixels
    scores: float  # the largest difference of scores
    pixels: int  # how many pixels of masks, or of the label map, differ
    compared: int  # of how many
    speedup: float  # the time that PyTorch takes, in times of the exported model

    def excess(self, tolerance: float) -> list[str]:
        """Return what is above so many times its limit."""
        found = {'boxes': self.boxes, 'scores': self.scores, 'pixels': self.pixels / max(self.compared, 1)}
        names = [name for name, value in found.items() if not value <= tolerance * LIMITS[name]]
        return ['missing objects'] * bool(self.missing) + names


@dataclass(frozen=True)
class Report:
    """The differences on all images, and how many times the limits they may be."""

    differences: list[Difference]
    tolerance: float

    def summary(self) -> dict[str, Any]:
        """Return the largest differences, and the median of the speed-ups."""
        rows = self.differences
        worst = {name: max(getattr(row, name) for row in rows) for name in ('boxes', 'scores')}
        sums = {name: sum(getattr(row, name) for row in rows) for name in ('objects', 'missing', 'pixels', 'compared')}
        limits = {name: self.tolerance * limit for name, limit in LIMITS.items()}
        return dict(images=len(rows), **sums, **worst, limits=limits, speedup=median(row.speedup for row in rows))

    def check(self, file: Path) -> None:
        """Raise a :class:`UserError` where a difference is above its limit."""
        if any(row.excess(self.tolerance) for row in self.differences):
            raise UserError(
                f'{file} was not written: the exported model predicts something else than PyTorch.\n{self}\n'
                'An untrained model has many scores that are nearly equal, and takes them in another order: export a '
                'trained one. In DINO and Mask2Former rounding can change which queries are taken and what they '
                'attend to: --tolerance 1000 allows scores to differ by 0.01.'
            )

    def __str__(self) -> str:
        rows = [('image', 'size', 'objects', 'missing', 'boxes (px)', 'scores', 'pixels', 'speed-up', '')]
        for row in self.differences:
            excess = ', '.join(row.excess(self.tolerance))
            rows.append((
                row.image, f'{row.size[1]}x{row.size[0]}', str(row.objects), str(row.missing), f'{row.boxes:.1e}',
                f'{row.scores:.1e}', f'{row.pixels} of {row.compared}', f'{row.speedup:.2f}x',
                f'above the limit: {excess}' if excess else '',
            ))  # fmt: skip
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return '\n'.join('  '.join(map(str.ljust, row, widths)).rstrip() for row in rows)


def pictures(model: Model, given: Sequence[str | os.PathLike]) -> list[tuple[str, np.ndarray]]:
    """Return the images that are compared, (H, W, channels), with their names: given, drawn and empty ones."""
    files = find_sources(given)[1][:GIVEN] if given else []
    drawn = [(f'drawn {i + 1}', draw(i, *size)) for i, size in enumerate(SIZES)]
    drawn += [('grey', np.full((200, 261, 3), 127, np.uint8)), ('black', np.zeros((100, 130, 3), np.uint8))]
    bands = np.arange(model.channels) % 3
    return [(file.name, model.read(file.path)) for file in files] + [(name, image[..., bands]) for name, image in drawn]


def draw(index: int, height: int, width: int) -> np.ndarray:
    """Return a drawn image (height, width, 3) BGR."""
    image = draw_scene(0, 'val', index, size=2 * max(height, width)).image
    return np.ascontiguousarray(image[:height, :width, ::-1])


def compare(model: Model, exported: Exported, images: Sequence[tuple[str, np.ndarray]], tolerance: float = 1) -> Report:
    """Predict images with PyTorch and with an exported model, in turns."""
    differences = []
    for predictor in (model, exported):  # the first call of each prepares more than the others
        timed(predictor, images[0][1])
    for name, image in images:
        theirs, before = timed(model, image)
        ours, after = timed(exported, image)
        found = compare_maps(theirs, ours) if isinstance(theirs, LabelMap) else compare_objects(theirs, ours, tolerance)
        differences.append(Difference(name, image.shape[:2], *found, before / after))
    return Report(differences, tolerance)


def timed(predict: Callable[[np.ndarray], Result], image: np.ndarray) -> tuple[Result, float]:
    """Return a prediction with its masks as run lengths, and how many seconds it took."""
    start = time.perf_counter()
    result = predict(image)
    if isinstance(result, Objects):
        _ = result.rles
    return result, time.perf_counter() - start


def compare_maps(theirs: LabelMap, ours: LabelMap) -> tuple[int, int, float, float, int, int]:
    """Return the differences of two label maps, as in :class:`Difference`."""
    return len(theirs.areas()), 0, 0.0, 0.0, int((theirs.labels != ours.labels).sum()), theirs.labels.size


def compare_objects(theirs: Objects, ours: Objects, tolerance: float = 1) -> tuple[int, int, float, float, int, int]:
    """Return the differences of two lists of objects, as in :class:`Difference`."""
    pairs = match(theirs, ours)
    near = tolerance * LIMITS['scores']
    missing = max(count_alone(theirs, ours, pairs[:, 0], near), count_alone(ours, theirs, pairs[:, 1], near))
    if len(pairs) == 0:
        return len(theirs), missing, 0.0, 0.0, 0, 0
    one, other = theirs.take(pairs[:, 0]), ours.take(pairs[:, 1])
    boxes, scores = np.abs(one.boxes - other.boxes).max(), np.abs(one.scores - other.scores).max()
    pixels = compared = 0
    if one.masks is not None:
        pixels, compared = int((one.masks != other.masks).sum()), one.masks.size
    return len(theirs), missing, float(boxes), float(scores), pixels, compared


def count_alone(objects: Objects, others: Objects, matched: np.ndarray, near: float) -> int:
    """Return how many objects are in one list alone.

    Of two full lists, such as of the 100 best, the last ones may differ: objects of nearly one score, some of which are
    left.
    """
    alone = np.delete(objects.scores, matched)
    if len(objects) != len(others):
        return len(alone)
    return int((alone > others.scores.min(initial=1) + near).sum())


def match(theirs: Objects, ours: Objects) -> np.ndarray:
    """Return the pairs (M, 2) of objects that are one: of a class, and nearest in box and score.

    Two objects of nearly one score may stand in another order.
    """
    distances = np.abs(theirs.boxes[:, None] - ours.boxes).max(-1) + np.abs(theirs.scores[:, None] - ours.scores)
    distances[theirs.labels[:, None] != ours.labels] = np.inf
    pairs = []
    while distances.size and distances.min() < NEAR:
        one, other = np.unravel_index(distances.argmin(), distances.shape)
        pairs.append((one, other))
        distances[one], distances[:, other] = np.inf, np.inf
    return np.array(pairs, int).reshape(-1, 2)
