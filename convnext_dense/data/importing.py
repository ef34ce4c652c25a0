"""Read data in any known format, and write what MMDetection and MMSegmentation train on.

    OUT/train.json, val.json, test.json   COCO instances, or images with their label maps
    OUT/labels/                           label maps that had to be drawn or numbered anew

Images are not copied: the files name them where they are.
"""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from convnext_dense.compat.errors import UserError, shorten
from convnext_dense.compat.files import write_text
from convnext_dense.data.annotation import polygon_area
from convnext_dense.data.formats import FORMATS, recognise
from convnext_dense.data.formats.masks import LabelMaps, recoded
from convnext_dense.data.pictures import ImageKind, distinct_colours, find_kind
from convnext_dense.data.records import IMPORTED, Collection, Picture, Thing, distinct
from convnext_dense.data.splits import complete_splits

BACKGROUND = 'background'
UNLABELLED = 255  # in label maps
FEW_BINS = 256  # classes that a label map of 8 bits holds, with 255 for unlabelled


@dataclass
class Imported:
    """What was written."""

    title: str  # the format that was read
    root: Path  # the folder of the images
    files: dict[str, Path]  # split -> file
    paths: dict[str, list[Path]]  # split -> image files
    classes: list[str]  # names in the order of their numbers
    palette: list[tuple[int, int, int]]  # a colour (R, G, B) for each class
    num_objects: dict[str, int]  # class -> objects; empty for label maps
    has_masks: bool  # training objects have masks
    reduce_zero_label: bool  # in the label maps 0 is unlabelled, and the classes count from 1
    images: ImageKind  # what the images are, and how they are loaded
    notes: list[str]  # what the user should know
    # kind of a fault -> images that have it, each with the box as it was given
    examples: dict[str, list[tuple[Path, object]]]

    @property
    def num_images(self) -> dict[str, int]:
        """Split -> images."""
        return {split: len(paths) for split, paths in self.paths.items()}

    def __str__(self) -> str:
        return f'{self.describe()}\nwritten to  {next(iter(self.files.values())).parent}'

    def describe(self) -> str:
        """Say what was read."""
        images = ', '.join(f'{name} {number}' for name, number in self.num_images.items())
        objects = ', '.join(f'{name} {self.num_objects.get(name, 0)}' for name in self.classes[:12])
        lines = [
            f'data        {self.title}, {self.root}',
            f'images      {images}',
            f'classes     {len(self.classes)}'
            + (f', with their objects: {objects}' if self.num_objects else f': {", ".join(self.classes[:12])}')
            + (', ...' if len(self.classes) > 12 else ''),
        ]
        return '\n'.join([*lines, *(f'note        {note}' for note in self.notes)])


def import_data(
    source: str | os.PathLike,
    out: str | os.PathLike,
    *,
    task: str | None = None,
    data_format: str | None = None,
    images: str | os.PathLike | None = None,
    labels: str | os.PathLike | None = None,
    classes: Sequence[str] | None = None,
    seed: int = 0,
    with_masks: bool = False,
    fix: bool = False,
) -> Imported:
    """Read data in any known format and write the files to train on.

    Args:
        source: A file or a folder; see :data:`~convnext_dense.data.formats.FORMATS`.
        out: The folder to write to.
        task: 'det' for objects, 'seg' for label maps; by default what the data is.
        data_format: A name of :data:`~convnext_dense.data.formats.FORMATS`, where the data can be read in several ways.
        images: The folder of the images of label maps, where its name does not tell it; from here or from ``source``.
        labels: The folder of the label maps.
        classes: Names for the classes, in the order of their numbers.
        seed: Of the draw of validation images.
        with_masks: Objects without a mask are neither learned nor counted, if any training object has one; so too in
            what ``fix`` writes, which suits any model.
        fix: Write sound data that can be read again: its splits stay, the files name the images by their whole paths,
            and label maps that cannot be used are left out.

    Raises:
        UserError: The data cannot be read, or is none for the task.
    """
    path = Path(source)
    folders = {name: Path(folder) for name, folder in (('images', images), ('labels', labels)) if folder is not None}
    folders = {name: folder if folder.is_dir() else path / folder for name, folder in folders.items()}
    check_folders(folders)
    wants_objects = None if task is None else task == 'det'
    name = recognise(path, data_format, wants_objects, **folders)
    options = {'masks': folders | {'names': classes, 'fix': fix}, 'listed': {'fix': fix}}
    collection = FORMATS[name].read(path, **options.get(name, {}))
    join_pictures(collection)
    collection.notes += collection.faults.notes()
    # Halves of characters, which escapes in YAML and JSON can leave, would not be equal again once they were written.
    names = [name.encode('utf-16', 'surrogatepass') for name in collection.classes]
    collection.classes = [name.decode('utf-16', 'replace') for name in names]
    name_classes(collection, None if getattr(collection, 'is_named', False) else classes)
    complete_splits(collection, seed, draw=not fix)
    folder = open_folder(Path(out).absolute(), path, collection)
    base = folder if fix else collection.root  # where the paths begin that are written
    is_seg = task == 'seg' or isinstance(collection, LabelMaps)
    trained = [] if is_seg else collection.splits.get('train') or collection.pictures
    has_masks = any(thing.segmentation for picture in trained for thing in picture.things)
    if is_seg:
        if task == 'det':
            raise UserError(f'{path} holds label maps, and a detector learns from boxes. Choose a config of seg/.')
        write_seg(collection, folder, base)
    else:
        write_det(collection, folder, (with_masks or fix) and has_masks, base)
    things = [] if is_seg else [thing for picture in collection.pictures for thing in picture.things]
    counts = Counter(collection.classes[thing.label] for thing in things if not thing.is_crowd)
    if things and (rare := [name for name in collection.classes if not counts[name]]):
        collection.notes.append(f'classes without an object: {", ".join(rare)}')
    kind = find_kind([picture.path for picture in collection.pictures])
    collection.notes += kind.notes
    return Imported(
        title=collection.title,
        root=collection.root.absolute(),
        files={split: folder / f'{split}.json' for split in collection.splits},
        paths={split: [each.path.absolute() for each in found] for split, found in collection.splits.items()},
        classes=collection.classes,
        palette=palette_of(collection),
        num_objects=counts,
        has_masks=has_masks,
        reduce_zero_label=is_seg and getattr(collection, 'reduce_zero_label', False),
        images=kind,
        notes=collection.notes,
        examples=collection.faults.examples,
    )


def open_folder(folder: Path, source: Path, collection: Collection) -> Path:
    """Make the folder to write to.

    Raises:
        UserError: It holds the data, or other files that no import wrote, or it cannot be made.
    """
    holds_data = any(folder in picture.path.absolute().parents for picture in collection.pictures)
    if holds_data or folder in (source.absolute(), *source.absolute().parents):
        raise UserError(f'{folder} holds the data itself, whose files would be replaced. Give another folder to write.')
    if folder.is_dir() and any(folder.iterdir()) and not (folder / IMPORTED).exists():
        raise UserError(f'{folder} holds files that no import wrote. Give an empty folder, or one that does not exist.')
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / IMPORTED).touch()
    except OSError as error:
        raise UserError(f'{folder} cannot be made ({error.strerror}). Give another folder to write to.') from error
    return folder


def join_pictures(collection: Collection) -> None:
    """Make one picture of those of a split that are the same file; an object that is there twice counts once."""
    for pictures in collection.splits.values():
        joined: dict[Path, Picture] = {}
        for picture in pictures:
            first = joined.setdefault(picture.path.absolute(), picture)
            if first is not picture and picture.things:
                first.things.extend(picture.things)
        for path, picture in joined.items():
            boxes = {(thing.label, thing.box, thing.is_crowd) for thing in picture.things}
            if len(boxes) == len(picture.things):  # nearly always; to compare outlines takes longer
                continue
            single = {json.dumps(thing[:3], default=str) + str(thing.is_crowd): thing for thing in picture.things}
            for _ in range(len(picture.things) - len(single)):
                collection.faults.add('objects that are there twice', path.name, path)
            if len(single) < len(picture.things):
                picture.things[:] = single.values()
        pictures[:] = joined.values()


def check_folders(folders: Mapping[str, Path]) -> None:
    """Raise a :class:`UserError` unless both folders are given, or none, and they are there."""
    if len(folders) == 1:
        raise UserError('--images DIR and --labels DIR go together: one names the images, the other their label maps.')
    for name, folder in folders.items():
        if not folder.is_dir():
            raise UserError(f'--{name} {folder}: there is no such folder.')


def name_classes(collection: Collection, names: Sequence[str] | None) -> None:
    """Number the classes that the data does not name, and give all of them the user's names.

    Raises:
        UserError: The user's names are none for these classes.
    """
    used = [thing.label for picture in collection.pictures for thing in picture.things]
    is_numbered = not collection.classes and bool(used)
    if is_numbered:
        collection.classes = [f'class_{i}' for i in range(max(used) + 1)]
    if names is not None:
        rename_classes(collection, list(names), is_numbered)
    elif is_numbered:
        numbers = f'0 to {max(used)}'
        collection.notes.append(f'the data names no classes: they are numbered, {numbers}; --classes names them')


def rename_classes(collection: Collection, names: list[str], is_numbered: bool) -> None:
    """Give the classes the user's names: those of the data in another order, new ones, or some that the data lacks.

    Raises:
        UserError: A name is there twice, or there are too few.
    """
    own = collection.classes
    distinct(names, '--classes')
    if set(own) <= set(names) and not isinstance(collection, LabelMaps):
        number = [names.index(name) for name in own]
        for picture in collection.pictures:
            picture.things[:] = [thing._replace(label=number[thing.label]) for thing in picture.things]
    elif len(names) != len(own) and not (is_numbered and len(names) > len(own)):
        raise UserError(
            f'--classes names {len(names)} classes, {shorten(names, 8)}; the data has {len(own)}: {shorten(own, 8)}. '
            'Name them all; classes of the same name may stand in any order, and more of them may be named.'
        )
    elif not is_numbered and names != own:
        renamed = [f'{old} becomes {new}' for old, new in zip(own, names, strict=True) if old != new]
        collection.notes.append(f'--classes gives other names: {shorten(renamed, 8)}')
    if names != own and set(own) <= set(names):
        collection.palette = None  # the colours stand in the order of the data
    collection.classes = names


def palette_of(collection: Collection) -> list[tuple[int, int, int]]:
    """Return a colour for each class: those of the data, or well apart ones."""
    if collection.palette and len(collection.palette) == len(collection.classes):
        return collection.palette
    return distinct_colours(len(collection.classes))


# Objects


def write_det(collection: Collection, folder: Path, with_masks: bool, base: Path) -> None:
    """Write COCO instances for each split.

    Raises:
        UserError: There is no object to learn from.
    """
    faults = ' '.join(f'{note}.' for note in collection.faults.notes())
    for split, pictures in collection.splits.items():
        things = [thing for picture in pictures for thing in picture.things]
        if with_masks and (without := sum(not thing.segmentation for thing in things)):
            collection.notes.append(f'{split}: {without} objects have no mask; they are neither learned nor counted')
        if all(thing.is_crowd for thing in things):
            if split == 'train':
                cure = faults or 'Add annotations.'
                raise UserError(f'{collection.root}: the training images have no object to learn from. {cure}')
            collection.notes.append(f'the {split} images have no object, so that they give no scores')
        write_text(json.dumps(coco_of(pictures, collection.classes, with_masks, base)), folder / f'{split}.json')


def coco_of(pictures: Sequence[Picture], classes: list[str], with_masks: bool, base: Path) -> dict[str, list]:
    """Return pictures as COCO instances; ids count from 1, for pycocotools loses the annotation 0."""
    names = enumerate(classes, 1)
    content = {'images': [], 'annotations': [], 'categories': [{'id': i, 'name': name} for i, name in names]}
    for picture in pictures:
        image_id = len(content['images']) + 1
        name = relative(picture.path, base)
        content['images'].append(dict(id=image_id, file_name=name, width=picture.width, height=picture.height))
        for thing in picture.things:
            ids = dict(id=len(content['annotations']) + 1, image_id=image_id, category_id=thing.label + 1)
            content['annotations'].append({**ids, **annotation_of(thing, with_masks)})
    return content


def annotation_of(thing: Thing, with_masks: bool) -> dict[str, Any]:
    """Return the COCO entry of an object, without its ids."""
    x, y, w, h = thing.box
    is_crowd, segmentation = thing.is_crowd, thing.segmentation
    if segmentation is None and with_masks:
        is_crowd, segmentation = True, [[x, y, x + w, y, x + w, y + h, x, y + h]]
    area = w * h
    if isinstance(segmentation, list):
        area = sum(map(polygon_area, segmentation))
    elif segmentation:
        area = float(mask_of(thing, *reversed(segmentation['size'])).sum())
    entry = {'bbox': [x, y, w, h], 'area': area, 'iscrowd': int(is_crowd)}
    return {**entry, 'segmentation': segmentation} if segmentation else entry


def mask_of(thing: Thing, width: int, height: int) -> np.ndarray:
    """Return the pixels of an object, (H, W) of bool; those of its box where it has no mask."""
    from pycocotools import mask

    segmentation = thing.segmentation
    if segmentation is None:
        x, y, w, h = thing.box
        segmentation = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    if isinstance(segmentation, list):
        return mask.decode(mask.merge(mask.frPyObjects(segmentation, height, width))).astype(bool)
    if isinstance(segmentation['counts'], list):
        segmentation = mask.frPyObjects(segmentation, height, width)
    return mask.decode(segmentation).astype(bool)


# Label maps


def write_seg(collection: Collection, folder: Path, base: Path) -> None:
    """Write images with their label maps for each split; objects with masks are drawn, the smaller above the larger.

    Raises:
        UserError: The objects have no masks, or there are more classes than 8 bits tell apart.
    """
    if not isinstance(collection, LabelMaps):
        prepare_drawing(collection)
    if len(collection.classes) >= FEW_BINS:
        raise UserError(f'{collection.root} has {len(collection.classes)} classes; label maps have at most 255.')
    metainfo = {'classes': collection.classes, 'palette': palette_of(collection)}
    places = label_map_places(collection.pictures, collection.root.absolute())
    files = {id(picture): folder / 'labels' / place for picture, place in zip(collection.pictures, places, strict=True)}
    for split, pictures in collection.splits.items():
        with ThreadPoolExecutor() as pool:
            maps = list(pool.map(lambda each: write_label_map(each, files[id(each)], collection), pictures))
        entries = [
            {'img_path': relative(picture.path, base), 'seg_map_path': relative(label_map, base)}
            for picture, label_map in zip(pictures, maps, strict=True)
        ]
        write_text(json.dumps({'metainfo': metainfo, 'data_list': entries}), folder / f'{split}.json')


def prepare_drawing(collection: Collection) -> None:
    """Number the classes of objects as label maps have them: 0 is the background.

    Raises:
        UserError: No object has a mask.
    """
    things = [thing for picture in collection.pictures for thing in picture.things]
    without = sum(not thing.segmentation for thing in things)
    if without == len(things):
        faults = ' '.join(f'{note}.' for note in collection.faults.notes())
        raise UserError(
            f'{collection.root}: objects have boxes and no masks, and a segmentor learns from masks. Choose a config '
            f'of det/ without masks, such as det/faster_rcnn_convnext_t_coco. {faults}'.rstrip()
        )
    if without:
        collection.notes.append(f'{without} objects have no mask; the pixels of their boxes are unlabelled')
    own = [name for name in collection.classes if name.lower() != BACKGROUND]
    added = len(own) == len(collection.classes)
    number = [own.index(name) + 1 if name in own else 0 for name in collection.classes]
    for picture in collection.pictures:
        picture.things[:] = [thing._replace(label=number[thing.label]) for thing in picture.things]
    collection.classes, collection.palette = [BACKGROUND, *own], None
    text = f'the class {BACKGROUND} is added' if added else f'their class {BACKGROUND} is 0'
    collection.notes.append(f'label maps are drawn from the objects; {text}')


def label_map_places(pictures: Sequence[Picture], root: Path) -> list[Path]:
    """Return where the label map of each picture is written, below ``labels/``; no two share a place.

    >>> pictures = [Picture(Path(name), 1, 1) for name in ('/d/a.jpg', '/d/a.png', '/d/b.jpg', '/e/c.jpg')]
    >>> [place.as_posix() for place in label_map_places(pictures, Path('/d'))]
    ['a.jpg.png', 'a.png.png', 'b.png', 'elsewhere/e/c.png']
    """
    paths = [picture.path.absolute() for picture in pictures]
    inside = [path.relative_to(root) if root in path.parents else Path('elsewhere', *path.parts[1:]) for path in paths]
    shared = Counter(path.with_suffix('') for path in inside)
    return [
        path.with_suffix('.png') if shared[path.with_suffix('')] == 1 else path.with_name(f'{path.name}.png')
        for path in inside
    ]


def write_label_map(picture: Picture, file: Path, collection: Collection) -> Path:
    """Return the label map of an image, which is written where the data's own does not hold the classes."""
    if isinstance(collection, LabelMaps):
        if collection.recode is None:
            return picture.label_map
        values = recoded(picture.label_map, collection.recode)
    else:
        values = np.zeros((picture.height, picture.width), np.uint8)
        masks = [(mask_of(thing, picture.width, picture.height), thing) for thing in picture.things]
        for mask, thing in sorted(masks, key=lambda pair: -pair[0].sum()):
            values[mask] = thing.label if thing.segmentation and not thing.is_crowd else UNLABELLED
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(cv2.imencode('.png', values)[1].tobytes())
    return file


def relative(file: Path, root: Path) -> str:
    """Return a path as the files name it: from the folder of the images, or absolute where it lies elsewhere."""
    file, root = file.absolute(), root.absolute()
    return file.relative_to(root).as_posix() if root in file.parents else file.as_posix()
