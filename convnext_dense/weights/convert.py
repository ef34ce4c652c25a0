"""Write a checkpoint of any known format under the names and in the shapes of another library.

``TARGETS`` lists the libraries. A ``.safetensors`` file holds the weights alone; that of a whole model for fb or
mmpretrain has ``meta`` in its header.
"""

import os
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from convnext_dense.compat.errors import UserError, shorten
from convnext_dense.weights.formats import CLASSIFIER, FB, HF, MMPRETRAIN, TIMM, TORCHVISION, Format
from convnext_dense.weights.identify import (
    Entry,
    Part,
    choose_backbone,
    find_backbones,
    keys_beside,
    name_licence,
    other_entries,
    unwrap,
    what_differs,
    with_head,
)
from convnext_dense.weights.load import module_versions
from convnext_dense.weights.meta import read_meta
from convnext_dense.weights.report import Account
from convnext_dense.weights.sources import as_checkpoint, fetch
from convnext_dense.weights.write import check_output, write_weights

OUTPUT_NORMS = tuple(f'norm{i}.' for i in range(4))
BACKBONE_ALONE = 'The backbone alone is converted with --backbone-only.'
UPERNET = ('decode_head.psp_modules.', 'decode_head.fpn_bottleneck.')
UPERNET_PARTS = ('decode_head.', 'auxiliary_head.')
TARGETS = {fmt.name: fmt for fmt in (FB, TIMM, MMPRETRAIN, HF, TORCHVISION)}


@dataclass
class Conversion(Account):
    """What was written, and what was not, besides what every :class:`~convnext_dense.weights.report.Account` has."""

    target: str = ''  # the format that was written
    tensors: OrderedDict[str, Tensor] = field(default_factory=OrderedDict)  # their name -> tensor
    is_whole: bool = False  # it is a detector or a segmentor
    file: Path | None = None  # where it was written

    def rows(self) -> list[tuple[str, str]]:
        """Return what is shown, as names and texts."""
        *known, left_out = super().rows()
        size = sum(tensor.nbytes for tensor in self.tensors.values()) / 1e6
        written = f'{len(self.tensors)} weights, {size:.1f} MB, as {self.target}'
        return [*known, ('written', written), left_out, ('file', str(self.file or ''))]


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
    checkpoint = fetch(source)
    result, target = translate(checkpoint, to, backbone_only=backbone_only, prefix=prefix), TARGETS[to]
    wrapper = 'state_dict' if result.is_whole and target.whole == 'all' else target.wrapper
    has_meta = wrapper == 'state_dict' and (result.is_whole or file.suffix == '.pth')
    write_weights(result.tensors, file, wrapper, read_meta(checkpoint) if has_meta else None)
    result.file = file
    return result


def translate(checkpoint: Mapping, to: str, *, backbone_only: bool = False, prefix: str | None = None) -> Conversion:
    """Return a checkpoint's tensors under the names and in the shapes of another library; nothing is written.

    The arguments are those of :func:`convert`, for a checkpoint that was read already.

    Raises:
        UserError: The target has no such model.
    """
    if to not in TARGETS:
        raise UserError(f'Checkpoints are converted to {", ".join(TARGETS)}; got {to!r}.')
    target, checkpoint = TARGETS[to], as_checkpoint(checkpoint)
    given, source = unwrap(checkpoint), checkpoint.source
    is_alone = backbone_only or prefix is not None
    parts = [with_head(choose_backbone(given, source, prefix), given)] if is_alone else read_all(given, source)
    rest = keys_beside(parts, given)
    result = Conversion(source, parts[0].format.title, target=target.title)
    result.architecture = ', '.join(str(part.architecture) for part in parts)
    result.licence = name_licence(checkpoint, parts, rest)
    result.leave_out('training state', *other_entries(checkpoint))
    for part in parts:
        check_part(part, source, is_alone)
        for why, keys in part.left_out.items():
            result.leave_out(why, *keys)
        leave_out_head(part, result, is_alone)
    if is_alone:
        result.leave_out('other parts', *rest, *origins(parts[0].unknown))
    result.is_whole = not is_alone and bool(rest or len(parts) > 1)
    if result.is_whole:
        check_whole(target, parts, rest, source)
        put_whole(target, parts, given, rest, result)
        result.tensors._metadata = module_versions(checkpoint) if target is FB else None
    else:
        put_backbone(target, parts[0], result)
    return result


# The source


def read_all(given: Mapping[str, Tensor], source: str) -> list[Part]:
    """Return every ConvNeXt of a file, each with its classifier, or raise a :class:`UserError` where there is none."""
    parts = []
    for part in find_backbones(given) or [choose_backbone(given, source)]:  # which raises
        whole = with_head(part, given)
        # A head beside a backbone that no final norm precedes is that of a whole model.
        parts.append(part if part.prefix and 'norm.weight' not in whole.entries else whole)
    return [part for part in parts if all(part.architecture.depths)] or parts[:1]  # a stem alone is no ConvNeXt


def check_part(part: Part, source: str, is_alone: bool) -> None:
    """Raise a :class:`UserError` unless this is a plain ConvNeXt that lacks nothing."""
    if difference := what_differs(part):
        raise UserError(
            f'{source} is {difference}. It is not converted: the target computes something else with its weights.'
        )
    if part.unknown and not is_alone:
        raise UserError(
            f'{source} holds {len(part.unknown)} weights that no model of {part.format.title} has: '
            f'{shorten(origins(part.unknown))}. {BACKBONE_ALONE}'
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


def origins(entries: Mapping[str, Entry]) -> list[str]:
    """Return the file's keys of entries."""
    return [entry.origin for entry in entries.values()]


# The result


def put_backbone(target: Format, part: Part, result: Conversion) -> None:
    """Put a backbone, or a classifier, into the result, or raise a :class:`UserError` if it is a V2 without a place."""
    is_v2 = part.architecture.grn
    if is_v2 and not target.has_v2:
        others = ', '.join(name for name in TARGETS if name != target.name)
        raise UserError(f'{target.title} has no ConvNeXt V2, and {result.source} is one. Convert it to {others}.')
    prefix = target.prefix
    if target.classifier_prefix and part.has('head.'):
        prefix = target.classifier_prefix.format(v2='v2' if is_v2 else '')
        result.leave_out('output norms', *origins(part.pop(*OUTPUT_NORMS)))
    elif target.classifier_prefix and part.has(*OUTPUT_NORMS):
        result.leave_out('final norm', *origins(part.pop('norm.')))
    if target.final_norm and not part.has(*OUTPUT_NORMS):
        for key, entry in part.pop('norm.').items():
            part.entries[key.replace('norm.', target.final_norm)] = entry
    put(target, part, prefix, '', result)


def put(target: Format, part: Part, prefix: str, head_prefix: str, result: Conversion) -> None:
    """Put all into the result for which a format has a place; the head may stand beside the backbone."""
    size = part.architecture.size
    for key, entry in part.entries.items():
        if written := target.write(key, entry.tensor, size):
            result.tensors[(head_prefix if key.startswith('head.') else prefix) + written[0]] = written[1]
        else:
            result.leave_out('output norms' if key.startswith(OUTPUT_NORMS) else 'final norm', entry.origin)


def check_whole(target: Format, parts: list[Part], rest: list[str], source: str) -> None:
    """Raise a :class:`UserError` where a target has no place for a whole model."""
    if target.whole == 'all':
        return
    prefix = parts[0].prefix
    is_upernet = all(any(key.startswith(start) for key in rest) for start in UPERNET)
    reason = f"its backbone stands at {prefix!r}, where Hugging Face's UperNet has it at 'backbone.'"
    if not target.whole:
        reason = f'{target.title} has no detectors and segmentors'
    elif not is_upernet or len(parts) > 1 or not all(key.startswith(UPERNET_PARTS) for key in rest):
        reason = 'of whole models Hugging Face has UperNet alone'
    elif prefix == 'backbone.':
        return
    raise UserError(f'{source} is a whole model, with {shorten(rest, 2)}; {reason}. {BACKBONE_ALONE}')


def put_whole(
    target: Format, parts: list[Part], given: Mapping[str, Tensor], rest: list[str], result: Conversion
) -> None:
    """Put a detector or a segmentor into the result: its backbones renamed, and its heads where the names differ."""
    for part in parts:
        put(target, part, part.prefix, part.prefix, result)
    for key in rest:
        name = key
        for part in parts:
            name = part.format.rename_head(name)
        for theirs, ours in target.heads:
            name = name.replace(ours, theirs)
        result.tensors[name] = given[key]
