"""Focal loss on the sigmoid of logits (https://arxiv.org/abs/1708.02002) and its gradient, for each element.

The formulas and the smallest probability are those of mmcv. Half precision is computed in float32: in float16 the
probability of a logit of 9 is 1, and the loss would be infinite.
"""

import torch
from torch import Tensor

from ..errors import UserError
from .arguments import as_computable, check_integers, check_one_device, check_shape

OP = 'sigmoid_focal_loss'
SMALLEST = torch.finfo(torch.float32).tiny  # of a probability before its logarithm, in float64 too


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Fill ``output`` ``(N, C)``.

    Args:
        input: Logits ``(N, C)``.
        target: ``(N,)``; ``C``, or a negative number, is background: no class is right.
        weight: Of the classes ``(C,)``; empty for none.
        output: Filled in place.
        gamma: Exponent; 0 is cross entropy.
        alpha: Share of the right class; a wrong class has 1 - alpha.

    Raises:
        UserError: A class is above ``C``, or has no weight.
    """
    logits, weight = _checked(input, target, weight)
    right, p, q = _probabilities(logits, target)
    loss = _log(p).mul_(q**gamma)
    output.copy_(torch.where(right, loss * -alpha, loss * (alpha - 1)) * weight)


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Fill ``grad_input`` ``(N, C)``; the other arguments are those of the forward op."""
    logits, weight = _checked(input, target, weight)
    right, p, q = _probabilities(logits, target)
    gradient = _log(p).mul_(p).mul_(gamma).sub_(q).mul_(q**gamma)
    grad_input.copy_(torch.where(right, gradient * alpha, gradient * (alpha - 1)) * weight)


def _probabilities(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Say which element of each row is of the right class, and how probable the truth and the error are, ``(N, C)``."""
    right = target[:, None] == torch.arange(logits.shape[1], device=logits.device)
    p = logits.sigmoid()
    q = 1 - p
    return right, torch.where(right, p, q), torch.where(right, q, p)


def _log(probability: Tensor) -> Tensor:
    return probability.clamp(min=SMALLEST).log_()


def _checked(input: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor | float]:
    """Return the logits and the weight of each row ``(N, 1)``. The check of the classes waits, as in mmcv."""
    check_one_device(OP, input=input, target=target, weight=weight)
    input, weight = as_computable(OP, input=input, weight=weight)
    check_integers(OP, target=target)
    expected = (*target.shape[:1], *input.shape[1:2])
    check_shape(OP, input=(input.shape, expected), target=(target.shape, expected[:1]))
    num_classes = input.shape[1]
    if num_classes == 0 or weight.numel() not in (0, num_classes):
        raise UserError(
            f'{OP} needs logits (N, C) of one class or more and a weight for each class or none, and got '
            f'{tuple(input.shape)} and {weight.numel()} weights.'
        )
    weighted = weight.numel() > 0
    lowest, highest = torch.stack(target.aminmax()).tolist() if target.numel() else (0, 0)
    if highest > num_classes or (weighted and not 0 <= lowest <= highest < num_classes):
        raise UserError(
            f'{OP} got classes from {lowest} to {highest}. Allowed are numbers up to {num_classes}: compare the '
            "head's num_classes with the classes of the data set. With class weights, background "
            f'({num_classes} or a negative number) is not allowed either: leave those rows out, or pass no weights.'
        )
    return input, weight[target.long()][:, None] if weighted else 1.0
