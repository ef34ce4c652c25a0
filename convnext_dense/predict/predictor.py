"""What all models that predict have in common: images of any form in, results in plain arrays out."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps

from convnext_dense.compat.errors import UserError
from convnext_dense.data.checks.files import find_defect
from convnext_dense.data.pictures import PLAIN_MODES
from convnext_dense.predict.tiles import open_image, predict_tiled
from convnext_dense.results import LabelMap

Image = str | os.PathLike | np.ndarray | PIL.Image.Image


class Predictor:
    """A detector or a segmentor, ready to predict. Subclasses have ``predict``, ``run`` and what :mod:`.tiles` needs.

    Attributes:
        name: Of its config.
        checkpoint: Where its weights come from.
        classes: The names of the classes.
        palette: A colour (R, G, B) for each class.
        load: The step that reads an image file.
    """

    has_tta = False  # whether it predicts with test-time augmentation
    settings = ''  # all that decides what it predicts, besides its file

    def __init__(
        self,
        name: str,
        checkpoint: str,
        classes: Sequence[str],
        palette: Sequence[Sequence[int]],
        load: Callable[[dict], dict],
    ) -> None:
        self.name, self.checkpoint, self.load = name, checkpoint, load
        self.classes, self.palette = tuple(classes), palette

    def __call__(self, image: Image | Sequence[Image], tile: int | None = None, overlap: float = 0.25) -> Any:
        """Predict an image, or each of several.

        Args:
            image: A file, of several pages the first; an array as for :func:`as_pixels`; an image of Pillow; or a list
                of those.
            tile: Side in pixels of the tiles into which a larger image is cut; None for no tiles.
            overlap: The part of a tile that its neighbour covers too.

        Returns:
            :class:`~convnext_dense.results.Objects` of a detector and
            :class:`~convnext_dense.results.LabelMap` of a segmentor; a list of them for several images.

        Raises:
            UserError: An image cannot be read, an array is none, or the model predicts neither.
        """
        if isinstance(image, (list, tuple)):
            return [self(each, tile, overlap) for each in image]
        if not isinstance(image, (str, os.PathLike)):
            pixels = as_pixels(image, self.channels)
        else:
            pixels = self.read(Path(image)) if tile is None else open_image(self, Path(image))
        return self.predict([pixels])[0] if tile is None else predict_tiled(self, pixels, tile, overlap)

    def check_tiling(self) -> None:
        """Raise a :class:`UserError` where the model cannot predict in tiles."""

    def read(self, path: Path) -> np.ndarray:
        """Return an image file (H, W, channels) as the model's pipeline reads it.

        Raises:
            UserError: It is not there, or is no image.
        """
        if not path.is_file():
            raise UserError(f'There is no image {path}. A folder is predicted by the command, or file by file.')
        if defect := find_defect(str(path)):
            raise UserError(f'The image {path} cannot be read: it is {defect}.')
        try:
            return self.load(dict(img_path=str(path), img_id=0))['img']
        except UserError:
            raise
        except Exception as error:  # whatever a damaged file makes of a decoder
            raise UserError(f'The image {path} cannot be read ({error or type(error).__name__}).') from error

    @property
    def channels(self) -> int:
        """Of an image: 3 in the order BGR, or as many bands as the config says."""
        return getattr(self.load, 'channels', 3)

    def label_map(self, labels: np.ndarray) -> LabelMap:
        """Return the result of a segmentor from labels (H, W)."""
        kind = np.uint8 if len(self.classes) <= 256 else np.int32
        return LabelMap(labels.astype(kind, copy=False), self.classes, self.palette)


def as_pixels(image: Any, channels: int = 3) -> np.ndarray:
    """Return a user's image as an array (H, W, channels).

    Args:
        image: Of uint8, (H, W, channels). Three channels are BGR, as OpenCV reads them; instead of those an image may
            be grey, (H, W) or (H, W, 1), which is repeated, or have a fourth channel of opacity, which is left out. Or
            an image of Pillow with 8 bits, which EXIF turns.
        channels: Of the result.

    Raises:
        UserError: It is something else.
    """
    pixels = image
    if isinstance(image, PIL.Image.Image) and image.mode in PLAIN_MODES:
        pixels = np.asarray(PIL.ImageOps.exif_transpose(image).convert('RGB'))[..., ::-1]
    elif isinstance(image, np.ndarray) and image.ndim == 2:
        pixels = image[..., None]
    allowed = (1, 3, 4) if channels == 3 else (channels,)
    is_array = isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.size
    if not is_array or pixels.shape[2] not in allowed:
        came = [str(getattr(image, name)) for name in ('dtype', 'shape', 'mode') if hasattr(image, name)]
        raise UserError(
            'An image is a file, an image of Pillow with 8 bits, or a NumPy array of uint8 (H, W, channels) with '
            f'{" or ".join(map(str, allowed))} channels (3 are BGR), from 0 to 255; got '
            f'{" ".join([type(image).__name__, *came])}.'
        )
    if channels != 3:
        return pixels
    return np.ascontiguousarray(pixels[..., :3] if pixels.shape[2] > 1 else pixels.repeat(3, axis=2))
