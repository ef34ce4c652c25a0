"""BorderAlign (https://arxiv.org/abs/2007.11056), forward and backward: the largest sample on each side of a box.

In: feature maps ``(N, 4 * C, H, W)``, whose quarters are for the top, left, bottom and right sides, and boxes
``(N, Q, 4)`` as ``(x1, y1, x2, y2)`` in feature pixels. Out: ``(N, C, Q, 4)``, written into ``output``; its gradient is
added to ``grad_input``. A side has ``pool_size + 1`` samples, its ends included.
"""

import torch
from torch import Tensor

from ..errors import UserError
from .arguments import as_computable, check_maps, check_shape, numbers_at_once
from .bilinear import add_to_planes, corners, largest_of_runs, weighted_sums

SIDES = 4


def border_align_forward(input: Tensor, boxes: Tensor, output: Tensor, argmax_idx: Tensor, pool_size: int) -> None:
    """Fill ``output`` ``(N, C, Q, 4)`` and ``argmax_idx``.

    Args:
        input: Feature maps ``(N, 4 * C, H, W)``.
        boxes: ``(N, Q, 4)``.
        output: Filled in place.
        argmax_idx: Filled with the number of the sample that won, counted from the top left corner for the top and the
            left side, else from the bottom right one.
        pool_size: Parts of a side.
    """
    features, boxes = as_computable('border_align', input=input, boxes=boxes)
    _check(features, boxes, pool_size, output=output, argmax_idx=argmax_idx)
    num_images, channels, height, width = features.shape
    num_boxes, channels = boxes.shape[1], channels // SIDES
    # (N, 4 * C, H, W) -> (N * H * W * 4, C): one index fetches a pixel's channels for one side
    pixels = features.unflatten(1, (SIDES, channels)).permute(0, 3, 4, 1, 2).flatten(0, 3)
    start, step = _side_lines(boxes.flatten(0, 1))
    largest = pixels.new_empty(len(start), SIDES, channels)
    winners = argmax_idx.new_empty(largest.shape)
    image = torch.arange(num_images, device=boxes.device).repeat_interleave(num_boxes)
    side = torch.arange(SIDES, device=boxes.device)[:, None]
    at_once = max(1, numbers_at_once(boxes.device) // max(1, SIDES * (pool_size + 1) * channels))
    for first in range(0, len(start) if channels else 0, at_once):
        some = slice(first, first + at_once)
        points = [start[some]]
        for _ in range(pool_size):
            points.append(points[-1] + step[some] / pool_size)  # added up, as in mmcv
        y, x = torch.stack(points, dim=-1).unbind(dim=1)  # (k, 4, pool_size + 1)
        places, weights = (torch.stack(four, dim=-1) for four in corners(y, x, height, width))
        places = (places + (image[some] * (height * width))[:, None, None, None]) * SIDES + side[..., None]
        entries = 4 * torch.arange(y.numel(), device=y.device)
        values = weighted_sums(pixels, places.flatten(), weights.flatten(), entries)
        runs = torch.arange(0, len(values), pool_size + 1, device=y.device)
        best, winner = largest_of_runs(values, runs)
        largest[some] = best.view(-1, SIDES, channels)
        winners[some] = (winner - runs[:, None]).view(-1, SIDES, channels).to(winners.dtype)
    for buffer, rows in ((output, largest), (argmax_idx, winners)):
        buffer.copy_(rows.view(num_images, num_boxes, SIDES, channels).permute(0, 3, 1, 2))


def border_align_backward(
    grad_output: Tensor, boxes: Tensor, argmax_idx: Tensor, grad_input: Tensor, pool_size: int
) -> None:
    """Add the gradient of the feature maps to ``grad_input`` ``(N, 4 * C, H, W)``; arguments as in the forward op."""
    gradient, boxes = as_computable('border_align', grad_output=grad_output, boxes=boxes)
    _check(grad_input, boxes, pool_size, grad_output=gradient, argmax_idx=argmax_idx)
    total = torch.zeros_like(grad_input, dtype=gradient.dtype, memory_format=torch.contiguous_format)
    num_images, channels, num_boxes, _ = gradient.shape
    side = torch.arange(SIDES, device=boxes.device)
    planes = side * channels + torch.arange(channels, device=boxes.device)[:, None, None]  # (C, 1, 4)
    at_once = max(1, numbers_at_once(boxes.device) // max(1, channels * SIDES))
    for image in range(num_images):
        start, step = _side_lines(boxes[image])
        for first in range(0, num_boxes, at_once):
            some = slice(first, first + at_once)
            number = argmax_idx[image, :, some].to(gradient.dtype)  # (C, q, 4)
            y, x = (start[some] + step[some] / pool_size * number[:, :, None]).unbind(dim=2)
            add_to_planes(total[image], planes, y, x, gradient[image, :, some])
    grad_input += total


def _check(maps: Tensor, boxes: Tensor, pool_size: int, **pooled: Tensor) -> None:
    """Refuse shapes and a number of parts that do not fit; ``pooled`` is what has the shape of the output."""
    check_maps('border_align', input=maps)
    images, channels = maps.shape[:2]
    check_shape('border_align', boxes=(boxes.shape, (images, *boxes.shape[1:2], 4)))
    expected = (images, channels // SIDES, boxes.shape[1], SIDES)
    check_shape('border_align', **{name: (tensor.shape, expected) for name, tensor in pooled.items()})
    if channels % SIDES or pool_size < 1:
        raise UserError(
            f'border_align got {channels} channels and pool_size={pool_size}. Allowed are multiples of {SIDES} '
            'channels and a pool_size of 1 or more.'
        )


def _side_lines(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Return where the sides of the boxes ``(B, 4)`` start and how far they go, ``(B, 2, 4)`` as ``y`` and ``x``."""
    x1, y1, x2, y2 = boxes.unbind(dim=1)
    width, height, zero = x2 - x1, y2 - y1, torch.zeros_like(x1)
    start = torch.stack([y1, y1, y2, y2, x1, x1, x2, x2], dim=1)
    step = torch.stack([zero, height, zero, -height, width, zero, -width, zero], dim=1)
    return start.view(-1, 2, SIDES), step.view(-1, 2, SIDES)
