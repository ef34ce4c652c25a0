"""Exchange the backbone of a config for a ConvNeXt, and write the new config after it was proven to run."""

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as File
from typing import Any

from mmengine.config import Config

from convnext_dense.compat.errors import UserError
from convnext_dense.compat.files import write_text
from convnext_dense.configs import Changes, apply, at, config_text, dotted, find_config, model_scope, nest, package_name
from convnext_dense.swap.fit import fit_model, match_maps
from convnext_dense.swap.proof import prove
from convnext_dense.swap.read import STRIDES, Map, backbone_maps, find_owner, read_config, type_name
from convnext_dense.swap.recipe import find_backbone, fit_optimizer, fit_run, fit_schedules
from convnext_dense.train.screen import quiet, tell

TOLD = ('model', 'data_preprocessor', 'load_from', 'sync_bn')  # whose changes get a note each


@dataclass(frozen=True)
class Swap:
    """A config whose backbone is exchanged."""

    base: str  # what the new config inherits: a file, or mmdet::FOLDER/NAME.py
    about: str  # what the new config says of itself: the backbone, and where its recipe comes from
    cfg: Config  # the old config
    changes: Changes  # the changed values
    notes: Sequence[str]  # what a user may want to know about them, a line each

    def text(self, folder: str | os.PathLike = '.') -> str:
        """Return the text of the new config, for a file in ``folder``."""
        base = self.base if '::' in self.base else relative_path(self.base, folder)
        return config_text(self.about, base, nest(self.cfg, self.changes))


def write_swap(
    config: str | os.PathLike, *arguments: Any, out: str | os.PathLike | None = None, proof: bool = True, **options: Any
) -> None:
    """Exchange the backbone of a config, prove that the new one runs, and write it.

    Args:
        config: The old config.
        *arguments: Backbone and weights; see :func:`swap_backbone`.
        out: The file to write; by default the config is printed.
        proof: Take a training step and predict on drawn images first.
        **options: Like ``arguments``.

    Raises:
        UserError: The backbone cannot be exchanged, the file exists or cannot be written, or the new config does not
            run. Nothing is written then.
    """
    if out is not None:
        check_new(File(out))
    swap = swap_backbone(config, *arguments, **options)
    notes = list(swap.notes)
    if proof:
        with tempfile.TemporaryDirectory() as folder:
            file = File(folder, 'config.py')
            write_text(swap.text(folder), file)
            proven = prove(file)
        notes.append(f'proven on drawn images: a training step (loss {proven.loss:.3g}) and a prediction')
        if silent := ', '.join(proven.without_gradient):
            swap.changes['find_unused_parameters',] = True
            notes.append(f'no gradient reaches {silent}, hence find_unused_parameters = True')
    if out is None:
        print(swap.text(), end='')
    else:
        write_text(swap.text(File(out).parent), File(out))
        notes.append(f'written: {out}')
    tell(*notes)


def swap_backbone(
    config: str | os.PathLike, arch: str = 'tiny', in22k: bool = False, v2: bool = False, weights: str | None = None
) -> Swap:
    """Find out what a config must change to have a ConvNeXt as its backbone; data, schedule, neck and heads stay.

    Args:
        config: A config file or the name of one, such as ``mmdet::FOLDER/NAME.py``.
        arch: The size, such as 't' or 'tiny'; or ``ladder:STEP``, a step of :func:`convnext_dense.ladder.steps`.
        in22k: Start from ImageNet-22k weights.
        v2: ConvNeXt V2.
        weights: Initial weights instead of the published ones; '' for random ones.

    Raises:
        UserError: The config, the size, the step or the weights do not exist, or no rule fits the model to a ConvNeXt.
    """
    file = find_config(config)
    cfg = read_config(file)
    backbone, recipe = find_backbone(cfg.default_scope, arch, in22k, v2, weights)
    path = find_owner(cfg.model)
    old = at(cfg, path).backbone
    with model_scope(cfg), quiet():
        maps = match_maps(at(cfg, path), backbone_maps(old))
        changes = fit_model(cfg, path, maps, backbone)
        changes |= fit_optimizer(cfg, recipe, apply(cfg, changes).model, path)
        changes |= fit_schedules(cfg) | fit_run(cfg, recipe, type_name(old))
    name = f'{backbone["type"]}{"-V2" if v2 else ""}-{backbone.get("arch") or backbone["step"]}'
    leaf = '/'.join(File(recipe.filename).parts[-2:])
    about = f'{file.stem} with {name}.\n\nDrop path and learning rates follow {leaf}.\n'
    return Swap(package_name(file), about, cfg, changes, list(describe(cfg, old, maps, changes)))


def describe(cfg: Config, old: Mapping, maps: Sequence[Map], changes: Changes) -> Iterator[str]:
    """Yield what a user may want to know about the changes, a line each; ``old`` is the backbone that goes."""
    strides = [(each.stride, STRIDES[each.stage]) for each in maps if each.stage is not None]
    for path, value in changes.items():
        if path[-1] == 'backbone':
            new = ', '.join(str(after) for _, after in strides)
            yield f'backbone: {type_name(old)} -> {value["type"]}, maps at strides {new}'
        elif path[0] in TOLD:
            yield f'{dotted(path)}: {at(cfg, path[:-1]).get(path[-1])} -> {value}'
    before, after = strides[-1]
    if before < after:
        yield (
            f'the old backbone was dilated: its last map had stride {before}, now {after}; heads without a pyramid '
            '(UPerNet has one) see coarser maps'
        )
    if wrapper := changes.get(('optim_wrapper',)):
        given, optimizer = cfg.optim_wrapper.get('optimizer') or {}, wrapper['optimizer']
        yield (
            f'optimizer: {given.get("type")}, lr {given.get("lr")} -> {optimizer["type"]}, lr {optimizer["lr"]:g}, '
            f'{wrapper["constructor"]} {wrapper["paramwise_cfg"]["decay_rate"]:g}'
        )


def relative_path(file: str | os.PathLike, folder: str | os.PathLike) -> str:
    """Return the path from a folder to a file, or the absolute path if they are on two drives or behind links.

    MMEngine resolves ``..`` both in the text of a path and on the disk, and both must lead to the file.
    """
    with contextlib.suppress(ValueError):  # two drives
        path = os.path.relpath(file, folder)
        if path == os.path.relpath(os.path.realpath(file), os.path.realpath(folder)):
            return File(path).as_posix()
    return File(file).absolute().as_posix()


def check_new(out: File) -> None:
    """Check that a path may be that of a new config."""
    if out.suffix != '.py':
        raise UserError(f'-o {out}: a config needs a name that ends in .py.')
    if os.path.lexists(out):
        raise UserError(f'{out} exists already. Choose another name with -o, or remove it.')
