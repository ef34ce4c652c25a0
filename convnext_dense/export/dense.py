"""Detectors of one stage: RetinaNet, ATSS, FCOS, GFL, YOLOX, RTMDet and RTMDet-Ins."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convnext_dense.export.boxes import best, chances_of, decode, large, priors_of, problems_of, rows_of, suppress
from convnext_dense.export.frame import Frame, as_tensor, deviations

METHODS = (
    'predict', 'predict_by_feat', '_predict_by_feat_single', '_bbox_post_process', '_bbox_mask_post_process',
    '_mask_predict_by_feat_single',
)  # fmt: skip
Found = dict[str, Tensor]  # boxes (N, 4), scores (N,), labels (N,), and masks where there are


def problems(network: nn.Module) -> list[str]:
    """Return why a detector of one stage cannot be exported."""
    from mmdet.models import detectors
    from mmdet.models.dense_heads import GFLHead, RTMDetInsHead, YOLOXHead
    from mmdet.models.dense_heads.base_dense_head import BaseDenseHead

    head, known = network.bbox_head, (BaseDenseHead, GFLHead, RTMDetInsHead, YOLOXHead)
    found = deviations(network, [detectors.SingleStageDetector], 'predict') or deviations(head, known, *METHODS)
    if found:
        return found
    if getattr(head.loss_cls, 'custom_cls_channels', False):
        return [f'{type(head.loss_cls).__name__} has an activation of its own']
    return problems_of(getattr(head, 'bbox_coder', None), head.test_cfg.get('nms'))


def predict(network: nn.Module, images: Tensor, frame: Frame) -> Found:
    """Return what a detector of one stage finds."""
    head = network.bbox_head
    scores, deltas, *others = head(network.extract_feat(images))
    if hasattr(head, 'kernel_convs'):  # RTMDet-Ins
        kernels, prototypes = others
        return find(head, frame, scores, deltas, kernels=kernels, prototypes=prototypes)
    if hasattr(head, 'multi_level_conv_obj'):  # YOLOX
        return find_sure(head, frame, scores, deltas, *others)
    return find(head, frame, scores, deltas, factors=others[0] if others else None)


def find(
    head: Any,
    frame: Frame,
    scores: list[Tensor],
    deltas: list[Tensor],
    factors: list[Tensor] | None = None,
    kernels: list[Tensor] | None = None,
    prototypes: Tensor | None = None,
) -> Found:
    """Return what a head finds, from its maps for each level; ``factors`` multiply scores, as centerness does.

    RTMDet-Ins has ``kernels`` for each prior's mask, and ``prototypes`` (1, C, H, W) from which masks are made.
    """
    cfg = head.test_cfg
    rows: dict[str, list[Tensor]] = {name: [] for name in ('scores', 'labels', 'priors', 'deltas', 'kernels')}
    options = {} if kernels is None else {'with_stride': True}
    for level, priors in enumerate(priors_of(head, scores, **options)):
        chosen, places, labels = best(chances_of(head, scores[level]), cfg.get('score_thr', 0), cfg.get('nms_pre', -1))
        if factors is not None:
            chosen = chosen * rows_of(factors[level], 1).flatten().sigmoid()[places]
        rows['scores'].append(chosen)
        rows['labels'].append(labels)
        chosen_priors, chosen_deltas = read(head, level, priors, deltas[level], places)
        rows['priors'].append(chosen_priors)
        rows['deltas'].append(chosen_deltas)
        if kernels is not None:
            rows['kernels'].append(rows_of(kernels[level], head.num_gen_params)[places])
    found = {name: torch.cat(values) for name, values in rows.items() if values}
    priors = found['priors'] if kernels is None else found['priors'][:, :2]
    found['boxes'] = frame.to_original(decode(head.bbox_coder, priors, found.pop('deltas'), frame))
    found = take(found, large(found['boxes'], cfg))
    kept = suppress(found['boxes'], found['scores'], found['labels'], cfg.nms)
    found = take(found, kept[: cfg.max_per_img])
    priors = found.pop('priors')
    if kernels is not None:
        found['masks'] = paint(head, prototypes, found.pop('kernels'), priors, frame)
    return found


def read(head: Any, level: int, priors: Tensor, deltas: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Return the priors of a level at some places, and what its map of deltas says of them.

    GFL says how sure each of some distances is, in strides from the centres of its priors.
    """
    if not hasattr(head, 'integral'):
        return priors[places], rows_of(deltas, head.bbox_coder.encode_size)[places]
    chances = rows_of(deltas, 4 * (head.reg_max + 1))[places]
    return head.anchor_center(priors[places]), head.integral(chances) * head.prior_generator.strides[level][0]


def find_sure(head: Any, frame: Frame, scores: list[Tensor], deltas: list[Tensor], sure: list[Tensor]) -> Found:
    """Return what YOLOX finds: of each prior the best class alone, times how sure it is that there is an object."""
    priors = torch.cat(priors_of(head, scores, with_stride=True))
    given = (scores, head.cls_out_channels), (deltas, 4), (sure, 1)
    chances, offsets, factors = (torch.cat([rows_of(each, length) for each in maps]) for maps, length in given)
    best_scores, labels = chances.sigmoid().max(1)
    best_scores = best_scores * factors.flatten().sigmoid()
    boxes = frame.to_original(head._bbox_decode(priors, offsets))
    found = {'boxes': boxes, 'scores': best_scores, 'labels': labels}
    found = take(found, (best_scores >= head.test_cfg.score_thr).nonzero().flatten())
    return take(found, suppress(found['boxes'], found['scores'], found['labels'], head.test_cfg.nms))


def take(found: Found, places: Tensor | slice) -> Found:
    """Return some rows of all that was found."""
    return {name: values[places] for name, values in found.items()}


def paint(head: Any, prototypes: Tensor, kernels: Tensor, priors: Tensor, frame: Frame) -> Tensor:
    """Return masks (N, H, W) bool in pixels of the original picture, as RTMDet-Ins makes them.

    The layers that turn prototypes (1, C, h, w) into each object's mask are its kernels (N, parameters). Priors (N, 4)
    say where each object was found, and the stride there.
    """
    size = prototypes.shape[-2:]
    grid = head.prior_generator.single_level_grid_priors(size, level_idx=0, device=prototypes.device)
    offsets = (priors[:, None, :2] - grid).transpose(1, 2) / (priors[:, 2, None, None] * 8)
    values = torch.cat([offsets, prototypes.flatten(2).expand(offsets.shape[0], -1, -1)], dim=1)  # (N, 2 + C, h * w)
    weights = kernels.split([*head.weight_nums, *head.bias_nums], dim=1)
    count = len(head.weight_nums)
    for layer, (weight, bias) in enumerate(zip(weights[:count], weights[count:], strict=True)):
        outputs = bias.shape[1]
        values = weight.reshape(-1, outputs, weight.shape[1] // outputs) @ values + bias[:, :, None]
        values = values.relu() if layer < count - 1 else values
    logits = values.reshape(-1, 1, *size)
    logits = F.interpolate(logits, scale_factor=head.prior_generator.strides[0][0], mode='bilinear')
    # MMDetection scales the height by the factor of the width, and the other way round
    lengths = as_tensor(logits.shape[-2:]).double()
    height, width = (lengths * (1 / frame.scale).flip(0)).ceil().long()
    logits = F.interpolate(logits, size=(height, width), mode='bilinear', align_corners=False)
    logits = logits[:, 0, : frame.original[0], : frame.original[1]]
    return logits.sigmoid() > head.test_cfg.mask_thr_binary
