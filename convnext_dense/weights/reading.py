"""A checkpoint goes in; the ConvNeXts in it come out, under this package's names and in its shapes."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from convnext_dense.compat.errors import UserError
from convnext_dense.weights.architecture import Architecture, name_other_model, read_architecture
from convnext_dense.weights.formats import CLASSIFIER, MMPRETRAIN, Found, find_backbones
from convnext_dense.weights.report import shorten

# entries of a file that may hold the tensors, the preferred ones first; where none is there, the only one that does
WRAPPERS = ('state_dict', 'model', 'teacher', 'module')
MOST_WRAPPERS = 4  # around the tensors
EMA_OF_MMENGINE = 'ema_state_dict'  # EMAHook loads it
MOST_TENSORS = 100_000
MOST_REPEATED_BYTES = 2**30  # of a tensor that repeats fewer numbers


class Entry(NamedTuple):
    """A tensor of a file: its key there, and the tensor in our shape."""

    origin: str
    tensor: Tensor


@dataclass
class Part:
    """One ConvNeXt of a file.

    Attributes:
        found: Its format, and what stands before its keys.
        entries: Our name, without prefix -> entry; a classifier's final norm and head are ``norm`` and ``head``.
        left_out: Why the format leaves something out -> keys of the file.
        unknown: Keys below the prefix for which the format has no row.
        architecture: Which ConvNeXt it is in the file, whatever becomes of the entries.
    """

    found: Found
    entries: dict[str, Entry] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    architecture: Architecture | None = None

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Our name -> tensor."""
        return {key: entry.tensor for key, entry in self.entries.items()}

    def pop(self, *beginnings: str) -> dict[str, Entry]:
        """Take out the entries whose names begin so."""
        return {key: self.entries.pop(key) for key in [*self.entries] if key.startswith(beginnings)}


def unwrap(checkpoint: Mapping, source: str) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint, out of the entry that may hold them, without ``module.``.

    Raises:
        UserError: There are none, or as for :func:`find_tensors`.
    """
    if tensors := find_tensors(checkpoint, source):
        return tensors
    state_dict = find_state_dict(checkpoint)
    if several := [key for key, value in state_dict.items() if holds_weights(value)]:
        raise UserError(
            f'{source} holds several sets of weights, in {shorten(map(str, several))}. Save the one that is meant: '
            f'torch.save(torch.load(FILE)[{several[0]!r}], OTHER_FILE).'
        )
    raise UserError(
        f'{source} holds no weights; its entries are {shorten(map(str, state_dict)) or "none"}. Save the state_dict() '
        'of the model.'
    )


def find_tensors(checkpoint: Mapping, source: str) -> dict[str, Tensor]:
    """Return what :func:`unwrap` does, or nothing where there is none.

    Raises:
        UserError: There are more than any model has, or one would fill the memory.
    """
    tensors = {
        key.removeprefix('module.'): value
        for key, value in find_state_dict(checkpoint).items()
        if isinstance(key, str) and isinstance(value, Tensor) and is_plain(value)
    }
    if len(tensors) > MOST_TENSORS:
        raise UserError(f'{source} holds {len(tensors):,} tensors; a model has a few thousand. Is it the right file?')
    for key, tensor in tensors.items():
        if tensor.nbytes > max(MOST_REPEATED_BYTES, tensor.untyped_storage().nbytes()):
            raise UserError(
                f'{source} is not used: {shorten([key])} repeats {tensor.untyped_storage().nbytes():,} bytes to '
                f'{tensor.nbytes:,}. No checkpoint of a model does, and it could fill the memory.'
            )
    return tensors


def find_state_dict(checkpoint: Mapping) -> Mapping:
    """Return the entry of a checkpoint that holds its tensors, or the checkpoint itself.

    It is one of :data:`WRAPPERS` or the only one with weights, and so again within it.

    >>> find_state_dict({'net': {'state_dict': {'stem.weight': torch.ones(1)}}, 'optimizer': {'lr': 0.1}})
    {'stem.weight': tensor([1.])}
    """
    for _ in range(MOST_WRAPPERS):
        known = [key for key in WRAPPERS if isinstance(checkpoint.get(key), Mapping)]
        filled = [key for key in known if holds_weights(checkpoint[key])]
        if not filled and not has_own_weights(checkpoint):
            others = [key for key, value in checkpoint.items() if holds_weights(value)]
            filled = others if len(others) == 1 else known  # which may have names without dots
        if not filled:
            break
        checkpoint = checkpoint[filled[0]]
    return checkpoint


def holds_weights(entry: object, depth: int = MOST_WRAPPERS) -> bool:
    """Tell whether an entry of a checkpoint is a state dict, or holds one under a name of :data:`WRAPPERS`."""
    if not isinstance(entry, Mapping) or not depth:
        return False
    return has_own_weights(entry) or any(holds_weights(entry.get(key), depth - 1) for key in WRAPPERS)


def has_own_weights(entry: Mapping) -> bool:
    """Tell whether an entry of a checkpoint is a state dict.

    The names of weights have dots; those of a measured number, or of what an optimizer keeps for a weight, have not.
    """
    return any(isinstance(key, str) and '.' in key and isinstance(value, Tensor) for key, value in entry.items())


def other_weights(checkpoint: Mapping) -> list[str]:
    """Return the entries with weights that :func:`find_state_dict` passes over, such as ``model_ema``."""
    chosen = find_state_dict(checkpoint)
    entries = {key: find_state_dict(value) for key, value in checkpoint.items() if isinstance(value, Mapping)}
    return [
        str(key)
        for key, entry in entries.items()
        if key != EMA_OF_MMENGINE and entry is not chosen and any(isinstance(each, Tensor) for each in entry.values())
    ]


def is_plain(tensor: Tensor) -> bool:
    """Tell whether a tensor holds its numbers one by one: it is not sparse, not quantized, and not empty of data."""
    return tensor.layout is torch.strided and not tensor.is_quantized and not tensor.is_meta


def read_part(given: Mapping[str, Tensor], found: Found, with_head: bool = True) -> Part:
    """Return a ConvNeXt that was found, under our names.

    Args:
        given: All tensors of the file.
        found: The ConvNeXt's format and prefix in it.
        with_head: Where the rest of the file is a classifier's head or a decoder, it belongs to the part.
    """
    part = Part(found)
    with_head = with_head and is_classifier(given, found)
    for key, tensor in given.items():
        if not with_head and not key.startswith(found.prefix):
            continue
        bare = key.removeprefix(found.prefix)  # the head stands without prefix beside the backbone
        why = found.format.reason_to_leave_out(bare)
        read = found.format.read(bare, tensor)
        if read:
            name, tensor = read
            part.entries[name] = Entry(key, tensor)
        elif why:
            part.left_out.setdefault(why, []).append(key)
        else:
            part.unknown.append(key)
    if found.format is MMPRETRAIN and is_classifier_of_mmpretrain(part):
        for key, entry in part.pop('norm3.').items():
            part.entries[key.replace('norm3.', 'norm.')] = entry
    part.architecture = read_architecture(part.tensors)
    return part


def is_classifier_of_mmpretrain(part: Part) -> bool:
    """Tell whether ``norm3`` is the final norm of a classifier: there is a head, and no norm of another map."""
    return 'head.weight' in part.entries and not any(f'norm{i}.weight' in part.entries for i in range(3))


def is_classifier(given: Mapping[str, Tensor], found: Found) -> bool:
    """Tell whether all that a file holds beside a backbone is a final norm and a head, or what no backbone needs."""
    rest = [key for key in given if not key.startswith(found.prefix)]
    return all(
        found.format.reason_to_leave_out(key) or (found.format.read(key) or ('',))[0].startswith(CLASSIFIER)
        for key in rest
    )


def choose_backbone(
    given: Mapping[str, Tensor], source: str, prefix: str | None = None, place: str | None = None
) -> Found:
    """Return the ConvNeXt of a file that is meant.

    Args:
        given: The file's tensors.
        source: Where they came from, for messages.
        prefix: The user's choice among several: what stands before the keys of the backbone, or of the whole model.
        place: Where the backbone sits in the model: a ConvNeXt in the same place of the file is meant.

    Raises:
        UserError: There is none, none with that prefix, or several to choose from.
    """
    found = find_backbones(given)
    if not found:
        other = name_other_model(given)
        raise UserError(
            f'{source} holds no ConvNeXt{f": it is {other}" if other else " in a known format"}; its first keys are '
            f'{shorten(given)}. Give a ConvNeXt checkpoint of facebookresearch, timm, mmpretrain, Hugging Face or '
            'torchvision, or one trained here.'
        )
    prefixes = [each.prefix for each in found]
    place = place or ''
    for wanted in [place] if prefix is None else [with_dot(prefix), with_dot(prefix) + place]:
        if wanted in prefixes:
            return found[prefixes.index(wanted)]
    if prefix is None and len(found) == 1:
        return found[0]
    number = 'a ConvNeXt' if len(found) == 1 else f'{len(found)} ConvNeXts'
    none = f', none at {with_dot(prefix)!r}' if prefix else ''
    own_file = (
        ', or with --prefix of convert_checkpoint.py. For load_from and test.py make a file with one of them: '
        f'load_weights(model, {source!r}, prefix={prefixes[-1]!r}), then torch.save(model.state_dict(), FILE)'
    )
    raise UserError(
        f'{source} holds {number}, at {", ".join(map(repr, prefixes))}{none}. Choose with prefix=... in init_cfg or '
        f'load_weights(){own_file if len(found) > 1 else ""}.'
    )


def with_dot(prefix: str) -> str:
    """Return what stands before a key.

    >>> with_dot('teacher.backbone'), with_dot('')
    ('teacher.backbone.', '')
    """
    return prefix if not prefix or prefix.endswith('.') else f'{prefix}.'


def keys_of(parts: Iterable[Part]) -> set[str]:
    """Return the keys of the file that belong to these parts."""
    keys = set()
    for part in parts:
        keys.update(entry.origin for entry in part.entries.values())
        keys.update(part.unknown, *part.left_out.values())
    return keys
