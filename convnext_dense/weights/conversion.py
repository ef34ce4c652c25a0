"""A checkpoint of any known format goes in; one with the names and shapes of another library comes out, and a report.

    source -> fetch -> read_part -> translate -> encode -> file

===========  =========================================================================  ===========================
target       what loads it                                                              a ``.pth`` file holds
===========  =========================================================================  ===========================
fb           facebookresearch's ConvNeXt and this package                               ``model``
fb, whole    MMDetection, MMSegmentation with this package's backbone                   ``meta`` and ``state_dict``
timm         ``timm.create_model``                                                      the weights alone
mmpretrain   mmpretrain's ConvNeXt; MMDetection and MMSegmentation with it              ``meta`` and ``state_dict``
hf           ``ConvNextModel``, ``ConvNextBackbone``, ``ConvNextForImageClassification``  the weights alone
             and those of V2; a whole UperNet: ``UperNetForSemanticSegmentation``
torchvision  ``torchvision.models.ConvNeXt``                                            the weights alone
===========  =========================================================================  ===========================

A ``.safetensors`` file holds the weights alone; that of a whole model for fb or mmpretrain has ``meta`` in its header.
"""

import os
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from convnext_dense.compat.errors import UserError
from convnext_dense.weights.architecture import NORM_EPS, OTHER_SIZES, what_differs
from convnext_dense.weights.formats import (
    CLASSIFIER,
    FB,
    HF,
    MMPRETRAIN,
    TARGETS,
    TIMM,
    TORCHVISION,
    Format,
    Found,
    find_backbones,
)
from convnext_dense.weights.loading import module_versions, rename_head
from convnext_dense.weights.provenance import name_licence, other_entries, read_meta
from convnext_dense.weights.reading import Part, choose_backbone, keys_of, read_part, unwrap
from convnext_dense.weights.report import shorten
from convnext_dense.weights.sources import fetch
from convnext_dense.weights.writing import check_output, write_weights

NOT_IN_TIMM = ('convnext_huge', 'convnextv2_xlarge')
OUTPUT_NORMS = tuple(f'norm{i}.' for i in range(4))
UPERNET = ('decode_head.psp_modules.', 'decode_head.fpn_bottleneck.')
UPERNET_PARTS = ('decode_head.', 'auxiliary_head.')
BACKBONE_ALONE = 'The backbone alone is converted with --backbone-only.'


@dataclass
class Conversion:
    """What was written, and what was not.

    Attributes:
        source: Where the weights came from.
        target: The format that was written.
        loads_into: What takes the result.
        format: Whose names the source has.
        architecture: Which ConvNeXt it is.
        licence: What is known of that of the weights.
        tensors: Their name -> tensor.
        meta: Plain values beside the tensors, for formats that have a place for them.
        wrapper: The entry of a ``.pth`` file that holds the tensors; none: they are its entries.
        is_whole: It is a detector or a segmentor.
        reshaped: Their names of tensors that have another shape in the source.
        left_out: Why something was left out -> the source's keys.
        file: Where it was written.
    """

    source: str
    target: str
    loads_into: str = ''
    format: str = ''
    architecture: str = ''
    licence: str = ''
    tensors: OrderedDict[str, Tensor] = field(default_factory=OrderedDict)
    meta: dict[str, Any] | None = None
    wrapper: str = ''
    is_whole: bool = False
    reshaped: list[str] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    file: Path | None = None

    def put(self, name: str, tensor: Tensor, in_source: Tensor) -> None:
        """Add a tensor of the result."""
        self.tensors[name] = tensor
        if tensor.shape != in_source.shape:
            self.reshaped.append(name)

    def leave_out(self, why: str, *keys: str) -> None:
        """Note keys of the source that are not written."""
        if keys:
            self.left_out.setdefault(why, []).extend(keys)

    def __str__(self) -> str:
        size = sum(tensor.nbytes for tensor in self.tensors.values()) / 1e6
        rows = {
            'format': ', '.join(filter(None, (self.format, self.architecture))),
            'licence': self.licence,
            'written': f'{len(self.tensors)} weights, {size:.1f} MB, as {self.target}',
            'loads into': self.loads_into,
            'reshaped': shorten(self.reshaped, 2),
            'left out': '; '.join(f'{why}: {shorten(keys, 2)}' for why, keys in self.left_out.items()),
            'file': str(self.file or ''),
        }
        lines = [f'  {name:14}{text}' for name, text in rows.items() if text]
        return '\n'.join([f'weights from {self.source}', *lines])


def convert(
    source: str | os.PathLike,
    out: str | os.PathLike,
    to: str,
    *,
    backbone_only: bool = False,
    prefix: str | None = None,
    force: bool = False,
) -> Conversion:
    """Write a checkpoint under the names of another library.

    Args:
        source: What :func:`~convnext_dense.weights.sources.fetch` takes.
        out: The file to write; its suffix, ``.safetensors`` or ``.pth``, tells the container.
        to: A name of :data:`~convnext_dense.weights.formats.TARGETS`.
        backbone_only: Leave out everything but the backbone.
        prefix: What stands before the keys of the backbone that is meant, in a file with several; that backbone alone
            is then converted.
        force: Replace an existing file, though never the source.

    Raises:
        UserError: The source cannot be read, the target has no such model, or the file cannot be written.
    """
    file = Path(out)
    check_output(file, source, force)
    result = translate(fetch(source), to, backbone_only=backbone_only, prefix=prefix)
    meta = result.meta if file.suffix == '.pth' or result.is_whole else None
    write_weights(result.tensors, file, result.wrapper, meta)
    result.file = file
    return result


def translate(checkpoint: Mapping, to: str, *, backbone_only: bool = False, prefix: str | None = None) -> Conversion:
    """Return a checkpoint's tensors under the names and in the shapes of another library; nothing is written.

    Args:
        checkpoint: What a file holds.
        to: As for :func:`convert`, like the other two.
        backbone_only: Leave out everything but the backbone.
        prefix: Which backbone is meant.

    Raises:
        UserError: The target has no such model.
    """
    if to not in TARGETS:
        raise UserError(f'Checkpoints are converted to {", ".join(TARGETS)}; got {to!r}.')
    target = TARGETS[to]
    source = getattr(checkpoint, 'source', 'the checkpoint')
    given = unwrap(checkpoint, source)
    alone = backbone_only or prefix is not None
    parts = [read_part(given, choose_backbone(given, source, prefix))] if alone else read_all(given, source)
    used = keys_of(parts)
    rest = [key for key in given if key not in used]

    result = Conversion(source, target.title)
    result.leave_out('training state', *other_entries(checkpoint))
    for part in parts:
        check_part(part, source, alone)
        for why, keys in part.left_out.items():
            result.leave_out(why, *keys)
        leave_out_head(part, result, alone)
    if alone:
        result.leave_out('other parts', *rest, *parts[0].unknown)
    else:
        result.is_whole = bool(rest) or len(parts) > 1
    result.format = parts[0].found.format.title
    result.architecture = ', '.join(str(part.architecture) for part in parts)
    meta = read_meta(checkpoint)
    result.licence = name_licence(checkpoint, parts, bool(rest))

    if result.is_whole:
        check_whole(target, parts, rest, source)
        rename_whole(target, parts, given, rest, result)
    else:
        rename_part(target, parts[0], given, result)
    result.loads_into = name_loader(target, parts[0], result)
    set_container(result, target, meta)
    if target is FB and result.is_whole:
        result.tensors._metadata = module_versions(checkpoint)
    return result


def set_container(result: Conversion, target: Format, meta: dict[str, Any]) -> None:
    """Note under which entry of a ``.pth`` file a library expects the tensors, and what it expects beside them."""
    if target is MMPRETRAIN or (target is FB and result.is_whole):
        result.wrapper, result.meta = 'state_dict', meta
    elif target is FB:
        result.wrapper = 'model'


def read_all(given: Mapping[str, Tensor], source: str) -> list[Part]:
    """Return every ConvNeXt of a file with its classifier.

    Raises:
        UserError: There is none.
    """
    found = find_backbones(given) or [choose_backbone(given, source)]  # which raises
    parts = [read_with_head(given, each) for each in found]
    return [part for part in parts if all(part.architecture.depths)] or parts[:1]  # a stem alone is no ConvNeXt


def read_with_head(given: Mapping[str, Tensor], found: Found) -> Part:
    """Return a ConvNeXt with its classifier; a head beside it that no final norm precedes is that of a whole model."""
    part = read_part(given, found)
    is_backbone = found.prefix and 'norm.weight' not in part.entries
    return read_part(given, found, with_head=False) if is_backbone else part


def check_part(part: Part, source: str, alone: bool) -> None:
    """Raise a :class:`UserError` unless this is a plain ConvNeXt that lacks nothing."""
    eps = own_eps(part)
    difference = what_differs(part.found.format, part.tensors, eps)
    if not difference and eps != NORM_EPS:
        difference = (
            f'{part.architecture} (timm), whose LayerNorm has epsilon {eps:g}, where all targets have {NORM_EPS:g}'
        )
    if difference:
        raise UserError(
            f'{source} is {difference}. It is not converted: the target computes something else with its weights.'
        )
    if part.unknown and not alone:
        raise UserError(
            f'{source} holds {len(part.unknown)} weights that no model of {part.found.format.title} has: '
            f'{shorten(part.unknown)}. {BACKBONE_ALONE}'
        )
    if missing := missing_keys(part):
        raise UserError(
            f'{source} is not complete: {part.architecture} lacks {shorten(missing)}. Give the whole checkpoint.'
        )


def own_eps(part: Part) -> float:
    """Return the epsilon that a ConvNeXt's LayerNorm has where the ConvNeXt comes from."""
    other = OTHER_SIZES.get(part.architecture[:2]) if part.found.format is TIMM else None
    return other.norm_eps if other else NORM_EPS


def missing_keys(part: Part) -> list[str]:
    """Return our names that are not there, though the other blocks and layers of the backbone have their like."""
    depths = part.architecture.depths
    ends = sorted({key.split('.', 3)[3] for key in part.entries if key.startswith('stages.')})
    layers = [
        f'downsample_layers.{s}.{i}.{end}' for s in range(len(depths)) for i in '01' for end in ('weight', 'bias')
    ]
    # a stage without any block lacks its first
    blocks = [f'stages.{s}.{b}.{end}' for s, depth in enumerate(depths) for b in range(max(depth, 1)) for end in ends]
    return [key for key in layers + (blocks or ['stages']) if key not in part.entries]


def leave_out_head(part: Part, result: Conversion, alone: bool) -> None:
    """Take a classifier's head out of a part where it is not wanted, or is not the one layer that all formats have."""
    weight, last = part.tensors.get('head.weight'), part.architecture.dims[-1]
    if alone:
        result.leave_out('classifier', *(entry.origin for entry in part.pop(*CLASSIFIER).values()))
    elif weight is not None and (weight.shape[1:] != (last,) or 'norm.weight' not in part.entries):
        why = 'head that is not one layer after a norm'
        result.leave_out(why, *(entry.origin for entry in part.pop('head.').values()))


def rename_part(target: Format, part: Part, given: Mapping[str, Tensor], result: Conversion) -> None:
    """Put a backbone, or a classifier, into the result."""
    if target is TORCHVISION and part.architecture.grn:
        others = ', '.join(name for name in TARGETS if name != target.name)
        raise UserError(
            f'torchvision has no ConvNeXt V2, and {result.source} is {part.architecture}. Convert it to {others}.'
        )
    prefix = target.prefix
    has_output_norms = any(key.startswith(OUTPUT_NORMS) for key in part.entries)
    if target is HF and 'head.weight' in part.entries:
        prefix = 'convnextv2.' if part.architecture.grn else 'convnext.'
        result.leave_out('output norms', *(entry.origin for entry in part.pop(*OUTPUT_NORMS).values()))
    elif target is HF and has_output_norms:
        result.leave_out('final norm', *(entry.origin for entry in part.pop('norm.').values()))
    for key, entry in part.entries.items():
        if target is MMPRETRAIN and key.startswith('norm.') and not has_output_norms:
            key = f'norm3.{key.removeprefix("norm.")}'  # the place of a classifier's norm there
        written = target.write(key, entry.tensor, part.architecture.size)
        if written:
            is_head = key.startswith('head.')  # which stands beside the backbone
            result.put(('' if is_head else prefix) + written[0], written[1], given[entry.origin])
        else:
            result.leave_out('output norms' if key.startswith(OUTPUT_NORMS) else 'final norm', entry.origin)


def check_whole(target: Format, parts: list[Part], rest: list[str], source: str) -> None:
    """Raise a :class:`UserError` where a target has no place for a whole model."""
    if target in (FB, MMPRETRAIN):
        return
    is_upernet = all(any(key.startswith(start) for key in rest) for start in UPERNET)
    has_more = len(parts) > 1 or not all(key.startswith(UPERNET_PARTS) for key in rest)
    prefix = parts[0].found.prefix
    if target is not HF:
        reason = f'{target.title} has no detectors and segmentors'
    elif not is_upernet or has_more:
        reason = 'of whole models Hugging Face has UperNet alone'
    elif prefix != 'backbone.':
        reason = f"its backbone stands at {prefix!r}, where Hugging Face's UperNet has it at 'backbone.'"
    else:
        return
    raise UserError(f'{source} is a whole model, with {shorten(rest, 2)}; {reason}. {BACKBONE_ALONE}')


def rename_whole(
    target: Format, parts: list[Part], given: Mapping[str, Tensor], rest: list[str], result: Conversion
) -> None:
    """Put a detector or a segmentor into the result: its backbones renamed, and its heads where the names differ."""
    for part in parts:
        for key, entry in part.entries.items():
            if written := target.write(key, entry.tensor):
                result.put(part.found.prefix + written[0], written[1], given[entry.origin])
            else:
                result.leave_out('final norm', entry.origin)
    for key in rest:
        name = rename_head(key, parts)
        for theirs, ours in target.heads:
            name = name.replace(ours, theirs)
        result.put(name, given[key], given[key])


def name_loader(target: Format, part: Part, result: Conversion) -> str:
    """Say what loads the result, and what that has besides."""
    if result.is_whole:
        return name_loader_of_whole(target, part)
    version, num_stages = ('V2' if part.architecture.grn else ''), len(part.architecture.depths)
    has = {'final norm': 'norm.weight' in part.entries, 'head': 'head.weight' in part.entries}
    is_hf_backbone = any(key.startswith('hidden_states_norms.') for key in result.tensors)
    hf_class = 'Backbone' if is_hf_backbone else 'ForImageClassification' if has['head'] else 'Model'
    loader = {
        'fb': 'facebookresearch ConvNeXt and this package',
        'timm': f'timm {name_in_timm(part)}',
        'mmpretrain': 'mmpretrain ConvNeXt',
        'hf': f'transformers ConvNext{version}{hf_class}',
        'torchvision': 'torchvision ConvNeXt',
    }[target.name]
    wanted = {'timm': has, 'torchvision': has, 'hf': () if is_hf_backbone else ('final norm',)}.get(target.name, ())
    lacks = [name for name in wanted if not has[name]]
    if num_stages < 4 and target is TIMM:  # whose models have four
        lacks = [*(f'stage {s}' for s in range(num_stages, 4)), *lacks]
    elif num_stages < 4 and target is FB:
        loader = f'this package, with out_indices below {num_stages}'
    elif num_stages < 4:
        loader += f' of {num_stages} stages'
    return f'{loader}, with strict=False: it lacks {", ".join(lacks)}' if lacks else loader


def name_loader_of_whole(target: Format, part: Part) -> str:
    """Say what loads a detector or a segmentor."""
    if target is not HF:
        return f'a model with the ConvNeXt of {"mmpretrain" if target is MMPRETRAIN else "this package"}'
    loader = 'transformers UperNetForSemanticSegmentation'
    if any(key.startswith(OUTPUT_NORMS) for key in part.entries):
        return loader
    return f'{loader}, with strict=False: it lacks output norms, which are computed there all the same'


def name_in_timm(part: Part) -> str:
    """Return the name of a model in timm, or how it is built where timm has no name for it."""
    depths, dims, grn = part.architecture
    name = f'convnext{"v2" * grn}_{part.architecture.size}'
    if part.architecture.size and name not in NOT_IN_TIMM:
        return name
    if len(depths) < 4:
        return f'ConvNeXt whose first {len(depths)} stages have depths {depths} and dims {dims}'
    has_scale = any(key.startswith('stages.') and key.endswith('.gamma') and '.grn.' not in key for key in part.entries)
    options = ', use_grn=True' * grn + ', ls_init_value=None' * (not has_scale)
    return f'ConvNeXt(depths={depths}, dims={dims}{options})'
