"""Ask about installed packages through ``importlib.metadata``, with the names and results of ``mmengine.utils``.

MMEngine asks for every ``_base_ = 'mmdet::...'`` of a config. A package has the name that pip knows (``mmcv-lite``) or
the one that ``import`` knows (``mmcv``).
"""

import os.path as osp
from contextlib import suppress
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from importlib.util import find_spec

from .versions import PACKAGES


def is_installed(package: str) -> bool:
    """Tell whether pip knows the package, or Python finds a module of that name, by ``PYTHONPATH`` for example."""
    return _distribution(package) is not None or getattr(find_spec(package), 'origin', None) is not None


def get_installed_path(package: str) -> str:
    """Return the folder of the package's module, ``.../site-packages/mmcv`` for ``mmcv-lite``.

    Raises:
        PackageNotFoundError: Neither pip nor Python knows the package.
        RuntimeError: It is a namespace package, which has no folder of its own.
    """
    found = _distribution(package)
    if found is not None:
        module = package if osp.exists(found.locate_file(package)) else package2module(package)
        folder = str(found.locate_file(module))
        if osp.exists(folder):
            return folder
        package = module  # an editable install leaves its files elsewhere; Python knows where
    spec = find_spec(package)
    if spec is None:
        raise PackageNotFoundError(package)
    if spec.origin is None:
        raise RuntimeError(f'{package} is a namespace package, which is invalid for `get_installed_path`')
    return osp.dirname(spec.origin)


def package2module(package: str) -> str:
    """Return the module of a package whose name pip knows, ``mmseg`` for ``mmsegmentation``.

    Raises:
        PackageNotFoundError: pip does not know the package.
        ValueError: Its metadata does not name its modules.
    """
    found = _distribution(package)
    if found is None:
        raise PackageNotFoundError(package)
    modules = (found.read_text('top_level.txt') or '').split()
    if not modules:
        raise ValueError(f'can not infer the module name of {package}')
    return modules[0]


def _distribution(package: str) -> Distribution | None:
    """Return what pip knows of a package, or of the fork that is installed instead of it."""
    forks = [name for each in PACKAGES if package in each.names for name in each.names]
    for name in (package, *forks):
        with suppress(PackageNotFoundError):
            return distribution(name)
    return None
