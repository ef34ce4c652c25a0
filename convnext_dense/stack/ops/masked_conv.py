"""Convolution at some pixels only: their patches as columns, and the results back into a map (inference only).

In: one image ``(1, C, H, W)`` and the rows and columns of ``M`` pixels. Out: ``(C * KH * KW, M)`` and ``(1, O, H, W)``,
written into ``col`` and ``im``.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import UserError
from .arguments import check_one_device


def masked_im2col_forward(
    im: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    col: Tensor,
    kernel_h: int,
    kernel_w: int,
    pad_h: int,
    pad_w: int,
) -> None:
    """Fill ``col`` ``(C * KH * KW, M)`` with the patches around the ``M`` pixels; outside of the image is 0."""
    op, (height, width) = 'masked_conv2d', im.shape[2:]
    check_one_device(op, im=im, mask_h_idx=mask_h_idx, mask_w_idx=mask_w_idx, col=col)
    _check_pixels(op, mask_h_idx, mask_w_idx, height, width)
    # Below and on the right the padding reaches as far as the patch of the last pixel.
    far_h, far_w = max(0, kernel_h - 1 - pad_h), max(0, kernel_w - 1 - pad_w)
    padded = F.pad(im[0], (pad_w, far_w, pad_h, far_h))
    rows = mask_h_idx + torch.arange(kernel_h, device=im.device)[:, None]  # (KH, M)
    columns = mask_w_idx + torch.arange(kernel_w, device=im.device)[:, None]  # (KW, M)
    place = rows[:, None] * padded.shape[2] + columns  # (KH, KW, M)
    col.view(len(padded), -1).copy_(padded.flatten(1).index_select(1, place.flatten()))


def masked_col2im_forward(
    col: Tensor, mask_h_idx: Tensor, mask_w_idx: Tensor, im: Tensor, height: int, width: int, channels: int
) -> None:
    """Write the ``M`` columns of ``col`` ``(O, M)`` to their pixels of ``im`` ``(1, O, H, W)``; the others stay."""
    op = 'masked_conv2d'
    check_one_device(op, im=im, mask_h_idx=mask_h_idx, mask_w_idx=mask_w_idx, col=col)
    _check_pixels(op, mask_h_idx, mask_w_idx, height, width)
    im[0][:, mask_h_idx, mask_w_idx] = col.to(im.dtype)


def _check_pixels(op: str, rows: Tensor, columns: Tensor, height: int, width: int) -> None:
    """Refuse pixels outside of the map: mmcv writes them to foreign memory."""
    if rows.numel() == 0:
        return
    largest = int(rows.amax()), int(columns.amax())
    if largest[0] >= height or largest[1] >= width:
        raise UserError(
            f'{op}: the mask has pixels up to row {largest[0]} and column {largest[1]}, and the map is {height} x '
            f'{width}. Pad by (kernel_size - 1) / 2, so that the output is as large as the mask.'
        )
