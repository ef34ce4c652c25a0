"""Checks of regions of interest (RoIs) and of the maps that they are pooled from."""

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from .arguments import check_maps, check_shape

CORNERS = 'image index, x1, y1, x2, y2'
FARTHEST = 1e30  # larger numbers of a RoI would overflow in float32
LARGEST_SCALE = 1e6
ENDLESS = 2**40  # samples along a side, more than any device holds


def count_samples(extent: Tensor, num_cells: int, sampling_ratio: int) -> Tensor:
    """Return how many samples a cell has along one side: the ratio, or where that is 0 about one per feature pixel.

    Args:
        extent: Height or width of the RoIs ``(K,)``, in feature pixels.
        num_cells: Along this side.
        sampling_ratio: Samples per cell and side, or 0.
    """
    if sampling_ratio > 0:
        return torch.full_like(extent, min(sampling_ratio, ENDLESS), dtype=torch.long)
    return (extent / num_cells).ceil().clamp(0, ENDLESS).long()


def check_samples(op: str, count_y: Tensor, count_x: Tensor, cells: tuple[int, int], most: int) -> None:
    """Refuse RoIs with more than ``most`` samples, given those along the sides of a cell ``(K,)``."""
    counts = count_y.float() * count_x.float() * (cells[0] * cells[1])  # integers would overflow
    if (counts > most).any():
        raise UserError(
            f'{op}: RoI {int(counts.argmax())} would need {int(counts.max())} samples, more than {most}. It is far '
            'larger than any image: look for diverged boxes, clip them to the image, or change sampling_ratio.'
        )


def check_pooling(
    op: str,
    maps: Tensor,
    rois: Tensor,
    cells: tuple[int, int],
    spatial_scale: float,
    **pooled: Tensor,
) -> float:
    """Refuse shapes and a scale that do not fit. It looks at no RoI and waits for no device.

    Args:
        op: Whom an error names.
        maps: The features or their gradient ``(N, C, H, W)``.
        rois: ``(K, 5)``.
        cells: ``PH`` and ``PW``, per RoI.
        spatial_scale: From image pixels to feature pixels.
        **pooled: What has the shape of the output, ``(K, C, PH, PW)``.

    Returns:
        The scale as mmcv takes it, a C float.

    Raises:
        UserError: It says what came and what is allowed.
    """
    if rois.ndim != 2 or rois.shape[1] != 5:
        raise UserError(f'{op} needs RoIs (K, 5) as ({CORNERS}) and got {tuple(rois.shape)}.')
    check_maps(op, input=maps)
    expected = (len(rois), maps.shape[1], *cells)
    check_shape(op, **{name: (tensor.shape, expected) for name, tensor in pooled.items()})
    if not 0 < spatial_scale < LARGEST_SCALE:
        raise UserError(f'{op}: spatial_scale is {spatial_scale}. Allowed are positive numbers: 1 / stride of the map.')
    return float(np.float32(spatial_scale))


def check_rois(op: str, rois: Tensor, num_images: int, **rules: Tensor) -> None:
    """Refuse RoIs that compiled ops refuse, and those with which they read or write foreign memory.

    Args:
        op: Whom the error names.
        rois: ``(K, 5)``; the first column is the index of the image.
        num_images: How many there are.
        **rules: What else is asked of a RoI, and which keep it ``(K,)``.

    Raises:
        UserError: It says how many are bad, shows one and names what is allowed.
    """
    bad = ~(rois.abs() < FARTHEST).all(dim=1) | (rois[:, 0] < 0) | (rois[:, 0] >= num_images)
    for kept in rules.values():
        bad |= ~kept
    if bad.any():
        allowed = ', '.join([f'numbers up to {FARTHEST:g}', *rules])
        raise UserError(
            f'{op} got {int(bad.sum())} of {len(rois)} RoIs ({CORNERS}) that it cannot pool, '
            f'for example {rois[bad][0].tolist()}. Allowed are {allowed} and an image index '
            f'below {num_images}. NaN or inf usually means that training has diverged: look at the loss of the steps '
            'before, lower the learning rate or clip gradients.'
        )
