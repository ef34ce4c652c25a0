"""How good label maps are: by class, by image, and at the borders of the classes."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

IGNORED = 255  # pixels without a class
BAND = 0.02  # of an image's diagonal: how wide the band along a border is (Boundary IoU, arXiv 2103.16562)


class Counts(NamedTuple):
    """The pixels of an image."""

    path: str  # the image file
    labels: np.ndarray  # (n,), the classes that are there or were found
    pixels: np.ndarray  # (n, n), how many pixels of each of these classes (rows) were taken for each (columns)
    borders: np.ndarray  # (2, n), intersection and union of the bands along the borders of each class, in pixels


def count(path: str, truth: np.ndarray, found: np.ndarray, num_classes: int) -> Counts:
    """Return the counts of an image from labels (H, W); the right ones are :data:`IGNORED` where there is no class."""
    counted = truth < num_classes
    labels, places = np.unique(np.stack([truth[counted], found[counted]]), return_inverse=True)
    number = len(labels)
    rows, columns = places.reshape(2, -1)
    pixels = np.bincount(rows * number + columns, minlength=number**2).reshape(number, number)
    width = max(1, round(BAND * math.hypot(*truth.shape)))
    borders = np.zeros((2, number), np.int64)
    for place, label in enumerate(labels):
        one, other = (band(each == label, width) & counted for each in (truth, found))
        borders[:, place] = (one & other).sum(), (one | other).sum()
    return Counts(path, labels, pixels, borders)


def band(mask: np.ndarray, width: int) -> np.ndarray:
    """Return the pixels of a mask (H, W) that are at most so many pixels from outside of it, or of the image."""
    padded = np.pad(mask.astype(np.uint8), 1)
    return mask & (cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=width)[1:-1, 1:-1] == 0)


def judge(images: Sequence[Counts], classes: Sequence[str]) -> dict[str, Any]:
    """Return all figures of a report on label maps, in types that JSON has."""
    pixels, borders = np.zeros((len(classes), len(classes)), np.int64), np.zeros((2, len(classes)), np.int64)
    for each in images:
        pixels[np.ix_(each.labels, each.labels)] += each.pixels
        borders[:, each.labels] += each.borders
    total, right = pixels.sum(1), np.diag(pixels)
    columns = {
        'pixels': total,
        'IoU': ratio(right, total + pixels.sum(0) - right),
        'Acc': ratio(right, total),
        'Precision': ratio(right, pixels.sum(0)),
        'Boundary IoU': ratio(*borders),
    }
    by_class = {
        name: {column: plain(values[label]) for column, values in columns.items()} for label, name in enumerate(classes)
    }
    summary = {f'm{column}': mean(columns[column]) for column in ('IoU', 'Acc', 'Boundary IoU')}
    return dict(
        kind='label maps',
        classes=list(classes),
        num_images=len(images),
        summary=summary | {'aAcc': plain(right.sum() / max(1, total.sum()))},
        by_class=by_class,
        confusion=pixels.tolist(),
        images=sorted(map(rate_image, images), key=lambda row: row['mIoU']),
    )


def rate_image(counts: Counts) -> dict[str, Any]:
    """Return the mean IoU of the classes on an image, and the share of its pixels that are right."""
    right, total = np.diag(counts.pixels), counts.pixels.sum()
    values = ratio(right, counts.pixels.sum(1) + counts.pixels.sum(0) - right)
    rates = (float(np.nanmean(values)), float(right.sum() / total)) if total else (1.0, 1.0)
    return dict(zip(('path', 'mIoU', 'aAcc'), (counts.path, *rates), strict=True))


def mean(values: np.ndarray) -> float | None:
    """Return the mean of the numbers that are none of NaN; None of nothing."""
    numbers = values[~np.isnan(values)]
    return float(numbers.mean()) if len(numbers) else None


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return a quotient; NaN where the whole is empty."""
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


def plain(value: float) -> float | int | None:
    """Return a number as JSON has it; None for NaN."""
    return None if np.isnan(value) else value.item() if hasattr(value, 'item') else value
