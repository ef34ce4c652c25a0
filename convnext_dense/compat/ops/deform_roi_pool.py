"""Deformable RoI pooling (https://arxiv.org/abs/1703.06211), forward and backward.

In: feature maps ``(N, C, H, W)``, RoIs ``(K, 5)`` as ``(image index, x1, y1, x2, y2)`` in image pixels, and how far
each cell is moved, ``(K, 2, PH, PW)`` as ``(x, y)`` in sizes of the RoI times ``gamma``, or an empty tensor.
Out: ``(K, C, PH, PW)``, written into ``output``; gradients are added to ``grad_input`` and ``grad_offset``.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .arguments import as_computable, check_shape, numbers_at_once
from .bilinear import add_pixel_rows, add_to_rows, pixel_rows, weighted_sums
from .roi_grid import Samples, cell_edges, check_pooling, check_rois, count_samples, list_samples, split_rois


def deform_roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    output: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> None:
    """Fill ``output`` ``(K, C, PH, PW)`` with the mean of the samples of each moved cell.

    Args:
        input: Feature maps ``(N, C, H, W)``.
        rois: ``(K, 5)``.
        offset: ``(K, 2, PH, PW)``, or empty: nothing is moved.
        output: Filled in place.
        pooled_height: ``PH``, the cells per RoI.
        pooled_width: ``PW``.
        spatial_scale: From image pixels to feature pixels, 1 / stride.
        sampling_ratio: Samples per cell and side; 0 takes about one per feature pixel.
        gamma: Unit of the offsets, in widths and heights of the RoI.

    Raises:
        UserError: A RoI cannot be pooled, or the offsets have another shape.
    """
    features, rois, offset = as_computable('deform_roi_pool', input=input, rois=rois, offset=offset)
    cells, shape = (pooled_height, pooled_width), features.shape
    scale = check_pooling('deform_roi_pool', features, rois, cells, spatial_scale, output=output)
    pixels = pixel_rows(features)
    for part in _parts(rois, offset, shape, cells, scale, sampling_ratio):
        places, weights = part.entries(offset[part.some], gamma)
        sums = weighted_sums(pixels, places, weights, 4 * part.samples.starts)
        output[part.some] = sums.view(-1, *cells, shape[1]).permute(0, 3, 1, 2)


def deform_roi_pool_backward(
    grad_output: Tensor,
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> None:
    """Add to ``grad_input`` ``(N, C, H, W)`` and ``grad_offset`` ``(K, 2, PH, PW)``; arguments as in the forward op.

    The gradient of the offsets is the derivative. mmcv's is another one within a pixel of the feature map's border.
    """
    gradient, features, rois, offset = as_computable(
        'deform_roi_pool', grad_output=grad_output, input=input, rois=rois, offset=offset
    )
    cells = (pooled_height, pooled_width)
    scale = check_pooling('deform_roi_pool', features, rois, cells, spatial_scale, grad_output=gradient)
    pixels = pixel_rows(features)
    total = torch.zeros_like(pixels)
    for part in _parts(rois, offset, features.shape, cells, scale, sampling_ratio):
        rows = pixel_rows(gradient[part.some])
        with torch.enable_grad():
            moved = offset[part.some].detach().requires_grad_()
            places, weights = part.entries(moved, gamma)
            if offset.numel() and places.numel():
                # PyTorch 2.4 has no gradient of the weights where the rows have none
                sums = weighted_sums(pixels.detach().requires_grad_(), places, weights, 4 * part.samples.starts)
                grad_offset[part.some] += torch.autograd.grad(sums, moved, rows)[0]
        add_to_rows(total, places, weights.detach(), part.samples.cell.repeat_interleave(4), rows)
    add_pixel_rows(grad_input, total)


class _Part(NamedTuple):
    """Some RoIs and their samples."""

    some: slice
    image: Tensor  # (k,)
    starts: tuple[Tensor, Tensor]  # y1 and x1 (k,), in feature pixels
    extents: tuple[Tensor, Tensor]  # height and width (k,)
    samples: Samples
    cells: tuple[int, int]
    size: torch.Size  # of the feature map

    def entries(self, offset: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
        """Return four pixels for each sample and their weights in a cell's mean; differentiable by the offset."""
        gamma = float(np.float32(gamma))  # a C float in mmcv
        edges = []
        for axis in range(2):
            start, extent = self.starts[axis][:, None, None], self.extents[axis]
            if offset.numel():
                start = start + gamma * extent[:, None, None] * offset[:, 1 - axis]
            # (k, PH, 1) or (k, 1, PW)
            edges.append(start + cell_edges(extent, self.cells[axis]).unsqueeze(2 - axis))
        sizes = [extent / num_cells for extent, num_cells in zip(self.extents, self.cells, strict=True)]
        return self.samples.mean_entries(*self.samples.locate(*edges, *sizes), self.image, self.size)


def _parts(
    rois: Tensor,
    offset: Tensor,
    shape: torch.Size,
    cells: tuple[int, int],
    scale: float,
    sampling_ratio: int,
) -> Iterator[_Part]:
    check_rois('deform_roi_pool', rois, shape[0])
    if offset.numel():
        check_shape('deform_roi_pool', offset=(offset.shape, (len(rois), 2, *cells)))
    if 0 in (shape[1], *cells):
        return
    image, x1, y1, x2, y2 = rois.unbind(dim=1)
    x1, y1, x2, y2 = (side * scale - 0.5 for side in (x1, y1, x2, y2))
    extents = (y2 - y1, x2 - x1)
    counts = [count_samples(e, n, sampling_ratio) for e, n in zip(extents, cells, strict=True)]
    for some in split_rois('deform_roi_pool', *counts, cells, numbers_at_once(rois.device) // 16):
        samples = list_samples(counts[0][some], counts[1][some], cells)
        starts, own_extents = (y1[some], x1[some]), (extents[0][some], extents[1][some])
        yield _Part(some, image[some].long(), starts, own_extents, samples, cells, shape[2:])
