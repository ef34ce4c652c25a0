"""The modernisation ladder of arXiv 2201.03545 (section 2): from a ResNet to ConvNeXt in thirteen networks.

``STEPS`` is the paper's Figure 2 as a table. Each line changes the network of the line above it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from convnext_dense.backbone import LayerNorm2d, StagedBackbone


class Design(NamedTuple):
    """What the steps change.

    Attributes:
        depths: Blocks of each stage.
        width: Channels inside the first stage's blocks; each later stage has twice as many.
        patchify: The stem is a 4x4 convolution of stride 4, not a 7x7 one and a max pool.
        depthwise: The k x k convolution works on each channel alone.
        inverted: The middle of a block is four times as wide as its ends; before, the ends are four times as wide.
        depthwise_first: The k x k convolution comes before the two pointwise ones.
        kernel: k, odd.
        act: 'relu' or 'gelu'.
        few_acts: One activation in a block, between the pointwise convolutions; before, one after each and the sum.
        few_norms: One norm in a block, after the k x k convolution; before, one after each convolution.
        norm: 'batch' or 'layer'. With 'layer' the convolutions of a block have biases.
        separate_downsampling: A norm and a 2x2 convolution between stages; before, the first block of a stage strides.
    """

    depths: Sequence[int] = (3, 4, 6, 3)
    width: int = 64
    patchify: bool = False
    depthwise: bool = False
    inverted: bool = False
    depthwise_first: bool = False
    kernel: int = 3
    act: str = 'relu'
    few_acts: bool = False
    few_norms: bool = False
    norm: str = 'batch'
    separate_downsampling: bool = False


class Step(NamedTuple):
    """A network of the ladder.

    Attributes:
        name: Ours.
        top1: ImageNet-1k accuracy in percent, in the ResNet-50 / Swin-T regime (Table 10).
        top1_large: The same in the ResNet-200 / Swin-B regime (Table 11).
        change: What differs from the step before.
        change_large: What differs besides or instead in the large regime.
    """

    name: str
    top1: float
    top1_large: float
    change: Mapping[str, Any]
    change_large: Mapping[str, Any] = {}


STEPS = (
    Step('resnet', 78.82, 81.14, dict(), dict(depths=(3, 24, 36, 3))),
    Step('stage_ratio', 79.36, 81.33, dict(depths=(3, 3, 9, 3)), dict(depths=(3, 3, 27, 3), width=84)),
    Step('patchify_stem', 79.51, 81.59, dict(patchify=True)),
    Step('depthwise', 78.28, 80.54, dict(depthwise=True)),
    Step('width', 80.50, 81.85, dict(width=96), dict(width=128)),
    Step('inverted_bottleneck', 80.64, 82.64, dict(inverted=True)),
    Step('depthwise_first', 79.92, 82.04, dict(depthwise_first=True)),
    Step('kernel', 80.57, 82.30, dict(kernel=7)),
    Step('gelu', 80.62, 82.19, dict(act='gelu')),
    Step('fewer_acts', 81.27, 82.71, dict(few_acts=True)),
    Step('fewer_norms', 81.41, 83.17, dict(few_norms=True)),
    Step('layer_norm', 81.47, 83.35, dict(norm='layer')),
    Step('convnext', 81.97, 83.60, dict(separate_downsampling=True)),
)
ACTS = {'relu': nn.ReLU, 'gelu': nn.GELU}
NORMS = {'batch': nn.BatchNorm2d, 'layer': lambda dim: LayerNorm2d(dim, eps=1e-6)}


def steps() -> tuple[str, ...]:
    """Return the names of the steps, from the ResNet to ConvNeXt."""
    return tuple(step.name for step in STEPS)


def find_design(step: str, large: bool = False, changes: Mapping[str, Any] | None = None) -> Design:
    """Return the design of a step.

    Args:
        step: A name of :func:`steps`.
        large: The ResNet-200 / Swin-B regime.
        changes: Fields of :class:`Design` to change on top.

    Raises:
        ValueError: There is no such step or field, or a field is out of range.

    Examples:
        >>> find_design('kernel', large=True, changes=dict(kernel=11))[:2]
        ((3, 3, 27, 3), 128)
    """
    if step not in steps():
        raise ValueError(f'The ladder has no step {step!r}. Allowed: {", ".join(steps())}.')
    design = Design()
    for each in STEPS[: steps().index(step) + 1]:
        design = design._replace(**{**each.change, **(each.change_large if large else {})})
    if unknown := (changes or {}).keys() - set(Design._fields):
        raise ValueError(f'A design has no {", ".join(sorted(unknown))}. Allowed: {", ".join(Design._fields)}.')
    design = design._replace(**(changes or {}))
    numbers = (*design.depths, design.width, design.kernel)
    rules = {
        'depths must be four': len(design.depths) == 4,
        'depths, width and kernel must be positive integers': all(isinstance(n, int) and n > 0 for n in numbers),
        'kernel must be odd': design.kernel % 2 == 1,
        f'act must be {" or ".join(ACTS)}': design.act in ACTS,
        f'norm must be {" or ".join(NORMS)}': design.norm in NORMS,
    }
    for rule, holds in rules.items():
        if not holds:
            raise ValueError(f'This design cannot be built, {rule}: {design}.')
    return design


def channels(step: str, large: bool = False, design: Mapping[str, Any] | None = None) -> list[int]:
    """Return the channels of the four maps of a step, for the neck or head behind it; arguments of the backbone.

    >>> channels('resnet'), channels('convnext')
    ([256, 512, 1024, 2048], [96, 192, 384, 768])
    """
    found = find_design(step, large, design)
    return [found.width * 2**i * (1 if found.inverted else 4) for i in range(4)]


class Block(nn.Module):
    """Three convolutions, ``conv1`` to ``conv3``, with the norms and activations of a design, added to the input."""

    def __init__(
        self, design: Design, dim_in: int, width: int, stride: int, drop_path: float, layer_scale: float | None
    ) -> None:
        super().__init__()
        middle, dim = (4 * width, width) if design.inverted else (width, 4 * width)
        dims = (dim_in, dim_in, middle, dim) if design.depthwise_first else (dim_in, middle, middle, dim)
        norm, act = NORMS[design.norm], ACTS[design.act]
        for i in (1, 2, 3):
            is_spatial = i == (1 if design.depthwise_first else 2)
            conv = nn.Conv2d(
                dims[i - 1],
                dims[i],
                kernel_size=design.kernel if is_spatial else 1,
                stride=stride if is_spatial else 1,
                padding=design.kernel // 2 if is_spatial else 0,
                groups=dims[i] if is_spatial and design.depthwise else 1,
                bias=design.norm == 'layer',
            )
            self.add_module(f'conv{i}', conv)
            self.add_module(f'norm{i}', norm(dims[i]) if is_spatial or not design.few_norms else nn.Identity())
            self.add_module(f'act{i}', act() if i == 2 or not design.few_acts else nn.Identity())
        self.shortcut = nn.Identity()
        if stride > 1 or dim_in != dim:
            self.shortcut = nn.Sequential(nn.Conv2d(dim_in, dim, 1, stride, bias=False), norm(dim))
        self.gamma = nn.Parameter(torch.full((dim,), float(layer_scale))) if layer_scale else None
        self.drop_path = drop_path

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H / stride, W / stride), rounded up."""
        y = self.act1(self.norm1(self.conv1(x)))
        y = self.act2(self.norm2(self.conv2(y)))
        y = self.norm3(self.conv3(y))
        if self.gamma is not None:
            y = y * self.gamma[:, None, None]
        if self.training and self.drop_path > 0:
            keep_prob = 1 - self.drop_path
            y = y * y.new_empty(y.shape[0], 1, 1, 1).bernoulli_(keep_prob).div_(keep_prob)
        return self.act3(y + self.shortcut(x))


@MODELS.register_module()
class ModernizedResNet(StagedBackbone):
    """A network of the ladder as a multi-scale backbone.

    'resnet' is torchvision's ResNet-50 and 'convnext' ConvNeXt-T; in the large regime they are ResNet-200 and
    ConvNeXt-B. Convolutions start as PyTorch initialises them, as in the paper's experiments.

    Args:
        step: A name of :func:`steps`.
        large: The ResNet-200 / Swin-B regime.
        design: Fields of :class:`Design` to change on top, e.g. ``dict(kernel=5)``.
        layer_scale_init_value: Initial value of the layer scale ``gamma``; 0 or None: no layer scale. The paper's
            ladder has none; the published ConvNeXt weights have one.
        out_norm: As for :class:`StagedBackbone`; by default only 'convnext' normalises its maps, as its detectors do.
        norm_eval: Keep batch norms in eval mode, where they come trained with the weights.
        **stages: As for :class:`StagedBackbone`.

    Raises:
        ValueError: There is no such step, the design cannot be built, or an argument is out of range.

    Examples:
        >>> [tuple(m.shape) for m in ModernizedResNet('width', design=dict(width=8))(torch.zeros(1, 3, 64, 96))]
        [(1, 32, 16, 24), (1, 64, 8, 12), (1, 128, 4, 6), (1, 256, 2, 3)]
    """

    def __init__(
        self,
        step: str,
        large: bool = False,
        design: Mapping[str, Any] | None = None,
        layer_scale_init_value: float | None = None,
        out_norm: bool | None = None,
        norm_eval: bool = False,
        **stages,
    ) -> None:
        self.design = find_design(step, large, design)
        out_norm = self.design.separate_downsampling if out_norm is None else out_norm
        super().__init__(self.design.depths, out_norm=out_norm, **stages)
        self.step, self.norm_eval = step, norm_eval
        self.dims = tuple(channels(step, large, design))
        dim = self.design.width  # of the stem's map
        for i, rates in enumerate(self.drop_path_rates[: self.num_built]):
            self.downsample_layers.append(self.make_downsampling(i))
            stride = 2 if i > 0 and not self.design.separate_downsampling else 1  # of the first block
            dim = self.dims[i] if i > 0 and self.design.separate_downsampling else dim
            stage = nn.Sequential()
            for rate in rates:
                stage.append(Block(self.design, dim, self.design.width * 2**i, stride, rate, layer_scale_init_value))
                dim, stride = self.dims[i], 1
            self.stages.append(stage)
        if out_norm:
            for i in self.out_indices:
                self.add_module(f'norm{i}', NORMS[self.design.norm](self.dims[i]))
        self.freeze()

    def make_downsampling(self, stage: int) -> nn.Sequential:
        """Return what stands before a stage: the stem, or, at the last step alone, a 2x2 convolution."""
        width, norm, is_separate = self.design.width, NORMS[self.design.norm], self.design.separate_downsampling
        if stage > 0:
            dim_in, dim = self.dims[stage - 1 : stage + 1]
            layers = [norm(dim_in), nn.Conv2d(dim_in, dim, 2, stride=2)] if is_separate else []
        elif self.design.patchify:
            layers = [nn.Conv2d(self.in_channels, width, 4, stride=4), *([norm(width)] if is_separate else [])]
        else:
            conv = nn.Conv2d(self.in_channels, width, 7, stride=2, padding=3, bias=False)
            layers = [conv, norm(width), nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1)]
        return nn.Sequential(*layers)

    def train(self, mode: bool = True) -> 'ModernizedResNet':
        """Set training mode everywhere but in the frozen parts and, with ``norm_eval``, in the batch norms."""
        super().train(mode)
        for module in self.modules():
            if self.norm_eval and isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self
