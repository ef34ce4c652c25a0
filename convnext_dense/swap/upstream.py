"""The name of a config goes in; its file, and what it says, come out."""

import difflib
import importlib
from importlib.util import find_spec
from pathlib import Path

from mmengine.config import Config

from convnext_dense.compat.errors import UserError
from convnext_dense.configs import LIBRARIES
from convnext_dense.swap.training import imported_modules

IN_PACKAGE = Path('.mim/configs')  # where the wheels have the configs


def find_config(name: str) -> tuple[str, Path]:
    """Return the name of a config for ``_base_`` in another one, and its file.

    Args:
        name: A file; ``mmdet::FOLDER/NAME.py`` or ``mmseg::...``; or FOLDER/NAME.py of either.

    Raises:
        UserError: There is no such file.
    """
    if Path(name).is_file():
        return name, Path(name)
    package, separator, inner = name.rpartition('::')
    roots = {each: config_folder(each) for each in LIBRARIES if not separator or each == package}
    roots = {each: root for each, root in roots.items() if root}
    for each, root in roots.items():
        if (root / inner).is_file():
            return f'{each}::{inner}', root / inner
    known = [file.relative_to(root).as_posix() for root in roots.values() for file in root.glob('*/*.py')]
    near = difflib.get_close_matches(inner, known, cutoff=0.5)
    hint = f' Did you mean {" or ".join(near)}?' if near else ''
    raise UserError(
        f'There is no config {name}. Give a file, or one of the configs that MMDetection and MMSegmentation are '
        f'installed with: mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py.{hint}'
    )


def config_folder(package: str) -> Path | None:
    """Return the folder of the configs that a library is installed with; None where it is not installed."""
    spec = find_spec(package)
    return Path(spec.origin).parent / IN_PACKAGE if spec and spec.origin else None


def all_configs() -> list[str]:
    """Return the names of all configs that the libraries are installed with."""
    return [
        f'{package}::{file.relative_to(root).as_posix()}'
        for package in LIBRARIES
        if (root := config_folder(package))
        for file in sorted(root.glob('*/*.py'))
        if file.parent.name != '_base_'
    ]


def read_config(file: Path) -> Config:
    """Read a config, and import those of its modules that are there: the changed config may not need the others.

    Raises:
        UserError: It cannot be read, or is one of the pure Python style.
    """
    try:
        is_pure_python = Config._is_lazy_import(str(file))
        cfg = Config.fromfile(file, import_custom_modules=False)
    except Exception as error:  # a config is code: anything may go wrong in it
        raise UserError(f'The config {file} cannot be read: {type(error).__name__}: {error}') from error
    if is_pure_python:
        raise UserError(
            f'{file} is a config of the pure Python style, which other configs cannot inherit by `_base_`. Give the '
            'text config of the same model.'
        )
    for module in imported_modules(cfg):
        try:
            importlib.import_module(module)
        except ImportError:
            pass
        except Exception as error:  # and in what it imports
            raise UserError(
                f'The config {file} imports {module}, which fails: {type(error).__name__}: {error}'
            ) from error
    return cfg
