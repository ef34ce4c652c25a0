"""A data set as every format is read: pictures, the objects on them, and the classes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from convnext_dense.compat.errors import UserError

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp', '.ppm', '.pgm', '.jp2', '.gif')
EXAMPLES = 4  # of each kind of fault
IMPORTED = '.imported'  # file in a folder that an import wrote, which may lie inside of the data
# Words in the names of files and folders -> split.
SPLIT_WORDS = {
    'train': 'train', 'training': 'train', 'trainval': 'train', 'train2017': 'train',
    'val': 'val', 'valid': 'val', 'validation': 'val', 'val2017': 'val', 'dev': 'val',
    'test': 'test', 'testing': 'test', 'test2017': 'test',
}  # fmt: skip
LABEL_WORDS = ('label', 'mask', 'annot', 'segmentation', 'groundtruth', 'ground_truth')  # in a folder's name
LABEL_NAMES = ('gt', 'gts', 'seg', 'ann', 'anns', 'gtfine', 'gtcoarse')  # a folder's whole name
IMAGE_WORDS = ('image', 'img', 'photo', 'rgb', 'input')  # in a folder's name
JPEG = ('.jpg', '.jpeg')
# What may end or begin a file's name, on the one side or on the other. CamVid's L is a capital; stereo pairs have l, r.
LABEL_AFFIX = re.compile(
    r'[_\-.](gtfine|gtcoarse|labeltrainids|labelids|masks?(_\d+)?|labels?|gt|seg|segmentation|annotation|(?-i:L))$',
    re.I,
)
WEAK_AFFIX = re.compile(r'^(masks?|labels?|gt|seg)[_\-.]|[_\-.]L$')  # of images as well, where folders tell more
IMAGE_AFFIX = re.compile(r'^(images?|img)[_\-.]|[_\-.](leftimg8bit|sat|image|img|rgb)$', re.I)


class Thing(NamedTuple):
    """An object on a picture.

    Attributes:
        label: Number of its class, from 0.
        box: Left, top, width and height in pixels.
        segmentation: Polygons ``[[x0, y0, x1, y1, ...], ...]`` in pixels, run lengths as in COCO's format, or None.
        is_crowd: It is neither learned nor counted as missed: COCO's crowds and Pascal VOC's difficult objects.
    """

    label: int
    box: tuple[float, float, float, float]
    segmentation: list[list[float]] | dict | None = None
    is_crowd: bool = False


class Picture(NamedTuple):
    """An image file with what is known of it.

    Attributes:
        path: The file.
        width: In pixels, as it is loaded.
        height: In pixels, as it is loaded.
        things: The objects on it.
        label_map: File with the class of each pixel, for semantic segmentation.
    """

    path: Path
    width: int
    height: int
    things: Sequence[Thing] = ()
    label_map: Path | None = None


class Faults:
    """What was wrong with entries that could not be read, by kind, with the places of the first few."""

    def __init__(self) -> None:
        self.places: dict[str, list[str]] = {}
        self.examples: dict[str, list[tuple[Path, object]]] = {}  # image, and its box as it was given

    def add(self, kind: str, place: str, image: Path | None = None, box: object = None) -> None:
        """Note a fault, with the image that it is on and the box that it has."""
        self.places.setdefault(kind, []).append(place)
        if image is not None and len(examples := self.examples.setdefault(kind, [])) < EXAMPLES:
            examples.append((image, box))

    def notes(self) -> list[str]:
        """Return one line for each kind of fault."""
        return [f'left out: {kind}, {len(places)} times: {some(places)}' for kind, places in self.places.items()]


@dataclass
class Collection:
    """A data set.

    Attributes:
        title: What it is, in words.
        root: The folder that its files lie in.
        classes: Names in the order of their numbers.
        splits: 'train', 'val', 'test' -> pictures; '' are those of no split.
        palette: A colour (R, G, B) for each class, where the data has them.
        notes: What the user should know.
        faults: The entries that could not be read.
    """

    title: str
    root: Path
    classes: list[str]
    splits: dict[str, list[Picture]]
    palette: list[tuple[int, int, int]] | None = None
    notes: list[str] = field(default_factory=list)
    faults: Faults = field(default_factory=Faults)

    @property
    def pictures(self) -> list[Picture]:
        """The pictures of all splits."""
        return [picture for pictures in self.splits.values() for picture in pictures]


def some(items: Iterable[object], most: int = 3) -> str:
    """Name the first few.

    >>> some('abcd', most=2)
    'a, b, ... (4)'
    """
    items = list(map(str, items))
    return ', '.join(items[:most]) + (f', ... ({len(items)})' if len(items) > most else '')


def split_of(path: Path | PurePosixPath, root: Path) -> str:
    """Return the split that the names of a file or of the folders above it tell; '' where they tell none.

    >>> split_of(Path('d/annotations/instances_val2017.json'), Path('d')), split_of(Path('d/train/a.png'), Path('d'))
    ('val', 'train')
    >>> split_of(Path('d/training.png'), Path('d')), split_of(Path('train/d/a.png'), Path('train/d'))
    ('train', '')
    """
    for part in reversed(path.relative_to(root).with_suffix('').parts):
        for word in re.split(r'[^a-zA-Z0-9]+', part.lower()):
            if split := SPLIT_WORDS.get(word) or SPLIT_WORDS.get(word.removesuffix('annot')):
                return split
    return ''


def find_files(root: Path, suffixes: Sequence[str]) -> Iterator[Path]:
    """Yield the files below a folder that end so, in a fixed order, but hidden ones and what an import wrote."""
    for folder, folders, names in os.walk(root, followlinks=True):
        if IMPORTED in names:
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith('.') and name != '__MACOSX')
        for name in sorted(names):
            if name.lower().endswith(tuple(suffixes)) and not name.startswith('.'):
                yield Path(folder, name)


def is_label_map(file: Path, root: Path) -> bool:
    """Tell by its name, or else by the innermost folder whose name tells it, whether an image file is a label map.

    >>> names = ('masks/img_1.png', 'images/1_l.png', 'images/1_mask.png', 'mask_1.png', 'images/mask_1.png')
    >>> [is_label_map(Path('face_mask_data') / name, Path('face_mask_data')) for name in names]
    [True, False, True, True, False]
    """
    is_jpeg = file.suffix.lower() in JPEG
    is_weak = bool(WEAK_AFFIX.search(file.stem))
    if (found := LABEL_AFFIX.search(file.stem)) and not is_weak:
        return not is_jpeg or 'mask' in found[0].lower()
    for folder in map(str.lower, reversed(file.relative_to(root).parts[:-1])):
        if folder in LABEL_NAMES or any(word in folder for word in LABEL_WORDS):
            return True
        if any(word in folder for word in IMAGE_WORDS):
            return False
    return is_weak and not is_jpeg


def bare_name(file: Path) -> str:
    """Return a file's name without suffix and affixes.

    >>> bare_name(Path('a_000019_gtFine_labelIds.png')), bare_name(Path('a_000019_leftImg8bit.png'))
    ('a_000019', 'a_000019')
    """
    name = file.stem
    while match := next(filter(None, (affix.search(name) for affix in (LABEL_AFFIX, WEAK_AFFIX, IMAGE_AFFIX))), None):
        name = name[: match.start()] + name[match.end() :]
    return name or file.stem


def name_first(title: str, files: Iterable[Path]) -> str:
    """Say what files were found by the first of them; empty where there are none."""
    first = next(iter(files), None)
    return f'{title}: {first.name} and others' if first else ''


class ImageIndex:
    """The image files below a folder, found by whatever part of their path an annotation names."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files = list(find_files(root, IMAGE_SUFFIXES))
        self.by_name: dict[str, list[Path]] = {}
        for file in self.files:
            self.by_name.setdefault(file.name, []).append(file)
            if file.stem != file.name:
                self.by_name.setdefault(file.stem, []).append(file)

    def find(self, name: str, beside: Path, split: str = '') -> Path | None:
        """Return the file that an annotation means; None where there is none.

        Args:
            name: What the annotation says: a name, a path of another machine, an address; with or without suffix.
            beside: The folder of the annotation, where a relative path begins.
            split: That of the annotation, where it has one.

        Raises:
            UserError: Several files are meant equally well.
        """
        parts = PurePosixPath(name.replace('\\', '/').partition('?')[0]).parts
        if not parts:
            return None
        exact = beside.joinpath(*parts)
        if exact.is_file() and exact.suffix.lower() in IMAGE_SUFFIXES:
            return exact
        best, length = [], 0
        for file in self.by_name.get(parts[-1]) or ():
            common = common_ends(file, parts)
            if common > length:
                best, length = [], common
            if common == length:
                best.append(file)
        best = [file for file in best if beside in file.parents] or best
        best = [file for file in best if not is_label_map(file, self.root)] or best
        near = [file for file in best if split and split_of(file, self.root) == split] or best
        if len(near) > 1:
            raise UserError(
                f'The annotations name the image {name!r}, and several files are called so: {some(near)}. Give each '
                'image a name of its own, or write the folders into the annotations.'
            )
        return near[0] if near else None


def common_ends(file: Path, parts: Sequence[str]) -> int:
    """Return how many names a path and another one share, counted from the end; the last name is known to agree."""
    count = 1
    for ours, theirs in zip(reversed(file.parts[:-1]), reversed(parts[:-1]), strict=False):
        if ours != theirs:
            break
        count += 1
    return count
