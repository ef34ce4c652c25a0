"""The samples of RoIAlign's average as a sparse matrix: the pixels that a cell takes part from, and their weights.

On the CPU, torchvision's kernels take channel after channel of maps (N, C, H, W), in one thread. Here a cell is a
weighted sum of the pixels (C,) of a map (N, H, W, C), which ``embedding_bag`` adds up in all threads. With C = 256 that
is many times as fast, and its transpose, the gradient, still more.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

MOST_TAPS = 2**22  # that are held at once, 100 MB
FEW_CHANNELS = 8  # for which torchvision's kernel is faster, as for masks


class RoIs(NamedTuple):
    """RoIs of one map, and how they are sampled."""

    corners: Tensor  # (K, 5) as (image index, x1, y1, x2, y2) in image pixels
    counts: Tensor  # (2, K), the samples of a cell along y and along x, as rois.count_samples gives them
    cells: tuple[int, int]  # PH and PW
    scale: float  # from image pixels to those of the map
    adaptive: bool  # neighbouring samples are at most a pixel apart
    aligned: bool  # a coordinate means the pixel's centre

    def __getitem__(self, some: Tensor) -> 'RoIs':
        return self._replace(corners=self.corners[some], counts=self.counts[:, some])

    def taps(self) -> Tensor:
        """Return (2, K): how many pixels a cell may touch along y and along x."""
        return self.counts + (self.counts > 0) if self.adaptive else 2 * self.counts


class Samples(NamedTuple):
    """A sparse matrix with a row for each cell of each RoI and a column for each pixel of the map."""

    pixels: Tensor  # the column of each entry, row after row
    weights: Tensor  # its value
    starts: Tensor  # where each row starts; the last number is that of all entries

    def times(self, values: Tensor) -> Tensor:
        """Return the product with (pixels, C)."""
        return F.embedding_bag(
            self.pixels, values, self.starts, per_sample_weights=self.weights, mode='sum', include_last_offset=True
        )

    def transposed(self, num_pixels: int) -> 'Samples':
        """Return the transpose of the matrix with so many columns."""
        rows = torch.repeat_interleave(self.starts.diff())
        pixels, order = self.pixels.sort(stable=True)
        starts = torch.searchsorted(pixels, torch.arange(num_pixels + 1))
        return Samples(rows[order], self.weights[order], starts)

    def add_gradient(self, gradient: Tensor, total: Tensor) -> None:
        """Add to the gradient of the maps, ``total`` (N, H, W, C), given that of the cells, (..., C)."""
        transposed = self.transposed(total.shape[:3].numel())
        total += transposed.times(gradient.reshape(-1, total.shape[-1])).view(total.shape)


def pays(rois: RoIs, channels: int) -> bool:
    """Tell whether this way is faster than torchvision's, and fits the memory."""
    largest = int(rois.counts.prod(dim=0).max()) if len(rois.corners) else 0
    return channels > FEW_CHANNELS and largest * rois.cells[0] * rois.cells[1] <= MOST_TAPS


def pool(rois: RoIs, maps: Tensor, output: Tensor) -> None:
    """Fill ``output`` (K, PH, PW, C) from maps (N, H, W, C)."""
    values = maps.reshape(-1, maps.shape[-1])
    for some, samples in sampled(rois, maps.shape):
        output[some] = samples.times(values).view(-1, *output.shape[1:]).to(output.dtype)


def add_gradient(rois: RoIs, gradient: Tensor, total: Tensor) -> None:
    """Add to the gradient of the maps, ``total`` (N, H, W, C), given that of the output (K, PH, PW, C)."""
    for some, samples in sampled(rois, total.shape):
        samples.add_gradient(gradient[some], total)


def sampled(rois: RoIs, shape: torch.Size) -> Iterator[tuple[Tensor, Samples]]:
    """Yield indices of RoIs and their samples of maps of the shape (N, H, W, C); the largest RoIs come first."""
    totals = rois.taps().prod(dim=0) * (rois.cells[0] * rois.cells[1])
    order = totals.argsort(descending=True)
    while len(order):
        some, order = order.tensor_split([max(1, MOST_TAPS // max(1, int(totals[order[0]])))])
        yield some, sample(rois[some], shape)


def sample(rois: RoIs, shape: torch.Size) -> Samples:
    """Return the samples of RoIs of maps of the shape (N, H, W, C)."""
    (height, width), (rows, columns) = shape[1:3], rois.cells
    taps_y, taps_x = rois.taps()
    y, weight_y = along(rois, 0, height)
    x, weight_x = along(rois, 1, width)
    y += rois.corners[:, 0].long()[:, None, None] * height  # the image's first row, where the images are one column

    num_cells = rows * columns
    lengths = (taps_y * taps_x).repeat_interleave(num_cells)  # of the matrix's rows: RoI, row of cells, column of cells
    starts = F.pad(lengths.cumsum(0), (1, 0))
    cell = torch.repeat_interleave(lengths)
    place = torch.arange(len(cell)) - starts[cell]
    num_x = taps_x.repeat_interleave(num_cells)[cell]
    tap_y = place.div(num_x, rounding_mode='floor')
    tap_x = place - tap_y * num_x
    roi_and_row = cell.div(columns, rounding_mode='floor')
    column = cell - roi_and_row * columns
    roi = roi_and_row.div(rows, rounding_mode='floor')
    tap_y += roi_and_row * y.shape[2]
    tap_x += (roi * columns + column) * x.shape[2]
    pixels = y.flatten()[tap_y] * width + x.flatten()[tap_x]
    return Samples(pixels, weight_y.flatten()[tap_y] * weight_x.flatten()[tap_x], starts)


def along(rois: RoIs, axis: int, size: int) -> tuple[Tensor, Tensor]:
    """Return the pixels that the cells touch along y (axis 0) or x (1), and their weights: (K, cells, taps) each.

    A sample between two pixels takes part of both, by their distance. One more than a pixel outside of the map is 0.
    """
    counts, cells = rois.counts[axis][:, None, None], rois.cells[axis]
    low, high = (rois.corners[:, place - axis] * rois.scale - (0.5 if rois.aligned else 0) for place in (2, 4))
    extent = high - low if rois.aligned else (high - low).clamp(min=1)
    cell_size = (extent / cells)[:, None, None]
    cell = torch.arange(cells)[:, None]
    number = torch.arange(max(1, int(counts.max())))
    # The order of operations is mmcv's, so that samples are rounded to the same places.
    position = low[:, None, None] + cell * cell_size + (number + 0.5) * cell_size / counts.clamp(min=1)
    counted = (number < counts) & (position >= -1) & (position <= size)
    position = position.clamp(0, size - 1)
    lower = position.long()
    part = position - lower
    share = counted / counts.clamp(min=1)
    weights = torch.stack([(1 - part) * share, part * share], dim=-1).flatten(2)
    pixels = torch.stack([lower, (lower + 1).clamp(max=size - 1)], dim=-1).flatten(2)
    if not rois.adaptive:
        return pixels, weights
    # Neighbouring samples share pixels: from the first one on, each pixel once.
    first = lower[..., :1]
    span = torch.arange(len(number) + 1)
    places = (pixels - first).minimum(counts)  # rounding may have moved a sample to the next pixel
    merged = weights.new_zeros(*lower.shape[:2], len(span)).scatter_add_(2, places, weights)
    return (first + span).clamp(max=size - 1), merged
