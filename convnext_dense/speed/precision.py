"""Mixed precision on a CPU: bf16, which needs no scaling of the loss, as its range is that of fp32."""

import contextlib
from collections.abc import Iterator

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import Tensor, nn


def has_bf16() -> bool:
    """Tell whether this CPU multiplies in bf16, by AMX or by AVX-512's extension; others are slower so than in fp32."""
    return any(getattr(torch.cpu, name, bool)() for name in ('_is_avx512_bf16_supported', '_is_amx_tile_supported'))


class StridedConv2d(nn.Conv2d):
    """A convolution in fp32 where its map is narrower than its stride.

    In bf16 on the CPU, the gradient of the weights that such a map never meets is whatever the memory held (PyTorch
    2.14). Extra levels of a pyramid have such maps, where images are small.
    """

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        is_narrow = x.is_cpu and x.shape[-1] < self.stride[1]
        with torch.autocast('cpu', enabled=torch.is_autocast_enabled('cpu') and not is_narrow):
            return super()._conv_forward(x.to(weight.dtype) if is_narrow else x, weight, bias)


@OPTIM_WRAPPERS.register_module()
class BFloat16OptimWrapper(OptimWrapper):
    """An optimizer whose forward pass on the CPU is in bf16 where PyTorch's autocast has it so.

    MMEngine's ``AmpOptimWrapper`` needs a GPU. Weights, gradients and moments stay in fp32.
    """

    @contextlib.contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Compute what is inside in mixed precision."""
        with super().optim_context(model), torch.autocast('cpu', torch.bfloat16):
            yield
