"""MMDetection's last step of a data pipeline."""

from mmdet.datasets.transforms.formatting import PackDetInputs

from convnext_dense.speed.packs import pack_pixels_last


class PixelsLastPack(PackDetInputs):
    """MMDetection's step, which leaves the image in memory as it was loaded, (H, W, C), under the view (C, H, W)."""

    def transform(self, results: dict) -> dict:
        """Return ``inputs``, uint8 (C, H, W), and ``data_samples``."""
        return pack_pixels_last(super().transform, results)
