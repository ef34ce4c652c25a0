"""The cells of RoIs and where each is sampled, for the ops that average or take the maximum of a RoI's samples.

A RoI is split into ``PH x PW`` cells, each with a grid of samples in the middles of its parts. How many samples a cell
has may differ from RoI to RoI, so they stand in one list: by RoI, by cell, then by row and column in the cell.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from .arguments import check_maps, check_shape
from .bilinear import corners

CORNERS = 'image index, x1, y1, x2, y2'
ENDLESS = 2**40  # samples along a side, more than any device holds
MOST_SAMPLES = 2**22  # of one RoI; a RoI of 2048 x 2048 feature pixels has as many
FARTHEST = 1e30  # a RoI's numbers beyond would overflow on the way
LARGEST_SCALE = 1e6


class Samples(NamedTuple):
    """The ``M`` samples of some RoIs with ``B`` cells together, in one list."""

    cell: Tensor  # (M,) which cell: roi * PH * PW + row * PW + column
    roi: Tensor  # (M,)
    starts: Tensor  # (B,) first sample of each cell
    counts: Tensor  # (B,) samples of each cell
    row: Tensor  # (M,) of the sample in its cell
    column: Tensor  # (M,)
    rows: Tensor  # (M,) how many its cell has
    columns: Tensor  # (M,)

    def locate(self, top: Tensor, left: Tensor, cell_height: Tensor, cell_width: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``y`` and ``x`` of the samples ``(M,)``; differentiable.

        Args:
            top: Upper edges of the cells, broadcast to ``(K, PH, PW)``.
            left: Left edges.
            cell_height: Of the RoIs ``(K,)``.
            cell_width: ``(K,)``.
        """
        top, left = torch.broadcast_tensors(top, left)
        y = top.flatten().index_select(0, self.cell) + (self.row + 0.5) * cell_height[self.roi] / self.rows
        x = left.flatten().index_select(0, self.cell) + (self.column + 0.5) * cell_width[self.roi] / self.columns
        return y, x

    def entries(self, y: Tensor, x: Tensor, image: Tensor, size: torch.Size) -> tuple[Tensor, Tensor]:
        """Return four rows of ``pixel_rows`` for each sample and their weights, ``(M, 4)`` each; differentiable.

        Args:
            y: Of the samples ``(M,)``.
            x: ``(M,)``.
            image: Index of the RoIs' images ``(K,)``.
            size: Height and width of the feature map.
        """
        places, weights = (torch.stack(four, dim=1) for four in corners(y, x, *size))
        return places + (image[self.roi] * (size[0] * size[1]))[:, None], weights

    def mean_entries(self, y: Tensor, x: Tensor, image: Tensor, size: torch.Size) -> tuple[Tensor, Tensor]:
        """Return the same with the weights in the mean of a cell, ``(4 * M,)`` each: bags are cells."""
        places, weights = self.entries(y, x, image, size)
        return places.flatten(), (weights / self.counts[self.cell, None]).flatten()


def count_samples(extent: Tensor, num_cells: int, sampling_ratio: int) -> Tensor:
    """Return how many samples a cell has along one side: the ratio, or where that is 0 about one per feature pixel.

    Args:
        extent: Height or width of the RoIs ``(K,)``, in feature pixels.
        num_cells: Along this side.
        sampling_ratio: Samples per cell and side, or 0.
    """
    if sampling_ratio > 0:
        return torch.full_like(extent, min(sampling_ratio, ENDLESS), dtype=torch.long)
    return (extent / num_cells).ceil().clamp(0, ENDLESS).long()


def list_samples(count_y: Tensor, count_x: Tensor, cells: tuple[int, int]) -> Samples:
    """Return the samples of all cells of RoIs with ``count_y`` x ``count_x`` samples a cell, ``(K,)`` each."""
    per_roi = cells[0] * cells[1]
    count_y, count_x = count_y.repeat_interleave(per_roi), count_x.repeat_interleave(per_roi)
    counts = count_y * count_x
    starts = counts.cumsum(0) - counts
    cell = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    number = torch.arange(len(cell), device=counts.device) - starts[cell]
    columns = count_x[cell]
    row = number // columns
    return Samples(cell, cell // per_roi, starts, counts, row, number - row * columns, count_y[cell], columns)


def split_rois(op: str, count_y: Tensor, count_x: Tensor, cells: tuple[int, int], limit: int) -> list[slice]:
    """Return which RoIs to take at a time, so that they have about ``limit`` samples together.

    Raises:
        UserError: One has so many that its samples would fill the memory.
    """
    check_samples(op, count_y, count_x, cells, MOST_SAMPLES)
    counts = count_y * count_x * (cells[0] * cells[1])
    sizes = (counts.cumsum(0) // limit).unique_consecutive(return_counts=True)[1]
    ends = sizes.cumsum(0).tolist()
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def check_samples(op: str, count_y: Tensor, count_x: Tensor, cells: tuple[int, int], most: int) -> None:
    """Refuse RoIs with more than ``most`` samples, given those along the sides of a cell ``(K,)``."""
    counts = count_y.float() * count_x.float() * (cells[0] * cells[1])  # integers would overflow
    if (counts > most).any():
        raise UserError(
            f'{op}: RoI {int(counts.argmax())} would need {int(counts.max())} samples, more than {most}. It is far '
            'larger than any image: look for diverged boxes, clip them to the image, or change sampling_ratio.'
        )


def cell_edges(extent: Tensor, num_cells: int) -> Tensor:
    """Return where each cell of each RoI begins along one side, ``(K, num_cells)``, counted from the RoI's own edge."""
    return torch.arange(num_cells, device=extent.device) * (extent / num_cells)[:, None]


def check_pooling(
    op: str,
    maps: Tensor,
    rois: Tensor,
    cells: tuple[int, int],
    spatial_scale: float,
    form: str = CORNERS,
    **pooled: Tensor,
) -> float:
    """Refuse shapes and a scale that do not fit. It looks at no RoI and waits for no device.

    Args:
        op: Whom an error names.
        maps: The features or their gradient ``(N, C, H, W)``.
        rois: ``(K, 5)`` or ``(K, 6)``.
        cells: ``PH`` and ``PW``, per RoI.
        spatial_scale: From image pixels to feature pixels.
        form: Names of the RoIs' columns.
        **pooled: What has the shape of the output, ``(K, C, PH, PW)``.

    Returns:
        The scale as mmcv takes it, a C float.

    Raises:
        UserError: It says what came and what is allowed.
    """
    columns = form.count(',') + 1
    if rois.ndim != 2 or rois.shape[1] != columns:
        raise UserError(f'{op} needs RoIs (K, {columns}) as ({form}) and got {tuple(rois.shape)}.')
    check_maps(op, input=maps)
    expected = (len(rois), maps.shape[1], *cells)
    check_shape(op, **{name: (tensor.shape, expected) for name, tensor in pooled.items()})
    if not 0 < spatial_scale < LARGEST_SCALE:
        raise UserError(f'{op}: spatial_scale is {spatial_scale}. Allowed are positive numbers: 1 / stride of the map.')
    return float(np.float32(spatial_scale))


def check_rois(op: str, rois: Tensor, num_images: int, form: str = CORNERS, **rules: Tensor) -> None:
    """Refuse RoIs that compiled ops refuse, and those with which they read or write foreign memory.

    Args:
        op: Whom the error names.
        rois: ``(K, 5)`` or ``(K, 6)``; the first column is the index of the image.
        num_images: How many there are.
        form: Names of the columns.
        **rules: What else is asked of a RoI, and which keep it ``(K,)``.

    Raises:
        UserError: It says how many are bad, shows one and names what is allowed.
    """
    bad = ~(rois.abs() < FARTHEST).all(dim=1) | (rois[:, 0] < 0) | (rois[:, 0] >= num_images)
    for kept in rules.values():
        bad |= ~kept
    if bad.any():
        allowed = ', '.join([f'numbers up to {FARTHEST:g}', *rules])
        raise UserError(
            f'{op} got {int(bad.sum())} of {len(rois)} RoIs ({form}) that it cannot pool, '
            f'for example {rois[bad][0].tolist()}. Allowed are {allowed} and an image index '
            f'below {num_images}. NaN or inf usually means that training has diverged: look at the loss of the steps '
            'before, lower the learning rate or clip gradients.'
        )
