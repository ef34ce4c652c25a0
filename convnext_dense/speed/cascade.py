"""Masks of a cascade of heads."""

from collections.abc import Hashable, Sequence
from typing import Any

from mmdet.models.roi_heads.cascade_roi_head import CascadeRoIHead
from mmdet.models.roi_heads.roi_extractors.single_level_roi_extractor import SingleRoIExtractor
from torch import Tensor, nn


class OncePooledRoIHead(CascadeRoIHead):
    """MMDetection's cascade, which in a test pools the features for its mask heads once, where all pool the same."""

    _pooled: dict[Hashable, Tensor] | None = None  # of the RoIs whose masks are predicted

    def predict_mask(self, *args: Any, **kwargs: Any) -> Any:
        """Add masks to the results of images, as in MMDetection."""
        self._pooled = {}
        try:
            return super().predict_mask(*args, **kwargs)
        finally:
            self._pooled = None

    def _mask_forward(self, stage: int, x: Sequence[Tensor], rois: Tensor) -> dict[str, Tensor]:
        """Return the masks of the RoIs (K, 5) by the heads of a stage."""
        if self._pooled is None:
            return super()._mask_forward(stage, x, rois)
        extractor = self.mask_roi_extractor[stage]
        kind = what_it_pools(extractor)
        if kind not in self._pooled:
            self._pooled[kind] = extractor(x[: extractor.num_inputs], rois)
        return dict(mask_preds=self.mask_head[stage](self._pooled[kind]))


def what_it_pools(extractor: nn.Module) -> Hashable:
    """Return the same for two extractors that have the same results."""
    if not isinstance(extractor, SingleRoIExtractor):  # it may have weights
        return extractor
    return str(extractor), tuple(extractor.featmap_strides), extractor.finest_scale
