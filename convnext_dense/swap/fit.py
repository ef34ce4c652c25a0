"""Fit a model's neck, heads and data preprocessor to ConvNeXt's feature maps."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mmengine.config import Config

from convnext_dense.compat.errors import UserError
from convnext_dense.swap.changes import Changes, Path, at, dotted, type_name
from convnext_dense.swap.read import Map, stages_for

CHANNEL_KEYS = ('in_channels', 'c1_in_channels')  # c1 is DeepLabV3+'s second map, the first of the backbone
TIED_HEADS = ('rpn_head', 'roi_head', 'bbox_head')  # without a neck they fit the stride of one backbone only
NORMALIZATION = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True)  # of all weights


class Rule(NamedTuple):
    """How a neck or head takes maps, where its ``in_channels``, ``in_index`` and ``start_level`` do not tell.

    Attributes:
        inner_head: The key of the head inside the head, which alone takes maps of the backbone.
        last_unless: The head is given several maps and uses the last one, unless this option is set.
        ignores_start_level: The neck finds its maps by places of its own.
        passes_on: The neck returns the backbone's maps too, so that their channels stand in its ``out_channels`` and
            in the ``in_channels`` of the ``bbox_head``.
        bypassed_by: The head that takes maps of the backbone although there is a neck.
    """

    inner_head: str = ''
    last_unless: str = ''
    ignores_start_level: bool = False
    passes_on: bool = False
    bypassed_by: str = ''


RULES = {
    'EncHead': Rule(last_unless='add_lateral'),
    'IterativeDecodeHead': Rule(inner_head='kernel_generate_head'),  # K-Net
    'JPU': Rule(bypassed_by='auxiliary_head'),
    'NASFCOS_FPN': Rule(ignores_start_level=True),
    'SSDNeck': Rule(passes_on=True),
}


class Taker(NamedTuple):
    """A neck or head that takes maps of the backbone: its path in the model, its config, and how it takes them."""

    path: Path
    cfg: Mapping
    rule: Rule


class Pair(NamedTuple):
    """A map of the old backbone, and the ConvNeXt stage that takes its place; None where nothing uses the map."""

    old: Map
    stage: int | None


def find_takers(owner: Mapping) -> Iterator[Taker]:
    """Yield everything that takes maps of a model's backbone: the first neck, or else the heads."""
    if owner.get('neck'):
        path, neck = next(modules(owner, 'neck'))
        rule = find_rule(neck)
        yield Taker(path, neck, rule)
        names = [rule.bypassed_by] if rule.bypassed_by in owner else []
    else:
        names = [key for key in owner if key.endswith('_head') and key not in TIED_HEADS]
    for name in names:
        for path, head in modules(owner, name):
            yield from head_takers(path, head)


def head_takers(path: Path, head: Mapping) -> Iterator[Taker]:
    """Yield what takes maps of the backbone in a head: the head itself, the one inside it, or nothing."""
    rule = find_rule(head)
    if rule.inner_head:
        path, head = (*path, rule.inner_head), head[rule.inner_head]
    if 'in_channels' in head:
        yield Taker(path, head, rule)


def find_rule(cfg: Mapping) -> Rule:
    """Return the rule of a neck or head; most types need none."""
    return RULES.get(type_name(cfg).rpartition('.')[2], Rule())


def modules(owner: Mapping, name: str) -> Iterator[tuple[Path, Mapping]]:
    """Yield path and config of a model's part, which may be missing, one module or a list of them."""
    part = owner[name] or ()
    if isinstance(part, (list, tuple)):
        yield from (((name, index), each) for index, each in enumerate(part))
    else:
        yield (name,), part


def pair_maps(owner: Mapping, maps: Sequence[Map]) -> list[Pair]:
    """Return the maps of a model's backbone, each with the ConvNeXt stage that takes its place.

    A map that neither neck nor heads use gets no stage: its norm would get no gradient, which stops training on
    several GPUs.

    Raises:
        UserError: The maps are not a pyramid like ConvNeXt's.
    """
    stages = stages_for(maps, type_name(owner['backbone']))
    used = set().union(*(used_places(taker, len(maps)) for taker in find_takers(owner)))
    return [
        Pair(old, stage if place in used else None) for place, (old, stage) in enumerate(zip(maps, stages, strict=True))
    ]


def used_places(taker: Taker, num_maps: int) -> set[int]:
    """Return which of the backbone's maps a neck or head uses, counted from the first map."""
    cfg, rule = taker.cfg, taker.rule
    start = 0 if rule.ignores_start_level else cfg.get('start_level', 0)
    default = -1 if isinstance(cfg.get('in_channels'), int) else range(start, num_maps)
    index = cfg.get('in_index', default)
    places = [index] if isinstance(index, int) else list(index)
    if rule.last_unless and not cfg.get(rule.last_unless):
        places = places[-1:]
    if 'c1_in_channels' in cfg:
        places.append(0)
    return {place % num_maps for place in places}


def fit_takers(owner: Mapping, path: Path, pairs: Sequence[Pair], widths: Sequence[int]) -> Changes:
    """Return the channels that neck or heads take of ConvNeXt, and where they find their maps.

    Args:
        owner: The model that has the backbone.
        path: The model's path in the config.
        pairs: The old maps, with the stages that take their place.
        widths: The channels of ConvNeXt's stages.

    Raises:
        UserError: Neck or heads take other channels than the backbone gives, or none that are in the config.
    """
    changes: Changes = {}
    for taker in find_takers(owner):
        place = (*path, *taker.path)
        for key in CHANNEL_KEYS:
            if key in taker.cfg:
                changes[(*place, key)] = fit_channels(taker.cfg[key], pairs, widths, dotted((*place, key)))
        changes |= {(*place, key): value for key, value in fit_places(taker.cfg, pairs).items()}
        if taker.rule.passes_on:
            fitted = changes[(*place, 'in_channels')]
            given = type(fitted)((*fitted, *taker.cfg['out_channels'][len(fitted) :]))
            changes |= {(*place, 'out_channels'): given, (*path, 'bbox_head', 'in_channels'): given}
    if not changes:
        raise UserError(
            f'{type_name(owner)} has no neck, and its heads are made for the maps of {type_name(owner["backbone"])}. '
            'Choose a config of the same method with an FPN.'
        )
    return changes


def fit_channels(given: int | Sequence[int], pairs: Sequence[Pair], widths: Sequence[int], name: str) -> Any:
    """Return ConvNeXt's channels in the place of the old backbone's.

    Each number is looked up among the channels of the old maps, because a list may have any order. ``name`` is the
    setting's, for the message.

    Raises:
        UserError: No map of the old backbone has these channels.
    """
    old = [each.channels for each, _ in pairs]
    stages = {each.channels: stage for each, stage in pairs if stage is not None}
    if isinstance(given, int):
        return fit_list([given], stages, widths, name)[0]
    if list(given) == old:  # the order tells maps of equal channels apart
        return type(given)(widths[stage] for _, stage in pairs if stage is not None)
    unused = set(old) - stages.keys()
    return type(given)(fit_list([width for width in given if width not in unused], stages, widths, name))


def fit_list(given: Sequence[int], stages: Mapping[int, int], widths: Sequence[int], name: str) -> list[int]:
    """Look each number of channels up in ``stages``; see :func:`fit_channels`."""
    if unknown := [width for width in given if width not in stages]:
        raise UserError(
            f'{name} has {", ".join(map(str, unknown))} channels, but the backbone gives maps of '
            f'{", ".join(map(str, stages))}. Write the config of this model by hand.'
        )
    return [widths[stages[width]] for width in given]


def fit_places(taker: Mapping, pairs: Sequence[Pair]) -> dict[str, Any]:
    """Return the settings that say where a neck or head finds its maps, if some of the old maps have no successor."""
    places = {old: new for new, old in enumerate(place for place, pair in enumerate(pairs) if pair.stage is not None)}
    if len(places) == len(pairs):
        return {}
    start, end, index = taker.get('start_level'), taker.get('end_level', -1), taker.get('in_index')
    if start is not None:
        return dict(start_level=0, end_level=end - start) if end > 0 else dict(start_level=0)
    if index is None:
        return {}
    if isinstance(index, int):
        return dict(in_index=places[index % len(pairs)])
    kept = [each % len(pairs) for each in index]
    return dict(in_index=[places[each] for each in kept if each in places])


def fit_normalization(cfg: Config, path: Path) -> Changes:
    """Return the mean and deviation of images that ConvNeXt's weights expect, where the config has others.

    The data preprocessor may stand in the model that has the backbone, in a model around it, or at the top.
    """
    for owner in (path, path[:1], ()):
        place, node = (*owner, 'data_preprocessor'), at(cfg, owner).get('data_preprocessor')
        while node and 'data_preprocessor' in node:  # semi-supervised models nest them
            place, node = (*place, 'data_preprocessor'), node['data_preprocessor']
        if node:
            return {(*place, key): value for key, value in NORMALIZATION.items() if node.get(key) != value}
    return {}
