"""RoIAlign forward and backward with the arguments and the values of mmcv's compiled ops.

In: feature maps ``(N, C, H, W)`` and RoIs ``(K, 5)`` as ``(image index, x1, y1, x2, y2)`` in image pixels.
Out: ``(K, C, PH, PW)``, written into ``output``; its gradient is added to ``grad_input``.

Average pooling is torchvision's kernel on every device. Max pooling, which torchvision lacks, is plain torch here.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...errors import UserError

MAX, AVERAGE = range(2)
NO_SAMPLE = -1  # in argmax_y and argmax_x: the cell has no sample, so no pixel gets its gradient


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Pool each RoI into ``output`` ``(K, C, PH, PW)``.

    Args:
        input: Feature maps ``(N, C, H, W)``.
        rois: ``(K, 5)``.
        output: Filled in place.
        argmax_y: Max pooling only: filled with the sample that won, in feature pixels, shaped like ``output``.
        argmax_x: As ``argmax_y``.
        aligned_height: ``PH``, the cells per RoI.
        aligned_width: ``PW``.
        spatial_scale: From image pixels to feature pixels, 1 / stride.
        sampling_ratio: Samples per cell and side; 0 takes about one per feature pixel.
        pool_mode: 0 max, 1 average.
        aligned: Shift by half a pixel, so that a coordinate means the pixel's centre.

    Raises:
        UserError: A RoI cannot be pooled. Average pooling on an accelerator does not check: it would have to wait.
    """
    features = _as_computable(input)
    rois = rois.to(features.dtype)
    if rois.is_cpu or pool_mode == MAX:
        _check_rois(rois, num_images=len(features), aligned=aligned)
    cells = (aligned_height, aligned_width)
    scale = float(np.float32(spatial_scale))  # mmcv takes it as a C float
    if pool_mode == AVERAGE:
        _load_torchvision()
        pooled = torch.ops.torchvision.roi_align(features, rois, scale, *cells, sampling_ratio, aligned)
        output.copy_(pooled)
        return
    best = _max_pool(features, _sample_grid(rois, cells, scale, sampling_ratio, aligned))
    for buffer, values in zip((output, argmax_y, argmax_x), best, strict=True):
        buffer.copy_(values)


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Add the gradient of the feature maps to ``grad_input`` ``(N, C, H, W)``; arguments as in the forward op."""
    gradient = _as_computable(grad_output)
    if pool_mode == MAX:
        grad_input += _max_pool_gradient(gradient, rois, argmax_y, argmax_x, grad_input.shape)
        return
    rois = rois.to(gradient.dtype)
    cells = (aligned_height, aligned_width)
    scale = float(np.float32(spatial_scale))
    # The CUDA kernel adds with atomics and refuses to run in PyTorch's deterministic mode.
    deterministic = torch.are_deterministic_algorithms_enabled() and not gradient.is_cpu
    average_gradient = _average_gradient_deterministic if deterministic else _average_gradient
    grad_input += average_gradient(gradient, rois, grad_input.shape, cells, scale, sampling_ratio, aligned)


def _as_computable(tensor: Tensor) -> Tensor:
    # Half precision has no kernel on the CPU, and its coordinates would be off by whole pixels anywhere;
    # torchvision computes in float32 under autocast, too.
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def _load_torchvision() -> None:
    import torchvision  # noqa: F401  registers torch.ops.torchvision


def _check_rois(rois: Tensor, num_images: int, aligned: bool) -> None:
    """Refuse RoIs that compiled ops refuse, and those with which they read or write foreign memory."""
    image, x1, y1, x2, y2 = rois.unbind(dim=1)
    bad = ~rois.isfinite().all(dim=1) | (image < 0) | (image >= num_images)
    if aligned:
        bad |= (x2 < x1) | (y2 < y1)
    if bad.any():
        raise UserError(
            f'roi_align got {int(bad.sum())} of {len(rois)} RoIs (image index, x1, y1, x2, y2) that it cannot pool, '
            f'for example {rois[bad][0].tolist()}. Allowed are finite numbers, x1 <= x2, y1 <= y2 and an image index '
            f'below {num_images}. NaN or inf usually means that training has diverged: look at the loss of the steps '
            'before, lower the learning rate or clip gradients.'
        )


def _average_gradient(
    gradient: Tensor,
    rois: Tensor,
    shape: torch.Size,
    cells: tuple[int, int],
    scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    _load_torchvision()
    return torch.ops.torchvision._roi_align_backward(gradient, rois, scale, *cells, *shape, sampling_ratio, aligned)


def _average_gradient_deterministic(
    gradient: Tensor,
    rois: Tensor,
    shape: torch.Size,
    cells: tuple[int, int],
    scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """The same through autograd: in deterministic mode torchvision's function swaps in code without atomics."""
    import torchvision

    with torch.enable_grad():
        # Pooling is linear: the gradient is the same at every point, so at zero.
        features = gradient.new_zeros(shape, requires_grad=True)
        pooled = torchvision.ops.roi_align(features, rois, cells, scale, sampling_ratio, aligned)
        return torch.autograd.grad(pooled, features, gradient)[0]


class _SampleGrid(NamedTuple):
    """Where each cell of each RoI is sampled; the samples of a cell are numbered ``(iy, ix)``."""

    image: Tensor  # (K,) index of the image
    count_y: Tensor  # (K,) samples per cell
    count_x: Tensor  # (K,)
    cell_y: Tensor  # (K, PH) upper edge of the cells, in feature pixels
    cell_x: Tensor  # (K, PW)
    cell_height: Tensor  # (K,)
    cell_width: Tensor  # (K,)

    def samples(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield, sample by sample, the RoIs ``(R,)`` that have it with its coordinates ``(R, PH)`` and ``(R, PW)``."""
        for iy in range(int(self.count_y.amax())):
            for ix in range(int(self.count_x.amax())):
                rois = torch.nonzero((self.count_y > iy) & (self.count_x > ix)).flatten()
                y = self.cell_y[rois] + ((iy + 0.5) * self.cell_height / self.count_y)[rois, None]
                x = self.cell_x[rois] + ((ix + 0.5) * self.cell_width / self.count_x)[rois, None]
                yield rois, y, x


def _sample_grid(rois: Tensor, cells: tuple[int, int], scale: float, sampling_ratio: int, aligned: bool) -> _SampleGrid:
    image, x1, y1, x2, y2 = rois.unbind(dim=1)
    axes = []
    for low, high, num_cells in ((y1, y2, cells[0]), (x1, x2, cells[1])):
        start = low * scale - 0.5 * aligned
        extent = (high * scale - 0.5 * aligned) - start
        if not aligned:
            extent = extent.clamp(min=1)
        cell = extent / num_cells
        count = torch.full_like(cell, sampling_ratio) if sampling_ratio > 0 else cell.ceil()
        edges = start[:, None] + torch.arange(num_cells, device=rois.device) * cell[:, None]
        axes.append((count, edges, cell))
    counts, edges, extents = zip(*axes, strict=True)
    return _SampleGrid(image.long(), *counts, *edges, *extents)


def _max_pool(features: Tensor, grid: _SampleGrid) -> tuple[Tensor, Tensor, Tensor]:
    """Return the largest sample of each cell and its coordinates, three tensors ``(K, C, PH, PW)``."""
    _, channels, height, width = features.shape
    # (N, C, H, W) -> (N * H * W, C): a pixel's channels lie together, so one index fetches them all
    pixels = features.permute(0, 2, 3, 1).reshape(-1, channels)
    shape = (len(grid.image), grid.cell_y.shape[1], grid.cell_x.shape[1], channels)
    # What a cell without samples holds in mmcv, which starts its search there
    lowest = -10000.0 if features.is_cpu else torch.finfo(torch.float32).min
    best = features.new_full(shape, lowest)
    best_y, best_x = features.new_full(shape, NO_SAMPLE), features.new_full(shape, NO_SAMPLE)
    if best.numel() == 0:
        return tuple(tensor.permute(0, 3, 1, 2) for tensor in (best, best_y, best_x))

    for rois, y, x in grid.samples():
        y, x = torch.broadcast_tensors(y[:, :, None], x[:, None, :])  # (R, PH, PW)
        places, weights, _ = _bilinear(y, x, height, width)
        places = places + (grid.image[rois] * height * width)[None, :, None, None]
        corners = [weight[..., None] * pixels[place] for place, weight in zip(places, weights, strict=True)]
        value = corners[0] + corners[1] + corners[2] + corners[3]
        better = value > best[rois]  # the first of equals wins, NaN never does
        best[rois] = torch.where(better, value, best[rois])
        best_y[rois] = torch.where(better, y[..., None], best_y[rois])
        best_x[rois] = torch.where(better, x[..., None], best_x[rois])
    return tuple(tensor.permute(0, 3, 1, 2) for tensor in (best, best_y, best_x))


def _max_pool_gradient(gradient: Tensor, rois: Tensor, argmax_y: Tensor, argmax_x: Tensor, shape: torch.Size) -> Tensor:
    """Send each cell's gradient to the four pixels around the sample that won."""
    _, channels, height, width = shape
    y, x = argmax_y.to(gradient.dtype), argmax_x.to(gradient.dtype)
    places, weights, inside = _bilinear(y, x, height, width)
    plane = rois[:, :1].long() * channels + torch.arange(channels, device=rois.device)  # (K, C)
    places = places + (plane * height * width)[:, :, None, None]
    sampled = inside & (y != NO_SAMPLE)
    # (4, ...) -> (..., 4): the four shares of a cell follow each other, the order in which mmcv adds them
    places = places.movedim(0, -1)[sampled].flatten()
    shares = (gradient * weights).movedim(0, -1)[sampled].flatten()
    total = gradient.new_zeros(shape).flatten()
    return total.index_add_(0, places, shares).view(shape)


def _bilinear(y: Tensor, x: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the four pixels around each point as ``row * width + column``, their weights, and if it is inside.

    A point up to one pixel outside takes the border's value; further out its weights are 0.

    Args:
        y: Any shape, in feature pixels.
        x: Of the same shape.
        height: Of the feature map.
        width: Of the feature map.

    Returns:
        Places ``(4, ...)``, weights ``(4, ...)`` and the mask ``(...)``.
    """
    inside = (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
    y, x = (torch.where(inside, axis, 0).clamp(min=0) for axis in (y, x))
    top, left = y.long().clamp(max=height - 1), x.long().clamp(max=width - 1)
    bottom, right = (top + 1).clamp(max=height - 1), (left + 1).clamp(max=width - 1)
    # On the last row and column both neighbours are the same pixel, and all the weight goes to the first.
    lower = torch.where(top < height - 1, y - top, 0)
    righter = torch.where(left < width - 1, x - left, 0)
    upper, lefter = 1 - lower, 1 - righter
    places = torch.stack([top * width + left, top * width + right, bottom * width + left, bottom * width + right])
    weights = torch.stack([upper * lefter, upper * righter, lower * lefter, lower * righter])
    return places, weights * inside, inside
