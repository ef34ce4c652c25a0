"""One annotation of an object: its numbers, checked before they reach code that takes anything."""

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

MOST_PIXELS = 1e6  # the largest coordinate that is one
FAR = 1.0  # image sizes beyond the image, from where on a coordinate is not one of this image


class FaultError(ValueError):
    """What is wrong with an annotation, in a few words."""


def number(value: Any) -> float:
    """Return a finite number of pixels; numbers written as text count.

    Raises:
        FaultError: It is none.
    """
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise FaultError('a coordinate that is not a number') from None
    if isinstance(value, bool) or not isinstance(value, Real):
        raise FaultError('a coordinate that is not a number')
    if value != value or abs(value) > MOST_PIXELS:  # before float(), which cannot take 10**400
        raise FaultError('a coordinate that is not finite, or no pixel of any image')
    return float(value)


def read_box(value: Any, width: int, height: int) -> tuple[float, float, float, float]:
    """Return left, top, width and height in pixels, inside of the image.

    Raises:
        FaultError: The value is not four numbers, has no area, or lies outside of the image.
    """
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != 4:
        raise FaultError('a box that is not four numbers')
    x, y, w, h = map(number, value)
    if w <= 0 or h <= 0:
        raise FaultError('a box without area')
    left, top, right, bottom = max(x, 0.0), max(y, 0.0), min(x + w, width), min(y + h, height)
    if right <= left or bottom <= top:
        raise FaultError('a box outside of its image')
    if left == x and top == y and right == x + w and bottom == y + h:
        return x, y, w, h  # without the rounding of a sum and a difference
    return left, top, right - left, bottom - top


def read_polygon(value: Any, width: int, height: int) -> list[float]:
    """Return ``[x0, y0, x1, y1, ...]`` in pixels, of three corners or more.

    A list of pairs ``[[x0, y0], ...]`` is read as well.

    Raises:
        FaultError: It is no such list, has too few corners or no area, or lies far outside of the image.
    """
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise FaultError('a polygon that is not a list of numbers')
    if value and all(isinstance(pair, Sequence) and not isinstance(pair, str) and len(pair) == 2 for pair in value):
        value = [coordinate for pair in value for coordinate in pair]
    polygon = [number(coordinate) for coordinate in value]
    if len(polygon) % 2:
        raise FaultError('a polygon with an odd number of coordinates')
    if len(polygon) < 6:
        raise FaultError('a polygon of fewer than three points')
    for values, side in ((polygon[::2], width), (polygon[1::2], height)):
        if min(values) < -FAR * side or max(values) > (1 + FAR) * side:
            raise FaultError('a polygon far outside of its image')
    if polygon_area(polygon) == 0:
        raise FaultError('a polygon without area')
    return polygon


def polygon_area(polygon: Sequence[float]) -> float:
    """Return the area of a polygon in square pixels, by the shoelace formula.

    >>> polygon_area([0, 0, 4, 0, 4, 3, 0, 3])
    12.0
    """
    xs, ys = polygon[::2], polygon[1::2]
    products = (xs[i - 1] * ys[i] - xs[i] * ys[i - 1] for i in range(len(xs)))
    return abs(math.fsum(products)) / 2


def read_segmentation(value: Any, width: int, height: int) -> list[list[float]] | dict | None:
    """Return COCO's ``segmentation`` of an object; None where there is none.

    Raises:
        FaultError: It is neither polygons nor run lengths of this image.
    """
    if value is None or (isinstance(value, Sequence) and not value):
        return None
    if isinstance(value, dict):
        return read_run_lengths(value, width, height)
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise FaultError('a segmentation that is neither polygons nor run lengths')
    is_flat = not any(isinstance(part, Sequence) and not isinstance(part, str) for part in value)
    pairs = [part for part in value if isinstance(part, Sequence) and len(part) == 2]
    polygons = [value] if is_flat or len(pairs) == len(value) else value
    return [read_polygon(polygon, width, height) for polygon in polygons]


def read_run_lengths(value: dict, width: int, height: int) -> dict:
    """Return ``dict(size=[height, width], counts=...)``, whose run lengths add up to the image.

    pycocotools reads beyond its memory where they do not.

    Raises:
        FaultError: They do not, or are of another image.
    """
    size, counts = value.get('size'), value.get('counts')
    if not isinstance(size, Sequence) or list(size) != [height, width]:
        raise FaultError('run lengths of another image size')
    runs = counts if isinstance(counts, list) else decode_counts(counts)
    if not all(isinstance(run, int) and not isinstance(run, bool) and run >= 0 for run in runs):
        raise FaultError('run lengths that are no whole numbers')
    if sum(runs) != width * height:
        raise FaultError('run lengths that do not add up to the image')
    if sum(runs[1::2]) == 0:
        raise FaultError('an empty mask')
    return {'size': [height, width], 'counts': counts}


def decode_counts(counts: Any) -> list[int]:
    """Return the run lengths that COCO's compressed text stands for.

    Five bits a character, the lowest first; bit 6 says that more follow, the highest bit of the last one is the sign.
    From the fourth run on, a run is stored as the difference to the one before the last (``maskApi.c`` of COCO's API).

    Raises:
        FaultError: It is no such text.

    >>> decode_counts('52203')
    [5, 2, 2, 2, 5]
    """
    if isinstance(counts, bytes):
        counts = counts.decode('ascii', 'replace')
    if not isinstance(counts, str):
        raise FaultError('run lengths that are neither a list nor text')
    runs, value, shift = [], 0, 0
    for character in counts:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 30:
            raise FaultError('run lengths with foreign characters')
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value, shift = 0, 0
    if shift:
        raise FaultError('run lengths that are cut short')
    return runs


def lies_apart(polygons: Sequence[Sequence[float]], box: Sequence[float]) -> bool:
    """Tell whether polygons and a box have less than a tenth of their joint area in common."""
    (x, y, w, h), (left, top, wide, high) = box, bounding_box(polygons)
    common = max(0, min(x + w, left + wide) - max(x, left)) * max(0, min(y + h, top + high) - max(y, top))
    return common < 0.1 * (w * h + wide * high - common)


def bounding_box(polygons: Sequence[Sequence[float]]) -> tuple[float, float, float, float]:
    """Return the smallest box around polygons: left, top, width and height.

    >>> bounding_box([[1, 2, 5, 2, 5, 4], [0, 3, 1, 3, 1, 5]])
    (0, 2, 5, 3)
    """
    xs = [x for polygon in polygons for x in polygon[::2]]
    ys = [y for polygon in polygons for y in polygon[1::2]]
    return min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)
