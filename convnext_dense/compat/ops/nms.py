"""Non-maximum suppression: the ops ``nms``, ``softnms`` and ``nms_match`` of mmcv.

Every value is computed as mmcv's C++ does it, in float32 and in its order of operations, so that ties fall alike.
The width of a box is ``x2 - x1 + offset``; ``offset`` is 1 where coordinates name pixels, else 0.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from .arguments import as_computable, check_choice, check_shape, numbers_at_once

NAIVE, LINEAR, GAUSSIAN = range(3)
BLOCK = 256  # boxes that are compared with all others at a time


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Return the indices of the boxes to keep, best score first; a box goes if its IoU is above the threshold."""
    boxes, scores = _checked('nms', boxes, scores)
    iou_threshold = _as_float32('nms', iou_threshold)
    order = scores.argsort(descending=True)
    if offset == 0 and len(boxes):
        import torchvision

        # torchvision takes equal scores by index, mmcv as torch's sort leaves them; sorted first, the order stays.
        return order[torchvision.ops.nms(boxes[order], scores[order], iou_threshold)]
    owners = _find_owners(boxes[order], iou_threshold, offset, reaches=torch.gt)
    return order[owners == torch.arange(len(owners), device=owners.device)]


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Return one group per kept box of ``dets`` ``(N, 5)``: its index, then those of the boxes it suppresses by score.

    A box joins a group if its IoU reaches ``iou_threshold``.
    """
    (dets,) = as_computable('nms_match', dets=dets)
    check_shape('nms_match', dets=(dets.shape, (*dets.shape[:1], 5)))
    order = dets[:, 4].argsort(descending=True)
    owners = _find_owners(dets[order, :4], _as_float32('nms_match', iou_threshold), offset=0, reaches=torch.ge)
    groups = {}
    for owner, box in zip(owners.tolist(), order.tolist(), strict=True):
        groups.setdefault(owner, []).append(box)  # the owner is the first of its group, for it owns itself
    return list(groups.values())


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Lower the scores of overlapping boxes instead of dropping them (https://arxiv.org/abs/1704.04503).

    ``method`` is 0 for naive and 1 for linear, which act from an overlap of ``iou_threshold`` on, or 2 for gaussian,
    whose width is ``sigma``. A box whose score falls below ``min_score`` is dropped. The first ``M`` rows of ``dets``
    ``(N, 5)`` become the kept boxes with their new scores. Their indices ``(M,)`` are returned.
    """
    boxes, scores = _checked('softnms', boxes, scores)
    check_choice('softnms', (NAIVE, LINEAR, GAUSSIAN), method=method)
    iou_threshold, sigma, min_score = (_as_float32('softnms', number) for number in (iou_threshold, sigma, min_score))

    boxes, scores = boxes.cpu().numpy(), scores.cpu().numpy()
    offset = boxes.dtype.type(offset)  # NumPy 1 would go on in double after a Python number
    position, count = 0, len(scores)
    with np.errstate(all='ignore'):
        areas = (boxes[:, 2] - boxes[:, 0] + offset) * (boxes[:, 3] - boxes[:, 1] + offset)
        # One column for each box: x1, y1, x2, y2, score, area, index. A float32 holds every index below 2**24.
        waiting = np.stack([*boxes.T, scores, areas, np.arange(count, dtype=boxes.dtype)])
        while position < count:
            best = position + _first_maximum(waiting[4, position:count])
            waiting[:, [position, best]] = waiting[:, [best, position]]
            position += 1
            rest = waiting[:, position:count]
            rest[4] *= _decay(_overlaps(waiting[:, position - 1], rest, offset), iou_threshold, sigma, method)
            dropped = rest[4] < min_score
            if dropped.any():
                survivors = position + _close_gaps(dropped)
                count = position + len(survivors)
                waiting[:, position:count] = waiting[:, survivors]
    dets[:count] = torch.from_numpy(waiting[:5, :count].T)
    return torch.from_numpy(waiting[6, :count].astype(np.int64))


def _checked(op: str, boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    # Of one type, the finer one: rounding the scores down would make ties that are not there.
    boxes, scores = as_computable(op, boxes=boxes, scores=scores)
    check_shape(op, boxes=(boxes.shape, (*boxes.shape[:1], 4)), scores=(scores.shape, boxes.shape[:1]))
    return boxes, scores


def _as_float32(op: str, value: float) -> float:
    # mmcv takes thresholds as C floats; 0.6 as a double is below 0.6 as a float, which decides ties.
    if isinstance(value, str):
        raise UserError(f'{op} takes numbers for thresholds and sigma; got {value!r}.')
    return float(np.float32(value))


def _find_owners(boxes: Tensor, iou_threshold: float, offset: int, reaches: Callable) -> Tensor:
    """Return for each box the one that suppresses it, or itself, given boxes ``(N, 4)``, best first.

    Boxes are taken in blocks, so that the pairs of all boxes are never held at once. All pairs of a block are compared;
    the boxes of the block that are kept are then compared with all boxes that still wait.
    """
    owners = torch.arange(len(boxes), device=boxes.device)
    waiting = owners.clone()
    while len(waiting):
        block, waiting = waiting[:BLOCK], waiting[BLOCK:]
        hits = reaches(_ious(boxes[block], boxes[block], offset), iou_threshold).triu(1)
        kept = _first_of_chains(hits)
        leaders = block[kept]
        owners[block] = torch.where(kept, block, leaders[_first_true(hits[kept])])
        still_waiting = []
        for others in waiting.split(max(1, numbers_at_once(boxes.device) // len(leaders))):
            hits = reaches(_ious(boxes[leaders], boxes[others], offset), iou_threshold)
            hit = hits.any(dim=0)
            owners[others[hit]] = leaders[_first_true(hits[:, hit])]
            still_waiting.append(others[~hit])
        waiting = torch.cat(still_waiting)
    return owners


def _ious(boxes: Tensor, others: Tensor, offset: int) -> Tensor:
    """Return the IoU of all pairs ``(R, C)``. Boxes with NaN, and two empty ones, have NaN, which reaches nothing."""
    a, b = boxes.T[:, :, None], others.T[:, None].contiguous()
    common = torch.minimum(a[2], b[2]).sub_(torch.maximum(a[0], b[0])).add_(offset).clamp_(min=0)
    common *= torch.minimum(a[3], b[3]).sub_(torch.maximum(a[1], b[1])).add_(offset).clamp_(min=0)
    area, other_area = ((box[2] - box[0] + offset) * (box[3] - box[1] + offset) for box in (a, b))
    whole = (area + other_area).sub_(common)
    return common.div_(whole)


def _first_of_chains(hits: Tensor) -> Tensor:
    """Return which boxes are kept ``(N,)``, given which earlier box hits which later one ``(N, N)``.

    Each pass settles at least one more box, and nothing changes any more once all are settled.
    """
    kept = torch.ones(len(hits), dtype=torch.bool, device=hits.device)
    while True:
        again = ~hits[kept].any(dim=0)
        if torch.equal(again, kept):
            return kept
        kept = again


def _first_true(flags: Tensor) -> Tensor:
    return flags.byte().argmax(dim=0)


def _first_maximum(scores: np.ndarray) -> int:
    best = int(scores.argmax())
    if not np.isnan(scores[best]):  # NumPy's maximum is NaN where one is
        return best
    # A NaN never wins, but keeps the place it has, as in a loop of `if best < score`.
    return 0 if np.isnan(scores[0]) else int(np.nanargmax(scores))


def _overlaps(box: np.ndarray, others: np.ndarray, offset: np.floating) -> np.ndarray:
    """Return the IoU of a column of boxes with others; NaN and two empty boxes give NaN."""
    width = np.minimum(box[2], others[2]) - np.maximum(box[0], others[0]) + offset
    height = np.minimum(box[3], others[3]) - np.maximum(box[1], others[1]) + offset
    common = np.maximum(width, 0) * np.maximum(height, 0)
    return common / (box[5] + others[5] - common)


def _decay(overlap: np.ndarray, iou_threshold: float, sigma: float, method: int) -> np.ndarray:
    """Return the factor for the score of each box."""
    if method == NAIVE:
        return ~(overlap >= iou_threshold)
    if method == LINEAR:
        return np.where(overlap >= iou_threshold, 1 - overlap, overlap.dtype.type(1))
    # exp in double, rounded, is the C library's float exp but for the last bit of 1 in 1500 values; NumPy's float32 exp
    # differs in 2 of 5.
    exponent = -(overlap * overlap) / np.float32(sigma)
    return np.exp(exponent.astype(np.float64)).astype(overlap.dtype)


def _close_gaps(dropped: np.ndarray) -> np.ndarray:
    """Return the places of the survivors after each gap is filled with the last survivor, front gap first.

    The order of equal scores depends on it: mmcv drops a box by moving the last one into its place.

    >>> _close_gaps(np.array([False, True, False, True, False]))
    array([0, 4, 2])
    """
    survivors = np.flatnonzero(~dropped)
    places = np.arange(len(survivors))
    places[dropped[: len(survivors)]] = survivors[survivors >= len(survivors)][::-1]
    return places
