"""Pascal VOC: one XML file for each image, with boxes; ``ImageSets`` tell the splits where there are any."""

import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator
from pathlib import Path

from convnext_dense.compat.errors import UserError
from convnext_dense.data.annotation import FaultError, number, read_box, read_polygon
from convnext_dense.data.formats.per_image import find_picture, note_left_over
from convnext_dense.data.records import (
    IMAGE_SUFFIXES,
    Collection,
    Faults,
    ImageIndex,
    Picture,
    Thing,
    find_files,
    split_lists,
    split_of,
)

SIDES = ('xmin', 'ymin', 'xmax', 'ymax')
HEAD = 2**16  # bytes of a file that are looked at
COMMENT = re.compile(rb'<!--.*?(-->|\Z)', re.S)
ROOT = b'annotation'
TAG = re.compile(rb'<([A-Za-z]\w*)')


def find(path: Path) -> Iterator[Path]:
    """Yield the annotation files in a folder."""
    for file in find_files(path, ['.xml']):
        root, head = read_head(file)
        if root == ROOT and (b'<object' in head or b'<size' in head):
            yield file


def read_head(file: Path) -> tuple[bytes, bytes]:
    """Return the name of an XML file's root and the text that it begins with; no name where there is no XML."""
    with file.open('rb') as opened:
        head = COMMENT.sub(b'', opened.read(HEAD))
    root = TAG.search(head)
    return root[1] if root else b'', head


def find_cvat(path: Path) -> Path | None:
    """Return a file in CVAT's own format at a path."""
    files = find_files(path, ['.xml']) if path.is_dir() else [path] if path.suffix.lower() == '.xml' else ()
    heads = ((file, *read_head(file)) for file in files)
    return next((file for file, root, head in heads if root == b'annotations' and b'<version>' in head), None)


def read(path: Path) -> Collection:
    """Return the data set in a folder. The classes are in alphabetical order, for the format has no list of them.

    Raises:
        UserError: A file is no XML, or no image can be used.
    """
    images = ImageIndex(path)
    collection = Collection('Pascal VOC XML', images.root, [], {})
    roots = read_files(path, collection.faults)
    objects = {file: root.findall('object') for file, root in roots.items()}
    names = {(each.findtext('name') or '').strip() for found in objects.values() for each in found}
    collection.classes = sorted(names - {''})
    splits = read_lists(images.root, {file.stem for file in roots})
    for file, root in roots.items():
        name = (root.findtext('filename') or '').strip()
        # Images are renamed and copied with their XML files, so that the file's own name counts more; but of 1.jpg and
        # 1.png, the one that is named.
        called = [name, file.stem] if Path(name).stem == file.stem else [file.stem, name]
        size = [(root.findtext(f'size/{side}') or '').strip() for side in ('width', 'height')]
        if picture := find_picture(images, file, called, size, collection.faults):
            picture.things.extend(read_objects(file, objects[file], collection.classes, picture, collection.faults))
            own = (splits.get((folder, file.stem)) for folder in file.parents)
            split = next(filter(None, own), '' if splits else split_of(file.parent, path))
            collection.splits.setdefault(split, []).append(picture)
    note_left_over(collection, images, 'XML')
    boxless = [each for found in objects.values() for each in found if each.find('bndbox') is None]
    if num_rotated := sum(each.find('robndbox') is not None for each in boxless):
        collection.notes.append(f'{num_rotated} boxes are rotated (robndbox): the upright boxes around them are taken')
    return collection


def read_files(path: Path, faults: Faults) -> dict[Path, ElementTree.Element]:
    """Return the annotation files below a folder with their roots.

    Raises:
        UserError: A file is no XML.
    """
    roots = {}
    for file in find_files(path, ['.xml']):
        name, _ = read_head(file)
        if name == ROOT:
            roots[file] = read_xml(file)
        elif not name:
            faults.add('XML files that are empty', str(file))
    return roots


def read_xml(file: Path) -> ElementTree.Element:
    """Return the root of an XML file.

    Raises:
        UserError: It is no XML, or declares entities, which can grow without end.
    """
    text = file.read_bytes()
    if b'<!ENTITY' in text:
        raise UserError(f'{file} declares entities, which annotations do not need. Export it again.')
    try:
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise UserError(f'{file} is not XML: {error}. Export or copy it again.') from error


def read_lists(path: Path, stems: set[str]) -> dict[tuple[Path, str], str]:
    """Return the split of each image that a list names, by the folder that the list is for and the XML file's stem."""
    splits = {}
    for split, file, lines in split_lists(path):
        parents = list(file.parents)
        folder = next((each.parent for each in parents if each.name == 'ImageSets'), file.parent)
        for line in lines:
            if name := next((name for name in spellings(line) if name in stems), None):
                splits[folder, name] = split
    return splits


def spellings(line: str) -> Iterator[str]:
    """Yield what image a line of a list may mean: with numbers behind it, with folders, with a suffix.

    >>> list(spellings('a/my cat 1.jpg  -1'))
    ['a/my cat 1.jpg  -1', 'my cat 1.jpg  -1', 'a/my cat 1.jpg', 'my cat 1.jpg', 'my cat 1']
    """
    text = ''
    while text != line:
        text, line = line, re.sub(r'\s+-?\d+$', '', line)
        name = text.replace('\\', '/').rpartition('/')[2]
        path = Path(name)
        yield from dict.fromkeys((text, name, path.stem if path.suffix.lower() in IMAGE_SUFFIXES else name))


def read_objects(
    file: Path, objects: Iterable[ElementTree.Element], classes: list[str], picture: Picture, faults: Faults
) -> Iterator[Thing]:
    """Yield the objects of an image; a polygon that is none leaves the box."""
    for i, entry in enumerate(objects, 1):
        place = f'{file.name}: object {i}'
        try:
            thing = read_object(entry, classes, picture)
        except FaultError as error:
            faults.add(str(error), place, picture.path)
            continue
        try:
            thing = thing._replace(segmentation=read_outline(entry, picture))
        except FaultError as error:
            faults.add(f'{error}, beside a box', place, picture.path)
        yield thing


def read_object(entry: ElementTree.Element, classes: list[str], picture: Picture) -> Thing:
    """Return an object. Coordinates count from 1, as in Pascal VOC's development kit.

    Raises:
        FaultError: It has no class, or its box is none.
    """
    name, box, rotated = (entry.findtext('name') or '').strip(), entry.find('bndbox'), entry.find('robndbox')
    if not name:
        raise FaultError('an object without a name')
    if box is not None:
        left, top, right, bottom = numbers(box, SIDES)
        if right < left or bottom < top:  # drawn from another corner
            (left, right), (top, bottom) = sorted((left, right)), sorted((top, bottom))
        sides = (left - 1, top - 1, right - left, bottom - top)
    elif rotated is not None:
        x, y, w, h, angle = numbers(rotated, ('cx', 'cy', 'w', 'h', 'angle'))  # as roLabelImg writes it, in radians
        cos, sin = abs(math.cos(angle)), abs(math.sin(angle))
        width, height = abs(w) * cos + abs(h) * sin, abs(w) * sin + abs(h) * cos  # of the upright box around it
        sides = (x - width / 2, y - height / 2, width, height)
    else:
        raise FaultError('an object without a box')
    is_difficult = (entry.findtext('difficult') or '').strip() == '1'
    return Thing(classes.index(name), read_box(sides, picture.width, picture.height), is_crowd=is_difficult)


def numbers(entry: ElementTree.Element, names: Iterable[str]) -> list[float]:
    """Return the numbers that an element holds.

    Raises:
        FaultError: One is missing, or is none.
    """
    return [number((entry.findtext(name) or '').strip()) for name in names]


def read_outline(entry: ElementTree.Element, picture: Picture) -> list[list[float]] | None:
    """Return the polygon of an object, ``<x1><y1><x2>...`` as Roboflow writes it or ``<pt><x><y></pt>``.

    Raises:
        FaultError: It is no polygon.
    """
    polygon = entry.find('polygon')
    if polygon is None:
        return None
    values = [(each.text or '').strip() for each in polygon.iter() if re.fullmatch(r'[xy]\d*', each.tag)]
    return [read_polygon([*map(number, values)], picture.width, picture.height)] if values else None
