"""The focal loss against torchvision, which has no class weights, and a closed form."""

import math

import pytest
import torch
from torchvision.ops import sigmoid_focal_loss as sigmoid_focal_loss_of_torchvision

GAMMAS = [0, 0.5, 1, 2, 3.5]


@pytest.mark.parametrize('gamma', GAMMAS)
@pytest.mark.parametrize('weighted', [False, True])
def test_focal_loss_and_its_gradient_are_those_of_torchvision(weighted, gamma, device):
    from mmcv.ops import sigmoid_focal_loss

    logits = (torch.randn(12, 5, device=device, dtype=torch.float64) * 2).requires_grad_()
    classes, weights = torch.arange(12, device=device) % 5, torch.rand(5, device=device, dtype=torch.float64)
    if not weighted:  # background has no class weight
        classes[:2] = torch.tensor([-1, 5])
    right = torch.eye(7, device=device, dtype=torch.float64)[classes + 1, 1:6]
    expected = sigmoid_focal_loss_of_torchvision(logits, right, 0.3, gamma)
    if weighted:
        expected = expected * weights[classes, None]
    loss = sigmoid_focal_loss(logits, classes, gamma, 0.3, weights if weighted else None, 'none')
    torch.testing.assert_close(loss, expected)
    found, expected = (torch.autograd.grad(value.mean(), logits)[0] for value in (loss, expected))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize('gamma', GAMMAS)
def test_saturated_logits_have_finite_losses_and_gradients(gamma, device):
    """mmcv's smallest probability is the smallest normal float32, 2**-126."""
    from mmcv.ops import sigmoid_focal_loss as focal_loss

    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], device=device, requires_grad=True)
    loss = focal_loss(logits, torch.tensor([0, 0], device=device), float(gamma), 0.25, None, 'none')
    largest = 126 * math.log(2)
    expected = [[0, 0], [0.25 * largest, 0.75 * largest]]
    torch.testing.assert_close(loss.cpu(), torch.tensor(expected))
    loss.sum().backward()
    gradient = [[0, 0], [-0.25, 0.75]]
    torch.testing.assert_close(logits.grad.cpu(), torch.tensor(gradient))
