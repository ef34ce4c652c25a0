"""Find the tensors in a checkpoint, and the ConvNeXts among them, under this package's names and in its shapes."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from convnext_dense.compat.errors import UserError, shorten
from convnext_dense.variants import VARIANTS, Variant
from convnext_dense.weights.formats import CLASSIFIER, FORMATS, STEM, Format
from convnext_dense.weights.sources import Checkpoint

KERNEL = 7  # of the depthwise convolutions
NORM_EPS = 1e-6  # of LayerNorm in every published ConvNeXt but those of OTHER_SIZES
MOST_BACKBONES = 16  # in a file; a file with more was made to take time
MOST_WRAPPERS = 4  # around the tensors
MOST_REPEATED_BYTES = 2**30  # of a tensor that repeats fewer numbers; a larger one was made to fill the memory
# Entries of a file that may hold the tensors, the preferred ones first; where none is there, the only one that does.
WRAPPERS = ('state_dict', 'model', 'teacher', 'module')
EMA_OF_MMENGINE = 'ema_state_dict'  # EMAHook loads it

OTHER_EPS = 1e-5  # of OTHER_SIZES
# Sizes of timm's that compute something else than ours with the same weights -> (name, GELU).
OTHER_SIZES = {
    Variant((3, 4, 30, 3), (384, 768, 1536, 3072)): ('xxlarge', 'exact'),
    Variant((1, 2, 4, 2), (24, 32, 48, 64)): ('test_convnext', 'tanh'),
    Variant((1, 1, 1, 1), (32, 64, 96, 128)): ('test_convnext2', 'tanh'),  # and test_convnext3
}
OTHER_MODELS = (  # (end of a key, what the model then is), for files without a ConvNeXt
    ('layer1.0.conv1.weight', 'a ResNet'),
    ('layers.0.blocks.0.attn.qkv.weight', 'a Swin Transformer'),
    ('stages.0.blocks.0.attn.w_msa.qkv.weight', 'a Swin Transformer of MMDetection or MMSegmentation'),
    ('blocks.0.attn.qkv.weight', 'a Vision Transformer'),
    ('encoder.layers.0.attention.attention.query.weight', 'a Vision Transformer'),
    ('features.1.0.attn.qkv.weight', 'a Swin Transformer of torchvision'),
    ('features.1.0.block.0.0.weight', 'an EfficientNet of torchvision'),
    ('features.1.block.0.0.weight', 'a MobileNetV3 of torchvision'),
    ('features.1.conv.0.0.weight', 'a MobileNetV2 of torchvision'),
    ('blocks.0.0.conv_dw.weight', 'an EfficientNet or a MobileNet of timm'),
    ('.xca.qkv.weight', 'an EdgeNeXt'),
    ('stages.0.blocks.0.dwconv.weight', 'a SwiftFormer'),
    ('blocks.0.dwconv.weight', 'an isotropic ConvNeXt, which has one resolution and no stages'),
)


# The tensors of a checkpoint


def unwrap(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint, out of the entry that holds them, without ``module.``.

    Raises:
        UserError: There are none, or several entries hold some.
    """
    if tensors := find_tensors(checkpoint):
        return tensors
    state_dict = find_state_dict(checkpoint)
    if several := [key for key, value in state_dict.items() if holds_weights(value)]:
        raise UserError(
            f'{checkpoint.source} holds several sets of weights, in {shorten(several)}. Save the one that is meant: '
            f'torch.save(torch.load(FILE)[{several[0]!r}], OTHER_FILE).'
        )
    raise UserError(
        f'{checkpoint.source} holds no weights; its entries are {shorten(state_dict) or "none"}. Save the state_dict() '
        'of the model.'
    )


def find_tensors(checkpoint: Mapping) -> dict[str, Tensor]:
    """Return what :func:`unwrap` does, or nothing where there is none; only tensors that hold their numbers count."""
    state_dict = find_state_dict(checkpoint)
    check_single(
        [str(key).removeprefix('module.') for key in state_dict], getattr(checkpoint, 'source', 'the checkpoint')
    )
    return {
        key.removeprefix('module.'): value
        for key, value in state_dict.items()
        if isinstance(key, str) and isinstance(value, Tensor) and holds_its_numbers(value)
    }


def check_single(names: list[str], source: str) -> None:
    """Raise a :class:`UserError` where weights have the same name once a prefix is taken off."""
    if len(set(names)) < len(names):
        doubled = [name for name, count in Counter(names).items() if count > 1]
        raise UserError(
            f'{source} holds {len(doubled)} weights twice, with and without a prefix such as module.: '
            f'{shorten(doubled)}. Take out those that are not meant, and save it again.'
        )


def holds_its_numbers(tensor: Tensor) -> bool:
    """Tell whether a tensor is neither sparse, quantized nor empty of data, nor repeats few numbers without end."""
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
        return False
    return tensor.nbytes <= max(MOST_REPEATED_BYTES, tensor.untyped_storage().nbytes())


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

    The names of weights have dots. The name of a measured number, or of what an optimizer keeps for a weight, has none.
    """
    return any(isinstance(key, str) and '.' in key and isinstance(value, Tensor) for key, value in entry.items())


def other_entries(checkpoint: Mapping) -> dict[str, Any]:
    """Return what lies beside the weights and ``meta``: the state of an optimizer, other weights, and the like."""
    state_dict = find_state_dict(checkpoint)
    return {
        str(key): value
        for key, value in checkpoint.items()
        if key != 'meta' and not isinstance(value, Tensor) and find_state_dict({key: value}) is not state_dict
    }


def other_weights(checkpoint: Mapping) -> dict[str, Mapping]:
    """Return those of :func:`other_entries` that hold weights, such as ``model_ema``."""
    others = {key: value for key, value in other_entries(checkpoint).items() if isinstance(value, Mapping)}
    return {key: value for key, value in others.items() if key != EMA_OF_MMENGINE and find_tensors(value)}


# The backbones among the tensors


class Architecture(NamedTuple):
    """A ConvNeXt as its weights show it."""

    depths: tuple[int, ...]
    dims: tuple[int, ...]
    grn: bool

    @property
    def size(self) -> str | None:
        """The name of the size in :data:`~convnext_dense.variants.VARIANTS`; None where it has none."""
        return next((name for name, variant in VARIANTS.items() if variant == self[:2]), None)

    def __str__(self) -> str:
        version = 'ConvNeXt V2' if self.grn else 'ConvNeXt'
        name = OTHER_SIZES[self[:2]][0] if self[:2] in OTHER_SIZES else self.size
        return f'{version} {name}' if name else f'a {version} with depths {self.depths} and dims {self.dims}'


class Entry(NamedTuple):
    """A tensor of a file: its key there, and the tensor in our shape."""

    origin: str
    tensor: Tensor


@dataclass(eq=False)
class Part:
    """A backbone of a file, or another network with the names of its stem."""

    format: Format
    prefix: str  # what stands before its keys
    # Our name, without prefix -> entry; a classifier's final norm and head are ``norm`` and ``head``.
    entries: dict[str, Entry] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=dict)  # why the format leaves something out -> keys
    unknown: dict[str, Entry] = field(default_factory=dict)  # likewise, of keys for which the format has no row

    @property
    def architecture(self) -> Architecture | None:
        """Which ConvNeXt it is; None for a network in a format of another backbone."""
        if self.format not in FORMATS:
            return None
        num_stages = 1 + max(map(stage_of, self.entries))
        blocks = {(stage_of(key), int(key.split('.')[2])) for key in self.entries if key.startswith('stages.')}
        depths = tuple(sum(stage == s for stage, _ in blocks) for s in range(num_stages))
        first = [self.entries.get(f'stages.{s}.0.dwconv.weight') for s in range(num_stages)]
        dims = tuple(0 if entry is None else entry.tensor.shape[:1].numel() for entry in first)
        return Architecture(depths, dims, any('.grn.' in key for key in self.entries))

    @property
    def kernels(self) -> set[int]:
        """Sizes of its square depthwise kernels in the first stage, or those of all stages where the first has none."""
        first, others = set(), set()
        for name, (_, tensor) in self.entries.items():
            shape = tensor.shape
            if name.endswith('.dwconv.weight') and len(shape) == 4 and shape[1] == 1 and shape[2] == shape[3]:
                (first if name.startswith('stages.0.') else others).add(shape[2])
        return first or others

    def pop(self, *beginnings: str) -> dict[str, Entry]:
        """Take out the entries whose names begin so."""
        return {key: self.entries.pop(key) for key in [*self.entries] if key.startswith(beginnings)}

    def has(self, *beginnings: str) -> bool:
        """Tell whether an entry's name begins so."""
        return any(key.startswith(beginnings) for key in self.entries)


def find_backbones(given: Mapping[str, Tensor], formats: Iterable[Format] = FORMATS) -> list[Part]:
    """Return the backbones in a checkpoint, by default the ConvNeXts; the one with the most known keys first.

    >>> given = {'stem.0.weight': torch.ones(8, 3, 4, 4), 'stages.0.blocks.0.conv_dw.weight': torch.ones(8, 1, 7, 7)}
    >>> [(part.format.name, part.prefix) for part in find_backbones(given)]
    [('timm', '')]
    """
    return [part for part in find_stems(given, formats) if part.kernels == {KERNEL} or part.format not in FORMATS]


def find_stems(given: Mapping[str, Tensor], formats: Iterable[Format] = FORMATS) -> list[Part]:
    """Return every network with the names of a backbone's stem, the one with the most known keys first."""
    best = {}
    for fmt in formats:
        prefixes = [key[: -len(stem)] for key in given for stem in fmt.stems if f'.{key}'.endswith(f'.{stem}')]
        for prefix in prefixes[:MOST_BACKBONES]:
            below = [key.removeprefix(prefix) for key in given if key.startswith(prefix)]
            if fmt.mark and not any(re.search(fmt.mark, key) for key in below):
                continue
            part = read_part(given, fmt, prefix)
            if prefix not in best or len(part.entries) > len(best[prefix].entries):
                best[prefix] = part
    return sorted(best.values(), key=lambda part: -len(part.entries))


def read_part(given: Mapping[str, Tensor], fmt: Format, prefix: str, with_rest: bool = False) -> Part:
    """Return the tensors below a prefix, or all of a file, under our names."""
    part = Part(fmt, prefix)
    for key, tensor in given.items():
        if not with_rest and not key.startswith(prefix):
            continue
        bare = key.removeprefix(prefix)  # a head may stand without prefix beside the backbone
        if read := fmt.read(bare, tensor):
            part.entries[read[0]] = Entry(key, read[1])
        elif why := fmt.reason_to_leave_out(bare):
            part.left_out.setdefault(why, []).append(key)
        else:
            part.unknown[bare] = Entry(key, tensor)
    if fmt.final_norm and part.has('head.') and not part.has('norm0.', 'norm1.', 'norm2.'):
        for key, entry in part.pop(fmt.final_norm).items():
            part.entries[key.replace(fmt.final_norm, 'norm.')] = entry
    return part


def with_head(part: Part, given: Mapping[str, Tensor]) -> Part:
    """Return a backbone with the rest of its file, if that is a classifier's head, or what no backbone needs."""
    for key in given:
        if not key.startswith(part.prefix) and not part.format.reason_to_leave_out(key):
            name, _ = part.format.read(key) or ('', None)
            if not name.startswith(CLASSIFIER):
                return part
    return read_part(given, part.format, part.prefix, with_rest=True)


def keys_beside(parts: Iterable[Part], given: Mapping[str, Tensor]) -> list[str]:
    """Return the keys of a file that belong to none of these parts."""
    used = set()
    for part in parts:
        used.update(entry.origin for entry in (*part.entries.values(), *part.unknown.values()))
        used.update(*part.left_out.values())
    return [key for key in given if key not in used]


def choose_backbone(
    given: Mapping[str, Tensor],
    source: str,
    prefix: str | None = None,
    place: str = '',
    formats: Iterable[Format] = FORMATS,
    advice: str = '',
) -> Part:
    """Return the backbone of a file that is meant, without a classifier's head that stands beside it.

    It is the one with the ``prefix`` that the user chose, or below it in the whole model; else the one at ``place``,
    where it sits in the model, or the only one. ``source`` and ``advice`` are for messages.

    Raises:
        UserError: There is none, none with that prefix, or several to choose from.
    """
    found = {part.prefix: part for part in find_backbones(given, formats)}
    if not found:
        other = name_other_model(given)
        wanted = 'no ConvNeXt' if formats is FORMATS else 'none of the weights that the backbone takes'
        titles = ', '.join(dict.fromkeys(fmt.title for fmt in formats))
        raise UserError(
            f'{source} holds {wanted}{f": it is {other}" if other else " in a known format"}; its first keys are '
            f'{shorten(given)}. Give a checkpoint of one of these, or one trained here: {titles}.{advice}'
        )
    if prefix:
        prefix = prefix.removesuffix('.') + '.'
    for wanted in [place] if prefix is None else [prefix, prefix + place]:
        if wanted in found:
            return found[wanted]
    if prefix is None and len(found) == 1:
        return next(iter(found.values()))
    raise UserError(explain_choice(source, list(found), prefix))


def explain_choice(source: str, prefixes: list[str], prefix: str | None) -> str:
    """Say which backbones a file holds, and how to choose one of them."""
    number = 'a backbone' if len(prefixes) == 1 else f'{len(prefixes)} backbones'
    none = f', none at {prefix!r}' if prefix else ''
    text = f'{source} holds {number}, at {", ".join(map(repr, prefixes))}{none}. Choose with prefix=... in init_cfg or '
    if len(prefixes) == 1:
        return f'{text}load_weights().'
    return (
        f'{text}load_weights(), or with --prefix of convnext-dense convert. For load_from and tests make a file with '
        f'one of them: load_weights(model, {source!r}, prefix={prefixes[-1]!r}), then torch.save(model.state_dict(), '
        'FILE).'
    )


# What they are


def stage_of(key: str) -> int:
    """Return the stage that a ``downsample_layers.S.*`` or ``stages.S.*`` key belongs to; -1 for other keys."""
    match = re.match(r'(?:downsample_layers|stages)\.(\d{1,2})\.', key)
    return int(match[1]) if match else -1


def what_differs(part: Part, norm_eps: float = NORM_EPS) -> str:
    """Say why a ConvNeXt would compute something else in our backbone of this epsilon; empty where it would not."""
    if part.entries[STEM].tensor.shape[-1:] == (3,):
        return 'a ConvNeXt with an overlapping stem (timm `_ols`): two 3x3 convolutions, where ours is one of 4x4'
    norms = [key.removesuffix('weight') for key in part.entries if key.endswith('.norm.weight')]
    if norms and not any(f'{norm}bias' in part.entries for norm in norms):
        return 'a ConvNeXt with RMSNorm (timm `_rms`): its norms have no bias, where ours are LayerNorm'
    if not part.format.has_other_sizes or part.architecture[:2] not in OTHER_SIZES:
        return ''
    if OTHER_SIZES[part.architecture[:2]][1] != 'exact':
        return f'{part.architecture} (timm), whose GELU is approximated by tanh and whose LayerNorm has epsilon 1e-5'
    eps = other_eps(part.architecture, norm_eps)
    return f'{part.architecture} (timm), {eps}' if eps else ''


def other_eps(architecture: Architecture | None, norm_eps: float) -> str:
    """Say that a size of timm's has another epsilon than our backbone; empty for all others.

    Under other names than timm's the weights may be timm's, converted, or those of a training with our epsilon.
    """
    if not architecture or architecture[:2] not in OTHER_SIZES or norm_eps == OTHER_EPS:
        return ''
    return (
        f'whose LayerNorm has epsilon {OTHER_EPS:g}, where ours has {norm_eps:g} (build it with norm_eps={OTHER_EPS:g})'
    )


def name_other_model(given: Mapping[str, Tensor]) -> str:
    """Say what a file without a ConvNeXt holds; empty where that is not known.

    >>> name_other_model({'backbone.layer1.0.conv1.weight': Tensor()})
    'a ResNet'
    """
    known = next((what for end, what in OTHER_MODELS if any(key.endswith(end) for key in given)), '')
    kernels = sorted({size for part in find_stems(given) for size in part.kernels} - {KERNEL})
    if known or not kernels:
        return known
    sizes = ' and '.join(f'{size}x{size}' for size in kernels)
    return f'a network like ConvNeXt with depthwise kernels of {sizes}, where ours are {KERNEL}x{KERNEL}'


def name_licence(checkpoint: Checkpoint, parts: list[Part], rest: list[str]) -> str:
    """Say what is known of the licence of weights: what their source tells, or else the format of the first backbone.

    ``rest`` are the keys beside the backbones. They are those of a whole model, which no maker of a format publishes.
    """
    if checkpoint.licence or rest or not parts or not parts[0].format.licence:
        return checkpoint.licence
    return f'if these are {parts[0].format.licence}'
