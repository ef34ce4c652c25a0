"""Models of learned queries: DETR and those that followed it, MaskFormer and Mask2Former."""

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convnext_dense.export.dense import Found
from convnext_dense.export.frame import Frame, deviations

METHODS = ('predict', 'predict_by_feat', '_predict_by_feat_single')


def sample_of(frame: Frame) -> SimpleNamespace:
    """Return a data sample as far as the transformers read it."""
    meta = dict(batch_input_shape=frame.padded, img_shape=frame.shape)
    return SimpleNamespace(**meta, metainfo=meta)


def problems_of_boxes(network: nn.Module) -> list[str]:
    """Return why a transformer for boxes cannot be exported."""
    from mmdet.models import dense_heads, detectors

    names = ('DETRHead', 'ConditionalDETRHead', 'DABDETRHead', 'DeformableDETRHead')
    known = [getattr(dense_heads, name) for name in names]
    found = deviations(network, [detectors.base_detr.DetectionTransformer], 'predict')
    return found + deviations(network.bbox_head, known, *METHODS)


def problems_of_masks(network: nn.Module) -> list[str]:
    """Return why a transformer for masks cannot be exported."""
    from mmdet.models import dense_heads, detectors, seg_heads

    fusion = network.panoptic_fusion_head
    found = deviations(network, [detectors.MaskFormer], 'predict')
    found += deviations(fusion, [seg_heads.MaskFormerFusionHead], 'predict', 'instance_postprocess')
    if found or (found := deviations(network.panoptic_head, [dense_heads.MaskFormerHead], 'predict')):
        return found
    if not fusion.test_cfg.get('instance_on', False):
        return ['it predicts no objects; set --cfg-options model.test_cfg.instance_on=True']
    return []


def predict_boxes(network: nn.Module, images: Tensor, frame: Frame) -> Found:
    """Return what a transformer for boxes finds."""
    head = network.bbox_head
    scores, boxes = head(**network.forward_transformer(network.extract_feat(images), [sample_of(frame)]))
    scores, boxes = scores[-1][0], boxes[-1][0]
    most = head.test_cfg.get('max_per_img', boxes.shape[0])
    if head.loss_cls.use_sigmoid:
        scores, places = scores.sigmoid().flatten().topk(most)
        places, labels = places // head.num_classes, places % head.num_classes
    else:
        scores, labels = scores.softmax(-1)[:, :-1].max(-1)
        scores, places = scores.topk(most)
        labels = labels[places]
    centres, sizes = boxes[places].split(2, dim=1)
    boxes = torch.cat([centres - 0.5 * sizes, centres + 0.5 * sizes], dim=1)
    boxes = frame.clip(boxes * frame.corner(boxes))
    return {'boxes': frame.to_original(boxes), 'scores': scores, 'labels': labels}


def predict_masks(network: nn.Module, images: Tensor, frame: Frame) -> Found:
    """Return the objects that MaskFormer or Mask2Former finds; masks (N, H, W) bool fit the original picture."""
    fusion = network.panoptic_fusion_head
    classes, masks = network.panoptic_head(network.extract_feat(images), [sample_of(frame)])
    logits = frame.crop(F.interpolate(masks[-1], size=frame.padded, mode='bilinear', align_corners=False))
    size = frame.original.unbind()
    logits = F.interpolate(logits, size=size, mode='bilinear', align_corners=False)[0]
    scores = classes[-1][0].softmax(-1)[:, :-1].flatten()
    scores, places = scores.topk(fusion.test_cfg.get('max_per_image', 100))
    labels = places % fusion.num_classes
    things = (labels < fusion.num_things_classes).nonzero().flatten()
    scores, labels, logits = scores[things], labels[things], logits[(places // fusion.num_classes)[things]]
    masks = logits > 0
    sums = (logits.sigmoid() * masks).flatten(1).sum(1)
    scores = scores * (sums / (masks.float().flatten(1).sum(1) + 1e-6))
    return {'boxes': surround(masks), 'scores': scores, 'labels': labels, 'masks': masks}


def surround(masks: Tensor) -> Tensor:
    """Return the boxes (N, 4) around masks (N, H, W); zeros around an empty one."""
    sides = []
    for axis in (1, 2):  # over the rows for x, over the columns for y
        used = masks.any(axis)
        places = torch.arange(used.shape[1], device=masks.device)
        low = torch.where(used, places, used.shape[1]).amin(1)
        high = torch.where(used, places + 1, 0).amax(1)
        sides.append((torch.where(high > 0, low, 0), high))
    (left, right), (top, bottom) = sides
    return torch.stack([left, top, right, bottom], dim=1).float()
