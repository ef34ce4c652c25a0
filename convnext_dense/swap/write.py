"""Where the config with another backbone is written."""

import contextlib
import os
from pathlib import Path as File

from convnext_dense.compat.errors import UserError


def relative_path(file: str | os.PathLike, folder: str | os.PathLike) -> str:
    """Return the path from a folder to a file, or the absolute path if they are on two drives or behind links.

    MMEngine resolves ``..`` both in the text of a path and on the disk, and both must lead to the file.
    """
    with contextlib.suppress(ValueError):  # two drives
        path = os.path.relpath(file, folder)
        if path == os.path.relpath(os.path.realpath(file), os.path.realpath(folder)):
            return File(path).as_posix()
    return File(file).absolute().as_posix()


def check_new(out: File) -> None:
    """Check that a path may be that of a new config."""
    if out.suffix != '.py':
        raise UserError(f'-o {out}: a config needs a name that ends in .py.')
    if os.path.lexists(out):
        raise UserError(f'{out} exists already. Choose another name with -o, or remove it.')
