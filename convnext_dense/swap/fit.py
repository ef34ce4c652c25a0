"""Fit a model's neck, heads and data preprocessor to the new backbone's feature maps."""

from collections.abc import Mapping, Sequence
from pathlib import Path as File
from typing import Any

from mmengine.config import Config

from convnext_dense import ladder
from convnext_dense.compat.errors import UserError
from convnext_dense.configs import Changes, Path, at, config_folder, dicts, dotted
from convnext_dense.swap.read import STRIDES, Map, stages_for, type_name
from convnext_dense.variants import channels

CHANNEL_KEYS = ('in_channels', 'c1_in_channels')  # c1 is DeepLabV3+'s second map, the first of the backbone
TIED_HEADS = ('rpn_head', 'roi_head', 'bbox_head')  # without a neck they fit the stride of one backbone only
INNER_HEAD = 'kernel_generate_head'  # of K-Net's head, which takes no maps itself
RULES = {  # how a neck or head takes maps, where its config does not tell
    'EncHead': dict(last_unless='add_lateral'),  # it is given several maps and uses the last, unless this option is set
    'JPU': dict(bypassed_by='auxiliary_head'),  # this head takes maps of the backbone although there is a neck
    'NASFCOS_FPN': dict(start_level=0),  # whatever the config says, it finds its maps by places of its own
    'SSDNeck': dict(passes_on='bbox_head'),  # it returns the maps of the backbone too, and this head takes them
}
NORMALIZATION = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True)  # of all weights


def find_rule(cfg: Mapping) -> Mapping:
    """Return the rule of a neck or head; most types need none."""
    return RULES.get(type_name(cfg).rpartition('.')[2], {})


def find_takers(owner: Mapping) -> list[tuple[Path, Mapping]]:
    """Return path and config of all that takes maps of a model's backbone: the first neck, or else the heads."""
    necks = find_modules(owner, 'neck')[:1]
    names = [key for key in owner if key.endswith('_head') and key not in TIED_HEADS]
    if necks:
        names = [find_rule(necks[0][1]).get('bypassed_by')]
    heads = [head for name in names for head in find_modules(owner, name)]
    return necks + [(path, cfg) for path, cfg in heads if 'in_channels' in cfg]


def find_modules(owner: Mapping, name: str | None) -> list[tuple[Path, Mapping]]:
    """Return path and config of a part of a model, which may be missing, one module or a list of them."""
    part = owner.get(name) or []
    modules = {(name, i): cfg for i, cfg in enumerate(part)} if isinstance(part, list) else {(name,): part}
    inner = {(*path, INNER_HEAD): cfg[INNER_HEAD] for path, cfg in modules.items() if INNER_HEAD in cfg}
    return list((inner or modules).items())


def match_maps(owner: Mapping, maps: Sequence[Map]) -> list[Map]:
    """Return the maps of a model's backbone, each with the stage that takes its place.

    A map that neither neck nor heads use gets no stage: its norm would get no gradient, which stops training on
    several GPUs.
    """
    stages = stages_for(maps, type_name(owner['backbone']))
    used = {place for _, taker in find_takers(owner) for place in used_places(taker, len(maps))}
    return [each._replace(stage=stages[i]) if i in used else each for i, each in enumerate(maps)]


def used_places(taker: Mapping, num_maps: int) -> set[int]:
    """Return which of the backbone's maps a neck or head uses, counted from the first map."""
    settings = {**taker, **find_rule(taker)}
    all_or_last = -1 if isinstance(taker.get('in_channels'), int) else range(settings.get('start_level', 0), num_maps)
    places = settings.get('in_index', all_or_last)
    places = [places] if isinstance(places, int) else list(places)
    if 'last_unless' in settings and not settings.get(settings['last_unless']):
        places = places[-1:]
    if 'c1_in_channels' in settings:
        places.append(0)
    return {place % num_maps for place in places}


def fit_model(cfg: Config, path: Path, maps: Sequence[Map], backbone: dict) -> Changes:
    """Return what the model must change for a new backbone; ``path`` is that of the model that has it."""
    stages = tuple(each.stage for each in maps if each.stage is not None)
    if stages != tuple(range(len(STRIDES))):
        backbone = {**backbone, 'out_indices': stages}
    changes: Changes = {(*path, 'backbone'): dict(_delete_=True, **backbone)}
    for place, node in dicts(cfg.model, ('model',)):
        if place == path[: len(place)]:  # weights of the model that has the backbone, or of one around it
            init_cfg = node.get('init_cfg')
            if isinstance(init_cfg, dict) and init_cfg.get('type') == 'Pretrained':
                changes[(*place, 'init_cfg')] = None
            if node.get('pretrained'):
                changes[(*place, 'pretrained')] = None
    widths = ladder.channels(backbone['step']) if 'step' in backbone else channels(backbone['arch'])
    return changes | find_teacher(cfg) | fit_takers(at(cfg, path), path, maps, widths) | fit_normalization(cfg)


def find_teacher(cfg: Config) -> Changes:
    """Return the file of a teacher's config (LD), which MMDetection looks for in a clone of its repository."""
    name, folder = cfg.model.get('teacher_config'), config_folder(cfg.default_scope)
    if not isinstance(name, str) or folder is None or File(name).is_file() or not (folder.parent / name).is_file():
        return {}
    return {('model', 'teacher_config'): str(folder.parent / name)}


def fit_takers(owner: Mapping, path: Path, maps: Sequence[Map], widths: Sequence[int]) -> Changes:
    """Return the channels that neck or heads of a model at ``path`` take of new maps, and where they find them."""
    changes: Changes = {}
    for inner, taker in find_takers(owner):
        place = (*path, *inner)
        for key in CHANNEL_KEYS:
            if key in taker:
                changes[(*place, key)] = fit_channels(taker[key], maps, widths, dotted((*place, key)))
        changes |= {(*place, key): value for key, value in fit_places(taker, maps).items()}
        if head := find_rule(taker).get('passes_on'):
            fitted = changes[(*place, 'in_channels')]
            given = type(fitted)((*fitted, *taker['out_channels'][len(fitted) :]))
            changes |= {(*place, 'out_channels'): given, (*path, head, 'in_channels'): given}
    if not changes:
        raise UserError(
            f'{type_name(owner)} has no neck, and its heads are made for the maps of {type_name(owner["backbone"])}. '
            'Choose a config of the same method with an FPN.'
        )
    return changes


def fit_channels(given: int | Sequence[int], maps: Sequence[Map], widths: Sequence[int], name: str) -> Any:
    """Return the new backbone's channels in the place of the old one's, of a setting ``name``.

    Each number is looked up among the channels of the old maps, because a list may have any order.
    """
    stages = {each.channels: each.stage for each in sorted(maps, key=lambda each: each.stage is not None)}
    numbers = [given] if isinstance(given, int) else list(given)
    is_in_order = numbers == [each.channels for each in maps]  # which tells maps of equal channels apart
    found = [each.stage for each in maps] if is_in_order else [stages.get(number) for number in numbers]
    fitted = [widths[stage] for stage in found if stage is not None]
    if not fitted or not set(numbers) <= stages.keys():
        raise UserError(
            f'{name} is {given}, but the backbone gives maps of {", ".join(map(str, stages))} channels. Write the '
            'config of this model by hand.'
        )
    return fitted[0] if isinstance(given, int) else type(given)(fitted)


def fit_places(taker: Mapping, maps: Sequence[Map]) -> dict[str, Any]:
    """Return the settings that say where a neck or head finds its maps, if some of the old maps have no successor."""
    kept = [place for place, each in enumerate(maps) if each.stage is not None]
    if len(kept) == len(maps):
        return {}
    if 'start_level' in taker:
        end = taker.get('end_level', -1)
        return dict(start_level=0, end_level=end - taker['start_level']) if end > 0 else dict(start_level=0)
    index = taker.get('in_index', ())
    if isinstance(index, int):
        return dict(in_index=kept.index(index % len(maps)))
    places = [kept.index(each % len(maps)) for each in index if each % len(maps) in kept]
    return dict(in_index=places) if places else {}


def fit_normalization(cfg: Config) -> Changes:
    """Return the mean and deviation of images that published weights expect, where the config has others.

    A model may have a data preprocessor around the one with the values, and models inside of it their own.
    """
    key = 'data_preprocessor'
    found = [each for root in ('model', key) for each in dicts(cfg.get(root), (root,))]
    return {
        (*path, name): value
        for path, node in found
        if path[-1] == key and key not in node
        for name, value in NORMALIZATION.items()
        if node.get(name) != value
    }
