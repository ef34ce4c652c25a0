"""YOLO: a text file for each image, a line for each object, and a ``data.yaml`` with classes and splits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from convnext_dense.compat.errors import UserError, shorten
from convnext_dense.data.annotation import FaultError, bounding_box, number, read_box, read_polygon
from convnext_dense.data.pictures import image_size
from convnext_dense.data.records import (
    IMAGE_SUFFIXES,
    Collection,
    Faults,
    ImageIndex,
    Picture,
    Thing,
    find_files,
    name_first,
    split_of,
)

SPLITS = {'train': ('train',), 'val': ('val', 'valid'), 'test': ('test',)}  # split -> its keys in data.yaml
BESIDE = ('classes.txt', 'obj.names', 'README.txt')  # text files that hold no objects


def find(path: Path) -> str:
    """Say what files of this format are at a path; empty where there are none."""
    if file := find_yaml(path):
        return f'YOLO: {file.name}'
    files = find_files(path, ['.txt']) if path.is_dir() else ()
    return name_first('YOLO', (file for file in files if is_label_file(file)))


def find_yaml(path: Path) -> Path | None:
    """Return the file with the classes at a path."""
    files = [path] if path.is_file() else sorted(path.glob('*.y*ml'))
    for file in files:
        if file.suffix in ('.yaml', '.yml') and 'names' in read_yaml(file):
            return file
    return None


def read_yaml(file: Path) -> dict[str, Any]:
    """Return what a YAML file holds.

    Raises:
        UserError: It is no YAML.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding='utf-8', errors='replace'))
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f'{file} is not YAML: {error}') from error
    return content if isinstance(content, dict) else {}


def is_label_file(file: Path) -> bool:
    """Tell whether the first line of a text file is an object: a class and four numbers or more."""
    with file.open(errors='replace') as opened:
        words = opened.readline(1000).split()
    try:
        return len(words) >= 5 and all(abs(float(word)) < 1e4 for word in words) and words[0].isdigit()
    except ValueError:
        return False


def read(path: Path) -> Collection:
    """Return the data set at a path, a ``data.yaml`` or a folder.

    Raises:
        UserError: There are no images, or the file names folders that do not exist.
    """
    file = find_yaml(path)
    content = read_yaml(file) if file else {}
    root = data_root(file, content) if file else path
    names = read_names(file, content, root)
    collection = Collection('YOLO', root, names, {})
    faults = collection.faults
    for split, images in find_images(root, file, content):
        pictures = [picture for image in images if (picture := read_picture(image, root, names, faults))]
        collection.splits.setdefault(split, []).extend(pictures)
    if 'kpt_shape' in content:
        raise UserError(f'{file} is for key points (kpt_shape), and the models here detect boxes and masks.')
    if not collection.pictures:
        raise UserError(f'{root} has no images with labels. YOLO has images/NAME.jpg and labels/NAME.txt.')
    return collection


def data_root(file: Path, content: Mapping) -> Path:
    """Return the folder that the paths of a ``data.yaml`` begin in; its own where ``path`` is of another machine."""
    given = Path(str(content.get('path') or '.'))
    for root in (file.parent / given, file.parent / given.name):
        if root.is_dir():
            return root
    return file.parent


def read_names(file: Path | None, content: Mapping, root: Path) -> list[str]:
    """Return the classes; of a data set without a list, none.

    Raises:
        UserError: They are no list, and no mapping of the numbers from 0.
    """
    names = content.get('names')
    if names is None:
        return read_list(root)
    if isinstance(names, Mapping):
        if sorted(names) != list(range(len(names))):
            raise UserError(
                f'{file}: names must number the classes from 0 without a gap; got {shorten(sorted(names), 8)}.'
            )
        names = [names[i] for i in range(len(names))]
    if not isinstance(names, list) or not names:
        raise UserError(f'{file}: names must be a list of classes; got {names!r}.')
    return [str(name) for name in names]


def read_list(root: Path) -> list[str]:
    """Return the classes of a text file with one a line, at the root or beside the labels; none where there is none.

    Raises:
        UserError: Several files list other classes.
    """
    files = [file for file in find_files(root, BESIDE[:2]) if file.name in BESIDE[:2]]
    lists = {file: file.read_text(encoding='utf-8-sig', errors='replace').split('\n') for file in files}
    lists = {file: [line.strip() for line in lines if line.strip()] for file, lines in lists.items()}
    for file, names in lists.items():
        if names != lists[files[0]]:
            raise UserError(f'{files[0]} and {file} list other classes. Keep the one that the labels were made with.')
    return lists[files[0]] if files else []


def find_images(root: Path, file: Path | None, content: Mapping) -> Iterator[tuple[str, list[Path]]]:
    """Yield each split with its images.

    Raises:
        UserError: A split names a folder that does not exist.
    """
    given = {split: content[key] for split, keys in SPLITS.items() for key in keys if content.get(key)}
    for split, places in given.items():
        images = []
        for place in places if isinstance(places, list) else [places]:
            images += images_at(root, file, str(place))
        yield split, images
    if not given:
        for image in ImageIndex(root).files:
            if label_file(image, root).is_file():
                yield split_of(image, root), [image]


def images_at(root: Path, file: Path, place: str) -> list[Path]:
    """Return the images that a ``data.yaml`` names: those of a folder, or of a list in a text file.

    Raises:
        UserError: There is no such folder and no such file.
    """
    parts = Path(place.replace('\\', '/'))
    # Roboflow writes ../train/images, one folder too high.
    inside = [Path(*parts.parts[i:]) for i in range(len(parts.parts))]
    candidates = [root / parts, file.parent / parts, *(root / part for part in inside)]
    for found in candidates:
        if found.is_dir():
            return list(find_files(found, IMAGE_SUFFIXES))
        if found.is_file():
            lines = [line.strip() for line in found.read_text(errors='replace').splitlines() if line.strip()]
            return [next((p for p in (root / line, found.parent / line) if p.is_file()), root / line) for line in lines]
    raise UserError(f'{file} names {place!r}, which does not exist below {root}. Correct the path.')


def label_file(image: Path, root: Path) -> Path:
    """Return the text file of an image: in ``labels`` where it is in ``images``, or beside it."""
    parts = list(image.relative_to(root).parts) if root in image.parents else list(image.parts)
    for i in reversed(range(len(parts) - 1)):
        if parts[i] == 'images':
            parts[i] = 'labels'
            return (root / Path(*parts)).with_suffix('.txt')
    beside = image.with_suffix('.txt')
    return beside if beside.is_file() else root / 'labels' / beside.name


def read_picture(image: Path, root: Path, names: list[str], faults: Faults) -> Picture | None:
    """Return an image with its objects; an image without a text file has none."""
    size = image_size(image)
    if size is None:
        faults.add('image files that are missing or cannot be read', str(image))
        return None
    picture, file = Picture(image, *size, []), label_file(image, root)
    lines = file.read_text(errors='replace').splitlines() if file.is_file() else []
    for i, line in enumerate(lines, 1):
        if line.strip():
            try:
                picture.things.append(read_line(line.split(), names, picture))
            except FaultError as error:
                faults.add(str(error), f'{file.name}, line {i}', image)
    return picture


def read_line(words: list[str], names: list[str], picture: Picture) -> Thing:
    """Return the object of a line: class, then centre, width and height, or a polygon, in parts of the image's sides.

    Raises:
        FaultError: The class has no name, or the numbers are neither.
    """
    try:
        label = int(words[0])
    except ValueError:
        raise FaultError('a class that is not a number') from None
    if label < 0 or (names and label >= len(names)):
        raise FaultError(f'a class that is not one of the {len(names)} in data.yaml')
    width, height = picture.width, picture.height
    values = [number(word) for word in words[1:]]
    if len(values) == 4:
        x, y, w, h = (value * side for value, side in zip(values, (width, height) * 2, strict=True))
        return Thing(label, read_box((x - w / 2, y - h / 2, w, h), width, height))
    if len(values) < 6 or len(values) % 2:
        raise FaultError('a line that is neither a box (5 numbers) nor a polygon (7 or more, odd)')
    scaled = [value * (width, height)[i % 2] for i, value in enumerate(values)]
    polygon = [read_polygon(scaled, width, height)]
    return Thing(label, read_box(bounding_box(polygon), width, height), polygon)
