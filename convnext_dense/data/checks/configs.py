"""Finds the data sets that a config names, and has them checked before a run.

Upstream meets most of these mistakes late, or never: class names that the annotations do not have are dropped in
silence, a label out of range is a failed assertion on the GPU, and a cut picture stops the run in its third hour.
Only plain files are read; nothing of MMDetection or MMSegmentation is imported, except COCO's class names.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from convnext_dense.compat.errors import UserError, shorten
from convnext_dense.data.checks.coco import check_coco
from convnext_dense.data.checks.files import listed, share
from convnext_dense.data.checks.segmentation import IGNORED, check_segmentation
from convnext_dense.data.formats.voc import read_xml

COCO_TYPES = ('CocoDataset',)
VOC_TYPES = ('VOCDataset', 'XMLDataset')
OWN_TYPES = ('ShapesInstances', 'ShapesLabels', 'ListedLabels')  # whose files this package writes


class SegmentationType(NamedTuple):
    """What a dataset class of MMSegmentation takes for granted."""

    img_suffix: str
    seg_map_suffix: str
    reduce_zero_label: bool
    num_classes: int | None  # None: as many as the config names


SEGMENTATION_TYPES = {
    'BaseSegDataset': SegmentationType('.jpg', '.png', False, None),
    'ADE20KDataset': SegmentationType('.jpg', '.png', True, 150),
    'CityscapesDataset': SegmentationType('_leftImg8bit.png', '_gtFine_labelTrainIds.png', False, 19),
    'COCOStuffDataset': SegmentationType('.jpg', '_labelTrainIds.png', False, 171),
    'PascalContextDataset': SegmentationType('.jpg', '.png', False, 60),
    'PascalContextDataset59': SegmentationType('.jpg', '.png', True, 59),
    'PascalVOCDataset': SegmentationType('.jpg', '.png', False, 21),
}


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
    return [note for place, plain in open_wrappers(dataset, key) for note in _check_plain(plain, place)]


def open_wrappers(dataset: Mapping | None, key: str = 'dataset') -> Iterator[tuple[str, Mapping]]:
    """Yield place and config of each dataset that reads files itself: inside of wrappers, and of several joined.

    >>> list(open_wrappers({'datasets': [{'dataset': {'ann_file': 'a'}}, {'ann_file': 'b'}]}, 'top'))
    [('top.datasets.0.dataset', {'ann_file': 'a'}), ('top.datasets.1', {'ann_file': 'b'})]
    """
    if not isinstance(dataset, Mapping):
        return
    if 'dataset' in dataset:
        yield from open_wrappers(dataset['dataset'], f'{key}.dataset')
    elif 'datasets' in dataset:
        for i, part in enumerate(dataset['datasets']):
            yield from open_wrappers(part, f'{key}.datasets.{i}')
    else:
        yield key, dataset


def _check_plain(dataset: Mapping, key: str) -> list[str]:
    kind = _type_name(dataset)
    if kind in OWN_TYPES:
        return []
    checks = {**dict.fromkeys(COCO_TYPES, _check_coco_config), **dict.fromkeys(VOC_TYPES, check_voc)}
    checks |= dict.fromkeys(SEGMENTATION_TYPES, _check_segmentation_config)
    check = checks.get(kind) or (_check_coco_config if coco_subclass(dataset) else None)
    if check is None:
        return [f'{key} was not checked: datasets of type {kind!r} are not known.']
    if _is_remote(dataset):
        return [f'{key} was not checked: its files are not on a local disk.']
    return check(dataset, key)


def coco_subclass(dataset: Mapping) -> type | None:
    """Return a dataset's class where it is derived from MMDetection's ``CocoDataset``, as the user's own may be."""
    try:
        from mmdet.datasets import CocoDataset
        from mmdet.registry import DATASETS
    except ImportError:  # then there will be no run either, and it says so better than we could
        return None
    kind = dataset.get('type')
    found = kind if isinstance(kind, type) else DATASETS.get(str(kind))
    return found if isinstance(found, type) and issubclass(found, CocoDataset) else None


def check_voc(dataset: Mapping, key: str) -> list[str]:
    """Check the class names of Pascal VOC's XML files, of which MMDetection leaves unknown ones out in silence."""
    ann_file, classes = _join(dataset, dataset.get('ann_file') or ''), read_classes(dataset, key)
    if not os.path.isfile(ann_file):
        raise UserError(f'{ann_file} not found: the list of images that {key}.ann_file names. Correct the path.')
    names = Path(ann_file).read_text(encoding='utf-8').split()
    folder = Path(_join(dataset, (dataset.get('data_prefix') or {}).get('sub_data_root') or ''))
    files = [folder / dataset.get('ann_subdir', 'Annotations') / f'{name}.xml' for name in names]
    if missing := [file for file in files if not file.is_file()]:
        raise UserError(
            f'{share(missing, files)} annotation files of {ann_file} are missing: {shorten(missing, 5)}. Correct '
            f'ann_subdir or data_prefix in {key}.'
        )
    found = dict.fromkeys(
        name for file in files for each in read_xml(file).iter('object') if (name := each.findtext('name'))
    )
    if classes is None or not found:
        return [] if found else [f'{ann_file}: the annotations hold no object.']
    unknown = [name for name in found if name not in classes]
    if len(unknown) == len(found):
        raise UserError(
            f'{ann_file}: none of the classes in {key}.metainfo, {listed(classes)}, is in the annotations, which have '
            f'{listed(found)}. Upper case, blanks and plurals count: write them as the annotations do.'
        )
    return [f'{ann_file}: the config leaves out {listed(unknown)}; their objects are not used.'] if unknown else []


def _check_coco_config(dataset: Mapping, key: str) -> list[str]:
    ann_file = dataset.get('ann_file')
    if not ann_file:
        raise UserError(f"{key} names no annotation file: set ann_file='annotations/....json' there.")
    classes = read_classes(dataset, key)
    return check_coco(
        _join(dataset, ann_file),
        _prefix(dataset, 'img', key),
        classes=classes or getattr(coco_subclass(dataset), 'METAINFO', {}).get('classes'),
        classes_are_default=not classes,
        masks=any(step.get('with_mask') for step in annotation_steps(dataset)),
        polygons_only=any(step.get('poly2mask') is False for step in annotation_steps(dataset)),
        is_labelled=not dataset.get('test_mode'),
        key=key,
    )


def annotation_steps(dataset: Mapping) -> list[Mapping]:
    """Return the steps of a dataset's pipeline that load annotations."""
    steps = dataset.get('pipeline') or ()
    return [step for step in steps if isinstance(step, Mapping) and _type_name(step) == 'LoadAnnotations']


def _check_segmentation_config(dataset: Mapping, key: str) -> list[str]:
    kind = SEGMENTATION_TYPES[_type_name(dataset)]
    classes = read_classes(dataset, key)
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
    """Join as MMEngine does: absolute paths stand alone, and without any path it is the current folder."""
    return os.path.join(dataset.get('data_root') or '', path) or os.curdir


def _prefix(dataset: Mapping, name: str, key: str) -> str:
    """Return the folder of ``data_prefix`` with this name."""
    prefixes = dataset.get('data_prefix', {'img_path': '', 'seg_map_path': ''})
    if prefixes.get(name) is None:
        raise UserError(
            f'{key}.data_prefix has no {name!r}, which {_type_name(dataset)} reads; it has {listed(prefixes)}. '
            f"Set data_prefix=dict({name}='folder/of/the/pictures/')."
        )
    return _join(dataset, prefixes[name])


def read_classes(dataset: Mapping, key: str = 'dataset') -> Sequence[str] | None:
    """Return the class names that a dataset's config or the file it names gives; None where it gives none."""
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
