"""Load a checkpoint of any known format into a model, or say why it does not fit.

Nothing is loaded in part in silence: upstream's loaders skip what does not fit and leave the backbone random. A
checkpoint is read, its tensors are matched with the model's, and a plan of the whole is made and checked before the
first tensor is copied.
"""

import math
import os
from collections import Counter, OrderedDict
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
    Part,
    choose_backbone,
    find_backbones,
    find_state_dict,
    keys_beside,
    name_licence,
    other_eps,
    other_weights,
    stage_of,
    unwrap,
    what_differs,
    with_head,
)
from convnext_dense.weights.report import Report, dtype_name
from convnext_dense.weights.sources import as_checkpoint, fetch

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
    """What becomes of a checkpoint's tensors in a model, before any is loaded."""

    source: str  # of the checkpoint
    fitting: Mapping[str, Entry]  # the model's key -> what is loaded there
    misfits: Mapping[str, Entry]  # the model's key -> what the file has for it, of another shape or type
    missing: tuple[str, ...]  # the model's keys that are needed and have nothing fitting
    from_scratch: tuple[str, ...]  # the model's keys that keep their initial values and may
    surplus: tuple[str, ...]  # the file's keys of backbones for which the model has no place
    others: tuple[str, ...]  # the file's other keys for which the model has no place


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
    model, checkpoint = unwrap_model(model), as_checkpoint(checkpoint)
    source, given, target, places = checkpoint.source, unwrap(checkpoint), model.state_dict(), find_places(model)
    if need == 'backbone' and not places:
        raise UserError(
            f'The model, {type(model).__name__}, has no backbone of this package, into which {source} could be loaded. '
            "Build one with convnext_dense.ConvNeXt; a model that has the file's own keys is loaded with need='all'."
        )
    parts = {
        place: choose_backbone(given, source, prefix, place, *formats_of(backbone))
        for place, backbone in places.items()
    }
    parts = with_heads(parts, given, target)
    report = Report(source)
    entries, surplus = {}, []
    for place, part in parts.items():
        own = adapt(part, places[place], report, final_norm)
        surplus += put(own, place, places[place], entries, report)
    rest = keys_beside(parts.values(), given)
    report.licence = name_licence(checkpoint, [*parts.values()], rest)
    report.leave_out('other weights', *other_weights(checkpoint))
    if prefix is not None:
        siblings = keys_of_siblings(rest, given, parts)
        report.leave_out('other models', *siblings)
        rest = [key for key in rest if key not in siblings]
    if '' in places:
        report.leave_out('other parts', *rest)
    else:
        entries |= {name: Entry(key, given[key]) for key in rest for name in names_in_model(key, parts)}
    needed = {key for key in target if COUNTER not in key and (need == 'all' or is_of_backbone(key, places))}
    plan = make_plan(source, entries, surplus, target, needed)
    check_numbers(model, plan, target)
    is_incomplete = plan.missing or plan.surplus or (need == 'all' and plan.others)
    if not plan.fitting or (strict and is_incomplete):
        raise UserError(explain_misfit(plan, need, target, needed, likely_cause(parts, places)))
    note(report, plan, given, target)
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


# Matching. In what follows ``parts`` are: where a backbone stands in the model -> what is loaded there.


def with_heads(
    parts: Mapping[str, Part], given: Mapping[str, Tensor], target: Mapping[str, Tensor]
) -> Mapping[str, Part]:
    """Return the parts with the classifier's head of the file, unless the file has heads of the model's."""
    prefixes = tuple(part.prefix for part in parts.values())
    rest = [key for key in given if not key.startswith(prefixes)]
    if any(name in target for key in rest for name in names_in_model(key, parts)):
        return parts
    return {place: with_head(part, given) for place, part in parts.items()}


def adapt(part: Part, backbone: StagedBackbone, report: Report, final_norm: bool) -> dict[str, Entry]:
    """Return the tensors of a part under the names of a backbone.

    Another architecture, or one without the final norm that was asked for, is a :class:`UserError`.
    """
    norm_eps = getattr(backbone, 'norm_eps', NORM_EPS)
    if difference := what_differs(part, norm_eps):
        raise UserError(f'{report.source} is {difference}. Give the weights of a plain ConvNeXt.')
    eps = other_eps(part.architecture, norm_eps)
    report.format = part.format.title
    report.architecture = f'{part.architecture} (if it is that of timm, {eps})' if eps else str(part.architecture or '')
    for why, keys in part.left_out.items():
        report.leave_out(why, *keys)
    if final_norm and not part.has('norm.'):
        raise UserError(f'{report.source} has no final norm to load into norm3. Leave final_norm out of init_cfg.')
    own = dict(part.entries)
    if final_norm:
        own |= {key.replace('norm.', 'norm3.'): own.pop(key) for key in part.entries if key.startswith('norm.')}
    if isinstance(backbone, ModernizedResNet) and part.architecture:
        own = ladder_names(own)
    adapt_stem(own, backbone.in_channels, report)
    return own | part.unknown  # a subclass has parameters of its own, which no format knows


def ladder_names(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """Return the entries of a ConvNeXt under the names, and in the shapes, of the last step of the ladder."""
    renamed = {}
    for name, (origin, tensor) in entries.items():
        name, tensor = LADDER.write(name, tensor) or (name, tensor)  # a classifier has no row
        renamed[name] = Entry(origin, tensor)
    return renamed


def adapt_stem(entries: dict[str, Entry], channels: int, report: Report) -> None:
    """Give the stem of an RGB network another number of input channels, and note it.

    The kernels of R, G and B are repeated in turn and scaled by 3 / channels, so that a grey image in all channels
    gives the same map; one channel gets their sum. That is what timm does (``adapt_input_conv``).
    """
    origin, weight = entries.get(STEM, (None, None))
    if weight is None or weight.ndim != 4 or weight.shape[1] != 3 or channels == 3:
        return
    kernel = weight.float()
    adapted = kernel.repeat(1, math.ceil(channels / 3), 1, 1)[:, :channels] * (3 / channels)
    if channels == 1:
        adapted = kernel.sum(1, keepdim=True)
    entries[STEM] = Entry(origin, adapted.to(weight.dtype))
    report.adapted = f'stem from 3 to {channels} channels: RGB repeated in turn, times 3/{channels}'


def put(
    own: Mapping[str, Entry], place: str, backbone: StagedBackbone, entries: dict[str, Entry], report: Report
) -> list[str]:
    """Put what a backbone has into ``entries``, under the model's keys; return the file's keys that no backbone has."""
    surplus, known = [], backbone.state_dict().keys()
    for name, entry in own.items():
        if name in known:
            entries[place + name] = entry
        elif name.startswith(CLASSIFIER):
            report.leave_out('classifier', entry.origin)
        elif stage_of(name) >= len(backbone.stages):
            report.leave_out('stages that are not built', entry.origin)
        elif name.startswith('norm'):
            report.leave_out('output norms', entry.origin)
        else:
            surplus.append(entry.origin)
    return surplus


def names_in_model(key: str, parts: Mapping[str, Part]) -> set[str]:
    """Return the model's names of a key outside of the file's backbones: one for each backbone of the model.

    Heads stand in the file as they stand in the model. Where the file's backbone is ``teacher.backbone`` and the
    model's is ``backbone``, the file's ``teacher.neck`` is the model's ``neck``; and the other way round.
    """
    names = set() if parts else {key}
    for place, part in parts.items():
        name = part.format.rename_head(key)
        names.add(tree_of(place, part.prefix) + name.removeprefix(tree_of(part.prefix, place)))
    return names


def tree_of(prefix: str, end: str) -> str:
    """Return what stands before the last names of a prefix; nothing where these are others.

    >>> tree_of('teacher.backbone.', 'backbone.'), tree_of('depth_backbone.', 'backbone.')
    ('teacher.', '')
    """
    return prefix.removesuffix(end) if f'.{prefix}'.endswith(f'.{end}') else ''


def keys_of_siblings(rest: Iterable[str], given: Mapping[str, Tensor], parts: Mapping[str, Part]) -> dict[str, None]:
    """Return those of ``rest`` that belong to other models of the file than the one that was chosen by a prefix."""
    chosen = [part.prefix for part in parts.values()]
    others = [part.prefix for part in find_backbones(given) if part.prefix not in chosen]
    ours = tuple(tree_of(part.prefix, place) for place, part in parts.items())
    theirs = tuple(tree_of(prefix, place) or prefix for prefix in others for place in parts)
    return dict.fromkeys(key for key in rest if key.startswith(theirs) or not key.startswith(ours))


# The plan


def make_plan(
    source: str, entries: Mapping[str, Entry], surplus: list[str], target: Mapping[str, Tensor], needed: set[str]
) -> Plan:
    """Return what becomes of the entries, which stand under the model's keys; ``target`` is the model's state dict."""
    fitting, misfits, others = {}, {}, []
    for key, entry in entries.items():
        tensor, own = entry.tensor, target.get(key)
        if own is None:
            others.append(entry.origin)
        elif tensor.shape == own.shape and tensor.is_floating_point() == own.is_floating_point():
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


def check_numbers(model: nn.Module, plan: Plan, target: Mapping[str, Tensor]) -> None:
    """Raise a :class:`UserError` where learned numbers are NaN or infinite, or would be in the model's type."""
    learned = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    numbers = {key: entry.tensor for key, entry in plan.fitting.items() if key in learned or key.endswith(STATISTICS)}
    check_finite(numbers, plan.source)
    if large := [key for key, tensor in numbers.items() if not is_finite(tensor, target[key].dtype)]:
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


def is_finite(tensor: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Tell whether a tensor has neither NaN nor infinity, nor would have as another type; without a copy of it."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    if tensor.element_size() == 1:  # no kernel for 8 bits
        tensor = tensor.float()
    extremes = torch.stack(torch.aminmax(tensor))  # NaN where it has one
    return bool(extremes.to(dtype or extremes.dtype).double().isfinite().all())


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


def note(report: Report, plan: Plan, given: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    """Note in the report what the plan loads from the file's tensors into the model's, and what it does not."""
    report.loaded = [*plan.fitting]
    for key, (origin, tensor) in plan.fitting.items():
        if given[origin].shape != tensor.shape or given[origin].stride() != tensor.stride():
            report.reshaped.append(key)
    types = (dtype_name(tensor) for key, (_, tensor) in plan.fitting.items() if tensor.dtype != target[key].dtype)
    report.converted = dict(Counter(types))
    report.leave_out('of another shape', *(entry.origin for entry in plan.misfits.values()))
    report.from_scratch, report.missing = [*plan.from_scratch], [*plan.missing]
    report.unexpected = [*plan.surplus, *plan.others]
