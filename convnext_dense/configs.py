"""Configs by name: the file that a user means goes in, a parsed config comes out."""

import contextlib
import difflib
import importlib.util
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import DefaultScope

from convnext_dense.compat.errors import UserError

LIBRARIES = {'mmdet': 'MMDetection', 'mmseg': 'MMSegmentation'}
SPLITS = ('train', 'val', 'test')
RUNNER_KEYS = (
    'model', 'work_dir', 'train_cfg', 'val_cfg', 'test_cfg', 'auto_scale_lr', 'optim_wrapper', 'param_scheduler',
    'default_hooks', 'custom_hooks', 'data_preprocessor', 'load_from', 'resume', 'launcher', 'env_cfg',
    'log_processor', 'log_level', 'visualizer', 'default_scope', 'randomness', 'experiment_name', 'custom_imports',
    'runner_type', 'model_wrapper_cfg', 'tta_model', 'tta_pipeline',
    *(f'{split}_{part}' for split in SPLITS for part in ('dataloader', 'evaluator')),
)  # fmt: skip
CLASS_AGNOSTIC = ('rpn_head', 'semantic_head')  # their num_classes is not that of the data set's objects


def load_config(file: str | os.PathLike, options: Mapping | None = None) -> Config:
    """Read a config file and merge ``options`` (dotted keys) into it.

    Raises:
        UserError: The file is missing, does not parse, or has a mistyped top-level key.
    """
    path = Path(file)
    if path.is_dir():
        raise UserError(f'{path} is a folder. Name a config file in it.')
    if not path.is_file():
        folder = path.parent if path.parent.is_dir() else Path('.')
        near = difflib.get_close_matches(path.name, [p.name for p in folder.glob('*.py')], cutoff=0.5)
        hint = f' Did you mean {" or ".join(str(folder / name) for name in near)}?' if near else ''
        raise UserError(f'The config file {path} does not exist.{hint}')
    try:
        cfg = Config.fromfile(path)
        if options:
            cfg.merge_from_dict(dict(options))
    except UserError:
        raise
    except Exception as error:  # a config is code of the user's: anything may go wrong in it
        raise UserError(f'The config {path} cannot be read: {type(error).__name__}: {error}') from error
    for key in cfg:
        near = difflib.get_close_matches(key, RUNNER_KEYS, n=1, cutoff=0.9)
        if near and key not in RUNNER_KEYS:
            raise UserError(f'The config {path} sets {key!r}, which nothing reads. Did you mean {near[0]!r}?')
    return cfg


def walk(node, skip: tuple[str, ...] = ()) -> Iterator[dict]:
    """Yield every dict below and including a config node, but for what lies under the keys in ``skip``."""
    children = node if isinstance(node, (list, tuple)) else ()
    if isinstance(node, dict):
        yield node
        children = [child for key, child in node.items() if key not in skip]
    for child in children:
        yield from walk(child, skip)


def require_library(scope: str | None) -> None:
    """Raise a :class:`UserError` where the library that a config builds on is not installed."""
    if scope in LIBRARIES and importlib.util.find_spec(scope) is None:
        raise UserError(
            f"The config needs {LIBRARIES[scope]}, which is not installed: pip install 'convnext-dense[mm]' "
            "(in a clone: pip install -e '.[mm]')."
        )


def model_scope(cfg: Config) -> contextlib.AbstractContextManager:
    """Return a context in which the names of a config mean those of its library; several configs may take turns."""
    return DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmengine'))


def config_folder() -> Path:
    """Return the folder of this package's own configs."""
    return Path(__file__).parents[1] / 'configs'
