"""An upstream model and its backbone's maps go in; what its neck or heads must change for ConvNeXt's maps comes out."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mmengine.config import Config

from convnext_dense.compat.errors import UserError
from convnext_dense.swap.changes import Changes, Place, at, dotted, kind
from convnext_dense.swap.maps import Map, stages_for

CHANNEL_KEYS = ('in_channels', 'c1_in_channels')  # of necks and heads, for maps that come from the backbone
GENERATE_HEAD = 'kernel_generate_head'  # K-Net's head within a head, which sees the backbone's maps
TIED_HEADS = ('rpn_head', 'roi_head', 'bbox_head')  # made for one stride; the others fit any maps
PASSES_MAPS = ('JPU',)  # necks that give the backbone's maps to the auxiliary head
LAST_ALONE = ('EncHead',)  # heads that take several maps and look at the last, unless told by `add_lateral`
PASSES_ON = ('SSDNeck',)  # necks that give the backbone's maps on, before maps of their own
FIXED_PLACES = ('NASFCOS_FPN',)  # necks that look for maps at places of their own, whatever start_level says
NORMALIZATION = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True)  # of all weights


class Pair(NamedTuple):
    """A map of the old backbone, and ConvNeXt's stage in its place; None where nothing looks at it."""

    old: Map
    stage: int | None


def find_backbone(model: Mapping, path: Place = ('model',)) -> Place:
    """Return the path of the model that has the backbone: the model itself, or the detector inside of a wrapper.

    Raises:
        UserError: There is none, or there are several.
    """
    found = list(backbone_owners(model, path))
    if len(found) == 1:
        return found[0]
    if not found:
        raise UserError(f'{kind(model)} has no `backbone` in its config: there is nothing to exchange.')
    raise UserError(
        f'{kind(model)} has several backbones, in {", ".join(map(dotted, found))}: exchange them by hand, as the '
        'README shows.'
    )


def backbone_owners(node: Any, path: Place) -> Iterator[Place]:
    """Yield the paths of all dicts with a backbone."""
    if isinstance(node, Mapping):
        if isinstance(node.get('backbone'), Mapping) and 'type' in node['backbone']:
            yield path
        children = [(key, child) for key, child in node.items() if key != 'backbone']
    else:
        children = list(enumerate(node)) if isinstance(node, (list, tuple)) else []
    for key, child in children:
        yield from backbone_owners(child, (*path, key))


def pair_maps(owner: Mapping, maps: Sequence[Map]) -> list[Pair]:
    """Return the maps of a model's backbone with what takes their place.

    A map that nothing looks at is left out: its norm would get no gradient, and training on several GPUs would stop.

    Args:
        owner: The model that has the backbone.
        maps: What the backbone gives.

    Raises:
        UserError: They are no pyramid like ConvNeXt's.
    """
    stages, used = stages_for(maps, kind(owner['backbone'])), used_places(owner, len(maps))
    return [Pair(maps[place], stages[place] if place in used else None) for place in range(len(maps))]


def used_places(owner: Mapping, num_maps: int) -> set[int]:
    """Return the places of the backbone's maps that neck or heads look at."""
    neck = first(owner.get('neck'))
    if neck:
        if isinstance(neck.get('in_channels'), int):
            return {num_maps - 1}
        return set(range(0 if kind(neck) in FIXED_PLACES else neck.get('start_level', 0), num_maps))
    used: set[int] = set()
    for _, head in channel_takers(owner):
        places = head.get('in_index', range(num_maps) if isinstance(head['in_channels'], (list, tuple)) else -1)
        places = [places] if isinstance(places, int) else places
        looks_at_all = kind(head) not in LAST_ALONE or head.get('add_lateral')
        used.update(place % num_maps for place in (places if looks_at_all else places[-1:]))
        used.update([0] if 'c1_in_channels' in head else [])
    return used


def channel_changes(owner: Mapping, path: Place, pairs: Sequence[Pair], widths: Sequence[int]) -> Changes:
    """Return the channels that the neck takes, or where there is none, the heads; and where they find their maps.

    Args:
        owner: The model that has the backbone.
        path: Where it is in the config.
        pairs: The old maps and what takes their place.
        widths: The channels of ConvNeXt's stages.

    Raises:
        UserError: Neck or heads take other channels than the backbone gives.
    """
    changes = {}
    for taker, node in channel_takers(owner):
        for key in CHANNEL_KEYS:
            if key in node:
                place = (*path, *taker, key)
                changes[place] = fit_channels(node[key], pairs, widths, dotted(place))
        changes |= {(*path, *taker, key): value for key, value in place_changes(node, pairs).items()}
        if kind(node) in PASSES_ON:
            fitted = changes[(*path, *taker, 'in_channels')]
            given = type(fitted)((*fitted, *node['out_channels'][len(fitted) :]))
            changes |= {(*path, *taker, 'out_channels'): given, (*path, 'bbox_head', 'in_channels'): given}
    if not changes:
        raise UserError(
            f'{kind(owner)} has no neck, and its heads are made for the maps of {kind(owner["backbone"])}. Choose a '
            'config of the same method with an FPN.'
        )
    return changes


def fit_channels(given: int | Sequence[int], pairs: Sequence[Pair], widths: Sequence[int], name: str) -> Any:
    """Return the channels in the place of given ones.

    A number is looked up among the old maps' channels, so that the order of a list may be any.

    Args:
        given: Of the old maps.
        pairs: The old maps and what takes their place.
        widths: The channels of ConvNeXt's stages.
        name: Of the setting, for the message.

    Raises:
        UserError: A number is none of the old maps' channels.
    """
    stages = {old.channels: stage for old, stage in pairs if stage is not None}
    several = not isinstance(given, int)
    if several and list(given) == [old.channels for old, _ in pairs]:
        return type(given)(widths[stage] for _, stage in pairs if stage is not None)
    skipped = {old.channels for old, stage in pairs if stage is None} if several else set()
    taken = [width for width in (given if several else [given]) if width not in skipped - stages.keys()]
    if unknown := [width for width in taken if width not in stages]:
        raise UserError(
            f'{name} is {given}, but the backbone gives no maps of {", ".join(map(str, unknown))} channels. This '
            'config is too special to be changed by rule.'
        )
    fitted = [widths[stages[width]] for width in taken]
    return type(given)(fitted) if several else fitted[0]


def place_changes(taker: Mapping, pairs: Sequence[Pair]) -> dict[str, Any]:
    """Return what says where a neck or a head finds its maps, where some were left out."""
    used = [place for place, pair in enumerate(pairs) if pair.stage is not None]
    if len(used) == len(pairs):
        return {}
    if 'start_level' in taker:
        places = {'start_level': 0}
        if taker.get('end_level', -1) > 0:
            places['end_level'] = taker['end_level'] - taker['start_level']
        return places
    index = taker.get('in_index')
    if index is None:
        return {}
    if isinstance(index, int):
        return {'in_index': used.index(index % len(pairs))}
    return {'in_index': [used.index(place % len(pairs)) for place in index if place % len(pairs) in used]}


def channel_takers(owner: Mapping) -> Iterator[tuple[Place, Mapping]]:
    """Yield path and config of everything that sees the backbone's maps, relative to the model that has it."""
    neck = owner.get('neck')
    if neck:
        yield (('neck', 0) if isinstance(neck, (list, tuple)) else ('neck',)), first(neck)
        names = ['auxiliary_head'] if kind(first(neck)) in PASSES_MAPS else []
    else:
        names = [key for key, value in owner.items() if key.endswith('_head') and value and key not in TIED_HEADS]
    for name in names:
        heads = owner[name]
        for index, head in enumerate(heads if isinstance(heads, (list, tuple)) else [heads]):
            place = (name,) if head is heads else (name, index)
            inner = head.get(GENERATE_HEAD)
            if inner or 'in_channels' in head:
                yield ((*place, GENERATE_HEAD), inner) if inner else (place, head)


def first(node: Any) -> Any:
    """Return the first of several modules in a row, or the only one."""
    return node[0] if isinstance(node, (list, tuple)) else node


def normalization_changes(cfg: Config, path: Place) -> Changes:
    """Return the mean and deviation of images that the weights of ConvNeXt expect, where upstream has others.

    Args:
        cfg: The upstream config.
        path: Where the model with the backbone is in it; the data preprocessor may be that of a model around it, or
            the whole config's.
    """
    for owner in (path, path[:1], ()):
        place, node = (*owner, 'data_preprocessor'), at(cfg, owner).get('data_preprocessor')
        while node and 'data_preprocessor' in node:  # of semi-supervised models, one within another
            place, node = (*place, 'data_preprocessor'), node['data_preprocessor']
        if node:
            return {(*place, key): value for key, value in NORMALIZATION.items() if node.get(key) != value}
    return {}
