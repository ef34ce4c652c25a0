"""Changes to a config, a new value for each path that changes, and the file that inherits the config and makes them.

A dict is merged into the old one unless it has the key ``_delete_``, as in MMEngine's configs.
"""

import copy
from collections.abc import Mapping
from itertools import takewhile
from typing import Any

from mmengine.config import Config
from yapf.yapflib.yapf_api import FormatCode

# MMEngine up to version 0.10 finds the configs of packages with pkg_resources. Importing this package mends that, also
# under the libraries' own tools, and serves mmcv's ops before the libraries import them.
CONFIG = '''"""{docstring}"""

# the import comes first: it lets MMEngine find the configs of packages without pkg_resources
_base_ = __import__('convnext_dense') and {base!r}
{values}'''
Path = tuple[str | int, ...]  # of keys, and of indices into lists
Changes = dict[Path, Any]


class Source(str):
    """A piece of code, which is written without quotes."""


def at(cfg: Any, path: Path) -> Any:
    """Return the value at a path of a config."""
    for key in path:
        cfg = cfg[key]
    return cfg


def dotted(path: Path) -> str:
    """Return a path in the notation of ``--cfg-options``, as ``model.decode_head.0.in_channels``."""
    return '.'.join(map(str, path))


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
    if isinstance(value, Source):
        return str(value)
    if isinstance(value, Mapping) and all(map(str.isidentifier, value)):
        return f'dict({", ".join(f"{key}={source(child)}" for key, child in value.items())})'
    if isinstance(value, Mapping):
        return f'{{{", ".join(f"{key!r}: {source(child)}" for key, child in value.items())}}}'
    if isinstance(value, list):
        return f'[{", ".join(map(source, value))}]'
    if isinstance(value, tuple):
        return f'({", ".join(map(source, value))}{"," * (len(value) == 1)})'
    return repr(value)
