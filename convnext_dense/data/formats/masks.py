"""Label maps: a folder of images and a folder of PNGs with the class of each pixel, as numbers or as colours."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from convnext_dense.compat.errors import UserError, shorten
from convnext_dense.data.pictures import image_size
from convnext_dense.data.records import (
    IMAGE_SUFFIXES,
    Collection,
    Picture,
    bare_name,
    find_files,
    is_label_map,
    split_of,
)

IGNORED = 255
MOST_COLOURS = 256  # of label maps; a photograph has more
NOT_CLASSES = re.compile(r'[_\-](color|colors|instanceids|instances|polygons|vis|overlay)$', re.I)
CLASS_FILES = ('*class*.txt', '*class*.csv', 'labelmap.txt', 'labels.txt', 'names.txt')


def find(path: Path, images: Path | None = None, labels: Path | None = None) -> str:
    """Say what files of this format are at a path; empty where there are none."""
    pairs = find_pairs(path, images, labels) if path.is_dir() else []
    return f'label maps: {len(pairs)} images with one' if pairs else ''


def find_pairs(root: Path, images: Path | None = None, labels: Path | None = None) -> list[tuple[Path, Path]]:
    """Return images with their label maps, whose names agree but for suffix and affixes such as ``_mask``.

    Args:
        root: The folder of both.
        images: The folder of the images, where the names of the folders do not tell it.
        labels: The folder of the label maps.
    """
    if images and labels:
        sides = [*find_files(images, IMAGE_SUFFIXES)], [*find_files(labels, IMAGE_SUFFIXES)]
        roots = images, labels
    else:
        sides, roots = ([], []), (root, root)
        for file in find_files(root, IMAGE_SUFFIXES):
            sides[is_label_map(file, root)].append(file)
    by_name: dict[str, list[Path]] = {}
    for file in sides[1]:
        if not NOT_CLASSES.search(file.stem):
            by_name.setdefault(bare_name(file), []).append(file)
    pairs = []
    for file in sides[0]:
        found = by_name.get(bare_name(file), ())
        split, folder = split_of(file, roots[0]), file.parent.name
        same = [each for each in found if split_of(each, roots[1]) == split] or found
        near = [each for each in same if each.parent.name == folder or each.parent == file.parent] or same
        trained = [each for each in near if 'trainids' in each.stem.lower()] or near
        if trained:
            pairs.append((file, trained[0]))
    return pairs


@dataclass
class LabelMaps(Collection):
    """A data set of label maps.

    Attributes:
        recode: Value or colour (R, G, B) in the files -> class, 255 for unlabelled; None where the values are classes.
        reduce_zero_label: 0 is unlabelled, and the classes count from 1.
    """

    recode: Mapping[object, int] | None = None
    reduce_zero_label: bool = False


def read(path: Path, images: Path | None = None, labels: Path | None = None) -> LabelMaps:
    """Return the data set in a folder; what its values mean is told by a file of classes, or by the values.

    Raises:
        UserError: A label map cannot be read or has another size than its image, or its values have no meaning.
    """
    pairs = find_pairs(path, images, labels)
    with ThreadPoolExecutor() as pool:
        counted = list(pool.map(lambda pair: count_values(*pair), pairs))
    values = sum((counts for _, counts in counted), Counter())
    names, file = read_class_file(path)
    collection = LabelMaps('label maps', path, [], {})
    if file:
        collection.notes.append(f'classes of {file}')
    is_colour = any(isinstance(value, tuple) for value in values)
    give_meaning(collection, values, names, is_colour)
    roots = (images or path, path)
    for (image, label_map), (size, _) in zip(pairs, counted, strict=True):
        split = split_of(image, roots[0]) or (split_of(image, path) if path in image.parents else '')
        collection.splits.setdefault(split, []).append(Picture(image, *size, (), label_map))
    return collection


def count_values(image: Path, label_map: Path) -> tuple[tuple[int, int], Counter]:
    """Return width and height of an image, and how many pixels of its label map have each value, or each colour.

    Raises:
        UserError: It cannot be read, or has another size than its image.
    """
    values = read_label_map(label_map)
    size = image_size(image)
    if size != values.shape[1::-1]:
        raise UserError(
            f'{label_map} is {values.shape[1]}x{values.shape[0]} (width x height), and its image {image} is '
            f'{f"{size[0]}x{size[1]}" if size else "no image"}. Write the label map at the size of its image.'
        )
    if values.ndim == 2:
        found, numbers = np.unique(values, return_counts=True)
        return size, Counter(dict(zip(map(int, found), map(int, numbers), strict=True)))
    packed = pack(values)
    found, numbers = np.unique(packed, return_counts=True)
    if len(found) > MOST_COLOURS:
        raise UserError(
            f'{label_map} has {len(found)} colours, more than a label map has. Save label maps as PNG, not as JPEG; if '
            'it is an image, name the folders with --images DIR --labels DIR.'
        )
    colours = [(int(value) >> 16, int(value) >> 8 & 255, int(value) & 255) for value in found]
    return size, Counter(dict(zip(colours, map(int, numbers), strict=True)))


def read_label_map(file: Path) -> np.ndarray:
    """Return the values of a label map, (H, W); of one in colours, (H, W, 3). A palette's indices are the values.

    Raises:
        UserError: It cannot be read, or holds something else.
    """
    try:
        with Image.open(file) as image:
            values = np.asarray(image.convert('RGB') if image.mode == 'RGBA' else image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f'The label map {file} cannot be read: {error}. Write it again, as a PNG.') from error
    if values.dtype == bool:
        values = values.astype(np.uint8)
    if values.ndim == 3 and values.shape[2] == 2:  # grey with transparency
        values = values[..., 0]
    if not np.issubdtype(values.dtype, np.integer) or values.ndim not in (2, 3):
        raise UserError(
            f'The label map {file} holds {values.dtype} of shape {values.shape}; a PNG with numbers is read.'
        )
    is_grey = values.ndim == 3 and (values[..., :1] == values).all()
    return values[..., 0] if is_grey else values


def pack(colours: np.ndarray) -> np.ndarray:
    """Return one number for each colour of (H, W, 3)."""
    red, green, blue = (colours[..., i].astype(np.int64) for i in range(3))
    return red << 16 | green << 8 | blue


def read_class_file(path: Path) -> tuple[dict[str, object], Path | None]:
    """Return name -> value or colour of the file of classes in a folder, and the file; None for a value not told."""
    for pattern in CLASS_FILES:
        for file in sorted(path.rglob(pattern)):
            lines = file.read_text(encoding='utf-8-sig', errors='replace').splitlines()
            found = [parse_class(line) for line in lines]
            names = {name: value for name, value in filter(None, found) if not is_heading(name)}
            if names:
                return names, file
    return {}, None


def parse_class(line: str) -> tuple[str, object] | None:
    """Return the name of a class with its number or its colour, as a line of a text or CSV file tells them.

    >>> parse_class('road:128,64,128::'), parse_class('0, background'), parse_class('traffic light')
    (('road', (128, 64, 128)), ('background', 0), ('traffic light', None))
    """
    if line.lstrip().startswith('#'):
        return None
    fields = [field.strip(' "\'') for field in re.split(r'[,;:\t]', line)]
    if len(fields) == 1:
        words = fields[0].split()
        numbers = [word for word in words if word.isdigit()]
        fields = [' '.join(word for word in words if not word.isdigit()), *numbers]
    numbers = [int(field) for field in fields if field.isdigit()]
    name = next((field for field in fields if field and not field.isdigit()), '')
    if not name:
        return None
    value = tuple(numbers[-3:]) if len(numbers) >= 3 else numbers[0] if numbers else None
    return name, value


def is_heading(name: str) -> bool:
    """Tell whether a word heads the columns of a table."""
    return name.lower() in ('name', 'names', 'class', 'label', 'pixel value', 'classes')


def give_meaning(
    collection: LabelMaps, values: Mapping[object, int], names: Mapping[str, object], is_colour: bool
) -> None:
    """Give the classes of a data set and the meaning of its values.

    Raises:
        UserError: There are values that no class has.
    """
    if any(value is not None for value in names.values()):
        use_table(collection, values, names, is_colour)
    elif is_colour:
        number_colours(collection, values)
    elif names:
        use_names(collection, values, [*names])
    else:
        number_values(collection, values)
    if len(collection.classes) < 2:
        raise UserError(
            f'{collection.root}: the label maps have one class, {shorten(collection.classes, 3)}. Every pixel would '
            'be of it, and nothing could be learned: give the background a value of its own.'
        )


def use_table(
    collection: LabelMaps, values: Mapping[object, int], names: Mapping[str, object], is_colour: bool
) -> None:
    """Take the values of a file of classes; the class void, and 255, are unlabelled.

    Raises:
        UserError: The label maps have other values.
    """
    table = {
        value: name for name, value in names.items() if isinstance(value, tuple) == is_colour and value is not None
    }
    void = {value for value, name in table.items() if name.lower() in ('void', 'ignore', 'unlabeled', 'unlabelled')}
    collection.classes = [name for value, name in table.items() if value not in void]
    recode = {value: collection.classes.index(name) for value, name in table.items() if value not in void}
    recode |= dict.fromkeys(void, IGNORED) | ({} if is_colour else {IGNORED: recode.get(IGNORED, IGNORED)})
    if unknown := {value: count for value, count in values.items() if value not in recode}:
        raise UserError(
            f'{collection.root}: the label maps hold {shorten(sorted(unknown), 3)}, which the file of classes does not '
            f'name; it names {shorten(table, 8)}. Add a line for each.'
        )
    if is_colour:
        collection.palette = [value for value in table if value not in void]
    is_plain = not is_colour and all(value == number for value, number in recode.items())
    collection.recode = None if is_plain else recode


def number_colours(collection: LabelMaps, values: Mapping[object, int]) -> None:
    """Number the colours, the most frequent one first."""
    colours = sorted(values, key=lambda colour: (-values[colour], colour))
    collection.classes = ['_'.join(map(str, ('colour', *as_colour(colour)))) for colour in colours]
    collection.palette = [as_colour(colour) for colour in colours]
    collection.recode = {as_colour(colour): i for i, colour in enumerate(colours)}
    collection.notes.append(
        'no file of classes: the colours are numbered, the most frequent one first. Name them in classes.txt, a line '
        'each: NAME R G B'
    )


def as_colour(value: object) -> tuple[int, int, int]:
    """Return a colour; a map that happens to be grey has numbers in a data set of colours."""
    return value if isinstance(value, tuple) else (value, value, value)


def use_names(collection: LabelMaps, values: Mapping[object, int], names: list[str]) -> None:
    """Take names in the order of the values; where there is a value more than names, 0 is unlabelled.

    Raises:
        UserError: There are larger values.
    """
    largest = max((value for value in values if value != IGNORED), default=0)
    if largest > len(names):
        raise UserError(
            f'{collection.root}: the label maps hold values up to {largest}, and there are {len(names)} names of '
            'classes. Name every value, or write "VALUE NAME" lines into the file of classes.'
        )
    collection.classes = names
    collection.reduce_zero_label = largest == len(names)
    if collection.reduce_zero_label:
        collection.notes.append(f'the values are 1 to {largest} for {largest} names: 0 is taken as unlabelled')


def number_values(collection: LabelMaps, values: Mapping[object, int]) -> None:
    """Number the values of a data set that names no classes; 0 and 255 alone are background and foreground."""
    found = sorted(values)
    inner = [value for value in found if value != IGNORED]
    if found == [0, IGNORED]:
        collection.classes, collection.recode = ['background', 'foreground'], {0: 0, IGNORED: 1}
        collection.notes.append('the label maps hold 0 and 255 alone: background and foreground')
    elif inner and len(inner) > inner[-1] // 2:
        collection.classes = [f'class_{i}' for i in range(inner[-1] + 1)]
        collection.notes.append(
            'no file of classes: they are numbered. Name them with --classes a,b,c or in classes.txt'
        )
    else:
        collection.classes = [f'value_{value}' for value in inner]
        collection.recode = {value: i for i, value in enumerate(inner)} | {IGNORED: IGNORED}
        collection.notes.append(
            f'the values {shorten(inner, 8)} are far apart: they are numbered in their order. Name them in '
            'classes.txt, a line each: VALUE NAME'
        )


def recoded(label_map: Path, recode: Mapping[object, int]) -> np.ndarray:
    """Return a label map, (H, W) of uint8, with the classes of a data set."""
    values = read_label_map(label_map)
    is_colour = any(isinstance(value, tuple) for value in recode)
    if is_colour:
        values = pack(values if values.ndim == 3 else np.repeat(values[..., None], 3, axis=2))
        recode = {red << 16 | green << 8 | blue: number for (red, green, blue), number in recode.items()}
    found, inverse = np.unique(values, return_inverse=True)
    return np.array([recode[int(value)] for value in found], np.uint8)[inverse.reshape(values.shape)]
