"""An upstream config goes in; what must differ for a ConvNeXt comes out, as paths into the config and new values.

A path is a tuple of keys, and of indices into lists. A value that is a dict with ``_delete_`` replaces the old one,
another dict is merged into it, as in MMEngine's configs.
"""

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.config import Config
from torch import nn

from convnext_dense.errors import UserError
from convnext_dense.swap.maps import Map
from convnext_dense.swap.recipes import OPTIMIZER, Recipe

Path = tuple[str | int, ...]
Changes = dict[Path, Any]

CHANNEL_KEYS = ('in_channels', 'c1_in_channels')  # of necks and heads, for maps that come from the backbone
GENERATE_HEAD = 'kernel_generate_head'  # K-Net's head within a head, which sees the backbone's maps
NORMALIZATION = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True)  # of all weights
KEPT = ('clip_grad', 'accumulative_counts', 'loss_scale', 'dtype')  # of upstream's optimizer wrapper
IMPORT = 'convnext_dense'


def find_backbone(model: Mapping, path: Path = ('model',)) -> Path:
    """Return the path of the model that has the backbone: the model itself, or the detector inside of a wrapper.

    Raises:
        UserError: There is none, or there are several.
    """
    found = list(backbone_owners(model, path))
    if len(found) == 1:
        return found[0]
    kind = model.get('type')
    if not found:
        raise UserError(f'{kind} has no `backbone` in its config: there is nothing to exchange.')
    names = ', '.join('.'.join(map(str, owner)) for owner in found)
    raise UserError(f'{kind} has several backbones, in {names}: exchange them by hand, as the README shows.')


def backbone_owners(node: Any, path: Path) -> Iterator[Path]:
    """Yield the paths of all dicts with a backbone."""
    if isinstance(node, Mapping):
        if isinstance(node.get('backbone'), Mapping):
            yield path
        children = [(key, child) for key, child in node.items() if key != 'backbone']
    else:
        children = list(enumerate(node)) if isinstance(node, (list, tuple)) else []
    for key, child in children:
        yield from backbone_owners(child, (*path, key))


def used_maps(owner: Mapping, num_maps: int) -> list[int]:
    """Return the places of the backbone's maps that neck or heads look at.

    A map that nothing looks at is left out: its norm would get no gradient, and training on several GPUs would stop.
    """
    neck = first(owner.get('neck'))
    if neck:
        return (
            [num_maps - 1]
            if isinstance(neck.get('in_channels'), int)
            else list(range(neck.get('start_level', 0), num_maps))
        )
    used: set[int] = set()
    for _, head in channel_takers(owner):
        places = head.get('in_index', range(num_maps) if isinstance(head['in_channels'], (list, tuple)) else -1)
        used.update(place % num_maps for place in ([places] if isinstance(places, int) else places))
        used.update([0] if 'c1_in_channels' in head else [])
    return sorted(used)


def channel_changes(owner: Mapping, path: Path, old: Sequence[Map], used: Sequence[int], new: Sequence[int]) -> Changes:
    """Return the channels that the neck takes, or where there is none, the heads; and where they find their maps.

    A number is looked up among the old maps' channels; the order of a list may be any.

    Args:
        owner: The model that has the backbone.
        path: Where it is in the config.
        old: The old backbone's maps.
        used: The places of those that are used.
        new: The channels of the maps in their place, one for each of ``used``.

    Raises:
        UserError: Neck or heads take other channels than the backbone gives.
    """
    widths = {old[place].channels: width for place, width in zip(used, new, strict=True)}
    skipped = {old[place].channels for place in range(len(old)) if place not in used}
    changes = {}
    for taker, node in channel_takers(owner):
        for key in CHANNEL_KEYS:
            if key not in node:
                continue
            given = node[key]
            taken = [given] if isinstance(given, int) else [width for width in given if width not in skipped]
            if unknown := [width for width in taken if width not in widths]:
                raise UserError(
                    f'{".".join(map(str, (*path, *taker, key)))} is {given}, but the backbone gives no maps of '
                    f'{", ".join(map(str, unknown))} channels. This config is too special to be changed by rule.'
                )
            fitted = [widths[width] for width in taken]
            changes[(*path, *taker, key)] = fitted[0] if isinstance(given, int) else type(given)(fitted)
        if len(used) < len(old):
            changes |= {(*path, *taker, key): value for key, value in place_changes(node, len(old), used).items()}
    if not changes:
        raise UserError(
            f'{owner["type"]} has no neck, and its heads are made for the maps of {owner["backbone"]["type"]}. Choose '
            'a config of the same method with an FPN.'
        )
    return changes


def place_changes(taker: Mapping, num_maps: int, used: Sequence[int]) -> dict[str, Any]:
    """Return what says where a neck or a head finds its maps, after some were left out."""
    if 'start_level' in taker:
        places = {'start_level': 0}
        if taker.get('end_level', -1) > 0:
            places['end_level'] = taker['end_level'] - taker['start_level']
        return places
    index = taker.get('in_index')
    if index is None:
        return {}
    if isinstance(index, int):
        return {'in_index': used.index(index % num_maps)}
    return {'in_index': [used.index(place % num_maps) for place in index]}


def channel_takers(owner: Mapping) -> Iterator[tuple[Path, Mapping]]:
    """Yield path and config of everything that sees the backbone's maps, relative to the model that has it."""
    neck = owner.get('neck')
    if neck:
        yield (('neck', 0) if isinstance(neck, (list, tuple)) else ('neck',)), first(neck)
    passes_maps = neck and first(neck)['type'].endswith('JPU')
    for name in ['auxiliary_head'] if passes_maps else [] if neck else head_keys(owner):
        heads = owner[name]
        for index, head in enumerate(heads if isinstance(heads, (list, tuple)) else [heads]):
            place = (name,) if head is heads else (name, index)
            inner = head.get(GENERATE_HEAD)
            if inner or 'in_channels' in head:
                yield ((*place, GENERATE_HEAD), inner) if inner else (place, head)


def first(node: Any) -> Any:
    """Return the first of several modules in a row, or the only one."""
    return node[0] if isinstance(node, (list, tuple)) else node


def head_keys(owner: Mapping) -> list[str]:
    """Return the heads that can be fitted to any maps; a detector's RPN and RoI heads are made for one stride."""
    heads = [key for key, value in owner.items() if key.endswith('_head') and value]
    return [key for key in heads if key not in ('rpn_head', 'roi_head', 'bbox_head')]


def normalization_changes(cfg: Config, path: Path) -> Changes:
    """Return the mean and deviation of images that the weights of ConvNeXt expect, where upstream has others.

    Args:
        cfg: The upstream config.
        path: Where the model with the backbone is in it; the data preprocessor may be that of a model around it.
    """
    for owner in (path, path[:1]):
        place, node = (*owner, 'data_preprocessor'), at(cfg, owner).get('data_preprocessor')
        while node and 'data_preprocessor' in node:  # of semi-supervised models, one within another
            place, node = (*place, 'data_preprocessor'), node['data_preprocessor']
        if node:
            return {(*place, key): value for key, value in NORMALIZATION.items() if node.get(key) != value}
    return {}


def at(cfg: Config, path: Path) -> Any:
    """Return what is at a path of a config."""
    node = cfg
    for key in path:
        node = node[key]
    return node


def optimizer_changes(
    cfg: Config, constructor: str, recipe: Recipe, model: nn.Module, path: Path, num_images: int
) -> Changes:
    """Return an AdamW with decayed rates; its lr is upstream's where that has an AdamW too.

    Factors of single parameters are kept, those of the backbone aside, which the decay replaces.

    Args:
        cfg: The upstream config.
        constructor: The rule of the decay.
        recipe: Its rate.
        model: The changed model, for the names of its parameters.
        path: Where the model with the backbone is in the config.
        num_images: For which the recipe's lr is.
    """
    old = cfg.get('optim_wrapper')
    if old is None:
        return {}
    optimizer, changes = dict(OPTIMIZER), {}
    if old.optimizer.type == 'AdamW':
        optimizer.update({key: old.optimizer[key] for key in ('lr', 'weight_decay') if key in old.optimizer})
    else:
        changes['auto_scale_lr',] = dict(_delete_=True, enable=False, base_batch_size=num_images)
    paramwise = dict(decay_rate=recipe.decay_rate)
    backbone = '.'.join(map(str, (*path[1:], 'backbone')))
    others = [name for name, _ in model.named_parameters() if not name.startswith(f'{backbone}.')]
    keys = {
        key: {name: factor for name, factor in factors.items() if name in ('lr_mult', 'decay_mult')}
        for key, factors in ((old.get('paramwise_cfg') or {}).get('custom_keys') or {}).items()
        if any(key in name for name in others)
    }
    if keys:
        paramwise['custom_keys'] = keys
    changes['optim_wrapper',] = dict(
        _delete_=True,
        type=old.get('type', 'OptimWrapper'),
        constructor=constructor,
        paramwise_cfg=paramwise,
        optimizer=optimizer,
        **{key: old[key] for key in KEPT if old.get(key) is not None},
    )
    return changes


def schedule_changes(cfg: Config) -> Changes:
    """Return schedules whose lowest rate is a share of the highest one.

    Upstream's is absolute: it would lift the small rates of early layers, and level those of a smaller lr.
    """
    changes = {}
    schedules = cfg.get('param_scheduler')
    several = isinstance(schedules, (list, tuple))
    for index, schedule in enumerate(schedules if several else [schedules]):
        if not schedule or not schedule.get('eta_min') or not schedule['type'].endswith('LR'):
            continue
        new = {key: value for key, value in schedule.items() if key != 'eta_min'}
        if schedule['type'].startswith('Cosine'):
            new['eta_min_ratio'] = round(schedule['eta_min'] / cfg.optim_wrapper.optimizer.lr, 6)
        else:
            new['eta_min'] = 0.0
        changes['param_scheduler', index] = new
        if not several:
            changes = {('param_scheduler',): dict(_delete_=True, **new)}
    return changes


def run_changes(cfg: Config, backbone: str) -> Changes:
    """Return what the run needs: this package, and the check that checkpoints fit.

    Args:
        cfg: The upstream config.
        backbone: The old backbone's type; the package that it came from is not imported any more.
    """
    dropped = backbone.partition('.')[0] if '.' in backbone else ''
    given = (cfg.get('custom_imports') or {}).get('imports', [])
    imports = [
        name
        for name in ([given] if isinstance(given, str) else given)
        if name.partition('.')[0] != dropped or importlib.util.find_spec(dropped) is not None
    ]
    changes = {
        ('custom_imports',): dict(
            imports=[*(name for name in imports if name != IMPORT), IMPORT], allow_failed_imports=False
        ),
        ('custom_hooks',): [*(cfg.get('custom_hooks') or []), dict(type='CheckWeightsHook')],
    }
    if cfg.get('load_from'):
        changes['load_from',] = None
    return changes
