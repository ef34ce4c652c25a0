"""An upstream model and its backbone's maps go in; what its neck or heads must change for ConvNeXt's maps comes out."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.config import Config

from convnext_dense.errors import UserError
from convnext_dense.swap.changes import Changes, Path, at, dotted, kind
from convnext_dense.swap.maps import Map

CHANNEL_KEYS = ('in_channels', 'c1_in_channels')  # of necks and heads, for maps that come from the backbone
GENERATE_HEAD = 'kernel_generate_head'  # K-Net's head within a head, which sees the backbone's maps
TIED_HEADS = ('rpn_head', 'roi_head', 'bbox_head')  # made for one stride; the others fit any maps
PASSES_MAPS = ('JPU',)  # necks that give the backbone's maps to the auxiliary head
FIXED_PLACES = ('NASFCOS_FPN',)  # necks that look for maps at places of their own, whatever start_level says
NORMALIZATION = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True)  # of all weights


def find_backbone(model: Mapping, path: Path = ('model',)) -> Path:
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
        if isinstance(neck.get('in_channels'), int):
            return [num_maps - 1]
        return list(range(0 if kind(neck) in FIXED_PLACES else neck.get('start_level', 0), num_maps))
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
                    f'{dotted((*path, *taker, key))} is {given}, but the backbone gives no maps of '
                    f'{", ".join(map(str, unknown))} channels. This config is too special to be changed by rule.'
                )
            fitted = [widths[width] for width in taken]
            changes[(*path, *taker, key)] = fitted[0] if isinstance(given, int) else type(given)(fitted)
        if len(used) < len(old):
            changes |= {(*path, *taker, key): value for key, value in place_changes(node, len(old), used).items()}
    if not changes:
        raise UserError(
            f'{kind(owner)} has no neck, and its heads are made for the maps of {kind(owner["backbone"])}. Choose a '
            'config of the same method with an FPN.'
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


def normalization_changes(cfg: Config, path: Path) -> Changes:
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
