"""RoIAlign (https://arxiv.org/abs/1703.06870) with the arguments and the values of mmcv's compiled ops.

The kernels are torchvision's on every device. They average; mmcv's other mode, the maximum, is not implemented.
"""

import math

import torch
from torch import Tensor

from . import explain_missing
from .arguments import as_computable
from .rois import check_pooling, check_rois, check_samples, count_samples

AVERAGE = 1
MOST_SAMPLES = 2**26  # of one RoI for torchvision on the CPU, 2 GB; masks are pooled from whole images


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
    """Average each RoI into ``output`` ``(K, C, PH, PW)``.

    Args:
        input: Feature maps ``(N, C, H, W)``.
        rois: ``(K, 5)`` as ``(image index, x1, y1, x2, y2)`` in image pixels.
        output: Filled in place.
        argmax_y: Of the maximum only.
        argmax_x: Of the maximum only.
        aligned_height: ``PH``, the cells per RoI.
        aligned_width: ``PW``.
        spatial_scale: From image pixels to feature pixels, 1 / stride.
        sampling_ratio: Samples per cell and side; 0 takes about one per feature pixel.
        pool_mode: 1, the average.
        aligned: Shift by half a pixel, so that a coordinate means the pixel's centre.

    Raises:
        UserError: A RoI cannot be pooled. An accelerator would have to wait for this check; there a RoI of no image
            becomes NaN instead.
        NotImplementedError: The mode is the maximum.
    """
    features, rois = as_computable('roi_align', input=input, rois=rois)
    _check_mode(pool_mode)
    cells = (aligned_height, aligned_width)
    scale = check_pooling('roi_align', features, rois, cells, spatial_scale, output=output)
    if rois.is_cpu:
        _check_on_cpu(rois, len(features), cells, scale, sampling_ratio, aligned)
    rois, lost = _without_lost(rois, len(features))
    if output.numel() == 0:
        return
    _load_torchvision()
    pooled = torch.ops.torchvision.roi_align(features, rois, scale, *cells, sampling_ratio, aligned)
    output.copy_(pooled.masked_fill_(lost[:, None, None, None], math.nan))


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
    _check_mode(pool_mode)
    cells = (aligned_height, aligned_width)
    scale = check_pooling('roi_align', grad_input, rois, cells, spatial_scale, grad_output=gradient)
    if rois.is_cpu:
        check_rois('roi_align', rois, len(grad_input))
    rois, _ = _without_lost(rois, len(grad_input))
    if gradient.numel() == 0:
        return
    # The CUDA kernel adds with atomics and refuses to run in PyTorch's deterministic mode.
    deterministic = torch.are_deterministic_algorithms_enabled() and not gradient.is_cpu
    average_gradient = _average_gradient_deterministic if deterministic else _average_gradient
    grad_input += average_gradient(gradient, rois, grad_input.shape, cells, scale, sampling_ratio, aligned)


def _check_mode(pool_mode: int) -> None:
    if pool_mode != AVERAGE:
        raise NotImplementedError(explain_missing(f'roi_align with pool_mode {pool_mode}, the maximum'))


def _check_on_cpu(
    rois: Tensor, num_images: int, cells: tuple[int, int], scale: float, sampling_ratio: int, aligned: bool
) -> None:
    _, x1, y1, x2, y2 = rois.unbind(dim=1)
    ordered = {'x1 <= x2, y1 <= y2': (x1 <= x2) & (y1 <= y2)} if aligned else {}
    check_rois('roi_align', rois, num_images, **ordered)
    if 0 in cells:
        return
    smallest = 0 if aligned else 1
    counts = [
        count_samples(((high - low) * scale).clamp(min=smallest), num_cells, sampling_ratio)
        for low, high, num_cells in ((y1, y2, cells[0]), (x1, x2, cells[1]))
    ]
    check_samples('roi_align', *counts, cells, MOST_SAMPLES)


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
