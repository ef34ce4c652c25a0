"""The parts of mmcv's SyncBatchNorm between which it sums over the processes; activations are ``(N, C, S)``."""

import torch
from torch import Tensor

from ..errors import UserError
from .arguments import check_one_device, check_shape


def sync_bn_forward_mean(input: Tensor, mean: Tensor) -> None:
    """Fill ``mean`` ``(C,)`` with the mean of this process."""
    mean.copy_(input.mean(dim=(0, 2), dtype=mean.dtype))


def sync_bn_forward_var(input: Tensor, mean: Tensor, var: Tensor) -> None:
    """Fill ``var`` ``(C,)`` with the mean square of this process's distance to ``mean``, the mean of all processes."""
    own_var, own_mean = torch.var_mean(input.to(var.dtype), dim=(0, 2), correction=0)
    var.copy_(own_var + (own_mean - mean) ** 2)


def sync_bn_forward_output(
    input: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    norm: Tensor,
    std: Tensor,
    output: Tensor,
    eps: float,
    momentum: float | Tensor,
    group_size: int,
) -> None:
    """Fill ``norm`` with the normalized activations, ``std`` ``(C,)`` and ``output``; move the running statistics.

    ``momentum`` is the share of this batch in the running statistics, ``group_size`` the number of processes.
    """
    if weight is None:
        raise UserError(
            "sync_bn: weight is None. mmcv's SyncBatchNorm trains with affine=True only; else use type='BN'."
        )
    check_one_device('sync_bn', input=input, weight=weight, bias=bias)
    channels = (input.shape[1],)
    check_shape('sync_bn', weight=(weight.shape, channels), bias=(bias.shape, channels))
    std.copy_((var + eps).sqrt())
    torch.sub(input, mean[:, None], out=norm).div_(std[:, None])
    output.copy_(norm * weight[:, None] + bias[:, None])
    if running_mean is None:
        return
    count = input.shape[0] * input.shape[2] * group_size
    unbiased = var * (count / (count - 1)) if count > 1 else var
    for running, current in ((running_mean, mean), (running_var, unbiased)):
        running.copy_(momentum * current + (1 - momentum) * running)


def sync_bn_backward_param(grad_output: Tensor, norm: Tensor, grad_weight: Tensor, grad_bias: Tensor) -> None:
    """Fill the gradients of this process's weight and bias ``(C,)``."""
    grad_weight.copy_((grad_output * norm).sum(dim=(0, 2)))
    grad_bias.copy_(grad_output.sum(dim=(0, 2), dtype=grad_bias.dtype))


def sync_bn_backward_data(
    grad_output: Tensor,
    weight: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    norm: Tensor,
    std: Tensor,
    grad_input: Tensor,
) -> None:
    """Fill ``grad_input``; the gradients of weight and bias are means over the processes."""
    count = grad_output.shape[0] * grad_output.shape[2]
    through_statistics = (norm * grad_weight[:, None] + grad_bias[:, None]) / count
    grad_input.copy_((weight / std)[:, None] * (grad_output - through_statistics))
