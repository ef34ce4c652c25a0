"""Changes to a config, a new value for each path that changes, and the file that inherits the config and makes them.

A dict is merged into the old one unless it has the key ``_delete_``, as in MMEngine's configs.
"""

import contextlib
import copy
import os
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path as File
from typing import Any

from mmengine.config import Config
from yapf.yapflib.yapf_api import FormatCode

from convnext_dense.compat.errors import UserError
from convnext_dense.swap.read import Path, at, dotted

# MMEngine up to version 0.10 finds the configs of packages with pkg_resources. Importing this package mends that, also
# under the libraries' own tools, and serves mmcv's ops before the libraries import them.
CONFIG = '''"""{docstring}"""

# the import comes first: it lets MMEngine find the configs of packages without pkg_resources
_base_ = __import__('convnext_dense') and {base!r}
{values}'''
Changes = dict[Path, Any]


def apply(cfg: Config, changes: Changes) -> Config:
    """Return a copy of a config with the changed values."""
    cfg = copy.deepcopy(cfg)
    cfg.merge_from_dict({dotted(path): copy.deepcopy(value) for path, value in changes.items()})
    return cfg


def nest(cfg: Config, changes: Changes) -> dict:
    """Return the changes as nested dicts, with whole lists, because a config cannot change an inherited list."""
    changed, tree = apply(cfg, changes), {}
    for path, value in changes.items():
        keys = tuple(takewhile(lambda key: isinstance(key, str), path))
        node = tree
        for key in keys[:-1]:
            node = node.setdefault(key, {})
        node[keys[-1]] = value if keys == path else at(changed, keys)
    return tree


def config_text(docstring: str, base: str, values: Mapping) -> str:
    """Return the text of a config that inherits ``base``, as ``_base_`` names it, and changes some values."""
    text = '\n'.join(f'{key} = {source(value)}' for key, value in values.items())
    formatted, _ = FormatCode(text, style_config=dict(based_on_style='facebook', column_limit=119))
    return CONFIG.format(docstring=docstring, base=base, values=formatted)


def source(value: Any) -> str:
    """Return the code of a value, as it stands in a config."""
    if isinstance(value, Mapping) and all(map(str.isidentifier, value)):
        return f'dict({", ".join(f"{key}={source(child)}" for key, child in value.items())})'
    if isinstance(value, Mapping):
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


def save(text: str, out: File) -> None:
    """Write a config, and the folders above it."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding='utf-8')
    except OSError as error:
        raise UserError(f'{out} cannot be written ({error.strerror}). Choose another place with -o.') from error
