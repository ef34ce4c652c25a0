"""RoIAlign (https://arxiv.org/abs/1703.06870) with the arguments and the values of mmcv's compiled ops.

The kernels are torchvision's on every device. They average. For the maximum, each sample gets a cell of its own. On the
CPU, ``roi_samples`` averages maps of more than a few channels faster.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from .arguments import as_computable, check_choice
from .roi_samples import RoIs, add_gradient, pays, pool
from .rois import check_pooling, check_rois, count_samples, group_by_samples

OP = 'roi_align'
MAXIMUM, AVERAGE = range(2)
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
    """Pool each RoI into ``output`` ``(K, C, PH, PW)``.

    ``pool_mode`` is 0 for the maximum and 1 for the average; ``aligned`` shifts by half a pixel, so that a coordinate
    means the pixel's centre. ``argmax_y`` and ``argmax_x`` become the row and column of each maximum among its RoI's
    samples, where mmcv has its coordinates. ``rois.py`` describes the other arguments.

    An accelerator would have to wait for the check of the RoIs. For the average, a RoI of no image becomes NaN there.
    """
    import torchvision  # noqa: F401  registers torch.ops.torchvision

    features, rois = as_computable(OP, input=input, rois=rois)
    check_choice(OP, (MAXIMUM, AVERAGE), pool_mode=pool_mode)
    cells = (aligned_height, aligned_width)
    scale = check_pooling(OP, features, rois, cells, spatial_scale, output=output)
    if rois.is_cpu or pool_mode == MAXIMUM:
        sampled = check_samples(rois, len(features), cells, scale, sampling_ratio, aligned)
    rois, lost = _without_lost(rois, len(features))
    if output.numel() == 0:
        return
    if pool_mode == AVERAGE and rois.is_cpu and pays(sampled, features.shape[1]):
        pool(sampled, features.permute(0, 2, 3, 1), output.permute(0, 2, 3, 1))
        return
    if pool_mode == AVERAGE:
        pooled = torch.ops.torchvision.roi_align(features, rois, scale, *cells, sampling_ratio, aligned)
        output.copy_(pooled.masked_fill_(lost[:, None, None, None], math.nan))
        return
    for some, _, (count_y, count_x) in group_by_samples(rois, sampled.counts, output[0].numel()):
        size = (cells[0] * count_y, cells[1] * count_x)
        samples = torch.ops.torchvision.roi_align(features, rois[some], scale, *size, 1, aligned)
        largest, place = F.max_pool2d(samples, (count_y, count_x), return_indices=True)
        for buffer, values in ((output, largest), (argmax_y, place // size[1]), (argmax_x, place % size[1])):
            buffer[some] = values.to(buffer.dtype)


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
    """Add the gradient of the feature maps to ``grad_input`` ``(N, C, H, W)``."""
    gradient, rois = as_computable(OP, grad_output=grad_output, rois=rois)
    cells = (aligned_height, aligned_width)
    scale = check_pooling(OP, grad_input, rois, cells, spatial_scale, grad_output=gradient)
    if rois.is_cpu or pool_mode == MAXIMUM:
        sampled = check_samples(rois, len(grad_input), cells, scale, sampling_ratio, aligned)
    rois, _ = _without_lost(rois, len(grad_input))
    if gradient.numel() == 0:
        return
    if pool_mode == AVERAGE and rois.is_cpu and pays(sampled, gradient.shape[1]):
        add_gradient(sampled, gradient.permute(0, 2, 3, 1), grad_input.permute(0, 2, 3, 1))
        return
    if pool_mode == AVERAGE:
        grad_input += _average_gradient(gradient, rois, grad_input.shape, scale, sampling_ratio, aligned)
        return
    for some, _, (count_y, count_x) in group_by_samples(rois, sampled.counts, gradient[0].numel()):
        size = (cells[0] * count_y, cells[1] * count_x)
        by_sample = gradient.new_zeros(len(some), gradient.shape[1], size[0] * size[1])
        place = argmax_y[some].long() * size[1] + argmax_x[some].long()
        place.clamp_(max=by_sample.shape[2] - 1)  # half precision may have rounded it up
        by_sample.scatter_(2, place.flatten(2), gradient[some].flatten(2))
        grad_input += _average_gradient(by_sample.unflatten(2, size), rois[some], grad_input.shape, scale, 1, aligned)


def check_samples(
    rois: Tensor, num_images: int, cells: tuple[int, int], scale: float | Tensor, sampling_ratio: int, aligned: bool
) -> RoIs:
    """Return the RoIs with how they are sampled, or refuse what compiled ops refuse; each RoI may have its scale."""
    check_rois(OP, rois, num_images, ordered=aligned)
    counts = count_samples(OP, rois, cells, scale, sampling_ratio, MOST_SAMPLES, aligned)
    return RoIs(rois, counts, cells, scale, sampling_ratio <= 0, aligned)


def _without_lost(rois: Tensor, num_images: int) -> tuple[Tensor, Tensor]:
    """Return the RoIs with 0 for those of no image, where a kernel would reach foreign memory, and which these are."""
    if num_images == 0:  # there would be no image to send them to
        check_rois(OP, rois, num_images)
    lost = ~((rois[:, 0] >= 0) & (rois[:, 0] < num_images))
    return rois.masked_fill(lost[:, None], 0), lost


def _average_gradient(
    gradient: Tensor, rois: Tensor, shape: torch.Size, scale: float, sampling_ratio: int, aligned: bool
) -> Tensor:
    import torchvision

    cells = gradient.shape[2:]
    if gradient.is_cpu or not torch.are_deterministic_algorithms_enabled():
        return torch.ops.torchvision._roi_align_backward(gradient, rois, scale, *cells, *shape, sampling_ratio, aligned)
    # The CUDA kernel adds with atomics and refuses to run in deterministic mode. There torchvision's function swaps in
    # code without atomics. Pooling is linear: its gradient is the same at every point, so at zero.
    with torch.enable_grad():
        features = gradient.new_zeros(shape, requires_grad=True)
        pooled = torchvision.ops.roi_align(features, rois, cells, scale, sampling_ratio, aligned)
        return torch.autograd.grad(pooled, features, gradient)[0]
