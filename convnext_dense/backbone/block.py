"""The block of ConvNeXt V1 and V2 and its layers.

Parameter names follow facebookresearch/ConvNeXt and facebookresearch/ConvNeXt-V2. Activations keep the channels last in
memory: the (N, C, H, W) tensors that modules pass to each other are views of (N, H, W, C) storage, and a permute costs
nothing.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from convnext_dense.backbone.cpu_kernels import Pointwise, depthwise, gelu, is_traced


class LayerNorm2d(nn.LayerNorm):
    """Layer normalisation over the channels of (N, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (N, C, H, W); the result is channels-last in memory."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class GRN(nn.Module):
    """Global response normalisation of (N, H, W, C), ConvNeXt V2 equations 1 to 3."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, 1, dim))
        self.beta = nn.Parameter(torch.zeros(1, 1, 1, dim))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``gamma * (x * n) + beta + x``, n the map's L2 norm over (H, W) divided by its mean over C."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        norm = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True, dtype=dtype)
        scale = 1 + self.gamma * (norm / (norm.mean(dim=-1, keepdim=True) + 1e-6))
        # the three terms in one pass over x
        return torch.addcmul(self.beta.to(x.dtype), x, scale.to(x.dtype))


class Block(nn.Module):
    """Depthwise 7x7 -> LayerNorm -> Linear -> GELU (-> GRN) -> Linear, scaled and added to the input."""

    def __init__(
        self, dim: int, drop_path: float, layer_scale: float | None, grn: bool, norm_eps: float, lean: bool = False
    ) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, kernel_size=7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=norm_eps)
        self.pwconv1 = Pointwise(dim, 4 * dim)
        self.grn = GRN(4 * dim) if grn else nn.Identity()
        self.pwconv2 = Pointwise(4 * dim, dim)
        self.gamma = nn.Parameter(torch.full((dim,), float(layer_scale))) if layer_scale else None
        self.drop_path = drop_path
        self.lean = lean  # what is cheap is computed again in the backward pass

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, H, W).

        In training, stochastic depth drops the branch of some images, and the layers compute that of the others alone.
        Where it drops the branch of all images, the layers get an empty batch: their parameters then have a gradient
        of zeros, without which DDP would wait forever.
        """
        if not self.training or self.drop_path == 0:
            return self.residual(x)
        keep_prob = 1 - self.drop_path
        if is_traced():  # the number of images that are kept would be a size that no graph knows
            return self.residual(x, x.new_empty(len(x), 1, 1, 1).bernoulli_(keep_prob) / keep_prob)
        alive = torch.empty(len(x), device='cpu').bernoulli_(keep_prob)  # drawn where counting waits for no GPU
        kept = alive.nonzero().flatten().to(x.device, non_blocking=True)
        if len(kept) == len(x):
            return self.residual(x, 1 / keep_prob)
        y = self.residual(x[kept], 1 / keep_prob).permute(0, 2, 3, 1)
        return x.permute(0, 2, 3, 1).to(y.dtype).index_copy(0, kept, y).permute(0, 3, 1, 2)

    def residual(self, x: Tensor, scale: Tensor | float = 1.0) -> Tensor:
        """Return (N, C, H, W) plus the branch of all images, scaled."""
        y = depthwise(x, self.dwconv)
        y = y.permute(0, 2, 3, 1)  # (N, C, H, W) -> (N, H, W, C)
        again = self.lean and torch.is_grad_enabled()
        y = run(lambda y: self.pwconv1(self.norm(y)), y, again)
        y = run(lambda y: self.pwconv2(self.grn(gelu(y))), y, again)
        y = y.permute(0, 3, 1, 2)  # (N, H, W, C) -> (N, C, H, W)
        if self.gamma is not None:
            return torch.addcmul(x, y, self.gamma[:, None, None] * scale)
        return torch.addcmul(x, y, scale) if isinstance(scale, Tensor) else torch.add(x, y, alpha=scale)


def run(layers: Callable[[Tensor], Tensor], x: Tensor, again: bool) -> Tensor:
    """Apply layers; ``again``: in the backward pass all but the last once more, and nothing between is kept."""
    return checkpoint(layers, x, use_reentrant=False, preserve_rng_state=False) if again else layers(x)
