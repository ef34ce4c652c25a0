"""COCO instances: an annotation file and a folder of images go in, notes come out, or one error."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from convnext_dense.compat.errors import UserError
from convnext_dense.data.checks import files
from convnext_dense.data.checks.files import (
    check_files,
    check_folder,
    check_present,
    in_full,
    listed,
    picture_size,
    share,
    some,
    spread,
    where_to_put,
)

TOLERATED_SHARE = 0.01  # of annotations or images: below it a defect is a note, as public data sets have a few


NUMBER = (int, float)
# What a COCO instances file needs: upstream reads these fields of every entry.
COCO_FIELDS = {
    'images': {'id': (int, str), 'file_name': str, 'height': int, 'width': int},
    'annotations': {'id': (int, str), 'image_id': (int, str), 'category_id': (int, str), 'bbox': list, 'area': NUMBER},
    'categories': {'id': (int, str), 'name': str},
}


def check_coco(
    ann_file: str | os.PathLike,
    image_dir: str | os.PathLike,
    *,
    classes: Sequence[str] | None = None,
    classes_are_default: bool = False,
    masks: bool = False,
    is_labelled: bool = True,
    key: str = 'train_dataloader.dataset',
) -> list[str]:
    """Check a COCO instances file and the pictures it names.

    Args:
        ann_file: JSON with ``images``, ``annotations`` and ``categories``.
        image_dir: Folder to which the ``file_name`` of the images are relative.
        classes: Names that the run will look for; None compares none.
        classes_are_default: The names come from the dataset's class, for want of any in the config.
        is_labelled: The run needs annotations; a test may do without.
        masks: The run needs a ``segmentation`` of every annotation.
        key: Where the dataset stands in the config, for the advice in the messages.

    Returns:
        Notes: what is allowed but worth a look.

    Raises:
        UserError: Something would stop the run, or spoil it in silence.
    """
    coco = _read_coco(ann_file, key, is_labelled)
    _check_fields(coco, ann_file)
    notes = []
    if classes is not None:
        notes += _check_classes(coco, ann_file, classes, classes_are_default, key)
    _check_references(coco, ann_file)
    notes += _check_boxes(coco, ann_file)
    if masks:
        _check_masks(coco, ann_file)
    check_folder(image_dir, 'image', f'{key}.data_prefix.img', key)
    paths = [os.path.join(image_dir, image['file_name']) for image in coco['images']]
    check_present(paths, f'images named in {ann_file}', key)
    chosen = spread(list(zip(paths, coco['images'], strict=True)), files.MAX_PICTURES)
    check_files([path for path, _ in chosen])
    return notes + _check_sizes(chosen, ann_file)


def _read_coco(ann_file: str | os.PathLike, key: str, is_labelled: bool) -> dict[str, list[dict]]:
    if not os.path.isfile(ann_file):
        what = 'is a folder' if os.path.isdir(ann_file) else 'not found'
        raise UserError(f'annotation file {what}: {in_full(ann_file)}. {where_to_put(ann_file, key)}')
    if os.path.getsize(ann_file) == 0:
        raise UserError(f'annotation file {ann_file} is empty (0 bytes): copy or download it again.')
    try:
        with open(ann_file, encoding='utf-8') as stream:
            coco = json.load(stream)
    except UnicodeDecodeError as error:
        raise UserError(
            f'annotation file {ann_file} is not text ({error.reason} at byte {error.start}): '
            'is it a packed file? Unpack it, and give the .json.'
        ) from error
    except json.JSONDecodeError as error:
        raise UserError(
            f'annotation file {ann_file} is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}. '
            'Mend that place; a file that ends too early was cut in a download, fetch it again.'
        ) from error
    if not isinstance(coco, dict):
        raise UserError(
            f'{ann_file} is JSON but not COCO instances: it holds a {type(coco).__name__}, where an object with the '
            f'keys {listed(COCO_FIELDS)} is expected. Export the annotations as COCO instances.'
        )
    if not is_labelled:
        coco.setdefault('annotations', [])
    if missing := [name for name in COCO_FIELDS if not isinstance(coco.get(name), list)]:
        raise UserError(
            f'{ann_file} is JSON but not COCO instances: no list {listed(missing)}; its keys are {listed(coco)}. '
            'Export the annotations as COCO instances (object detection).'
        )
    needed = [name for name in COCO_FIELDS if is_labelled or name != 'annotations']
    if empty := [name for name in needed if not coco[name]]:
        raise UserError(f'{ann_file} holds no {" and no ".join(empty)}: there is nothing to train on. Export it again.')
    return coco


def _check_fields(coco: dict[str, list[dict]], ann_file: str | os.PathLike) -> None:
    for name, fields in COCO_FIELDS.items():
        entries = coco[name]
        if odd := [i for i, entry in enumerate(entries) if not isinstance(entry, dict)]:
            raise UserError(
                f'{ann_file} is JSON but not COCO instances: {name}[{odd[0]}] is {entries[odd[0]]!r}, where an object '
                f'with {listed(fields)} is expected. Export the annotations as COCO instances.'
            )
        for field, kind in fields.items():
            if lacking := [i for i, entry in enumerate(entries) if entry.get(field) is None]:
                raise UserError(
                    f'{ann_file}: {share(lacking, entries)} {name} have no {field!r}, the first is '
                    f'{name}[{lacking[0]}]. Each needs {listed(fields)}: export the file again.'
                )
            if odd := [i for i, entry in enumerate(entries) if not isinstance(entry[field], kind)]:
                raise UserError(
                    f'{ann_file}: {field!r} of {share(odd, entries)} {name} is of the wrong type, the first is '
                    f'{name}[{odd[0]}] with {entries[odd[0]][field]!r}. Export the file again.'
                )
        if repeated := [i for i, times in Counter(entry['id'] for entry in entries).items() if times > 1]:
            raise UserError(
                f'{ann_file}: ids that several {name} share: {some(repeated)} ({len(repeated)} in all). '
                'Number them anew, each once.'
            )


def _check_classes(
    coco: dict[str, list[dict]],
    ann_file: str | os.PathLike,
    classes: Sequence[str],
    classes_are_default: bool,
    key: str,
) -> list[str]:
    names = [category['name'] for category in coco['categories']]
    if repeated := [name for name, times in Counter(names).items() if times > 1]:
        raise UserError(f'{ann_file}: several categories are named {listed(repeated)}. Give each a name of its own.')
    cure = (
        f'Set metainfo=dict(classes={tuple(names)!r}) in {key}, in the other loaders too, '
        f"and num_classes={len(names)} in the model's heads."
    )
    if missing := [name for name in classes if name not in names]:
        if classes_are_default:
            reason = f"{key} sets no metainfo, so that the run would look for COCO's {len(classes)} class names"
            raise UserError(f'{reason}; {len(missing)} of them, {some(missing)}, are not in {ann_file}. {cure}')
        raise UserError(
            f'{key}.metainfo names classes that {ann_file} does not have: {listed(missing)}. The config has '
            f'{listed(classes)}; the file has {listed(names)}. Upper case, blanks and plurals count. {cure}'
        )
    if list(classes) != [name for name in names if name in classes]:
        raise UserError(
            f'{key}.metainfo has the classes in another order than {ann_file}: {listed(classes)} instead of '
            f'{listed(name for name in names if name in classes)}. MMDetection numbers the labels in the order of '
            'the file, so that the names would be swapped: write them in that order.'
        )
    notes = []
    if unused := [name for name in names if name not in classes]:
        notes.append(f'{ann_file}: the config leaves out {listed(unused)}; their annotations are not used.')
    present = {annotation['category_id'] for annotation in coco['annotations']}
    bare = [c['name'] for c in coco['categories'] if c['name'] in classes and c['id'] not in present]
    if bare:
        notes.append(f'{ann_file}: no annotation of {listed(bare)}.')
    return notes


def _check_references(coco: dict[str, list[dict]], ann_file: str | os.PathLike) -> None:
    for field, name in (('image_id', 'images'), ('category_id', 'categories')):
        known = {entry['id'] for entry in coco[name]}
        if lost := [entry for entry in coco['annotations'] if entry[field] not in known]:
            raise UserError(
                f'{ann_file}: {share(lost, coco["annotations"])} annotations refer to {name} that the file does not '
                f'have: {field} {some(dict.fromkeys(entry[field] for entry in lost))}; its {name} have the ids '
                f'{some(sorted(known, key=str))}. Remove these annotations, or add the {name}.'
            )


def _check_boxes(coco: dict[str, list[dict]], ann_file: str | os.PathLike) -> list[str]:
    annotations = coco['annotations']
    if not annotations:
        return []
    if odd := [entry for entry in annotations if not _is_box(entry['bbox'])]:
        raise UserError(
            f'{ann_file}: {share(odd, annotations)} boxes are not four numbers [x, y, width, height]: '
            f'{_some_boxes(odd)}. Export the file again.'
        )
    sizes = {image['id']: (image['width'], image['height']) for image in coco['images']}
    width, height = np.array([sizes[entry['image_id']] for entry in annotations], float).T
    x, y, w, h = np.array([entry['bbox'] for entry in annotations], float).T
    if np.mean((x + w > width + 1) | (y + h > height + 1)) > 0.5:
        raise UserError(
            f'{ann_file}: more than half of the boxes reach out of their pictures, among them '
            f'{_some_boxes(annotations)}. COCO boxes are [x, y, width, height] in pixels: are these '
            '[x1, y1, x2, y2]? Then write [x1, y1, x2 - x1, y2 - y1].'
        )
    small = (w < 1) | (h < 1)
    meets = (np.minimum(x + w, width) > np.maximum(x, 0)) & (np.minimum(y + h, height) > np.maximum(y, 0))
    bare = np.array([entry['area'] for entry in annotations], float) <= 0
    shares_hint = ' They look like shares of the picture; COCO wants pixels.' if (x + w).max() <= 1.01 else ''
    return [
        *_tolerate(small, annotations, ann_file, 'are less than one pixel wide or high', shares_hint),
        *_tolerate(~small & ~meets, annotations, ann_file, 'lie wholly outside their pictures'),
        *_tolerate(~small & bare, annotations, ann_file, "have the field 'area' at 0"),
    ]


def _is_box(box: Any) -> bool:
    return (
        isinstance(box, list)
        and len(box) == 4
        and all(isinstance(number, (int, float)) and math.isfinite(number) for number in box)
    )


def _tolerate(
    bad: np.ndarray, annotations: list[dict], ann_file: str | os.PathLike, what: str, hint: str = ''
) -> Iterable[str]:
    """Return a note on few bad boxes, and raise on many."""
    found = [annotations[i] for i in np.flatnonzero(bad)]
    if not found:
        return []
    finding = f'{ann_file}: {share(found, annotations)} boxes [x, y, width, height] {what}: {_some_boxes(found)}.'
    if len(found) > TOLERATED_SHARE * len(annotations):
        raise UserError(f'{finding}{hint} MMDetection would leave them out in silence: mend or remove them.')
    return [f'{finding} They are left out.']


def _some_boxes(annotations: Sequence[dict]) -> str:
    found = [f'{entry["bbox"]} (annotation {entry["id"]})' for entry in annotations[:3]]
    return ', '.join(found) + (', ...' if len(annotations) > 3 else '')


def _check_masks(coco: dict[str, list[dict]], ann_file: str | os.PathLike) -> None:
    if lacking := [entry['id'] for entry in coco['annotations'] if not entry.get('segmentation')]:
        raise UserError(
            f'{ann_file}: {share(lacking, coco["annotations"])} annotations have no segmentation '
            f'(ids {some(lacking)}), and the pipeline loads masks (with_mask=True). Add polygons or run lengths, '
            'or train a detector of boxes alone.'
        )


def _check_sizes(chosen: Sequence[tuple[str, dict]], ann_file: str | os.PathLike) -> list[str]:
    """Compare the sizes in the file with those of the pictures: masks are drawn at the former."""
    differing = []
    for path, image in chosen:
        size = picture_size(path)
        if size is not None and size != (image['width'], image['height']):
            differing.append(f'{path} is {size[0]}x{size[1]}, not {image["width"]}x{image["height"]}')
    if not differing:
        return []
    what = f'pictures have another width x height than {ann_file} says'
    finding = f'{share(differing, chosen)} {what}: {some(differing, str)}.'
    if len(differing) > TOLERATED_SHARE * len(chosen):
        raise UserError(
            f'{finding} Boxes and masks would be misplaced. Were the pictures resized after they were annotated, or '
            'are they photos with an EXIF rotation, which loading applies? Export them and the file together again.'
        )
    return [finding]
