"""Pascal VOC: one XML file for each image, with boxes; ``ImageSets`` tell the splits where there are any."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

from convnext_dense.compat.errors import UserError
from convnext_dense.data.annotation import FaultError, number, read_box
from convnext_dense.data.pictures import image_size
from convnext_dense.data.records import (
    SPLIT_WORDS,
    Collection,
    ImageIndex,
    Picture,
    Thing,
    find_files,
    name_first,
    split_of,
)

SIDES = ('xmin', 'ymin', 'xmax', 'ymax')


def find(path: Path) -> str:
    """Say what files of this format are at a path; empty where there are none."""
    return name_first('Pascal VOC XML', find_annotations(path))


def find_annotations(path: Path) -> Iterator[Path]:
    """Yield the annotation files at a path."""
    for file in find_files(path, ['.xml']) if path.is_dir() else ():
        with file.open('rb') as opened:
            if b'<annotation' in opened.read(2000):
                yield file


def read(path: Path) -> Collection:
    """Return the data set in a folder. The classes are in alphabetical order, for the format has no list of them.

    Raises:
        UserError: A file is no XML, or its image is missing.
    """
    images, splits = ImageIndex(path), read_image_sets(path)
    found, names = [], set()
    for file in find_annotations(path):
        root = read_xml(file)
        objects = root.findall('object')
        names.update(name for each in objects if (name := (each.findtext('name') or '').strip()))
        found.append((file, root.findtext('filename') or '', objects))
    classes = sorted(names)
    collection = Collection('Pascal VOC XML', path, classes, {})
    for file, name, objects in found:
        image = images.find(file.stem, file.parent) or images.find(name, file.parent)
        if image is None:
            raise UserError(f'{file}: its image {name or file.stem!r} is not in {path}. Put it there.')
        size = image_size(image)
        if size is None:
            collection.faults.add('image files that cannot be read', str(image))
            continue
        picture = Picture(image, *size, [])
        for number_, each in enumerate(objects, 1):
            try:
                picture.things.append(read_object(each, classes, picture))
            except FaultError as error:
                collection.faults.add(str(error), f'{file.name}: object {number_}', image)
        split = splits.get(file.stem, '' if splits else split_of(file, path))
        collection.splits.setdefault(split, []).append(picture)
    if splits and collection.splits.get(''):
        left_out = collection.splits.pop('')
        collection.notes.append(f'left out: {len(left_out)} images that no list in ImageSets names')
    return collection


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


def read_image_sets(path: Path) -> dict[str, str]:
    """Return the split of each image that the lists in ``ImageSets`` name; train and val count before trainval."""
    splits = {}
    lists = [file for folder in sorted(path.rglob('ImageSets')) for file in sorted(folder.rglob('*.txt'))]
    for stem in ('trainval', 'train', 'val', 'test'):
        for file in lists:
            if file.stem == stem:
                lines = file.read_text(errors='replace').splitlines()
                splits.update({line.split()[0]: SPLIT_WORDS[stem] for line in lines if line.strip()})
    return splits


def read_object(entry: ElementTree.Element, classes: list[str], picture: Picture) -> Thing:
    """Return an object. Coordinates count from 1, as in Pascal VOC's development kit.

    Raises:
        FaultError: It has no class, or its box is none.
    """
    name, box = (entry.findtext('name') or '').strip(), entry.find('bndbox')
    if not name:
        raise FaultError('an object without a name')
    if box is None:
        raise FaultError('an object without a box')
    left, top, right, bottom = (number((box.findtext(side) or '').strip()) for side in SIDES)
    sides = (left - 1, top - 1, right - left, bottom - top)
    is_difficult = (entry.findtext('difficult') or '').strip() == '1'
    return Thing(classes.index(name), read_box(sides, picture.width, picture.height), is_crowd=is_difficult)
