"""LabelMe: one JSON file for each image, with polygons, rectangles, circles and masks."""

import base64
import binascii
import io
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from convnext_dense.data.annotation import FaultError, bounding_box, number, read_box, read_polygon
from convnext_dense.data.datasets import polygons
from convnext_dense.data.formats.per_image import find_picture, note_left_over
from convnext_dense.data.records import Collection, Faults, ImageIndex, Picture, Thing, find_files, read_json, split_of

CIRCLE_POINTS = 32  # corners of the polygon that stands for a circle
KEYS = ('shapes', 'imagePath')
NO_AREA = ('line', 'linestrip', 'point', 'points')


def find_annotations(path: Path) -> Iterator[Path]:
    """Yield the annotation files at a path; the keys may stand behind the image, which the file can hold too."""
    for file in find_files(path, ['.json']) if path.is_dir() else ():
        with file.open('rb') as opened:
            head = opened.read(2**16)
            opened.seek(max(0, file.stat().st_size - 2**16))
            text = head + opened.read()
        if b'"shapes"' in text and b'"imagePath"' in text:
            yield file


def read(path: Path) -> Collection:
    """Return the data set in a folder. The classes are in alphabetical order, for the format has no list of them.

    Raises:
        UserError: A file is no JSON, or no image can be used.
    """
    images, found = ImageIndex(path), []
    for file in find_annotations(path):
        content = read_json(file, KEYS)
        found.append((file, content, [shape for shape in content['shapes'] if isinstance(shape, dict)]))
    classes = sorted({str(shape['label']) for _, _, shapes in found for shape in shapes if shape.get('label')})
    collection = Collection('LabelMe JSON', images.root, classes, {})
    for file, content, shapes in found:
        name = content.get('imagePath')
        called = [name if isinstance(name, str) else '', file.stem]
        size = (content.get('imageWidth'), content.get('imageHeight'))
        if picture := find_picture(images, file, called, size, collection.faults):
            picture.things.extend(read_shapes(file, shapes, classes, picture, collection.faults))
            collection.splits.setdefault(split_of(file.parent, path), []).append(picture)
    note_left_over(collection, images, 'JSON')
    return collection


def read_shapes(file: Path, shapes: list[Mapping], classes: list[str], picture: Picture, faults: Faults) -> list[Thing]:
    """Return the objects of an image; shapes of one ``group_id`` and label are parts of one object."""
    groups: dict[object, list[list[float]]] = {}
    labels: dict[object, int] = {}
    boxes: dict[object, list[list[float]]] = {}
    for i, shape in enumerate(shapes):
        try:
            outlines, has_mask = read_shape(shape, picture)
        except FaultError as error:
            faults.add(str(error), f'{file.name}: shape {i + 1}', picture.path)
            continue
        group = shape.get('group_id')
        key = i if group is None else (str(group), str(shape['label']))
        labels[key] = classes.index(str(shape['label']))
        (groups if has_mask else boxes).setdefault(key, []).extend(outlines)
    things = []
    for key in (key for key in groups if key in boxes):
        faults.add('a rectangle in a group with an outline, which tells box and mask', f'{file.name}: {key}')
    for key, label in labels.items():
        outlines = groups.get(key) or boxes[key]
        try:
            box = read_box(bounding_box(outlines), picture.width, picture.height)
            things.append(Thing(label, box, groups.get(key)))
        except FaultError as error:
            faults.add(str(error), f'{file.name}: {key}')
    return things


def read_shape(shape: Mapping, picture: Picture) -> tuple[list[list[float]], bool]:
    """Return the polygons of a shape, and whether they are its outline; those of a rectangle are only its box.

    Raises:
        FaultError: It has no label, no area, or no points.
    """
    kind, points = shape.get('shape_type') or 'polygon', shape.get('points')
    if not shape.get('label'):
        raise FaultError('a shape without a label')
    if kind in NO_AREA:
        raise FaultError(f'a {kind}, which has no area')
    if not points or not isinstance(points, list) or not all(isinstance(p, list) and len(p) == 2 for p in points):
        raise FaultError('a shape without points')
    points = [[*map(number, point)] for point in points]
    if kind == 'mask':
        return read_mask(shape, points), True
    if kind == 'rectangle' and len(points) == 2:
        (x0, y0), (x1, y1) = points
        return [read_polygon([x0, y0, x1, y0, x1, y1, x0, y1], picture.width, picture.height)], False
    if kind == 'circle' and len(points) == 2:
        (x, y), (edge_x, edge_y) = points
        radius = math.hypot(edge_x - x, edge_y - y)
        angles = [2 * math.pi * i / CIRCLE_POINTS for i in range(CIRCLE_POINTS)]
        points = [(x + radius * math.cos(angle), y + radius * math.sin(angle)) for angle in angles]
    return [read_polygon([value for point in points for value in point], picture.width, picture.height)], True


def read_mask(shape: Mapping, points: list) -> list[list[float]]:
    """Return the outlines of a mask, which is stored as a PNG for the pixels inside of its box.

    Raises:
        FaultError: The PNG cannot be read, or is empty.
    """
    try:
        with Image.open(io.BytesIO(base64.b64decode(shape.get('mask') or ''))) as image:
            mask = np.asarray(image.convert('L')) > 0
    except (OSError, ValueError, binascii.Error, TypeError):
        raise FaultError('a mask that cannot be read') from None
    if not mask.any():
        raise FaultError('an empty mask')
    left, top = min(point[0] for point in points), min(point[1] for point in points)
    return [[value + (left, top)[i % 2] for i, value in enumerate(outline)] for outline in polygons(mask)]
