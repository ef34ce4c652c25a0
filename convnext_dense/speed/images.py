"""How an image lies in memory in a data pipeline, and leaves it: without copies that are slow or needless."""

import cv2
import numpy as np
import torch


class OrderedFlip:
    """Makes a flipping step copy the image at once: a view of NumPy, which counts backwards, is slow to copy later."""

    def _flip(self, results: dict) -> None:
        """Flip ``img``, (H, W, C) or (H, W), and what belongs to it."""
        super()._flip(results)
        results['img'] = in_order(results['img'])


class PixelsLast:
    """Makes a packing step leave the image in memory as it was loaded, (H, W, C), under the view (C, H, W)."""

    def transform(self, results: dict) -> dict:
        """Return ``inputs``, uint8 (C, H, W), and ``data_samples``; the image is (H, W, C) or (H, W)."""
        image = np.ascontiguousarray(results['img'])
        packed = super().transform({key: value for key, value in results.items() if key != 'img'})
        pixels = torch.from_numpy(image if image.ndim == 3 else image[..., None]).permute(2, 0, 1)
        return {'inputs': pixels, **packed}


def in_order(image: np.ndarray) -> np.ndarray:
    """Return an image (H, W, C) or (H, W), as a copy where it is a flipped view of uint8."""
    down, across = (stride < 0 for stride in image.strides[:2])
    if image.dtype != np.uint8 or not (down or across):
        return image
    upright = image[:: -1 if down else 1, :: -1 if across else 1]
    return cv2.flip(upright, -1 if down and across else int(across)).reshape(image.shape)
