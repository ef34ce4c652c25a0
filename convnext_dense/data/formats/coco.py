"""COCO instances: one JSON file for each split, as COCO, Roboflow, CVAT and Label Studio write them."""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convnext_dense.compat.errors import UserError
from convnext_dense.data.annotation import FaultError, bounding_box, read_box, read_segmentation
from convnext_dense.data.pictures import image_size
from convnext_dense.data.records import Collection, Faults, ImageIndex, Picture, Thing, find_files, some, split_of

HEAD = 2**10  # bytes of a file in which it begins
IMAGES, ANNOTATIONS = re.compile(rb'"images"\s*:\s*\['), re.compile(rb'"(annotations|categories)"\s*:')
NO_CLASS = ('none', 'supercategory')  # of Roboflow's root category


def find(path: Path) -> str:
    """Say what files of this format are at a path; empty where there are none."""
    files = find_annotations(path)
    return f'COCO JSON: {some(file.name for file in files)}' if files else ''


def find_annotations(path: Path) -> list[Path]:
    """Return the annotation files at a path."""
    files = [path] if path.is_file() else find_files(path, ['.json'])
    return [file for file in files if file.suffix == '.json' and is_coco(file)]


def is_coco(file: Path) -> bool:
    """Tell whether a JSON file is an object with a list of images, and one of annotations or categories.

    The whole file is looked at, for the images may stand behind the annotations.
    """
    if not file.stat().st_size:
        return False
    with file.open('rb') as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as text:
        begins = text[:HEAD].removeprefix(b'\xef\xbb\xbf').lstrip().startswith(b'{')
        return begins and bool(IMAGES.search(text)) and bool(ANNOTATIONS.search(text))


def read(path: Path) -> Collection:
    """Return the data set at a path, a JSON file or a folder with such.

    Raises:
        UserError: A file is no COCO JSON, two files disagree about the classes, or images are missing.
    """
    files = find_annotations(path)
    root = path if path.is_dir() else path.parent
    contents = {file: read_json(file) for file in files}
    names = {file: class_names(file, content) for file, content in contents.items()}
    classes = list(dict.fromkeys(name for own in names.values() for name in own.values()))
    images = ImageIndex(image_root(root))
    collection = Collection('COCO JSON', images.root, classes, {})
    for file, own in names.items():
        if lacking := [name for name in classes if name not in own.values()]:
            collection.notes.append(f'{file} does not have the classes {some(lacking, 8)}, which other files have')
    for file, content in contents.items():
        if not content.get('annotations'):
            collection.notes.append(f'{file} has no annotations and is left out')
            continue
        pictures = read_file(file, content, classes, images, collection.faults)
        collection.splits.setdefault(split_of(file, root) if len(files) > 1 else '', []).extend(pictures)
    return collection


def image_root(root: Path) -> Path:
    """Return the folder below which the images are looked for: of ``annotations/`` the one above."""
    return root.parent if root.name.lower() in ('annotations', 'annotation', 'labels') else root


def read_json(file: Path) -> dict[str, Any]:
    """Return what a JSON file holds.

    Raises:
        UserError: It is no JSON, or no object.
    """
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f'{file} is not JSON: {error}. Export or copy it again.') from error
    if not isinstance(content, dict) or not isinstance(content.get('images'), list):
        raise UserError(f'{file} has no list "images". COCO files have "images", "annotations" and "categories".')
    return content


def class_names(file: Path, content: Mapping) -> dict[Any, str]:
    """Return the class of each category id, in the order of the ids.

    Raises:
        UserError: There are none, or one has no id or no name.
    """
    entries = content.get('categories')
    if not isinstance(entries, list) or not entries:
        raise UserError(f'{file} has no "categories". Add them: [{{"id": 1, "name": "..."}}, ...].')
    for entry in entries:
        if not isinstance(entry, Mapping) or not isinstance(entry.get('id'), int | str) or not entry.get('name'):
            raise UserError(f'{file} has the category {entry!r}. Each one needs an "id" and a "name".')
    used = {annotation.get('category_id') for annotation in annotations_of(content)}
    names = {
        entry['id']: str(entry['name'])
        for entry in entries
        if entry.get('supercategory') not in NO_CLASS or entry['id'] in used
    }
    return dict(sorted(names.items(), key=lambda item: (isinstance(item[0], str), item[0])))


def annotations_of(content: Mapping) -> list[dict]:
    """Return the annotations that are objects."""
    annotations = content.get('annotations')
    return [each for each in annotations if isinstance(each, dict)] if isinstance(annotations, list) else []


def read_file(file: Path, content: Mapping, classes: list[str], images: ImageIndex, faults: Faults) -> list[Picture]:
    """Return the pictures of one file.

    Raises:
        UserError: Images are missing.
    """
    label = {key: classes.index(name) for key, name in class_names(file, content).items()}
    pictures = read_images(file, content, images, faults)
    for entry in annotations_of(content):
        place = f'{file.name}: annotation {entry.get("id")!r}'
        picture = pictures.get(plain(entry.get('image_id')))
        number = label.get(plain(entry.get('category_id')))
        if picture is None or number is None:
            faults.add('annotations of an image or a category that is not there', place)
            continue
        try:
            picture.things.append(read_thing(entry, number, picture))
        except FaultError as error:
            faults.add(str(error), place, picture.path, entry.get('bbox'))
    return [*pictures.values()]


def plain(key: Any) -> int | str | None:
    """Return an id, or None where it is no id."""
    return key if isinstance(key, int | str) else None


def read_images(file: Path, content: Mapping, images: ImageIndex, faults: Faults) -> dict[int | str, Picture]:
    """Return the pictures of a file by their ids, without objects.

    Raises:
        UserError: Images are missing.
    """
    pictures, missing = {}, []
    for entry in content['images']:
        name = entry.get('file_name') if isinstance(entry, dict) else None
        if not isinstance(name, str) or not isinstance(entry.get('id'), int | str):
            faults.add('images without id or file_name', f'{file.name}: {str(entry)[:60]}')
            continue
        path = images.find(name, file.parent, split_of(file, images.root))
        if path is None:
            missing.append(name)
        elif size := image_size(path):
            pictures[entry['id']] = Picture(path, *size, [])
            if (entry.get('width'), entry.get('height')) not in (size, (None, None)):
                faults.add('images whose size in the annotations is not that of the file', f'{file.name}: {name}', path)
        else:
            faults.add('image files that cannot be read', str(path))
    if missing:
        raise UserError(
            f'{len(missing)} of the {len(content["images"])} images of {file} are not in {images.root}: '
            f'{some(missing)}. Put them there, under the names that the file says.'
        )
    return pictures


def read_thing(entry: Mapping, label: int, picture: Picture) -> Thing:
    """Return the object of an annotation; its box is that of its polygons where it has none.

    Raises:
        FaultError: Its numbers are no box and no segmentation of the image.
    """
    segmentation = read_segmentation(entry.get('segmentation'), picture.width, picture.height)
    box = entry.get('bbox')
    if not box and isinstance(segmentation, list):
        box = bounding_box(segmentation)
    return Thing(
        label, read_box(box, picture.width, picture.height), segmentation, entry.get('iscrowd') in (1, True, '1')
    )
