"""Boxes: decoded from what a head says of its priors, sorted by score, and freed of duplicates.

Each function gives what MMDetection 3.3's counterpart gives, without branches that depend on the numbers in a tensor.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import nms

from convnext_dense.export.frame import Frame

NMS_KEYS = {'type', 'iou_threshold', 'class_agnostic', 'split_thr'}


def decode_deltas(coder: Any, priors: Tensor, deltas: Tensor) -> Tensor:
    """Return boxes (N, 4) from priors (N, 4) and ``DeltaXYWHBBoxCoder``'s deltas (N, 4)."""
    shifts, sizes = (deltas * deltas.new_tensor(coder.stds) + deltas.new_tensor(coder.means)).split(2, dim=1)
    low, high = priors.split(2, dim=1)
    shifts = (high - low) * shifts
    limit = abs(math.log(16 / 1000))
    if coder.add_ctr_clamp:
        shifts, sizes = shifts.clamp(-coder.ctr_clamp, coder.ctr_clamp), sizes.clamp(max=limit)
    else:
        sizes = sizes.clamp(-limit, limit)
    centres, sizes = (low + high) * 0.5 + shifts, (high - low) * sizes.exp()
    return torch.cat([centres - sizes * 0.5, centres + sizes * 0.5], dim=1)


def decode_distances(coder: Any, points: Tensor, distances: Tensor) -> Tensor:
    """Return boxes (N, 4) from points (N, 2) and ``DistancePointBBoxCoder``'s distances (N, 4) to the four sides."""
    return torch.cat([points - distances[:, :2], points + distances[:, 2:]], dim=1)


def decode_sides(coder: Any, priors: Tensor, sides: Tensor) -> Tensor:
    """Return boxes (N, 4) from priors (N, 4) and ``TBLRBBoxCoder``'s distances (N, 4) of their centres to the sides."""
    sides = sides * sides.new_tensor(coder.normalizer)
    low, high = priors.split(2, dim=1)
    width, height = (high - low).split(1, dim=1)
    top, bottom, left, right = (sides * torch.cat([height, height, width, width], dim=1)).split(1, dim=1)
    x, y = ((low + high) / 2).split(1, dim=1)
    return torch.cat([x - left, y - top, x + right, y + bottom], dim=1)


DECODERS: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    'DeltaXYWHBBoxCoder': decode_deltas,
    'DistancePointBBoxCoder': decode_distances,
    'TBLRBBoxCoder': decode_sides,
}


def decode(coder: Any, priors: Tensor, values: Tensor, frame: Frame) -> Tensor:
    """Return the boxes (N, 4) that a head means, inside the image."""
    boxes = DECODERS[type(coder).__name__](coder, priors, values)
    return frame.clip(boxes) if coder.clip_border else boxes


def best(scores: Tensor, threshold: float, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the highest of scores (N, classes) above a threshold, with their rows and classes, (M,) each."""
    rows, labels = (scores > threshold).nonzero().unbind(1)
    chosen, order = scores[rows, labels].sort(descending=True)
    order = order[:most]
    return chosen[:most], rows[order], labels[order]


def first(values: Tensor, most: int) -> Tensor:
    """Return the first rows; a slice would bind a graph of ``torch.export`` to images with more rows, or with fewer."""
    return values[torch.arange(values.shape[0], device=values.device) < most]


def suppress(boxes: Tensor, scores: Tensor, groups: Tensor, settings: Mapping[str, Any]) -> Tensor:
    """Return the places of the boxes (N, 4) that stay, best first, by ``nms`` of a ``test_cfg``.

    A box counts for its group (N,), such as a class, alone.
    """
    if not settings.get('class_agnostic', False):  # each group moves to a place of its own
        end = torch.cat([boxes.flatten(), boxes.new_zeros(1)]).max() + 1
        boxes = boxes + (groups.to(boxes) * end)[:, None]
    # torch.export takes for granted that two boxes stay: two more are given, far from all others and below them
    count, others = boxes.shape[0], boxes.new_tensor([[-2.0, -2.0, -1.0, -1.0], [-4.0, -4.0, -3.0, -3.0]])
    kept = nms(torch.cat([boxes, others]), F.pad(scores, (0, 2), value=-1.0), settings['iou_threshold'])
    return kept[kept < count]


def large(boxes: Tensor, cfg: Mapping[str, Any]) -> Tensor | slice:
    """Return the places of boxes (N, 4) with both sides above ``min_bbox_size`` of a ``test_cfg``."""
    smallest = cfg.get('min_bbox_size', -1)
    return (boxes[:, 2:] - boxes[:, :2] > smallest).all(1).nonzero().flatten() if smallest >= 0 else slice(None)


def rows_of(maps: Tensor, length: int) -> Tensor:
    """Return a head's map (1, priors * length, H, W) as a row for each prior, (N, length)."""
    return maps[0].permute(1, 2, 0).reshape(-1, length)


def chances_of(head: Any, maps: Tensor) -> Tensor:
    """Return how sure a head is of each class, (priors, classes), from its map of a level."""
    logits = rows_of(maps, head.cls_out_channels)
    return logits.sigmoid() if head.use_sigmoid_cls else logits.softmax(-1)[:, :-1]


def priors_of(head: Any, maps: Sequence[Tensor], **options: Any) -> list[Tensor]:
    """Return the anchors or points of a head for its maps, one tensor for each level."""
    sizes = [each.shape[-2:] for each in maps]
    return head.prior_generator.grid_priors(sizes, dtype=maps[0].dtype, device=maps[0].device, **options)


def problems_of(coder: Any, nms: Mapping[str, Any] | None) -> list[str]:
    """Return why boxes of a head cannot be exported; ``coder`` is None where the head itself decodes."""
    problems = []
    if coder is not None and type(coder).__name__ not in DECODERS:
        problems.append(f'boxes of {type(coder).__name__} are not known, those of {", ".join(DECODERS)} are')
    settings = dict(nms or {})
    if settings.get('type', 'nms') != 'nms' or not settings.keys() <= NMS_KEYS or 'iou_threshold' not in settings:
        problems.append(
            f'ONNX has an operator for plain NMS, not for {settings}. Set nms=dict(_delete_=True, type="nms", '
            'iou_threshold=0.5) in the test_cfg of a config that inherits this one, and give it with --config'
        )
    return problems
