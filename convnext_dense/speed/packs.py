"""How an image leaves a data pipeline: without a copy."""

from collections.abc import Callable

import numpy as np
import torch


def pack_pixels_last(pack: Callable[[dict], dict], results: dict) -> dict:
    """Pack a sample; the image, (H, W, C) or (H, W), stays in memory as it is, and becomes a view (C, H, W)."""
    image = np.ascontiguousarray(results['img'])
    packed = pack({key: value for key, value in results.items() if key != 'img'})
    pixels = torch.from_numpy(image if image.ndim == 3 else image[..., None]).permute(2, 0, 1)
    return {'inputs': pixels, **packed}
