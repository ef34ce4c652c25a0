"""Checks of a data set before a run: a dataset's config goes in, notes come out, or one error that names the mistake.

Upstream meets most of these mistakes late, or never: class names that the annotations do not have are dropped in
silence, a label out of range is a failed assertion on the GPU, and a cut picture stops the run in its third hour.
Only plain files are read; nothing of MMDetection or MMSegmentation is imported, except COCO's class names.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from PIL import ExifTags, Image

from convnext_dense.errors import UserError

MAX_PICTURES = 2000  # whose files are looked into
MAX_LABEL_MAPS = 50  # that are read
TOLERATED_SHARE = 0.01  # of annotations or pictures: below it a defect is a note, as public data sets have a few
TAIL_BYTES = 4096  # some cameras append to a JPEG; its end marker is looked for in so many bytes
IGNORED = 255

# What a COCO instances file needs: upstream reads these fields of every entry.
COCO_FIELDS = {
    'images': ('id', 'file_name', 'height', 'width'),
    'annotations': ('id', 'image_id', 'category_id', 'bbox', 'area'),
    'categories': ('id', 'name'),
}


class SegmentationType(NamedTuple):
    """What a dataset class of MMSegmentation takes for granted."""

    img_suffix: str
    seg_map_suffix: str
    reduce_zero_label: bool
    num_classes: int | None  # None: as many as the config names


COCO_TYPES = ('CocoDataset',)
SEGMENTATION_TYPES = {
    'BaseSegDataset': SegmentationType('.jpg', '.png', False, None),
    'ADE20KDataset': SegmentationType('.jpg', '.png', True, 150),
    'CityscapesDataset': SegmentationType('_leftImg8bit.png', '_gtFine_labelTrainIds.png', False, 19),
    'COCOStuffDataset': SegmentationType('.jpg', '_labelTrainIds.png', False, 171),
    'PascalContextDataset': SegmentationType('.jpg', '.png', False, 60),
    'PascalContextDataset59': SegmentationType('.jpg', '.png', True, 59),
    'PascalVOCDataset': SegmentationType('.jpg', '.png', False, 21),
}


class Layout(NamedTuple):
    """Where the configs look for a public data set."""

    name: str
    marks: tuple[str, ...]  # a path with one of these belongs to it
    places: tuple[str, ...]


LAYOUTS = (
    Layout(
        'COCO',
        ('train2017', 'val2017'),
        (
            'data/coco/annotations/instances_train2017.json',
            'data/coco/annotations/instances_val2017.json',
            'data/coco/train2017/',
            'data/coco/val2017/',
        ),
    ),
    Layout(
        'ADE20K',
        ('ADEChallengeData2016',),
        (
            'data/ade/ADEChallengeData2016/images/training/',
            'data/ade/ADEChallengeData2016/images/validation/',
            'data/ade/ADEChallengeData2016/annotations/training/',
            'data/ade/ADEChallengeData2016/annotations/validation/',
        ),
    ),
)

_T = TypeVar('_T')


# ------------------------------------------------------------------------------------------------------------- configs


def check_dataset(dataset: Mapping | None, key: str = 'train_dataloader.dataset') -> list[str]:
    """Check the data that a dataset's config names, through wrappers; types that are not known here pass.

    Args:
        dataset: As in a config: ``type``, ``data_root``, ``ann_file``, ``data_prefix``, ``metainfo``, ...
        key: Where it stands in the config; the advice in the messages uses it.

    Returns:
        Notes: what is allowed but worth a look.

    Raises:
        UserError: Something would stop the run, or spoil it in silence.
    """
    if not isinstance(dataset, Mapping):
        return []
    if 'dataset' in dataset:
        return check_dataset(dataset['dataset'], f'{key}.dataset')
    if 'datasets' in dataset:
        parts = enumerate(dataset['datasets'])
        return [note for i, part in parts for note in check_dataset(part, f'{key}.datasets.{i}')]
    kind = _type_name(dataset)
    if kind not in COCO_TYPES and kind not in SEGMENTATION_TYPES:
        return []
    if _is_remote(dataset):
        return [f'{key} was not checked: its files are not on a local disk.']
    return (_check_coco_config if kind in COCO_TYPES else _check_segmentation_config)(dataset, key)


def _check_coco_config(dataset: Mapping, key: str) -> list[str]:
    ann_file = dataset.get('ann_file')
    if not ann_file:
        raise UserError(f"{key} names no annotation file: set ann_file='annotations/....json' there.")
    classes = _config_classes(dataset, key)
    return check_coco(
        _join(dataset, ann_file),
        _prefix(dataset, 'img', key),
        classes=classes or _coco_classes(),
        classes_are_default=not classes,
        masks=any(
            step.get('with_mask') and _type_name(step) == 'LoadAnnotations'
            for step in dataset.get('pipeline') or ()
            if isinstance(step, Mapping)
        ),
        key=key,
    )


def _check_segmentation_config(dataset: Mapping, key: str) -> list[str]:
    kind = SEGMENTATION_TYPES[_type_name(dataset)]
    classes = _config_classes(dataset, key)
    prefixes = dataset.get('data_prefix', {'img_path': '', 'seg_map_path': ''})
    ann_file = dataset.get('ann_file')
    return check_segmentation(
        _prefix(dataset, 'img_path', key),
        _prefix(dataset, 'seg_map_path', key) if prefixes.get('seg_map_path') is not None else None,
        # A class of its own maps a choice of its classes by itself: the files hold the full set.
        num_classes=kind.num_classes or (len(classes) if classes else None),
        img_suffix=dataset.get('img_suffix', kind.img_suffix),
        seg_map_suffix=dataset.get('seg_map_suffix', kind.seg_map_suffix),
        reduce_zero_label=dataset.get('reduce_zero_label', kind.reduce_zero_label),
        ignore_index=dataset.get('ignore_index', IGNORED),
        names_file=_join(dataset, ann_file) if ann_file else None,
        key=key,
    )


def _type_name(config: Mapping) -> str:
    """Return ``CocoDataset`` for ``'CocoDataset'``, ``'mmdet.CocoDataset'`` and the class itself."""
    kind = config.get('type', '')
    return (kind if isinstance(kind, str) else getattr(kind, '__name__', '')).rpartition('.')[-1]


def _is_remote(dataset: Mapping) -> bool:
    backend = (dataset.get('backend_args') or {}).get('backend', 'local')
    prefixes = (dataset.get('data_prefix') or {}).values()
    paths = [dataset.get('data_root'), dataset.get('ann_file'), *prefixes]
    return backend != 'local' or any('://' in str(path) for path in paths)


def _join(dataset: Mapping, path: str) -> str:
    """Join as MMEngine does: absolute paths stand alone."""
    return os.path.join(dataset.get('data_root') or '', path)


def _prefix(dataset: Mapping, name: str, key: str) -> str:
    """Return the folder of ``data_prefix`` with this name."""
    prefixes = dataset.get('data_prefix', {'img_path': '', 'seg_map_path': ''})
    if prefixes.get(name) is None:
        raise UserError(
            f'{key}.data_prefix has no {name!r}, which {_type_name(dataset)} reads; it has {_listed(prefixes)}. '
            f"Set data_prefix=dict({name}='folder/of/the/pictures/')."
        )
    return _join(dataset, prefixes[name])


def _config_classes(dataset: Mapping, key: str) -> Sequence[str] | None:
    """Return the class names of the config, or None where it leaves them to the dataset's class."""
    metainfo = dataset.get('metainfo') or {}
    if 'classes' in dataset or 'CLASSES' in metainfo:
        wrong = 'classes=(...)' if 'classes' in dataset else 'metainfo=dict(CLASSES=(...))'
        raise UserError(f'{key} has {wrong}, which today is not read: write metainfo=dict(classes=(...)).')
    classes = metainfo.get('classes')
    if isinstance(classes, str):
        if not os.path.isfile(classes):
            raise UserError(
                f'{key}.metainfo.classes is the string {classes!r}, not several names, and no file is called so. '
                f'For a single class write the comma: metainfo=dict(classes=({classes!r},)).'
            )
        return Path(classes).read_text(encoding='utf-8').splitlines()
    return classes


def _coco_classes() -> Sequence[str] | None:
    try:
        from mmdet.datasets import CocoDataset
    except ModuleNotFoundError:  # then there will be no run either, and it says so better than we could
        return None
    return CocoDataset.METAINFO['classes']


# ---------------------------------------------------------------------------------------------------- COCO annotations


def check_coco(
    ann_file: str | os.PathLike,
    image_dir: str | os.PathLike,
    *,
    classes: Sequence[str] | None = None,
    classes_are_default: bool = False,
    masks: bool = False,
    key: str = 'train_dataloader.dataset',
) -> list[str]:
    """Check a COCO instances file and the pictures it names.

    Args:
        ann_file: JSON with ``images``, ``annotations`` and ``categories``.
        image_dir: Folder to which the ``file_name`` of the images are relative.
        classes: Names that the run will look for; None compares none.
        classes_are_default: The names come from the dataset's class, for want of any in the config.
        masks: The run needs a ``segmentation`` of every annotation.
        key: Where the dataset stands in the config, for the advice in the messages.

    Returns:
        Notes: what is allowed but worth a look.

    Raises:
        UserError: Something would stop the run, or spoil it in silence.
    """
    coco = _read_coco(ann_file, key)
    _check_fields(coco, ann_file)
    notes = []
    if classes is not None:
        notes += _check_classes(coco, ann_file, classes, classes_are_default, key)
    _check_references(coco, ann_file)
    notes += _check_boxes(coco, ann_file)
    if masks:
        _check_masks(coco, ann_file)
    _check_folder(image_dir, 'image', f'{key}.data_prefix.img', key)
    paths = [os.path.join(image_dir, image['file_name']) for image in coco['images']]
    _check_present(paths, f'images named in {ann_file}', key)
    chosen = _spread(list(zip(paths, coco['images'], strict=True)), MAX_PICTURES)
    _check_files([path for path, _ in chosen])
    return notes + _check_sizes(chosen, ann_file)


def _read_coco(ann_file: str | os.PathLike, key: str) -> dict[str, list[dict]]:
    if not os.path.isfile(ann_file):
        what = 'is a folder' if os.path.isdir(ann_file) else 'not found'
        raise UserError(f'annotation file {what}: {_in_full(ann_file)}. {_where_to_put(ann_file, key)}')
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
            f'keys {_listed(COCO_FIELDS)} is expected. Export the annotations as COCO instances.'
        )
    if missing := [name for name in COCO_FIELDS if not isinstance(coco.get(name), list)]:
        raise UserError(
            f'{ann_file} is JSON but not COCO instances: no list {_listed(missing)}; its keys are {_listed(coco)}. '
            'Export the annotations as COCO instances (object detection).'
        )
    if empty := [name for name in COCO_FIELDS if not coco[name]]:
        raise UserError(f'{ann_file} holds no {" and no ".join(empty)}: there is nothing to train on. Export it again.')
    return coco


def _check_fields(coco: dict[str, list[dict]], ann_file: str | os.PathLike) -> None:
    for name, fields in COCO_FIELDS.items():
        entries = coco[name]
        for field in fields:
            if lacking := [i for i, entry in enumerate(entries) if entry.get(field) is None]:
                raise UserError(
                    f'{ann_file}: {_share(lacking, entries)} {name} have no {field!r}, the first is '
                    f'{name}[{lacking[0]}]. Each needs {_listed(fields)}: export the file again.'
                )
        if repeated := [i for i, times in Counter(entry['id'] for entry in entries).items() if times > 1]:
            raise UserError(
                f'{ann_file}: ids that several {name} share: {_some(repeated)} ({len(repeated)} in all). '
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
        raise UserError(f'{ann_file}: several categories are named {_listed(repeated)}. Give each a name of its own.')
    cure = (
        f'Set metainfo=dict(classes={tuple(names)!r}) in {key}, in the other loaders too, '
        f"and num_classes={len(names)} in the model's heads."
    )
    if missing := [name for name in classes if name not in names]:
        if classes_are_default:
            reason = f"{key} sets no metainfo, so that the run would look for COCO's {len(classes)} class names"
            raise UserError(f'{reason}; {len(missing)} of them, {_some(missing)}, are not in {ann_file}. {cure}')
        raise UserError(
            f'{key}.metainfo names classes that {ann_file} does not have: {_listed(missing)}. The config has '
            f'{_listed(classes)}; the file has {_listed(names)}. Upper case, blanks and plurals count. {cure}'
        )
    if list(classes) != [name for name in names if name in classes]:
        raise UserError(
            f'{key}.metainfo has the classes in another order than {ann_file}: {_listed(classes)} instead of '
            f'{_listed(name for name in names if name in classes)}. MMDetection numbers the labels in the order of '
            'the file, so that the names would be swapped: write them in that order.'
        )
    notes = []
    if unused := [name for name in names if name not in classes]:
        notes.append(f'{ann_file}: the config leaves out {_listed(unused)}; their annotations are not used.')
    present = {annotation['category_id'] for annotation in coco['annotations']}
    bare = [c['name'] for c in coco['categories'] if c['name'] in classes and c['id'] not in present]
    if bare:
        notes.append(f'{ann_file}: no annotation of {_listed(bare)}.')
    return notes


def _check_references(coco: dict[str, list[dict]], ann_file: str | os.PathLike) -> None:
    for field, name in (('image_id', 'images'), ('category_id', 'categories')):
        known = {entry['id'] for entry in coco[name]}
        if lost := [entry for entry in coco['annotations'] if entry[field] not in known]:
            raise UserError(
                f'{ann_file}: {_share(lost, coco["annotations"])} annotations refer to {name} that the file does not '
                f'have: {field} {_some(dict.fromkeys(entry[field] for entry in lost))}; its {name} have the ids '
                f'{_some(sorted(known, key=str))}. Remove these annotations, or add the {name}.'
            )


def _check_boxes(coco: dict[str, list[dict]], ann_file: str | os.PathLike) -> list[str]:
    annotations = coco['annotations']
    if odd := [entry for entry in annotations if not _is_box(entry['bbox'])]:
        raise UserError(
            f'{ann_file}: {_share(odd, annotations)} boxes are not four numbers [x, y, width, height]: '
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
    finding = f'{ann_file}: {_share(found, annotations)} boxes [x, y, width, height] {what}: {_some_boxes(found)}.'
    if len(found) > TOLERATED_SHARE * len(annotations):
        raise UserError(f'{finding}{hint} MMDetection would leave them out in silence: mend or remove them.')
    return [f'{finding} They are left out.']


def _some_boxes(annotations: Sequence[dict]) -> str:
    found = [f'{entry["bbox"]} (annotation {entry["id"]})' for entry in annotations[:3]]
    return ', '.join(found) + (', ...' if len(annotations) > 3 else '')


def _check_masks(coco: dict[str, list[dict]], ann_file: str | os.PathLike) -> None:
    if lacking := [entry['id'] for entry in coco['annotations'] if not entry.get('segmentation')]:
        raise UserError(
            f'{ann_file}: {_share(lacking, coco["annotations"])} annotations have no segmentation '
            f'(ids {_some(lacking)}), and the pipeline loads masks (with_mask=True). Add polygons or run lengths, '
            'or train a detector of boxes alone.'
        )


def _check_sizes(chosen: Sequence[tuple[str, dict]], ann_file: str | os.PathLike) -> list[str]:
    """Compare the sizes in the file with those of the pictures: masks are drawn at the former."""
    differing = []
    for path, image in chosen:
        size = _picture_size(path)
        if size is not None and size != (image['width'], image['height']):
            differing.append(f'{path} is {size[0]}x{size[1]}, not {image["width"]}x{image["height"]}')
    if not differing:
        return []
    what = f'pictures have another width x height than {ann_file} says'
    finding = f'{_share(differing, chosen)} {what}: {_some(differing, str)}.'
    if len(differing) > TOLERATED_SHARE * len(chosen):
        raise UserError(
            f'{finding} Boxes and masks would be misplaced. Were the pictures resized after they were annotated, or '
            'are they photos with an EXIF rotation, which loading applies? Export them and the file together again.'
        )
    return [finding]


# -------------------------------------------------------------------------------------------------------- segmentation


def check_segmentation(
    image_dir: str | os.PathLike,
    label_dir: str | os.PathLike | None,
    *,
    num_classes: int | None = None,
    img_suffix: str = '.jpg',
    seg_map_suffix: str = '.png',
    reduce_zero_label: bool = False,
    ignore_index: int = IGNORED,
    names_file: str | os.PathLike | None = None,
    key: str = 'train_dataloader.dataset',
) -> list[str]:
    """Check pictures and their label maps, which have the same names but for the suffix.

    Args:
        image_dir: Folder of the pictures, searched with all its folders.
        label_dir: Folder of the label maps, or None for pictures alone.
        num_classes: Classes of the label maps; None checks no values.
        img_suffix: End of a picture's name.
        seg_map_suffix: End of a label map's name.
        reduce_zero_label: 0 is unlabelled, and the classes count from 1.
        ignore_index: Value that is allowed beside the classes.
        names_file: Text file with the names to use, one a line, without suffix; else all pictures are used.
        key: Where the dataset stands in the config, for the advice in the messages.

    Returns:
        Notes: what is allowed but worth a look.

    Raises:
        UserError: Something would stop the run, or spoil it in silence.
    """
    _check_folder(image_dir, 'image', f'{key}.data_prefix.img_path', key)
    if label_dir is not None:
        _check_folder(label_dir, 'label map', f'{key}.data_prefix.seg_map_path', key)
    names = _read_names(names_file, key) if names_file else _find_names(image_dir, img_suffix, key)
    pictures = [os.path.join(image_dir, name + img_suffix) for name in names]
    if names_file:
        _check_present(pictures, f'images named in {names_file}', key)
    _check_files(_spread(pictures, MAX_PICTURES))
    if label_dir is None:
        return []
    label_maps = [os.path.join(label_dir, name + seg_map_suffix) for name in names]
    _check_present(label_maps, f'label maps of the images in {image_dir}', key)
    pairs = _spread(list(zip(pictures, label_maps, strict=True)), MAX_LABEL_MAPS)
    _check_files([label_map for _, label_map in pairs])
    values = {label_map: _label_values(picture, label_map) for picture, label_map in pairs}
    if num_classes is None:
        return [f'{key} names no classes: the values of the label maps were not checked.']
    _check_values(values, num_classes, reduce_zero_label, ignore_index, key)
    return []


def _read_names(names_file: str | os.PathLike, key: str) -> list[str]:
    if not os.path.isfile(names_file):
        raise UserError(f'{names_file} not found: the list of names that {key}.ann_file gives. Correct the path.')
    names = [line.strip() for line in Path(names_file).read_text(encoding='utf-8').splitlines()]
    if not any(names):
        raise UserError(f'{names_file} is empty: write one name a line, without suffix.')
    return names


def _find_names(image_dir: str | os.PathLike, suffix: str, key: str) -> list[str]:
    found = [
        os.path.relpath(os.path.join(folder, name), image_dir)
        for folder, _, names in os.walk(image_dir, followlinks=True)
        for name in names
        if not name.startswith('.')
    ]
    pictures = sorted(name.removesuffix(suffix) for name in found if name.endswith(suffix))
    if not pictures:
        suffixes = _listed(dict.fromkeys(os.path.splitext(name)[1] for name in sorted(found))) if found else 'no files'
        raise UserError(
            f'{image_dir} holds no picture whose name ends in {suffix!r}; it has {suffixes}. '
            f"Set img_suffix='....' in {key}, or correct data_prefix.img_path."
        )
    return pictures


def _label_values(picture: str, label_map: str) -> list[int]:
    """Return the values of a label map, once it is one and fits its picture."""
    try:
        with Image.open(label_map) as opened:
            labels = np.asarray(opened)  # of a palette picture: the indices
    except OSError as error:
        raise UserError(f'label map {label_map} cannot be read: {error}. Write it again, as a PNG.') from error
    if labels.ndim != 2:
        raise UserError(
            f'{label_map} is a colour picture, shape {labels.shape}: a label map has one channel, with the number of '
            'the class in each pixel. Map the colours to class numbers and write grey (or palette) PNGs.'
        )
    size = _picture_size(picture)
    if size is not None and size != labels.shape[::-1]:
        raise UserError(
            f'{label_map} is {labels.shape[1]}x{labels.shape[0]} (width x height), and its picture {picture} is '
            f'{size[0]}x{size[1]} once loaded, EXIF rotation included. Make the label map at the size of its picture.'
        )
    return [int(value) for value in np.unique(labels)]


def _check_values(
    values: Mapping[str, list[int]], num_classes: int, reduce_zero_label: bool, ignore_index: int, key: str
) -> None:
    first = int(reduce_zero_label)
    classes = set(range(first, first + num_classes))
    ignored = {0, IGNORED} if reduce_zero_label else {IGNORED, ignore_index}
    setting = f'{num_classes} classes, reduce_zero_label={reduce_zero_label}'
    allowed = f'{first} to {first + num_classes - 1}, and {" and ".join(map(str, sorted(ignored)))} for unlabelled'
    seen = set().union(*values.values())
    if seen == {0, IGNORED} and not reduce_zero_label and num_classes > 1:
        raise UserError(
            f'the {len(values)} label maps looked at hold the values 0 and 255 only, and 255 is ignored: class 1 would '
            'never be learned. Write the class numbers, 0 and 1, in the place of black and white.'
        )
    wrong = {label_map: set(found) - classes - ignored for label_map, found in values.items()}
    wrong = {label_map: found for label_map, found in wrong.items() if found}
    if wrong:
        label_map, found = next(iter(wrong.items()))
        cure = 'Correct the label maps, or the classes in the config.'
        if not reduce_zero_label and max(seen - ignored) == num_classes:
            cure = f'If 0 means unlabelled and the classes count from 1, set reduce_zero_label=True in {key}.'
        raise UserError(
            f'{label_map} holds the value {_some(sorted(found), str)}; allowed are {allowed} ({setting}). '
            f'{_share(wrong, values)} label maps looked at have such values. {cure}'
        )
    if not seen & classes:
        raise UserError(
            f'the {len(values)} label maps looked at have no labelled pixel, only {_some(sorted(seen), str)}; the '
            f'classes are {allowed} ({setting}). Set reduce_zero_label=False in {key} if 0 is a class.'
        )


# ------------------------------------------------------------------------------------------------------ files, folders


def _check_folder(folder: str | os.PathLike, what: str, option: str, key: str) -> None:
    if not os.path.isdir(folder):
        raise UserError(f'{what} folder not found: {_in_full(folder)}, from {option}. {_where_to_put(folder, key)}')


def _where_to_put(path: str | os.PathLike, key: str) -> str:
    """Say where data is looked for, and how to name another place."""
    elsewhere = (
        f'For data in another place: --cfg-options {key}.data_root=/path/to/the/data/ '
        "(likewise the other loaders, and the evaluators' ann_file)."
    )
    for layout in LAYOUTS:
        if any(mark in os.fspath(path) for mark in layout.marks):
            lines = ''.join(f'\n  {place}' for place in layout.places)
            return f'The configs expect {layout.name} as{lines}\nLink it there (ln -s). {elsewhere}'
    return f'Correct data_root, ann_file or data_prefix in the config. {elsewhere}'


def _check_present(paths: Sequence[str], what: str, key: str) -> None:
    """Look for files, with one listing per folder instead of a question per file."""
    listings: dict[str, set[str]] = {}
    missing = []
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in listings:
            listings[folder] = {entry.name for entry in os.scandir(folder)} if os.path.isdir(folder) else set()
        if name not in listings[folder]:
            missing.append(path)
    if not missing:
        return
    folder, name = os.path.split(missing[0])
    there = sorted(listings[folder])
    similar = [other for other in there if _stem(other) == _stem(name)]
    if similar:
        hint = f'Instead of {name} there is {similar[0]}: names must agree letter by letter, suffix included'
    else:
        hint = f'The folder {folder} holds {_some(there, str) if there else "nothing, or does not exist"}'
    raise UserError(
        f'{_share(missing, paths)} {what} are missing: {_some(missing, str)}. {hint}. '
        f'Add the files, or correct the folders and suffixes in {key}.'
    )


def _stem(name: str) -> str:
    return os.path.splitext(name)[0].lower()


def _check_files(paths: Sequence[str]) -> None:
    broken = [f'{path} ({defect})' for path in paths if (defect := _defect(path))]
    if broken:
        raise UserError(
            f'{_share(broken, paths)} picture files looked at are broken: {_some(broken, str)}. '
            'Copy or download them again, or take them out of the data set.'
        )


def _defect(path: str) -> str | None:
    """Say what is wrong with a picture file, judged by its first and last bytes."""
    with open(path, 'rb') as stream:
        head = stream.read(64)
        stream.seek(max(0, os.fstat(stream.fileno()).st_size - TAIL_BYTES))
        tail = stream.read()
    defects = {
        'empty': not head,
        'only zeros where it should begin': not any(head),
        'a web page, not a picture': head.lstrip(b'\xef\xbb\xbf \t\r\n').startswith(b'<'),
        'a Git LFS pointer, not the picture: git lfs pull': head.startswith(b'version https://git-lfs'),
        'a JPEG that is cut short': head.startswith(b'\xff\xd8') and b'\xff\xd9' not in tail,
        'a PNG that is cut short': head.startswith(b'\x89PNG') and b'IEND' not in tail,
    }
    return next((defect for defect, is_so in defects.items() if is_so), None)


def _picture_size(path: str) -> tuple[int, int] | None:
    """Return width and height as loading gives them, EXIF rotation applied; None for formats unknown to Pillow."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # very large pictures, odd EXIF: no concern of ours
            with Image.open(path) as picture:
                turned = picture.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
                return picture.size[::-1] if turned else picture.size
    except (OSError, Image.DecompressionBombError):
        return None


# --------------------------------------------------------------------------------------------------------------- words


def _spread(items: Sequence[_T], most: int) -> Sequence[_T]:
    """Return at most so many of the items, evenly spaced."""
    return items if len(items) <= most else [items[i * len(items) // most] for i in range(most)]


def _in_full(path: str | os.PathLike) -> str:
    """Name a path, and where that is."""
    path = os.fspath(path)
    return path if os.path.isabs(path) else f'{path} (that is {os.path.abspath(path)})'


def _share(part: Sized, whole: Sized) -> str:
    return f'{len(part)} of {len(whole)}'


def _listed(names: Iterable) -> str:
    return ', '.join(repr(name) for name in names)


def _some(items: Iterable, form: Callable[[Any], str] = repr) -> str:
    """Name the first few."""
    items = list(items)
    return ', '.join(form(item) for item in items[:5]) + (', ...' if len(items) > 5 else '')
