"""Focal loss on the sigmoid of logits (https://arxiv.org/abs/1708.02002) and its gradient, for each element.

The formulas and the smallest probability are those of mmcv. Half precision is computed in float32: in float16 the
probability of a logit of 9 is 1, and the loss would be infinite.
"""

import torch
from torch import Tensor

from ..errors import UserError
from .arguments import as_computable, check_integers, check_one_device, check_shape

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
    logits, weight = _checked('sigmoid_focal_loss', input, target, weight)
    p = logits.sigmoid()
    loss = _log(1 - p).mul_(p**gamma).mul_(alpha - 1)
    right = _Right(target, p)
    p = right.take(p)
    right.put(loss, _log(p) * (1 - p) ** gamma * -alpha)
    output.copy_(right.weighted(loss, weight))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Fill ``grad_input`` ``(N, C)``; the other arguments are those of the forward op."""
    logits, weight = _checked('sigmoid_focal_loss', input, target, weight)
    p = logits.sigmoid()
    q = 1 - p
    gradient = _log(q).mul_(q).mul_(gamma).sub_(p).mul_(p**gamma).mul_(alpha - 1)
    right = _Right(target, p)
    p = right.take(p)
    q = 1 - p
    right.put(gradient, q**gamma * (q - gamma * p * _log(p)) * -alpha)
    grad_input.copy_(right.weighted(gradient, weight))


def _log(probability: Tensor) -> Tensor:
    return probability.clamp(min=SMALLEST).log_()


class _Right:
    """The element of each row that stands for the right class. Nothing here waits for an accelerator."""

    def __init__(self, target: Tensor, scores: Tensor):
        num_classes = scores.shape[1]
        self.exists = ((target >= 0) & (target < num_classes))[:, None]
        self.column = target.long().clamp(0, num_classes - 1)[:, None]

    def take(self, scores: Tensor) -> Tensor:
        """Return ``(N, 1)`` of ``(N, C)``; where no class is right, that of some class."""
        return scores.gather(1, self.column)

    def put(self, scores: Tensor, values: Tensor) -> None:
        """Write ``(N, 1)`` into ``(N, C)``, but not where no class is right."""
        scores.scatter_(1, self.column, torch.where(self.exists, values, self.take(scores)))

    def weighted(self, values: Tensor, weight: Tensor) -> Tensor:
        """Multiply each row of ``(N, ...)`` by the weight of its class."""
        return values * weight[self.column] if weight.numel() else values


def _checked(op: str, input: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``input`` and ``weight`` to compute with. The check of the classes waits for the device, as in mmcv."""
    check_one_device(op, input=input, target=target, weight=weight)
    input, weight = as_computable(op, input=input, weight=weight)
    check_integers(op, target=target)
    check_shape(
        op, input=(input.shape, (*target.shape[:1], *input.shape[1:2])), target=(target.shape, target.shape[:1])
    )
    num_classes = input.shape[1]
    if weight.numel() not in (0, num_classes):
        raise UserError(f'{op} got {weight.numel()} class weights for {num_classes} classes.')
    if num_classes == 0:
        raise UserError(f'{op} needs numbers (N, C) of one class or more and got {tuple(input.shape)}.')
    if target.numel() == 0:
        return input, weight
    lowest, largest = torch.stack(target.aminmax()).tolist()
    if largest > num_classes:
        raise UserError(
            f'{op} got class {largest}; with {num_classes} classes the highest allowed is {num_classes}. Compare the '
            "head's num_classes with the classes of the data set."
        )
    if weight.numel() and not 0 <= lowest <= largest < num_classes:
        raise UserError(
            f'{op} got weights for {num_classes} classes and targets from {lowest} to {largest}, among them '
            'background, which has no weight. Leave those rows out, or pass no class weights.'
        )
    return input, weight
