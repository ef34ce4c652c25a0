"""Serve ``mmcv._ext``, the module of mmcv's compiled ops, where no compiled one is installed.

The attributes of the served module are the ops of ``ops.OPS``.
"""

import importlib.abc
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Literal

from . import ops

MODULE = 'mmcv._ext'


class TorchvisionOpsFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Answer for ``mmcv._ext`` alone. It stands last in ``sys.meta_path``, so that a compiled module is found first."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return a spec for ``mmcv._ext``, else None."""
        if fullname != MODULE:
            return None
        return importlib.util.spec_from_loader(fullname, self, origin=ops.__file__)

    def exec_module(self, module: ModuleType) -> None:
        """Give the module its ops, each looked up at its first use."""
        module.__doc__ = ops.__doc__
        module.__getattr__ = _op_getter(module)
        module.__dir__ = lambda: sorted({*module.__dict__, *ops.OPS})


def _op_getter(module: ModuleType) -> Callable[[str], Callable]:
    def get_op(name: str) -> Callable:
        # inspect, pickle and doctest probe modules for underscore names, and must hear that there are none.
        if name.startswith('_'):
            raise AttributeError(f'module {MODULE!r} has no attribute {name!r}')
        op = ops.find_op(name)
        setattr(module, name, op)
        return op

    return get_op


def install_finder() -> None:
    """Append the finder to ``sys.meta_path``, once."""
    if not any(isinstance(finder, TorchvisionOpsFinder) for finder in sys.meta_path):
        sys.meta_path.append(TorchvisionOpsFinder())


def ops_backend() -> Literal['compiled', 'torchvision'] | None:
    """Say who serves mmcv's ops: its compiled module, or torchvision; None where mmcv is not installed.

    Looks for the files only: neither mmcv nor torchvision is imported.
    """
    mmcv = importlib.util.find_spec('mmcv')
    if mmcv is None:
        return None
    for finder in sys.meta_path:
        if isinstance(finder, TorchvisionOpsFinder):
            continue
        if finder.find_spec(MODULE, mmcv.submodule_search_locations):
            return 'compiled'
    return 'torchvision'
