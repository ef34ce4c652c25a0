"""The name of an upstream config and a size go in, a config with ConvNeXt comes out."""

import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS

from convnext_dense import configs
from convnext_dense.compat.errors import UserError
from convnext_dense.configs import model_scope
from convnext_dense.swap.changes import Changes, Place, apply, at, dotted, kind
from convnext_dense.swap.channels import Pair, channel_changes, find_backbone, normalization_changes, pair_maps
from convnext_dense.swap.maps import STRIDES, backbone_maps
from convnext_dense.swap.proof import in_words, prove
from convnext_dense.swap.recipes import TASKS, find_arch, find_recipe, find_weights
from convnext_dense.swap.training import checkpoint_changes, import_changes, optimizer_changes, schedule_changes
from convnext_dense.swap.upstream import config_folder, find_config, read_config
from convnext_dense.swap.writing import check_writable, relative_path, save, write_config
from convnext_dense.train import screen
from convnext_dense.train.screen import quiet
from convnext_dense.variants import channels
from convnext_dense.weights.sources import check_source

TEACHER = 'teacher_config'


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
        base = self.base if '::' in self.base else relative_path(self.base, folder)
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
    proof: bool = True,
) -> None:
    """Exchange the backbone of a config, prove that the new one runs, and write it.

    Args:
        config: As in :func:`swap_backbone`.
        arch: As there.
        in22k: As there.
        v2: As there.
        weights: As there.
        out: The file to write; by default the config is printed.
        proof: Take a training step and predict on drawn images.

    Raises:
        UserError: As :func:`swap_backbone`; or the file is there already or cannot be written; or the new config does
            not run. Nothing is written then.
    """
    if out is not None:
        check_writable(Path(out))
    swap = swap_backbone(config, arch, in22k, v2, weights)
    notes = list(swap.notes)
    if proof:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, 'config.py')
            save(swap.text(folder), file)
            proven = prove(file)
        if proven.without_gradient:
            swap.changes['find_unused_parameters',] = True
        notes += proven.describe()
    if out is None:
        print(swap.text(), end='')
    else:
        save(swap.text(Path(out).parent), Path(out))
        notes.append(f'written: {out}')
    screen.tell(*notes)


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
    if weights:
        check_source(weights)
    base, file = find_config(str(config))
    cfg = read_config(file)
    check_task(cfg, base)
    task, recipe = TASKS[cfg.default_scope], find_recipe(cfg.default_scope, arch, in22k, v2)
    path = find_backbone(cfg.model)
    owner = at(cfg, path)
    with model_scope(cfg), quiet():
        pairs = pair_maps(owner, backbone_maps(owner.backbone))
        backbone = backbone_config(arch, v2, pairs, recipe.drop_path_rate, weights)
        changes = import_changes(cfg, kind(owner.backbone)) | model_changes(cfg, path, pairs, backbone)
        model = apply(cfg, changes).model
        changes |= optimizer_changes(cfg, task.constructor, recipe, lambda: names_outside(model, path))
        changes |= schedule_changes(cfg) | checkpoint_changes(cfg)
    title = f'{file.stem} with ConvNeXt{"-V2" * v2}-{arch}'
    return Swap(base, title, changes, describe(cfg, owner, pairs, changes))


def check_task(cfg: Config, name: str) -> None:
    """Raise a :class:`UserError` where a config is none of a detector or a segmentor."""
    scope, model = cfg.get('default_scope'), cfg.get('model')
    configs.require_library(scope)
    if scope not in TASKS or not isinstance(model, dict):
        raise UserError(
            f'{name} is no config of a detector or a segmentor: it needs a model, and default_scope mmdet or mmseg.'
        )


def model_changes(cfg: Config, path: Place, pairs: Sequence[Pair], backbone: dict) -> Changes:
    """Return what the model must change for a new backbone.

    Args:
        cfg: The upstream config.
        path: Where the model with the backbone is in it.
        pairs: The old backbone's maps and what takes their place.
        backbone: The new one's config.

    Raises:
        UserError: Neck or heads cannot be fitted by rule.
    """
    owner = at(cfg, path)
    changes = {(*path, 'backbone'): backbone}
    if owner.get('pretrained'):
        changes[(*path, 'pretrained')] = None
    for place in (path[:length] for length in range(1, len(path) + 1)):
        if holds_checkpoint(at(cfg, place)):
            changes[(*place, 'init_cfg')] = None
    changes |= teacher_changes(cfg) | channel_changes(owner, path, pairs, channels(backbone['arch']))
    return changes | normalization_changes(cfg, path)


def teacher_changes(cfg: Config) -> Changes:
    """Return the place of a teacher's config that upstream looks for from its own root, as LD does."""
    name, folder = cfg.model.get(TEACHER), config_folder(cfg.default_scope)
    if not isinstance(name, str) or Path(name).is_file() or folder is None:
        return {}
    file = folder.parent / name
    return {('model', TEACHER): str(file)} if file.is_file() else {}


def names_outside(model_cfg: ConfigDict, path: Place) -> Iterable[str]:
    """Build a model and return the names of its parameters outside of the backbone."""
    with in_words(f'{kind(model_cfg)} cannot be built with this backbone'):
        model = MODELS.build(model_cfg)
    backbone = dotted((*path[1:], 'backbone', ''))
    return [name for name, _ in model.named_parameters() if not name.startswith(backbone)]


def holds_checkpoint(model_cfg: ConfigDict) -> bool:
    """Tell whether a whole model, and with it the old backbone, starts from a checkpoint."""
    init_cfg = model_cfg.get('init_cfg') if isinstance(model_cfg, dict) else None
    return isinstance(init_cfg, dict) and init_cfg.get('type') == 'Pretrained'


def backbone_config(arch: str, v2: bool, pairs: Sequence[Pair], drop_path_rate: float, weights: str) -> dict:
    """Return the config of the new backbone; what is as by default is left out."""
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


def describe(cfg: Config, owner: ConfigDict, pairs: Sequence[Pair], changes: Changes) -> list[str]:
    """Return what a user may want to know of the changes, a line each."""
    strides = [(old.stride, STRIDES[stage]) for old, stage in pairs if stage is not None]
    notes = [
        f'backbone: {kind(owner.backbone)} -> ConvNeXt, maps at strides {", ".join(str(new) for _, new in strides)}'
    ]
    for path, value in changes.items():
        if str(path[-1]).endswith(('in_channels', TEACHER)):
            notes.append(f'{dotted(path)}: {at(cfg, path)} -> {value}')
    if coarser := [(old, new) for old, new in strides if old < new]:
        notes.append(
            f'the old backbone was dilated: its last map had stride {coarser[-1][0]}, now {coarser[-1][1]}; heads '
            'without a pyramid (UPerNet has one) see coarser maps'
        )
    if new := changes.get(('optim_wrapper',)):
        old, rate = cfg.optim_wrapper.get('optimizer') or {}, new['paramwise_cfg']['decay_rate']
        notes.append(
            f'optimizer: {old.get("type")}, lr {old.get("lr")} -> {new["optimizer"]["type"]}, '
            f'lr {new["optimizer"]["lr"]:g}, {new["constructor"]} {rate:g}'
        )
    notes += [f'{dotted(path[-2:])}: {value}' for path, value in changes.items() if 'data_preprocessor' in path]
    for path in changes:
        if path[-1] in ('load_from', 'init_cfg'):
            file = at(cfg, path) if path[-1] == 'load_from' else at(cfg, path).checkpoint
            notes.append(f'{dotted(path)}: {file} holds another backbone, and is not loaded')
    return notes
