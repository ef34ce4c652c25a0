"""Points and polygons: who lies in which quadrilateral, and the smallest rectangle around nine points.

In: points ``(B, 2)`` and quadrilaterals ``(M, 8)`` as ``(x1, y1, .. x4, y4)``, or sets of points ``(N, 18)`` as
``(x1, y1, .. x9, y9)``. Out: written into ``output`` ``(B, M)`` and ``polygons`` ``(N, 8)``.
"""

import math

import torch
from torch import Tensor

from .arguments import as_computable, check_shape, numbers_at_once

NEARLY_SMALLEST = 1 + 1e-6  # rectangles on opposite edges have the same area but for rounding


@torch.no_grad()
def points_in_polygons_forward(points: Tensor, polygons: Tensor, output: Tensor) -> None:
    """Fill ``output`` ``(B, M)`` with 1 where the point lies in the quadrilateral, else with 0.

    A ray to the right crosses the border an odd number of times from inside. For a point on the border the count stops
    at that edge, as in mmcv, so that the answer depends on the order of the corners.
    """
    points, polygons = as_computable('points_in_polygons', points=points, polygons=polygons)
    shapes = dict(points=(points.shape, (len(points), 2)), polygons=(polygons.shape, (len(polygons), 8)))
    shapes |= dict(output=(output.shape, (len(points), len(polygons))))
    check_shape('points_in_polygons', **shapes)
    corners = polygons.view(-1, 4, 2)
    step = max(1, numbers_at_once(points.device) // max(1, len(polygons)))
    for some, flags in zip(points.split(step), output.split(step), strict=True):
        flags.copy_(_inside(some, corners))


@torch.no_grad()
def min_area_polygons(pointsets: Tensor, polygons: Tensor) -> None:
    """Fill ``polygons`` ``(N, 8)`` with the corners of the smallest rectangle around each set of nine points.

    Of several smallest ones it is the first, by the direction of the edge that it shares with the points' hull.
    """
    (sets,) = as_computable('min_area_polygons', pointsets=pointsets)
    check_shape('min_area_polygons', pointsets=(sets.shape, (len(sets), 18)), polygons=(polygons.shape, (len(sets), 8)))
    step = max(1, numbers_at_once(sets.device) // 9**3)
    for some, corners in zip(sets.split(step), polygons.split(step), strict=True):
        corners.copy_(_smallest_rectangles(some.view(-1, 9, 2)))


def _inside(points: Tensor, corners: Tensor) -> Tensor:
    """Return which points ``(B, 2)`` are in which quadrilaterals ``(M, 4, 2)``, ``(B, M)``."""
    x, y = points[:, :1], points[:, 1:]
    odd = torch.zeros(len(points), len(corners), dtype=torch.bool, device=points.device)
    counting = ~odd
    for i in range(4):
        (x1, y1), (x2, y2) = corners[:, i].unbind(dim=1), corners[:, i - 1].unbind(dim=1)
        near = counting & (y >= torch.minimum(y1, y2)) & (y <= torch.maximum(y1, y2))
        at_corner = near & (((x1 == x) & (y1 == y)) | ((x2 == x) & (y2 == y)))
        crosses = near & ~at_corner & ((y1 < y) != (y2 < y))
        border = x1 + (y - y1) * (x2 - x1) / (y2 - y1)
        counting &= ~(at_corner | (crosses & (border == x)))
        odd ^= crosses & (border > x)
    return odd


def _smallest_rectangles(points: Tensor) -> Tensor:
    """Return the corners ``(N, 8)`` of the smallest rectangles around ``(N, 9, 2)``."""
    # One side of the smallest rectangle lies on an edge of the hull, and a line through two points that is no edge of
    # it gives no smaller one: so all pairs are tried, and only the edges are taken.
    lines = points[:, None] - points[:, :, None]  # (N, 9, 9, 2) from each point to each other
    across = torch.stack([-lines[..., 1], lines[..., 0]], dim=-1)
    # (N, 9, 9, 9): how far left of the line each third point is, times the line's length
    left = (lines[:, :, None] * across[:, :, :, None]).sum(dim=-1)
    rounding = left.abs().amax(dim=(1, 2, 3), keepdim=True) * 1e-6
    is_edge = (left >= -rounding).all(dim=-1) & (lines != 0).any(dim=-1)
    direction = torch.atan2(lines[..., 1], lines[..., 0])
    angle = direction.remainder(math.pi / 2)
    cos, sin = angle.cos().flatten(1)[..., None], angle.sin().flatten(1)[..., None]  # (N, 81, 1)
    x, y = points[:, None, :, 0], points[:, None, :, 1]
    along, aside = cos * x + sin * y, cos * y - sin * x  # (N, 81, 9)
    bounds = [along.amin(dim=2), aside.amin(dim=2), along.amax(dim=2), aside.amax(dim=2)]
    area = (bounds[2] - bounds[0]) * (bounds[3] - bounds[1])
    area = torch.where(is_edge.flatten(1), area, math.inf)
    smallest = area <= area.amin(dim=1, keepdim=True) * NEARLY_SMALLEST
    turn = direction.flatten(1).remainder(2 * math.pi)
    best = torch.where(smallest, turn, math.inf).argmin(dim=1, keepdim=True)
    low_x, low_y, high_x, high_y = (bound.gather(1, best) for bound in bounds)
    cos, sin = cos[..., 0].gather(1, best), sin[..., 0].gather(1, best)
    corners = [(high_x, low_y), (low_x, low_y), (low_x, high_y), (high_x, high_y)]
    return torch.cat([part for x, y in corners for part in (x * cos - y * sin, x * sin + y * cos)], dim=1)
