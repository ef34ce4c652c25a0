"""Serve ``mmcv._ext``, the module of mmcv's compiled ops, where no compiled one is installed."""

import importlib.abc
import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any, Literal

from . import ops

MODULE = 'mmcv._ext'


class TorchvisionOpsFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Answer for ``mmcv._ext`` alone. It stands last in ``sys.meta_path``, so that a compiled module is found first."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Return a spec for ``mmcv._ext``, else None."""
        if fullname != MODULE:
            return None
        return importlib.util.spec_from_loader(fullname, self, origin=ops.__file__)

    def exec_module(self, module: ModuleType) -> None:
        """Give the module the ops of ``ops.OPS``, each looked up at its first use."""

        def get_op(name: str) -> Callable:
            # inspect, pickle and doctest probe modules for underscore names, and must hear that there are none.
            if name.startswith('_'):
                raise AttributeError(f'module {MODULE!r} has no attribute {name!r}')
            setattr(module, name, ops.find_op(name))
            return module.__dict__[name]

        module.__doc__ = ops.__doc__
        module.__getattr__ = get_op
        module.__dir__ = lambda: sorted({*module.__dict__, *ops.OPS})


FINDER = TorchvisionOpsFinder()


def install_finder() -> None:
    """Append the finder to ``sys.meta_path``, once."""
    if FINDER not in sys.meta_path:
        sys.meta_path.append(FINDER)


def ops_backend() -> Literal['compiled', 'torchvision'] | None:
    """Say who serves mmcv's ops: its compiled module, or torchvision; None where mmcv is not installed.

    Looks for the files only: neither mmcv nor torchvision is imported.
    """
    mmcv = importlib.util.find_spec('mmcv')
    if mmcv is None:
        return None
    return 'compiled' if PathFinder.find_spec(MODULE, mmcv.submodule_search_locations) else 'torchvision'
