"""ConvNeXt V1 and V2 as a backbone that turns an image batch into feature maps of four resolutions.

Architecture and parameter names follow facebookresearch/ConvNeXt (arXiv 2201.03545) and facebookresearch/ConvNeXt-V2
(arXiv 2301.00808), so that their files fit key by key.
"""

from collections.abc import Mapping, Sequence

import torch
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from convnext_dense.backbone.block import Block, LayerNorm2d, run
from convnext_dense.variants import resolve_variant

NUM_STAGES = 4


def make_downsampling(stage: int, dim_in: int, dim: int, norm_eps: float) -> nn.Sequential:
    """Return what stands before a stage: the stem of 4x4 patches, or a 2x2 convolution that halves the size."""
    if stage == 0:
        return nn.Sequential(nn.Conv2d(dim_in, dim, kernel_size=4, stride=4), LayerNorm2d(dim, eps=norm_eps))
    return nn.Sequential(LayerNorm2d(dim_in, eps=norm_eps), nn.Conv2d(dim_in, dim, kernel_size=2, stride=2))


class StagedBackbone(BaseModule):
    """A backbone of four stages; a subclass fills ``downsample_layers`` and ``stages`` and adds ``norm{i}``.

    Args:
        depths: Blocks of each stage.
        in_channels: Channels of the input image.
        drop_path_rate: Stochastic depth of the last block; rates ramp linearly from 0 over all blocks.
        out_indices: Stages whose output is returned, in this order; negative ones count from the last stage. Stages
            after the last one asked for are not built.
        out_norm: Normalise each returned map with its own ``norm{i}``. Classifiers do not have these norms; they start
            from scratch in fine-tuning.
        frozen_stages: -1: none; 0: the stem; k: the stem and the first k stages, with the downsampling between them.
            Frozen parts get no gradient and stay in eval mode.
        frozen_norms: Freeze the output norms as well, where they come trained with the weights.
        with_cp: Recompute each block's activations in the backward pass (non-reentrant, works under DDP). ``'cheap'``
            recomputes those alone that cost little: norms and GELUs, two fifths of the bytes; for :class:`ConvNeXt`.
        init_cfg: MMEngine initialisation, e.g. ``dict(type='Pretrained', checkpoint=...)``.

    Raises:
        ValueError: An argument is out of range; the message lists what is allowed.
    """

    recomputations: tuple[bool | str, ...] = (False, True)

    def __init__(
        self,
        depths: Sequence[int],
        in_channels: int = 3,
        drop_path_rate: float = 0.0,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        out_norm: bool = True,
        frozen_stages: int = -1,
        frozen_norms: bool = False,
        with_cp: bool | str = False,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if with_cp not in self.recomputations:
            raise ValueError(f'with_cp must be one of {self.recomputations}; got {with_cp!r}.')
        self.depths = tuple(depths)
        self.in_channels = in_channels
        self.out_indices = resolve_out_indices(out_indices)
        self.num_built = max(self.out_indices) + 1
        self.out_norm = out_norm
        self.frozen_stages, self.frozen_norms = frozen_stages, frozen_norms
        self.with_cp = with_cp
        if not isinstance(drop_path_rate, (int, float)) or not 0 <= drop_path_rate < 1:
            raise ValueError(f'drop_path_rate must be a number in [0, 1); got {drop_path_rate!r}.')
        if isinstance(in_channels, bool) or not isinstance(in_channels, int) or in_channels < 1:
            raise ValueError(f'in_channels must be a positive integer (3 for RGB); got {in_channels!r}.')
        if not isinstance(frozen_stages, int) or not -1 <= frozen_stages <= self.num_built:
            raise ValueError(
                f'frozen_stages must be -1 (none), 0 (the stem) or up to {self.num_built}, the number of stages that '
                f'out_indices={out_indices} needs; got {frozen_stages}.'
            )
        rates = torch.linspace(0, drop_path_rate, sum(depths), device='cpu')
        self.drop_path_rates = [stage.tolist() for stage in rates.split(self.depths)]
        self.downsample_layers = nn.ModuleList()
        self.stages = nn.ModuleList()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return one (N, C_i, H/s_i, W/s_i) map of stride s_i = 4, 8, 16, 32 for each of ``out_indices``.

        Raises:
            ValueError: x is not of shape (N, in_channels, H, W).
        """
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(
                f'{type(self).__name__} takes images of shape (N, {self.in_channels}, H, W), or is built with another '
                f'in_channels; got {tuple(x.shape)}.'
            )
        maps = []
        for i, (downsample, stage) in enumerate(zip(self.downsample_layers, self.stages, strict=True)):
            x = run(downsample, x, again=self.with_cp == 'cheap' and x.requires_grad)
            for block in stage:
                x = checkpoint(block, x, use_reentrant=False) if self.with_cp is True and x.requires_grad else block(x)
            # returned stages alone have a norm; PyTorch 2.4 compiles `i in self.out_indices` to wrong numbers
            norm = getattr(self, f'norm{i}', None) if self.out_norm else None
            maps.append(x if norm is None else norm(x))
        return tuple(maps[i] for i in self.out_indices)

    def _dump_init_info(self) -> None:
        """Keep MMEngine from listing every parameter where a backbone is initialised on its own."""

    def freeze(self) -> None:
        """Stop gradients and training mode in the parts that ``frozen_stages`` and ``frozen_norms`` name."""
        frozen = []
        if self.frozen_stages >= 0:
            frozen += [self.downsample_layers[0], *self.stages[: self.frozen_stages]]
            frozen += self.downsample_layers[1 : self.frozen_stages]
        if self.frozen_norms and self.out_norm:
            frozen += [getattr(self, f'norm{i}') for i in self.out_indices]
        for module in frozen:
            module.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> 'StagedBackbone':
        """Set training mode everywhere but in the frozen parts."""
        super().train(mode)
        self.freeze()
        return self


@MODELS.register_module()
class ConvNeXt(StagedBackbone):
    """ConvNeXt V1 or V2 as a multi-scale backbone.

    Args:
        arch: A size of :data:`convnext_dense.variants.VARIANTS` ('atto' .. 'xlarge', 'huge'), or
            ``dict(depths=(...), dims=(...))``.
        grn: ConvNeXt V2 blocks: global response normalisation instead of layer scale.
        layer_scale_init_value: Initial value of the layer scale ``gamma``; 0 or None: no layer scale. V2 has none.
        norm_eps: Epsilon of every LayerNorm.
        **stages: As for :class:`StagedBackbone`: ``in_channels``, ``drop_path_rate``, ``out_indices``, ``out_norm``,
            ``frozen_stages``, ``frozen_norms``, ``with_cp``, ``init_cfg``.

    Raises:
        ValueError: An argument is out of range; the message lists what is allowed.

    Examples:
        >>> [tuple(m.shape) for m in ConvNeXt('atto')(torch.zeros(1, 3, 64, 96))]
        [(1, 40, 16, 24), (1, 80, 8, 12), (1, 160, 4, 6), (1, 320, 2, 3)]
    """

    recomputations = (False, True, 'cheap')

    def __init__(
        self,
        arch: str | Mapping = 'tiny',
        grn: bool = False,
        *,
        layer_scale_init_value: float | None = 1.0,
        norm_eps: float = 1e-6,
        **stages,
    ) -> None:
        variant = resolve_variant(arch)
        super().__init__(variant.depths, **stages)
        self.dims = variant.dims
        self.grn = grn
        self.norm_eps = norm_eps
        layer_scale = None if grn else layer_scale_init_value
        dims = (self.in_channels, *self.dims)
        for i in range(self.num_built):
            self.downsample_layers.append(make_downsampling(i, dims[i], dims[i + 1], norm_eps))
            settings = layer_scale, grn, norm_eps, self.with_cp == 'cheap'
            self.stages.append(
                nn.Sequential(*(Block(dims[i + 1], rate, *settings) for rate in self.drop_path_rates[i]))
            )
        if self.out_norm:
            for i in self.out_indices:
                self.add_module(f'norm{i}', LayerNorm2d(self.dims[i], eps=norm_eps))
        self.apply(init_module)
        self.freeze()


def resolve_out_indices(out_indices: Sequence[int]) -> tuple[int, ...]:
    """Return the stage numbers 0..3 that ``out_indices`` names; negative ones count from the end.

    Raises:
        ValueError: Empty, out of range, or naming a stage twice.

    >>> resolve_out_indices((1, -1))
    (1, 3)
    """
    try:
        resolved = tuple(range(NUM_STAGES)[i] for i in out_indices)
    except (IndexError, TypeError):
        resolved = ()
    if not resolved or len(set(resolved)) < len(resolved):
        raise ValueError(
            f'out_indices must name stages 0 to {NUM_STAGES - 1} (or -{NUM_STAGES} to -1), each at most once and at '
            f'least one; got {out_indices!r}.'
        )
    return resolved


def init_module(module: nn.Module) -> None:
    """Initialise a layer as the paper does: truncated normal weights of std 0.02, zero biases."""
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
