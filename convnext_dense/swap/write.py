"""Write a config file that inherits another one and changes some of its values."""

import contextlib
import keyword
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from yapf.yapflib.yapf_api import FormatCode

from convnext_dense.compat.errors import UserError
from convnext_dense.swap.changes import Changes
from convnext_dense.swap.recipe import PACKAGE
from convnext_dense.weights.write import write_text

SUFFIX = '.py'
STYLE = dict(based_on_style='facebook', column_limit=119)


class Source(str):
    """A piece of code, which is written without quotes."""


def config_text(docstring: str, base: str, changes: Changes) -> str:
    """Return the text of a config that inherits ``base`` and changes it.

    Args:
        docstring: The docstring of the file.
        base: The inherited config, as ``_base_`` names it.
        changes: The changed values.
    """
    tree: dict = {}
    edits: list[str] = []
    for path, value in changes.items():
        keys = next((path[:place] for place, key in enumerate(path) if isinstance(key, int)), path)
        if keys == path:
            insert(tree, keys, value)
            continue
        # MMEngine replaces lists as a whole, so the text edits a copy of the inherited list
        name, inherited = keys[-1], f'{keys[-1]} = _base_.{".".join(keys)}'
        if inherited not in edits:
            edits.append(inherited)
            if len(keys) > 1:
                insert(tree, keys, Source(name))
        place = ''.join(f'[{key!r}]' for key in path[len(keys) :])
        edits.append(f'{name}{place} = {source(value)}')
    lines = [f'{key} = {source(value)}' for key, value in tree.items()]
    formatted, _ = FormatCode('\n'.join([*edits, *lines]), style_config=STYLE)
    return f'"""{docstring}"""\n\n{base_lines(base)}{formatted}'


def base_lines(base: str) -> str:
    """Return the lines that inherit a config.

    MMEngine up to version 0.10 finds the configs of packages with ``pkg_resources``. Importing this package mends that,
    also under the libraries' own tools, and serves mmcv's ops before the libraries import them.

    >>> print(base_lines('../faster-rcnn.py'), end='')
    # the import comes first: it lets MMEngine find the configs of packages without pkg_resources
    _base_ = __import__('convnext_dense') and '../faster-rcnn.py'
    """
    return (
        '# the import comes first: it lets MMEngine find the configs of packages without pkg_resources\n'
        f'_base_ = __import__({PACKAGE!r}) and {base!r}\n'
    )


def insert(tree: dict, keys: tuple[str, ...], value: Any) -> None:
    """Put a value into nested dicts."""
    *parents, last = keys
    for key in parents:
        tree = tree.setdefault(key, {})
    tree[last] = value


def source(value: Any) -> str:
    """Return the code of a value, as it stands in a config.

    >>> source({'type': 'FPN', 'in_channels': [96, 192]})
    "dict(type='FPN', in_channels=[96, 192])"
    >>> source({'absolute.pos': 1.0})
    "{'absolute.pos': 1.0}"
    """
    if isinstance(value, Source):
        return str(value)
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and key.isidentifier() and not keyword.iskeyword(key) for key in value):
            return f'dict({", ".join(f"{key}={source(child)}" for key, child in value.items())})'
        return f'{{{", ".join(f"{key!r}: {source(child)}" for key, child in value.items())}}}'
    if isinstance(value, list):
        return f'[{", ".join(map(source, value))}]'
    if isinstance(value, tuple):
        return f'({", ".join(map(source, value))}{"," * (len(value) == 1)})'
    return repr(value)


def relative_path(file: str | os.PathLike, folder: str | os.PathLike) -> str:
    """Return the path from a folder to a file, or the absolute path if they are on two drives or behind links.

    MMEngine resolves ``..`` both in the text of a path and on the disk, and both must lead to the file.
    """
    with contextlib.suppress(ValueError):
        path = os.path.relpath(file, folder)
        if path == os.path.relpath(os.path.realpath(file), os.path.realpath(folder)):
            return Path(path).as_posix()
    return Path(file).absolute().as_posix()


def check_writable(out: Path) -> None:
    """Check that a config can be written to a file that does not exist yet.

    Raises:
        UserError: It cannot.
    """
    if out.suffix != SUFFIX:
        raise UserError(f'-o {out}: a config needs a name that ends in {SUFFIX}.')
    if os.path.lexists(out):
        raise UserError(f'{out} exists already. Choose another name with -o, or remove it.')
    with explain_disk(out), tempfile.TemporaryFile(dir=next(folder for folder in out.parents if folder.exists())):
        pass


def save(text: str, out: Path) -> None:
    """Write a config, and the folders above it.

    Raises:
        UserError: The disk refuses.
    """
    write_text(text, out)


@contextlib.contextmanager
def explain_disk(out: Path) -> Iterator[None]:
    """Turn an error of the disk into a :class:`UserError`."""
    try:
        yield
    except OSError as error:
        raise UserError(f'{out} cannot be written ({error.strerror}). Choose another place with -o.') from error
