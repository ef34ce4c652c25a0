"""The drawn data set on disk, and the stock datasets of MMDetection and MMSegmentation that read it.

Configs name the datasets by type, for example
``dict(type='ShapesInstances', data_root='data/shapes', pipeline=...)``; the first use writes the folder::

    root/images/{train,val}/000000.png
    root/annotations/instances_{train,val}.json     COCO instances, category ids from 1
    root/labels/{train,val}/000000.png              ADE20K: 0 is unlabelled, classes from 1
    root/shapes.json                                the parameters
"""

from __future__ import annotations

import importlib
import json
import os
import tempfile
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import cv2
import numpy as np
from mmengine.registry import DATASETS

from convnext_dense.compat.errors import UserError
from convnext_dense.data.shapes import LABELS, SHAPES, SPLITS, Instance, draw_scene

if TYPE_CHECKING:
    from mmdet.datasets import CocoDataset
    from mmseg.datasets import BaseSegDataset

MARKER = 'shapes.json'
FORMAT_VERSION = 2  # raise it with every change to the drawings or to the layout
RANGES = {'seed': (0, 2**32), 'num_train': (1, 10**6), 'num_val': (1, 10**6), 'size': (64, 1024)}


@DATASETS.register_module()
def ShapesInstances(data_root: str | os.PathLike, split: str = 'train', **kwargs) -> CocoDataset:
    """Return the shapes (5 classes, boxes and masks) as MMDetection's ``CocoDataset``.

    Args:
        data_root: Folder of the data set; written on first use.
        split: ``train`` or ``val``.
        **kwargs: ``seed``, ``num_train``, ``num_val`` and ``size`` are those of ``write_shapes``; everything else
            (``pipeline``, ``test_mode``, ``filter_cfg``, ``indices``, ...) is passed on to ``CocoDataset``.

    Raises:
        UserError: MMDetection is missing, there is no such split, or the folder cannot be written or is not ours.
    """
    library = _import_datasets('mmdet', 'ShapesInstances')
    root, kwargs = _write_split_off(data_root, split, kwargs)
    defaults = dict(
        ann_file=f'annotations/instances_{split}.json',
        data_prefix=dict(img=f'images/{split}/'),
        metainfo=dict(classes=tuple(SHAPES), palette=[LABELS[name] for name in SHAPES]),
    )
    return library.CocoDataset(data_root=root, **defaults | kwargs)


@DATASETS.register_module()
def ShapesLabels(data_root: str | os.PathLike, split: str = 'train', **kwargs) -> BaseSegDataset:
    """Return the label maps (3 backgrounds, 5 shapes; 0 is unlabelled) as MMSegmentation's ``BaseSegDataset``.

    Args:
        data_root: Folder of the data set; written on first use.
        split: ``train`` or ``val``.
        **kwargs: ``seed``, ``num_train``, ``num_val`` and ``size`` are those of ``write_shapes``; everything else
            (``pipeline``, ``test_mode``, ``indices``, ...) is passed on to ``BaseSegDataset``.

    Raises:
        UserError: MMSegmentation is missing, there is no such split, or the folder cannot be written or is not ours.
    """
    library = _import_datasets('mmseg', 'ShapesLabels')
    root, kwargs = _write_split_off(data_root, split, kwargs)
    defaults = dict(
        data_prefix=dict(img_path=f'images/{split}', seg_map_path=f'labels/{split}'),
        img_suffix='.png',
        reduce_zero_label=True,
        metainfo=dict(classes=tuple(LABELS), palette=list(LABELS.values())),
    )
    return library.BaseSegDataset(data_root=root, **defaults | kwargs)


@DATASETS.register_module()
def ListedLabels(ann_file: str, **kwargs) -> BaseSegDataset:
    """Return images and label maps that a JSON file lists, as a dataset of MMSegmentation's.

    Args:
        ann_file: A file that :func:`~convnext_dense.data.importing.import_data` wrote:
            ``{"data_list": [{"img_path": ..., "seg_map_path": ...}, ...]}``, with paths from ``data_root``.
        **kwargs: As for ``BaseSegDataset``: ``data_root``, ``metainfo``, ``reduce_zero_label``, ``pipeline``, ...

    Raises:
        UserError: MMSegmentation is missing.
    """
    _import_datasets('mmseg', 'ListedLabels')
    from convnext_dense.data.listed import ListedLabelsDataset

    return ListedLabelsDataset(ann_file=ann_file, **kwargs)


def _write_split_off(data_root: str | os.PathLike, split: str, kwargs: dict) -> tuple[str, dict]:
    """Write the data set if need be; return its folder and the arguments that are not about the drawing."""
    if split not in SPLITS:
        raise UserError(f'split={split!r}: the drawn data set has {" and ".join(map(repr, SPLITS))}; name one of them.')
    drawing = {name: kwargs.pop(name) for name in RANGES if name in kwargs}
    return str(write_shapes(data_root, **drawing)), kwargs


def _import_datasets(library: str, builder: str) -> ModuleType:
    """Import ``mmdet.datasets`` or ``mmseg.datasets`` only now: they are slow to import, and optional."""
    try:
        return importlib.import_module(f'{library}.datasets')
    except ModuleNotFoundError as error:
        if not error.name or error.name.startswith('mmcv.'):  # a compiled part of mmcv: another matter
            raise
        raise UserError(
            f'{builder} builds a dataset of {library}, and {error.name} is not installed. '
            "Install it: pip install 'convnext-dense[mm]'"
        ) from error


def write_shapes(
    root: str | os.PathLike, *, seed: int = 0, num_train: int = 800, num_val: int = 100, size: int = 128
) -> Path:
    """Write the data set, unless it is there already, and return its folder.

    The folder appears in one step when all of it is written. Several processes may write the same one at once.

    Args:
        root: Folder to write; its parents are created.
        seed: Other seeds give other pictures.
        num_train: Pictures of the split ``train``.
        num_val: Pictures of the split ``val``.
        size: Mean side of the pictures in pixels.

    Raises:
        UserError: A parameter is out of range, or something else is in the folder's place, or it cannot be written.
    """
    parameters = dict(version=FORMAT_VERSION, seed=seed, num_train=num_train, num_val=num_val, size=size)
    for name, (low, high) in RANGES.items():
        value = parameters[name]
        if type(value) is not int or not low <= value <= high:
            raise UserError(f'{name}={value!r} for the drawn data set: give a whole number from {low} to {high}.')
    root = Path(root).expanduser()
    target = root.resolve()  # through links: only a real folder can be renamed into place
    try:
        if not _is_written(target, parameters):
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f'.{target.name}.', dir=target.parent) as draft:
                _write(Path(draft, target.name), parameters)
                _move(Path(draft, target.name), target, parameters)
    except OSError as error:
        raise UserError(
            f'cannot write the drawn data set to {root}: {error}. '
            'Choose a folder on a disk that is writable and has room, or mend the cause and start again.'
        ) from error
    return root


def _is_written(target: Path, parameters: dict[str, int]) -> bool:
    """Whether the folder is there and holds this very data set.

    Raises:
        UserError: Something else is there.
    """
    advice = 'Nothing was changed. Choose another folder, or remove this one yourself if it is not needed.'
    if target.exists() and not target.is_dir():
        raise UserError(f'{target} is a file, and the drawn data set needs a folder of that name. {advice}')
    names = sorted(entry.name for entry in target.iterdir()) if target.is_dir() else []
    if not names:
        return False
    found = _read_marker(target)
    if found is None:
        raise UserError(
            f'{target} holds something else than the drawn data set: {", ".join(names[:3])} (and no {MARKER} of it). '
            f'{advice}'
        )
    differences = [
        f'{key} {found.get(key)} instead of {value}' for key, value in parameters.items() if found.get(key) != value
    ]
    if differences:
        raise UserError(f'{target} holds a drawn data set with other parameters: {", ".join(differences)}. {advice}')
    return True


def _read_marker(target: Path) -> dict | None:
    try:
        found = json.loads((target / MARKER).read_text(encoding='utf-8'))
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) and 'version' in found else None


def _move(draft: Path, target: Path, parameters: dict[str, int]) -> None:
    """Give the finished folder its name, or leave it where another process was faster."""
    try:
        if target.is_dir():
            target.rmdir()  # Windows does not rename onto a folder, not even onto an empty one
        draft.rename(target)
    except OSError:
        if not _is_written(target, parameters):
            raise


def _write(folder: Path, parameters: dict[str, int]) -> None:
    for split in SPLITS:
        _write_split(folder, split, parameters)
    (folder / MARKER).write_text(json.dumps(parameters, indent=1) + '\n', encoding='utf-8')


def _write_split(folder: Path, split: str, parameters: dict[str, int]) -> None:
    images, labels, annotations = (folder / part for part in (f'images/{split}', f'labels/{split}', 'annotations'))
    for part in (images, labels, annotations):
        part.mkdir(parents=True, exist_ok=True)
    categories = [{'id': 1 + k, 'name': name, 'supercategory': 'shape'} for k, name in enumerate(SHAPES)]
    coco = {'info': {}, 'licenses': [], 'images': [], 'annotations': [], 'categories': categories}
    for index in range(parameters[f'num_{split}']):
        scene = draw_scene(parameters['seed'], split, index, size=parameters['size'])
        name = f'{index:06d}.png'
        _write_png(images / name, scene.image[..., ::-1])  # OpenCV wants BGR
        _write_png(labels / name, scene.label_map)
        height, width = scene.label_map.shape
        coco['images'].append({'id': 1 + index, 'file_name': name, 'width': width, 'height': height})
        for instance in scene.instances:
            ids = {'id': 1 + len(coco['annotations']), 'image_id': 1 + index}
            coco['annotations'].append(ids | _annotation(instance))
    (annotations / f'instances_{split}.json').write_text(json.dumps(coco), encoding='utf-8')


def _write_png(path: Path, image: np.ndarray) -> None:
    # Not cv2.imwrite: that only returns False when the disk is full.
    path.write_bytes(cv2.imencode('.png', image)[1].tobytes())


def _annotation(instance: Instance) -> dict:
    """Return the COCO entry of an instance, without its ids; the box is x, y, width, height."""
    return {
        'category_id': 1 + instance.category,
        'iscrowd': 0,
        'area': int(instance.mask.sum()),
        'bbox': list(cv2.boundingRect(instance.mask.astype(np.uint8))),
        'segmentation': polygons(instance.mask),
    }


def polygons(mask: np.ndarray) -> list[list[int]]:
    """Return the outlines of a mask (H, W) as COCO polygons ``[x0, y0, x1, y1, ...]``.

    The corners lie on the corners of pixels, so that a polygon spans the mask's pixels entirely.

    >>> polygons(np.pad(np.ones((2, 3), bool), 1))
    [[1, 1, 1, 3, 4, 3, 4, 1]]
    """
    # At twice the size, each pixel corner has a contour point of its own.
    doubled = np.repeat(np.repeat(mask.astype(np.uint8), 2, axis=0), 2, axis=1)
    contours = cv2.findContours(doubled, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]
    corners = [cv2.approxPolyDP((contour + 1) // 2, epsilon=0.6, closed=True) for contour in contours]
    return [outline.ravel().tolist() for outline in corners if len(outline) >= 3]
