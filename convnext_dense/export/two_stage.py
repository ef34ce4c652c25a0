"""Detectors of two stages: Faster, Mask, Cascade and Double-Head R-CNN."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from convnext_dense.export.boxes import chances_of, decode, first, large, priors_of, problems_of, rows_of, suppress
from convnext_dense.export.dense import Found
from convnext_dense.export.frame import Frame, deviations

METHODS = ('predict', 'predict_by_feat', '_predict_by_feat_single', '_bbox_post_process', 'regress_by_class')
ROI_METHODS = ('predict', 'predict_bbox', 'predict_mask', '_bbox_forward', '_mask_forward', '_refine_roi')


def problems(network: nn.Module) -> list[str]:
    """Return why a detector of two stages cannot be exported."""
    from mmdet.models import dense_heads, detectors, roi_heads

    head, rpn_head = network.roi_head, getattr(network, 'rpn_head', None)
    known = roi_heads.StandardRoIHead, roi_heads.CascadeRoIHead, roi_heads.DoubleHeadRoIHead
    found = deviations(network, [detectors.TwoStageDetector], 'predict')
    found += deviations(rpn_head, [dense_heads.RPNHead], *METHODS) + deviations(head, known, *ROI_METHODS)
    if rpn_head is None or head.with_shared_head:
        found.append('it takes regions from a file, or a stage of ResNet for its heads')
    if found or (found := problems_of_parts(head)):
        return found
    found = problems_of(rpn_head.bbox_coder, rpn_head.test_cfg.get('nms'))
    return found + problems_of(listed(head.bbox_head)[-1].bbox_coder, head.test_cfg.get('nms'))


def problems_of_parts(head: Any) -> list[str]:
    """Return why the parts of a head for regions cannot be exported."""
    from mmdet.models import roi_heads

    masks = listed(head.mask_head) if head.with_mask else ()
    extractors = [*listed(head.bbox_roi_extractor), *(listed(head.mask_roi_extractor) if masks else ())]
    found = [text for each in listed(head.bbox_head) for text in deviations(each, [roi_heads.BBoxHead], *METHODS)]
    found += [text for each in masks for text in deviations(each, [roi_heads.FCNMaskHead], *METHODS)]
    found += [text for each in extractors for text in deviations(each, [roi_heads.SingleRoIExtractor], 'forward')]
    layers = [layer for each in extractors for layer in each.roi_layers if getattr(layer, 'pool_mode', '') != 'avg']
    found += [f'{type(each).__name__} is not known, RoIAlign with averages is' for each in layers]
    for each in listed(head.bbox_head):
        if each.custom_cls_channels or each.custom_activation:
            found.append(f'{type(each.loss_cls).__name__} has an activation of its own')
        if not (each.with_cls and each.with_reg):
            found.append(f'{type(each).__name__} has no classes, or no boxes')
    return sorted(set(found))


def predict(network: nn.Module, images: Tensor, frame: Frame) -> Found:
    """Return what a detector of two stages finds; masks are (N, h, w) chances in the boxes."""
    roi_head, features = network.roi_head, network.extract_feat(images)
    found = classify(roi_head, features, propose(network.rpn_head, features, frame), frame)
    if roi_head.with_mask:
        found['masks'] = paint(roi_head, features, found['boxes'], found['labels'])
        found['boxes'] = frame.to_original(found['boxes'])
    return found


def propose(head: Any, features: tuple[Tensor, ...], frame: Frame) -> Tensor:
    """Return the boxes (N, 4) in which the region proposal network sees objects, in pixels of the resized image."""
    cfg = head.test_cfg
    rows: list[tuple[Tensor, ...]] = []
    maps, deltas = head(features)
    for level, priors in enumerate(priors_of(head, maps)):
        scores, order = chances_of(head, maps[level]).flatten().sort(descending=True)
        if (most := cfg.get('nms_pre', -1)) > 0:
            scores, order = first(scores, most), first(order, most)
        rows.append((scores, rows_of(deltas[level], 4)[order], priors[order], torch.full_like(order, level)))
    scores, deltas, priors, levels = map(torch.cat, zip(*rows, strict=True))
    boxes = decode(head.bbox_coder, priors, deltas, frame)
    sound = large(boxes, cfg)
    boxes, scores, levels = boxes[sound], scores[sound], levels[sound]
    return boxes[suppress(boxes, scores, levels, cfg.nms)[: cfg.max_per_img]]


def classify(roi_head: Any, features: tuple[Tensor, ...], boxes: Tensor, frame: Frame) -> Found:
    """Return the objects in proposals (N, 4): in pixels of the original picture, or of the resized image with masks."""
    heads, cfg = listed(roi_head.bbox_head), roi_head.test_cfg
    logits = []
    for stage, (head, extractor) in enumerate(zip(heads, listed(roi_head.bbox_roi_extractor), strict=True)):
        factors = [None, roi_head.reg_roi_scale_factor] if hasattr(roi_head, 'reg_roi_scale_factor') else [None]
        scores, deltas = head(*(pool(extractor, features, boxes, factor) for factor in factors))
        logits.append(scores)
        if stage < len(heads) - 1:
            boxes = refine(head, boxes, scores[:, :-1].argmax(1), deltas, frame)
    scores = (sum(logits) / float(len(logits))).softmax(-1)[:, :-1]
    boxes = refine(heads[-1], boxes, None, deltas, frame)  # (N, 4), or (N * classes, 4)
    if not roi_head.with_mask:
        boxes = frame.to_original(boxes)
    places, labels = (scores > cfg.score_thr).nonzero().unbind(1)
    scores = scores[places, labels]
    boxes = boxes[places if heads[-1].reg_class_agnostic else places * heads[-1].num_classes + labels]
    kept = suppress(boxes, scores, labels, cfg.nms)
    kept = kept[: cfg.max_per_img] if cfg.max_per_img > 0 else kept
    return {'boxes': boxes[kept], 'scores': scores[kept], 'labels': labels[kept]}


def refine(head: Any, boxes: Tensor, labels: Tensor | None, deltas: Tensor, frame: Frame) -> Tensor:
    """Return boxes (N, 4) moved as a head says; of one class each, or (N * classes, 4) without ``labels``."""
    if not head.reg_class_agnostic:
        deltas = deltas.reshape(-1, head.num_classes, 4)
        if labels is None:
            boxes = boxes[:, None].expand(-1, head.num_classes, -1).reshape(-1, 4)
            deltas = deltas.reshape(-1, 4)
        else:
            deltas = deltas.gather(1, labels[:, None, None].expand(-1, 1, 4))[:, 0]
    return decode(head.bbox_coder, boxes, deltas, frame)


def paint(roi_head: Any, features: tuple[Tensor, ...], boxes: Tensor, labels: Tensor) -> Tensor:
    """Return for each box (N, 4) how sure its pixels (N, h, w) are the object's, the mean of all stages."""
    masks = []
    for head, extractor in zip(listed(roi_head.mask_head), listed(roi_head.mask_roi_extractor), strict=True):
        chances = head(pool(extractor, features, boxes)).sigmoid()
        places = torch.zeros_like(labels) if head.class_agnostic else labels
        masks.append(chances.gather(1, places[:, None, None, None].expand(-1, 1, *chances.shape[2:]))[:, 0])
    return torch.stack(masks).mean(0)


def listed(module: Any) -> Sequence[Any]:
    """Return the modules of a cascade's stages; a list of one for others."""
    return module if isinstance(module, nn.ModuleList) else [module]


def pool(extractor: Any, features: tuple[Tensor, ...], boxes: Tensor, factor: float | None = None) -> Tensor:
    """Return the features (N, C, h, w) in boxes (N, 4), each from the level of the pyramid that fits its size.

    The boxes are in pixels of the resized image; ``factor`` is that by which they grow.
    """
    levels = len(extractor.featmap_strides)
    regions = F.pad(boxes, (1, 0))  # the first column is the number of the image
    targets = extractor.map_roi_levels(regions, levels)
    if factor is not None:
        regions = extractor.roi_rescale(regions, factor)
    pooled = []
    for level, layer in enumerate(extractor.roi_layers):
        settings = layer.output_size, layer.spatial_scale, layer.sampling_ratio, layer.aligned
        pooled.append(roi_align(features[level], regions[targets == level], *settings))
    count = targets.shape[0]
    by_level = (targets * count + torch.arange(count, device=targets.device)).argsort()  # the order of what is pooled
    return torch.cat(pooled)[by_level.argsort()]
