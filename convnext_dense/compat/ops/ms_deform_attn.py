"""Multi-scale deformable attention (https://arxiv.org/abs/2010.04159), forward and backward.

``value`` ``(B, K, M, D)`` holds the pixels of all feature maps one after the other, for ``M`` heads. Each query samples
them at points ``(B, Q, M, L, P, 2)`` as ``(x, y)``, a map being 0 to 1 wide, and sums the samples by their weights
``(B, Q, M, L, P)``.

A sample is a weighted sum of the four pixels around it, so an output is one of ``4 * L * P`` rows of ``D`` numbers: an
embedding bag. PyTorch's kernels sum bags without holding their rows. The gradient of the values is a sum of bags too,
one bag for each pixel, after a sort. About 100 bytes are held for each of ``PIXELS_AT_ONCE`` pixels that are read.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import UserError
from .arguments import as_computable, check_integers, check_one_device, check_shape, numbers_at_once

OP = 'ms_deform_attn'
PIXELS_AT_ONCE = 2**21


def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Return ``(B, Q, M * D)``. ``im2col_step`` matters to the compiled op only."""
    attention = _prepare(value, value_spatial_shapes, value_level_start_index, sampling_locations, attention_weights)
    output = attention.rows.new_empty(len(attention.points), value.shape[2], value.shape[3])
    for queries in attention.chunks():
        row, weight, _, _ = attention.pixels(queries)
        bags = F.embedding_bag(row, attention.rows, per_sample_weights=weight, mode='sum')
        output[queries] = bags.view_as(output[queries])
    return output.view(*sampling_locations.shape[:2], value.shape[2] * value.shape[3]).to(value.dtype)


def ms_deform_attn_backward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """Add to ``grad_value``; fill ``grad_sampling_loc`` and ``grad_attn_weight``."""
    attention = _prepare(value, value_spatial_shapes, value_level_start_index, sampling_locations, attention_weights)
    _, gradient = as_computable(OP, value=attention.rows, grad_output=grad_output)
    check_shape(OP, grad_output=(gradient.shape, (*sampling_locations.shape[:2], value.shape[2] * value.shape[3])))
    gradient = gradient.reshape(len(attention.points), *value.shape[2:])
    grad_rows = torch.zeros_like(attention.rows)
    grad_points, grad_weights = torch.empty_like(attention.points), torch.empty_like(attention.weights)
    for queries in attention.chunks():
        row, weight, y, x = attention.pixels(queries)
        grad_bags = gradient[queries].flatten(0, 1)
        grad_rows += _sum_by_row(row, weight, grad_bags, num_rows=len(grad_rows))
        # The gradient of the weight of each pixel, (q, M, 4, L * P)
        grad_pixels = _dot(attention.rows, row, grad_bags)
        grad_pixels = grad_pixels.view(len(gradient[queries]), -1, 4, attention.num_samples)
        upper_left, upper_right, lower_left, lower_right = (corner.flatten(1) for corner in grad_pixels.unbind(2))
        (upper, lower), (left, right) = y.share, x.share
        by_y = upper_left * left + upper_right * right, lower_left * left + lower_right * right
        by_x = upper_left * upper + lower_left * lower, upper_right * upper + lower_right * lower
        grad_weights[queries] = by_y[0] * upper + by_y[1] * lower
        weights = attention.weights[queries]
        grad_points[queries, :, 0] = x.slope(by_x) * weights * attention.width
        grad_points[queries, :, 1] = y.slope(by_y) * weights * attention.height
    grad_value += grad_rows.view_as(grad_value)
    grad_sampling_loc.copy_(grad_points.view_as(grad_sampling_loc))
    grad_attn_weight.copy_(grad_weights.view_as(grad_attn_weight))


class _Neighbours(NamedTuple):
    """The two rows, or columns, of pixels next to each sampling point, each ``(q, M * L * P)``."""

    place: tuple[Tensor, Tensor]
    share: tuple[Tensor, Tensor]  # 0 where it does not exist
    exists: tuple[Tensor, Tensor]  # 1 or 0

    def slope(self, gradients: tuple[Tensor, Tensor]) -> Tensor:
        """Return the gradient of the point's position, given those of the shares."""
        return gradients[1] * self.exists[1] - gradients[0] * self.exists[0]


class _Attention(NamedTuple):
    """The arguments, checked, of one type and flat: long last dimensions are several times faster than short ones."""

    rows: Tensor  # (B * K * M, D)
    points: Tensor  # (B * Q, M * L * P, 2)
    weights: Tensor  # (B * Q, M * L * P)
    height: Tensor  # (M * L * P,) of each point's map
    width: Tensor  # (M * L * P,)
    first_row: Tensor  # (M * L * P,) of each point's map, in an image's rows
    num_samples: int  # L * P
    rows_per_image: int  # K * M
    num_queries: int  # Q

    def chunks(self) -> Iterator[slice]:
        """Yield slices of the queries."""
        step = max(1, PIXELS_AT_ONCE // (4 * self.weights.shape[1]))
        for first in range(0, len(self.weights), step):
            yield slice(first, min(first + step, len(self.weights)))

    def pixels(self, queries: slice) -> tuple[Tensor, Tensor, _Neighbours, _Neighbours]:
        """Return the four pixels around each sampling point of ``q`` queries.

        These are their rows in the values and their weights ``(q * M, 4 * L * P)``, and the neighbours along y and x.
        As in mmcv, a point one pixel or more outside of its map has no pixels, and so has NaN; the weights are 0.
        """
        x, y = (self.points[queries, :, axis] * size - 0.5 for axis, size in enumerate((self.width, self.height)))
        inside = (x > -1) & (y > -1) & (x < self.width) & (y < self.height)
        x, y = (_neighbours(axis, inside, size) for axis, size in ((x, self.width), (y, self.height)))
        image = torch.arange(queries.start, queries.stop, device=self.rows.device) // self.num_queries
        first = (image * self.rows_per_image).int()[:, None] + self.first_row
        num_heads = self.weights.shape[1] // self.num_samples
        shape = (len(first), num_heads, 4, self.num_samples)
        row, weight = first.new_empty(shape), self.weights.new_empty(shape)
        for half in range(2):
            line = first + y.place[half] * (self.width * num_heads).int()
            share = y.share[half] * self.weights[queries]
            for side in range(2):
                corner = 2 * half + side
                row[:, :, corner] = (line + x.place[side] * num_heads).view(shape[0], num_heads, -1)
                weight[:, :, corner] = (share * x.share[side]).view(shape[0], num_heads, -1)
        return row.flatten(0, 1).flatten(1), weight.flatten(0, 1).flatten(1), y, x


def _neighbours(position: Tensor, inside: Tensor, size: Tensor) -> _Neighbours:
    position = torch.where(inside, position, 0)
    low = position.floor()
    exists = ((low >= 0) & inside).to(low.dtype), ((low < size - 1) & inside).to(low.dtype)
    share = position - low
    return _Neighbours(
        place=(low.clamp(min=0).int(), (low + 1).minimum(size - 1).int()),
        share=((1 - share) * exists[0], share * exists[1]),
        exists=exists,
    )


def _sum_by_row(row: Tensor, weight: Tensor, gradient: Tensor, num_rows: int) -> Tensor:
    """Return the gradient of the values ``(num_rows, D)``, given that of the bags ``(q * M, D)``."""
    sorted_rows, order = row.flatten().sort()
    starts = torch.searchsorted(sorted_rows, torch.arange(num_rows, dtype=row.dtype, device=row.device))
    bag = order.div(row.shape[1], rounding_mode='floor')
    weight = weight.flatten().index_select(0, order)
    return F.embedding_bag(bag, gradient, starts, per_sample_weights=weight, mode='sum')


def _dot(rows: Tensor, row: Tensor, gradient: Tensor) -> Tensor:
    """Return, for each entry of the bags ``row`` ``(bags, E)``, its row's product with the bag's ``(bags, D)``."""
    products = gradient.new_empty(row.shape)
    step = max(1, numbers_at_once(rows.device) // (row.shape[1] * rows.shape[1]))
    for part, some, bags in zip(products.split(step), row.split(step), gradient.split(step), strict=True):
        part.copy_(F.embedding(some, rows).mul_(bags[:, None]).sum(-1))
    return products


def _prepare(value: Tensor, sizes: Tensor, first_pixel: Tensor, points: Tensor, weights: Tensor) -> _Attention:
    check_one_device(OP, value=value, value_spatial_shapes=sizes, value_level_start_index=first_pixel)
    value, points, weights = as_computable(OP, value=value, sampling_locations=points, attention_weights=weights)
    check_integers(OP, value_spatial_shapes=sizes, value_level_start_index=first_pixel)
    if value.ndim != 4 or points.ndim != 6 or sizes.ndim != 2 or 0 in (*points.shape[2:], *value.shape[1:]):
        raise UserError(
            f'{OP} needs values (B, K, M, D), sizes (L, 2) and sampling points (B, Q, M, L, P, 2), none of K to P 0, '
            f'and got {tuple(value.shape)}, {tuple(sizes.shape)} and {tuple(points.shape)}.'
        )
    batch, num_pixels, num_heads, _ = value.shape
    num_queries, num_levels, num_points = points.shape[1], len(sizes), points.shape[4]
    check_shape(
        OP,
        value_spatial_shapes=(sizes.shape, (num_levels, 2)),
        value_level_start_index=(first_pixel.shape, (num_levels,)),
        sampling_locations=(points.shape, (batch, num_queries, num_heads, num_levels, num_points, 2)),
        attention_weights=(weights.shape, (batch, num_queries, num_heads, num_levels, num_points)),
    )
    # On an accelerator the check would have to wait.
    if sizes.is_cpu and ((sizes < 1) | ((first_pixel < 0) | (first_pixel + sizes.prod(1) > num_pixels))[:, None]).any():
        raise UserError(
            f'{OP}: feature maps of sizes {sizes.tolist()} that start at {first_pixel.tolist()} do not lie within the '
            f'{num_pixels} pixels of value.'
        )
    num_samples = num_levels * num_points
    levels = torch.cat([sizes, first_pixel[:, None]], dim=1).repeat_interleave(num_points, dim=0)
    height, width, first_pixel = levels.repeat(num_heads, 1).unbind(dim=1)  # of each sample
    head = torch.arange(num_heads, device=value.device).repeat_interleave(num_samples)
    return _Attention(
        rows=value.reshape(-1, value.shape[3]),
        points=points.reshape(-1, num_heads * num_samples, 2),
        weights=weights.reshape(-1, num_heads * num_samples),
        height=height.to(value.dtype),
        width=width.to(value.dtype),
        first_row=(first_pixel * num_heads + head).int(),
        num_samples=num_samples,
        rows_per_image=num_pixels * num_heads,
        num_queries=num_queries,
    )
