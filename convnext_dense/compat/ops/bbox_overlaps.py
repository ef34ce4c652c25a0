"""Overlaps of upright boxes.

In: boxes ``(N, 4)`` and ``(M, 4)`` as ``(x1, y1, x2, y2)`` in pixels. Out: IoU, written into ``ious``.
A box's width is ``x2 - x1 + offset``; mmcv's ``offset`` is 1 for the pixel convention of the first detectors, else 0.
"""

import torch
from torch import Tensor

from ..errors import UserError
from .arguments import as_computable, check_choice, check_shape, numbers_at_once

IOU, IOF = range(2)


@torch.no_grad()
def bbox_overlaps(bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, mode: int, aligned: bool, offset: int) -> None:
    """Fill ``ious``, ``(N, M)`` or where aligned ``(N,)``.

    Args:
        bboxes1: ``(N, 4)``.
        bboxes2: ``(M, 4)``, or ``(N, 4)`` where aligned.
        ious: Filled in place.
        mode: 0 divides by the union, 1 by the area of the first box.
        aligned: Only the overlaps of boxes with the same index.
        offset: Added to widths and heights, 0 or 1.
    """
    first, second = as_computable('bbox_overlaps', bboxes1=bboxes1, bboxes2=bboxes2)
    for boxes in (first, second):
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise UserError(f'bbox_overlaps needs boxes (N, 4) and got {tuple(boxes.shape)}.')
    check_choice('bbox_overlaps', (IOU, IOF), mode=mode)
    if aligned and len(first) != len(second):
        raise UserError(f'bbox_overlaps got {len(first)} and {len(second)} boxes; aligned needs as many of both.')
    check_shape('bbox_overlaps', ious=(ious.shape, (len(first),) if aligned else (len(first), len(second))))
    if aligned:
        ious.copy_(_overlaps(first, second, mode, offset))
        return
    step = max(1, numbers_at_once(first.device) // max(1, len(second)))
    for rows, part in zip(first.split(step), ious.split(step), strict=True):
        part.copy_(_overlaps(rows[:, None], second, mode, offset))


def _overlaps(first: Tensor, second: Tensor, mode: int, offset: int) -> Tensor:
    # mmcv's two kernels differ at NaN and at areas below the offset.
    larger, smaller = (torch.maximum, torch.minimum) if first.is_cpu else (torch.fmax, torch.fmin)
    x1, y1, x2, y2 = first.unbind(dim=-1)
    other_x1, other_y1, other_x2, other_y2 = second.unbind(dim=-1)
    zero = torch.zeros((), dtype=x1.dtype, device=x1.device)
    width = larger(smaller(x2, other_x2) - larger(x1, other_x1) + offset, zero)
    height = larger(smaller(y2, other_y2) - larger(y1, other_y1) + offset, zero)
    common = width * height
    whole = (x2 - x1 + offset) * (y2 - y1 + offset)
    if mode == IOU:
        whole = whole + (other_x2 - other_x1 + offset) * (other_y2 - other_y1 + offset) - common
    if not first.is_cpu:
        whole = torch.fmax(whole, zero + offset)
    return common / whole
