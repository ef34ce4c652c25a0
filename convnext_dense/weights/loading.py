"""A source and a model go in; the model's weights and a report come out, or one error that says why they cannot.

Nothing is loaded in part in silence: upstream's loaders skip what does not fit and leave the backbone random.

    source -> fetch -> read_part -> fit -> model.load_state_dict -> Report
"""

import os
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from mmengine.model import BaseTTAModel, is_model_wrapper
from torch import Tensor, nn

from convnext_dense.backbone import ConvNeXt
from convnext_dense.console import show_table
from convnext_dense.errors import UserError
from convnext_dense.weights.architecture import read_architecture, stage_of, what_differs
from convnext_dense.weights.formats import CLASSIFIER
from convnext_dense.weights.reading import Entry, Part, choose_backbone, keys_of, read_part, unwrap
from convnext_dense.weights.report import Report, shorten
from convnext_dense.weights.sources import fetch

Need = Literal['backbone', 'all']
COUNTER = 'num_batches_tracked'  # of BatchNorm: older files lack it, and nothing depends on it


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
        prefix: What stands before the backbone's keys in a file that holds several ConvNeXts.
        final_norm: Load the classifier's final norm into ``norm3``: the last map is then what a classifier pools.

    Returns:
        What was loaded, left out and missing.

    Raises:
        UserError: The weights cannot be read or do not fit; the model is as it was.
    """
    checkpoint = source if isinstance(source, Mapping) else fetch(source)
    tensors, report = fit(model, checkpoint, need=need, strict=strict, prefix=prefix, final_norm=final_norm)
    state_dict = OrderedDict(tensors)
    state_dict._metadata = module_versions(checkpoint)
    with torch.no_grad():
        unwrap_model(model).load_state_dict(state_dict, strict=False)
    return report


def load_pretrained(backbone: ConvNeXt, init_cfg: Mapping) -> None:
    """Carry out an ``init_cfg`` of type 'Pretrained' for a backbone, and log the report.

    Raises:
        UserError: The weights do not fit, or ``init_cfg`` has a key that nothing reads.
    """
    options = {key: value for key, value in init_cfg.items() if key not in ('type', 'checkpoint', 'map_location')}
    allowed = ('prefix', 'strict', 'final_norm')
    if not init_cfg.get('checkpoint') or set(options) - set(allowed):
        raise UserError(
            f'init_cfg of type Pretrained takes checkpoint, {", ".join(allowed)}; got '
            f'{", ".join(key for key in init_cfg if key != "type") or "nothing"}.'
        )
    show_table(str(load_weights(backbone, init_cfg['checkpoint'], **options)))


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
    places = {f'{name}.' if name else '': part for name, part in model.named_modules() if isinstance(part, ConvNeXt)}
    parts = {
        place: read_part(given, choose_backbone(given, source, prefix, place), with_head=not place) for place in places
    }
    used = keys_of(parts.values())
    report = Report(source, licence=getattr(checkpoint, 'licence', ''))
    for place, part in parts.items():
        prepare(part, places[place], report, final_norm)

    entries = {place + key: entry for place, part in parts.items() for key, entry in part.entries.items()}
    rest = [key for key in given if key not in used]
    if parts and not rest and not report.licence:  # the weights as their makers publish them, not a model of the user's
        report.licence = next(iter(parts.values())).found.format.licence
    if '' in places:
        report.leave_out('other parts', *rest)
    else:
        entries.update({rename_head(key, parts.values()): Entry(key, given[key]) for key in rest})

    target = model.state_dict()
    needed = {key for key in target if COUNTER not in key and (need == 'all' or is_of_backbone(key, places))}
    fitting = {key: e.tensor for key, e in entries.items() if key in target and e.tensor.shape == target[key].shape}
    misfits = {key: e for key, e in entries.items() if key in target and key not in fitting}
    report.missing = [key for key in target if key in needed and key not in entries]
    report.from_scratch = [key for key in target if key not in {*needed, *fitting} and COUNTER not in key]
    report.leave_out('of another shape', *(e.origin for key, e in misfits.items() if key not in needed))
    unknown = [key for part in parts.values() for key in part.unknown]
    report.unexpected = unknown + [e.origin for key, e in entries.items() if key not in target and COUNTER not in key]
    for key, tensor in fitting.items():
        report.note_loaded(key, given[entries[key].origin], tensor, target[key])

    if strict:
        shapes = {key: (e.tensor.shape, target[key].shape) for key, e in misfits.items() if key in needed}
        surplus = report.unexpected if need == 'all' else unknown
        if report.missing or shapes or surplus:
            part = 'the model' if need == 'all' else 'the backbone'
            raise UserError(
                f'{source} does not fit {part}. {likely_cause(parts, target)}'
                + describe_misfit(report.missing, shapes, surplus)
            )
        check_finite(fitting, source)
    return fitting, report


def unwrap_model(model: nn.Module) -> nn.Module:
    """Return the model inside of DistributedDataParallel, test-time augmentation and the like."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model


def module_versions(checkpoint: Mapping) -> Mapping | None:
    """Return the versions of the modules that wrote a state dict, which PyTorch notes beside the tensors."""
    versions = (getattr(each, '_metadata', None) for each in (checkpoint, checkpoint.get('state_dict')))
    return next((each for each in versions if each), None)


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
    for key, entry in [*part.entries.items()]:
        why = ''
        if key.startswith(CLASSIFIER):
            why = 'classifier'
        elif key not in own and stage_of(key) >= len(backbone.stages):
            why = 'stages that are not built'
        elif key not in own and key.startswith('norm'):
            why = 'output norms'
        if why:
            report.leave_out(why, entry.origin)
            del part.entries[key]
    report.format = part.found.format.title
    report.architecture = str(part.architecture)
    part.left_out.clear()


def is_of_backbone(key: str, places: Iterable[str]) -> bool:
    """Tell whether a key of the model belongs to a ConvNeXt and is no output norm."""
    return any(key.startswith(place) and not key.removeprefix(place).startswith('norm') for place in places)


def rename_head(key: str, parts: Iterable[Part]) -> str:
    """Return our name of a key outside of the backbones."""
    for part in parts:
        for theirs, ours in part.found.format.heads:
            key = key.replace(theirs, ours)
    return key


def check_finite(tensors: Mapping[str, Tensor], source: str) -> None:
    """Raise a :class:`UserError` that names the first tensors with NaN or infinity."""
    bad = [
        key
        for key, tensor in tensors.items()
        if tensor.is_floating_point() and tensor.numel() and not torch.stack(torch.aminmax(tensor)).isfinite().all()
    ]
    if bad:
        raise UserError(
            f'{source} holds NaN or infinity in {len(bad)} of {len(tensors)} weights: {shorten(bad)}. The training '
            'that wrote it had diverged; take an earlier checkpoint.'
        )


def likely_cause(parts: Mapping[str, Part], target: Mapping[str, Tensor]) -> str:
    """Say which ConvNeXts the two sides are, where that tells them apart; ends in a space."""
    for place, part in parts.items():
        own = {key.removeprefix(place): value for key, value in target.items() if key.startswith(place)}
        ours, theirs = read_architecture(own), part.architecture
        if ours[:2] != tuple(sizes[: len(ours.depths)] for sizes in theirs[:2]) or ours.grn != theirs.grn:
            return f'It is {theirs}, the model is {ours}. '
    return ''


def describe_misfit(missing: list[str], shapes: Mapping[str, tuple], surplus: list[str]) -> str:
    """List the first few keys that are of another shape, missing, or unexpected.

    Args:
        missing: The model's keys that the file lacks.
        shapes: The model's key -> (shape in the file, shape in the model).
        surplus: The file's keys for which the model has no place.
    """
    sentences = []
    if shapes:
        first, (theirs, ours) = next(iter(shapes.items()))
        sentences.append(
            f'Of another shape ({len(shapes)}): {shorten(shapes)}; {first} is {tuple(theirs)} in the file and '
            f'{tuple(ours)} in the model.'
        )
    if missing:
        sentences.append(f'Missing from the file ({len(missing)}): {shorten(missing)}.')
    if surplus:
        sentences.append(f'Only in the file ({len(surplus)}): {shorten(surplus)}.')
    return ' '.join(sentences)
