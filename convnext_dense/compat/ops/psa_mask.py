"""The attention maps of PSANet (https://hszhao.github.io/projects/psanet): each pixel's mask, laid over the whole map.

In: for every pixel of an ``H x W`` map a mask around it, ``(N, MH * MW, H, W)``, its middle at ``(half_h, half_w)``.
Out: the attention between pixels ``(N, H * W, H, W)``, written into ``output``, 0 where the mask does not reach.
``psa_type`` 0, collect: the first index is the pixel seen, the last two the one that sees. 1, distribute: the reverse.

A mask moves with its pixel, so in memory its lines lie askew. One row of pixels is laid out at a time, through a skew
view of a buffer ``(N, MH, W + MW - 1, W)``, which is all that is held beside input and output.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .arguments import check_choice, check_one_device, check_shape

COLLECT, DISTRIBUTE = range(2)


def psamask_forward(
    input: Tensor,
    output: Tensor,
    psa_type: int,
    num_: int,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> None:
    """Fill ``output`` ``(N, H * W, H, W)``, which comes filled with 0."""
    _check(psa_type, input, output, num_, h_feature, w_feature, h_mask, w_mask)
    masks = input.unflatten(1, (h_mask, w_mask))
    attention = _seen_first(output.view(num_, h_feature, w_feature, h_feature, w_feature), psa_type)
    buffer = _Buffer.like(masks, half_w_mask)
    for row, taps, seen in _rows(h_feature, h_mask, half_h_mask):
        buffer.masks[:, taps] = masks[:, taps, :, row]
        attention[:, seen, :, row] = buffer.maps[:, taps]


@torch.no_grad()
def psamask_backward(
    grad_output: Tensor,
    grad_input: Tensor,
    psa_type: int,
    num_: int,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> None:
    """Fill ``grad_input`` ``(N, MH * MW, H, W)``, which comes filled with 0."""
    _check(psa_type, grad_input, grad_output, num_, h_feature, w_feature, h_mask, w_mask)
    masks = grad_input.view(num_, h_mask, w_mask, h_feature, w_feature)
    attention = _seen_first(grad_output.unflatten(1, (h_feature, w_feature)), psa_type)
    buffer = _Buffer.like(masks, half_w_mask)
    for row, taps, seen in _rows(h_feature, h_mask, half_h_mask):
        buffer.maps[:, taps] = attention[:, seen, :, row]
        masks[:, taps, :, row] = buffer.masks[:, taps]


class _Buffer(NamedTuple):
    """Two views of the masks of one row of pixels: column ``x`` of a map is tap ``x - w + half_w`` of pixel ``w``."""

    masks: Tensor  # (N, MH, MW, W) tap and pixel
    maps: Tensor  # (N, MH, W, W) column and pixel

    @classmethod
    def like(cls, masks: Tensor, half: int) -> '_Buffer':
        """Make one for masks ``(N, MH, MW, H, W)`` with tap ``half`` on the pixel itself."""
        num_images, height, taps, _, pixels = masks.shape
        # Tap m of pixel w stands in line m + w.
        lines = masks.new_zeros(num_images, height, pixels + taps - 1, pixels)
        image, line, tap, pixel = lines.stride()
        askew = lines.as_strided((num_images, height, taps, pixels), (image, line, tap, tap + pixel))
        return cls(askew, lines[:, :, half : half + pixels])


def _rows(num_rows: int, num_taps: int, half: int) -> Iterator[tuple[int, slice, slice]]:
    """Yield each row of pixels with the lines of its masks that lie on the map, and the map's rows under them."""
    for row in range(num_rows):
        taps = slice(max(0, half - row), min(num_taps, num_rows + half - row))
        yield row, taps, slice(taps.start + row - half, taps.stop + row - half)


def _seen_first(attention: Tensor, psa_type: int) -> Tensor:
    """See the attention ``(N, H, W, H, W)`` with the pixel seen before the one that sees."""
    return attention if psa_type == COLLECT else attention.permute(0, 3, 4, 1, 2)


def _check(
    psa_type: int, masks: Tensor, attention: Tensor, num: int, height: int, width: int, h_mask: int, w_mask: int
) -> None:
    check_choice('psa_mask', (COLLECT, DISTRIBUTE), psa_type=psa_type)
    check_one_device('psa_mask', masks=masks, attention=attention)
    check_shape(
        'psa_mask',
        masks=(masks.shape, (num, h_mask * w_mask, height, width)),
        attention=(attention.shape, (num, height * width, height, width)),
    )
