"""Large images in tiles: each tile is predicted by itself, and what the tiles find is made one.

Two tiles overlap, so that both see the same part of an object on their border. Detections of two tiles are one object
where they agree in the region that both tiles see. Segmentors' probabilities are blended.
"""

import importlib.util
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from itertools import chain, groupby
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from PIL import ExifTags
from PIL.TiffImagePlugin import TiffImageFile

from convnext_dense.compat.errors import UserError
from convnext_dense.data.pictures import TIFF, UNREADABLE, as_input, silent, unreadable
from convnext_dense.results import LABEL_MAPS, Objects, Result

if TYPE_CHECKING:
    from convnext_dense.predict.predictor import Predictor

SAME = 0.5  # intersection over union, in the region that two tiles see, from which on two detections are one object
TWICE = 0.6  # intersection over union from which on two objects of a class are one; at 0.5, drawn mosaics lose some
INSIDE = 0.8  # the part of a cut box that another one covers there, from which on they are one object
NEAR = 0.02  # of a tile's side: a box that ends so near to the tile's border may go on beyond it
CACHE_BYTES = 2**26  # of blocks of a TIFF file that are kept
MOST_BYTES = 2**30  # of blended probabilities in memory; more are kept in a temporary file


class Tile(NamedTuple):
    """A part of an image, in its pixels."""

    left: int
    top: int
    right: int
    bottom: int


class Piece(NamedTuple):
    """What a tile found."""

    tile: Tile
    box: np.ndarray  # (4,), x1, y1, x2, y2 in pixels of the image
    score: float
    label: int
    rle: dict | None  # the mask in the tile, as run lengths; None for a detector of boxes alone
    is_cut: np.ndarray  # (4,), for each side whether the tile ends there and the image goes on


def cut(height: int, width: int, side: int, overlap: float) -> list[Tile]:
    """Return the tiles of an image, row by row, evenly spaced; one for an image that fits.

    >>> [tile[::2] for tile in cut(10, 25, side=10, overlap=0.2)]
    [(0, 10), (8, 18), (15, 25)]
    """
    check_tiles(side, overlap)
    rows, columns = (starts(length, side, overlap) for length in (height, width))
    return [Tile(left, top, min(left + side, width), min(top + side, height)) for top in rows for left in columns]


def check_tiles(side: int, overlap: float) -> None:
    """Raise a :class:`UserError` where there are no such tiles."""
    if side < 1 or not 0 <= overlap < 1:
        raise UserError(f'A tile has 1 pixel or more, and an overlap from 0 to below 1; got {side} and {overlap}.')


def starts(length: int, side: int, overlap: float) -> list[int]:
    """Return where the tiles begin along an axis."""
    if length <= side:
        return [0]
    count = int(np.ceil((length - overlap * side) / (side - overlap * side)))
    return [round(start) for start in np.linspace(0, length - side, count)]


def predict_tiled(model: 'Predictor', image: np.ndarray, side: int, overlap: float) -> Result:
    """Predict an image (H, W, channels), or what has a ``shape`` and returns windows as an array does, in tiles.

    An image that fits into one is predicted as without. ``side`` is that of a tile in pixels, ``overlap`` the part of
    it that its neighbour covers too.
    """
    tiles = cut(*image.shape[:2], side, overlap)
    windows = (np.ascontiguousarray(image[tile.top : tile.bottom, tile.left : tile.right]) for tile in tiles)
    samples = (model.run([pixels])[0] for pixels in windows)
    first = next(samples)
    if len(tiles) == 1:
        return model.result_of(first)
    model.check_tiling()
    samples = chain([first], samples)
    if model.kind == LABEL_MAPS:
        return model.label_map(blend(tiles, map(model.scores, samples), image.shape[:2]))
    found = [model.result_of(sample) for sample in samples]
    return join(tiles, found)


def join(tiles: Sequence[Tile], found: Sequence[Objects]) -> Objects:
    """Return the objects of an image from those of its tiles, best first."""
    from torchvision.ops import batched_nms  # slow to import

    size = max(tile.bottom for tile in tiles), max(tile.right for tile in tiles)
    pieces = [take_apart(objects, tile, size) for tile, objects in zip(tiles, found, strict=True)]
    group_of = {id(piece): [piece] for of_tile in pieces for piece in of_tile}
    for _, one, other in sorted(agreements(pieces), key=lambda pair: -pair[0]):
        group, joined = group_of[id(one)], group_of[id(other)]
        if {piece.tile for piece in group}.isdisjoint(piece.tile for piece in joined):
            group += joined
            group_of.update({id(piece): group for piece in joined})
    groups = {id(group): group for group in group_of.values()}.values()
    groups = sorted(groups, key=lambda group: -max(piece.score for piece in group))
    boxes = np.array([fuse_boxes(group) for group in groups], np.float32).reshape(-1, 4)
    scores = np.array([max(piece.score for piece in group) for group in groups], np.float32)
    labels = np.array([group[0].label for group in groups], np.int64)
    rles = None if found[0].rles is None else [fuse_masks(group, size) for group in groups]
    objects = Objects(boxes, scores, labels, size, found[0].classes, rles)
    # what a tile found besides of an object that another tile has whole
    kept = batched_nms(torch.from_numpy(boxes), torch.from_numpy(scores), torch.from_numpy(labels), TWICE)
    return objects.take(kept.numpy())


def take_apart(objects: Objects, tile: Tile, size: tuple[int, int]) -> list[Piece]:
    """Return the objects of a tile one by one, in pixels of the image."""
    height, width = size
    near = NEAR * max(tile.right - tile.left, tile.bottom - tile.top)
    goes_on = np.array([tile.left > 0, tile.top > 0, tile.right < width, tile.bottom < height])
    pieces = []
    for i, box in enumerate(objects.boxes + np.float32([tile.left, tile.top] * 2)):
        is_cut = goes_on & (np.abs(box - np.array(tile)) < near)
        rle = None if objects.rles is None else objects.rles[i]
        pieces.append(Piece(tile, box, float(objects.scores[i]), int(objects.labels[i]), rle, is_cut))
    return pieces


def agreements(pieces: Sequence[Sequence[Piece]]) -> Iterator[tuple[float, Piece, Piece]]:
    """Yield the pairs of pieces from two tiles that are one object, with how well they agree."""
    pieces = [of_tile for of_tile in pieces if of_tile]
    tiles = np.array([of_tile[0].tile for of_tile in pieces]).reshape(-1, 4)
    for place, ours in enumerate(pieces):
        others = tiles[place + 1 :]
        meets = ((others[:, :2] < tiles[place, 2:]) & (others[:, 2:] > tiles[place, :2])).all(1)
        for other in np.flatnonzero(meets):
            theirs = pieces[place + 1 + other]
            agreement = agree(ours, theirs)
            for i, j in zip(*np.nonzero(agreement), strict=True):
                yield agreement[i, j], ours[i], theirs[j]


def agree(ours: Sequence[Piece], theirs: Sequence[Piece]) -> np.ndarray:
    """Return how well the pieces of two tiles agree, (ours, theirs); 0 where they are not one object."""
    one, other = ours[0].tile, theirs[0].tile
    low, high = np.maximum(one[:2], other[:2]), np.minimum(one[2:], other[2:])  # of the region that both tiles see
    boxes = [np.array([piece.box for piece in pieces]).reshape(-1, 2, 2).clip(low, high) for pieces in (ours, theirs)]
    areas = [(box[:, 1] - box[:, 0]).prod(-1) for box in boxes]
    a, b = boxes[0][:, None], boxes[1][None]
    common = (np.minimum(a[..., 1, :], b[..., 1, :]) - np.maximum(a[..., 0, :], b[..., 0, :])).clip(0).prod(-1)
    columns = np.maximum(areas[0], 1e-9)[:, None], np.maximum(areas[1], 1e-9)
    overlap = common / (columns[0] + columns[1] - common)
    cuts = [np.array([piece.is_cut.any() for piece in pieces]) for pieces in (ours, theirs)]
    inside = np.maximum(cuts[0][:, None] * common / columns[0], cuts[1] * common / columns[1])
    labels = [np.array([piece.label for piece in pieces]) for pieces in (ours, theirs)]
    is_same = (labels[0][:, None] == labels[1]) & ((overlap >= SAME) | (inside >= INSIDE))
    return np.where(is_same, overlap, 0)


def fuse_boxes(group: Sequence[Piece]) -> np.ndarray:
    """Return the box of an object: each side is the mean, by score, of the pieces that are not cut there."""
    boxes = np.array([piece.box for piece in group])
    weights = np.array([piece.score * ~piece.is_cut for piece in group]) + 1e-12
    outermost = np.concatenate([boxes[:, :2].min(0), boxes[:, 2:].max(0)])
    all_cut = np.all([piece.is_cut for piece in group], axis=0)
    return np.where(all_cut, outermost, (boxes * weights).sum(0) / weights.sum(0))


def fuse_masks(group: Sequence[Piece], size: tuple[int, int]) -> dict:
    """Return the mask of an object as run lengths: each pixel is decided, by score, by the tiles that see it."""
    from pycocotools import mask

    if len(group) == 1 and (group[0].tile.right, group[0].tile.bottom) == size[::-1] and not any(group[0].tile[:2]):
        return group[0].rle
    tiles = np.array([piece.tile for piece in group])
    left, top = tiles[:, :2].min(0)
    right, bottom = tiles[:, 2:].max(0)
    votes = np.zeros((2, bottom - top, right - left), np.float32)
    for piece in group:
        seen = np.s_[piece.tile.top - top : piece.tile.bottom - top, piece.tile.left - left : piece.tile.right - left]
        votes[0][seen] += piece.score * mask.decode(piece.rle)
        votes[1][seen] += piece.score
    return encode_part((votes[0] >= votes[1] / 2) & (votes[1] > 0), int(left), int(top), size)


def encode_part(part: np.ndarray, left: int, top: int, size: tuple[int, int]) -> dict:
    """Return the run lengths of a mask of this size (height, width), of which a part (h, w) bool is not empty."""
    from pycocotools import mask

    height, width = size
    changes = np.diff(np.pad(part, ((1, 1), (0, 0))).astype(np.int8), axis=0)  # (h + 1, w)
    columns, rows = np.nonzero(changes.T)  # COCO counts down the columns; in each, beginnings and ends take turns
    places = (left + columns).astype(np.int64) * height + top + rows
    places, times = np.unique(places, return_counts=True)  # twice: a run goes on from the end of a column to the next
    counts = np.trim_zeros(np.diff(places[times == 1], prepend=0, append=height * width), 'b')
    return mask.frPyObjects(dict(counts=counts.tolist(), size=[height, width]), height, width)


def blend(tiles: Sequence[Tile], scores: Iterator[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """Return the label map (H, W) of an image; where tiles overlap, each counts more the farther its border is.

    A row of tiles is kept, and of the row above what both see. Of the scores of a tile, (classes, height, width)
    float32, the largest wins; those of one class are positive where it is.
    """
    labels = None
    rows = [list(row) for _, row in groupby(tiles, key=lambda tile: tile.top)]
    above = None
    for row, end in zip(rows, [*(below[0].top for below in rows[1:]), size[0]], strict=True):
        top, bottom = row[0].top, row[0].bottom
        sums = None
        for tile in row:
            given = next(scores)
            if sums is None:
                sums = zeros((len(given), bottom - top, size[1]))
            if labels is None:
                labels = np.zeros(size, np.uint8 if len(given) <= 256 else np.int32)
            sums[:, :, tile.left : tile.right] += given * np.outer(hat(bottom - top), hat(tile.right - tile.left))
        if above is not None:
            sums[:, : above.shape[1]] += above
        done = sums[:, : end - top]
        labels[top:end] = done.argmax(0) if len(done) > 1 else done[0] > 0
        above = zeros((len(sums), bottom - end, size[1]))  # of its own: a view would keep the whole row
        above[:] = sums[:, end - top :]
    return labels


def hat(length: int) -> np.ndarray:
    """Return weights that are largest in the middle and 1 at both ends.

    >>> hat(5)
    array([1., 2., 3., 2., 1.], dtype=float32)
    """
    places = np.arange(1, length + 1, dtype=np.float32)
    return np.minimum(places, places[::-1])


def zeros(shape: tuple[int, ...]) -> np.ndarray:
    """Return zeros of float32, in a temporary file where they would take much memory."""
    if 4 * np.prod(shape, dtype=np.int64) <= MOST_BYTES:
        return np.zeros(shape, np.float32)
    return np.memmap(tempfile.TemporaryFile(), np.float32, shape=shape)


def open_image(model: 'Predictor', path: Path) -> 'np.ndarray | Raster':
    """Return an image of which tiles are taken: a TIFF is read in windows where the package rasterio is installed.

    Raises:
        UserError: It cannot be read.
    """
    if path.suffix.lower() in TIFF and importlib.util.find_spec('rasterio') and has_plain_values(path):
        return Raster(path, model.load)
    return model.read(path)


def has_plain_values(path: Path) -> bool:
    """Tell whether the values of a TIFF file are those of its bands, not turned: no palette, and no single bits."""
    try:
        with silent(), TiffImageFile(path) as image:  # not Image.open, which refuses images of 180 million pixels
            return image.mode not in ('P', '1') and image.getexif().get(ExifTags.Base.Orientation, 1) == 1
    except UNREADABLE:
        return True  # bands that Pillow does not know


class Raster:
    """A TIFF file that gives windows as slices of an array (H, W, channels).

    The ``channels`` and the ``stretch`` are those of the first step of the model's pipeline.

    Raises:
        UserError: It is no image, or its values cannot be taken window by window.
    """

    def __init__(self, path: Path, load: object) -> None:
        import rasterio

        self.settings = rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES)  # by default it takes a share of the machine's memory
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore', rasterio.errors.NotGeoreferencedWarning)
                self.file = rasterio.open(path)
        except rasterio.errors.RasterioIOError as error:
            raise unreadable(path) from error
        self.path, self.channels, self.stretch = path, getattr(load, 'channels', 3), getattr(load, 'stretch', None)
        self.shape = self.file.height, self.file.width, self.channels
        if self.file.dtypes[0] != 'uint8' and self.stretch is None:
            raise UserError(
                f'{path} holds {self.file.dtypes[0]}, and the config does not say which values become 0 and 255. '
                "Set LoadAnyImage's stretch in the test pipeline, as import-data writes it, or leave out --tile."
            )

    def __getitem__(self, place: tuple[slice, slice]) -> np.ndarray:
        """Return a window (height, width, channels), as the whole image would be read; a step leaves pixels out."""
        rows, columns = (each.indices(length) for each, length in zip(place, self.shape, strict=False))
        window = (rows[:2], columns[:2])
        size = len(range(*rows)), len(range(*columns))
        with self.settings:
            bands = self.file.read(window=window, out_shape=(self.file.count, *size))
        return as_input(np.moveaxis(bands, 0, -1), self.channels, self.stretch, self.path)
