"""Image files: their sizes, and pixels of any kind as the numbers that a model takes."""

from __future__ import annotations

import warnings
from pathlib import Path

from PIL import ExifTags, Image

TURNED = (5, 6, 7, 8)  # values of EXIF's orientation that exchange width and height


def image_size(path: Path) -> tuple[int, int] | None:
    """Return width and height in pixels as an image is loaded, turned as EXIF says; None where it cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # of very large images and odd EXIF
            with Image.open(path) as image:
                is_turned = image.getexif().get(ExifTags.Base.Orientation, 1) in TURNED
                return image.size[::-1] if is_turned else image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
