"""The name of an upstream config and a size go in, a config with ConvNeXt comes out."""

import copy
import difflib
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, DefaultScope

from convnext_dense import runs
from convnext_dense.errors import UserError
from convnext_dense.swap.changes import (
    Changes,
    at,
    channel_changes,
    find_backbone,
    normalization_changes,
    optimizer_changes,
    run_changes,
    schedule_changes,
    used_maps,
)
from convnext_dense.swap.maps import STRIDES, Map, backbone_maps, stages_for
from convnext_dense.swap.proof import in_words, prove
from convnext_dense.swap.recipes import BATCH, TASKS, find_arch, find_recipe, find_weights
from convnext_dense.swap.writing import write_config
from convnext_dense.variants import channels

IN_PACKAGE = Path('.mim/configs')  # where the wheels have the configs


@dataclass(frozen=True)
class Swap:
    """A config whose backbone is exchanged.

    Attributes:
        base: The upstream config: a file, or ``mmdet::FOLDER/NAME.py``.
        title: What the new config says of itself.
        changes: Path in the config -> new value.
        notes: What was changed, a line each.
    """

    base: str
    title: str
    changes: Changes
    notes: Sequence[str]

    def text(self, folder: str | os.PathLike = '.') -> str:
        """Return the config's text, for a file in ``folder``."""
        base = self.base if '::' in self.base else os.path.relpath(self.base, folder)
        return write_config(
            f'{self.title}.\n\nData, schedule, neck and heads are those of {base}.\n', base, self.changes
        )


def write_swap(
    config: str | os.PathLike,
    arch: str = 'tiny',
    in22k: bool = False,
    v2: bool = False,
    weights: str | None = None,
    out: str | os.PathLike | None = None,
) -> None:
    """Exchange the backbone of a config, prove that the new one runs, and write it.

    Args:
        config: As in :func:`swap_backbone`.
        arch: As there.
        in22k: As there.
        v2: As there.
        weights: As there.
        out: The file to write; by default the config is printed.

    Raises:
        UserError: As :func:`swap_backbone`; or the file is there already; or the new config does not run. Nothing is
            written then.
    """
    if out is not None and Path(out).exists():
        raise UserError(f'{out} exists already. Choose another name with -o, or remove it.')
    swap = swap_backbone(config, arch, in22k, v2, weights)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, 'config.py')
        file.write_text(swap.text(folder))
        proof = prove(file)
    if proof.without_gradient:
        swap.changes['find_unused_parameters',] = True
    if out is None:
        print(swap.text(), end='')
    else:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        Path(out).write_text(swap.text(Path(out).parent))
    runs.tell(*swap.notes, *proof.describe(), *([f'written: {out}'] if out else []))


def swap_backbone(
    config: str | os.PathLike,
    arch: str = 'tiny',
    in22k: bool = False,
    v2: bool = False,
    weights: str | None = None,
) -> Swap:
    """Find out what a config must change of another one to have a ConvNeXt for a backbone.

    Data, schedule, neck and heads stay as they are upstream.

    Args:
        config: A config file; ``mmdet::FOLDER/NAME.py`` or ``mmseg::...``; or FOLDER/NAME.py of either.
        arch: Size, 't' or 'tiny'.
        in22k: Start from ImageNet-22k weights.
        v2: ConvNeXt V2.
        weights: Initial weights instead of the published ones; '' for none.

    Raises:
        UserError: The config or the size is not there, or its model is not one whose backbone can be exchanged by rule.
    """
    arch = find_arch(arch)
    weights = find_weights(arch, in22k, v2) if weights is None else weights
    base, file = find_config(str(config))
    cfg = read_config(file)
    scope = cfg.get('default_scope')
    runs.require_library(scope)
    if scope not in TASKS or not cfg.get('model'):
        raise UserError(
            f'{config} is no config of a detector or a segmentor: it needs a model, and default_scope mmdet or mmseg.'
        )
    recipe = find_recipe(scope, arch, in22k, v2)
    path = find_backbone(cfg.model)
    owner = at(cfg, path)
    with DefaultScope.overwrite_default_scope(scope):
        maps = backbone_maps(owner.backbone)
        used = used_maps(owner, len(maps))
        stages = tuple(stages_for(maps, owner.backbone.type)[place] for place in used)
        backbone = backbone_config(arch, v2, stages, recipe.drop_path_rate, weights)
        new = [channels(arch)[stage] for stage in stages]
        changes = {(*path, 'backbone'): backbone}
        changes |= channel_changes(owner, path, maps, used, new) | normalization_changes(cfg, path)
        if owner.get('pretrained'):
            changes[(*path, 'pretrained')] = None
        with in_words(cfg.model.type):
            model = MODELS.build(apply(cfg, changes).model)
        task = TASKS[scope]
        changes |= optimizer_changes(cfg, task.constructor, recipe, model, path, BATCH)
        changes |= schedule_changes(cfg) | run_changes(cfg, owner.backbone.type)
    title = f'{file.stem} with ConvNeXt{"-V2" * v2}-{arch}'
    return Swap(base, title, changes, describe(cfg, owner, [maps[place] for place in used], stages, changes))


def find_config(name: str) -> tuple[str, Path]:
    """Return the name of a config for ``_base_`` in another one, and its file.

    Raises:
        UserError: There is no such file.
    """
    if Path(name).is_file():
        return name, Path(name)
    package, separator, inner = name.rpartition('::')
    candidates = [package] if separator else list(runs.LIBRARIES)
    files = {each: package_configs(each) / inner for each in candidates if package_configs(each)}
    for each, file in files.items():
        if file.is_file():
            return f'{each}::{inner}', file
    known = [str(file.relative_to(root)) for root in map(package_configs, files) for file in root.glob('*/*.py')]
    near = difflib.get_close_matches(inner, known, cutoff=0.5)
    hint = f' Did you mean {" or ".join(near)}?' if near else ''
    raise UserError(
        f'There is no config {name}. Give a file, or one of the configs that MMDetection and MMSegmentation are '
        f'installed with: mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py.{hint}'
    )


def package_configs(package: str) -> Path | None:
    """Return the folder of the configs that a package is installed with; None where it is not installed."""
    spec = find_spec(package)
    return Path(spec.origin).parent / IN_PACKAGE if spec and spec.origin else None


def read_config(file: Path) -> Config:
    """Read a config without the packages that it imports, which the changed one may not need.

    Raises:
        UserError: It cannot be read, or is one of the pure Python style.
    """
    try:
        cfg = Config.fromfile(file, import_custom_modules=False)
    except Exception as error:  # a config is code: anything may go wrong in it
        raise UserError(f'The config {file} cannot be read: {type(error).__name__}: {error}') from error
    if 'read_base' in file.read_text():
        raise UserError(
            f'{file} is a config of the pure Python style, which other configs cannot inherit by `_base_`. '
            'Give the text config of the same model.'
        )
    return cfg


def backbone_config(arch: str, v2: bool, stages: tuple[int, ...], drop_path_rate: float, weights: str) -> dict:
    """Return the config of the new backbone; what is as by default is left out."""
    cfg = dict(_delete_=True, type='ConvNeXt', arch=arch)
    if v2:
        cfg['grn'] = True
    if stages != tuple(range(len(STRIDES))):
        cfg['out_indices'] = stages
    cfg['drop_path_rate'] = drop_path_rate
    if weights:
        cfg['init_cfg'] = dict(type='Pretrained', checkpoint=weights)
    return cfg


def apply(cfg: Config, changes: Changes) -> Config:
    """Return a copy of a config with changes that replace what they name."""
    cfg = copy.deepcopy(cfg)
    for (*parents, last), value in changes.items():
        if isinstance(value, dict):
            value = ConfigDict({key: child for key, child in value.items() if key != '_delete_'})
        at(cfg, parents)[last] = value
    return cfg


def describe(cfg: Config, owner: ConfigDict, maps: Sequence[Map], stages: Sequence[int], changes: Changes) -> list[str]:
    """Return what a user may want to know of the changes, a line each."""
    strides = ', '.join(str(STRIDES[stage]) for stage in stages)
    notes = [f'backbone: {owner.backbone.type} -> ConvNeXt, maps at strides {strides}']
    for path, value in changes.items():
        if isinstance(path[-1], str) and path[-1].endswith('in_channels'):
            notes.append(f'{".".join(map(str, path))}: {at(cfg, path)} -> {value}')
    coarser = [
        (old.stride, STRIDES[stage]) for old, stage in zip(maps, stages, strict=True) if old.stride < STRIDES[stage]
    ]
    if coarser:
        notes.append(
            f'the old backbone was dilated: its last map had stride {coarser[-1][0]}, now {coarser[-1][1]}; heads '
            'without a pyramid (UPerNet has one) see coarser maps'
        )
    old, new = cfg.get('optim_wrapper'), changes.get(('optim_wrapper',))
    if new:
        rate = new['paramwise_cfg']['decay_rate']
        notes.append(
            f'optimizer: {old.optimizer.type}, lr {old.optimizer.lr:g} -> AdamW, lr {new["optimizer"]["lr"]:g}, '
            f'{new["constructor"]} {rate:g}'
        )
    notes += [f'{path[-2]}.{path[-1]}: {value}' for path, value in changes.items() if 'data_preprocessor' in path]
    if ('load_from',) in changes:
        notes.append(f'load_from: {cfg.load_from} holds another backbone, and is not loaded')
    return notes
