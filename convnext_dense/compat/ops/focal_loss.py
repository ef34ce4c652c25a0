"""Focal loss on the sigmoid of logits (https://arxiv.org/abs/1708.02002) and its gradient, for each element.

The formulas and the smallest probability are those of mmcv. Half precision is computed in float32: in float16 the
probability of a logit of 9 is 1, and the loss would be infinite.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import UserError
from .arguments import as_computable, check_integers, check_one_device, check_shape

OP = 'sigmoid_focal_loss'
SMALLEST = torch.finfo(torch.float32).tiny  # of a probability before its logarithm, in float64 too


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Fill ``output`` ``(N, C)``, given logits ``(N, C)``, right classes ``(N,)`` and class weights ``(C,)`` or none.

    A ``target`` of ``C`` or below 0 is background: no class is right. The right class has the share ``alpha``, a
    wrong one ``1 - alpha``; a ``gamma`` of 0 makes it cross entropy.
    """
    logits, weight = _checked(input, target, weight)
    loss = _by_class(
        logits,
        target,
        wrong=lambda p: _log(1 - p).mul_(p**gamma).mul_(alpha - 1),
        right=lambda p: _log(p) * (1 - p) ** gamma * -alpha,
    )
    output.copy_(loss.mul_(weight))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Fill ``grad_input`` ``(N, C)``; the other arguments are those of the forward op."""
    logits, weight = _checked(input, target, weight)
    gradient = _by_class(
        logits,
        target,
        wrong=lambda p: _log(1 - p).mul_(1 - p).mul_(gamma).sub_(p).mul_(p**gamma).mul_(alpha - 1),
        right=lambda p: (1 - p) ** gamma * (1 - p - gamma * p * _log(p)) * -alpha,
    )
    grad_input.copy_(gradient.mul_(weight))


def _by_class(logits: Tensor, target: Tensor, wrong: Callable, right: Callable) -> Tensor:
    """Apply ``right`` to the probability of each row's right class and ``wrong`` to the others, ``(N, C)``.

    It does not wait for an accelerator.
    """
    p = logits.sigmoid()
    values = wrong(p)
    column = target.long().clamp(0, logits.shape[1] - 1)[:, None]
    of_right = torch.where(column == target[:, None], right(p.gather(1, column)), values.gather(1, column))
    return values.scatter_(1, column, of_right)


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
