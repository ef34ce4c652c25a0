"""Checks of arguments that several ops share, and the conversion to a type that every kernel can compute in."""

import torch
from torch import Tensor

from ..errors import UserError


def as_computable(op: str, **tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return the tensors in float64 where one of them is, else in float32; None stays None.

    Half precision lacks kernels on the CPU, and as a coordinate it would be off by whole pixels anywhere. Tensors on
    several devices, or without floating-point numbers, are refused.
    """
    check_one_device(op, **tensors)
    for name, tensor in tensors.items():
        if tensor is not None and not tensor.is_floating_point():
            raise UserError(f'{op}: {name} is {tensor.dtype}. Allowed are floating-point numbers: call {name}.float().')
    double = any(tensor is not None and tensor.dtype == torch.float64 for tensor in tensors.values())
    dtype = torch.float64 if double else torch.float32
    return tuple(tensor if tensor is None else tensor.to(dtype) for tensor in tensors.values())


def check_one_device(op: str, **tensors: Tensor | None) -> None:
    """Refuse tensors on several devices, which kernels may read as foreign memory."""
    devices = {name: str(tensor.device) for name, tensor in tensors.items() if tensor is not None}
    if len(set(devices.values())) > 1:
        found = ', '.join(f'{name} on {device}' for name, device in devices.items())
        raise UserError(f'{op} needs its tensors on one device and got {found}. Move them with .to(device).')


def check_integers(op: str, **tensors: Tensor) -> None:
    """Refuse what holds other numbers than integers."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
            raise UserError(f'{op}: {name} is {tensor.dtype}. Allowed are integers: call {name}.long().')


def check_shape(op: str, **shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    """Refuse the first shape that is not the expected one; each argument is ``(found, expected)``."""
    for name, (found, expected) in shapes.items():
        if tuple(found) != tuple(expected):
            raise UserError(
                f'{op}: {name} has shape {tuple(found)}; the sizes and numbers of the other arguments ask for '
                f'{tuple(expected)}.'
            )


def check_maps(op: str, **maps: Tensor) -> None:
    """Refuse what is no feature map ``(N, C, H, W)``, and maps without pixels."""
    for name, tensor in maps.items():
        if tensor.ndim != 4 or 0 in tensor.shape[2:]:
            raise UserError(
                f'{op}: {name} has shape {tuple(tensor.shape)}. Allowed are maps (N, C, H, W) of 1 x 1 pixel or more.'
            )


def check_choice(op: str, allowed: tuple[int, ...], **choices: int) -> None:
    """Refuse a number of a mode that there is not."""
    for name, choice in choices.items():
        if choice not in allowed:
            raise UserError(f'{op}: {name} is {choice}. Allowed are {", ".join(map(str, allowed))}.')


def numbers_at_once(device: torch.device) -> int:
    """Return how many numbers a temporary tensor may hold: what fits a core's cache, else what keeps a GPU busy.

    >>> numbers_at_once(torch.device('cpu')), numbers_at_once(torch.device('cuda'))
    (262144, 33554432)
    """
    return 2**18 if device.type == 'cpu' else 2**25
