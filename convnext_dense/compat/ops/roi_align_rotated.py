"""RoIAlign of rotated boxes, forward and backward, with the arguments and the values of mmcv's compiled ops.

In: feature maps ``(N, C, H, W)`` and RoIs ``(K, 6)`` as ``(image index, centre x, centre y, width, height, angle)`` in
image pixels and radians. Out: ``(K, C, PH, PW)``, written into ``output``; its gradient is added to ``bottom_grad``.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from .arguments import as_computable, numbers_at_once
from .bilinear import add_pixel_rows, add_to_rows, pixel_rows, weighted_sums
from .roi_grid import Samples, cell_edges, check_pooling, check_rois, count_samples, list_samples, split_rois

FORM = 'image index, centre x, centre y, width, height, angle'


def roi_align_rotated_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
    clockwise: bool,
) -> None:
    """Fill ``output`` ``(K, C, PH, PW)`` with the mean of the samples of each cell.

    Args:
        input: Feature maps ``(N, C, H, W)``.
        rois: ``(K, 6)``.
        output: Filled in place.
        pooled_height: ``PH``, the cells per RoI.
        pooled_width: ``PW``.
        spatial_scale: From image pixels to feature pixels, 1 / stride.
        sampling_ratio: Samples per cell and side; 0 takes about one per feature pixel.
        aligned: Shift by half a pixel, so that a coordinate means the pixel's centre.
        clockwise: Which way the angle turns.

    Raises:
        UserError: A RoI cannot be pooled.
    """
    features, rois = as_computable('roi_align_rotated', input=input, rois=rois)
    cells, shape = (pooled_height, pooled_width), features.shape
    scale = check_pooling('roi_align_rotated', features, rois, cells, spatial_scale, FORM, output=output)
    pixels = pixel_rows(features)
    for some, samples, places, weights in _parts(rois, shape, cells, scale, sampling_ratio, aligned, clockwise):
        sums = weighted_sums(pixels, places, weights, 4 * samples.starts)
        output[some] = sums.view(-1, *cells, shape[1]).permute(0, 3, 1, 2)


@torch.no_grad()
def roi_align_rotated_backward(
    top_grad: Tensor,
    rois: Tensor,
    bottom_grad: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
    clockwise: bool,
) -> None:
    """Add the gradient of the feature maps to ``bottom_grad`` ``(N, C, H, W)``; arguments as in the forward op."""
    gradient, rois = as_computable('roi_align_rotated', top_grad=top_grad, rois=rois)
    cells, shape = (pooled_height, pooled_width), bottom_grad.shape
    scale = check_pooling('roi_align_rotated', bottom_grad, rois, cells, spatial_scale, FORM, top_grad=gradient)
    total = gradient.new_zeros(shape[0] * shape[2] * shape[3], shape[1])
    for some, samples, places, weights in _parts(rois, shape, cells, scale, sampling_ratio, aligned, clockwise):
        add_to_rows(total, places, weights, samples.cell.repeat_interleave(4), pixel_rows(gradient[some]))
    add_pixel_rows(bottom_grad, total)


def _parts(
    rois: Tensor,
    shape: torch.Size,
    cells: tuple[int, int],
    scale: float,
    sampling_ratio: int,
    aligned: bool,
    clockwise: bool,
) -> Iterator[tuple[slice, Samples, Tensor, Tensor]]:
    """Yield some RoIs at a time: which, their samples, and the pixels and weights of the cells' means."""
    rule = {'no negative size': (rois[:, 3:5] >= 0).all(dim=1)} if aligned else {}
    check_rois('roi_align_rotated', rois, shape[0], FORM, **rule)
    if 0 in (shape[1], *cells):
        return
    image, x, y, width, height, angle = rois.unbind(dim=1)
    x, y = x * scale - 0.5 * aligned, y * scale - 0.5 * aligned
    width, height = width * scale, height * scale
    if not aligned:
        width, height = width.clamp(min=1), height.clamp(min=1)
    angle = -angle if clockwise else angle
    cos, sin = angle.cos(), angle.sin()
    counts = [count_samples(e, n, sampling_ratio) for e, n in zip((height, width), cells, strict=True)]
    # In feature pixels from the centre, along the box's own axes: (K, PH, 1) and (K, 1, PW)
    top = ((-height / 2)[:, None] + cell_edges(height, cells[0]))[:, :, None]
    left = ((-width / 2)[:, None] + cell_edges(width, cells[1]))[:, None, :]
    for some in split_rois('roi_align_rotated', *counts, cells, numbers_at_once(rois.device) // 16):
        samples = list_samples(counts[0][some], counts[1][some], cells)
        down, along = samples.locate(top[some], left[some], height[some] / cells[0], width[some] / cells[1])
        own_cos, own_sin = cos[some][samples.roi], sin[some][samples.roi]
        sample_y = down * own_cos - along * own_sin + y[some][samples.roi]
        sample_x = down * own_sin + along * own_cos + x[some][samples.roi]
        yield some, samples, *samples.mean_entries(sample_y, sample_x, image[some].long(), shape[2:])
