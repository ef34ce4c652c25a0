"""Non-maximum suppression: the ops ``nms``, ``softnms`` and ``nms_match`` of mmcv.

In: boxes ``(N, 4)`` as ``(x1, y1, x2, y2)`` in pixels with scores ``(N,)``. Out: indices into the input.
A box's width is ``x2 - x1 + offset``; mmcv's ``offset`` is 1 for the pixel convention of the first detectors, else 0.

Every value is computed as mmcv's C++ does it, in float32 and in its order of operations, so that ties fall alike.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

NAIVE, LINEAR, GAUSSIAN = range(3)


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Return the indices of the boxes to keep, best score first; a box goes if its IoU is above the threshold."""
    if boxes.numel() == 0:
        return boxes.new_empty(0, dtype=torch.long)
    boxes, scores = _same_float_type(boxes, scores)
    if offset == 0:
        import torchvision

        # torchvision takes equal scores by index, mmcv as torch's sort leaves them; sorted first, the order stays.
        order = _best_first(scores)
        return order[torchvision.ops.nms(boxes[order], scores[order], _as_float32(iou_threshold))]
    groups = _greedy_groups(boxes, scores, _as_float32(iou_threshold), offset, suppresses=np.greater)
    return torch.tensor([group[0] for group in groups], device=boxes.device)


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Return one group per kept box: its index, then those of the boxes it suppresses by score.

    Args:
        dets: Boxes with their scores, ``(N, 5)``.
        iou_threshold: A box joins a group if its IoU reaches this.
    """
    dets, scores = _same_float_type(dets, dets[:, 4])
    return _greedy_groups(dets[:, :4], scores, _as_float32(iou_threshold), offset=0, suppresses=np.greater_equal)


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

    Args:
        boxes: ``(N, 4)``.
        scores: ``(N,)``.
        dets: Filled in place: the first ``M`` of its rows become the kept boxes with their new scores, ``(M, 5)``.
        iou_threshold: Overlap from which the naive and the linear method act.
        sigma: Width of the gaussian method.
        min_score: A box whose lowered score is below this is dropped.
        method: 0 naive, 1 linear, 2 gaussian.
        offset: Added to widths and heights, 0 or 1.

    Returns:
        The indices of the ``M`` kept boxes, in the order of ``dets``.
    """
    if boxes.numel() == 0:
        return boxes.new_empty(0, dtype=torch.long)
    boxes, scores = _same_float_type(boxes, scores)
    rows = torch.cat([boxes, scores[:, None]], dim=1).cpu().numpy()
    order = np.arange(len(rows))
    iou_threshold, sigma, min_score = map(_as_float32, (iou_threshold, sigma, min_score))

    position, count = 0, len(rows)
    while position < count:
        best = position + _first_maximum(rows[position:count, 4])
        for column in (rows, order):
            column[[position, best]] = column[[best, position]]
        rest = slice(position + 1, count)
        overlap = _iou(rows[position, :4], rows[rest, :4], offset)
        with np.errstate(invalid='ignore'):
            rows[rest, 4] *= _decay(overlap, iou_threshold, sigma, method)
        survivors = rest.start + _close_gaps(rows[rest, 4] < min_score)
        count = rest.start + len(survivors)
        for column in (rows, order):
            column[rest.start : count] = column[survivors]
        position += 1

    dets[:count] = torch.from_numpy(rows[:count])
    return torch.from_numpy(order[:count])


def _same_float_type(boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    # Half precision has no kernel on the CPU, and rounding the scores down would make ties that are not there.
    dtype = torch.float64 if torch.float64 in (boxes.dtype, scores.dtype) else torch.float32
    return boxes.to(dtype), scores.to(dtype)


def _as_float32(value: float) -> float:
    # mmcv takes thresholds as C floats; 0.6 as a double is below 0.6 as a float, which decides ties.
    return float(np.float32(value))


def _best_first(scores: Tensor) -> Tensor:
    return scores.sort(dim=0, descending=True).indices


def _greedy_groups(
    boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int, suppresses: Callable
) -> list[list[int]]:
    """Take the best box, group it with what it suppresses, repeat with the others."""
    order = _best_first(scores).cpu().numpy()
    boxes = boxes.cpu().numpy()[order]
    groups = []
    while len(order):
        suppressed = suppresses(_iou(boxes[0], boxes[1:], offset), iou_threshold)
        groups.append([order[0].item(), *order[1:][suppressed].tolist()])
        boxes, order = boxes[1:][~suppressed], order[1:][~suppressed]
    return groups


def _iou(box: np.ndarray, boxes: np.ndarray, offset: int) -> np.ndarray:
    """Return the IoU of ``box`` ``(4,)`` with each of ``boxes`` ``(N, 4)``; two empty boxes give NaN."""
    x1, y1, x2, y2 = boxes.T
    offset = np.float32(offset)  # NumPy 1 would go on in double after a Python number
    with np.errstate(all='ignore'):
        width = _larger(np.float32(0), _smaller(box[2], x2) - _larger(box[0], x1) + offset)
        height = _larger(np.float32(0), _smaller(box[3], y2) - _larger(box[1], y1) + offset)
        intersection = width * height
        area = (box[2] - box[0] + offset) * (box[3] - box[1] + offset)
        areas = (x2 - x1 + offset) * (y2 - y1 + offset)
        return intersection / (area + areas - intersection)


def _larger(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    # As std::max: where one of the two is NaN, the first wins. np.maximum would spread the NaN.
    return np.where(first < second, second, first)


def _smaller(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.where(second < first, second, first)


def _first_maximum(scores: np.ndarray) -> int:
    # A NaN never wins, but keeps the place it has, as in a loop of `if best < score`.
    if np.isnan(scores[0]):
        return 0
    return int(np.argmax(np.where(np.isnan(scores), -np.inf, scores)))


def _decay(overlap: np.ndarray, iou_threshold: float, sigma: float, method: int) -> np.ndarray:
    """Return the factor for the score of each box."""
    if method == NAIVE:
        return np.where(overlap >= iou_threshold, np.float32(0), np.float32(1))
    if method == LINEAR:
        return np.where(overlap >= iou_threshold, 1 - overlap, np.float32(1))
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
    places = np.flatnonzero(~dropped)
    count = len(places)
    gaps = np.flatnonzero(dropped[:count])
    moved = places[places >= count][::-1]
    filled = np.arange(count)
    filled[gaps] = moved
    return filled
