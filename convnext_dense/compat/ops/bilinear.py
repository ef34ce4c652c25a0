"""Bilinear samples of feature maps: weighted sums of pixels, runs of samples, and the way back to the pixels.

In: points ``(M,)`` in feature pixels, where 0 is the centre of the first one. A point up to one pixel outside takes the
border's value, further out it is 0. Out: ``(B, C)``, one row for each bag of points.

All work is done by PyTorch's ``embedding_bag``: pixels are its table, and a bag is the sum of a few weighted rows, or
their maximum. So the samples themselves need no memory, and no order of additions is left to chance.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

MAXIMUM = 2  # embedding_bag's number of this mode


def pixel_rows(features: Tensor) -> Tensor:
    """Return ``(N, C, H, W)`` as ``(N * H * W, C)``: a pixel's channels lie together, so one index fetches them all."""
    return features.permute(0, 2, 3, 1).flatten(0, 2)


def add_pixel_rows(total: Tensor, rows: Tensor) -> None:
    """Add ``(N * H * W, C)`` to ``total`` ``(N, C, H, W)``."""
    num_images, channels, height, width = total.shape
    total += rows.view(num_images, height, width, channels).permute(0, 3, 1, 2)


def corners(y: Tensor, x: Tensor, height: int, width: int) -> tuple[list[Tensor], list[Tensor]]:
    """Return the four pixels around each point as ``row * width + column``, and their weights; differentiable.

    Args:
        y: Any shape, in feature pixels.
        x: Of the same shape.
        height: Of the feature map.
        width: Of the feature map.

    >>> places, weights = corners(torch.tensor([0.5]), torch.tensor([2.0]), height=4, width=3)
    >>> torch.cat(places).tolist(), torch.cat(weights).tolist()
    ([2, 2, 5, 5], [0.5, 0.0, 0.5, 0.0])
    """
    inside = (y >= -1) & (y <= height) & (x >= -1) & (x <= width)  # NaN is not
    y, x = (torch.where(inside, axis, 0).clamp(min=0) for axis in (y, x))
    top, left = y.detach().long().clamp(max=height - 1), x.detach().long().clamp(max=width - 1)
    below, right = (top < height - 1), (left < width - 1)
    # On the last row and column both neighbours are the same pixel, and all the weight goes to the first.
    lower, righter = torch.where(below, y - top, 0), torch.where(right, x - left, 0)
    upper, lefter = (1 - lower) * inside, 1 - righter
    lower = lower * inside
    first = top * width + left
    second = first + below * width
    places = [first, first + right, second, second + right]
    return places, [upper * lefter, upper * righter, lower * lefter, lower * righter]


def weighted_sums(rows: Tensor, places: Tensor, weights: Tensor, starts: Tensor) -> Tensor:
    """Return ``(B, C)``: for each bag the sum of its rows times their weights.

    Args:
        rows: ``(R, C)``.
        places: Which row, ``(E,)``, bag after bag.
        weights: ``(E,)``.
        starts: Where each bag begins in ``places``, ``(B,)``; an empty bag begins where the next one does.
    """
    if len(starts) == 0 or len(places) == 0:
        return rows.new_zeros(len(starts), rows.shape[1])
    return F.embedding_bag(places, rows, starts, mode='sum', per_sample_weights=weights)


def add_to_rows(total: Tensor, places: Tensor, weights: Tensor, bags: Tensor, gradient: Tensor) -> None:
    """Add to ``total`` ``(R, C)`` the gradient of ``weighted_sums``, given that of the bags ``(B, C)``.

    Args:
        total: Changed in place.
        places: As in ``weighted_sums``, ``(E,)``.
        weights: ``(E,)``.
        bags: Which bag each belongs to, ``(E,)``.
        gradient: ``(B, C)``.
    """
    if len(places) == 0:
        return
    places, order = places.sort()
    pixels, counts = places.unique_consecutive(return_counts=True)
    total[pixels] += weighted_sums(gradient, bags[order], weights[order], counts.cumsum(0) - counts)


def largest_of_runs(values: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """Return for each run of rows its largest values ``(B, C)``, and the rows that hold them; the first of equals wins.

    A NaN counts only where it is the run's first value. An empty run gives 0 and any row.

    Args:
        values: ``(M, C)``, run after run; at least one row.
        starts: Where each run begins, ``(B,)``.
    """
    rows = torch.arange(len(values), device=values.device)
    largest, _, _, winners = torch.embedding_bag(values, rows, starts, False, MAXIMUM)
    return largest, winners


def add_to_planes(total: Tensor, planes: Tensor, y: Tensor, x: Tensor, gradient: Tensor) -> None:
    """Add to ``total`` ``(P, H, W)``, contiguous, the gradient of single samples of single planes.

    Args:
        total: Changed in place.
        planes: Which plane each sample is from; its shape broadcasts to that of ``gradient``.
        y: Of the samples, shaped like ``gradient``.
        x: As ``y``.
        gradient: Of the samples.
    """
    _, height, width = total.shape
    first = planes * (height * width)
    for places, weights in zip(*corners(y, x, height, width), strict=True):
        # In one dimension this is deterministic on CUDA too, where that is asked for.
        total.view(-1).scatter_add_(0, (first + places).flatten(), (weights * gradient).flatten())
