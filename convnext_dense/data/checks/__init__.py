"""Checks of a data set before a run, so that a mistake is answered at once and not in the third hour."""

from convnext_dense.data.checks.coco import check_coco
from convnext_dense.data.checks.configs import check_dataset, open_wrappers, read_classes
from convnext_dense.data.checks.run import check_run, check_split, find_misfits
from convnext_dense.data.checks.segmentation import check_segmentation

__all__ = [
    'check_coco',
    'check_dataset',
    'check_run',
    'check_segmentation',
    'check_split',
    'find_misfits',
    'open_wrappers',
    'read_classes',
]
