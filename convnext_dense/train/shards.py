"""Large models on several processes: each keeps a part of parameters, gradients and moments, or of moments alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from mmengine.config import Config
from mmengine.registry import OPTIMIZERS
from packaging.version import Version
from torch import nn
from torch.utils._pytree import tree_map_only

from convnext_dense.backbone import Block
from convnext_dense.compat.errors import UserError
from convnext_dense.train.launch import device_type, num_processes

if TYPE_CHECKING:
    from mmengine.runner import Runner


@OPTIMIZERS.register_module()
def ZeroOptimizer(params: Any, optimizer_type: str, **options: Any) -> torch.optim.Optimizer:
    """Return an optimizer of which each process keeps a part of the moments (ZeRO stage 1, arXiv 1910.02054).

    MMEngine's class of this kind gathers the parts when one process saves, and waits forever for the others.

    Args:
        params: Parameters, or groups of them.
        optimizer_type: Name of the optimizer in ``torch.optim``.
        **options: Of that optimizer.
    """
    from torch.distributed.optim import ZeroRedundancyOptimizer

    return ZeroRedundancyOptimizer(list(params), getattr(torch.optim, optimizer_type), **options)


def use_zero(cfg: Config, value: bool) -> str:
    """Let each process keep a part of the optimizer's moments."""
    check_processes(cfg, '--zero')
    optimizer = cfg.optim_wrapper.optimizer
    if not hasattr(torch.optim, optimizer.type):
        raise UserError(f'--zero is for optimizers of torch.optim, such as AdamW; got {optimizer.type}.')
    cfg.optim_wrapper.optimizer = dict(optimizer, type='ZeroOptimizer', optimizer_type=optimizer.type)
    return '--zero: each process keeps a part of the moments'


def use_fsdp(cfg: Config, value: bool) -> str:
    """Let each process keep a part of the parameters, gradients and moments."""
    check_processes(cfg, '--fsdp')
    if Version(torch.__version__) < Version('2.6'):
        raise UserError(f'--fsdp needs PyTorch 2.6 or newer; {torch.__version__} is installed.')
    if any(hook.get('type') == 'EMAHook' for hook in cfg.get('custom_hooks') or ()):
        raise UserError('--fsdp keeps no average of the weights: leave out --ema and the EMAHook.')
    cfg.fsdp = True
    return '--fsdp: each process keeps a part of the parameters, gradients and moments'


def check_processes(cfg: Config, switch: str) -> None:
    """Refuse a switch that needs several processes where there is one."""
    if num_processes(cfg.launcher) < 2:
        raise UserError(f'{switch} is for several processes, and this run has one: start it with torchrun.')


def shard(model: nn.Module) -> nn.Module:
    """Divide the parameters of a model among all processes (PyTorch's FSDP2); a block of ours is whole while it runs.

    The model must have its weights, the same in all processes.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous()  # it takes no other order
    mesh = init_device_mesh(device_type(), (torch.distributed.get_world_size(),))
    for module in [each for each in model.modules() if isinstance(each, Block)]:
        fully_shard(module, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def whole_state(runner: Runner, with_optimizer: bool) -> dict[str, Any]:
    """Return weights and the optimizer's state in one piece, where they are divided; all processes call it together.

    With moments alone divided, the first process has them all afterwards.
    """
    optimizer = runner.optim_wrapper if with_optimizer else None
    if not runner.is_divided:
        if hasattr(getattr(optimizer, 'optimizer', None), 'consolidate_state_dict'):
            optimizer.optimizer.consolidate_state_dict()
        return {}
    from torch.distributed.tensor import DTensor

    parts = {'state_dict': runner.model.state_dict()} | ({'optimizer': optimizer.state_dict()} if optimizer else {})
    return tree_map_only(DTensor, lambda part: part.full_tensor().cpu(), parts)


def divide(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """Divide the moments of a whole state of an optimizer as its parameters are; all processes call it together."""
    from torch.distributed.tensor import distribute_tensor

    parameters = [parameter for group in optimizer.param_groups for parameter in group['params']]
    for number, moments in state['state'].items():
        like = parameters[number]
        for name, value in moments.items():
            if value.shape == like.shape:
                moments[name] = distribute_tensor(value, like.device_mesh, like.placements)
