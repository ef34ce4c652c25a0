"""The drawn data set for configs: a folder's name goes in, a stock MMDetection or MMSegmentation dataset comes out.

The functions stand in MMEngine's root registry, named like the classes for which they stand, so that a config of
either library finds them::

    train_dataloader = dict(dataset=dict(type='ShapesInstances', data_root='data/shapes', split='train', pipeline=...))
    val_dataloader = dict(dataset=dict(type='ShapesLabels', data_root='data/shapes', split='val', pipeline=...))

The first use writes the folder. Everything of the stock dataset that is not named here (``test_mode``, ``filter_cfg``,
``indices``, ...) is passed on to it.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING

from mmengine.registry import DATASETS

from convnext_dense.compat.errors import UserError
from convnext_dense.data.shapes import LABELS, SHAPES, SPLITS
from convnext_dense.data.writer import NUM_TRAIN, NUM_VAL, SIZE, write_shapes

if TYPE_CHECKING:
    from mmdet.datasets import CocoDataset
    from mmseg.datasets import BaseSegDataset


@DATASETS.register_module()
def ShapesInstances(
    data_root: str | os.PathLike,
    split: str = 'train',
    pipeline: Sequence = (),
    *,
    seed: int = 0,
    num_train: int = NUM_TRAIN,
    num_val: int = NUM_VAL,
    size: int = SIZE,
    **kwargs,
) -> CocoDataset:
    """Return the shapes (5 classes, boxes and masks) as MMDetection's ``CocoDataset``.

    Args:
        data_root: Folder of the data set; written on first use.
        split: ``train`` or ``val``.
        pipeline: Transforms of the dataset.
        seed: See ``write_shapes``, as for the three below.
        num_train: Pictures of the split ``train``.
        num_val: Pictures of the split ``val``.
        size: Mean side of the pictures in pixels.
        **kwargs: Passed on to ``CocoDataset``.

    Raises:
        UserError: MMDetection is missing, there is no such split, or the folder cannot be written or is not ours.
    """
    _check_split(split)
    mmdet_datasets = _import_datasets('mmdet', 'ShapesInstances')
    root = write_shapes(data_root, seed=seed, num_train=num_train, num_val=num_val, size=size)
    metainfo = {'classes': tuple(SHAPES), 'palette': [LABELS[name] for name in SHAPES]}
    return mmdet_datasets.CocoDataset(
        data_root=str(root),
        ann_file=f'annotations/instances_{split}.json',
        data_prefix={'img': f'images/{split}/'},
        pipeline=list(pipeline),
        **{'metainfo': metainfo, **kwargs},
    )


@DATASETS.register_module()
def ShapesLabels(
    data_root: str | os.PathLike,
    split: str = 'train',
    pipeline: Sequence = (),
    *,
    seed: int = 0,
    num_train: int = NUM_TRAIN,
    num_val: int = NUM_VAL,
    size: int = SIZE,
    **kwargs,
) -> BaseSegDataset:
    """Return the label maps (3 backgrounds, 5 shapes; 0 is unlabelled) as MMSegmentation's ``BaseSegDataset``.

    Args:
        data_root: Folder of the data set; written on first use.
        split: ``train`` or ``val``.
        pipeline: Transforms of the dataset.
        seed: See ``write_shapes``, as for the three below.
        num_train: Pictures of the split ``train``.
        num_val: Pictures of the split ``val``.
        size: Mean side of the pictures in pixels.
        **kwargs: Passed on to ``BaseSegDataset``.

    Raises:
        UserError: MMSegmentation is missing, there is no such split, or the folder cannot be written or is not ours.
    """
    _check_split(split)
    mmseg_datasets = _import_datasets('mmseg', 'ShapesLabels')
    root = write_shapes(data_root, seed=seed, num_train=num_train, num_val=num_val, size=size)
    return mmseg_datasets.BaseSegDataset(
        data_root=str(root),
        data_prefix={'img_path': f'images/{split}', 'seg_map_path': f'labels/{split}'},
        img_suffix='.png',
        reduce_zero_label=True,
        pipeline=list(pipeline),
        **{'metainfo': {'classes': tuple(LABELS), 'palette': list(LABELS.values())}, **kwargs},
    )


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise UserError(f'split={split!r}: the drawn data set has {" and ".join(map(repr, SPLITS))}; name one of them.')


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
