"""The attention maps of PSANet (https://hszhao.github.io/projects/psanet): each pixel's mask, laid over the whole map.

The masks are ``(N, MH * MW, H, W)``, the attention between two pixels ``(N, H * W, H, W)``; it is 0 where no mask
reaches. To collect (``psa_type`` 0), the first index is the pixel that is seen and the last two are the one that sees;
to distribute (1), the reverse. mmcv gives the sizes by name, so the ops take them as ``**sizes``.

A mask moves with its pixel, so in memory its lines lie askew. One row of pixels is laid out at a time, through a skew
view of a buffer ``(N, MH, W + MW - 1, W)``, which is all that is held beside input and output.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from .arguments import check_choice, check_one_device, check_shape

OP = 'psa_mask'
COLLECT, DISTRIBUTE = range(2)


def psamask_forward(input: Tensor, output: Tensor, **sizes: int) -> None:
    """Fill ``output``, which comes filled with 0."""
    for mask, laid_out, on_map, attention in _rows(input, output, **sizes):
        laid_out.copy_(mask)
        attention.copy_(on_map)


@torch.no_grad()
def psamask_backward(grad_output: Tensor, grad_input: Tensor, **sizes: int) -> None:
    """Fill ``grad_input``, the gradient of the masks, which comes filled with 0."""
    for mask, laid_out, on_map, attention in _rows(grad_input, grad_output, **sizes):
        on_map.copy_(attention)
        mask.copy_(laid_out)


def _rows(
    masks: Tensor,
    attention: Tensor,
    psa_type: int,
    num_: int,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Yield four views for each row of pixels, of the lines of their masks that lie on the map.

    The first two have taps and pixels ``(N, M, MW, W)``: the masks and the buffer. The last two have columns of the map
    and pixels ``(N, M, W, W)``: the buffer and the attention.
    """
    check_choice(OP, (COLLECT, DISTRIBUTE), psa_type=psa_type)
    check_one_device(OP, masks=masks, attention=attention)
    check_shape(
        OP,
        masks=(masks.shape, (num_, h_mask * w_mask, h_feature, w_feature)),
        attention=(attention.shape, (num_, h_feature * w_feature, h_feature, w_feature)),
    )
    masks, attention = masks.unflatten(1, (h_mask, w_mask)), attention.unflatten(1, (h_feature, w_feature))
    if psa_type == DISTRIBUTE:
        attention = attention.permute(0, 3, 4, 1, 2)
    # Tap m of pixel w stands in line m + w, and so column x of the map, its tap x - w + half_w, in line x + half_w.
    lines = masks.new_zeros(num_, h_mask, w_feature + w_mask - 1, w_feature)
    image, line, tap, pixel = lines.stride()
    askew = lines.as_strided((num_, h_mask, w_mask, w_feature), (image, line, tap, tap + pixel))
    on_map = lines[:, :, half_w_mask : half_w_mask + w_feature]
    for row in range(h_feature):
        first, end = max(0, half_h_mask - row), min(h_mask, h_feature + half_h_mask - row)
        seen = slice(first + row - half_h_mask, end + row - half_h_mask)
        yield masks[:, first:end, :, row], askew[:, first:end], on_map[:, first:end], attention[:, seen, :, row]
