"""Changes to a config: a new value for each path that changes.

A path is a tuple of keys, and of indices into lists. As in MMEngine's configs, a dict is merged into the old one unless
it has the key ``_delete_``.
"""

import copy
from collections.abc import Mapping
from typing import Any

from mmengine.config import Config, ConfigDict

Path = tuple[str | int, ...]
Changes = dict[Path, Any]


def at(cfg: Config, path: Path) -> Any:
    """Return the value at a path of a config."""
    node = cfg
    for key in path:
        node = node[key]
    return node


def apply(cfg: Config, changes: Changes) -> Config:
    """Return a copy of a config with the changed values."""
    cfg = copy.deepcopy(cfg)
    for (*parents, last), value in changes.items():
        if isinstance(value, dict):
            value = ConfigDict({key: child for key, child in value.items() if key != '_delete_'})
        at(cfg, parents)[last] = value
    return cfg


def dotted(path: Path) -> str:
    """Return a path in the notation of ``--cfg-options``.

    >>> dotted(('model', 'decode_head', 0, 'in_channels'))
    'model.decode_head.0.in_channels'
    """
    return '.'.join(map(str, path))


def type_name(cfg: Mapping) -> str:
    """Return the name of a module's type, for which a config may hold the name or the class.

    >>> type_name({'type': 'mmpretrain.ConvNeXt'}), type_name({'type': dict})
    ('mmpretrain.ConvNeXt', 'dict')
    """
    named = cfg.get('type')
    return named.__name__ if isinstance(named, type) else str(named)
