"""The drawn data set for first runs, batches drawn for a config, and checks of the user's own data."""

from convnext_dense.data.checks import (
    check_coco,
    check_dataset,
    check_run,
    check_segmentation,
    check_split,
    find_misfits,
    open_wrappers,
    read_classes,
)
from convnext_dense.data.datasets import ListedLabels, ShapesInstances, ShapesLabels, write_shapes
from convnext_dense.data.decoding import LoadDeferredImage, LoadResizedImage
from convnext_dense.data.importing import import_data
from convnext_dense.data.pictures import LoadAnyImage
from convnext_dense.data.preprocessor import BandsPreprocessor

__all__ = [
    'BandsPreprocessor',
    'ListedLabels',
    'LoadAnyImage',
    'LoadDeferredImage',
    'LoadResizedImage',
    'ShapesInstances',
    'ShapesLabels',
    'check_coco',
    'check_dataset',
    'check_run',
    'check_segmentation',
    'check_split',
    'find_misfits',
    'import_data',
    'open_wrappers',
    'read_classes',
    'write_shapes',
]
