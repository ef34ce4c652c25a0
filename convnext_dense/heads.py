"""Decode heads that MMSegmentation lacks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from mmengine.registry import MODELS
from torch import Tensor

if TYPE_CHECKING:
    from mmseg.models.decode_heads.decode_head import BaseDecodeHead


@MODELS.register_module()
def LinearHead(in_channels: int, **kwargs) -> BaseDecodeHead:
    """Return a linear probe of one map: dropout, batch norm, one linear layer for every pixel.

    Follows the linear evaluation on ADE20K of facebookresearch/dinov3 (``dinov3/eval/segmentation``).

    Args:
        in_channels: Channels of the map.
        **kwargs: As for MMSegmentation's ``BaseDecodeHead``: ``num_classes``, ``norm_cfg``, ``in_index``, ...
    """
    return _linear_head()(in_channels=in_channels, channels=in_channels, **kwargs)


@cache
def _linear_head() -> type[BaseDecodeHead]:
    """Make the class only now: its base, MMSegmentation, is slow to import, and optional."""
    from mmcv.cnn import build_norm_layer
    from mmseg.models.decode_heads.decode_head import BaseDecodeHead

    class LinearHead(BaseDecodeHead):
        def __init__(self, **kwargs) -> None:
            super().__init__(**kwargs)
            self.norm = build_norm_layer(self.norm_cfg, self.channels)[1]

        def forward(self, inputs: Sequence[Tensor]) -> Tensor:
            """Map the map at ``in_index``, (N, C, H, W), to scores (N, num_classes, H, W)."""
            x = self._transform_inputs(inputs)
            if self.dropout is not None:
                x = self.dropout(x)
            return self.conv_seg(self.norm(x))

    return LinearHead
