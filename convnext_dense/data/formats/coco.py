"""COCO instances: one JSON file for each split, as COCO, Roboflow, CVAT and Label Studio write them."""

import codecs
import contextlib
import mmap
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from convnext_dense.compat.errors import UserError, shorten
from convnext_dense.data.annotation import FaultError, bounding_box, lies_apart, number, read_box, read_segmentation
from convnext_dense.data.formats.per_image import open_picture
from convnext_dense.data.records import Collection, Faults, ImageIndex, Picture, Thing, find_files, read_json, split_of

KEYS = ('images', 'annotations', 'categories')
HEAD = 2**10  # bytes of a file in which it begins
IMAGES, SHAPES = re.compile(rb'"images"\s*:\s*\['), re.compile(rb'"shapes"\s*:')  # the latter of LabelMe
NO_CLASS = ('none', 'supercategory')  # of Roboflow's root category
COCO_BOXES = 'COCO boxes are [left, top, width, height] in pixels. Export the file again, or write them so.'
INSTANCES = 'instances_'  # how COCO's own files begin; others of theirs hold captions, key points, panoptic segments


def find_annotations(path: Path) -> list[Path]:
    """Return the annotation files at a path."""
    files = [path] if path.is_file() else find_files(path, ['.json'])
    return [file for file in files if file.suffix.lower() == '.json' and is_coco(file)]


def is_coco(file: Path) -> bool:
    """Tell whether a JSON file is an object with a list of images.

    The whole file is looked at, for the images may stand behind the annotations.
    """
    if not file.stat().st_size:
        return False
    with file.open('rb') as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as text:
        head = text[:HEAD].removeprefix(codecs.BOM_UTF8).lstrip()
        return head.startswith(b'{') and not SHAPES.search(head) and bool(IMAGES.search(text))


def read(path: Path) -> Collection:
    """Return the data set at a path, a JSON file or a folder with such.

    Raises:
        UserError: A file is no COCO JSON, two files disagree about the classes, or all images of one are missing.
    """
    files = find_annotations(path)
    root = path if path.is_dir() else path.parent
    contents = {file: read_json(file, KEYS) for file in files}
    images = ImageIndex(root)
    collection = Collection('COCO JSON', images.root, [], {})
    beside = files_beside(contents, root)
    for why in dict.fromkeys(beside.values()):
        names = shorten((file.name for file in beside if beside[file] == why), 8)
        collection.notes.append(f'left out: {names}: {why}')
    contents = {file: content for file, content in contents.items() if file not in beside}
    names = {file: class_names(file, content) for file, content in contents.items()}
    classes = collection.classes
    classes += dict.fromkeys(name for own in names.values() for name in own.values())
    for file, own in names.items():
        if lacking := [name for name in classes if name not in own.values()]:
            collection.notes.append(f'{file} does not have the classes {shorten(lacking, 8)}, which other files have')
    for file, content in contents.items():
        label = {key: classes.index(name) for key, name in names[file].items()}
        pictures = read_file(file, content, label, images, collection.faults)
        collection.splits.setdefault(split_of(file, root), []).extend(pictures)
    return collection


def files_beside(contents: Mapping[Path, Mapping], root: Path) -> dict[Path, str]:
    """Return the files that do not count, because others do, with the reason."""
    beside = {file: 'without annotations' for file, content in contents.items() if not content.get('annotations')}
    instances = [file for file in contents if file.name.startswith(INSTANCES)]
    if instances:
        others = [file for file in contents if file not in instances]
        beside |= dict.fromkeys(others, f'the objects are in {INSTANCES}*.json')
    joined = [file for file in contents if 'trainval' in file.stem.lower()]
    if {'train', 'val'} <= {split_of(file, root) for file in contents if file not in joined}:
        beside |= dict.fromkeys(joined, 'training and validation images have files of their own')
    return beside if len(beside) < len(contents) else {}


def class_names(file: Path, content: Mapping) -> dict[Any, str]:
    """Return the class of each category id, in the order of the ids.

    Raises:
        UserError: There are none, or one has no id or no name.
    """
    entries = content.get('categories')
    if not isinstance(entries, list) or not entries:
        raise UserError(f'{file} has no "categories". Add them: [{{"id": 1, "name": "..."}}, ...].')
    for entry in entries:
        if not isinstance(entry, Mapping) or plain(entry.get('id')) is None or not entry.get('name'):
            raise UserError(f'{file} has the category {entry!r}. Each one needs an "id" and a "name".')
    used = {plain(annotation.get('category_id')) for annotation in annotations_of(content)}
    names = {
        plain(entry['id']): str(entry['name'])
        for entry in entries
        if entry.get('supercategory') not in NO_CLASS or plain(entry['id']) in used
    }
    return dict(sorted(names.items(), key=lambda item: (isinstance(item[0], str), item[0])))


def annotations_of(content: Mapping) -> list[dict]:
    """Return the annotations that are objects; they may be the values of a mapping."""
    annotations = content.get('annotations')
    annotations = annotations.values() if isinstance(annotations, dict) else annotations
    return [each for each in annotations if isinstance(each, dict)] if isinstance(annotations, Iterable) else []


def read_file(
    file: Path, content: Mapping, label: Mapping[Any, int], images: ImageIndex, faults: Faults
) -> list[Picture]:
    """Return the pictures of one file; ``label`` is the number of the class of each category id.

    Raises:
        UserError: All images are missing, two have one id, or the boxes are in another format.
    """
    pictures = read_images(file, content, images, faults)
    check_boxes(file, content, pictures)
    for entry in annotations_of(content):
        place = f'{file.name}: annotation {entry.get("id")!r}'
        key, number = plain(entry.get('image_id')), label.get(plain(entry.get('category_id')))
        picture = pictures.get(key)
        if key not in pictures or number is None:
            faults.add('annotations of an image or a category that is not there', place)
        elif picture is not None:
            try:
                picture.things.append(read_thing(entry, number, picture, faults, place))
            except FaultError as error:
                faults.add(str(error), place, picture.path, entry.get('bbox'))
    return [picture for picture in pictures.values() if picture is not None]


def plain(key: Any) -> int | str | None:
    """Return an id, or None where it is no id; numbers written as text or with a point are whole numbers.

    >>> plain(3.0), plain('3'), plain('a'), plain([3])
    (3, 3, 'a', None)
    """
    if isinstance(key, float) and key.is_integer():
        return int(key)
    if isinstance(key, str) and key.isdecimal() and len(key) < 19:
        return int(key)
    return key if isinstance(key, int | str) else None


def read_images(file: Path, content: Mapping, images: ImageIndex, faults: Faults) -> dict[int | str, Picture | None]:
    """Return the pictures of a file by their ids, without objects; None for those that are left out.

    Raises:
        UserError: All images are missing, or two of them have one id.
    """
    pictures, missing = {}, []
    for entry in content['images']:
        name, key = (entry.get('file_name'), plain(entry.get('id'))) if isinstance(entry, dict) else (None, None)
        if not isinstance(name, str) or key is None:
            faults.add('images without id or file_name', f'{file.name}: {str(entry)[:60]}')
            continue
        path = images.find(name, file.parent, split_of(file, images.root))
        if pictures.get(key) and pictures[key].path != path:
            raise UserError(
                f'{file}: the images {pictures[key].path.name} and {name} have the same id, {key!r}, so that their '
                'annotations cannot be told apart. Export the file again.'
            )
        missing += [name] * (path is None)
        pictures[key] = open_picture(path, (entry.get('width'), entry.get('height')), f'{file.name}: {name}', faults)
    if missing and len(missing) == len(pictures):
        raise UserError(
            f'The images of {file} are not in {images.root}: {shorten(missing, 3)}. Put them there, under the names '
            'that the file says.'
        )
    return pictures


def check_boxes(file: Path, content: Mapping, pictures: Mapping[int | str, Picture | None]) -> None:
    """Raise a :class:`UserError` where most boxes are corners, or shares of the image, instead of COCO's pixels."""
    boxes = []
    for entry in annotations_of(content):
        picture = pictures.get(plain(entry.get('image_id')))
        if picture is not None:
            with contextlib.suppress(FaultError, TypeError, ValueError):
                x, y, w, h = map(number, entry.get('bbox'))
                boxes.append((x, y, w, h, picture.width, picture.height))
    is_share = [x + w <= 1.01 and y + h <= 1.01 and (w or h) for x, y, w, h, *_ in boxes]
    if boxes and all(is_share):
        raise UserError(
            f'{file}: the boxes, {shorten((box[:4] for box in boxes), 3)}, are shares of the image. {COCO_BOXES}'
        )
    reaches_out = [x + w > width + 1 or y + h > height + 1 for x, y, w, h, width, height in boxes]
    is_corners = [x < w <= width + 1 and y < h <= height + 1 for x, y, w, h, width, height in boxes]
    if boxes and sum(reaches_out) > len(boxes) / 2 and all(is_corners):
        raise UserError(
            f'{file}: {sum(reaches_out)} of {len(boxes)} boxes reach out of their images, and all would be corners, '
            f'[x1, y1, x2, y2]: {shorten((box[:4] for box in boxes), 3)}. {COCO_BOXES}'
        )


def read_thing(entry: Mapping, label: int, picture: Picture, faults: Faults, place: str) -> Thing:
    """Return the object of an annotation; its box is that of its mask where it has none.

    A mask that is none is noted and left out, if there is a box.

    Raises:
        FaultError: Its numbers are no box and no segmentation of the image.
    """
    size, box = (picture.width, picture.height), entry.get('bbox')
    given, segmentation = entry.get('segmentation'), None
    if isinstance(given, list):
        given = [part for part in given if part != []]  # some tools write [[]] for no mask
    try:
        segmentation = read_segmentation(given, *size)
    except FaultError as error:
        if not box:
            raise
        faults.add(f'{error}; its box is kept', place, picture.path, box)
    is_flat = isinstance(box, list) and len(box) == 4 and 0 in box[2:]
    if segmentation is not None and (not box or is_flat):
        box = box_of(segmentation, *size)
    box = read_box(box, *size)
    if isinstance(segmentation, list) and lies_apart(segmentation, box):
        faults.add('a mask elsewhere than its box, which is kept', place, picture.path, box)
        segmentation = None
    return Thing(label, box, segmentation, entry.get('iscrowd') in (1, True, '1'))


def box_of(segmentation: list | dict, width: int, height: int) -> tuple[float, ...]:
    """Return the box of a mask: left, top, width and height."""
    if isinstance(segmentation, list):
        return bounding_box(segmentation)
    from pycocotools import mask

    is_plain = isinstance(segmentation['counts'], list)
    rle = mask.frPyObjects(segmentation, height, width) if is_plain else segmentation
    return tuple(float(side) for side in mask.toBbox(rle))
