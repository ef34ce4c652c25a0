"""Find configs by path or name, read them, and walk through them."""

import contextlib
import difflib
import importlib.util
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import DefaultScope

from convnext_dense.compat import MMENGINE_CODE, Patch, add_patch
from convnext_dense.compat.errors import UserError

PACKAGE = 'convnext_dense'
LIBRARIES = {'mmdet': 'MMDetection', 'mmseg': 'MMSegmentation'}
PACKAGES = (PACKAGE, *LIBRARIES)  # whose configs have names
TASKS = ('det', 'seg')  # the folders of this package's configs
SPLITS = ('train', 'val', 'test')
RUNNER_KEYS = (
    'model', 'work_dir', 'train_cfg', 'val_cfg', 'test_cfg', 'auto_scale_lr', 'optim_wrapper', 'param_scheduler',
    'default_hooks', 'custom_hooks', 'data_preprocessor', 'load_from', 'resume', 'launcher', 'env_cfg',
    'log_processor', 'log_level', 'visualizer', 'default_scope', 'randomness', 'experiment_name', 'custom_imports',
    'runner_type', 'model_wrapper_cfg', 'tta_model', 'tta_pipeline',
    *(f'{split}_{part}' for split in SPLITS for part in ('dataloader', 'evaluator')),
)  # fmt: skip
CLASS_AGNOSTIC = ('rpn_head', 'semantic_head')  # their num_classes is not that of the data set's objects


def load_config(name: str | os.PathLike, options: Mapping | None = None, import_modules: bool = True) -> Config:
    """Read a config and merge ``options`` (dotted keys) into it.

    Args:
        name: A path or a name, see :func:`find_config`.
        options: Values that replace those of the file.
        import_modules: Import the modules that the config lists in ``custom_imports``.

    Raises:
        UserError: The file is missing, does not parse, or has a misspelt top-level key.
    """
    path, options = find_config(name), dict(options or {})
    try:
        cfg = Config.fromfile(path, import_custom_modules=import_modules)
        cfg.merge_from_dict(options)
    except UserError:
        raise
    except Exception as error:  # a config is code of the user's: anything may go wrong in it
        raise UserError(f'The config {path} cannot be read: {type(error).__name__}: {error}') from error
    check_keys(cfg, path, options)
    return cfg


def find_config(name: str | os.PathLike) -> Path:
    """Return the config file that a name means; ``.py`` may be left out.

    Args:
        name: A path; a config of this package, as ``det/cascade_convnext_t_coco`` or ``cascade_convnext_t_coco``; or
            one of an installed library, as ``dino/NAME.py`` or ``mmdet::dino/NAME.py``.

    Raises:
        UserError: There is no such file; the message names similar ones.
    """
    path = Path(name)
    package, separator, inner = path.as_posix().rpartition('::')
    require_library(package)
    roots = [root for each in ([package] if separator else PACKAGES) if (root := config_folder(each))]
    inner = inner.removeprefix('configs/')
    candidates = [root / folder / inner for root in roots for folder in ('', *TASKS)]
    for file in candidates if separator else (path, *candidates):
        for each in (file, Path(f'{file}.py')):
            if each.is_file():
                return each
    if path.is_dir():
        raise UserError(f'{path} is a folder. Name a config file in it.')
    raise UserError(f'The config file {name} does not exist.{similar_configs(path.parent, inner, roots)}')


def similar_configs(folder: Path, name: str, roots: Iterable[Path]) -> str:
    """Return a question that lists configs of a similar name in the folder or the roots, or nothing."""
    known = [str(file) for file in folder.glob('*.py')]
    known += [file.relative_to(root).as_posix() for root in roots for file in root.glob('*/*.py')]
    near = difflib.get_close_matches(f'{name.removesuffix(".py")}.py', known, n=2)
    return f' Did you mean {" or ".join(near)}?' if near else ''


def package_name(file: Path) -> str:
    """Return the name by which ``_base_`` inherits a config of this package or a library; for others, the path."""
    for package in PACKAGES:
        root = config_folder(package)
        if root and file.is_relative_to(root):
            return f'{package}::{file.relative_to(root).as_posix()}'
    return str(file)


def config_folder(package: str = PACKAGE) -> Path | None:
    """Return the folder of a package's configs, by default this one's; None where there is none.

    A wheel has the folder in ``.mim``; in a clone it stands beside the package.
    """
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or spec.origin is None:
        return None
    root = Path(spec.origin).parent
    return next((folder for folder in (root / '.mim/configs', root.parent / 'configs') if folder.is_dir()), None)


def check_keys(cfg: Config, path: Path, options: Mapping) -> None:
    """Raise where a top-level key is certainly a misspelt key of the runner; log a note where it may be one.

    A config may hold any variables, such as ``models``. A key is certainly misspelt if a letter inside of it is missing
    or too many, or its case is wrong, and the config does not use it elsewhere. That leaves variables alone that end
    otherwise, as plurals do.
    """
    given = {key.partition('.')[0] for key in options}
    for key in cfg:
        near = difflib.get_close_matches(key.lower(), RUNNER_KEYS, n=1, cutoff=0.9)
        if not near or key in RUNNER_KEYS:
            continue
        mentions = len(re.findall(rf'\b{key}\b', cfg.text))
        assignments = len(re.findall(rf'^{key}\s*=', cfg.text, re.MULTILINE))
        if mentions > assignments:  # a variable, which the config itself uses
            continue
        if is_misspelt(key, near[0]) and (assignments or key in given):
            raise UserError(f'The config {path} sets {key!r}, which nothing reads. Did you mean {near[0]!r}?')
        note = f'The config {path} sets {key!r}, which the runner does not read; the key that it reads is {near[0]!r}.'
        print_log(note, logger='current', level=logging.WARNING)


def is_misspelt(key: str, known: str) -> bool:
    """Tell whether a letter inside of a known key is missing or too many, or whether only the case differs.

    >>> is_misspelt('train_dataloder', 'train_dataloader'), is_misspelt('models', 'model')
    (True, False)
    """
    short, long = sorted((key, known), key=len)
    inside = range(1, len(long) - 1)
    return key.lower() == known or any(long[:i] + long[i + 1 :] == short for i in inside)


def walk(node, skip: tuple[str, ...] = ()) -> Iterator[dict]:
    """Yield every dict below and including a config node, but for what lies under the keys in ``skip``."""
    return (each for _, each in dicts(node, (), skip))


def dicts(node, path: tuple, skip: tuple[str, ...] = ()) -> Iterator[tuple[tuple, dict]]:
    """Yield the same as :func:`walk`, each with its path; ``path`` is that of the node."""
    children = enumerate(node) if isinstance(node, (list, tuple)) else ()
    if isinstance(node, dict):
        yield path, node
        children = [(key, child) for key, child in node.items() if key not in skip]
    for key, child in children:
        yield from dicts(child, (*path, key), skip)


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


def find_own_base(module: ModuleType) -> None:
    """Let ``_base_ = 'convnext_dense::det/NAME.py'`` name a config of this package."""
    upstream = module.Config._get_cfg_path

    def get_cfg_path(cfg_path: str, filename: str) -> tuple[str, str | None]:
        if cfg_path.startswith('convnext_dense::'):
            return str(find_config(cfg_path)), None  # no scope: the config names its library's itself
        return upstream(cfg_path, filename)

    module.Config._get_cfg_path = staticmethod(get_cfg_path)


def find_own_model(module: ModuleType) -> None:
    """Let inferencers find the models of this package's ``model-index.yml``, after those of their library."""
    upstream = module.BaseInferencer._load_model_from_metafile

    def load_model_from_metafile(inferencer: object, model: str) -> tuple[Config, str | None]:
        try:
            return upstream(inferencer, model)
        except (ValueError, FileNotFoundError):
            root = config_folder().parent
            for entry in module.BaseInferencer._get_models_from_metafile(str(root)):
                if entry['Name'].lower() == model.lower():
                    return Config.fromfile(root / entry['Config']), entry.get('Weights')
            raise

    module.BaseInferencer._load_model_from_metafile = load_model_from_metafile


NO_BASE = 'only packages of OpenMMLab can be named in _base_'
NO_MODEL = "an inferencer knows the models of its own library's index alone"
BASE_LINK, MODEL_LINK = MMENGINE_CODE + 'config/utils.py#L17', MMENGINE_CODE + 'infer/infer.py#L386'
add_patch(Patch('find-own-base', 'mmengine.config.config', NO_BASE, find_own_base, link=BASE_LINK))
add_patch(Patch('find-own-model', 'mmengine.infer.infer', NO_MODEL, find_own_model, link=MODEL_LINK))
