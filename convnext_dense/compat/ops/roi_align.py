"""RoIAlign forward and backward with the arguments and the values of mmcv's compiled ops.

In: feature maps ``(N, C, H, W)`` and RoIs ``(K, 5)`` as ``(image index, x1, y1, x2, y2)`` in image pixels.
Out: ``(K, C, PH, PW)``, written into ``output``; its gradient is added to ``grad_input``.

Average pooling is torchvision's kernel on every device. Max pooling, which torchvision lacks, is plain torch here.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .arguments import as_computable, check_choice, numbers_at_once
from .bilinear import add_to_planes, largest_of_runs, pixel_rows, weighted_sums
from .roi_grid import (
    cell_edges,
    check_pooling,
    check_rois,
    check_samples,
    count_samples,
    list_samples,
    split_rois,
)

MAX, AVERAGE = range(2)
MOST_SAMPLES = 2**26  # of one RoI for torchvision on the CPU, 2 GB; masks are pooled from whole images
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
        UserError: A RoI cannot be pooled. Average pooling on an accelerator does not look at them, because it would
            have to wait: a RoI of no image becomes NaN.
    """
    features, rois = as_computable('roi_align', input=input, rois=rois)
    check_choice('roi_align', (MAX, AVERAGE), pool_mode=pool_mode)
    cells = (aligned_height, aligned_width)
    scale = check_pooling('roi_align', features, rois, cells, spatial_scale, output=output)
    if pool_mode == AVERAGE and not rois.is_cpu:
        rois, lost = _without_lost(rois, len(features))
        pooled = _average(features, rois, cells, scale, sampling_ratio, aligned)
        output.copy_(pooled.masked_fill_(lost[:, None, None, None], math.nan))
        return
    _, x1, y1, x2, y2 = rois.unbind(dim=1)
    ordered = {'x1 <= x2, y1 <= y2': (x1 <= x2) & (y1 <= y2)} if aligned else {}
    check_rois('roi_align', rois, len(features), **ordered)
    if output.numel() == 0:
        return
    grid = _grid(rois, cells, scale, sampling_ratio, aligned)
    if pool_mode == AVERAGE:
        check_samples('roi_align', grid.count_y, grid.count_x, cells, MOST_SAMPLES)
        output.copy_(_average(features, rois, cells, scale, sampling_ratio, aligned))
        return
    for some, best in _max_pool(features, grid, cells):
        for buffer, values in zip((output, argmax_y, argmax_x), best, strict=True):
            buffer[some] = values


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
    gradient, rois = as_computable('roi_align', grad_output=grad_output, rois=rois)
    check_choice('roi_align', (MAX, AVERAGE), pool_mode=pool_mode)
    cells = (aligned_height, aligned_width)
    scale = check_pooling('roi_align', grad_input, rois, cells, spatial_scale, grad_output=gradient)
    if rois.is_cpu:
        check_rois('roi_align', rois, len(grad_input))
    rois, _ = _without_lost(rois, len(grad_input))
    if gradient.numel() == 0:
        return
    if pool_mode == MAX:
        total = torch.zeros_like(grad_input, dtype=gradient.dtype, memory_format=torch.contiguous_format)
        _add_max_gradient(total, gradient, rois, argmax_y, argmax_x)
        grad_input += total
        return
    # The CUDA kernel adds with atomics and refuses to run in PyTorch's deterministic mode.
    deterministic = torch.are_deterministic_algorithms_enabled() and not gradient.is_cpu
    average_gradient = _average_gradient_deterministic if deterministic else _average_gradient
    grad_input += average_gradient(gradient, rois, grad_input.shape, cells, scale, sampling_ratio, aligned)


def _without_lost(rois: Tensor, num_images: int) -> tuple[Tensor, Tensor]:
    """Return the RoIs with 0 for those of no image, where a kernel would reach foreign memory, and which these are.

    Raises:
        UserError: There are no images at all.
    """
    if num_images == 0:
        check_rois('roi_align', rois, num_images)
    lost = ~((rois[:, 0] >= 0) & (rois[:, 0] < num_images))
    return rois.masked_fill(lost[:, None], 0), lost


def _load_torchvision() -> None:
    import torchvision  # noqa: F401  registers torch.ops.torchvision


def _average(
    features: Tensor, rois: Tensor, cells: tuple[int, int], scale: float, sampling_ratio: int, aligned: bool
) -> Tensor:
    _load_torchvision()
    return torch.ops.torchvision.roi_align(features, rois, scale, *cells, sampling_ratio, aligned)


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


class _Grid(NamedTuple):
    """Where the cells of each RoI are, in feature pixels, and how many samples they have along each side."""

    image: Tensor  # (K,)
    top: Tensor  # (K, PH)
    left: Tensor  # (K, PW)
    cell_height: Tensor  # (K,)
    cell_width: Tensor  # (K,)
    count_y: Tensor  # (K,)
    count_x: Tensor  # (K,)


def _grid(rois: Tensor, cells: tuple[int, int], scale: float, sampling_ratio: int, aligned: bool) -> _Grid:
    image, x1, y1, x2, y2 = rois.unbind(dim=1)
    edges, sizes, counts = [], [], []
    for low, high, num_cells in ((y1, y2, cells[0]), (x1, x2, cells[1])):
        start = low * scale - 0.5 * aligned
        extent = (high * scale - 0.5 * aligned) - start
        if not aligned:
            extent = extent.clamp(min=1)
        edges.append(start[:, None] + cell_edges(extent, num_cells))
        sizes.append(extent / num_cells)
        counts.append(count_samples(extent, num_cells, sampling_ratio))
    return _Grid(image.long(), *edges, *sizes, *counts)


def _max_pool(features: Tensor, grid: _Grid, cells: tuple[int, int]) -> Iterator[tuple[slice, tuple[Tensor, ...]]]:
    """Yield some RoIs at a time: which, and each cell's largest sample with its ``y`` and ``x``, ``(k, C, PH, PW)``."""
    channels = features.shape[1]
    pixels = pixel_rows(features)
    # What a cell without samples holds in mmcv, which starts its search there
    lowest = -10000.0 if features.is_cpu else torch.finfo(torch.float32).min
    limit = max(1, numbers_at_once(features.device) // max(1, channels))
    for some in split_rois('roi_align', grid.count_y, grid.count_x, cells, limit):
        part = _Grid(*(values[some] for values in grid))
        samples = list_samples(part.count_y, part.count_x, cells)
        y, x = samples.locate(part.top[:, :, None], part.left[:, None, :], part.cell_height, part.cell_width)
        if len(y) == 0:
            best = features.new_full((len(samples.starts), channels), lowest)
            where = (torch.full_like(best, NO_SAMPLE),) * 2
        else:
            places, weights = samples.entries(y, x, part.image, features.shape[2:])
            values = weighted_sums(
                pixels, places.flatten(), weights.flatten(), 4 * torch.arange(len(y), device=y.device)
            )
            # A NaN never wins, as in a loop of `if value > best`
            best, winner = largest_of_runs(values.nan_to_num_(nan=-math.inf, posinf=math.inf), samples.starts)
            found = (best > lowest) & (samples.counts > 0)[:, None]
            best = torch.where(found, best, lowest)
            where = [torch.where(found, axis[winner], NO_SAMPLE) for axis in (y, x)]
        yield some, tuple(t.view(-1, *cells, channels).permute(0, 3, 1, 2) for t in (best, *where))


def _add_max_gradient(total: Tensor, gradient: Tensor, rois: Tensor, argmax_y: Tensor, argmax_x: Tensor) -> None:
    """Send each cell's gradient to the four pixels around the sample that won; adds to ``total`` ``(N, C, H, W)``."""
    _, channels, height, width = total.shape
    planes = rois[:, :1].long() * channels + torch.arange(channels, device=rois.device)  # (K, C)
    size = max(1, numbers_at_once(rois.device) // max(1, gradient[:1].numel()))
    for some in torch.arange(len(rois), device=rois.device).split(size):
        y, x = argmax_y[some].to(gradient.dtype), argmax_x[some].to(gradient.dtype)
        shares = torch.where(y == NO_SAMPLE, 0, gradient[some])
        add_to_planes(total.view(-1, height, width), planes[some, :, None, None], y, x, shares)
