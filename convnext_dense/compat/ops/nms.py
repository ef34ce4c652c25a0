"""Non-maximum suppression: the ops ``nms``, ``softnms`` and ``nms_match`` of mmcv.

In: boxes ``(N, 4)`` as ``(x1, y1, x2, y2)`` in pixels with scores ``(N,)``. Out: indices into the input.
A box's width is ``x2 - x1 + offset``; mmcv's ``offset`` is 1 for the pixel convention of the first detectors, else 0.

Every value is computed as mmcv's C++ does it, in float32 and in its order of operations, so that ties fall alike.
"""

import itertools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from .arguments import as_computable, check_choice, check_shape
from .greedy import find_owners

NAIVE, LINEAR, GAUSSIAN = range(3)


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Return the indices of the boxes to keep, best score first; a box goes if its IoU is above the threshold."""
    boxes, scores = _checked('nms', boxes, scores)
    if len(boxes) == 0:
        return boxes.new_empty(0, dtype=torch.long)
    if offset == 0:
        import torchvision

        # torchvision takes equal scores by index, mmcv as torch's sort leaves them; sorted first, the order stays.
        order = _best_first(scores)
        return order[torchvision.ops.nms(boxes[order], scores[order], _as_float32('nms', iou_threshold))]
    order = _best_first(scores)
    owners = _find_owners(boxes[order], _as_float32('nms', iou_threshold), offset, reaches=torch.gt)
    return order[owners == torch.arange(len(owners), device=owners.device)]


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Return one group per kept box: its index, then those of the boxes it suppresses by score.

    Args:
        dets: Boxes with their scores, ``(N, 5)``.
        iou_threshold: A box joins a group if its IoU reaches this.
    """
    (dets,) = as_computable('nms_match', dets=dets)
    check_shape('nms_match', dets=(dets.shape, (*dets.shape[:1], 5)))
    order = _best_first(dets[:, 4])
    owners = _find_owners(dets[order, :4], _as_float32('nms_match', iou_threshold), offset=0, reaches=torch.ge)
    # A group's boxes follow each other, by score; its owner is the best of them.
    owners, grouped = owners.sort(stable=True)
    members = order[grouped].tolist()
    ends = [0, *owners.unique_consecutive(return_counts=True)[1].cumsum(0).tolist()]
    return [members[start:end] for start, end in itertools.pairwise(ends)]


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
    boxes, scores = _checked('softnms', boxes, scores)
    check_choice('softnms', (NAIVE, LINEAR, GAUSSIAN), method=method)
    iou_threshold, sigma, min_score = (_as_float32('softnms', number) for number in (iou_threshold, sigma, min_score))

    def decay(overlaps: np.ndarray) -> np.ndarray:
        return _decay(overlaps, iou_threshold, sigma, method)

    waiting = _Waiting(boxes.cpu().numpy(), scores.cpu().numpy(), offset)
    if not (iou_threshold > 0 and waiting.suppress_apart(decay, min_score)):
        waiting.suppress(decay, min_score)
    count = waiting.count
    dets[:count] = torch.from_numpy(waiting.columns[:5, :count].T)
    return torch.from_numpy(waiting.columns[6, :count].astype(np.int64))


class _Waiting:
    """Boxes that change places as mmcv moves them, in columns: x1, y1, x2, y2, score, area, index."""

    def __init__(self, boxes: np.ndarray, scores: np.ndarray, offset: int):
        self.offset = boxes.dtype.type(offset)  # NumPy 1 would go on in double after a Python number
        with np.errstate(all='ignore'):
            areas = (boxes[:, 2] - boxes[:, 0] + self.offset) * (boxes[:, 3] - boxes[:, 1] + self.offset)
        # A float32 holds every index below 2^24. That many boxes would take months.
        self.columns = np.stack([*boxes.T, scores, areas, np.arange(len(scores), dtype=boxes.dtype)])
        self.scores = self.columns[4]
        self.count = len(scores)
        # From such numbers no NaN can come.
        self.is_sound = bool(np.isfinite(self.columns).all() and (areas > 0).all())

    def suppress(self, decay: Callable, min_score: float) -> None:
        """Suppress the boxes; those that are kept come first, best first.

        Args:
            decay: Returns the factors of scores, given overlaps.
            min_score: As for :func:`softnms`.
        """
        position = 0
        with np.errstate(all='ignore'):
            while position < self.count:
                self.move_best_to(position)
                position += 1
                rest = self.scores[position : self.count]
                rest *= decay(self.overlaps(position))
                dropped = rest < min_score
                if dropped.any():
                    self.drop(position, dropped)

    def move_best_to(self, position: int) -> None:
        """Change places with the best of the boxes from ``position`` on."""
        scores = self.scores[position : self.count]
        best = position + int(scores.argmax() if self.is_sound else _first_maximum(scores))
        if best != position:
            moved = self.columns[:, position].copy()
            self.columns[:, position] = self.columns[:, best]
            self.columns[:, best] = moved

    def overlaps(self, first: int) -> np.ndarray:
        """Return the IoU of the box before ``first`` with each one from there on; NaN and two empty boxes give NaN."""
        return self.overlap(self.columns[:, first - 1], self.columns[:, first : self.count])

    def overlap(self, box: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Return the IoU of boxes whose columns are given, of any shapes that are broadcast."""
        width = np.minimum(box[2], others[2]) - np.maximum(box[0], others[0]) + self.offset
        height = np.minimum(box[3], others[3]) - np.maximum(box[1], others[1]) + self.offset
        common = np.maximum(width, 0) * np.maximum(height, 0)
        return common / (box[5] + others[5] - common)

    def suppress_apart(self, decay: Callable, min_score: float) -> bool:
        """Do what :meth:`suppress` does for all groups at once; they lie beside each other, as classes moved apart do.

        Where no two scores are ever equal the order in which boxes wait is of no account, and where no score is
        negative the boxes of several groups win in the order of their scores.

        Returns:
            Whether it is done; where the groups are one or scores tie it is not, and nothing has changed.
        """
        if not self.is_sound or (self.scores < 0).any():
            return False
        starts, order = self.find_groups()
        if len(starts) < 2:
            return False
        may_win = self.scores >= min_score
        may_win[self.scores.argmax()] = True  # it wins before any box is looked at
        sizes = np.diff(starts, append=self.count)
        powers = np.frexp(sizes)[1]
        winners = []
        for power in np.unique(powers):  # groups of similar sizes, to pad them little
            chosen = powers == power
            places = np.arange(sizes[chosen].max())
            is_member = places < sizes[chosen, None]
            groups = order[np.minimum(starts[chosen, None] + places, self.count - 1)]
            columns, alive = self.columns[:, groups], may_win[groups] & is_member
            while alive.any():
                rows = np.flatnonzero(alive.any(axis=1))
                columns, alive, numbers = columns[:, rows], alive[rows], np.arange(len(rows))
                candidates = np.where(alive, columns[4], -np.inf)
                best = candidates.argmax(axis=1)
                box = columns[:, numbers, best, None]
                if (candidates == box[4]).sum() > len(rows):
                    return False
                winners.append(box[:, :, 0])
                alive[numbers, best] = False
                columns[4] *= decay(self.overlap(box, columns))
                alive &= columns[4] >= min_score
        kept = np.concatenate(winners, axis=1)
        kept = kept[:, np.argsort(-kept[4])]
        if (kept[4, 1:] == kept[4, :-1]).any():
            return False
        self.count = kept.shape[1]
        self.columns[:, : self.count] = kept
        return True

    def find_groups(self) -> tuple[np.ndarray, np.ndarray]:
        """Return where groups of boxes start that do not touch on the x axis, and the order in which they stand."""
        x1, _, x2 = self.columns[:3]
        order = np.argsort(x1, kind='stable')
        reach = np.maximum.accumulate(x2[order])
        starts = np.flatnonzero(reach[:-1] - x1[order][1:] + self.offset <= 0) + 1
        return np.append(0, starts) if self.count else starts, order

    def drop(self, first: int, dropped: np.ndarray) -> None:
        """Drop the flagged ones, counted from ``first``."""
        survivors = first + _close_gaps(dropped)
        self.count = first + len(survivors)
        self.columns[:, first : self.count] = self.columns[:, survivors]


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


def _best_first(scores: Tensor) -> Tensor:
    return scores.sort(dim=0, descending=True).indices


def _find_owners(boxes: Tensor, iou_threshold: float, offset: int, reaches: Callable) -> Tensor:
    """Return for each box the one that suppresses it, given boxes ``(N, 4)``, best first."""
    x1, y1, x2, y2 = columns = boxes.T.contiguous()
    areas = (x2 - x1 + offset) * (y2 - y1 + offset)

    def hits(rows: Tensor, others: Tensor) -> Tensor:
        """Boxes with NaN, and two empty ones, have an IoU of NaN, which reaches nothing."""
        a, b = columns[:, rows, None], columns[:, None, others]
        common = torch.minimum(a[2], b[2]).sub_(torch.maximum(a[0], b[0])).add_(offset).clamp_(min=0)
        common *= torch.minimum(a[3], b[3]).sub_(torch.maximum(a[1], b[1])).add_(offset).clamp_(min=0)
        whole = (areas[rows, None] + areas[others]).sub_(common)
        return reaches(common.div_(whole), iou_threshold)

    return find_owners(len(boxes), hits, boxes.device)


def _first_maximum(scores: np.ndarray) -> int:
    # A NaN never wins, but keeps the place it has, as in a loop of `if best < score`.
    if np.isnan(scores[0]):
        return 0
    return int(np.argmax(np.where(np.isnan(scores), -np.inf, scores)))


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
    places = np.flatnonzero(~dropped)
    count = len(places)
    gaps = np.flatnonzero(dropped[:count])
    moved = places[places >= count][::-1]
    filled = np.arange(count)
    filled[gaps] = moved
    return filled
