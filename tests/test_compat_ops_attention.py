"""Deformable attention against mmcv's version in plain torch, and PSANet's masks against a plain loop."""

import math

import numpy as np
import pytest
import torch

from convnext_dense.compat.ops import find_op, ms_deform_attn

SIZES = [(4, 6), (3, 2), (1, 1)]


def draw(queries=5, heads=2, dim=3, points=2, device='cpu', dtype=torch.float64):
    """Return values, sizes, first pixels, sampling points (some outside) and weights for two images."""
    pixels = sum(height * width for height, width in SIZES)
    value = torch.randn(2, pixels, heads, dim)
    location = torch.rand(2, queries, heads, len(SIZES), points, 2) * 1.6 - 0.3
    weight = torch.rand(2, queries, heads, len(SIZES), points)
    value, location, weight = (t.to(device, dtype).requires_grad_() for t in (value, location, weight))
    sizes = torch.tensor(SIZES, device=device)
    starts = torch.tensor([0, *np.cumsum([h * w for h, w in SIZES])[:-1]], device=device)
    return value, sizes, starts, location, weight


def attend(value, sizes, starts, location, weight):
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction

    return MultiScaleDeformableAttnFunction.apply(value, sizes, starts, location, weight, 64)


@pytest.mark.parametrize('pixels', [ms_deform_attn.PIXELS_AT_ONCE, 1, 100])
def test_deformable_attention_and_its_gradients_are_mmcvs_in_plain_torch(pixels, device, monkeypatch):
    """Which mmcv's module uses on the CPU. Parts of the queries give what all at once give."""
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    monkeypatch.setattr(ms_deform_attn, 'PIXELS_AT_ONCE', pixels)
    monkeypatch.setattr(ms_deform_attn, 'numbers_at_once', lambda device: pixels)
    value, sizes, starts, location, weight = draw(device=device)
    ours = attend(value, sizes, starts, location, weight)
    plain = multi_scale_deformable_attn_pytorch(value, sizes, location, weight)
    torch.testing.assert_close(ours, plain)
    gradient = torch.randn_like(ours)
    found, expected = (torch.autograd.grad(y, (value, location, weight), gradient) for y in (ours, plain))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize('place', [-1.0, -1.5, 6.0, 100.0, math.nan, math.inf, -math.inf])
def test_a_point_a_pixel_or_more_outside_counts_nothing(place, device):
    """Exactly a pixel outside its slope is that from outside, 0, as in mmcv."""
    value, sizes, starts, location, weight = draw(device=device)
    with torch.no_grad():
        location[:, :, :, 0, :, 0] = (place + 0.5) / 6
        weight[:, :, :, 1:] = 0
    output = attend(value, sizes, starts, location, weight)
    assert output.abs().sum() == 0
    for gradient in torch.autograd.grad(output.sum(), (value, location, weight)):
        assert gradient.isfinite().all()
    assert torch.autograd.grad(attend(value, sizes, starts, location, weight).sum(), location)[0].abs().sum() == 0


def test_the_gradient_of_the_values_is_added_and_the_others_are_filled():
    value, sizes, starts, location, weight = (tensor.detach() for tensor in draw())
    gradient = torch.randn(2, 5, 6).double()
    results = []
    for start in (0, 3):
        grads = [torch.full_like(tensor, start) for tensor in (value, location, weight)]
        find_op('ms_deform_attn_backward')(value, sizes, starts, location, weight, gradient, *grads, im2col_step=64)
        results.append(grads)
    for added, one, other in zip((3, 0, 0), *results, strict=True):
        torch.testing.assert_close(other, one + added)


def test_deformable_attention_takes_any_batch():
    """mmcv's needs a batch that im2col_step divides."""
    value, sizes, starts, location, weight = (tensor.detach() for tensor in draw())
    three = [torch.cat([tensor, tensor[:1]]) for tensor in (value, location, weight)]
    output = find_op('ms_deform_attn_forward')(three[0], sizes, starts, *three[1:], im2col_step=2)
    assert torch.equal(output[2], output[0])


def psa_by_hand(masks, height, width, mask_size, kind):
    masks = masks.detach().cpu().numpy().reshape(len(masks), *mask_size, height, width)
    middle = (mask_size[0] - 1) // 2, (mask_size[1] - 1) // 2
    output = np.zeros((len(masks), height, width, height, width), masks.dtype)
    for n, row, column, y, x in np.ndindex(output.shape):
        i, j = y - row + middle[0], x - column + middle[1]
        if 0 <= i < mask_size[0] and 0 <= j < mask_size[1]:
            place = (n, row, column, y, x) if kind == 'distribute' else (n, y, x, row, column)
            output[place] = masks[n, i, j, row, column]
    return torch.from_numpy(output.reshape(len(masks), height * width, height, width))


@pytest.mark.parametrize('mask_size', [(3, 5), (7, 9), (11, 1), (1, 2), (4, 4)])
@pytest.mark.parametrize('kind', ['collect', 'distribute'])
def test_psa_mask_is_its_definition(kind, mask_size, device):
    from mmcv.ops import PSAMask

    masks = torch.randn(2, math.prod(mask_size), 4, 5, device=device)
    assert torch.equal(PSAMask(kind, mask_size)(masks).cpu(), psa_by_hand(masks, 4, 5, mask_size, kind))
