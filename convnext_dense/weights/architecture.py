"""Which ConvNeXt a set of weights is: tensors under our names go in, a size and version, or what differs, come out."""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from convnext_dense.variants import VARIANTS, Variant
from convnext_dense.weights.formats import KERNEL, STEM, TIMM, Format, find_stems

NORM_EPS = 1e-6  # of LayerNorm in every published ConvNeXt but those of OTHER_SIZES


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
        if self[:2] in OTHER_SIZES:
            return f'{version} {OTHER_SIZES[self[:2]].name}'
        return f'{version} {self.size}' if self.size else f'a {version} with depths {self.depths} and dims {self.dims}'


class OtherSize(NamedTuple):
    """A size of timm's that computes something else than ours with the same weights."""

    name: str
    norm_eps: float
    gelu: str


OTHER_SIZES = {
    Variant((3, 4, 30, 3), (384, 768, 1536, 3072)): OtherSize('xxlarge', 1e-5, 'exact'),
    Variant((1, 2, 4, 2), (24, 32, 48, 64)): OtherSize('test_convnext', 1e-5, 'tanh'),
    Variant((1, 1, 1, 1), (32, 64, 96, 128)): OtherSize('test_convnext2', 1e-5, 'tanh'),  # and test_convnext3
}

# (end of a key that tells it, what the model is), for files without a ConvNeXt
OTHER_MODELS = (
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


def stage_of(key: str) -> int:
    """Return the stage that a ``downsample_layers.S.*`` or ``stages.S.*`` key belongs to; -1 for other keys."""
    parts = key.split('.')
    return int(parts[1]) if parts[0] in ('downsample_layers', 'stages') else -1


def read_architecture(tensors: Mapping[str, Tensor]) -> Architecture | None:
    """Return which ConvNeXt these weights are, under our names; None where they hold no stem."""
    if STEM not in tensors:
        return None
    num_stages = 1 + max((stage_of(key) for key in tensors), default=0)
    blocks = {(stage_of(key), int(key.split('.')[2])) for key in tensors if key.startswith('stages.')}
    depths = tuple(sum(stage == s for stage, _ in blocks) for s in range(num_stages))
    first = [tensors.get(f'stages.{s}.0.dwconv.weight') for s in range(num_stages)]
    dims = tuple(0 if weight is None else weight.shape[:1].numel() for weight in first)
    return Architecture(depths, dims, any('.grn.' in key for key in tensors))


def what_differs(fmt: Format, tensors: Mapping[str, Tensor], norm_eps: float = NORM_EPS) -> str:
    """Say why these weights would not compute here what they compute at home; empty where they would.

    Args:
        fmt: Whose names they had.
        tensors: Weights under our names.
        norm_eps: Epsilon of our backbone.
    """
    stem = tensors[STEM]
    if fmt is TIMM and stem.shape[-1:] == (3,):
        return 'a ConvNeXt with an overlapping stem (timm `_ols`): two 3x3 convolutions, where ours is one of 4x4'
    norms = [key for key in tensors if key.endswith('.norm.weight')]
    if norms and not any(key.endswith('.norm.bias') for key in tensors):
        return 'a ConvNeXt with RMSNorm (timm `_rms`): its norms have no bias, where ours are LayerNorm'
    architecture = read_architecture(tensors)
    other = OTHER_SIZES.get(architecture[:2]) if fmt is TIMM else None
    if other and other.gelu != 'exact':
        return f'{architecture} (timm), whose GELU is approximated by tanh and whose LayerNorm has epsilon 1e-5'
    return f'{architecture} (timm), {eps}' if other and (eps := other_eps(architecture, norm_eps)) else ''


def other_eps(architecture: Architecture, norm_eps: float) -> str:
    """Say that a size of timm's has another epsilon than our backbone; empty for all others.

    Under other names than timm's the weights may be timm's, converted, or those of a training with our epsilon.
    """
    other = OTHER_SIZES.get(architecture[:2])
    if not other or other.norm_eps == norm_eps:
        return ''
    return (
        f'whose LayerNorm has epsilon {other.norm_eps:g}, where ours has {norm_eps:g} (build it with '
        f'norm_eps={other.norm_eps:g})'
    )


def name_other_model(given: Mapping[str, Tensor]) -> str:
    """Say what a file without a ConvNeXt holds; empty where that is not known.

    >>> name_other_model({'backbone.layer1.0.conv1.weight': Tensor()})
    'a ResNet'
    """
    known = next((what for end, what in OTHER_MODELS if any(key.endswith(end) for key in given)), '')
    kernels = sorted({size for found in find_stems(given) for size in found.kernels} - {KERNEL})
    if known or not kernels:
        return known
    sizes = ' and '.join(f'{size}x{size}' for size in kernels)
    return f'a network like ConvNeXt with depthwise kernels of {sizes}, where ours are {KERNEL}x{KERNEL}'
