"""Convolution at ``M`` pixels only: their patches as columns, and the results back into a map (inference only)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import UserError
from .arguments import check_integers, check_one_device, check_shape

OP = 'masked_conv2d'


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
    """Fill ``col`` ``(C * KH * KW, M)`` with the patches around pixels of ``im`` ``(1, C, H, W)``; 0 lies around it."""
    check_one_device(OP, im=im, mask_h_idx=mask_h_idx, mask_w_idx=mask_w_idx, col=col)
    check_shape(OP, im=(im.shape, (1, *im.shape[1:4])))
    _, channels, height, width = im.shape
    _check_pixels(mask_h_idx, mask_w_idx, height, width)
    check_shape(OP, col=(col.shape, (channels * kernel_h * kernel_w, len(mask_h_idx))))
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
    check_one_device(OP, im=im, mask_h_idx=mask_h_idx, mask_w_idx=mask_w_idx, col=col)
    _check_pixels(mask_h_idx, mask_w_idx, height, width)
    check_shape(OP, col=(col.shape, (channels, len(mask_h_idx))), im=(im.shape, (1, channels, height, width)))
    im[0][:, mask_h_idx, mask_w_idx] = col.to(im.dtype)


def _check_pixels(rows: Tensor, columns: Tensor, height: int, width: int) -> None:
    """Refuse pixels outside of the map: mmcv reads and writes foreign memory there."""
    check_integers(OP, mask_h_idx=rows, mask_w_idx=columns)
    check_shape(OP, mask_w_idx=(columns.shape, rows.shape[:1]), mask_h_idx=(rows.shape, rows.shape[:1]))
    if rows.numel() == 0:
        return
    top, bottom, left, right = torch.stack([*rows.aminmax(), *columns.aminmax()]).tolist()
    if min(top, left) < 0 or bottom >= height or right >= width:
        raise UserError(
            f'{OP}: the mask has pixels in rows {top} to {bottom} and columns {left} to {right}, and the map is '
            f'{height} x {width}. Pad by (kernel_size - 1) / 2, so that the output is as large as the mask.'
        )
