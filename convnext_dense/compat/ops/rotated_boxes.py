"""Overlaps and suppression of boxes that are not upright: rotated ones and quadrilaterals.

In: rotated boxes ``(N, 5)`` as ``(centre x, centre y, width, height, angle)`` in pixels and radians, clockwise, or
quadrilaterals ``(N, 8)`` as ``(x1, y1, .. x4, y4)``, their corners in order. Out: IoU, or indices of the boxes to keep.

Intersections are exact integrals over the edges, computed for many pairs at once. No list of corner points has to be
sorted, and nothing jumps where edges or corners of the two boxes meet.
"""

import torch
from torch import Tensor

from ..errors import UserError
from .arguments import as_computable, check_choice, check_shape, numbers_at_once
from .greedy import find_owners

IOU, IOF = range(2)
SMALLEST_AREA = 1e-14  # below, mmcv's overlap is 0


@torch.no_grad()
def box_iou_rotated(boxes1: Tensor, boxes2: Tensor, ious: Tensor, mode_flag: int, aligned: bool) -> None:
    """Fill ``ious`` with the overlaps of rotated boxes.

    Args:
        boxes1: ``(N, 5)``.
        boxes2: ``(M, 5)``, or ``(N, 5)`` where aligned.
        ious: Filled in place: ``(N * M,)`` or ``(N, M)``; ``(N,)`` where aligned.
        mode_flag: 0 divides by the union, 1 by the area of the first box.
        aligned: Only the overlaps of boxes with the same index.
    """
    boxes1, boxes2 = as_computable('box_iou_rotated', boxes1=boxes1, boxes2=boxes2)
    _fill(
        'box_iou_rotated',
        _Rotated('box_iou_rotated', boxes1),
        _Rotated('box_iou_rotated', boxes2),
        ious,
        mode_flag,
        aligned,
    )


@torch.no_grad()
def box_iou_quadri(boxes1: Tensor, boxes2: Tensor, ious: Tensor, mode_flag: int, aligned: bool) -> None:
    """Fill ``ious`` with the overlaps of quadrilaterals; arguments as for rotated boxes, with 8 columns."""
    boxes1, boxes2 = as_computable('box_iou_quadri', boxes1=boxes1, boxes2=boxes2)
    _fill(
        'box_iou_quadri', _Quadri('box_iou_quadri', boxes1), _Quadri('box_iou_quadri', boxes2), ious, mode_flag, aligned
    )


@torch.no_grad()
def nms_rotated(
    dets: Tensor,
    scores: Tensor,
    order: Tensor,
    dets_sorted: Tensor,
    labels: Tensor,
    iou_threshold: float,
    multi_label: int,
) -> Tensor:
    """Return the indices of the boxes to keep, best score first.

    As in mmcv, labels do not tell boxes apart here: its ``batched_nms`` moves the boxes of a class away instead.

    Args:
        dets: ``(N, 5)``, or with labels ``(N, 6)``.
        scores: ``(N,)``.
        order: Not used: scores are sorted here.
        dets_sorted: Not used.
        labels: Not used.
        iou_threshold: A box goes if its overlap with a better one reaches this; on an accelerator, if it is above.
        multi_label: Not used.
    """
    dets, scores = as_computable('nms_rotated', dets=dets, scores=scores)
    return _suppress('nms_rotated', dets[:, :5], scores, iou_threshold, _Rotated)


@torch.no_grad()
def nms_quadri(
    dets: Tensor, scores: Tensor, order: Tensor, dets_sorted: Tensor, iou_threshold: float, multi_label: int
) -> Tensor:
    """Return the indices of the boxes to keep, best score first; arguments as for rotated boxes, with 8 columns."""
    dets, scores = as_computable('nms_quadri', dets=dets, scores=scores)
    return _suppress('nms_quadri', dets[:, :8], scores, iou_threshold, _Quadri)


class _Rotated:
    """Rotated boxes with their areas and bounds."""

    def __init__(self, op: str, boxes: Tensor):
        _check_columns(op, boxes, 5)
        w, h, angle = boxes[:, 2:].unbind(dim=1)
        cos, sin = angle.cos().abs(), angle.sin().abs()
        self.boxes, self.areas = boxes, w * h
        reach = torch.stack([w.abs() * cos + h.abs() * sin, w.abs() * sin + h.abs() * cos]) / 2
        self.low, self.high = boxes[:, :2].T - reach, boxes[:, :2].T + reach  # (2, N)

    def intersections(self, other: '_Rotated', rows: Tensor, columns: Tensor) -> Tensor:
        """Return the common area of pairs of boxes, ``(P,)``.

        The larger box is seen in the frame of the smaller one, ``|x| <= W``, ``|y| <= H``. There the common area is the
        integral of its upper less its lower edges, both clamped to the frame.
        """
        first, second = self.boxes[rows], other.boxes[columns]
        swap = (self.areas[rows] < other.areas[columns])[:, None]
        large, small = torch.where(swap, second, first).unbind(dim=1), torch.where(swap, first, second).unbind(dim=1)
        cos, sin = small[4].cos(), small[4].sin()
        dx, dy = large[0] - small[0], large[1] - small[1]
        x, y = dx * cos + dy * sin, dy * cos - dx * sin
        turn = large[4] - small[4]
        cos, sin = turn.cos() / 2, turn.sin() / 2
        wx, wy, hx, hy = large[2] * cos, large[2] * sin, -large[3] * sin, large[3] * cos
        xs = [x + wx + hx, x - wx + hx, x - wx - hx, x + wx - hx]
        ys = [y + wy + hy, y - wy + hy, y - wy - hy, y + wy - hy]
        half_width, half_height = small[2].abs() / 2, small[3].abs() / 2
        inner = [torch.maximum(torch.minimum(x, half_width), -half_width) for x in xs]
        total = torch.zeros_like(x)
        for i in range(4):
            j = (i + 1) % 4
            dx, dy = _nonzero(xs[j] - xs[i]), ys[j] - ys[i]
            # where the edge enters and leaves the frame's width
            start = ys[i] + ((inner[i] - xs[i]) / dx).clamp(0, 1) * dy
            end = ys[j] - ((xs[j] - inner[j]) / dx).clamp(0, 1) * dy
            low, high = (torch.maximum(torch.minimum(y, half_height), -half_height) for y in (start, end))
            # The mean of the clamped line: constant to where it enters the frame, straight, constant again
            share = ((low - start + (high - start)) / _nonzero(end - start) / 2).clamp(0, 1)
            total += (inner[j] - inner[i]) * (high + (low - high) * share)
        return total.abs()


class _Quadri:
    """Quadrilaterals with their areas and bounds."""

    def __init__(self, op: str, boxes: Tensor):
        _check_columns(op, boxes, 8)
        points = boxes.reshape(-1, 4, 2)
        across = points[:, 2:] - points[:, :2]  # the two diagonals
        self.points = points
        self.areas = (across[:, 0, 0] * across[:, 1, 1] - across[:, 1, 0] * across[:, 0, 1]).abs() / 2
        self.low, self.high = points.amin(dim=1).T.contiguous(), points.amax(dim=1).T.contiguous()  # (2, N)

    def intersections(self, other: '_Quadri', rows: Tensor, columns: Tensor) -> Tensor:
        """Return the common area of pairs of boxes, ``(P,)``.

        The area under two edges, over the part of the x axis that they share, is that under the lower of the two.
        Added up over all pairs of edges, with the signs of their directions, only the common area is left. The terms
        are far larger than their sum, hence float64.
        """
        first, second = self.points[rows].double(), other.points[columns].double()
        origin = first.mean(dim=1, keepdim=True)
        sides = [_edges(first - origin), _edges(second - origin)]
        total = first.new_zeros(len(first))
        for x, y, slope, end, sign in sides[0]:
            for other_x, other_y, other_slope, other_end, other_sign in sides[1]:
                start = torch.maximum(x, other_x)
                width = (torch.minimum(end, other_end) - start).clamp(min=0)
                low = other_y + (start - other_x) * other_slope
                above = y + (start - x) * slope - low  # at the start
                beyond = above + width * (slope - other_slope)  # at the end
                below = above.clamp(max=0) + beyond.clamp(max=0)
                lower = below * below / _nonzero(above.abs() + beyond.abs()) / 2
                total += sign * other_sign * width * (low + width * other_slope / 2 - lower)
        return total.abs().to(self.points.dtype)


def _edges(points: Tensor) -> list[tuple[Tensor, ...]]:
    """Return the edges of polygons ``(P, 4, 2)`` from left to right: x, y, slope, last x, and the direction's sign."""
    edges = []
    for i in range(4):
        (x, y), (end, last) = points[:, i].unbind(dim=1), points[:, (i + 1) % 4].unbind(dim=1)
        forward = x <= end
        slope = (last - y) / _nonzero(end - x)
        left, right = torch.minimum(x, end), torch.maximum(x, end)
        edges.append((left, torch.where(forward, y, last), slope, right, torch.where(forward, 1.0, -1.0)))
    return edges


def _fill(
    op: str, boxes1: '_Rotated | _Quadri', boxes2: '_Rotated | _Quadri', ious: Tensor, mode: int, aligned: bool
) -> None:
    check_choice(op, (IOU, IOF), mode_flag=mode)
    num_rows, num_columns = len(boxes1.areas), len(boxes2.areas)
    if aligned and num_rows != num_columns:
        raise UserError(f'{op} needs as many boxes on both sides when aligned, and got {num_rows} and {num_columns}.')
    check_shape(op, ious=((ious.numel(),), (num_rows if aligned else num_rows * num_columns,)))
    device = boxes1.areas.device
    if aligned:
        numbers = torch.arange(num_rows, device=device)
        common = _common_areas(boxes1, boxes2, numbers, numbers)
        ious.copy_(_ratios(common, boxes1.areas, boxes2.areas, mode).view(ious.shape))
        return
    columns = torch.arange(num_columns, device=device)
    step = max(1, numbers_at_once(device) // max(1, num_columns))
    parts = ious.view(num_rows, num_columns).split(step)
    for rows, part in zip(torch.arange(num_rows, device=device).split(step), parts, strict=True):
        part.copy_(_overlaps(boxes1, boxes2, rows, columns, mode))


def _suppress(op: str, boxes: Tensor, scores: Tensor, iou_threshold: float, kind: type) -> Tensor:
    """Return the indices of the boxes to keep, given ``(N, 5)`` or ``(N, 8)``."""
    check_shape(op, scores=(scores.shape, (len(boxes),)))
    order = scores.sort(dim=0, descending=True).indices
    boxes = kind(op, boxes[order])
    threshold = torch.tensor(iou_threshold, dtype=torch.float32).item()  # a C float in mmcv
    reaches = torch.ge if scores.is_cpu else torch.gt

    def hits(rows: Tensor, columns: Tensor) -> Tensor:
        if threshold <= 0:  # reached without a common area
            return reaches(_overlaps(boxes, boxes, rows, columns, IOU), threshold)
        meet, (row, column) = _meeting_pairs(boxes, boxes, rows, columns)
        first, second = rows[row], columns[column]
        common = _common_areas(boxes, boxes, first, second)
        meet[row, column] = reaches(_ratios(common, boxes.areas[first], boxes.areas[second], IOU), threshold)
        return meet

    owners = find_owners(len(scores), hits, scores.device)
    return order[owners == torch.arange(len(scores), device=scores.device)]


def _overlaps(
    boxes1: '_Rotated | _Quadri', boxes2: '_Rotated | _Quadri', rows: Tensor, columns: Tensor, mode: int
) -> Tensor:
    """Return the overlaps of some boxes with some others ``(R, C)``."""
    meet, (row, column) = _meeting_pairs(boxes1, boxes2, rows, columns)
    common = boxes1.areas.new_zeros(meet.shape)
    common[row, column] = _common_areas(boxes1, boxes2, rows[row], columns[column])
    return _ratios(common, boxes1.areas[rows, None], boxes2.areas[columns], mode)


def _meeting_pairs(
    boxes1: '_Rotated | _Quadri', boxes2: '_Rotated | _Quadri', rows: Tensor, columns: Tensor
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Return whose upright bounds meet ``(R, C)``, and where this is true; the other pairs share no area."""
    low, high = boxes2.low[:, columns], boxes2.high[:, columns]
    meet = boxes1.low[0, rows, None] < high[0]
    meet &= boxes1.high[0, rows, None] > low[0]
    meet &= boxes1.low[1, rows, None] < high[1]
    meet &= boxes1.high[1, rows, None] > low[1]
    return meet, meet.nonzero(as_tuple=True)


def _common_areas(boxes1: '_Rotated | _Quadri', boxes2: '_Rotated | _Quadri', rows: Tensor, columns: Tensor) -> Tensor:
    if len(rows) == 0:
        return boxes1.areas.new_zeros(0)
    step = max(1, numbers_at_once(rows.device) // 16)  # about so many tensors are in use at a time
    parts = zip(rows.split(step), columns.split(step), strict=True)
    return torch.cat([boxes1.intersections(boxes2, *part) for part in parts])


def _ratios(common: Tensor, areas1: Tensor, areas2: Tensor, mode: int) -> Tensor:
    common = torch.fmin(torch.where(common.isnan(), 0, common), torch.fmin(areas1, areas2))
    whole = areas1 + areas2 - common if mode == IOU else areas1
    return torch.where((areas1 < SMALLEST_AREA) | (areas2 < SMALLEST_AREA), 0, common / whole)


def _nonzero(values: Tensor) -> Tensor:
    return torch.where(values == 0, 1, values)


def _check_columns(op: str, boxes: Tensor, columns: int) -> None:
    if boxes.ndim != 2 or boxes.shape[1] != columns:
        raise UserError(f'{op} needs boxes (N, {columns}) and got {tuple(boxes.shape)}.')
