"""What differs between two configs: paths into the config and new values.

A path is a tuple of keys, and of indices into lists. A value that is a dict with ``_delete_`` replaces the old one,
another dict is merged into it, as in MMEngine's configs.
"""

import copy
from collections.abc import Mapping
from typing import Any

from mmengine.config import Config, ConfigDict

Place = tuple[str | int, ...]
Changes = dict[Place, Any]


def at(cfg: Config, path: Place) -> Any:
    """Return what is at a path of a config."""
    node = cfg
    for key in path:
        node = node[key]
    return node


def apply(cfg: Config, changes: Changes) -> Config:
    """Return a copy of a config with changes that replace what they name."""
    cfg = copy.deepcopy(cfg)
    for (*parents, last), value in changes.items():
        if isinstance(value, dict):
            value = ConfigDict({key: child for key, child in value.items() if key != '_delete_'})
        at(cfg, parents)[last] = value
    return cfg


def dotted(path: Place) -> str:
    """Return a path as ``--cfg-options`` has it.

    >>> dotted(('model', 'decode_head', 0, 'in_channels'))
    'model.decode_head.0.in_channels'
    """
    return '.'.join(map(str, path))


def kind(cfg: Mapping) -> str:
    """Return the type of a module as the registry knows it, also where the config has the class.

    >>> kind({'type': 'mmpretrain.ConvNeXt'}), kind({'type': dict})
    ('mmpretrain.ConvNeXt', 'dict')
    """
    named = cfg.get('type')
    return named.__name__ if isinstance(named, type) else str(named)
