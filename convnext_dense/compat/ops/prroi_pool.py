"""Precise RoI pooling (https://arxiv.org/abs/1807.11590): the exact mean of the interpolated map over each cell.

In: feature maps ``(N, C, H, W)`` and RoIs ``(K, 5)`` as ``(image index, x1, y1, x2, y2)`` in image pixels.
Out: ``(K, C, PH, PW)``, written into ``output``; gradients are added to ``grad_input`` and ``grad_rois``.

The integral of a bilinear map over a rectangle is a product of one along y and one along x, so a RoI is two matrix
products with the integrals of the pixels' hat functions. Outside of the map the features are 0.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from .arguments import as_computable, numbers_at_once
from .roi_grid import check_pooling, check_rois


def prroi_pool_forward(
    input: Tensor, rois: Tensor, output: Tensor, pooled_height: int, pooled_width: int, spatial_scale: float
) -> None:
    """Fill ``output`` ``(K, C, PH, PW)``."""
    features, rois = as_computable('prroi_pool', input=input, rois=rois)
    cells = (pooled_height, pooled_width)
    scale = check_pooling('prroi_pool', features, rois, cells, spatial_scale, output=output)
    for image, some in _parts(features, rois, cells):
        pooled = _pool(features[image], rois[some], cells, scale)
        output[some] = pooled.to(output.dtype)


def prroi_pool_backward(
    grad_output: Tensor, rois: Tensor, grad_input: Tensor, pooled_height: int, pooled_width: int, spatial_scale: float
) -> None:
    """Add the gradient of the feature maps to ``grad_input`` ``(N, C, H, W)``."""
    gradient, rois = as_computable('prroi_pool', grad_output=grad_output, rois=rois)
    cells = (pooled_height, pooled_width)
    scale = check_pooling('prroi_pool', grad_input, rois, cells, spatial_scale, grad_output=gradient)
    for image, some in _parts(grad_input, rois, cells):
        rows, columns = _mean_weights(rois[some], cells, grad_input.shape[2:], scale)
        with torch.autocast(rois.device.type, enabled=False):
            by_row = torch.einsum('kcpq,kqw->kcpw', gradient[some], columns)
            grad_input[image] += torch.einsum('kph,kcpw->chw', rows, by_row)


def prroi_pool_coor_backward(
    output: Tensor,
    grad_output: Tensor,
    input: Tensor,
    rois: Tensor,
    grad_rois: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Add the gradient of the RoIs' corners to ``grad_rois`` ``(K, 5)``."""
    gradient, features, rois = as_computable('prroi_pool', grad_output=grad_output, input=input, rois=rois)
    cells = (pooled_height, pooled_width)
    scale = check_pooling('prroi_pool', features, rois, cells, spatial_scale, grad_output=gradient)
    for image, some in _parts(features, rois, cells):
        with torch.enable_grad():
            corners = rois[some].detach().requires_grad_()
            pooled = _pool(features[image].detach(), corners, cells, scale)
            found = torch.autograd.grad(pooled, corners, gradient[some])[0]
        grad_rois.index_add_(0, some, found.to(grad_rois.dtype))


def _parts(features: Tensor, rois: Tensor, cells: tuple[int, int]) -> Iterator[tuple[int, Tensor]]:
    """Yield an image and some of its RoIs, at a time."""
    num_images, channels, _, width = features.shape
    check_rois('prroi_pool', rois, num_images)
    # The features summed up along y; fewer at a time would be a loop over the RoIs.
    numbers = max(2**22, numbers_at_once(rois.device))
    at_once = max(1, numbers // max(1, channels * cells[0] * width))
    for image in range(num_images):
        for some in (rois[:, 0].long() == image).nonzero().flatten().split(at_once):
            if len(some):
                yield image, some


def _pool(features: Tensor, rois: Tensor, cells: tuple[int, int], scale: float) -> Tensor:
    """Return ``(k, C, PH, PW)`` of RoIs of one image ``(C, H, W)``; differentiable."""
    rows, columns = _mean_weights(rois, cells, features.shape[1:], scale)
    with torch.autocast(rois.device.type, enabled=False):
        by_row = torch.einsum('kph,chw->kpcw', rows, features)
        return torch.einsum('kpcw,kqw->kcpq', by_row, columns)


def _mean_weights(rois: Tensor, cells: tuple[int, int], size: tuple[int, int], scale: float) -> tuple[Tensor, Tensor]:
    """Return each pixel's weight in the mean of a cell, along y ``(K, PH, H)`` and along x ``(K, PW, W)``."""
    _, x1, y1, x2, y2 = (rois * scale).unbind(dim=1)
    sound = ((x2 > x1) & (y2 > y1))[:, None, None]  # an empty RoI gives 0
    weights = []
    for low, high, num_cells, length in ((y1, y2, cells[0], size[0]), (x1, x2, cells[1], size[1])):
        step = torch.where(sound[:, 0, 0], high - low, 1) / num_cells
        edges = low[:, None] + torch.arange(num_cells + 1, device=rois.device) * step[:, None]
        pixels = torch.arange(length, device=rois.device)
        part = _hat_integral(edges[:, :, None] - pixels).diff(dim=1) / step[:, None, None]
        weights.append(torch.where(sound, part, 0))
    return tuple(weights)


def _hat_integral(end: Tensor) -> Tensor:
    """Return the integral of the hat ``max(0, 1 - |t|)`` from -1 to ``end``."""
    end = end.clamp(-1, 1)
    return 0.5 + end - end * end.abs() / 2
