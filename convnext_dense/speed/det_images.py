"""MMDetection's steps of a data pipeline, with the same result."""

from mmdet.datasets.transforms.formatting import PackDetInputs
from mmdet.datasets.transforms.transforms import RandomFlip

from convnext_dense.speed.images import OrderedFlip, PixelsLast


class OrderedRandomFlip(OrderedFlip, RandomFlip):
    """MMDetection's step with a quick copy of the image."""


class PixelsLastPack(PixelsLast, PackDetInputs):
    """MMDetection's step without a copy of the image."""
