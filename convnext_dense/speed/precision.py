"""Mixed precision on a CPU: bf16, which needs no scaling of the loss, as its range is that of fp32."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

BOX_HEADS = 'rpn_head', 'bbox_head', 'mask_head'  # their names in MMDetection's models


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


def keep_boxes_precise(model: nn.Module) -> nn.Module:
    """Let the heads of a detector hand on in fp32 what they compute in bf16.

    MMDetection gives anchors the type of the scores: in bf16 their corners would be off by up to 2 pixels of 1000.
    Heads that have another name, such as the stages of a ``CascadeRPNHead``, stay as they are. The model is changed and
    returned.
    """
    for name, module in model.named_modules():
        if name.rpartition('.')[2] in BOX_HEADS:
            for head in module if isinstance(module, nn.ModuleList) else [module]:
                head.register_forward_hook(to_fp32)
    return model


def to_fp32(module: nn.Module, given: tuple, found: Any) -> Any:
    """Return what a layer has found, with fp32 in place of bf16."""
    return tree_map_only(Tensor, lambda each: each.float() if each.dtype == torch.bfloat16 else each, found)


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
