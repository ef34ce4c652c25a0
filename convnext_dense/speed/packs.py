"""How an image leaves a data pipeline: without a copy."""

import numpy as np
import torch


class PixelsLast:
    """Makes a packing step leave the image in memory as it was loaded, (H, W, C), under the view (C, H, W)."""

    def transform(self, results: dict) -> dict:
        """Return ``inputs``, uint8 (C, H, W), and ``data_samples``; the image is (H, W, C) or (H, W)."""
        image = np.ascontiguousarray(results['img'])
        packed = super().transform({key: value for key, value in results.items() if key != 'img'})
        pixels = torch.from_numpy(image if image.ndim == 3 else image[..., None]).permute(2, 0, 1)
        return {'inputs': pixels, **packed}
