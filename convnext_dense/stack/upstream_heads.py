"""Cures for heads of MMDetection and MMSegmentation; :mod:`~convnext_dense.stack.patches` says of which defects."""

import functools
from types import ModuleType

import torch
from torch import Tensor


def paste_masks_anywhere(module: ModuleType) -> None:
    """Let masks be pasted from boxes outside of the image, as upstream does on a GPU."""
    paste = module._do_paste_mask

    @functools.wraps(paste)
    def paste_anywhere(masks: Tensor, boxes: Tensor, img_h: int, img_w: int, skip_empty: bool = True) -> tuple:
        return paste(masks, boxes, img_h, img_w, skip_empty and touches(boxes, img_h, img_w))

    module._do_paste_mask = paste_anywhere


def touches(boxes: Tensor, height: int, width: int) -> bool:
    """Tell whether the hull of boxes (N, 4) as x1, y1, x2, y2 reaches into the image."""
    x1, y1 = boxes[:, :2].min(dim=0).values.tolist()
    x2, y2 = boxes[:, 2:].max(dim=0).values.tolist()
    return x1 <= width and y1 <= height and x2 >= 0 and y2 >= 0


def take_maps_of_any_layout(module: ModuleType) -> None:
    """Let DMNet's dynamic convolution take channels-last maps, whose memory it views as channels-first."""
    forward = module.DCM.forward

    @functools.wraps(forward)
    def forward_contiguous(self: torch.nn.Module, x: Tensor) -> Tensor:
        return forward(self, x.contiguous())

    module.DCM.forward = forward_contiguous
