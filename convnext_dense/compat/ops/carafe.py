"""Content-aware reassembly of features, CARAFE (https://arxiv.org/abs/1905.02188).

Every pixel of an enlarged map is a weighted sum of the ``k x k`` features around the pixel that it comes from. So each
low pixel is a product of two small matrices, the weights ``(S * S, k * k)`` and the features ``(k * k, C / G)``.
"""

from collections.abc import Iterator
from typing import NamedTuple

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
    _prepare(features, masks, kernel_size, group_size, scale_factor).forward(output)
    num_images, channels, height, width = features.shape
    rfeatures.resize_(num_images, height, width, channels).copy_(features.permute(0, 2, 3, 1))


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
    features = rfeatures.permute(0, 3, 1, 2)
    reassembly = _prepare(features, masks, kernel_size, group_size, scale_factor)
    for buffer, gradient in zip((bottom_grad, mask_grad), reassembly.gradients(top_grad), strict=True):
        buffer.copy_(gradient)


class _Reassembly(NamedTuple):
    """The arguments, checked, of one type and seen pixel by pixel."""

    output_shape: tuple[int, int, int, int]
    padded: Tensor  # (N, H + k - 1, W + k - 1, C): the channels of a pixel lie together
    masks: Tensor  # (N, H, W, G, S, S, k * k)
    kernel_size: int

    def forward(self, output: Tensor) -> None:
        """Fill ``output`` ``(N, C, S * H, S * W)``."""
        output = self._by_pixel(output)
        for here, masks, around in self._parts():
            output[here] = _multiply(masks, around).view(output[here].shape)

    def gradients(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of the features and of the weights, given that of the output."""
        num_images, height, width, groups, scale, _, _ = self.masks.shape
        k = self.kernel_size
        _, gradient = as_computable(OP, features=self.padded, top_grad=gradient)
        check_shape(OP, top_grad=(gradient.shape, self.output_shape))
        gradient = self._by_pixel(gradient.contiguous())
        grad_padded = torch.zeros_like(self.padded)
        grad_masks = self.masks.new_empty(num_images, groups * k * k, height * scale, width * scale)
        for here, masks, around in self._parts():
            images, rows = here
            grad_output = gradient[here].reshape(len(masks), -1, around.shape[2])
            grad_part = self._by_pixel(grad_masks)[here]
            grad_part.copy_(_multiply(grad_output, around.transpose(1, 2)).view(grad_part.shape))
            grad_around = _multiply(masks.transpose(1, 2), grad_output).view(*grad_part.shape[:4], k * k, -1)
            for tap in range(k * k):
                y, x = divmod(tap, k)
                shifted = grad_padded[images, rows.start + y : rows.stop + y, x : x + width]
                shifted += grad_around[..., tap, :].flatten(3)
        margin = k // 2
        grad_features = grad_padded[:, margin : margin + height, margin : margin + width]
        return grad_features.permute(0, 3, 1, 2), grad_masks

    def _by_pixel(self, enlarged: Tensor) -> Tensor:
        _, height, width, groups, scale, _, _ = self.masks.shape
        return _by_pixel(enlarged, height, width, groups, scale)

    def _parts(self) -> Iterator[tuple[tuple[slice, slice], Tensor, Tensor]]:
        """Yield some images and rows, their weights ``(..., S * S, k * k)`` and features ``(..., k * k, C / G)``."""
        num_images, height, width, groups, *_ = self.masks.shape
        k, channels = self.kernel_size, self.padded.shape[3]
        # (N, H, W, G, k, k, C / G)
        around = self.padded.unfold(1, k, 1).unfold(2, k, 1).unflatten(3, (groups, -1)).permute(0, 1, 2, 3, 5, 6, 4)
        rows_at_once = max(1, numbers_at_once(self.padded.device) // (width * channels * k * k))
        images_at_once = max(1, rows_at_once // height)
        for image in range(0, num_images, images_at_once):
            for row in range(0, height, rows_at_once):
                here = (slice(image, image + images_at_once), slice(row, min(row + rows_at_once, height)))
                masks = self.masks[here].flatten(4, 5).flatten(0, 3)
                yield here, masks, around[here].flatten(4, 5).flatten(0, 3)


def _by_pixel(enlarged: Tensor, height: int, width: int, groups: int, scale: int) -> Tensor:
    """See ``(N, G * X, S * H, S * W)`` as ``(N, H, W, G, S, S, X)``."""
    shape = (len(enlarged), groups, enlarged.shape[1] // groups, height, scale, width, scale)
    return enlarged.view(shape).permute(0, 3, 5, 1, 4, 6, 2)


def _multiply(left: Tensor, right: Tensor) -> Tensor:
    with torch.autocast(left.device.type, enabled=False):  # it would take the product in half precision
        return left.bmm(right)


def _prepare(features: Tensor, masks: Tensor, kernel_size: int, groups: int, scale: int) -> _Reassembly:
    features, masks = as_computable(OP, features=features, masks=masks)
    check_maps(OP, features=features)
    num_images, channels, height, width = features.shape
    if min(kernel_size, groups, scale, channels) < 1 or kernel_size % 2 == 0 or channels % groups:
        raise UserError(
            f'{OP} needs an odd kernel size, a scale of 1 or more, channels and a number of groups that divides the '
            f'{channels} channels, and got kernel_size={kernel_size}, scale_factor={scale}, group_size={groups}.'
        )
    expected = (num_images, groups * kernel_size**2, height * scale, width * scale)
    check_shape(OP, masks=(masks.shape, expected))
    margin = kernel_size // 2
    return _Reassembly(
        output_shape=(num_images, channels, height * scale, width * scale),
        padded=F.pad(features.permute(0, 2, 3, 1), (0, 0, margin, margin, margin, margin)),
        masks=_by_pixel(masks.contiguous(), height, width, groups, scale),
        kernel_size=kernel_size,
    )
