"""YOLO: a text file for each image, a line for each object, and a ``data.yaml`` with classes and splits.

Darknet has ``obj.data`` in place of it, with lists of images.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from convnext_dense.compat.errors import UserError, shorten
from convnext_dense.data.annotation import FaultError, bounding_box, number, read_box, read_polygon
from convnext_dense.data.pictures import image_size
from convnext_dense.data.records import (
    IMAGE_SUFFIXES,
    SPLIT_WORDS,
    Collection,
    Faults,
    ImageIndex,
    Picture,
    Thing,
    distinct,
    find_files,
    fold,
    read_lines,
    split_lists,
    split_of,
)

SPLITS = {'train': ('train',), 'val': ('val', 'valid'), 'test': ('test',)}  # split -> its keys in data.yaml
CONFIGS = ('*.y*ml', '*/*.y*ml', '*.data', '*/*.data')  # the first that exists; archives unpack one folder down
CLASS_LISTS = ('classes.txt', '.names', '_darknet.labels', 'labels.txt')  # whole names, or suffixes
SIDES = ('images', 'labels')  # folders of images and of label files, whose other folders agree
LARGEST = 2  # a number that is part of an image's side is 1 at most, or little more
SLACK = 0.01  # of an image's side: what rounding lets a box stick out


def find(path: Path) -> Iterable[Path]:
    """Return the files that name classes and splits at a path, or else the label files."""
    return find_configs(path) or filter(is_label_file, find_files(path, ['.txt']))


def find_configs(path: Path) -> list[Path]:
    """Return the files that name classes and splits, at a path or one folder down; one for each folder."""
    for pattern in CONFIGS:
        files = [path] if path.is_file() else sorted(path.glob(pattern))
        files = [file for file in files if file.is_file() and 'names' in read_config(file)]
        if files:
            return [*{file.parent: file for file in reversed(files)}.values()][::-1]
    return []


def read_config(file: Path) -> dict[str, Any]:
    """Return what a YAML file or Darknet's ``KEY = VALUE`` holds; empty where it is neither, or names no classes.

    Raises:
        UserError: It is no YAML.
    """
    if file.suffix.lower() not in ('.yaml', '.yml', '.data'):
        return {}
    text = file.read_text(encoding='utf-8-sig', errors='replace')
    if not re.search(r'\bnames\b', text):
        return {}
    if file.suffix.lower() == '.data':
        pairs = (line.partition('=') for line in text.split('\n'))
        content = {key.strip(): value.strip() for key, _, value in pairs}
        return content | {'names': None} if 'names' in content else {}  # the list is found by its name
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f'{file} is not YAML: {error}') from error
    return content if isinstance(content, dict) else {}


def is_label_file(file: Path) -> bool:
    """Tell whether the first line of a text file is an object: a class and four numbers or more."""
    with file.open(encoding='utf-8-sig', errors='replace') as opened:
        words = words_of(opened.readline(1000))
    try:
        is_row = len(words) >= 5 and all(abs(float(word)) < 1e4 for word in words)
    except ValueError:
        return False
    return is_row and re.fullmatch(r'\d+(\.0*)?', words[0]) is not None


def words_of(line: str) -> list[str]:
    """Return the numbers of a line, between spaces or commas; a comma within a number is none of these.

    >>> words_of('0, 0.5, 0.25'), words_of('0,0.5,0.25'), words_of('0 0,5 0,5 0,2 0,2')
    (['0', '0.5', '0.25'], ['0', '0.5', '0.25'], ['0', '0,5', '0,5', '0,2', '0,2'])
    """
    words = [word.strip(',;') for word in line.split()]
    return words if len(words) >= 5 else [word for word in re.split(r'[\s,;]+', line) if word]


class LabelFiles:
    """The label files of a data set, found by the image that they are for, and what was met in them.

    Attributes:
        used: Those that an image has -> the image.
        shared: Those that a second image has as well.
        without: Images without a label file.
        boxes: The four numbers of each box, as they are written.
        num_confident: Lines with a sixth number.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.by_folder: dict[Path, dict[str, list[tuple[list[str], Path]]]] = {}
        self.used: dict[Path, Path] = {}
        self.shared: list[Path] = []
        self.without: list[Path] = []
        self.boxes: list[list[float]] = []
        self.num_confident = 0

    def find(self, image: Path) -> Path | None:
        """Return the text file of an image: in ``labels`` where it is in ``images``, beside it, or further up."""
        above = [folder.parent for folder in image.parents if fold(folder.name) == SIDES[0]]
        top = self.root if self.root in image.parents else (*above, image.parent)[0]
        wanted = folders_of(image, top)
        files = self.index(top).get(fold(image.stem), ())
        files = [(len(own), file.stem == image.stem, file) for own, file in files if own == wanted[: len(own)]]
        return max(files)[-1] if files else None

    def index(self, top: Path) -> dict[str, list[tuple[list[str], Path]]]:
        """Return the text files below a folder by their stems, each with the folders that it lies in."""
        if top not in self.by_folder:
            table = self.by_folder[top] = {}
            for file in find_files(top, ['.txt']):
                table.setdefault(fold(file.stem), []).append((folders_of(file, top), file))
        return self.by_folder[top]

    def rows(self, image: Path) -> Iterator[tuple[str, list[str]]]:
        """Yield the place and the words of each object of an image."""
        file = self.find(image)
        if file is None:
            self.without.append(image)
            return
        if self.used.setdefault(file, image) != image:
            self.shared.append(file)
        for i, line in enumerate(file.read_text(encoding='utf-8-sig', errors='replace').split('\n'), 1):
            if words := words_of(line):
                yield f'{file.name}, line {i}', words

    def orphans(self, images: ImageIndex) -> list[Path]:
        """Return the label files whose name no image has."""
        named = {fold(image.stem) for image in images.files}
        return [
            file
            for stem, found in self.index(self.root).items()
            for _, file in found
            if stem not in named and is_label_file(file)
        ]


def folders_of(file: Path, top: Path) -> list[str]:
    """Return the folders that a file lies in, without those that tell images from labels."""
    return [part for part in map(fold, file.relative_to(top).parts[:-1]) if part not in SIDES]


def read(path: Path) -> Collection:
    """Return the data set at a path, a ``data.yaml`` or a folder.

    Raises:
        UserError: There are no images, the file names folders that do not exist, or the numbers are of another kind.
    """
    files = find_configs(path)
    if len(files) > 1:
        raise UserError(f'{path} holds several YOLO data sets, of {shorten(files, 3)}. Give the path of one of them.')
    file = files[0] if files else None
    content = read_config(file) if file else {}
    if 'kpt_shape' in content:
        raise UserError(f'{file} is for key points (kpt_shape), and the models here detect boxes and masks.')
    root = data_root(file, content) if file and not (file.suffix == '.data' and path.is_dir()) else path
    names, images = read_names(file, content, root), ImageIndex(root)
    collection, labels = Collection('YOLO', images.root, names, {}), LabelFiles(images.root)
    faults = collection.faults
    for split, found in find_images(images, labels, file, content, collection.notes):
        pictures = [picture for image in found if (picture := read_picture(image, labels, names, faults))]
        collection.splits.setdefault(split, []).extend(pictures)
    check_boxes(root, labels.boxes)
    if not collection.pictures:
        told = ''.join(f'\n{note}' for note in faults.notes())
        raise UserError(f'{root} has no images with labels. YOLO has images/NAME.jpg and labels/NAME.txt.{told}')
    for found, text in (
        (labels.without, 'images have no label file and are taken as images without objects'),
        (labels.orphans(images), 'label files have no image of their name and are left out'),
        (labels.shared, 'label files are of two images of one name'),
    ):
        if found:
            collection.notes.append(f'{len(found)} {text}: {shorten((file.name for file in found), 3)}')
    if labels.num_confident:
        collection.notes.append(f'{labels.num_confident} lines have a sixth number; it is taken as a confidence')
    return collection


def data_root(file: Path, content: Mapping) -> Path:
    """Return the folder that the paths of a ``data.yaml`` begin in; its own where ``path`` is of another machine."""
    given = Path(str(content.get('path') or '.'))
    return next((root for root in (file.parent / given, file.parent / given.name) if os.path.isdir(root)), file.parent)


def read_names(file: Path | None, content: Mapping, root: Path) -> list[str]:
    """Return the classes; of a data set without a list, none.

    Raises:
        UserError: They are no list, and no mapping of the numbers from 0; or a name is there twice.
    """
    names = content.get('names')
    if names is None:
        return read_list(root)
    if isinstance(names, Mapping):
        keys = {str(key): key for key in names}
        if set(keys) != {str(i) for i in range(len(names))}:
            raise UserError(f'{file}: names must number the classes from 0 without a gap; got {shorten(names, 8)}.')
        names = [names[keys[str(i)]] for i in range(len(names))]
    if not isinstance(names, list) or not names:
        raise UserError(f'{file}: names must be a list of classes; got {names!r}.')
    return distinct([str(name) for name in names], file)


def read_list(root: Path) -> list[str]:
    """Return the classes of a text file with one a line, at the root or beside the labels; none where there is none.

    Raises:
        UserError: Several files list other classes, or a class is there twice.
    """
    files = [file for file in find_files(root, CLASS_LISTS) if {file.name, file.suffix} & {*CLASS_LISTS}]
    files = [file for file in files if not is_label_file(file)]
    lists = {file: read_lines(file) for file in files}
    for file, names in lists.items():
        if names != lists[files[0]]:
            raise UserError(f'{files[0]} and {file} list other classes. Keep the one that the labels were made with.')
    return distinct(lists[files[0]], files[0]) if files else []


def find_images(
    index: ImageIndex, labels: LabelFiles, file: Path | None, content: Mapping, notes: list[str]
) -> Iterator[tuple[str, list[Path]]]:
    """Yield each split with its images.

    Raises:
        UserError: There are no images to train on where the file names them.
    """
    given = {split: content[key] for split, keys in SPLITS.items() for key in keys if content.get(key)}
    is_darknet = file is not None and file.suffix.lower() == '.data'
    found = {}
    for split, places in given.items():
        for place in map(str, places if isinstance(places, list) else [places]):
            images = images_at(index, file, place)
            if images is not None:
                found.setdefault(split, []).extend(images)
            elif split == 'train' and not is_darknet:
                raise UserError(f'{file} names {place!r}, which does not exist below {index.root}. Correct the path.')
            else:
                notes.append(f'{file.name} names {place!r} for {split}, which does not exist')
    yield from found.items() if 'train' in found or (given and not is_darknet) else find_labelled(index, labels, notes)


def find_labelled(index: ImageIndex, labels: LabelFiles, notes: list[str]) -> Iterator[tuple[str, list[Path]]]:
    """Yield the images that have a label file, where nothing names them, with the splits of lists or folders."""
    listed = {
        image: split
        for split, file, lines in split_lists(index.root)
        for line in lines
        if (image := index.find(line, file.parent))
    }
    left = 0
    for image in index.files:
        if labels.find(image):
            yield listed.get(image, '' if listed else split_of(image, index.root)), [image]
        else:
            left += 1
    if left:
        notes.append(f'left out: {left} images without a label file')


def images_at(index: ImageIndex, file: Path, place: str) -> list[Path] | None:
    """Return the images that a ``data.yaml`` names: those of a folder, or of a list in a text file; None for neither.

    An image of a list that is not there is returned as the list names it.
    """
    parts = Path(place.replace('\\', '/'))
    # Roboflow writes ../train/images, one folder too high; paths of other machines begin anywhere. The images of
    # valid/images are not those of images.
    inside = [Path(*parts.parts[i:]) for i in range(len(parts.parts))]
    inside = [part for part in inside if splits_named(part) == splits_named(parts)]
    for found in (index.root / parts, file.parent / parts, *(index.root / part for part in inside)):
        found = Path(os.path.normpath(found))
        if os.path.isdir(found):
            return list(find_files(found, IMAGE_SUFFIXES))
        if os.path.isfile(found):
            return [index.find(line, found.parent) or index.root / line for line in read_lines(found)]
    return None


def splits_named(path: Path) -> set[str]:
    """Return the splits that the names of a path are."""
    return {SPLIT_WORDS[part] for part in map(str.lower, path.parts) if part in SPLIT_WORDS}


def read_picture(image: Path, labels: LabelFiles, names: list[str], faults: Faults) -> Picture | None:
    """Return an image with its objects; an image without a text file has none."""
    size = image_size(image)
    if size is None:
        faults.add('image files that are missing or cannot be read', str(image))
        return None
    picture = Picture(image, *size, [])
    for place, words in labels.rows(image):
        try:
            label, values = read_line(words, names)
            if len(values) == 5 and 0 <= values[4] <= 1:
                labels.num_confident += 1
                values.pop()
            if len(values) == 4:
                labels.boxes.append(values)
            picture.things.append(read_thing(label, values, picture))
        except FaultError as error:
            faults.add(str(error), place, image)
    return picture


def read_line(words: Sequence[str], names: list[str]) -> tuple[int, list[float]]:
    """Return the class and the numbers of a line.

    Raises:
        FaultError: The class has no name, or the others are no numbers.
    """
    label = number(words[0]) if re.fullmatch(r'-?[\d.]+', words[0]) else 0.5
    if label % 1:
        raise FaultError('a class that is not a whole number')
    if label < 0 or (names and label >= len(names)):
        raise FaultError(f'a class that is not one of the {len(names)} in data.yaml')
    return int(label), [number(word) for word in words[1:]]


def read_thing(label: int, values: Sequence[float], picture: Picture) -> Thing:
    """Return an object: of centre, width and height, or of a polygon, in parts of the image's sides.

    Raises:
        FaultError: The numbers are neither.
    """
    width, height = picture.width, picture.height
    if len(values) == 4:
        x, y, w, h = (value * side for value, side in zip(values, (width, height) * 2, strict=True))
        return Thing(label, read_box((x - w / 2, y - h / 2, w, h), width, height))
    if len(values) < 6 or len(values) % 2:
        raise FaultError('a line that is neither a box (5 numbers) nor a polygon (7 or more, odd)')
    scaled = [value * (width, height)[i % 2] for i, value in enumerate(values)]
    polygon = [read_polygon(scaled, width, height)]
    return Thing(label, read_box(bounding_box(polygon), width, height), polygon)


def check_boxes(root: Path, boxes: Sequence[Sequence[float]]) -> None:
    """Raise a :class:`UserError` where the boxes of a data set are pixels, or corners in place of centre and size."""
    large = sum(max(box) > LARGEST for box in boxes)
    outside = sum(min(x - w / 2, y - h / 2) < -SLACK or max(x + w / 2, y + h / 2) > 1 + SLACK for x, y, w, h in boxes)
    are_corners = all(0 <= x0 < x1 <= 1 + SLACK and 0 <= y0 < y1 <= 1 + SLACK for x0, y0, x1, y1 in boxes)
    if large > len(boxes) / 2:
        raise UserError(
            f'{root}: {large} of {len(boxes)} boxes have numbers above {LARGEST}; they look like pixels. YOLO has '
            "parts of the image's sides, 0 to 1: divide x and width by the image's width, y and height by its height."
        )
    if outside > len(boxes) / 2 and are_corners:
        raise UserError(
            f'{root}: read as centre and size, as YOLO writes them, {outside} of {len(boxes)} boxes stick out of their '
            'images; read as left, top, right and bottom, none does. Write "CLASS X Y WIDTH HEIGHT" with the centre: '
            '(left + right) / 2, (top + bottom) / 2, right - left, bottom - top.'
        )
