"""The drawn data set for first runs, batches drawn for a config, and checks of the user's own data."""

from convnext_dense.data.checks import check_coco, check_dataset, check_segmentation, open_wrappers, read_classes
from convnext_dense.data.datasets import ShapesInstances, ShapesLabels, write_shapes

__all__ = [
    'ShapesInstances',
    'ShapesLabels',
    'check_coco',
    'check_dataset',
    'check_segmentation',
    'open_wrappers',
    'read_classes',
    'write_shapes',
]
