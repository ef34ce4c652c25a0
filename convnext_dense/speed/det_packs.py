"""MMDetection's last step of a data pipeline."""

from mmdet.datasets.transforms.formatting import PackDetInputs

from convnext_dense.speed.packs import PixelsLast


class PixelsLastPack(PixelsLast, PackDetInputs):
    """MMDetection's step without a copy of the image."""
