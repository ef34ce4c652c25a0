"""Cures for layers and heads of mmcv, MMDetection and MMSegmentation; ``patches`` says of which defects."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .module_view import ModuleView

if TYPE_CHECKING:  # preparing the stack imports none of it
    from torch import Tensor, nn


def let_sync_bn_stand_alone(module: ModuleType) -> None:
    """Let ``mmcv.ops.sync_bn`` work without a process group: its layer is then the batch norm of this process.

    Upstream's layer asks for the number of processes when it is built, and without a group there is no answer.
    """
    dist = module.dist

    def get_world_size(group: Any = None) -> int:
        return dist.get_world_size(group) if dist.is_initialized() else 1

    module.dist = ModuleView(dist, get_world_size=get_world_size)


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
    """Let DMNet's dynamic convolution take channels-last maps."""
    forward = module.DCM.forward

    @functools.wraps(forward)
    def forward_contiguous(self: nn.Module, x: Tensor) -> Tensor:
        return forward(self, x.contiguous())

    module.DCM.forward = forward_contiguous


def predict_without_a_loss(module: ModuleType) -> None:
    """Let SSD's head predict: upstream asks each head for its ``loss_cls``, and this one has none.

    Each head gets its own: one of the class would hide the loss that a head derived from it makes.
    """
    build = module.SSDHead.__init__

    @functools.wraps(build)
    def build_with_none(self: nn.Module, *args, **kwargs) -> None:
        build(self, *args, **kwargs)
        self.loss_cls = None

    module.SSDHead.__init__ = build_with_none


def tie_branches_when_built(module: ModuleType) -> None:
    """Give DDQ's decoder the head's auxiliary branches when the model is built, not in its first training step."""
    detector = module.DDQDETR
    build, init_weights = detector.__init__, detector.init_weights

    def tie(model: nn.Module) -> None:
        model.decoder.aux_reg_branches = model.bbox_head.aux_reg_branches

    @functools.wraps(build)
    def build_tied(self: nn.Module, *args, **kwargs) -> None:
        build(self, *args, **kwargs)
        tie(self)

    @functools.wraps(init_weights)
    def init_untied(self: nn.Module) -> None:
        del self.decoder.aux_reg_branches  # the decoder's initial weights are other ones
        init_weights(self)
        tie(self)

    detector.__init__, detector.init_weights = build_tied, init_untied
