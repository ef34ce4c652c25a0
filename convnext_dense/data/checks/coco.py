"""Checks of a COCO instances file and of the pictures that it names."""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from convnext_dense.compat.errors import UserError, shorten
from convnext_dense.data.annotation import MOST_PIXELS, FaultError, lies_apart, read_segmentation
from convnext_dense.data.checks.files import (
    check_files,
    check_folder,
    check_present,
    in_full,
    listed,
    share,
    some,
    where_to_put,
)
from convnext_dense.data.checks.remembered import remembered

HUGE = 1e12  # more than any width or area in pixels
DROPPED = ('a polygon of fewer than three points', 'a polygon without area')  # that training leaves out
APART = 'a mask that lies elsewhere than its box'
TOLERATED_SHARE = 0.01  # of annotations or images: below it a defect is a note, as public data sets have a few

NUMBER = (int, float)
# What a COCO instances file needs: upstream reads these fields of every entry.
COCO_FIELDS = {
    'images': {'id': (int, str), 'file_name': str, 'height': int, 'width': int},
    'annotations': {'id': (int, str), 'image_id': (int, str), 'category_id': (int, str), 'bbox': list, 'area': NUMBER},
    'categories': {'id': (int, str), 'name': str},
}


class Finding(NamedTuple):
    """What a check has found."""

    text: str
    is_error: bool = True


@dataclass(frozen=True)
class Annotations:
    """A COCO instances file, read once, and what a run wants of it."""

    file: str
    images: list[dict]
    annotations: list[dict]
    categories: list[dict]
    classes: Sequence[str] | None
    classes_are_default: bool
    masks: bool
    polygons_only: bool
    is_evaluated: bool
    key: str


def check_coco(
    ann_file: str | os.PathLike,
    image_dir: str | os.PathLike,
    *,
    classes: Sequence[str] | None = None,
    classes_are_default: bool = False,
    masks: bool = False,
    polygons_only: bool = False,
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
        polygons_only: It reads polygons and no run lengths (``poly2mask=False``).
        key: Where the dataset stands in the config, for the advice in the messages.

    Returns:
        Notes: what is allowed but worth a look.

    Raises:
        UserError: Something would stop the run, or spoil it in silence.
    """
    options = (classes, classes_are_default, masks, polygons_only, not is_labelled, key)

    def find() -> tuple[list[str], list[str]]:
        content = _read_coco(ann_file, key, is_labelled)
        _conclude(_odd_fields(content, ann_file))  # the other checks build on these fields
        coco = Annotations(os.fspath(ann_file), *(content[name] for name in COCO_FIELDS), *options)
        notes = _conclude(finding for check in CHECKS for finding in check(coco))
        check_folder(image_dir, 'image', f'{key}.data_prefix.img', key)
        paths = [os.path.join(image_dir, image['file_name']) for image in coco.images]
        check_present(paths, f'images named in {ann_file}', key)
        sizes = check_files(paths, 'images')
        return notes + _conclude(_odd_sizes(paths, coco.images, sizes, ann_file)), [os.fspath(ann_file), *paths]

    return remembered([os.path.abspath(ann_file), os.path.abspath(image_dir), *options], find)


def _conclude(findings: Iterator[Finding]) -> list[str]:
    """Return the notes, or raise one error with all the errors."""
    found = list(findings)
    if errors := [finding.text for finding in found if finding.is_error]:
        raise UserError('\n'.join(errors))
    return [finding.text for finding in found]


def _read_json(ann_file: str | os.PathLike, key: str) -> Any:
    if not os.path.isfile(ann_file):
        what = 'is a folder' if os.path.isdir(ann_file) else 'not found'
        raise UserError(f'annotation file {what}: {in_full(ann_file)}. {where_to_put(ann_file, key)}')
    if os.path.getsize(ann_file) == 0:
        raise UserError(f'annotation file {ann_file} is empty (0 bytes): copy or download it again.')
    try:
        with open(ann_file, encoding='utf-8') as stream:
            return json.load(stream)
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


def _read_coco(ann_file: str | os.PathLike, key: str, is_labelled: bool) -> dict[str, list]:
    """Return the content of the file, once its lists are there."""
    coco = _read_json(ann_file, key)
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


def _odd_fields(coco: dict[str, list], ann_file: str | os.PathLike) -> Iterator[Finding]:
    """Find entries without a field that upstream reads, or with a value of another type, in one walk."""
    for name, fields in COCO_FIELDS.items():
        entries = coco[name]
        if odd := [i for i, entry in enumerate(entries) if not isinstance(entry, dict)]:
            yield Finding(
                f'{ann_file} is JSON but not COCO instances: {name}[{odd[0]}] is {entries[odd[0]]!r}, where an object '
                f'with {listed(fields)} is expected. Export the annotations as COCO instances.'
            )
            continue
        for field, kind in fields.items():
            if odd := [i for i, entry in enumerate(entries) if not isinstance(entry.get(field), kind)]:
                first = entries[odd[0]]
                fault = f'with {first[field]!r}' if field in first else 'without it'
                yield Finding(
                    f'{ann_file}: {share(odd, entries)} {name} have no {field!r} of the right type, the first is '
                    f'{name}[{odd[0]}] {fault}. Each needs {listed(fields)}: export the file again.'
                )


def _shared_ids(coco: Annotations) -> Iterator[Finding]:
    for name in COCO_FIELDS:
        counts = Counter(entry['id'] for entry in getattr(coco, name))
        if repeated := [i for i, times in counts.items() if times > 1]:
            yield Finding(
                f'{coco.file}: ids that several {name} share: {some(repeated)} ({len(repeated)} in all). '
                'Number them anew, each once.'
            )


def _wrong_classes(coco: Annotations) -> Iterator[Finding]:
    """Compare the class names of the config with the categories of the file."""
    names = [category['name'] for category in coco.categories]
    if coco.classes is None:
        return
    if repeated := [name for name, times in Counter(names).items() if times > 1]:
        yield Finding(f'{coco.file}: several categories are named {listed(repeated)}. Give each a name of its own.')
    elif missing := [name for name in coco.classes if name not in names]:
        yield Finding(_unknown_classes(coco, names, missing))
    elif list(coco.classes) != (ordered := [name for name in names if name in coco.classes]):
        yield Finding(
            f'{coco.key}.metainfo has the classes in another order than {coco.file}: {listed(coco.classes)} instead of '
            f'{listed(ordered)}. MMDetection numbers the labels in the order of the file, so that the names would be '
            'swapped. Where every file of the run has that order, write the classes in it; otherwise '
            '`convnext-dense import-data` writes copies of the files in one order.'
        )


def _unknown_classes(coco: Annotations, names: Sequence[str], missing: Sequence[str]) -> str:
    cure = (
        f'Set metainfo=dict(classes={tuple(names)!r}) in {coco.key}, in the other loaders too, '
        f"and num_classes={len(names)} in the model's heads."
    )
    if coco.classes_are_default:
        return (
            f"{coco.key} sets no metainfo, so that the run would look for COCO's {len(coco.classes)} class names; "
            f'{len(missing)} of them, {some(missing)}, are not in {coco.file}. {cure}'
        )
    return (
        f'{coco.key}.metainfo names classes that {coco.file} does not have: {listed(missing)}. The config has '
        f'{listed(coco.classes)}; the file has {listed(names)}. Upper case, blanks and plurals count. {cure}'
    )


def _unused_classes(coco: Annotations) -> Iterator[Finding]:
    """Find categories that the config leaves out, and classes without an annotation."""
    wanted = set(coco.classes or ())
    if wanted and (unused := [entry['name'] for entry in coco.categories if entry['name'] not in wanted]):
        text = f'{coco.file}: the config leaves out {listed(unused)}; their annotations are not used.'
        yield Finding(text, is_error=False)
    present = {annotation['category_id'] for annotation in coco.annotations}
    if bare := [entry['name'] for entry in coco.categories if entry['name'] in wanted and entry['id'] not in present]:
        yield Finding(f'{coco.file}: no annotation of {listed(bare)}.', is_error=False)


def _lost_references(coco: Annotations) -> Iterator[Finding]:
    for field, name in (('image_id', 'images'), ('category_id', 'categories')):
        known = {entry['id'] for entry in getattr(coco, name)}
        if lost := [entry[field] for entry in coco.annotations if entry[field] not in known]:
            yield Finding(
                f'{coco.file}: {share(lost, coco.annotations)} annotations refer to {name} that the file does not '
                f'have: {field} {some(dict.fromkeys(lost))}; its {name} have the ids '
                f'{some(sorted(known, key=str))}. Remove these annotations, or add the {name}.'
            )


def _odd_boxes(coco: Annotations) -> Iterator[Finding]:
    """Find boxes that are no four numbers, or that MMDetection would leave out in silence."""
    if odd := [entry for entry in coco.annotations if not _is_box(entry['bbox'])]:
        yield Finding(
            f'{coco.file}: {share(odd, coco.annotations)} boxes are not four numbers [x, y, width, height]: '
            f'{_some_boxes(odd)}. Export the file again.'
        )
    sizes = {image['id']: (image['width'], image['height']) for image in coco.images}
    annotations = coco.annotations if not odd else [entry for entry in coco.annotations if _is_box(entry['bbox'])]
    annotations = [entry for entry in annotations if entry['image_id'] in sizes]
    if not annotations:
        return
    width, height = np.array([list(map(_float, sizes[entry['image_id']])) for entry in annotations]).T
    x, y, w, h = np.array([entry['bbox'] for entry in annotations], float).T
    if np.mean((x + w > width + 1) | (y + h > height + 1)) > 0.5:
        yield Finding(
            f'{coco.file}: more than half of the boxes reach out of their pictures, among them '
            f'{_some_boxes(annotations)}. COCO boxes are [x, y, width, height] in pixels: are these '
            '[x1, y1, x2, y2]? Then write [x1, y1, x2 - x1, y2 - y1].'
        )
        return
    small = (w < 1) | (h < 1)
    meets = (np.minimum(x + w, width) > np.maximum(x, 0)) & (np.minimum(y + h, height) > np.maximum(y, 0))
    bare = np.array([_float(entry['area']) for entry in annotations]) <= 0
    hint = ' They look like shares of the picture; COCO wants pixels.' if (x + w).max() <= 1.01 else ''
    faults = {
        'are less than one pixel wide or high': small,
        'lie wholly outside their pictures': ~small & ~meets,
        "have the field 'area' at 0": ~small & bare,
    }
    for what, bad in faults.items():
        if found := [annotations[i] for i in np.flatnonzero(bad)]:
            text = f'{coco.file}: {share(found, annotations)} boxes [x, y, width, height] {what}: {_some_boxes(found)}.'
            is_error = len(found) > TOLERATED_SHARE * len(annotations)
            advice = f'{hint} MMDetection would leave them out in silence: mend or remove them.'
            yield Finding(text + (advice if is_error else ' They are left out.'), is_error)


def _float(value: float) -> float:
    """Return a number as a float; whole numbers may be larger than any."""
    return float(max(-HUGE, min(value, HUGE)))


def _is_box(box: Any) -> bool:
    return (
        isinstance(box, list)
        and len(box) == 4
        and all(isinstance(number, (int, float)) and abs(number) < MOST_PIXELS for number in box)  # not of NaN
    )


def _some_boxes(annotations: Sequence[dict]) -> str:
    found = [f'{entry["bbox"]} (annotation {entry["id"]})' for entry in annotations[:3]]
    return ', '.join(found) + (', ...' if len(annotations) > 3 else '')


def _crowds_alone(coco: Annotations) -> Iterator[Finding]:
    if coco.annotations and all(entry.get('iscrowd') for entry in coco.annotations):
        yield Finding(
            f'{coco.file}: every annotation is a crowd (iscrowd=1), and crowds are not learned from. Set "iscrowd" to '
            '0 for single objects.'
        )


def _unreadable_by_pycocotools(coco: Annotations) -> Iterator[Finding]:
    """Find what the evaluation ends in an error on, or counts wrongly in silence."""
    if not coco.is_evaluated:
        return
    faults = {
        'have no "iscrowd"': [entry['id'] for entry in coco.annotations if 'iscrowd' not in entry],
        'have the id 0, which pycocotools takes for no object': [e['id'] for e in coco.annotations if e['id'] == 0],
        'have ids that are text': [entry['id'] for entry in coco.annotations if isinstance(entry['id'], str)],
    }
    for fault, ids in faults.items():
        if ids:
            yield Finding(
                f'{coco.file}: {share(ids, coco.annotations)} annotations {fault}: ids {some(ids)}. '
                f'{_copy_without(coco.file)}'
            )


def _copy_without(file: str) -> str:
    return f'`convnext-dense check-data {file} --fix OUT` writes a copy in which this is mended.'


def _odd_masks(coco: Annotations) -> Iterator[Finding]:
    """Find segmentations that training drops, garbles or stops at, and those that lie elsewhere than their boxes."""
    if not coco.masks:
        return
    sizes = {image['id']: (image['width'], image['height']) for image in coco.images}
    faults: dict[str, list] = {}
    given = [each for each in coco.annotations if each.get('segmentation') and each['image_id'] in sizes]
    for entry in given:
        try:
            mask = read_strictly(entry['segmentation'], *sizes[entry['image_id']])
        except FaultError as fault:
            faults.setdefault(str(fault), []).append(entry['id'])
        else:
            is_apart = isinstance(mask, list) and _is_box(entry['bbox']) and lies_apart(mask, entry['bbox'])
            faults.setdefault(APART, []).extend([entry['id']] * is_apart)
    apart = faults.pop(APART, [])
    runs = [each['id'] for each in given if isinstance(each['segmentation'], dict) and not each.get('iscrowd')]
    if runs and coco.polygons_only:
        faults['run lengths, which poly2mask=False leaves out'] = runs
    for fault, ids in faults.items():
        is_error = fault not in DROPPED or len(ids) > TOLERATED_SHARE * len(coco.annotations)
        text = f'{coco.file}: {share(ids, coco.annotations)} annotations have {fault}: ids {some(ids)}.'
        cure = 'Set poly2mask=True.' if 'poly2mask' in fault else _copy_without(coco.file)
        yield Finding(f'{text} {cure}' if is_error else f'{text} They are left out.', is_error)
    if len(apart) > TOLERATED_SHARE * len(coco.annotations):
        yield Finding(
            f'{coco.file}: the masks of {share(apart, coco.annotations)} annotations lie elsewhere than their boxes: '
            f'ids {some(apart)}. Are the polygons in other units than the boxes, or of images of another size?',
            is_error=False,
        )


def read_strictly(segmentation: Any, width: int, height: int) -> Any:
    """Return a segmentation as MMDetection reads it.

    Raises:
        FaultError: It does not read it.
    """
    if isinstance(segmentation, list) and not all(isinstance(polygon, list) for polygon in segmentation):
        raise FaultError('a polygon that is not inside of a list of polygons')
    if isinstance(segmentation, list) and any(isinstance(each, list) for polygon in segmentation for each in polygon):
        raise FaultError('a polygon of pairs instead of numbers')
    return read_segmentation(segmentation, width, height)


def _lacking_masks(coco: Annotations) -> Iterator[Finding]:
    if not coco.masks:
        return
    if lacking := [entry['id'] for entry in coco.annotations if not entry.get('segmentation')]:
        yield Finding(
            f'{coco.file}: {share(lacking, coco.annotations)} annotations have no segmentation '
            f'(ids {some(lacking)}), and the pipeline loads masks (with_mask=True). Add polygons or run lengths, '
            'or train a detector of boxes alone.'
        )


CHECKS: tuple[Callable[[Annotations], Iterator[Finding]], ...] = (
    _shared_ids,
    _wrong_classes,
    _unused_classes,
    _lost_references,
    _odd_boxes,
    _crowds_alone,
    _unreadable_by_pycocotools,
    _lacking_masks,
    _odd_masks,
)


def _odd_sizes(
    paths: Sequence[str],
    images: Sequence[dict],
    sizes: Sequence[tuple[int, int] | None],
    ann_file: str | os.PathLike,
) -> Iterator[Finding]:
    """Compare the sizes in the file with those of the pictures: masks are drawn at the former."""
    differing = [
        f'{path} is {size[0]}x{size[1]}, not {image["width"]}x{image["height"]}'
        for path, image, size in zip(paths, images, sizes, strict=True)
        if size is not None and size != (image['width'], image['height'])
    ]
    if not differing:
        return
    what = f'pictures have another width x height than {ann_file} says'
    text = f'{share(differing, paths)} {what}: {shorten(differing, 5)}.'
    advice = (
        ' Boxes and masks would be misplaced. Were the pictures resized after they were annotated, or '
        'are they photos with an EXIF rotation, which loading applies? Export them and the file together again.'
    )
    is_error = len(differing) > TOLERATED_SHARE * len(paths)
    yield Finding(text + advice * is_error, is_error)
