"""Layers of the block that PyTorch computes slowly on a CPU, by a faster way to the same values.

Each falls back to PyTorch's plain operation on a GPU and in a compiled, exported or traced graph.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def is_traced() -> bool:
    """Tell whether PyTorch is recording a graph."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


class Pointwise(nn.Linear):
    """A linear layer over the channels of (N, H, W, C).

    In fp32 on the CPU it runs as a 1x1 convolution, which PyTorch gives to oneDNN. ``F.linear`` goes to MKL, which
    takes twice as long on AMD's processors.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, H, W, C) to (N, H, W, C')."""
        is_fp32 = x.dtype == torch.float32 and not torch.is_autocast_enabled('cpu')
        if not x.is_cpu or not is_fp32 or is_traced():
            return super().forward(x)
        weight = self.weight[:, :, None, None]
        return F.conv2d(x.permute(0, 3, 1, 2), weight, self.bias).permute(0, 2, 3, 1)


def gelu(x: Tensor) -> Tensor:
    """Apply the exact (erf) GELU; in place where no gradient is recorded, so that the widest map is written once."""
    if torch.is_grad_enabled() or is_traced():
        return F.gelu(x)
    return torch.ops.aten.gelu_(x)


def depthwise(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Apply the depthwise ``conv`` to (N, C, H, W), with a backward pass that is fast in bf16 on the CPU too."""
    is_training = torch.is_grad_enabled() and conv.weight.requires_grad
    if x.is_cpu and is_training and not is_traced():
        if torch.is_autocast_enabled('cpu'):
            x = x.to(torch.get_autocast_dtype('cpu'))
        if x.dtype == torch.bfloat16:
            return DepthwiseConvBF16.apply(x, conv.weight, conv.bias)
    return conv(x)


class DepthwiseConvBF16(torch.autograd.Function):
    """A depthwise convolution in bf16 that keeps height and width and computes its weight gradient in fp32.

    oneDNN has no bf16 kernel for the weight gradient of a channels-last depthwise convolution. The one it falls back
    to takes 4 to 9 times as long as the fp32 one, and a third of a training step.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Convolve x (N, C, H, W) in bf16 with weight (C, 1, k, k) and bias (C,) of any floating dtype."""
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight.to(x.dtype), bias.to(x.dtype), padding=weight.shape[-1] // 2, groups=x.shape[1])

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        """Return the gradients of x in bf16, and of weight and bias in their own dtype."""
        x, weight = ctx.saved_tensors
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = depthwise_backward(grad, x, weight.to(x.dtype), (True, False, False))[0]
        grad = grad.float()
        grad_weight = depthwise_backward(grad, x.float(), weight.float(), (False, True, False))[1]
        return grad_x, grad_weight.to(weight.dtype), grad.sum(dim=(0, 2, 3)).to(weight.dtype)


def depthwise_backward(grad: Tensor, x: Tensor, weight: Tensor, mask: tuple[bool, bool, bool]) -> tuple:
    """Return the gradients of x, weight and bias that ``mask`` asks for; None in the place of the others."""
    channels, padding = x.shape[1], weight.shape[-1] // 2
    return torch.ops.aten.convolution_backward(
        grad, x, weight, [channels], [1, 1], [padding] * 2, [1, 1], False, [0, 0], channels, mask
    )
