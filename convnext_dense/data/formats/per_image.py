"""What the formats with an annotation file for each image share: which image is meant, and what is left over."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from convnext_dense.compat.errors import UserError, shorten
from convnext_dense.data.annotation import FaultError, number
from convnext_dense.data.pictures import image_size
from convnext_dense.data.records import UNREAD, Collection, Faults, ImageIndex, Picture


def find_picture(
    images: ImageIndex, file: Path, names: Sequence[str], size: Sequence[Any], faults: Faults
) -> Picture | None:
    """Return the image of an annotation file, without objects; None, and a fault, where it cannot be used.

    Args:
        images: The images of the data set.
        file: The annotation file.
        names: What the image may be called, the likeliest first.
        size: Width and height as the file tells them. Boxes of an image that was scaled or turned since are wrong.
        faults: Takes what is wrong.

    Raises:
        UserError: Several images are meant equally well.
    """
    names = [name for name in names if name] or [file.stem]
    path = next((found for name in names if (found := images.find(name, file.parent))), None)
    real, told = image_size(path) if path else None, told_size(size)
    if real and told in (None, real):
        return Picture(path, *real, [])
    suffixes = [PurePosixPath(name).suffix.lower() for name in names]
    unread = next((suffix for suffix in suffixes if suffix in UNREAD), None)
    if real:
        kind = 'images whose size in the annotations is not that of the file'
        faults.add(kind, f'{file.name}: {told[0]:g}x{told[1]:g}, not {real[0]}x{real[1]}', path)
    elif path:
        faults.add('image files that cannot be read', str(path))
    else:
        kind = f'images of the kind {unread}, which is not read' if unread else 'images that are not there'
        faults.add(kind, f'{file.name}: {names[0]}')
    return None


def told_size(size: Sequence[Any]) -> tuple[float, float] | None:
    """Return a width and a height; None where they are not told, for some tools write 0."""
    try:
        width, height = map(number, size)
    except FaultError:
        return None
    return (width, height) if width > 0 and height > 0 else None


def note_left_over(collection: Collection, images: ImageIndex, kind: str) -> None:
    """Note the images without an annotation file.

    Raises:
        UserError: No image could be used.
    """
    if not collection.pictures:
        told = '\n'.join(collection.faults.notes())
        raise UserError(
            f'{images.root}: no image can be used with its {kind} file.\n{told}\nPut the images there that the files '
            'were made for, at their size and under their names.'
        )
    if left := images.left():
        names = shorten((file.relative_to(images.root) for file in left), 3)
        collection.notes.append(f'left out: {len(left)} images without {kind} file: {names}')
