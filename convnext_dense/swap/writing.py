"""Changes to a config go in, the text of a config file that makes them comes out."""

import keyword
from collections.abc import Mapping
from typing import Any

from yapf.yapflib.yapf_api import FormatCode

from convnext_dense.swap.changes import Changes
from convnext_dense.swap.training import IMPORT

STYLE = dict(based_on_style='facebook', column_limit=119)


class Source(str):
    """A piece of code, which stands for itself."""


def write_config(docstring: str, base: str, changes: Changes) -> str:
    """Return the text of a config that inherits ``base`` and changes it.

    Args:
        docstring: What the file says of itself.
        base: As ``_base_`` has it.
        changes: Path in the config -> value.
    """
    tree: dict = {}
    edits: list[str] = []
    for path, value in changes.items():
        keys = next((path[:place] for place, key in enumerate(path) if isinstance(key, int)), path)
        if keys == path:
            insert(tree, keys, value)
            continue
        # MMEngine replaces lists: edit a copy of the inherited one, and put it in the old one's place
        name, inherited = keys[-1], f'{keys[-1]} = _base_.{".".join(keys)}'
        if inherited not in edits:
            edits.append(inherited)
            if len(keys) > 1:
                insert(tree, keys, Source(name))
        place = ''.join(f'[{key!r}]' for key in path[len(keys) :])
        edits.append(f'{name}{place} = {source(value)}')
    lines = [f'{key} = {source(value)}' for key, value in tree.items()]
    code = '\n'.join([base_line(base), *edits, *lines])
    formatted, _ = FormatCode(code, style_config=STYLE)
    return f'"""{docstring}"""\n\n{formatted}'


def base_line(base: str) -> str:
    """Return the line that inherits a config.

    A name of a package's is looked up by MMEngine, which needs ``pkg_resources`` for it up to 0.10; importing this
    package mends that, also under the libraries' own tools.

    >>> base_line('../faster-rcnn.py')
    "_base_ = '../faster-rcnn.py'"
    >>> base_line('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py')
    "_base_ = __import__('convnext_dense') and 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'"
    """
    mend = f"__import__('{IMPORT}') and " if '::' in base else ''
    return f'_base_ = {mend}{base!r}'


def insert(tree: dict, keys: tuple[str, ...], value: Any) -> None:
    """Put a value into nested dicts."""
    *parents, last = keys
    for key in parents:
        tree = tree.setdefault(key, {})
    tree[last] = value


def source(value: Any) -> str:
    """Return a value as a config would have it.

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
