"""A source and a model go in; the model's weights and a report come out, or one error that says why they cannot.

Nothing is loaded in part in silence: upstream's loaders skip what does not fit and leave the backbone random.

    source -> fetch -> read_part -> fit -> model.load_state_dict -> Report
"""

import math
import os
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from mmengine.model import BaseTTAModel, is_model_wrapper
from torch import Tensor, nn

from convnext_dense.backbone import ConvNeXt
from convnext_dense.compat.errors import UserError
from convnext_dense.weights.architecture import Architecture, other_eps, stage_of, what_differs
from convnext_dense.weights.formats import CLASSIFIER, FB, Found, find_backbones
from convnext_dense.weights.provenance import name_licence
from convnext_dense.weights.reading import (
    Entry,
    Part,
    choose_backbone,
    find_state_dict,
    keys_of,
    other_weights,
    read_part,
    unwrap,
)
from convnext_dense.weights.report import Report, printable, shorten
from convnext_dense.weights.sources import fetch

Need = Literal['backbone', 'all']
COUNTER = 'num_batches_tracked'  # of BatchNorm: older files lack it, and nothing depends on it
STATISTICS = ('running_mean', 'running_var')  # the buffers that a training can spoil


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
        model: A :class:`~convnext_dense.backbone.ConvNeXt`, or a model that contains one.
        source: What :func:`~convnext_dense.weights.sources.fetch` takes, or a checkpoint that was read already.
        need: 'backbone': every weight of the backbone must be there, its output norms aside; other parts are loaded
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
    if any(tensor.is_meta for tensor in unwrap_model(model).state_dict().values()):
        raise UserError(
            "The model is on the device 'meta', where weights take no memory and cannot be loaded. Give it some first, "
            "with model.to_empty(device='cpu')."
        )
    state_dict = OrderedDict(tensors)
    state_dict._metadata = module_versions(checkpoint)
    with torch.no_grad():
        unwrap_model(model).load_state_dict(state_dict, strict=False)
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
    given = unwrap(checkpoint, source)
    target = model.state_dict()
    places = find_places(model)
    if need == 'backbone' and not places:
        raise UserError(
            f'The model, {type(model).__name__}, has no ConvNeXt of this package, into which {source} could be loaded. '
            "Build its backbone with convnext_dense.ConvNeXt; a model that has the file's own keys is loaded with "
            "need='all'."
        )
    found = {place: choose_backbone(given, source, prefix, place) for place in places}
    has_heads = has_model_heads(given, found, target)
    parts = {place: read_part(given, each, with_head=not has_heads) for place, each in found.items()}
    used = keys_of(parts.values())
    rest = [key for key in given if key not in used]
    report = Report(source, licence=name_licence(checkpoint, [*parts.values()], bool(rest)))
    for place, part in parts.items():
        adopt(part, places[place], given)
        prepare(part, places[place], report, final_norm)
    report.leave_out('other weights', *other_weights(checkpoint))
    if prefix is not None:
        siblings = keys_of_siblings(rest, given, found)
        report.leave_out('other models', *siblings)
        rest = [key for key in rest if key not in siblings]

    entries = {place + key: entry for place, part in parts.items() for key, entry in part.entries.items()}
    surplus = [key for part in parts.values() for key in part.unknown]
    surplus += [entry.origin for key, entry in entries.items() if key not in target]
    if '' in places:
        report.leave_out('other parts', *rest)
    else:
        entries.update({name: Entry(key, given[key]) for key in rest for name in names_in_model(key, found)})

    needed = {key for key in target if COUNTER not in key and (need == 'all' or is_of_backbone(key, places))}
    fitting = {
        key: entry.tensor for key, entry in entries.items() if key in target and agrees(entry.tensor, target[key])
    }
    misfits = {key: entry for key, entry in entries.items() if key in target and key not in fitting}
    report.missing = [key for key in target if key in needed and key not in fitting]
    report.from_scratch = [key for key in target if key not in {*needed, *fitting} and COUNTER not in key]
    report.leave_out('of another shape', *(entry.origin for entry in misfits.values()))
    others = [entry.origin for key, entry in entries.items() if key not in target and COUNTER not in key]
    report.unexpected = [*dict.fromkeys(surplus + others)]
    for key, tensor in fitting.items():
        report.note_loaded(key, given[entries[key].origin], tensor, target[key])

    learned = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    numbers = {key: fitting[key] for key in fitting if key in learned or key.endswith(STATISTICS)}
    check_finite(numbers, source)
    check_range({key: (tensor, target[key].dtype) for key, tensor in numbers.items()}, source)
    if need == 'all':
        surplus = report.unexpected
    if not fitting or (strict and (report.missing or surplus)):
        shapes = {key: (entry.tensor, target[key]) for key, entry in misfits.items() if key in needed}
        missing = [key for key in report.missing if key not in shapes]
        raise UserError(
            f'{source} does not fit {"the model" if need == "all" else "the backbone"}. '
            f'{likely_cause(parts, places)}{describe_misfit(missing, shapes, surplus)}'
        )
    return fitting, report


def find_places(model: nn.Module) -> dict[str, ConvNeXt]:
    """Return the ConvNeXts of a model by what stands before their keys."""
    return {f'{name}.' if name else '': part for name, part in model.named_modules() if isinstance(part, ConvNeXt)}


def unwrap_model(model: nn.Module) -> nn.Module:
    """Return the model inside of DistributedDataParallel, test-time augmentation and the like."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model


def module_versions(checkpoint: Mapping) -> Mapping | None:
    """Return the versions of the modules that wrote a state dict, which PyTorch notes beside the tensors."""
    return getattr(find_state_dict(checkpoint), '_metadata', None)


def adopt(part: Part, backbone: ConvNeXt, given: Mapping[str, Tensor]) -> None:
    """Move into a part's entries what no format has, but this backbone: a subclass has parameters of its own."""
    own = backbone.state_dict().keys()
    names = {key: key.removeprefix(part.found.prefix) for key in part.unknown}
    part.entries.update({name: Entry(key, given[key]) for key, name in names.items() if name in own})
    part.unknown = [key for key, name in names.items() if name not in own]


def prepare(part: Part, backbone: ConvNeXt, report: Report, final_norm: bool) -> None:
    """Leave out of a part what this backbone does not have, and note what the part is.

    Raises:
        UserError: It is another architecture, or lacks the final norm that was asked for.
    """
    if difference := what_differs(part.found.format, part.tensors, backbone.norm_eps):
        raise UserError(f'{report.source} is {difference}. Give the weights of a plain ConvNeXt.')
    if final_norm:
        norm = part.pop('norm.')
        if not norm:
            raise UserError(f'{report.source} has no final norm to load into norm3. Leave final_norm out of init_cfg.')
        part.entries.update({key.replace('norm.', 'norm3.'): entry for key, entry in norm.items()})
    own = backbone.state_dict().keys()
    for why, keys in part.left_out.items():
        report.leave_out(why, *keys)
    for key in [key for key in part.entries if key not in own]:
        if why := reason_to_leave_out(key, backbone):
            report.leave_out(why, part.entries.pop(key).origin)
    report.format = part.found.format.title
    eps = other_eps(part.architecture, backbone.norm_eps)
    report.architecture = f'{part.architecture} (if it is that of timm, {eps})' if eps else str(part.architecture)
    part.left_out.clear()


def reason_to_leave_out(key: str, backbone: ConvNeXt) -> str:
    """Say why a backbone does not need a key that it does not have; empty where the key should not be there."""
    if key.startswith(CLASSIFIER):
        return 'classifier'
    if stage_of(key) >= len(backbone.stages):
        return 'stages that are not built'
    return 'output norms' if key.startswith('norm') else ''


def is_of_backbone(key: str, places: Iterable[str]) -> bool:
    """Tell whether a key of the model belongs to a ConvNeXt: to no output norm, and to nothing that a subclass adds."""
    names = (key.removeprefix(place) for place in places if key.startswith(place))
    return any(FB.read(name) and not name.startswith(('norm', *CLASSIFIER)) for name in names)


def agrees(tensor: Tensor, target: Tensor) -> bool:
    """Tell whether a tensor can take the place of another: of the same shape, and floating-point where that is."""
    return tensor.shape == target.shape and tensor.is_floating_point() == target.is_floating_point()


def rename_head(key: str, parts: Iterable[Part]) -> str:
    """Return our name of a key outside of the backbones."""
    for part in parts:
        key = part.found.format.rename_head(key)
    return key


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


def has_model_heads(given: Mapping[str, Tensor], found: Mapping[str, Found], target: Mapping[str, Tensor]) -> bool:
    """Tell whether the file holds more of the model than its backbones."""
    prefixes = tuple(each.prefix for each in found.values())
    rest = [key for key in given if not key.startswith(prefixes)]
    return any(name in target for key in rest for name in names_in_model(key, found))


def check_finite(tensors: Mapping[str, Tensor], source: str) -> None:
    """Raise a :class:`UserError` that names the first tensors with NaN or infinity."""
    bad = [
        key
        for key, tensor in tensors.items()
        if tensor.is_floating_point() and tensor.numel() and not is_finite(tensor)
    ]
    if bad:
        raise UserError(
            f'{source} holds NaN or infinity in {len(bad)} of {len(tensors)} weights: {shorten(bad)}. The training '
            'that wrote it had diverged; take an earlier checkpoint.'
        )


def check_range(tensors: Mapping[str, tuple[Tensor, torch.dtype]], source: str) -> None:
    """Raise a :class:`UserError` where a tensor would become infinite in the type that it is loaded into."""
    large = [
        key
        for key, (tensor, dtype) in tensors.items()
        if most(tensor.dtype) > most(dtype) and tensor.numel() and max(map(abs, extremes(tensor))) > most(dtype)
    ]
    if large:
        dtype = str(tensors[large[0]][1]).removeprefix('torch.')
        raise UserError(
            f'{source} holds numbers that are too large for the {dtype} of the model: {shorten(large)}. Load it into a '
            'model of a wider type.'
        )


def most(dtype: torch.dtype) -> float:
    """Return the largest number of a floating-point type; 0 for the others."""
    return torch.finfo(dtype).max if dtype.is_floating_point else 0.0


def is_finite(tensor: Tensor) -> bool:
    """Tell whether a floating-point tensor has neither NaN nor infinity."""
    return all(map(math.isfinite, extremes(tensor)))


def extremes(tensor: Tensor) -> tuple[float, float]:
    """Return the smallest and the largest number of a tensor, without a copy of it; NaN where it has one."""
    if tensor.element_size() == 1:  # no kernel for 8 bits
        tensor = tensor.float()
    return tuple(each.item() for each in torch.aminmax(tensor))


def likely_cause(parts: Mapping[str, Part], places: Mapping[str, ConvNeXt]) -> str:
    """Say which ConvNeXts the two sides are, where that tells them apart; ends in a space."""
    for place, part in parts.items():
        own = places[place]
        ours, theirs = Architecture(own.depths, own.dims, own.grn), part.architecture
        built = min(len(ours.depths), len(theirs.depths))
        if ours.grn != theirs.grn or any(a[:built] != b[:built] for a, b in zip(ours[:2], theirs[:2], strict=True)):
            return f'It is {theirs}, the model is {ours}. '
    return ''


def describe_misfit(missing: list[str], shapes: Mapping[str, tuple[Tensor, Tensor]], surplus: list[str]) -> str:
    """List the first few keys that are of another shape or type, missing, or unexpected.

    Args:
        missing: The model's keys that the file lacks.
        shapes: The model's key -> (tensor of the file, tensor of the model).
        surplus: The file's keys for which the model has no place.
    """
    sentences = []
    if shapes:
        first, tensors = next(iter(shapes.items()))
        theirs, ours = (f'{tuple(tensor.shape)} {str(tensor.dtype).removeprefix("torch.")}' for tensor in tensors)
        sentences.append(
            f'Of another shape or type ({len(shapes)}): {shorten(shapes)}; {printable(first)} is {theirs} in the file '
            f'and {ours} in the model.'
        )
    if missing:
        sentences.append(f'Missing from the file ({len(missing)}): {shorten(missing)}.')
    if surplus:
        sentences.append(f'Only in the file ({len(surplus)}): {shorten(surplus)}.')
    return ' '.join(sentences)
