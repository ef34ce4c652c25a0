"""Regions of interest (RoIs): their checks, those of the maps that they are pooled from, and the samples they need.

The ops that pool RoIs take feature maps ``(N, C, H, W)`` and RoIs ``(K, 5)`` as ``(image index, x1, y1, x2, y2)`` in
image pixels; ``spatial_scale``, 1 / stride, leads to feature pixels. Each RoI is split into ``PH x PW`` cells, and one
number for each channel and cell goes to the output ``(K, C, PH, PW)``. A cell is sampled at ``sampling_ratio`` points
along each side, or where that is 0 at about one for each feature pixel.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from .arguments import check_maps, check_shape, numbers_at_once

CORNERS = 'image index, x1, y1, x2, y2'
FARTHEST = 1e30  # larger numbers of a RoI would overflow in float32
LARGEST_SCALE = 1e6
ENDLESS = 2**40  # samples along a side, more than any device holds


def check_pooling(
    op: str, maps: Tensor, rois: Tensor, cells: tuple[int, int], spatial_scale: float, **pooled: Tensor
) -> float:
    """Refuse shapes and a scale that do not fit. It looks at no RoI and waits for no device.

    ``maps`` are the features or their gradient, ``cells`` are ``PH`` and ``PW``, and ``pooled`` are tensors of the
    output's shape. The scale is returned as mmcv takes it, a C float.
    """
    if rois.ndim != 2 or rois.shape[1] != 5:
        raise UserError(f'{op} needs RoIs (K, 5) as ({CORNERS}) and got {tuple(rois.shape)}.')
    check_maps(op, input=maps)
    expected = (len(rois), maps.shape[1], *cells)
    check_shape(op, **{name: (tensor.shape, expected) for name, tensor in pooled.items()})
    if not 0 < spatial_scale < LARGEST_SCALE:
        raise UserError(f'{op}: spatial_scale is {spatial_scale}. Allowed are positive numbers: 1 / stride of the map.')
    return float(np.float32(spatial_scale))


def check_rois(op: str, rois: Tensor, num_images: int, ordered: bool = False) -> None:
    """Refuse RoIs ``(K, 5)`` that compiled ops refuse, and those with which they read or write foreign memory.

    ``ordered`` asks for ``x1 <= x2`` and ``y1 <= y2``.
    """
    sound = (rois.abs() < FARTHEST).all(dim=1) & (rois[:, 0] >= 0) & (rois[:, 0] < num_images)
    if ordered:
        sound &= (rois[:, 1:3] <= rois[:, 3:]).all(dim=1)
    if not sound.all():
        order = ', x1 <= x2, y1 <= y2' if ordered else ''
        raise UserError(
            f'{op} got {int((~sound).sum())} of {len(rois)} RoIs ({CORNERS}) that it cannot pool, for example '
            f'{rois[~sound][0].tolist()}. Allowed are numbers up to {FARTHEST:g}{order} and an image index below '
            f'{num_images}. NaN or inf usually means that training has diverged: look at the loss of the steps before, '
            'lower the learning rate or clip gradients.'
        )


def count_samples(
    op: str,
    rois: Tensor,
    cells: tuple[int, int],
    scale: float | Tensor,
    sampling_ratio: int,
    most: int,
    aligned: bool = True,
) -> Tensor:
    """Return how many samples a cell of each RoI has along y and along x, ``(2, K)``. A RoI may have ``most``.

    ``scale`` is one number, or one for each RoI.
    """
    shift, smallest = (0.5, 0) if aligned else (0, 1)
    x1, y1, x2, y2 = rois[:, 1:].T * scale - shift
    extent = torch.stack([y2 - y1, x2 - x1]).clamp(min=smallest)
    counts = (extent / extent.new_tensor(cells)[:, None]).ceil().clamp(max=ENDLESS).long()
    if sampling_ratio > 0:
        counts.fill_(min(sampling_ratio, ENDLESS))
    totals = counts[0].float() * counts[1].float() * (cells[0] * cells[1])  # integers would overflow
    if (totals > most).any():
        raise UserError(
            f'{op}: RoI {int(totals.argmax())} would need {int(totals.max())} samples, more than {most}. It is far '
            'larger than any image: look for diverged boxes, clip them to the image, or change sampling_ratio.'
        )
    return counts


def group_by_samples(rois: Tensor, counts: Tensor, numbers: int) -> Iterator[tuple[Tensor, int, tuple[int, int]]]:
    """Yield indices of RoIs of one image that have the same counts of samples, the image and these counts.

    A RoI without size has no samples; it is left out. ``numbers`` is how many numbers are held for one sample of each
    cell of a RoI.
    """
    kinds, kind_of_roi = torch.cat([rois[:, :1].long().T, counts]).unique(dim=1, return_inverse=True)
    for kind, (image, count_y, count_x) in enumerate(kinds.T.tolist()):
        if count_y == 0 or count_x == 0:
            continue
        step = max(1, 16 * numbers_at_once(rois.device) // (count_y * count_x * numbers))
        for some in (kind_of_roi == kind).nonzero().flatten().split(step):
            yield some, image, (count_y, count_x)
