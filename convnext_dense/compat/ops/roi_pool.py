"""RoI max pooling (https://arxiv.org/abs/1504.08083), forward and backward, with the values of mmcv's compiled ops.

torchvision's kernel rounds a RoI to whole pixels before it splits it, mmcv's splits first. So each cell is handed to
torchvision as a RoI of its own, of whole pixels.
"""

import torch
from torch import Tensor

from .arguments import as_computable
from .rois import check_pooling, check_rois

NO_PIXEL = -1  # in argmax: the cell is empty, so no pixel gets its gradient


def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Fill ``output`` ``(K, C, PH, PW)`` with the largest pixel of each cell, and ``argmax`` with its place.

    That is ``row * W + column``, or -1 in a cell without pixels. The last pixel of a RoI belongs to it.
    ``rois.py`` describes the other arguments.
    """
    import torchvision  # noqa: F401  registers torch.ops.torchvision

    features, rois = as_computable('roi_pool', input=input, rois=rois)
    cells = (pooled_height, pooled_width)
    scale = check_pooling('roi_pool', features, rois, cells, spatial_scale, output=output, argmax=argmax)
    num_images, channels, height, width = features.shape
    check_rois('roi_pool', rois, num_images)
    image, x1, y1, x2, y2 = rois.unbind(dim=1)
    bounds, sound = [], True
    for low, high, num_cells, size in ((x1, x2, pooled_width, width), (y1, y2, pooled_height, height)):
        start = low * scale
        extent = (high + 1) * scale - start
        sound = sound & (extent > 0)
        number = torch.arange(num_cells, device=rois.device)
        begin = (number * (extent / num_cells)[:, None] + start[:, None]).floor().clamp(0, size)
        end = ((number + 1) * (extent / num_cells)[:, None] + start[:, None]).ceil().clamp(0, size)
        bounds.append((begin, end))
    left, right = (bound[:, None, :].expand(-1, pooled_height, -1) for bound in bounds[0])
    top, bottom = (bound[:, :, None].expand(-1, -1, pooled_width) for bound in bounds[1])
    empty = (right <= left) | (bottom <= top) | ~sound[:, None, None]
    cells = torch.stack([image[:, None, None].expand_as(left), left, top, right - 1, bottom - 1], dim=-1)
    cells = torch.where(empty[..., None], 0, cells).view(-1, 5)
    largest, places = torch.ops.torchvision.roi_pool(features, cells, 1.0, 1, 1)
    largest, places = (t.view(*empty.shape, channels).permute(0, 3, 1, 2) for t in (largest, places))
    output.copy_(torch.where(empty[:, None], 0, largest))
    argmax.copy_(torch.where(empty[:, None], NO_PIXEL, places))


def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Add each cell's gradient to the pixel that won, in ``grad_input`` ``(N, C, H, W)``."""
    gradient, rois = as_computable('roi_pool', grad_output=grad_output, rois=rois)
    cells = (pooled_height, pooled_width)
    check_pooling('roi_pool', grad_input, rois, cells, spatial_scale, grad_output=gradient, argmax=argmax)
    if rois.is_cpu:  # elsewhere it would have to wait, and PyTorch looks at where it adds
        check_rois('roi_pool', rois, len(grad_input))
    _, channels, height, width = grad_input.shape
    planes = rois[:, :1].long() * channels + torch.arange(channels, device=rois.device)  # (K, C)
    places = argmax + (planes * (height * width))[:, :, None, None]
    shares = torch.where(argmax == NO_PIXEL, 0, gradient)
    places = torch.where(argmax == NO_PIXEL, 0, places)
    # In one dimension this is deterministic on CUDA too, where that is asked for.
    total = gradient.new_zeros(grad_input.numel()).scatter_add_(0, places.flatten(), shares.flatten())
    grad_input += total.view(grad_input.shape)
