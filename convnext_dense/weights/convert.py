"""Write a checkpoint of any known format under the names and in the shapes of another library.

``TARGETS`` lists the libraries. A ``.safetensors`` file holds the weights alone; that of a whole model for fb or
mmpretrain has ``meta`` in its header.
"""

import os
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from convnext_dense.compat.errors import UserError, shorten
from convnext_dense.weights.formats import CLASSIFIER, FB, HF, MMPRETRAIN, TIMM, TORCHVISION, Format
from convnext_dense.weights.identify import (
    Part,
    choose_backbone,
    find_backbones,
    keys_of,
    name_licence,
    other_entries,
    read_part,
    unwrap,
    what_differs,
)
from convnext_dense.weights.load import module_versions
from convnext_dense.weights.meta import read_meta
from convnext_dense.weights.report import format_reasons, format_rows
from convnext_dense.weights.sources import fetch
from convnext_dense.weights.write import check_output, write_weights

OUTPUT_NORMS = tuple(f'norm{i}.' for i in range(4))
BACKBONE_ALONE = 'The backbone alone is converted with --backbone-only.'
UPERNET = ('decode_head.psp_modules.', 'decode_head.fpn_bottleneck.')
UPERNET_PARTS = ('decode_head.', 'auxiliary_head.')


@dataclass(frozen=True)
class Target:
    """A library that a checkpoint is written for.

    Attributes:
        format: Its names and shapes.
        wrapper: The entry of a ``.pth`` file that holds the tensors; without one they are its entries.
        has_meta: A ``.pth`` file has ``meta`` beside the tensors.
        whole: Whole models that it has: 'all', 'UperNet' or none.
        has_v2: It has ConvNeXt V2.
        classifier_prefix: What stands before the keys of a classifier's backbone; ``{v2}`` is the version.
    """

    format: Format
    wrapper: str = ''
    has_meta: bool = False
    whole: str = ''
    has_v2: bool = True
    classifier_prefix: str = ''


TARGETS = {
    target.format.name: target
    for target in (
        Target(FB, wrapper='model', whole='all'),
        Target(TIMM),
        Target(MMPRETRAIN, wrapper='state_dict', has_meta=True, whole='all'),
        Target(HF, whole='UperNet', classifier_prefix='convnext{v2}.'),
        Target(TORCHVISION, has_v2=False),
    )
}


@dataclass
class Conversion:
    """What was written, and what was not.

    Attributes:
        source: Where the weights came from.
        target: The format that was written.
        format: Whose names the source has.
        architecture: Which ConvNeXt it is.
        licence: What is known of the licence of the weights.
        tensors: Their name -> tensor.
        meta: Plain values beside the tensors, for formats that have a place for them.
        wrapper: As for :class:`Target`.
        is_whole: It is a detector or a segmentor.
        left_out: Why something was left out -> the source's keys.
        file: Where it was written.
    """

    source: str
    target: str
    format: str
    architecture: str
    licence: str
    tensors: OrderedDict[str, Tensor] = field(default_factory=OrderedDict)
    meta: dict[str, Any] | None = None
    wrapper: str = ''
    is_whole: bool = False
    left_out: dict[str, list[str]] = field(default_factory=dict)
    file: Path | None = None

    def leave_out(self, why: str, *keys: str) -> None:
        """Note keys of the source that are not written."""
        if keys:
            self.left_out.setdefault(why, []).extend(keys)

    def __str__(self) -> str:
        size = sum(tensor.nbytes for tensor in self.tensors.values()) / 1e6
        rows = [
            ('format', f'{self.format}, {self.architecture}'),
            ('licence', self.licence),
            ('written', f'{len(self.tensors)} weights, {size:.1f} MB, as {self.target}'),
            ('left out', format_reasons(self.left_out)),
            ('file', str(self.file or '')),
        ]
        return '\n'.join([f'weights from {self.source}', *format_rows(rows)])


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
        to: A name of :data:`TARGETS`.
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
    target, source = TARGETS[to], getattr(checkpoint, 'source', 'the checkpoint')
    given = unwrap(checkpoint, source)
    is_alone = backbone_only or prefix is not None
    parts = [read_part(given, choose_backbone(given, source, prefix))] if is_alone else read_all(given, source)
    used = keys_of(parts)
    rest = [key for key in given if key not in used]
    result = Conversion(
        source,
        target.format.title,
        parts[0].found.format.title,
        ', '.join(str(part.architecture) for part in parts),
        name_licence(checkpoint, parts, bool(rest)),
    )
    result.leave_out('training state', *other_entries(checkpoint))
    for part in parts:
        check_part(part, source, is_alone)
        for why, keys in part.left_out.items():
            result.leave_out(why, *keys)
        leave_out_head(part, result, is_alone)
    if is_alone:
        result.leave_out('other parts', *rest, *parts[0].unknown)
    result.is_whole = not is_alone and bool(rest or len(parts) > 1)
    if result.is_whole:
        check_whole(target, parts, rest, source)
        put_whole(target, parts, given, rest, result)
        result.wrapper = 'state_dict'
        result.tensors._metadata = module_versions(checkpoint) if target.format is FB else None
    else:
        put_backbone(target, parts[0], result)
        result.wrapper = target.wrapper
    if target.has_meta or (result.is_whole and target.whole == 'all'):
        result.meta = read_meta(checkpoint)
    return result


# The source


def read_all(given: Mapping[str, Tensor], source: str) -> list[Part]:
    """Return every ConvNeXt of a file, each with its classifier.

    Raises:
        UserError: There is none.
    """
    found = find_backbones(given) or [choose_backbone(given, source)]  # which raises
    parts = []
    for each in found:
        part = read_part(given, each)
        # A head beside a backbone that no final norm precedes is that of a whole model.
        is_backbone = each.prefix and 'norm.weight' not in part.entries
        parts.append(read_part(given, each, with_head=False) if is_backbone else part)
    return [part for part in parts if all(part.architecture.depths)] or parts[:1]  # a stem alone is no ConvNeXt


def check_part(part: Part, source: str, is_alone: bool) -> None:
    """Raise a :class:`UserError` unless this is a plain ConvNeXt that lacks nothing."""
    if difference := what_differs(part):
        raise UserError(
            f'{source} is {difference}. It is not converted: the target computes something else with its weights.'
        )
    if part.unknown and not is_alone:
        raise UserError(
            f'{source} holds {len(part.unknown)} weights that no model of {part.found.format.title} has: '
            f'{shorten(part.unknown)}. {BACKBONE_ALONE}'
        )
    if missing := missing_keys(part):
        raise UserError(
            f'{source} is not complete: {part.architecture} lacks {shorten(missing)}. Give the whole checkpoint.'
        )


def missing_keys(part: Part) -> list[str]:
    """Return our names that are not there, though the other blocks and layers of the backbone have their like."""
    depths = part.architecture.depths
    ends = sorted({key.split('.', 3)[3] for key in part.entries if key.startswith('stages.')})
    layers = [
        f'downsample_layers.{s}.{i}.{end}' for s in range(len(depths)) for i in '01' for end in ('weight', 'bias')
    ]
    # A stage without any block lacks its first.
    blocks = [f'stages.{s}.{b}.{end}' for s, depth in enumerate(depths) for b in range(max(depth, 1)) for end in ends]
    return [key for key in layers + (blocks or ['stages']) if key not in part.entries]


def leave_out_head(part: Part, result: Conversion, is_alone: bool) -> None:
    """Take a classifier's head out of a part where it is not wanted, or is not the one layer that all formats have."""
    if is_alone:
        result.leave_out('classifier', *origins(part.pop(*CLASSIFIER)))
    elif head := part.entries.get('head.weight'):
        is_plain = head.tensor.shape[1:] == part.architecture.dims[-1:] and 'norm.weight' in part.entries
        if not is_plain:
            result.leave_out('head that is not one layer after a norm', *origins(part.pop('head.')))


def origins(entries: Mapping) -> list[str]:
    """Return the file's keys of entries."""
    return [entry.origin for entry in entries.values()]


# The result


def put_backbone(target: Target, part: Part, result: Conversion) -> None:
    """Put a backbone, or a classifier, into the result.

    Raises:
        UserError: The target has no ConvNeXt V2.
    """
    fmt, is_v2 = target.format, part.architecture.grn
    if is_v2 and not target.has_v2:
        others = ', '.join(name for name in TARGETS if name != fmt.name)
        raise UserError(f'{fmt.title} has no ConvNeXt V2, and {result.source} is one. Convert it to {others}.')
    prefix = fmt.prefix
    if target.classifier_prefix and part.has('head.'):
        prefix = target.classifier_prefix.format(v2='v2' if is_v2 else '')
        result.leave_out('output norms', *origins(part.pop(*OUTPUT_NORMS)))
    elif target.classifier_prefix and part.has(*OUTPUT_NORMS):
        result.leave_out('final norm', *origins(part.pop('norm.')))
    moves_norm = fmt.final_norm and not part.has(*OUTPUT_NORMS)
    for key, entry in part.entries.items():
        name = key.replace('norm.', fmt.final_norm) if moves_norm and key.startswith('norm.') else key
        if written := fmt.write(name, entry.tensor, part.architecture.size):
            is_head = key.startswith('head.')  # which stands beside the backbone
            result.tensors[('' if is_head else prefix) + written[0]] = written[1]
        else:
            result.leave_out('output norms' if key.startswith(OUTPUT_NORMS) else 'final norm', entry.origin)


def check_whole(target: Target, parts: list[Part], rest: list[str], source: str) -> None:
    """Raise a :class:`UserError` where a target has no place for a whole model."""
    prefix = parts[0].found.prefix
    is_upernet = all(any(key.startswith(start) for key in rest) for start in UPERNET)
    has_more = len(parts) > 1 or not all(key.startswith(UPERNET_PARTS) for key in rest)
    reasons = {
        f'{target.format.title} has no detectors and segmentors': not target.whole,
        'of whole models Hugging Face has UperNet alone': target.whole == 'UperNet' and (not is_upernet or has_more),
        f"its backbone stands at {prefix!r}, where Hugging Face's UperNet has it at 'backbone.'": (
            target.whole == 'UperNet' and prefix != 'backbone.'
        ),
    }
    for reason, holds in reasons.items():
        if holds:
            raise UserError(f'{source} is a whole model, with {shorten(rest, 2)}; {reason}. {BACKBONE_ALONE}')


def put_whole(
    target: Target, parts: list[Part], given: Mapping[str, Tensor], rest: list[str], result: Conversion
) -> None:
    """Put a detector or a segmentor into the result: its backbones renamed, and its heads where the names differ."""
    for part in parts:
        for key, entry in part.entries.items():
            if written := target.format.write(key, entry.tensor):
                result.tensors[part.found.prefix + written[0]] = written[1]
            else:
                result.leave_out('final norm', entry.origin)
    for key in rest:
        name = key
        for part in parts:
            name = part.found.format.rename_head(name)
        for theirs, ours in target.format.heads:
            name = name.replace(ours, theirs)
        result.tensors[name] = given[key]
