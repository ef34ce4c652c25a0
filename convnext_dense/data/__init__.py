"""The drawn data set for first runs, batches drawn for a config, and checks of the user's own data."""

from convnext_dense.data.checks.coco import check_coco
from convnext_dense.data.checks.configs import check_dataset, open_wrappers, read_classes
from convnext_dense.data.checks.run import check_run, check_split, find_misfits
from convnext_dense.data.checks.segmentation import check_segmentation
from convnext_dense.data.datasets import ListedLabels, ShapesInstances, ShapesLabels, write_shapes
from convnext_dense.data.decoding import LoadDeferredImage, LoadResizedImage
from convnext_dense.data.importing import import_data
from convnext_dense.data.pictures import LoadAnyImage
from convnext_dense.data.preprocessor import BandsPreprocessor
