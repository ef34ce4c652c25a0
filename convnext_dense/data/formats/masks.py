"""Label maps: a folder of images and a folder of PNGs with the class of each pixel, as numbers or as colours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from convnext_dense.compat.errors import UserError
from convnext_dense.data.formats.class_files import ClassNames, read_class_file
from convnext_dense.data.formats.meaning import IGNORED, LabelMaps, give_meaning
from convnext_dense.data.formats.pairs import Pairing, find_pairs, listed_split, read_lists
from convnext_dense.data.pictures import UNREADABLE, image_size, silent
from convnext_dense.data.records import JPEG, Picture, distinct, split_of

MOST_COLOURS = 256  # of label maps; a photograph has more
MOST_NAMED = 4  # label maps that cannot be used


def find(path: Path, images: Path | None = None, labels: Path | None = None) -> list[Path]:
    """Return the label maps of images in a folder, or else the images that several fit."""
    found = find_pairs(path, images, labels) if path.is_dir() else Pairing()
    return [label_map for _, label_map in found.pairs] or list(found.unclear)


class MapError(UserError):
    """A label map that no training can use: a message on it, and ``kind``, what such label maps are called."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


def read(
    path: Path,
    images: Path | None = None,
    labels: Path | None = None,
    names: Sequence[str] | None = None,
    fix: bool = False,
) -> LabelMaps:
    """Return the data set in a folder; what its values mean is told by names, a file of classes, or the values.

    Args:
        path: The folder.
        images: The folder of the images, where the names of the folders do not tell it.
        labels: The folder of the label maps.
        names: Of the classes, in the order of their numbers, where no file tells values or colours.
        fix: Leave out what is an error otherwise: label maps that cannot be used, and values without a class.

    Raises:
        UserError: A label map cannot be read or has another size than its image, or its values have no meaning.
    """
    found = find_pairs(path, images, labels)
    found.check()
    known = read_class_file(path)
    if names and not (known.numbers or known.colours):
        known = ClassNames(list(distinct(names, '--classes')))
    collection = LabelMaps('label maps', path, [], {}, notes=found.notes(), is_fixed=fix)
    pairs, counted = count_all(found.pairs, known, collection)
    if known.file:
        collection.notes.append(f'{known.file} names the classes')
    values, areas = (sum((getattr(each, key) for each in counted), Counter()) for key in ('values', 'areas'))
    is_lossy = all(label_map.suffix.lower() in JPEG for _, label_map in pairs)
    give_meaning(collection, values, areas, known, is_lossy)
    collection.is_named &= bool(names)
    if collection.recode is None and (fix or not all(each.is_plain for each in counted)):
        collection.recode = {value: value for value in values}
    give_splits(collection, pairs, counted, images or path)
    return collection


def give_splits(
    collection: LabelMaps, pairs: Sequence[tuple[Path, Path]], counted: Sequence[Counted], images: Path
) -> None:
    """Put the pictures of a data set into the splits that lists tell, or else the names of folders and files."""
    path, lists = collection.root, read_lists(collection.root)
    listed = {image: split for image, _ in pairs if (split := listed_split(image, lists))}
    for (image, label_map), each in zip(pairs, counted, strict=True):
        split = listed.get(image, '') if listed else split_of(image, images)
        if not (split or listed) and path in image.parents:
            split = split_of(image, path)
        collection.splits.setdefault(split, []).append(Picture(image, *each.size, (), label_map))
    if listed and (left_out := collection.splits.pop('', [])):
        collection.notes.append(f'left out: {len(left_out)} images that no list of a split names')


class Counted(NamedTuple):
    """What is in a label map."""

    size: tuple[int, int]  # width and height of the image
    values: Counter  # value or colour -> pixels
    areas: Counter  # value or colour -> pixels at the corner of a square of 2 x 2 that are alike
    is_plain: bool  # the file can be trained on as it is: one channel, and no values that 8 bits do not hold


def count_all(
    pairs: Sequence[tuple[Path, Path]], known: ClassNames, collection: LabelMaps
) -> tuple[list[tuple[Path, Path]], list[Counted]]:
    """Return the pairs that can be used, and what is in their label maps.

    These are colours where the classes or any of the label maps have some, or numbers.

    Args:
        pairs: Images and their label maps.
        known: What is known of the classes.
        collection: Takes the faults, if it is fixed.

    Raises:
        UserError: Label maps cannot be read, or have another size than their images.
    """
    pairs, counted = count_usable(pairs, collection)
    values = {value for each in counted for value in each.values}
    has_colours = any(isinstance(value, tuple) for value in values)
    if has_colours or (known.colours and not values <= {*known.numbers, IGNORED}):
        return count_usable(pairs, collection, as_colours=True)
    return pairs, counted


def count_usable(
    pairs: Sequence[tuple[Path, Path]], collection: LabelMaps, as_colours: bool = False
) -> tuple[list[tuple[Path, Path]], list[Counted]]:
    """Return the pairs that can be used, and what is in them, as :func:`count_all` does."""

    def count(pair: tuple[Path, Path]) -> Counted | MapError:
        try:
            return count_values(*pair, as_colours)
        except MapError as error:
            return error

    with silent(), ThreadPoolExecutor() as pool:
        counted = list(pool.map(count, pairs))
    faulty = {pair: each for pair, each in zip(pairs, counted, strict=True) if isinstance(each, MapError)}
    if faulty and (not collection.is_fixed or len(faulty) == len(pairs)):
        raise UserError(report_faulty(list(faulty.values()), len(pairs)))
    for (image, label_map), error in faulty.items():
        collection.faults.add(error.kind, str(label_map), image if image_size(image) else None)
    return [pair for pair in pairs if pair not in faulty], [each for each in counted if isinstance(each, Counted)]


def report_faulty(faulty: Sequence[MapError], number: int) -> str:
    """Return a message on the first label maps that cannot be used, and what to do with many of them."""
    lines = [str(error) for error in faulty[:MOST_NAMED]]
    if len(faulty) > len(lines):
        lines.append(f'These are the first of {len(faulty)} label maps that cannot be used.')
    if len(faulty) < number:
        lines.append('A copy without them: convnext-dense check-data PATH --fix OUT')
    return '\n'.join(lines)


def count_values(image: Path, label_map: Path, as_colours: bool = False) -> Counted:
    """Return how many pixels of the label map of an image have each value, or each colour.

    Raises:
        MapError: It cannot be read, or has another size than its image.
    """
    values, is_plain = read_label_map(label_map, as_colours)
    size = image_size(image)
    if size != values.shape[1::-1]:
        raise MapError(
            'label maps of another size than their images' if size else 'label maps of images that cannot be read',
            f'{label_map} is {values.shape[1]}x{values.shape[0]} (width x height), and its image {image} '
            + (f'is {size[0]}x{size[1]}. Write it at the size of its image.' if size else 'cannot be read.'),
        )
    is_colour = values.ndim == 3
    packed = pack(values) if is_colour else values
    corners = packed[:-1, :-1]
    alike = (corners == packed[1:, :-1]) & (corners == packed[:-1, 1:]) & (corners == packed[1:, 1:])
    found = tally(packed, is_colour)
    if is_colour and len(found) > MOST_COLOURS:
        raise MapError(
            'label maps with more colours than a label map has',
            f'{label_map} has {len(found)} colours, more than a label map has. Save label maps as PNG, not as JPEG; if '
            'it is an image, name the folders with --images DIR --labels DIR.',
        )
    return Counted(size, found, tally(corners[alike], is_colour), is_plain)


def tally(values: np.ndarray, is_colour: bool) -> Counter:
    """Return how often each value is there, or each colour that :func:`pack` packed."""
    found, numbers = (each.tolist() for each in np.unique(values, return_counts=True))
    if is_colour:
        found = [(value >> 16, value >> 8 & 255, value & 255) for value in found]
    return Counter(dict(zip(found, numbers, strict=True)))


def read_label_map(file: Path, as_colours: bool = False) -> tuple[np.ndarray, bool]:
    """Return the values of a label map, (H, W), or (H, W, 3) of one in colours; and whether it is stored like that.

    A palette's indices are the values, unless colours are wanted. Negative values are unlabelled.

    Raises:
        MapError: It cannot be read, or holds something else.
    """
    try:
        with Image.open(file) as image:
            is_deep = image.mode.startswith(('I', 'F'))
            to_rgb = image.mode == 'RGBA' or (as_colours and not is_deep)
            values = np.asarray(image.convert('RGB') if to_rgb else image)
    except UNREADABLE as error:
        text = f'The label map {file} cannot be read: {error}. Write it again, as a PNG.'
        raise MapError('label maps that cannot be read', text) from error
    if values.dtype == bool:
        values = values.astype(np.uint8)
    if not np.issubdtype(values.dtype, np.integer) or values.ndim not in (2, 3):
        raise MapError(
            'label maps that hold no whole numbers',
            f'The label map {file} holds {values.dtype} of shape {values.shape}. Write whole numbers, as a PNG.',
        )
    is_plain = values.ndim == 2 and (values.dtype == np.uint8 or 0 <= values.min() <= values.max() <= IGNORED)
    if np.issubdtype(values.dtype, np.signedinteger):
        values = np.where(values < 0, IGNORED, values)
    if values.ndim == 3 and (values.shape[2] == 2 or (not as_colours and (values[..., :1] == values).all())):
        values = values[..., 0]  # grey with transparency, or in three equal channels
    return (values[..., None].repeat(3, axis=2) if as_colours and values.ndim == 2 else values), is_plain


def pack(colours: np.ndarray) -> np.ndarray:
    """Return one number for each colour of (H, W, 3)."""
    red, green, blue = (colours[..., i].astype(np.int64) for i in range(3))
    return red << 16 | green << 8 | blue


def recoded(label_map: Path, recode: Mapping[object, int]) -> np.ndarray:
    """Return a label map, (H, W) of uint8, with the classes of a data set."""
    is_colour = any(isinstance(value, tuple) for value in recode)
    values, _ = read_label_map(label_map, is_colour)
    if is_colour:
        values = pack(values)
        recode = {red << 16 | green << 8 | blue: number for (red, green, blue), number in recode.items()}
    found, inverse = np.unique(values, return_inverse=True)
    return np.array([recode[int(value)] for value in found], np.uint8)[inverse.reshape(values.shape)]
