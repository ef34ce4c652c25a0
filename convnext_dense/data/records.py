"""A data set as every format is read: pictures, the objects on them, and the classes."""

import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import unquote

from convnext_dense.compat.errors import UserError, shorten

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp', '.ppm', '.pgm', '.jp2', '.gif')
UNREAD = ('.heic', '.heif', '.avif', '.npy', '.dcm')  # images that nothing here opens
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
    """An object on a picture."""

    label: int  # number of its class, from 0
    box: tuple[float, float, float, float]  # left, top, width and height in pixels
    # polygons [[x0, y0, x1, y1, ...], ...] in pixels, run lengths as in COCO's format, or None
    segmentation: list[list[float]] | dict | None = None
    # it is neither learned nor counted as missed: COCO's crowds and Pascal VOC's difficult objects
    is_crowd: bool = False


class Picture(NamedTuple):
    """An image file with what is known of it."""

    path: Path  # the file
    width: int  # in pixels, as it is loaded
    height: int  # in pixels, as it is loaded
    things: Sequence[Thing] = ()  # the objects on it
    label_map: Path | None = None  # file with the class of each pixel, for semantic segmentation


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
        times = {kind: 'once' if len(places) == 1 else f'{len(places)} times' for kind, places in self.places.items()}
        return [f'left out: {kind}, {times[kind]}: {shorten(places, 3)}' for kind, places in self.places.items()]


@dataclass
class Collection:
    """A data set."""

    title: str  # what it is, in words
    root: Path  # the folder that its files lie in
    classes: list[str]  # names in the order of their numbers
    splits: dict[str, list[Picture]]  # 'train', 'val', 'test' -> pictures; '' are those of no split
    palette: list[tuple[int, int, int]] | None = None  # a colour (R, G, B) for each class, where the data has them
    notes: list[str] = field(default_factory=list)  # what the user should know
    faults: Faults = field(default_factory=Faults)  # the entries that could not be read

    @property
    def pictures(self) -> list[Picture]:
        """The pictures of all splits."""
        return [picture for pictures in self.splits.values() for picture in pictures]


def split_of(path: Path | PurePosixPath, root: Path) -> str:
    """Return the split that the name of a list or of the folders above it tells; '' where they tell none.

    The name of an image says nothing: ``train_station.jpg`` and ``test_car.jpg`` are of one set.

    >>> split_of(Path('d/annotations/instances_val2017.json'), Path('d')), split_of(Path('d/train/a.png'), Path('d'))
    ('val', 'train')
    >>> split_of(Path('d/training.png'), Path('d')), split_of(Path('train/d/a.png'), Path('train/d'))
    ('', '')
    """
    *folders, name = ('', *path.relative_to(root).parts)
    for part in reversed([*folders, '' if path.suffix.lower() in IMAGE_SUFFIXES else name]):
        for word in re.split(r'[^a-zA-Z0-9]+', part.lower()):
            if split := SPLIT_WORDS.get(word) or SPLIT_WORDS.get(word.removesuffix('annot')):
                return split
    return ''


def split_lists(root: Path) -> list[tuple[str, Path, list[str]]]:
    """Return split, file and lines of the lists below a folder whose whole name is that of a split.

    The last one counts: train, val and test before trainval.
    """
    found = []
    for file in find_files(root, ['.txt']):
        word = file.stem.lower()
        if split := SPLIT_WORDS.get(word):
            found.append((word != 'trainval', ('train', 'val', 'test').index(split), split, file))
    return [(split, file, read_lines(file)) for *_, split, file in sorted(found)]


def read_lines(file: Path) -> list[str]:
    """Return the lines of a text file that are not empty, without what some editors put before the first."""
    lines = file.read_text(encoding='utf-8-sig', errors='replace').split('\n')
    return [line.strip() for line in lines if line.strip()]


def find_files(root: Path, suffixes: Sequence[str]) -> Iterator[Path]:
    """Yield the files below a folder that end so, in a fixed order, but hidden ones and what an import wrote."""
    for folder, folders, names in os.walk(root, followlinks=True):
        if IMPORTED in names and Path(folder) != root:
            folders.clear()
            continue
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith('.') and name != '__MACOSX' and not leads_back(os.path.join(folder, name))
        )
        for name in sorted(names):
            if name.lower().endswith(tuple(suffixes)) and not name.startswith('.'):
                yield Path(folder, name)


def leads_back(folder: str) -> bool:
    """Tell whether a folder is a link to one that it lies in, where a walk would not end."""
    if not os.path.islink(folder):
        return False
    place = Path(os.path.realpath(os.path.dirname(folder)))
    return Path(os.path.realpath(folder)) in (place, *place.parents)


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


def read_json(file: Path, keys: Sequence[str]) -> dict[str, Any]:
    """Return what a JSON file holds: an object with these keys, of which the first has a list.

    Raises:
        UserError: It is something else.
    """
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f'{file} is not JSON: {error}. Export or copy it again.') from error
    if not isinstance(content, dict) or not isinstance(content.get(keys[0]), list):
        raise UserError(f'{file} has no list "{keys[0]}". Such files have {", ".join(keys)}. Export it again.')
    return content


def distinct(names: Sequence[str], place: object) -> Sequence[str]:
    """Return names of classes, each of which is there once, for those after a second one would count one too many.

    Raises:
        UserError: One is there twice.
    """
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(
            f'{place} names {shorten(twice, 8)} more than once. Give each class a name of its own; where several '
            'values of label maps are of one class, write "VALUE NAME" lines.'
        )
    return names


def fold(name: str) -> str:
    """Return a name without what file systems and addresses change: case, the form of accents, and %20.

    >>> fold('IMG%201.JPG')
    'img 1.jpg'
    """
    return unicodedata.normalize('NFC', unquote(name)).casefold()


def fold_stem(name: str) -> str:
    """Return a name without the suffix of an image, folded.

    >>> fold_stem('Frame.v1.PNG'), fold_stem('frame.v1')
    ('frame.v1', 'frame.v1')
    """
    path = PurePosixPath(name)
    return fold(path.stem if path.suffix.lower() in IMAGE_SUFFIXES + UNREAD else path.name)


# What of a path has to agree, the most of it first. Thousands of frames of a name are told apart by their folder.
KEYS: tuple[Callable[[Sequence[str]], str], ...] = (
    lambda parts: '/'.join(parts[-2:]),
    lambda parts: parts[-1],
    lambda parts: fold(parts[-1]),
    lambda parts: fold_stem(parts[-1]),
)
# folders of annotations, whose images lie beside them
BESIDE_IMAGES = re.compile(r'(^|[^a-z])(ann|label|json|xml)', re.I)


class ImageIndex:
    """The image files below a folder, found by whatever part of their path an annotation names.

    Attributes:
        root: The folder; the one above where it holds annotations alone.
        files: The image files.
        met: Those that were found, without ``..`` in their paths.

    Raises:
        UserError: There are images, and all of a kind that is not read.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.files = root, list(find_files(root, IMAGE_SUFFIXES))
        if not self.files and BESIDE_IMAGES.search(root.name):
            self.root, self.files = root.parent, list(find_files(root.parent, IMAGE_SUFFIXES))
        if not self.files and (others := list(find_files(self.root, UNREAD))):
            raise UserError(
                f'{self.root} has no image of a kind that is read, but {shorten((file.name for file in others), 3)}. '
                f'Convert them to PNG or JPEG; read are {", ".join(IMAGE_SUFFIXES)}.'
            )
        self.met: set[str] = set()
        self.tables: list[dict[str, list[Path]]] = [{} for _ in KEYS]
        for file in self.files:
            for key, table in zip(KEYS, self.tables, strict=True):
                table.setdefault(key(file.parts), []).append(file)

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
        found = Path(os.path.normpath(beside.joinpath(*parts)))
        if found.suffix.lower() not in IMAGE_SUFFIXES or not os.path.isfile(found):  # no error for any text
            found = self.match(parts, beside, split)
        if found:
            self.met.add(os.path.normpath(found))
        return found

    def match(self, parts: Sequence[str], beside: Path, split: str) -> Path | None:
        """Return the file whose name agrees most with a path, and of several the nearest; see :meth:`find`."""
        for key, table in zip(KEYS, self.tables, strict=True):
            best = table.get(key(parts)) or []
            pictures = [file for file in best if not is_label_map(file, self.root)]
            has_other_suffix = table is self.tables[-1] and PurePosixPath(parts[-1]).suffix.lower() in IMAGE_SUFFIXES
            if has_other_suffix:
                best = pictures  # a.png among the masks is not the a.jpg that is missing
            if best:
                best = most(best, lambda file: common(reversed(file.parts[:-1]), reversed(parts[:-1])))
                best = [file for file in pictures if file in best] or best
                best = most(best, lambda file: common(file.parts, beside.parts))
                best = [file for file in best if split and split_of(file, self.root) == split] or best
            if len(best) > 1 and not has_other_suffix:
                raise UserError(
                    f'The annotations name the image {"/".join(parts)!r}, and several files are called so: '
                    f'{shorten(best, 3)}. Give each image a name of its own, or write the folders into the annotations.'
                )
            if len(best) == 1:
                return best[0]
        return None

    def left(self) -> list[Path]:
        """Return the images that no annotation named."""
        return [
            file for file in self.files if os.path.normpath(file) not in self.met and not is_label_map(file, self.root)
        ]


def most(files: list[Path], key: Callable[[Path], int]) -> list[Path]:
    """Return those with the largest key."""
    if len(files) == 1:
        return files
    keys = [key(file) for file in files]
    largest = max(keys)
    return [file for file, own in zip(files, keys, strict=True) if own == largest]


def common(ours: Iterable[str], theirs: Iterable[str]) -> int:
    """Return how many folders agree from the beginning on, but for what :func:`fold` takes away."""
    count = 0
    for one, other in zip(ours, theirs, strict=False):
        if one != other and fold(one) != fold(other):
            break
        count += 1
    return count
