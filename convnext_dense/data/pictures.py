"""Image files of any kind: their sizes, and their pixels as the numbers that a model takes."""

import contextlib
import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import cv2
import numpy as np
from mmengine.registry import TRANSFORMS
from PIL import ExifTags, Image

from convnext_dense.compat.errors import UserError

TURNED = (5, 6, 7, 8)  # values of EXIF's orientation that exchange width and height
XMP = {'xmp', 'XML:com.adobe.xmp'}  # Pillow's names of its block
TIFF = ('.tif', '.tiff')
BITS, BANDS, EXTRA_BANDS = 258, 277, 338  # tags of a TIFF file
OPACITY = ((1,), (2,))  # of the extra band, multiplied with the colours or not
PERCENTILES = (0.5, 99.5)  # of an image's values, which become 0 and 255
PLAIN_MODES = ('1', 'L', 'P', 'LA', 'PA', 'RGB', 'RGBA', 'RGBX', 'CMYK', 'YCbCr')  # of Pillow, with 8 bits
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)  # what Pillow raises for damaged files
MOST_LOOKED_AT = 200  # images of a data set


def image_size(path: Path) -> tuple[int, int] | None:
    """Return width and height in pixels as an image is loaded, turned as EXIF says; None where it cannot be read."""
    if path.suffix.lower() not in TIFF or is_plain(path):
        return read_header(path)[0]
    try:
        return read_bands(path).shape[1::-1]  # Pillow shows one page, or knows no such bands
    except UserError:
        return None


def read_header(file: Path | BinaryIO) -> tuple[tuple[int, int] | None, str | None]:
    """Return the size of an image, as :func:`image_size`, and Pillow's name of its format; None, None for others."""
    try:
        with silent(), Image.open(file) as image:
            tags = image.getexif()
            if image.format != 'TIFF' and XMP & set(image.info):  # Pillow turns by it too, OpenCV does not
                tags = Image.Exif()
                tags.load(image.info.get('exif'))
            is_turned = tags.get(ExifTags.Base.Orientation, 1) in TURNED
            return image.size[::-1] if is_turned else image.size, image.format
    except UNREADABLE:
        return None, None


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Hide Pillow's warnings of very large images and odd EXIF; outside of threads, for all of them."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield


def read_bands(path: Path) -> np.ndarray:
    """Return the values of an image as they are stored, (H, W, bands): grey, RGB, RGBA, or whatever bands it has.

    Raises:
        UserError: It is no image, or one of a kind that needs the package tifffile.
    """
    if path.suffix.lower() in TIFF:
        values = read_tiff(path)
    else:
        values = decode(path, cv2.IMREAD_UNCHANGED)
        if values.ndim == 3:
            values = cv2.cvtColor(values, cv2.COLOR_BGR2RGB if values.shape[2] == 3 else cv2.COLOR_BGRA2RGBA)
    return values[..., None] if values.ndim == 2 else values


def unreadable(path: Path) -> UserError:
    """Return the error for a file that is no image."""
    return UserError(f'The image {path} cannot be read. Copy it again, or take it out of the data.')


def decode(path: Path, flags: int) -> np.ndarray:
    """Return an image as OpenCV decodes it.

    Raises:
        UserError: It is no image.
    """
    values = cv2.imdecode(np.fromfile(path, np.uint8), flags) if path.stat().st_size else None
    if values is None:
        raise unreadable(path)
    return values


def read_tiff(path: Path) -> np.ndarray:
    """Return the values of a TIFF file, (H, W) or (H, W, bands); of several pages, each is a band.

    Raises:
        UserError: It is no image, or needs the package tifffile, which is not installed.
    """
    try:
        import tifffile
    except ImportError as error:
        raise UserError(f"The image {path} is a TIFF: pip install 'convnext-dense[data]' reads it.") from error
    try:
        values = np.squeeze(tifffile.imread(path))
    except Exception as error:  # whatever a damaged file makes of the reader
        raise unreadable(path) from error
    if values.ndim == 3 and values.shape[0] < values.shape[2]:  # a plane for each band
        values = np.moveaxis(values, 0, -1)
    if values.ndim not in (2, 3):
        raise unreadable(path)
    return values


def read_image(path: Path, channels: int = 3, stretch: Sequence[float] | None = None) -> np.ndarray:
    """Return an image for a model, (H, W, channels), with values from 0 to 255.

    Of three channels they are in the order BGR, as OpenCV has them: grey is repeated, transparency is left out, and
    EXIF turns the image. Another number is that of the bands, in the order of the file.

    Args:
        path: The file.
        channels: Of the result.
        stretch: The values that become 0 and 255, where the file has other than 8 bits; values beyond are cut off. By
            default the 0.5th and the 99.5th percentile of the image.

    Raises:
        UserError: It cannot be read, or has other bands.
    """
    if channels == 3 and path.suffix.lower() not in TIFF and is_plain(path):
        image = decode(path, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)  # turned as EXIF says
        if image.dtype == np.uint8:
            return image
    return as_input(read_bands(path), channels, stretch, path)


def as_input(bands: np.ndarray, channels: int, stretch: Sequence[float] | None, path: Path) -> np.ndarray:
    """Return the bands (H, W, bands) of an image, or of a part of it, as :func:`read_image` returns them."""
    if bands.dtype != np.uint8:
        bands = stretched(bands, stretch)
    if channels != 3:
        if bands.shape[2] != channels:
            raise UserError(f'The image {path} has {bands.shape[2]} bands, and the config takes {channels}.')
        return bands
    colours = bands[..., :3] if bands.shape[2] in (3, 4) else bands[..., :1].repeat(3, axis=2)
    return np.ascontiguousarray(colours[..., ::-1])


def stretched(values: np.ndarray, limits: Sequence[float] | None = None) -> np.ndarray:
    """Return values as float32 from 0 to 255.

    Args:
        values: (H, W, bands) of any type.
        limits: The values that become 0 and 255; by default percentiles of the image, over all bands.
    """
    values = values.astype(np.float32)
    finite = values[np.isfinite(values)]
    if limits is None:
        limits = np.percentile(finite, PERCENTILES) if finite.size else (0, 1)
    low, high = map(float, limits)
    scaled = (np.nan_to_num(values, nan=low, posinf=high, neginf=low) - low) * (255 / max(high - low, 1e-12))
    return scaled.clip(0, 255)


@TRANSFORMS.register_module()
class LoadAnyImage:
    """Load images of any kind, in place of ``LoadImageFromFile``; see :func:`read_image`.

    Args:
        channels: Of the result; 3 is BGR.
        stretch: The values that become 0 and 255, where a file has other than 8 bits.
    """

    def __init__(self, channels: int = 3, stretch: Sequence[float] | None = None) -> None:
        self.channels, self.stretch = channels, stretch

    def __call__(self, results: dict) -> dict:
        """Add ``img`` (H, W, channels), ``img_shape`` and ``ori_shape`` to what ``img_path`` names."""
        image = read_image(Path(results['img_path']), self.channels, self.stretch)
        results['img'] = image
        results['img_shape'] = results['ori_shape'] = image.shape[:2]
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(channels={self.channels}, stretch={self.stretch})'


class ImageKind(NamedTuple):
    """What the images of a data set are, and how they are loaded."""

    channels: int = 3  # of the loaded image; 3 is BGR
    is_plain: bool = True  # MMCV's loader reads them as they are meant
    # the values that become 0 and 255, where the files have other than 8 bits
    stretch: tuple[float, float] | None = None
    # of each channel, from 0 to 255; measured where there are other channels than three
    mean: list[float] | None = None
    std: list[float] | None = None  # the standard deviation, likewise
    notes: tuple[str, ...] = ()  # what the user should know


def find_kind(paths: Sequence[Path]) -> ImageKind:
    """Return the kind of a data set's images, by some of them, evenly spaced.

    Raises:
        UserError: They have different numbers of bands.
    """
    paths = paths[:: math.ceil(len(paths) / MOST_LOOKED_AT) or 1]
    odd = [path for path in paths if not is_plain(path)]
    if not odd:
        return ImageKind()
    bands, types, ends = zip(*map(summarise, odd), strict=True)
    channels = {1: 3}.get(bands[0], bands[0])
    for path, number in zip(odd, bands, strict=True):
        if (number == 1) != (bands[0] == 1) and number != channels:
            raise UserError(
                f'The image {odd[0]} has {bands[0]} bands, and {path} has {number}. Take out those of the other kind.'
            )
    deep = [each for each in types if each != np.uint8]
    stretch, notes = None, []
    if deep:
        low, high = zip(*([pair for pair in ends if pair is not None] or [(0, 1)]), strict=True)
        stretch = (round(float(min(low)), 6), round(float(max(high)), 6))
        notes.append(
            f'{deep[0]} images: {stretch[0]:g} becomes 0 and {stretch[1]:g} becomes 255, the smallest '
            f'{PERCENTILES[0]}th and the largest {PERCENTILES[1]}th percentile of {len(deep)} images; see LoadAnyImage '
            'in the config'
        )
    if channels == 3:
        return ImageKind(3, False, stretch, notes=tuple(notes))
    notes.append(f'{channels} bands: the backbone takes all of them; mean and std are measured on {len(odd)} images')
    mean, std = measure(odd, channels, stretch)
    return ImageKind(channels, False, stretch, mean, std, tuple(notes))


def summarise(path: Path) -> tuple[int, np.dtype, np.ndarray | None]:
    """Return how many bands an image has, their type, and the percentiles of the values of other types than 8 bits."""
    values = read_bands(path)
    finite = values[np.isfinite(values)] if values.dtype != np.uint8 else values[:0]
    return values.shape[2], values.dtype, np.percentile(finite, PERCENTILES) if finite.size else None


def is_plain(path: Path) -> bool:
    """Tell by the header of an image whether it has 8 bits and the colours of a picture."""
    try:
        with silent(), Image.open(path) as image:
            if image.mode not in PLAIN_MODES or (image.format == 'TIFF' and not is_plain_tiff(image)):
                return False
        with path.open('rb') as opened:
            head = opened.read(26)
    except UNREADABLE:
        return False
    return not (head.startswith(b'\x89PNG') and head[24] == 16)  # of which Pillow shows 8 bits


def is_plain_tiff(image: Image.Image) -> bool:
    """Tell whether a TIFF file is one picture of 8 bits, grey or RGB, of which a fourth band would be the opacity."""
    bits, bands, extra = (image.tag_v2.get(tag) for tag in (BITS, BANDS, EXTRA_BANDS))
    is_deep = any(each > 8 for each in (bits or (1,)))
    return not is_deep and image.n_frames == 1 and ((bands or 1) in (1, 3) or (bands == 4 and extra in OPACITY))


def measure(paths: Sequence[Path], channels: int, stretch: Sequence[float] | None) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of each channel over images as :func:`read_image` returns them.

    Each image counts alike, whatever its size.
    """
    sums = np.zeros((2, channels))
    for path in paths:
        pixels = read_image(path, channels, stretch).reshape(-1, channels).astype(np.float64)
        sums += np.stack([pixels.mean(0), np.square(pixels).mean(0)])
    mean, square = sums / len(paths)
    std = np.sqrt(np.maximum(square - mean**2, 1e-6))
    return [round(float(v), 3) for v in mean], [round(float(v), 3) for v in std]


def choose_palette(count: int, *palettes: object) -> list[Sequence[int]]:
    """Return the first palette that is a list with a colour (R, G, B) for each class, or else distinct colours."""
    whole = (each for each in palettes if isinstance(each, list) and len(each) >= count)
    return next(whole, None) or distinct_colours(count)


def distinct_colours(count: int) -> list[tuple[int, int, int]]:
    """Return so many colours (R, G, B) that differ: their hues are a golden angle apart."""
    hues = [(i * 0.618034 % 1) * 180 for i in range(count)]
    colours = np.array([[(hue, 200, 230) for hue in hues]], np.uint8)
    return [tuple(map(int, colour)) for colour in cv2.cvtColor(colours, cv2.COLOR_HSV2RGB)[0]]
