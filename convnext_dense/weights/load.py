"""Load a checkpoint of any known format into a model, or say why it does not fit.

Nothing is loaded in part in silence: upstream's loaders skip what does not fit and leave the backbone random. A
checkpoint is read, its tensors are matched with the model's, and a plan of the whole is made and checked before the
first tensor is copied.
"""

import math
import os
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from mmengine.model import BaseTTAModel, is_model_wrapper
from torch import Tensor, nn

from convnext_dense.backbone import ConvNeXt, StagedBackbone
from convnext_dense.compat.errors import UserError, printable, shorten
from convnext_dense.ladder import ModernizedResNet
from convnext_dense.weights.formats import CLASSIFIER, FB, FORMATS, LADDER, RESNET, STEM, STEP, Format
from convnext_dense.weights.identify import (
    NORM_EPS,
    Architecture,
    Entry,
    Found,
    Part,
    choose_backbone,
    find_backbones,
    find_state_dict,
    keys_of,
    name_licence,
    other_eps,
    other_weights,
    read_part,
    stage_of,
    unwrap,
    what_differs,
)
from convnext_dense.weights.report import Report, dtype_name
from convnext_dense.weights.sources import fetch

Need = Literal['backbone', 'all']
COUNTER = 'num_batches_tracked'  # of BatchNorm: older files lack it, and nothing depends on it
STATISTICS = ('running_mean', 'running_var')  # the buffers that a training can spoil
STEP_FORMATS = {'resnet': (STEP, RESNET), 'convnext': (STEP, *FORMATS)}  # of the steps for which weights are published
NOT_PUBLISHED = (
    ' For the steps of the ladder between resnet and convnext nothing is published: train them with configs/ladder, or '
    'leave init_cfg out to start from scratch.'
)


@dataclass(frozen=True)
class Plan:
    """What becomes of a checkpoint's tensors in a model, before any is loaded.

    Attributes:
        source: Where the checkpoint came from.
        fitting: The model's key -> what is loaded there.
        misfits: The model's key -> what the file has for it, of another shape or type.
        missing: The model's keys that are needed and have nothing fitting.
        from_scratch: The model's keys that keep their initial values and may.
        surplus: The file's keys of backbones for which the model has no place.
        others: The file's other keys for which the model has no place.
    """

    source: str
    fitting: Mapping[str, Entry]
    misfits: Mapping[str, Entry]
    missing: tuple[str, ...]
    from_scratch: tuple[str, ...]
    surplus: tuple[str, ...]
    others: tuple[str, ...]


def load_weights(
    model: nn.Module,
    source: str | os.PathLike | Mapping,
    *,
    need: Need = 'backbone',
    strict: bool = True,
    prefix: str | None = None,
    final_norm: bool = False,
) -> Report:
    """Load weights of any known format into a backbone, a detector or a segmentor.

    Args:
        model: A :class:`~convnext_dense.backbone.ConvNeXt` or a
            :class:`~convnext_dense.ladder.ModernizedResNet`, or a model that contains one.
        source: What :func:`~convnext_dense.weights.sources.fetch` takes, or a checkpoint that was read already.
        need: 'backbone': every weight of the backbone must be there, except its output norms; other parts are loaded
            where they fit. 'all': every key of the model must be there, and no other.
        strict: Raise where something that is needed is missing; otherwise load what fits and report the rest.
        prefix: What stands before the keys of the backbone, or of the model, in a file that holds several. The others
            are then left out.
        final_norm: Load the classifier's final norm into ``norm3``: the last map is then what a classifier pools.

    Returns:
        What was loaded, left out and missing.

    Raises:
        UserError: The weights cannot be read or do not fit; the model is as it was.
    """
    if not isinstance(source, str | os.PathLike | Mapping):
        raise UserError(
            f'Weights come from a file, an address or a state dict; got {type(source).__name__}. Of a model give its '
            'state_dict().'
        )
    checkpoint = source if isinstance(source, Mapping) else fetch(source)
    tensors, report = fit(model, checkpoint, need=need, strict=strict, prefix=prefix, final_norm=final_norm)
    model = unwrap_model(model)
    if any(tensor.is_meta for tensor in model.state_dict().values()):
        raise UserError(
            "The model is on the device 'meta', where weights take no memory and cannot be loaded. Give it some first, "
            "with model.to_empty(device='cpu')."
        )
    state_dict = OrderedDict(tensors)
    state_dict._metadata = module_versions(checkpoint)
    with torch.no_grad():
        model.load_state_dict(state_dict, strict=False)
    return report


def fit(
    model: nn.Module,
    checkpoint: Mapping,
    *,
    need: Need = 'backbone',
    strict: bool = True,
    prefix: str | None = None,
    final_norm: bool = False,
) -> tuple[dict[str, Tensor], Report]:
    """Return a checkpoint's tensors under the model's keys, with the report; arguments as for :func:`load_weights`.

    Raises:
        UserError: They do not fit.
    """
    model = unwrap_model(model)
    source = getattr(checkpoint, 'source', 'the checkpoint')
    given, target, places = unwrap(checkpoint, source), model.state_dict(), find_places(model)
    if need == 'backbone' and not places:
        raise UserError(
            f'The model, {type(model).__name__}, has no backbone of this package, into which {source} could be loaded. '
            "Build one with convnext_dense.ConvNeXt; a model that has the file's own keys is loaded with need='all'."
        )
    found = {
        place: choose_backbone(given, source, prefix, place, *formats_of(backbone))
        for place, backbone in places.items()
    }
    parts = read_parts(given, found, target)
    report = Report(source)
    for place, part in parts.items():
        prepare(part, places[place], given, report, final_norm)
    entries, surplus = take_parts(parts, places, report)
    used = keys_of(parts.values())
    rest = [key for key in given if key not in used]
    report.licence = name_licence(checkpoint, [*parts.values()], bool(rest))
    report.leave_out('other weights', *other_weights(checkpoint))
    if prefix is not None:
        siblings = keys_of_siblings(rest, given, found)
        report.leave_out('other models', *siblings)
        rest = [key for key in rest if key not in siblings]
    if '' in places:
        report.leave_out('other parts', *rest)
    else:
        entries |= {name: Entry(key, given[key]) for key in rest for name in names_in_model(key, found)}
    needed = {key for key in target if COUNTER not in key and (need == 'all' or is_of_backbone(key, places))}
    plan = make_plan(source, entries, surplus, target, needed)
    check_numbers(model, plan, target)
    if is_refused(plan, need, strict):
        raise UserError(explain_misfit(plan, need, target, needed, likely_cause(parts, places)))
    report.note(plan, given, target)
    return {key: entry.tensor for key, entry in plan.fitting.items()}, report


def find_places(model: nn.Module) -> dict[str, StagedBackbone]:
    """Return the backbones of this package in a model by what stands before their keys."""
    parts = model.named_modules()
    return {f'{name}.' if name else '': part for name, part in parts if isinstance(part, StagedBackbone)}


def formats_of(backbone: StagedBackbone) -> tuple[tuple[Format, ...], str]:
    """Return the formats in which a backbone's weights may be, and what to say where they are in none."""
    if not isinstance(backbone, ModernizedResNet):
        return FORMATS, ''
    return STEP_FORMATS.get(backbone.step, (STEP,)), '' if backbone.step in STEP_FORMATS else NOT_PUBLISHED


def unwrap_model(model: nn.Module) -> nn.Module:
    """Return the model inside of DistributedDataParallel, test-time augmentation and the like."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model


def module_versions(checkpoint: Mapping) -> Mapping | None:
    """Return the versions of the modules that wrote a state dict, which PyTorch notes beside the tensors."""
    return getattr(find_state_dict(checkpoint), '_metadata', None)


# Matching


def read_parts(
    given: Mapping[str, Tensor], found: Mapping[str, Found], target: Mapping[str, Tensor]
) -> dict[str, Part]:
    """Return what is loaded at each place of the model; with the classifier's head unless the file has the model's."""
    prefixes = tuple(each.prefix for each in found.values())
    rest = [key for key in given if not key.startswith(prefixes)]
    has_heads = any(name in target for key in rest for name in names_in_model(key, found))
    return {place: read_part(given, each, with_head=not has_heads) for place, each in found.items()}


def take_parts(
    parts: Mapping[str, Part], places: Mapping[str, StagedBackbone], report: Report
) -> tuple[dict[str, Entry], list[str]]:
    """Return the entries of the backbones under the model's keys, and the file's keys that no backbone has."""
    entries, surplus = {}, []
    for place, part in parts.items():
        own = places[place].state_dict().keys()
        for name, entry in part.entries.items():
            if name in own:
                entries[place + name] = entry
            elif why := reason_to_leave_out(name, places[place]):
                report.leave_out(why, entry.origin)
            else:
                surplus.append(entry.origin)
    return entries, surplus


def prepare(
    part: Part, backbone: StagedBackbone, given: Mapping[str, Tensor], report: Report, final_norm: bool
) -> None:
    """Give the entries of a part the names of a backbone.

    Raises:
        UserError: The part is another architecture, or lacks the final norm that was asked for.
    """
    norm_eps = getattr(backbone, 'norm_eps', NORM_EPS)
    if difference := what_differs(part, norm_eps):
        raise UserError(f'{report.source} is {difference}. Give the weights of a plain ConvNeXt.')
    if final_norm:
        move_final_norm(part, report.source)
    report.describe(part, other_eps(part.architecture, norm_eps))
    if isinstance(backbone, ModernizedResNet) and part.architecture:
        for name, entry in [*part.entries.items()]:
            if written := LADDER.write(name, entry.tensor):  # not the classifier
                del part.entries[name]
                part.entries[written[0]] = Entry(entry.origin, written[1])
    adapt_stem(part, backbone.in_channels, report)
    for key in part.unknown:  # a subclass has parameters of its own, which no format knows
        part.entries[key.removeprefix(part.found.prefix)] = Entry(key, given[key])


def adapt_stem(part: Part, channels: int, report: Report) -> None:
    """Give the stem of an RGB network another number of input channels, and note it.

    The kernels of R, G and B are repeated in turn and scaled by 3 / channels, so that a grey image in all channels
    gives the same map; one channel gets their sum. That is what timm does (``adapt_input_conv``).
    """
    entry = part.entries.get(STEM)
    if entry is None or entry.tensor.ndim != 4 or entry.tensor.shape[1] != 3 or channels == 3:
        return
    kernel = entry.tensor.float()
    adapted = kernel.repeat(1, math.ceil(channels / 3), 1, 1)[:, :channels] * (3 / channels)
    if channels == 1:
        adapted = kernel.sum(1, keepdim=True)
    part.entries[STEM] = Entry(entry.origin, adapted.to(entry.tensor.dtype))
    report.adapted = f'stem from 3 to {channels} channels: RGB repeated in turn, times 3/{channels}'


def move_final_norm(part: Part, source: str) -> None:
    """Make a classifier's final norm the norm of the last map.

    Raises:
        UserError: There is none.
    """
    norm = part.pop('norm.')
    if not norm:
        raise UserError(f'{source} has no final norm to load into norm3. Leave final_norm out of init_cfg.')
    part.entries.update({key.replace('norm.', 'norm3.'): entry for key, entry in norm.items()})


def reason_to_leave_out(key: str, backbone: StagedBackbone) -> str:
    """Say why a backbone does not need a key that it does not have; empty where the key should not be there."""
    if key.startswith(CLASSIFIER):
        return 'classifier'
    if stage_of(key) >= len(backbone.stages):
        return 'stages that are not built'
    return 'output norms' if key.startswith('norm') else ''


def names_in_model(key: str, found: Mapping[str, Found]) -> list[str]:
    """Return the model's names of a key outside of the file's backbones: one for each backbone of the model.

    Heads stand in the file as they stand in the model. Where the file's backbone is ``teacher.backbone`` and the
    model's is ``backbone``, the file's ``teacher.neck`` is the model's ``neck``; and the other way round.

    Args:
        key: The file's key.
        found: Where a backbone stands in the model -> what is loaded there.
    """
    names = {} if found else {key: None}
    for place, each in found.items():
        name = each.format.rename_head(key)
        if ends_with(place, each.prefix):
            name = place.removesuffix(each.prefix) + name
        elif ends_with(each.prefix, place):
            name = name.removeprefix(each.prefix.removesuffix(place))
        names[name] = None
    return [*names]


def ends_with(prefix: str, end: str) -> bool:
    """Tell whether a prefix ends with these names, whole ones.

    >>> ends_with('teacher.backbone.', 'backbone.'), ends_with('depth_backbone.', 'backbone.')
    (True, False)
    """
    return f'.{prefix}'.endswith(f'.{end}')


def keys_of_siblings(rest: Iterable[str], given: Mapping[str, Tensor], found: Mapping[str, Found]) -> dict[str, None]:
    """Return the file's keys that belong to other models than the one that was chosen by a prefix.

    Args:
        rest: Keys outside of the chosen backbones.
        given: The file.
        found: Where a backbone stands in the model -> what is loaded there.
    """
    trees = tuple(each.prefix.removesuffix(place) for place, each in found.items() if ends_with(each.prefix, place))
    others = tuple(each.prefix for each in find_backbones(given) if each not in found.values())
    return dict.fromkeys(key for key in rest if key.startswith(others) or (trees and not key.startswith(trees)))


# The plan


def make_plan(
    source: str, entries: Mapping[str, Entry], surplus: list[str], target: Mapping[str, Tensor], needed: set[str]
) -> Plan:
    """Return what becomes of the entries, which stand under the model's keys; ``target`` is the model's state dict."""
    fitting, misfits, others = {}, {}, []
    for key, entry in entries.items():
        if key not in target:
            others.append(entry.origin)
        elif agrees(entry.tensor, target[key]):
            fitting[key] = entry
        else:
            misfits[key] = entry
    unfilled = [key for key in target if key not in fitting]
    return Plan(
        source,
        fitting,
        misfits,
        missing=tuple(key for key in unfilled if key in needed),
        from_scratch=tuple(key for key in unfilled if key not in needed and COUNTER not in key),
        surplus=tuple(surplus),
        others=tuple(key for key in dict.fromkeys(others) if COUNTER not in key),
    )


def is_of_backbone(key: str, places: Mapping[str, StagedBackbone]) -> bool:
    """Tell whether a key of the model belongs to a backbone: to no output norm, and to nothing that a subclass adds."""
    for place, backbone in places.items():
        name, own = key.removeprefix(place), STEP if isinstance(backbone, ModernizedResNet) else FB
        if key.startswith(place) and own.read(name) and not name.startswith(('norm', *CLASSIFIER)):
            return True
    return False


def agrees(tensor: Tensor, target: Tensor) -> bool:
    """Tell whether a tensor can take the place of another: of the same shape, and floating-point where that is."""
    return tensor.shape == target.shape and tensor.is_floating_point() == target.is_floating_point()


def is_refused(plan: Plan, need: Need, strict: bool) -> bool:
    """Tell whether a plan lacks something that is needed."""
    is_incomplete = bool(plan.missing or plan.surplus or (need == 'all' and plan.others))
    return not plan.fitting or (strict and is_incomplete)


def check_numbers(model: nn.Module, plan: Plan, target: Mapping[str, Tensor]) -> None:
    """Raise a :class:`UserError` where learned numbers are NaN or infinite, or would be in the model's type."""
    learned = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    numbers = {key: entry.tensor for key, entry in plan.fitting.items() if key in learned or key.endswith(STATISTICS)}
    check_finite(numbers, plan.source)
    large = []
    for key, tensor in numbers.items():
        most = largest(target[key].dtype)
        if largest(tensor.dtype) > most and tensor.numel() and max(map(abs, extremes(tensor))) > most:
            large.append(key)
    if large:
        raise UserError(
            f'{plan.source} holds numbers that are too large for the {dtype_name(target[large[0]])} of the model: '
            f'{shorten(large)}. Load it into a model of a wider type.'
        )


def check_finite(tensors: Mapping[str, Tensor], source: str) -> None:
    """Raise a :class:`UserError` that names the first tensors with NaN or infinity."""
    if bad := [key for key, tensor in tensors.items() if not is_finite(tensor)]:
        raise UserError(
            f'{source} holds NaN or infinity in {len(bad)} of {len(tensors)} weights: {shorten(bad)}. The training '
            'that wrote it had diverged; take an earlier checkpoint.'
        )


def largest(dtype: torch.dtype) -> float:
    """Return the largest number of a floating-point type; 0 for the others."""
    return torch.finfo(dtype).max if dtype.is_floating_point else 0.0


def is_finite(tensor: Tensor) -> bool:
    """Tell whether a tensor has neither NaN nor infinity."""
    return not tensor.is_floating_point() or not tensor.numel() or all(map(math.isfinite, extremes(tensor)))


def extremes(tensor: Tensor) -> tuple[float, float]:
    """Return the smallest and the largest number of a tensor, without a copy of it; NaN where it has one."""
    if tensor.element_size() == 1:  # no kernel for 8 bits
        tensor = tensor.float()
    return tuple(each.item() for each in torch.aminmax(tensor))


def likely_cause(parts: Mapping[str, Part], places: Mapping[str, StagedBackbone]) -> str:
    """Say which ConvNeXts the two sides are, where that tells them apart; ends in a space."""
    for place, part in parts.items():
        own = places[place]
        if not isinstance(own, ConvNeXt):
            continue
        ours, theirs = Architecture(own.depths, own.dims, own.grn), part.architecture
        built = min(len(ours.depths), len(theirs.depths))
        if ours.grn != theirs.grn or any(a[:built] != b[:built] for a, b in zip(ours[:2], theirs[:2], strict=True)):
            return f'It is {theirs}, the model is {ours}. '
    return ''


def explain_misfit(plan: Plan, need: Need, target: Mapping[str, Tensor], needed: set[str], cause: str) -> str:
    """Say what does not fit: the first few keys of another shape or type, missing ones, and unexpected ones."""
    misfits = [key for key in plan.misfits if key in needed]
    missing = [key for key in plan.missing if key not in plan.misfits]
    surplus = [*plan.surplus, *(plan.others if need == 'all' else ())]
    sentences = [f'{plan.source} does not fit {"the model" if need == "all" else "the backbone"}. {cause}'.strip()]
    if misfits:
        first = misfits[0]
        pair = (plan.misfits[first].tensor, target[first])
        theirs, ours = (f'{tuple(tensor.shape)} {dtype_name(tensor)}' for tensor in pair)
        sentences.append(
            f'Of another shape or type ({len(misfits)}): {shorten(misfits)}; {printable(first)} is {theirs} in the '
            f'file and {ours} in the model.'
        )
    if missing:
        sentences.append(f'Missing from the file ({len(missing)}): {shorten(missing)}.')
    if surplus:
        sentences.append(f'Only in the file ({len(surplus)}): {shorten(surplus)}.')
    return ' '.join(sentences)
