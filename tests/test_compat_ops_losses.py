"""The focal loss against a plain loop, torchvision, cross entropy and gradcheck."""

import math

import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss as sigmoid_focal_loss_of_torchvision

from convnext_dense import compat as stack
from convnext_dense.compat.errors import UserError
from convnext_dense.compat.ops import find_op

GAMMAS = [0, 0.5, 1, 2, 3.5]


@pytest.fixture(autouse=True)
def _prepared():
    stack.prepare()


def draw(num_classes=5, lowest=0, highest=4, device='cpu', dtype=torch.float64):
    """Return logits, classes and class weights."""
    logits = torch.randn(12, num_classes, device=device, dtype=dtype) * 2
    classes = torch.randint(lowest, highest + 1, (12,), device=device)
    classes[:2] = torch.tensor([lowest, highest])
    return logits.requires_grad_(), classes, torch.rand(num_classes, device=device, dtype=dtype)


def sigmoid_loss_by_hand(logits, classes, weights, gamma, alpha):
    losses = []
    for row, chosen in zip(logits.tolist(), classes.tolist(), strict=True):
        for c, logit in enumerate(row):
            p = 1 / (1 + math.exp(-logit))
            loss = -alpha * (1 - p) ** gamma * math.log(p) if c == chosen else -(1 - alpha) * p**gamma * math.log(1 - p)
            losses.append(loss * (weights[chosen].item() if weights is not None else 1))
    return torch.tensor(losses, dtype=torch.float64).view(logits.shape)


@pytest.mark.parametrize('gamma', GAMMAS)
@pytest.mark.parametrize('weighted', [False, True])
def test_focal_loss_is_its_definition(weighted, gamma, device):
    from mmcv.ops import sigmoid_focal_loss

    # Classes -1 and 5 are background. mmcv has no weight for it.
    lowest, highest = (0, 4) if weighted else (-1, 5)
    logits, classes, weights = draw(lowest=lowest, highest=highest, device=device)
    loss = sigmoid_focal_loss(logits, classes, gamma, 0.3, weights if weighted else None, 'none')
    expected = sigmoid_loss_by_hand(logits.detach(), classes, weights if weighted else None, gamma, 0.3)
    torch.testing.assert_close(loss.cpu(), expected)


@pytest.mark.parametrize('gamma', GAMMAS)
@pytest.mark.parametrize('reduction', ['mean', 'sum'])
def test_the_gradient_of_focal_loss_is_its_derivative(reduction, gamma, device):
    from mmcv.ops import sigmoid_focal_loss as focal_loss

    logits, classes, weights = draw(device=device)
    assert torch.autograd.gradcheck(lambda x: focal_loss(x, classes, gamma, 0.25, weights, reduction), logits)
    classes[0] = -1
    assert torch.autograd.gradcheck(lambda x: focal_loss(x, classes, gamma, 0.25, None, reduction), logits)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_sigmoid_focal_loss_is_that_of_torchvision(dtype, device):
    from mmcv.ops import SigmoidFocalLoss

    logits, classes, _ = draw(highest=5, device=device, dtype=dtype)
    other = logits.detach().clone().requires_grad_()
    loss = SigmoidFocalLoss(2.0, 0.25)(logits, classes)
    expected = sigmoid_focal_loss_of_torchvision(other, F.one_hot(classes, 6)[:, :5].to(dtype), 0.25, 2.0, 'sum') / 12
    torch.testing.assert_close(loss, expected)
    for value in (loss, expected):
        value.backward()
    torch.testing.assert_close(logits.grad, other.grad)


def test_without_focus_it_is_cross_entropy(device):
    from mmcv.ops import sigmoid_focal_loss

    logits, classes, _ = draw(device=device)
    binary = F.binary_cross_entropy_with_logits(logits, F.one_hot(classes, 5).double(), reduction='none')
    torch.testing.assert_close(sigmoid_focal_loss(logits, classes, 0.0, 0.5, None, 'none'), binary / 2)


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


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_focal_loss_computes_half_precision_in_float32(dtype, device):
    """In itself float16 has an infinite loss from a logit of 9 on."""
    forward, shape = find_op('sigmoid_focal_loss_forward'), (3, 2)
    scores = torch.tensor([[12.0, -12.0], [9.0, 1.0], [-9.0, 10.0]], device=device, dtype=dtype)
    classes, weights = torch.tensor([1, 0, 1], device=device), torch.empty(0, device=device)
    half, exact = torch.zeros(shape, device=device, dtype=dtype), torch.zeros(shape, device=device)
    forward(scores, classes, weights, half, 2.0, 0.25)
    forward(scores.float(), classes, weights, exact, 2.0, 0.25)
    assert half.isfinite().all()
    assert torch.equal(half, exact.to(dtype))


@pytest.mark.parametrize(
    ('classes', 'weights', 'message'),
    [
        ([0, 6], None, r'class 6; with 5 classes the highest allowed is 5\. .* num_classes'),
        (
            [0, 5],
            5,
            r'weights for 5 classes and targets from 0 to 5, among them background, which has no weight',
        ),
        ([-1, 4], 5, r'weights for 5 classes and targets from -1 to 4, among them background'),
        ([0, 1], 4, r'4 class weights for 5 classes'),
    ],
)
def test_classes_that_do_not_fit_are_named(classes, weights, message):
    """mmcv reads foreign memory for a background weight."""
    output = torch.zeros(2, 5)
    with pytest.raises(UserError, match=f'sigmoid_focal_loss got {message}'):
        find_op('sigmoid_focal_loss_forward')(
            torch.zeros(2, 5), torch.tensor(classes), torch.ones(weights or 0), output, 2.0, 0.25
        )
