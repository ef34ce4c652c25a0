"""Files that are written in one step, whole or not at all, by every room."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .errors import UserError


@contextlib.contextmanager
def replaced(file: Path) -> Iterator[Path]:
    """Give a hidden file beside ``file`` to write to; after the block it is flushed and takes the place of ``file``."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f'.{file.name}.', dir=file.parent) as folder:
        draft = Path(folder, file.name)
        yield draft
        with draft.open('rb+') as written:
            os.fsync(written.fileno())
        draft.replace(file)


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
