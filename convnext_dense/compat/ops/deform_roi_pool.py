"""Deformable RoI pooling (https://arxiv.org/abs/1703.06211).

Each RoI is split into cells, each cell is moved by its own offset, and the mean of a few samples in the cell is its
value. PyTorch's ``grid_sample`` takes the samples, and autograd differentiates them by the features and the offsets.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .arguments import as_computable, check_shape, numbers_at_once
from .rois import check_pooling, check_rois, check_samples, count_samples

OP = 'deform_roi_pool'
MOST_SAMPLES = 2**22  # of one RoI; a RoI of 2048 x 2048 feature pixels has as many


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
        rois: ``(K, 5)`` as ``(image index, x1, y1, x2, y2)`` in image pixels.
        offset: ``(K, 2, PH, PW)`` as ``(x, y)``, or an empty tensor where nothing is moved.
        output: Filled in place.
        pooled_height: ``PH``, the cells per RoI.
        pooled_width: ``PW``.
        spatial_scale: From image pixels to feature pixels, 1 / stride.
        sampling_ratio: Samples per cell and side; 0 takes about one per feature pixel.
        gamma: Unit of the offsets, in widths and heights of the RoI.

    Raises:
        UserError: A RoI cannot be pooled, or the offsets have another shape.
    """
    features, rois, offset = as_computable(OP, input=input, rois=rois, offset=offset)
    cells = (pooled_height, pooled_width)
    scale = check_pooling(OP, features, rois, cells, spatial_scale, output=output)
    for some, image, counts in _groups(features, rois, offset, cells, scale, sampling_ratio):
        own_offset = offset[some] if offset.numel() else None
        output[some] = _pool(features[image], rois[some], own_offset, cells, counts, scale, gamma).to(output.dtype)


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
    gradient, features, rois, offset = as_computable(OP, grad_output=grad_output, input=input, rois=rois, offset=offset)
    cells = (pooled_height, pooled_width)
    scale = check_pooling(OP, features, rois, cells, spatial_scale, grad_output=gradient)
    for some, image, counts in _groups(features, rois, offset, cells, scale, sampling_ratio):
        with torch.enable_grad():
            own_map = features[image].detach().requires_grad_()
            own_offset = offset[some].detach().requires_grad_() if offset.numel() else None
            pooled = _pool(own_map, rois[some], own_offset, cells, counts, scale, gamma)
        inputs = [own_map] if own_offset is None else [own_map, own_offset]
        found = torch.autograd.grad(pooled, inputs, gradient[some])
        grad_input[image] += found[0]
        if own_offset is not None:
            grad_offset[some] += found[1].to(grad_offset.dtype)


def _pool(
    features: Tensor,
    rois: Tensor,
    offset: Tensor | None,
    cells: tuple[int, int],
    counts: tuple[int, int],
    scale: float,
    gamma: float,
) -> Tensor:
    """Return ``(k, C, PH, PW)``, the means of the cells of RoIs of one map ``(C, H, W)``; differentiable.

    Args:
        features: ``(C, H, W)``.
        rois: ``(k, 5)``.
        offset: ``(k, 2, PH, PW)`` or None.
        cells: ``PH`` and ``PW``.
        counts: Samples per cell along y and along x, 1 or more.
        scale: From image pixels to feature pixels.
        gamma: Unit of the offsets.
    """
    gamma = float(np.float32(gamma))  # mmcv takes it as a C float
    axes = []
    for axis in range(2):  # y, then x
        low, high = rois[:, 2 - axis] * scale - 0.5, rois[:, 4 - axis] * scale - 0.5
        extent = (high - low)[:, None, None]
        cell = torch.arange(cells[axis], device=rois.device).unsqueeze(1 - axis)  # (PH, 1) or (1, PW)
        start = low[:, None, None].expand(-1, *cells)
        if offset is not None:
            start = start + gamma * extent * offset[:, 1 - axis]
        start = start + cell * (extent / cells[axis])
        # The order of operations is mmcv's, so that samples are rounded to the same places.
        middle = (torch.arange(counts[axis], device=rois.device) + 0.5) * (extent / cells[axis]) / counts[axis]
        axes.append(start[..., None] + middle[:, :, None])  # (k, PH, PW, samples)
    y, x = torch.broadcast_tensors(axes[0][..., None], axes[1][..., None, :])
    height, width = features.shape[1:]
    inside = (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
    # In float32 the way to units and back would move a sample by 1e-5 pixels and more. A sample outside of the map is
    # 0, and so is one at NaN, where grid_sample would read foreign memory.
    x, y = (torch.where(inside, along, 0).double() for along in (x, y))
    grid = torch.stack([_to_unit(x, width), _to_unit(y, height)], dim=-1).view(1, -1, counts[0] * counts[1], 2)
    samples = F.grid_sample(features[None].double(), grid, padding_mode='border', align_corners=True)
    samples = samples[0] * inside.view(samples.shape[2:])
    return samples.mean(dim=-1).view(-1, len(rois), *cells).transpose(0, 1).to(features.dtype)


def _to_unit(position: Tensor, size: int) -> Tensor:
    """Return positions in pixels as ``grid_sample`` counts them: -1 and 1 are the middles of the outer pixels."""
    return position * (2 / (size - 1)) - 1 if size > 1 else position * 0


def _groups(
    features: Tensor, rois: Tensor, offset: Tensor, cells: tuple[int, int], scale: float, sampling_ratio: int
) -> Iterator[tuple[Tensor, int, tuple[int, int]]]:
    """Yield indices of RoIs of the same image that have the same number of samples along y and x, and these."""
    check_rois(OP, rois, len(features))
    if offset.numel():
        check_shape(OP, offset=(offset.shape, (len(rois), 2, *cells)))
    if len(rois) == 0 or 0 in (features.shape[1], *cells):
        return
    image, x1, y1, x2, y2 = rois.unbind(dim=1)
    sides = ((y1, y2, cells[0]), (x1, x2, cells[1]))
    counts = [
        count_samples((high * scale - 0.5) - (low * scale - 0.5), num_cells, sampling_ratio)
        for low, high, num_cells in sides
    ]
    check_samples(OP, *counts, cells, MOST_SAMPLES)
    kinds, kind_of_roi = torch.stack([image.long(), *counts]).unique(dim=1, return_inverse=True)
    for kind, (own_image, count_y, count_x) in enumerate(kinds.T.tolist()):
        if count_y == 0 or count_x == 0:  # a RoI without size has no samples; its cells stay 0
            continue
        numbers = count_y * count_x * cells[0] * cells[1] * features.shape[1]
        step = max(1, 16 * numbers_at_once(rois.device) // numbers)
        for some in (kind_of_roi == kind).nonzero().flatten().split(step):
            yield some, own_image, (count_y, count_x)
