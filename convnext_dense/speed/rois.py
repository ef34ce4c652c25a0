"""Features of regions of interest (RoIs) from maps whose channels are last in memory."""

from collections.abc import Sequence
from typing import Any

import torch
from mmcv.ops import RoIAlign
from mmdet.models.roi_heads.roi_extractors.single_level_roi_extractor import SingleRoIExtractor
from torch import Tensor, nn

from convnext_dense.backbone.cpu_kernels import is_traced
from convnext_dense.compat.ops.arguments import as_computable
from convnext_dense.compat.ops.roi_align import OP, check_samples
from convnext_dense.compat.ops.roi_samples import RoIs, pays, sampled
from convnext_dense.compat.ops.rois import check_pooling


class ChannelsLastExtractor(SingleRoIExtractor):
    """MMDetection's extractor, which on the CPU reads and writes features with their channels last in memory.

    In mixed precision RoIs stay in fp32; MMDetection rounds their corners to bf16, by up to 2 pixels of 1000. Where the
    layers are no RoIAlign with averages, it is MMDetection's own.
    """

    def forward(self, feats: Sequence[Tensor], rois: Tensor, roi_scale_factor: float | None = None) -> Tensor:
        """Pool each RoI (K, 5) from the map (N, C, H, W) of its size; the result is (K, C, PH, PW)."""
        if feats[0].is_cpu and not is_traced() and averages(self.roi_layers):
            scaled = rois if roi_scale_factor is None else self.roi_rescale(rois, roi_scale_factor)
            levels = split(scaled, self.map_roi_levels(rois, len(feats)), self.roi_layers, feats)
            if all(pays(some, feats[0].shape[1]) for _, some in levels):
                return Pooling.apply(len(rois), levels, *feats).permute(0, 3, 1, 2)
        return super().forward(feats, rois, roi_scale_factor)


def averages(layers: Sequence[nn.Module]) -> bool:
    """Tell whether layers are mmcv's RoIAlign with averages, and differ by the stride alone."""
    if not all(type(layer) is RoIAlign and layer.pool_mode == 'avg' and not layer.use_torchvision for layer in layers):
        return False
    return len({(layer.output_size, layer.sampling_ratio, layer.aligned) for layer in layers}) == 1


def split(
    rois: Tensor, levels: Tensor, layers: Sequence[RoIAlign], maps: Sequence[Tensor]
) -> list[tuple[Tensor, RoIs]]:
    """Check RoIs (K, 5) and return those of each map (N, C, H, W), behind their places among all.

    ``levels`` (K,) are the numbers of their maps.
    """
    rois = as_computable(OP, rois=rois, input=maps[0][:0])[0]  # the maps' type alone counts
    cells = layers[0].output_size
    scales = [
        check_pooling(OP, each, rois, cells, layer.spatial_scale) for layer, each in zip(layers, maps, strict=False)
    ]
    scale = rois.new_tensor(scales)[levels.clamp(0, len(maps) - 1)]  # of a RoI that is no number, the check says so
    checked = check_samples(rois, len(maps[0]), cells, scale, layers[0].sampling_ratio, layers[0].aligned)
    counts = levels.bincount(minlength=len(maps)).tolist()
    some = levels.argsort(stable=True).split(counts)
    return [(places, checked[places]._replace(scale=scale)) for places, scale in zip(some, scales, strict=True)]


class Pooling(torch.autograd.Function):
    """RoIAlign from the maps of several levels, in one step."""

    @staticmethod
    def forward(ctx: Any, count: int, levels: Sequence[tuple[Tensor, RoIs]], *maps: Tensor) -> Tensor:
        """Return (count, PH, PW, C), pooled from maps (N, C, H, W), one for each level."""
        output = maps[0].new_empty(count, *levels[0][1].cells, maps[0].shape[1])
        ctx.maps, ctx.parts = [(each.permute(0, 2, 3, 1).shape, each.dtype) for each in maps], []
        for number, ((among_all, rois), each) in enumerate(zip(levels, maps, strict=True)):
            values = each.permute(0, 2, 3, 1).to(rois.corners.dtype)
            for some, samples in sampled(rois, values.shape):
                places = among_all[some]
                pooled = samples.times(values.reshape(-1, values.shape[-1]))
                output[places] = pooled.view(-1, *output.shape[1:]).to(output.dtype)
                ctx.parts.append((number, places, samples))
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the maps, given that of the output (count, PH, PW, C)."""
        types = [torch.promote_types(dtype, torch.float32) for _, dtype in ctx.maps]
        totals = [gradient.new_zeros(shape, dtype=each) for (shape, _), each in zip(ctx.maps, types, strict=True)]
        for number, places, samples in ctx.parts:
            samples.add_gradient(gradient[places].to(types[number]), totals[number])
        found = (
            total.permute(0, 3, 1, 2).to(dtype) if needed else None
            for total, (_, dtype), needed in zip(totals, ctx.maps, ctx.needs_input_grad[2:], strict=True)
        )
        return None, None, *found
