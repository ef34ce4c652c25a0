"""Content-aware reassembly of features, CARAFE (https://arxiv.org/abs/1905.02188).

Every pixel of an enlarged map is a weighted sum of the ``k x k`` features around the pixel that it comes from. So each
low pixel is a product of two small matrices, the weights ``(S * S, k * k)`` and the features ``(k * k, C / G)``.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import UserError
from .arguments import as_computable, check_maps, check_shape, numbers_at_once

OP = 'carafe'


def carafe_forward(
    features: Tensor,
    masks: Tensor,
    rfeatures: Tensor,
    routput: Tensor,
    rmasks: Tensor,
    output: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Fill ``output``, and ``rfeatures`` with the features ``(N, H, W, C)`` for the backward op.

    ``routput`` and ``rmasks`` matter to the compiled op only.
    """
    padded, weights = _prepare(features, masks, kernel_size, group_size, scale_factor)
    output_by_pixel = _by_pixel(output, *weights.shape[1:5])
    for here, low_weights, around in _parts(padded, weights, kernel_size):
        output_by_pixel[here] = _multiply(low_weights, around).view(output_by_pixel[here].shape)
    rfeatures.resize_(features.permute(0, 2, 3, 1).shape).copy_(features.permute(0, 2, 3, 1))


@torch.no_grad()
def carafe_backward(
    top_grad: Tensor,
    rfeatures: Tensor,
    masks: Tensor,
    rtop_grad: Tensor,
    rbottom_grad_hs: Tensor,
    rbottom_grad: Tensor,
    rmask_grad: Tensor,
    bottom_grad: Tensor,
    mask_grad: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Fill ``bottom_grad``, the gradient of the features, and ``mask_grad``; the other buffers are not needed."""
    features, k = rfeatures.permute(0, 3, 1, 2), kernel_size
    padded, weights = _prepare(features, masks, kernel_size, group_size, scale_factor)
    _, gradient = as_computable(OP, features=padded, top_grad=top_grad)
    check_shape(OP, top_grad=(gradient.shape, (*features.shape[:2], *masks.shape[2:])))
    gradient = _by_pixel(gradient.contiguous(), *weights.shape[1:5])
    grad_weights = _by_pixel(mask_grad, *weights.shape[1:5])
    grad_padded = torch.zeros_like(padded)
    height, width = features.shape[2:]
    for here, low_weights, around in _parts(padded, weights, k):
        images, rows = here
        grad_output = gradient[here].reshape(len(low_weights), -1, around.shape[2])
        grad_weights[here] = _multiply(grad_output, around.transpose(1, 2)).view(grad_weights[here].shape)
        grad_around = _multiply(low_weights.transpose(1, 2), grad_output)
        grad_around = grad_around.view(*weights[here].shape[:4], k * k, -1)
        for tap in range(k * k):
            y, x = divmod(tap, k)
            shifted = grad_padded[images, rows.start + y : rows.stop + y, x : x + width]
            shifted += grad_around[..., tap, :].flatten(3)
    margin = k // 2
    inner = grad_padded[:, margin : margin + height, margin : margin + width]
    bottom_grad.copy_(inner.permute(0, 3, 1, 2))


def _prepare(features: Tensor, masks: Tensor, kernel_size: int, groups: int, scale: int) -> tuple[Tensor, Tensor]:
    """Return the padded features ``(N, H + k - 1, W + k - 1, C)`` and the weights ``(N, H, W, G, S, S, k * k)``."""
    features, masks = as_computable(OP, features=features, masks=masks)
    check_maps(OP, features=features)
    num_images, channels, height, width = features.shape
    if min(kernel_size, groups, scale, channels) < 1 or kernel_size % 2 == 0 or channels % groups:
        raise UserError(
            f'{OP} needs an odd kernel size, a scale of 1 or more, channels and a number of groups that divides the '
            f'{channels} channels, and got kernel_size={kernel_size}, scale_factor={scale}, group_size={groups}.'
        )
    check_shape(OP, masks=(masks.shape, (num_images, groups * kernel_size**2, height * scale, width * scale)))
    margin = kernel_size // 2
    padded = F.pad(features.permute(0, 2, 3, 1), (0, 0, margin, margin, margin, margin))
    return padded, _by_pixel(masks.contiguous(), height, width, groups, scale)


def _by_pixel(enlarged: Tensor, height: int, width: int, groups: int, scale: int) -> Tensor:
    """See ``(N, G * X, S * H, S * W)`` as ``(N, H, W, G, S, S, X)``."""
    shape = (len(enlarged), groups, enlarged.shape[1] // groups, height, scale, width, scale)
    return enlarged.view(shape).permute(0, 3, 5, 1, 4, 6, 2)


def _parts(padded: Tensor, weights: Tensor, k: int) -> Iterator[tuple[tuple[slice, slice], Tensor, Tensor]]:
    """Yield some images and rows, their weights ``(..., S * S, k * k)`` and features ``(..., k * k, C / G)``."""
    num_images, height, width, groups, *_ = weights.shape
    # (N, H, W, G, k, k, C / G)
    around = padded.unfold(1, k, 1).unfold(2, k, 1).unflatten(3, (groups, -1)).permute(0, 1, 2, 3, 5, 6, 4)
    rows_at_once = max(1, numbers_at_once(padded.device) // (width * padded.shape[3] * k * k))
    images_at_once = max(1, rows_at_once // height)
    for image in range(0, num_images, images_at_once):
        for row in range(0, height, rows_at_once):
            here = (slice(image, image + images_at_once), slice(row, min(row + rows_at_once, height)))
            yield here, weights[here].flatten(4, 5).flatten(0, 3), around[here].flatten(4, 5).flatten(0, 3)


def _multiply(left: Tensor, right: Tensor) -> Tensor:
    with torch.autocast(left.device.type, enabled=False):  # it would take the product in half precision
        return left.bmm(right)
