"""What the formats with an annotation file for each image share: which image is meant, and what is left over."""

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
    """Return the image of an annotation file, as :func:`open_picture` does.

    ``names`` are what the image may be called, the likeliest first.

    Raises:
        UserError: Several images are meant equally well.
    """
    names = [name for name in names if name] or [file.stem]
    path = next((found for name in names if (found := images.find(name, file.parent))), None)
    named = next((name for name in names if PurePosixPath(name).suffix.lower() in UNREAD), names[0])
    return open_picture(path, size, f'{file.name}: {named}', faults)


def open_picture(path: Path | None, size: Sequence[Any], place: str, faults: Faults) -> Picture | None:
    """Return an image of annotations, without objects; None, and a fault, where it cannot be used.

    Args:
        path: The image; None where it was not found.
        size: Width and height that the annotations tell. Boxes of an image that was scaled or turned since are wrong.
        place: The annotation, and the name of the image in it.
        faults: Takes what is wrong.
    """
    real, told, suffix = path and image_size(path), told_size(size), PurePosixPath(place).suffix.lower()
    if path is None:
        unread = f'images of the kind {suffix}, which is not read'
        faults.add(unread if suffix in UNREAD else 'images that are not there', place)
    elif real is None:
        faults.add('image files that cannot be read', str(path))
    elif told not in (None, real):
        faults.add(
            'images whose size in the annotations is not that of the file; were they resized, or turned as EXIF says, '
            'after they were annotated?', f'{place}: {told[0]:g}x{told[1]:g}, not {real[0]}x{real[1]}', path,
        )  # fmt: skip
    else:
        return Picture(path, *real, [])
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
