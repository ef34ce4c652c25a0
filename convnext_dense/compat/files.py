"""Files that are written in one step, whole or not at all, by every room."""

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .errors import UserError

DRAFT = re.compile(r'\.(?P<name>.+)\.[a-z0-9_]{8}')  # its folder; the end is tempfile's


@contextlib.contextmanager
def replaced(file: Path) -> Iterator[Path]:
    """Give a hidden draft beside ``file`` to write to; after the block it is flushed and takes the file's place."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f'.{file.name}.', dir=file.parent) as folder:
        draft = Path(folder, file.name)
        yield draft
        with draft.open('rb+') as written:
            os.fsync(written.fileno())
        draft.replace(file)
    flush_names(file.parent)


def flush_names(folder: Path) -> None:
    """Flush the names in a folder to the disk, where the system can."""
    with contextlib.suppress(OSError):  # Windows opens no folders, and some network disks flush none
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_drafts(folder: Path, names: re.Pattern) -> int:
    """Remove the drafts that killed processes have left of files with certain names; return how many.

    A draft is a folder of the name that :func:`replaced` gives it, with nothing but the one file in it.
    """
    drafts = [(place, DRAFT.fullmatch(place.name)) for place in folder.glob('.*.????????')]
    num_removed = 0
    for place, match in drafts:
        if match and names.fullmatch(match['name']) and place.is_dir() and not place.is_symlink():
            with contextlib.suppress(OSError):  # other files in it, which stay
                (place / match['name']).unlink(missing_ok=True)
                place.rmdir()
                num_removed += 1
    return num_removed


@contextlib.contextmanager
def explained(file: Path) -> Iterator[None]:
    """Turn what the disk refuses into a :class:`UserError` that names the file."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f'{file} cannot be written ({reason}). Give another place, or make room.') from error


def write_text(text: str, file: Path) -> None:
    """Write a text in one step.

    Raises:
        UserError: The file cannot be written.
    """
    with explained(file), replaced(file) as draft:
        draft.write_text(text, encoding='utf-8')
