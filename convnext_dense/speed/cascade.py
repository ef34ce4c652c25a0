"""Masks of a cascade of heads."""

from collections.abc import Hashable, Sequence
from contextvars import ContextVar
from typing import Any

from mmdet.models.roi_heads.cascade_roi_head import CascadeRoIHead
from mmdet.models.roi_heads.roi_extractors.single_level_roi_extractor import SingleRoIExtractor
from torch import Tensor, nn

from convnext_dense.speed.rois import ChannelsLastExtractor

# features of the RoIs whose masks this thread is predicting, by what pools them
POOLED: ContextVar[dict[Hashable, Tensor] | None] = ContextVar('pooled', default=None)


class OncePooledRoIHead(CascadeRoIHead):
    """MMDetection's cascade, which in a test pools the features for its mask heads once, where all pool the same."""

    def predict_mask(self, *args: Any, **kwargs: Any) -> Any:
        """Add masks to the results of images, as in MMDetection."""
        token = POOLED.set({})
        try:
            return super().predict_mask(*args, **kwargs)
        finally:
            POOLED.reset(token)

    def _mask_forward(self, stage: int, x: Sequence[Tensor], rois: Tensor) -> dict[str, Tensor]:
        """Return the masks of the RoIs (K, 5) by the heads of a stage."""
        pooled = POOLED.get()
        if pooled is None:
            return super()._mask_forward(stage, x, rois)
        extractor = self.mask_roi_extractor[stage]
        kind = what_it_pools(extractor)
        if kind not in pooled:
            pooled[kind] = extractor(x[: extractor.num_inputs], rois)
        return dict(mask_preds=self.mask_head[stage](pooled[kind]))


def what_it_pools(extractor: nn.Module) -> Hashable:
    """Return the same for two extractors that have the same results."""
    if type(extractor) not in (SingleRoIExtractor, ChannelsLastExtractor):  # another may have weights
        return extractor
    return str(extractor), tuple(extractor.featmap_strides), extractor.finest_scale
