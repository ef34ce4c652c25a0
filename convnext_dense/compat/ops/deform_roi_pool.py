"""Deformable RoI pooling (https://arxiv.org/abs/1703.06211).

Each RoI is split into cells, each cell is moved by its own offset, and the mean of a few samples in the cell is its
value. PyTorch's ``grid_sample`` takes the samples, and autograd differentiates them by the features and the offsets.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .arguments import as_computable, check_shape
from .rois import check_pooling, check_rois, count_samples, group_by_samples

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

    ``offset`` ``(K, 2, PH, PW)`` moves the cells by ``(x, y)``, in widths and heights of the RoI times ``gamma``; an
    empty tensor moves nothing. ``rois.py`` describes the other arguments.
    """
    features, rois, offset = as_computable(OP, input=input, rois=rois, offset=offset)
    cells = (pooled_height, pooled_width)
    scale = check_pooling(OP, features, rois, cells, spatial_scale, output=output)
    for some, image, cell_offset, counts in _groups(features, rois, offset, cells, scale, sampling_ratio):
        output[some] = _pool(features[image], rois[some], cell_offset, counts, scale, gamma).to(output.dtype)


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
    """Add to ``grad_input`` ``(N, C, H, W)`` and ``grad_offset`` ``(K, 2, PH, PW)``.

    The gradient of the offsets is the derivative. mmcv's is another one within a pixel of the feature map's border.
    """
    gradient, features, rois, offset = as_computable(OP, grad_output=grad_output, input=input, rois=rois, offset=offset)
    cells = (pooled_height, pooled_width)
    scale = check_pooling(OP, features, rois, cells, spatial_scale, grad_output=gradient)
    for some, image, cell_offset, counts in _groups(features, rois, offset, cells, scale, sampling_ratio):
        inputs = [tensor.detach().requires_grad_() for tensor in (features[image], cell_offset)]
        with torch.enable_grad():
            pooled = _pool(inputs[0], rois[some], inputs[1], counts, scale, gamma)
        grad_map, grad_cells = torch.autograd.grad(pooled, inputs, gradient[some])
        grad_input[image] += grad_map
        if offset.numel():
            grad_offset[some] += grad_cells.to(grad_offset.dtype)


def _pool(
    features: Tensor, rois: Tensor, offset: Tensor, counts: tuple[int, int], scale: float, gamma: float
) -> Tensor:
    """Return the means of the cells ``(k, C, PH, PW)`` of RoIs ``(k, 5)`` of one map ``(C, H, W)``; differentiable.

    ``offset`` ``(k, 2, PH, PW)`` moves the cells, and ``counts`` are the samples of a cell along y and along x.
    """
    gamma = float(np.float32(gamma))  # mmcv takes it as a C float
    cells = offset.shape[2:]
    axes = []
    for axis in range(2):  # y, then x
        low, high = (rois[:, corner - axis, None, None] * scale - 0.5 for corner in (2, 4))
        extent = high - low
        cell = torch.arange(cells[axis], device=rois.device).unsqueeze(1 - axis)  # (PH, 1) or (1, PW)
        # The order of operations is mmcv's, so that samples are rounded to the same places.
        start = low + gamma * extent * offset[:, 1 - axis] + cell * (extent / cells[axis])
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
) -> Iterator[tuple[Tensor, int, Tensor, tuple[int, int]]]:
    """Yield indices of RoIs of one image with the same counts of samples, the image, the RoIs' offsets, the counts."""
    check_rois(OP, rois, len(features))
    if offset.numel() == 0:
        offset = rois.new_zeros(len(rois), 2, *cells)
    check_shape(OP, offset=(offset.shape, (len(rois), 2, *cells)))
    numbers = features.shape[1] * cells[0] * cells[1]
    if len(rois) == 0 or numbers == 0:
        return
    counts = count_samples(OP, rois, cells, scale, sampling_ratio, MOST_SAMPLES)
    for some, image, counts_of_cell in group_by_samples(rois, counts, numbers):
        yield some, image, offset[some], counts_of_cell
