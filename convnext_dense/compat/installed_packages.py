"""Ask about installed packages as ``mmengine.utils`` does, without ``pkg_resources``.

MMEngine asks for every ``_base_ = 'mmdet::...'`` of a config. A package has the name that pip knows (``mmcv-lite``) or
the one that ``import`` knows (``mmcv``).
"""

from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from os.path import dirname

from .versions import MODULES


def is_installed(package: str) -> bool:
    """Tell whether pip knows the package, or Python finds its module, by ``PYTHONPATH`` for example."""
    with suppress(PackageNotFoundError):
        distribution(package)
        return True
    return getattr(find_spec(find_module(package)), 'origin', None) is not None


def get_installed_path(package: str) -> str:
    """Return the folder of the package's module, ``.../site-packages/mmcv`` for ``mmcv-lite``.

    Raises:
        PackageNotFoundError: Python finds no such module.
        RuntimeError: It is a namespace package, which has no folder of its own.
    """
    spec = find_spec(find_module(package))
    if spec is None:
        raise PackageNotFoundError(package)
    if spec.origin is None:
        raise RuntimeError(f'{package} is a namespace package, which is invalid for `get_installed_path`')
    return dirname(spec.origin)


def find_module(package: str) -> str:
    """Return the module of a package: ``mmseg`` for ``mmsegmentation``, also where a fork is installed instead."""
    if package in MODULES:
        return MODULES[package]
    modules = None
    with suppress(PackageNotFoundError):
        modules = distribution(package).read_text('top_level.txt')
    return modules.split()[0] if modules else package
