"""Exchange the backbone of a config for a ConvNeXt, and write the new config after it was proven to run."""

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path as File
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS

from convnext_dense.configs import config_folder, model_scope
from convnext_dense.swap.changes import Changes, Path, apply, at, dotted, type_name
from convnext_dense.swap.fit import Pair, fit_normalization, fit_takers, pair_maps
from convnext_dense.swap.proof import explain_failure, prove
from convnext_dense.swap.read import STRIDES, backbone_maps, find_config, find_owner, read_config
from convnext_dense.swap.recipe import (
    find_arch,
    find_recipe,
    find_weights,
    fit_checkpoints,
    fit_imports,
    fit_optimizer,
    fit_schedules,
)
from convnext_dense.swap.write import check_writable, config_text, relative_path, save
from convnext_dense.train.screen import quiet, tell
from convnext_dense.variants import channels
from convnext_dense.weights.sources import check_source

TEACHER = 'teacher_config'


@dataclass(frozen=True)
class Swap:
    """A config whose backbone is exchanged.

    Attributes:
        base: The old config: a file, or ``mmdet::FOLDER/NAME.py``.
        title: The first line of the new config's docstring.
        recipe: Where drop path and learning rates come from, a sentence of the docstring.
        changes: The changed values.
        notes: What a user may want to know about them, a line each.
    """

    base: str
    title: str
    recipe: str
    changes: Changes
    notes: Sequence[str]

    def text(self, folder: str | os.PathLike = '.') -> str:
        """Return the text of the new config, for a file in ``folder``."""
        base = self.base if '::' in self.base else relative_path(self.base, folder)
        docstring = f'{self.title}.\n\nData, schedule, neck and heads are those of {base}.\n{self.recipe}\n'
        return config_text(docstring, base, self.changes)


def write_swap(
    config: str | os.PathLike, *arguments: Any, out: str | os.PathLike | None = None, proof: bool = True, **options: Any
) -> None:
    """Exchange the backbone of a config, prove that the new one runs, and write it.

    Args:
        config: The old config.
        *arguments: Size and weights of the ConvNeXt; see :func:`swap_backbone`.
        out: The file to write; by default the config is printed.
        proof: Take a training step and predict on drawn images first.
        **options: Like ``arguments``.

    Raises:
        UserError: The backbone cannot be exchanged, the file exists or cannot be written, or the new config does not
            run. Nothing is written then.
    """
    if out is not None:
        check_writable(File(out))
    swap = swap_backbone(config, *arguments, **options)
    notes = list(swap.notes)
    if proof:
        with tempfile.TemporaryDirectory() as folder:
            file = File(folder, 'config.py')
            save(swap.text(folder), file)
            proven = prove(file)
        if proven.without_gradient:
            swap.changes['find_unused_parameters',] = True
        notes += proven.notes()
    if out is None:
        print(swap.text(), end='')
    else:
        save(swap.text(File(out).parent), File(out))
        notes.append(f'written: {out}')
    tell(*notes)


def swap_backbone(
    config: str | os.PathLike,
    arch: str = 'tiny',
    in22k: bool = False,
    v2: bool = False,
    weights: str | None = None,
) -> Swap:
    """Find out what a config must change to have a ConvNeXt as its backbone.

    Data, schedule, neck and heads stay those of the config.

    Args:
        config: A config file; ``mmdet::FOLDER/NAME.py`` or ``mmseg::FOLDER/NAME.py``; or FOLDER/NAME.py of either.
        arch: The size, such as 't' or 'tiny'.
        in22k: Start from ImageNet-22k weights.
        v2: ConvNeXt V2.
        weights: Initial weights instead of the published ones; '' for random ones.

    Raises:
        UserError: The config, the size or the weights do not exist, or no rule fits the model to a ConvNeXt.
    """
    arch = find_arch(arch)
    weights = find_weights(arch, in22k, v2) if weights is None else weights
    if weights:
        check_source(weights)
    base, file = find_config(str(config))
    cfg = read_config(file)
    recipe = find_recipe(cfg.default_scope, arch, in22k, v2)
    path = find_owner(cfg.model)
    owner = at(cfg, path)
    with model_scope(cfg), quiet():
        pairs = pair_maps(owner, backbone_maps(owner.backbone))
        backbone = backbone_config(arch, v2, pairs, recipe.drop_path_rate, weights)
        changes = fit_imports(cfg, type_name(owner.backbone)) | fit_model(cfg, path, pairs, backbone)
        model = apply(cfg, changes).model
        changes |= fit_optimizer(cfg, recipe, lambda: names_outside(model, path))
        changes |= fit_schedules(cfg) | fit_checkpoints(cfg)
    title = f'{file.stem} with ConvNeXt{"-V2" if v2 else ""}-{arch}'
    nearest = '' if recipe.arch == arch else ', the nearest size with a recipe'
    source = f'Drop path and learning rates follow {recipe.leaf}{nearest}.'
    notes = [*model_notes(cfg, owner, pairs, changes), *run_notes(cfg, changes)]
    return Swap(base, title, source, changes, notes)


def backbone_config(arch: str, v2: bool, pairs: Sequence[Pair], drop_path_rate: float, weights: str) -> dict:
    """Return the config of the new backbone, without settings that have their default."""
    cfg = dict(_delete_=True, type='ConvNeXt', arch=arch)
    if v2:
        cfg['grn'] = True
    stages = tuple(stage for _, stage in pairs if stage is not None)
    if stages != tuple(range(len(STRIDES))):
        cfg['out_indices'] = stages
    cfg['drop_path_rate'] = drop_path_rate
    if weights:
        cfg['init_cfg'] = dict(type='Pretrained', checkpoint=weights)
    return cfg


def fit_model(cfg: Config, path: Path, pairs: Sequence[Pair], backbone: dict) -> Changes:
    """Return what the model must change for a new backbone; ``path`` is that of the model that has it.

    Raises:
        UserError: No rule fits neck or heads.
    """
    owner = at(cfg, path)
    changes: Changes = {(*path, 'backbone'): backbone}
    if owner.get('pretrained'):
        changes[(*path, 'pretrained')] = None
    for length in range(1, len(path) + 1):
        if holds_checkpoint(at(cfg, path[:length])):
            changes[(*path[:length], 'init_cfg')] = None
    changes |= find_teacher(cfg) | fit_takers(owner, path, pairs, channels(backbone['arch']))
    return changes | fit_normalization(cfg, path)


def holds_checkpoint(model_cfg: ConfigDict) -> bool:
    """Tell whether a whole model, and with it the old backbone, starts from a checkpoint."""
    init_cfg = model_cfg.get('init_cfg') if isinstance(model_cfg, dict) else None
    return isinstance(init_cfg, dict) and init_cfg.get('type') == 'Pretrained'


def find_teacher(cfg: Config) -> Changes:
    """Return the file of a teacher's config (LD), which MMDetection looks for in a clone of its repository."""
    name, folder = cfg.model.get(TEACHER), config_folder(cfg.default_scope)
    if not isinstance(name, str) or File(name).is_file() or folder is None:
        return {}
    file = folder.parent / name
    return {('model', TEACHER): str(file)} if file.is_file() else {}


def names_outside(model_cfg: ConfigDict, path: Path) -> Iterable[str]:
    """Build a model and return the names of its parameters outside the backbone."""
    with explain_failure(f'{type_name(model_cfg)} cannot be built with this backbone'):
        model = MODELS.build(model_cfg)
    backbone = dotted((*path[1:], 'backbone', ''))
    return [name for name, _ in model.named_parameters() if not name.startswith(backbone)]


def model_notes(cfg: Config, owner: ConfigDict, pairs: Sequence[Pair], changes: Changes) -> Iterator[str]:
    """Yield what a user may want to know about the changed model, a line each."""
    strides = [(old.stride, STRIDES[stage]) for old, stage in pairs if stage is not None]
    maps = ', '.join(str(new) for _, new in strides)
    yield f'backbone: {type_name(owner.backbone)} -> ConvNeXt, maps at strides {maps}'
    for path, value in changes.items():
        if str(path[-1]).endswith(('in_channels', TEACHER)):
            yield f'{dotted(path)}: {at(cfg, path)} -> {value}'
    if coarser := [(old, new) for old, new in strides if old < new]:
        old, new = coarser[-1]
        yield (
            f'the old backbone was dilated: its last map had stride {old}, now {new}; heads without a pyramid (UPerNet '
            'has one) see coarser maps'
        )


def run_notes(cfg: Config, changes: Changes) -> Iterator[str]:
    """Yield what a user may want to know about the changed training, a line each."""
    if wrapper := changes.get(('optim_wrapper',)):
        old, new = cfg.optim_wrapper.get('optimizer') or {}, wrapper['optimizer']
        yield (
            f'optimizer: {old.get("type")}, lr {old.get("lr")} -> {new["type"]}, lr {new["lr"]:g}, '
            f'{wrapper["constructor"]} {wrapper["paramwise_cfg"]["decay_rate"]:g}'
        )
    for path, value in changes.items():
        if 'data_preprocessor' in path:
            yield f'{dotted(path[-2:])}: {value}'
        if path[-1] in ('load_from', 'init_cfg'):
            old = at(cfg, path)
            yield f'{dotted(path)}: {getattr(old, "checkpoint", old)} holds another backbone, and is not loaded'
