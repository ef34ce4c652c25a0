"""What the benchmarks count without a clock, against closed forms."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

FILE = Path(__file__).parent.parent / 'benchmarks/counters.py'
spec = importlib.util.spec_from_file_location('counters', FILE)
counters = importlib.util.module_from_spec(spec)
spec.loader.exec_module(counters)


@pytest.mark.parametrize('layer', [nn.Conv2d, nn.ConvTranspose2d])
@pytest.mark.parametrize('groups', [1, 2, 8], ids=lambda groups: f'{groups} groups')
def test_each_gradient_of_a_convolution_has_the_operations_of_the_convolution(layer, groups):
    conv = layer(8, 16, 3, padding=1, groups=groups)
    forward = 2 * 2 * 10 * 12 * 9 * 8 * 16 / groups / 1e9  # batch, places, kernel, channels; products and sums
    for learns, gradients in ((False, 1), (True, 2)):  # that of the weight, and that of the image
        image = torch.randn(2, 8, 10, 12, requires_grad=learns)
        found = counters.count(lambda image=image: conv(image).sum().backward())
        assert found['gflop'] == pytest.approx(forward * (1 + gradients))


@pytest.mark.parametrize(
    ('work', 'launches', 'waits'),
    [
        (lambda x: (x + 1).view(-1), 1, 0),
        (lambda x: x.sum().item(), 2, 1),
        (lambda x: x[x > 0], 2, 1),  # the program waits for the number of places
        (lambda x: x.tolist(), 0, 1),
        (lambda x: x.nonzero(), 1, 1),
    ],
)
def test_views_are_no_launches_and_numbers_that_are_read_are_waits(work, launches, waits):
    x = torch.arange(-4.0, 4).reshape(2, 4)
    found = counters.count(lambda: work(x))
    assert (found['launches'], found['waits']) == (launches, waits)


def test_copies_that_change_the_order_alone_are_relayout():
    image = torch.zeros(1, 50, 100, 200)
    for work in (
        lambda: image.to(memory_format=torch.channels_last),
        lambda: image.transpose(2, 3).contiguous(),
    ):
        assert counters.count(work)['relayout_mb'] == 4.0
    for work in (image.clone, image.half, image.contiguous):
        assert counters.count(work)['relayout_mb'] == 0


def test_what_autograd_keeps_counts_once():
    x = torch.zeros(1_000_000, requires_grad=True)
    assert counters.count(lambda: x.exp())['saved_mb'] == 4.0  # its result
    assert counters.count(lambda: (x.sin(), x.cos()))['saved_mb'] == 4.0  # both keep their input
