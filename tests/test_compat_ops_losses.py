"""The focal losses against a plain loop, torchvision, cross entropy and gradcheck."""

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


def softmax_loss_by_hand(logits, classes, weights, gamma, alpha):
    losses = []
    for row, chosen in zip(logits.tolist(), classes.tolist(), strict=True):
        p = math.exp(row[chosen]) / sum(math.exp(logit) for logit in row) if chosen >= 0 else 1
        weight = weights[chosen].item() if weights is not None and chosen >= 0 else 1
        losses.append(-alpha * (1 - p) ** gamma * math.log(p) * weight if chosen >= 0 else 0.0)
    return torch.tensor(losses, dtype=torch.float64)


@pytest.mark.parametrize('gamma', GAMMAS)
@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('kind', ['sigmoid', 'softmax'])
def test_focal_loss_is_its_definition(kind, weighted, gamma, device):
    import mmcv.ops

    # Of no class: for sigmoid 5, background, and -1, for softmax -1, ignored. mmcv has no weight for background.
    lowest, highest = {('sigmoid', False): (-1, 5), ('sigmoid', True): (0, 4)}.get((kind, weighted), (-1, 4))
    logits, classes, weights = draw(lowest=lowest, highest=highest, device=device)
    loss = getattr(mmcv.ops, f'{kind}_focal_loss')(logits, classes, gamma, 0.3, weights if weighted else None, 'none')
    by_hand = {'sigmoid': sigmoid_loss_by_hand, 'softmax': softmax_loss_by_hand}[kind]
    expected = by_hand(logits.detach(), classes, weights if weighted else None, gamma, 0.3)
    torch.testing.assert_close(loss.cpu(), expected)


@pytest.mark.parametrize('gamma', GAMMAS)
@pytest.mark.parametrize('reduction', ['mean', 'sum'])
@pytest.mark.parametrize('kind', ['sigmoid', 'softmax'])
def test_the_gradient_of_focal_loss_is_its_derivative(kind, reduction, gamma, device):
    import mmcv.ops

    logits, classes, weights = draw(device=device)
    focal_loss = getattr(mmcv.ops, f'{kind}_focal_loss')
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
    from mmcv.ops import SoftmaxFocalLoss, sigmoid_focal_loss

    logits, classes, weights = draw(device=device)
    other = logits.detach().clone().requires_grad_()
    SoftmaxFocalLoss(0.0, 1.0, weights, 'sum')(logits, classes).backward()
    F.cross_entropy(other, classes, weights, reduction='sum').backward()
    torch.testing.assert_close(logits.grad, other.grad)
    binary = F.binary_cross_entropy_with_logits(other, F.one_hot(classes, 5).double(), reduction='none')
    torch.testing.assert_close(sigmoid_focal_loss(logits, classes, 0.0, 0.5, None, 'none'), binary / 2)


@pytest.mark.parametrize('gamma', GAMMAS)
@pytest.mark.parametrize('kind', ['sigmoid', 'softmax'])
def test_saturated_logits_have_finite_losses_and_gradients(kind, gamma, device):
    """mmcv's smallest probability is the smallest normal float32, 2**-126."""
    import mmcv.ops

    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], device=device, requires_grad=True)
    focal_loss = getattr(mmcv.ops, f'{kind}_focal_loss')
    loss = focal_loss(logits, torch.tensor([0, 0], device=device), float(gamma), 0.25, None, 'none')
    largest = 126 * math.log(2)
    expected = [[0, 0], [0.25 * largest, 0.75 * largest]] if kind == 'sigmoid' else [0, 0.25 * largest]
    torch.testing.assert_close(loss.cpu(), torch.tensor(expected))
    loss.sum().backward()
    gradient = [[0, 0], [-0.25, 0.75]] if kind == 'sigmoid' else [[0, 0], [-0.25, 0.25]]
    torch.testing.assert_close(logits.grad.cpu(), torch.tensor(gradient))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('kind', ['sigmoid', 'softmax'])
def test_focal_loss_computes_half_precision_in_float32(kind, dtype, device):
    """In itself float16 has an infinite loss from a logit of 9 on."""
    if kind == 'softmax':
        forward, shape = find_op('softmax_focal_loss_forward'), 3
        scores = torch.tensor([[0.25, 0.75], [0.5, 0.5], [1, 0]], device=device, dtype=dtype)
    else:
        forward, shape = find_op('sigmoid_focal_loss_forward'), (3, 2)
        scores = torch.tensor([[12.0, -12.0], [9.0, 1.0], [-9.0, 10.0]], device=device, dtype=dtype)
    classes, weights = torch.tensor([1, 0, 1], device=device), torch.empty(0, device=device)
    half, exact = torch.zeros(shape, device=device, dtype=dtype), torch.zeros(shape, device=device)
    forward(scores, classes, weights, half, 2.0, 0.25)
    forward(scores.float(), classes, weights, exact, 2.0, 0.25)
    assert half.isfinite().all()
    assert torch.equal(half, exact.to(dtype))


def test_sigmoid_focal_loss_under_autocast(device):
    """The logits are half, as a head leaves them, and the class weights are not."""
    from mmcv.ops import SigmoidFocalLoss

    logits, classes, weights = draw(device=device, dtype=torch.float32)
    dtype = torch.bfloat16 if device.type == 'cpu' else torch.float16
    with torch.autocast(device.type, dtype=dtype):
        mixed = logits @ torch.eye(5, device=device)
        assert mixed.dtype == dtype
        loss = SigmoidFocalLoss(2.0, 0.25, weights)(mixed, classes)
    loss.backward()
    exact = SigmoidFocalLoss(2.0, 0.25, weights)(logits, classes)
    assert loss.item() == pytest.approx(exact.item(), rel=0.02)
    expected = torch.autograd.grad(exact, logits)[0]
    torch.testing.assert_close(logits.grad, expected, rtol=0.05, atol=1e-3)


@pytest.mark.parametrize('kind', ['sigmoid', 'softmax'])
def test_focal_loss_of_no_rows_is_zero(kind, device):
    import mmcv.ops

    logits = torch.zeros(0, 5, device=device, requires_grad=True)
    classes = torch.zeros(0, dtype=torch.int64, device=device)
    loss = getattr(mmcv.ops, f'{kind}_focal_loss')(logits, classes, 2.0, 0.25, None, 'sum')
    assert loss == 0
    loss.backward()
    assert logits.grad.shape == (0, 5)


def test_the_buffer_of_the_softmax_gradient_is_filled():
    probabilities = torch.tensor([[0.25, 0.75]], dtype=torch.float64)
    slope, gradient = torch.zeros(1).double(), torch.full((1, 2), 7.0).double()
    find_op('softmax_focal_loss_backward')(probabilities, torch.tensor([1]), torch.empty(0), slope, gradient, 0.0, 0.5)
    assert slope.item() == -0.5
    assert gradient.tolist() == [[0.125, -0.125]]


@pytest.mark.parametrize(
    ('kind', 'classes', 'weights', 'message'),
    [
        ('sigmoid', [0, 6], None, r'class 6; with 5 classes the highest allowed is 5\. .* num_classes'),
        ('softmax', [0, 5], None, r'class 5; with 5 classes the highest allowed is 4\.'),
        (
            'sigmoid',
            [0, 5],
            5,
            r'weights for 5 classes and targets from 0 to 5, among them background, which has no weight',
        ),
        ('sigmoid', [-1, 4], 5, r'weights for 5 classes and targets from -1 to 4, among them background'),
        ('sigmoid', [0, 1], 4, r'4 class weights for 5 classes'),
    ],
)
def test_classes_that_do_not_fit_are_named(kind, classes, weights, message):
    """mmcv reads foreign memory for a background weight, and the next row for softmax's class 5."""
    output = torch.zeros(2, 5) if kind == 'sigmoid' else torch.zeros(2)
    with pytest.raises(UserError, match=f'{kind}_focal_loss got {message}'):
        find_op(f'{kind}_focal_loss_forward')(
            torch.zeros(2, 5), torch.tensor(classes), torch.ones(weights or 0), output, 2.0, 0.25
        )


def test_integer_logits_and_mixed_devices_are_refused():
    forward = find_op('sigmoid_focal_loss_forward')
    logits, classes, weights = torch.zeros(2, 5), torch.zeros(2, dtype=torch.int64), torch.empty(0)
    with pytest.raises(UserError, match=r'sigmoid_focal_loss: input is torch\.int64'):
        forward(logits.long(), classes, weights, logits, 2.0, 0.25)
    with pytest.raises(
        UserError, match='sigmoid_focal_loss needs its tensors on one device and got input on cpu, target'
    ):
        forward(logits, classes.to('meta'), weights, logits, 2.0, 0.25)
