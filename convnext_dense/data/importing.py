"""Read data in any known format, and write what MMDetection and MMSegmentation train on.

    OUT/train.json, val.json, test.json   COCO instances, or images with their label maps
    OUT/labels/                           label maps that had to be drawn or numbered anew

Images are not copied: the files name them where they are.
"""

from __future__ import annotations

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

from convnext_dense.compat.errors import UserError
from convnext_dense.compat.files import write_text
from convnext_dense.data.annotation import polygon_area
from convnext_dense.data.formats import FORMATS, recognise
from convnext_dense.data.formats.masks import LabelMaps, recoded
from convnext_dense.data.pictures import ImageKind, find_kind
from convnext_dense.data.records import IMPORTED, Collection, Picture, Thing
from convnext_dense.data.splits import complete_splits

BACKGROUND = 'background'
FEW_BINS = 256  # classes that a label map of 8 bits holds, with 255 for unlabelled


@dataclass
class Imported:
    """What was written.

    Attributes:
        title: The format that was read.
        root: The folder of the images.
        files: Split -> file.
        paths: Split -> image files.
        classes: Names in the order of their numbers.
        palette: A colour (R, G, B) for each class.
        num_objects: Class -> objects; empty for label maps.
        has_masks: Every object has a mask.
        reduce_zero_label: In the label maps 0 is unlabelled, and the classes count from 1.
        images: What the images are, and how they are loaded.
        notes: What the user should know.
        examples: Kind of a fault -> images that have it, each with the box as it was given.
    """

    title: str
    root: Path
    files: dict[str, Path]
    paths: dict[str, list[Path]]
    classes: list[str]
    palette: list[tuple[int, int, int]]
    num_objects: dict[str, int]
    has_masks: bool
    reduce_zero_label: bool
    images: ImageKind
    notes: list[str]
    examples: dict[str, list[tuple[Path, object]]]

    @property
    def num_images(self) -> dict[str, int]:
        """Split -> images."""
        return {split: len(paths) for split, paths in self.paths.items()}

    def __str__(self) -> str:
        images = ', '.join(f'{name} {number}' for name, number in self.num_images.items())
        objects = ', '.join(f'{name} {self.num_objects.get(name, 0)}' for name in self.classes[:12])
        lines = [
            f'data        {self.title}, {self.root}',
            f'images      {images}',
            f'classes     {len(self.classes)}: {objects if self.num_objects else ", ".join(self.classes[:12])}'
            + (', ...' if len(self.classes) > 12 else ''),
            f'written to  {next(iter(self.files.values())).parent}',
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
) -> Imported:
    """Read data in any known format and write the files to train on.

    Args:
        source: A file or a folder; see :data:`~convnext_dense.data.formats.FORMATS`.
        out: The folder to write to.
        task: 'det' for objects, 'seg' for label maps; by default what the data is.
        data_format: A name of :data:`~convnext_dense.data.formats.FORMATS`, where the data can be read in several ways.
        images: The folder of the images of label maps, where its name does not tell it.
        labels: The folder of the label maps.
        classes: Names for the classes, in the order of their numbers.
        seed: Of the draw of validation images.
        with_masks: Each object needs a mask; those without one are neither learned nor counted.

    Raises:
        UserError: The data cannot be read, or is none for the task.
    """
    path = Path(source)
    folders = {name: Path(folder) for name, folder in (('images', images), ('labels', labels)) if folder is not None}
    check_folders(folders)
    wants_objects = None if task is None else task == 'det'
    name = recognise(path, data_format, wants_objects, **folders)
    collection = FORMATS[name].read(path, **(folders if name == 'masks' else {}))
    collection.notes += collection.faults.notes()
    # Halves of characters, which escapes in YAML and JSON can leave, would not be equal again once they were written.
    names = [name.encode('utf-16', 'surrogatepass') for name in collection.classes]
    collection.classes = [name.decode('utf-16', 'replace') for name in names]
    rename_classes(collection, classes)
    complete_splits(collection, seed)
    folder = Path(out).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / IMPORTED).touch()
    is_seg = task == 'seg' or isinstance(collection, LabelMaps)
    if is_seg:
        if task == 'det':
            raise UserError(f'{path} holds label maps, and a detector learns from boxes. Choose a config of seg/.')
        write_seg(collection, folder)
    else:
        write_det(collection, folder, with_masks)
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
        has_masks=bool(things) and all(thing.segmentation for thing in things),
        reduce_zero_label=is_seg and getattr(collection, 'reduce_zero_label', False),
        images=kind,
        notes=collection.notes,
        examples=collection.faults.examples,
    )


def check_folders(folders: Mapping[str, Path]) -> None:
    """Raise a :class:`UserError` unless both folders are given, or none, and they are there."""
    if len(folders) == 1:
        raise UserError('--images DIR and --labels DIR go together: one names the images, the other their label maps.')
    for name, folder in folders.items():
        if not folder.is_dir():
            raise UserError(f'--{name} {folder}: there is no such folder.')


def rename_classes(collection: Collection, names: Sequence[str] | None) -> None:
    """Give the classes the user's names; classes that nobody names are numbered.

    Raises:
        UserError: There are more or fewer names than classes.
    """
    pictures = collection.pictures
    largest = max((thing.label for picture in pictures for thing in picture.things), default=-1)
    if not collection.classes and largest >= 0:
        collection.classes = [f'class_{i}' for i in range(largest + 1)]
        if names is None:
            collection.notes.append(
                f'the data names no classes: they are numbered, 0 to {largest}; --classes names them'
            )
    if names is None:
        return
    if len(names) != len(collection.classes) or len(set(names)) != len(names):
        raise UserError(
            f'--classes names {len(set(names))} different classes, {", ".join(names)}; the data has '
            f'{len(collection.classes)}: {", ".join(collection.classes)}.'
        )
    collection.classes = list(names)


def palette_of(collection: Collection) -> list[tuple[int, int, int]]:
    """Return a colour for each class: those of the data, or well apart ones (the golden angle around the wheel)."""
    if collection.palette and len(collection.palette) == len(collection.classes):
        return collection.palette
    hues = [(i * 0.618034 % 1) * 180 for i in range(len(collection.classes))]
    colours = np.array([[(hue, 200, 230) for hue in hues]], np.uint8)
    return [tuple(map(int, colour)) for colour in cv2.cvtColor(colours, cv2.COLOR_HSV2RGB)[0]]


# Objects


def write_det(collection: Collection, folder: Path, with_masks: bool) -> None:
    """Write COCO instances for each split.

    Raises:
        UserError: There is no object to learn from.
    """
    for split, pictures in collection.splits.items():
        things = [thing for picture in pictures for thing in picture.things]
        if with_masks and (without := sum(not thing.segmentation for thing in things)):
            if without == len(things):
                raise UserError(
                    f'{collection.root}: the objects have boxes and no masks, and the config trains masks. Choose a '
                    'config without masks, such as det/faster_rcnn_convnext_t_coco.'
                )
            collection.notes.append(f'{split}: {without} objects have no mask; they are neither learned nor counted')
        if not any(not thing.is_crowd for thing in things) and split in ('train', 'val'):
            raise UserError(f'{collection.root}: the {split} images have no object to learn from. Add annotations.')
        write_text(json.dumps(coco_of(pictures, collection, with_masks)), folder / f'{split}.json')


def coco_of(pictures: Sequence[Picture], collection: Collection, with_masks: bool) -> dict[str, list]:
    """Return pictures as COCO instances; ids count from 1, for pycocotools loses the annotation 0."""
    names = enumerate(collection.classes, 1)
    content = {'images': [], 'annotations': [], 'categories': [{'id': i, 'name': name} for i, name in names]}
    for picture in pictures:
        image_id = len(content['images']) + 1
        name = relative(picture.path, collection.root)
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
        area = float(sum(mask_of(thing, *reversed(segmentation['size'])).ravel()))
    entry = {'bbox': [x, y, w, h], 'area': area, 'iscrowd': int(is_crowd)}
    return {**entry, 'segmentation': segmentation} if segmentation else entry


def mask_of(thing: Thing, width: int, height: int) -> np.ndarray:
    """Return the pixels of an object with a mask, (H, W) of bool."""
    from pycocotools import mask

    segmentation = thing.segmentation
    if isinstance(segmentation, list):
        return mask.decode(mask.merge(mask.frPyObjects(segmentation, height, width))).astype(bool)
    if isinstance(segmentation['counts'], list):
        segmentation = mask.frPyObjects(segmentation, height, width)
    return mask.decode(segmentation).astype(bool)


# Label maps


def write_seg(collection: Collection, folder: Path) -> None:
    """Write images with their label maps for each split; objects with masks are drawn, the smaller above the larger.

    Raises:
        UserError: The objects have no masks, or there are more classes than 8 bits tell apart.
    """
    if not isinstance(collection, LabelMaps):
        if any(not thing.segmentation for picture in collection.pictures for thing in picture.things):
            raise UserError(
                f'{collection.root}: objects have boxes and no masks, and a segmentor learns from masks. Choose a '
                'config of det/ without masks, such as det/faster_rcnn_convnext_t_coco.'
            )
        collection.classes = [BACKGROUND, *collection.classes]
        collection.notes.append(f'label maps are drawn from the objects; the class {BACKGROUND} is added')
    if len(collection.classes) >= FEW_BINS:
        raise UserError(f'{collection.root} has {len(collection.classes)} classes; label maps have at most 255.')
    metainfo = {'classes': collection.classes, 'palette': palette_of(collection)}
    for split, pictures in collection.splits.items():
        with ThreadPoolExecutor() as pool:
            maps = list(pool.map(lambda picture: write_label_map(picture, collection, folder), pictures))
        entries = [
            {'img_path': relative(picture.path, collection.root), 'seg_map_path': relative(label_map, collection.root)}
            for picture, label_map in zip(pictures, maps, strict=True)
        ]
        write_text(json.dumps({'metainfo': metainfo, 'data_list': entries}), folder / f'{split}.json')


def write_label_map(picture: Picture, collection: Collection, folder: Path) -> Path:
    """Return the label map of an image, which is written where the data's own does not hold the classes."""
    if isinstance(collection, LabelMaps):
        if collection.recode is None:
            return picture.label_map
        values = recoded(picture.label_map, collection.recode)
    else:
        values = np.zeros((picture.height, picture.width), np.uint8)
        masks = [(mask_of(thing, picture.width, picture.height), thing) for thing in picture.things]
        for mask, thing in sorted(masks, key=lambda pair: -pair[0].sum()):
            values[mask] = 255 if thing.is_crowd else thing.label + 1
    file = folder / 'labels' / Path(relative(picture.path, collection.root)).with_suffix('.png')
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(cv2.imencode('.png', values)[1].tobytes())
    return file


def relative(file: Path, root: Path) -> str:
    """Return a path as the files name it: from the folder of the images, or absolute where it lies elsewhere."""
    file, root = file.absolute(), root.absolute()
    return file.relative_to(root).as_posix() if root in file.parents else file.as_posix()
