"""Deformable attention, PSANet's masks and criss-cross attention against plain loops, closed forms and gradcheck."""

import math

import numpy as np
import pytest
import torch
from torch._subclasses import FakeTensorMode

from convnext_dense import compat as stack
from convnext_dense.compat.errors import UserError
from convnext_dense.compat.ops import find_op, ms_deform_attn

SIZES = [(4, 6), (3, 2), (1, 1)]


@pytest.fixture(autouse=True)
def _prepared():
    stack.prepare()


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


def attend_by_hand(value, location, weight):
    value, location, weight = (tensor.detach().cpu().double().numpy() for tensor in (value, location, weight))
    images, queries, heads, _, points, _ = location.shape
    output = np.zeros((images, queries, heads, value.shape[3]))
    for b, q, m, (level, (height, width)), p in (
        (b, q, m, item, p) for b, q, m, p in np.ndindex(images, queries, heads, points) for item in enumerate(SIZES)
    ):
        start = sum(h * w for h, w in SIZES[:level])
        image = value[b, start : start + height * width, m].reshape(height, width, -1)
        x, y = location[b, q, m, level, p] * (width, height) - 0.5
        for row, column in np.ndindex(height, width):
            share = max(0, 1 - abs(y - row)) * max(0, 1 - abs(x - column))
            output[b, q, m] += share * weight[b, q, m, level, p] * image[row, column]
    return torch.from_numpy(output).flatten(2)


def test_deformable_attention_is_its_definition(device):
    value, sizes, starts, location, weight = draw(device=device, dtype=torch.float32)
    output = attend(value, sizes, starts, location, weight)
    torch.testing.assert_close(output.cpu(), attend_by_hand(value, location, weight).float(), rtol=1e-5, atol=1e-5)


def test_the_gradients_of_deformable_attention_are_its_derivatives(device):
    value, sizes, starts, location, weight = draw(device=device)
    assert torch.autograd.gradcheck(lambda v, p, w: attend(v, sizes, starts, p, w), (value, location, weight))


def test_deformable_attention_is_mmcvs_in_plain_torch(device):
    """Which mmcv's module uses on the CPU."""
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    value, sizes, starts, location, weight = draw(queries=40, heads=4, dim=8, points=4, device=device)
    ours = attend(value, sizes, starts, location, weight)
    plain = multi_scale_deformable_attn_pytorch(value, sizes, location, weight)
    torch.testing.assert_close(ours, plain)
    gradient = torch.randn_like(ours)
    found, expected = (torch.autograd.grad(y, (value, location, weight), gradient) for y in (ours, plain))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize('pixels', [1, 100])
def test_parts_of_the_queries_give_what_all_at_once_give(pixels, monkeypatch):
    inputs = draw()
    whole = attend(*inputs)
    expected = torch.autograd.grad(whole.square().sum(), [inputs[i] for i in (0, 3, 4)])
    monkeypatch.setattr(ms_deform_attn, 'PIXELS_AT_ONCE', pixels)
    monkeypatch.setattr(ms_deform_attn, 'numbers_at_once', lambda device: pixels)
    parts = attend(*inputs)
    torch.testing.assert_close(parts, whole)
    found = torch.autograd.grad(parts.square().sum(), [inputs[i] for i in (0, 3, 4)])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_a_point_in_the_middle_of_a_pixel_reads_that_pixel(device):
    value, sizes, starts, location, weight = draw(queries=24, heads=1, points=1, device=device)
    with torch.no_grad():
        weight.zero_()
        weight[:, :, :, 0] = 1  # the first map alone
        rows, columns = torch.meshgrid(torch.arange(4), torch.arange(6), indexing='ij')
        middle = (torch.stack([columns.flatten(), rows.flatten()], dim=-1).double() + 0.5) / torch.tensor([6, 4])
        location[:] = middle.to(location)[:, None, None, None]
    torch.testing.assert_close(attend(value, sizes, starts, location, weight), value[:, :24, 0])


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


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_deformable_attention_computes_half_precision_in_float32(dtype, device):
    value, sizes, starts, location, weight = draw(device=device, dtype=dtype)
    output = attend(value, sizes, starts, location, weight)
    exact = attend(value.float(), sizes, starts, location.float(), weight.float())
    assert output.dtype == dtype
    assert torch.equal(output, exact.to(dtype))
    output.float().sum().backward()
    assert {tensor.grad.dtype for tensor in (value, location, weight)} == {dtype}


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


def test_deformable_attention_takes_any_batch_and_no_queries():
    """mmcv's needs a batch that im2col_step divides."""
    value, sizes, starts, location, weight = (tensor.detach() for tensor in draw())
    three = [torch.cat([tensor, tensor[:1]]) for tensor in (value, location, weight)]
    output = find_op('ms_deform_attn_forward')(three[0], sizes, starts, *three[1:], im2col_step=2)
    assert torch.equal(output[2], output[0])
    none = find_op('ms_deform_attn_forward')(value, sizes, starts, location[:, :0], weight[:, :0], 64)
    assert none.shape == (2, 0, 6)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda v, s, f, p, w: (v[:, :-1], s, f, p, w), r'sizes \[\[4, 6\], .* do not lie within the 30 pixels'),
        (lambda v, s, f, p, w: (v, -s, f, p, w), r'do not lie within'),
        (lambda v, s, f, p, w: (v, s[:2], f, p, w), r'value_level_start_index has shape \(3,\); .* \(2,\)'),
        (lambda v, s, f, p, w: (v, s, f, p, w[:, :3]), r'attention_weights has shape'),
        (lambda v, s, f, p, w: (v, s, f, p[:, :, :1], w), r'sampling_locations has shape'),
        (lambda v, s, f, p, w: (v.flatten(2), s, f, p, w), r'needs values \(B, K, M, D\)'),
        (lambda v, s, f, p, w: (v, s.to('meta'), f, p, w), r'on one device and got .* value_spatial_shapes on meta'),
        (lambda v, s, f, p, w: (v.long(), s, f, p, w), r'value is torch\.int64'),
    ],
)
def test_an_attention_that_does_not_fit_says_why(change, message):
    with pytest.raises(UserError, match=f'ms_deform_attn.*{message}'):
        find_op('ms_deform_attn_forward')(*change(*(tensor.detach() for tensor in draw())), 64)


def test_the_module_asks_for_the_op_on_a_gpu_alone(device, monkeypatch):
    from mmcv.ops import MultiScaleDeformableAttention
    from mmcv.ops import multi_scale_deform_attn as wrappers

    asked = []
    forward = find_op('ms_deform_attn_forward')
    monkeypatch.setattr(
        wrappers.ext_module, 'ms_deform_attn_forward', lambda *a, **k: asked.append(1) or forward(*a, **k)
    )
    _, sizes, starts, _, _ = draw(device=device)
    layer = MultiScaleDeformableAttention(32, 4, 3, 2, batch_first=True).to(device)
    query, value = torch.randn(2, 7, 32, device=device), torch.randn(2, 31, 32, device=device)
    points = torch.rand(2, 7, 3, 2, device=device)
    output = layer(query, value=value, reference_points=points, spatial_shapes=sizes, level_start_index=starts)
    assert output.shape == (2, 7, 32)
    assert bool(asked) == (device.type == 'cuda')
    output.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


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
def test_psa_mask_is_its_definition_and_its_gradient_the_way_back(kind, mask_size, device):
    from mmcv.ops import PSAMask

    masks = torch.randn(2, math.prod(mask_size), 4, 5, device=device, requires_grad=True)
    attention = PSAMask(kind, mask_size)(masks)
    assert torch.equal(attention.detach().cpu(), psa_by_hand(masks, 4, 5, mask_size, kind))
    # It moves numbers, so that its gradient moves them back, but for those that it dropped.
    (gradient,) = torch.autograd.grad(attention, masks, attention)
    numbers = torch.arange(1.0, 1 + masks.numel()).view(masks.shape)
    kept = torch.isin(numbers, psa_by_hand(numbers, 4, 5, mask_size, kind))
    assert torch.equal(gradient.cpu(), torch.where(kept, masks.detach().cpu(), 0))


def test_a_psa_mask_of_one_tap_is_a_diagonal():
    from mmcv.ops import PSAMask

    masks = torch.rand(1, 1, 3, 4)
    for kind in ('collect', 'distribute'):
        assert torch.equal(PSAMask(kind, (1, 1))(masks).view(12, 12), masks.flatten().diag())


def test_what_one_pixel_collects_another_distributes():
    from mmcv.ops import PSAMask

    masks = torch.randn(2, 63, 4, 5)
    collected, distributed = (PSAMask(kind, (7, 9))(masks).view(2, 20, 20) for kind in ('collect', 'distribute'))
    assert torch.equal(collected, distributed.transpose(1, 2))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_psa_mask_keeps_the_type(dtype, device):
    from mmcv.ops import PSAMask

    masks = torch.randn(1, 9, 4, 4, device=device, dtype=dtype, requires_grad=True)
    attention = PSAMask('collect', (3, 3))(masks)
    assert attention.dtype == dtype
    attention[:, ::2].sum().backward()  # a gradient that is not contiguous
    assert masks.grad.dtype == dtype


def test_a_psa_mask_that_does_not_fit_says_why():
    with pytest.raises(UserError, match=r'psa_mask: attention has shape \(1, 8, 2, 4\); .* \(1, 8, 4, 2\)'):
        find_op('psamask_forward')(torch.zeros(1, 9, 4, 2), torch.zeros(1, 8, 2, 4), 0, 1, 4, 2, 3, 3, 1, 1)


@pytest.mark.parametrize(('mode', 'dim', 'ahead'), [('top', 1, 1), ('bottom', 1, -1), ('left', 2, 1), ('right', 2, -1)])
def test_corner_pool_takes_the_largest_from_here_to_the_side(mode, dim, ahead, device):
    """It has no compiled part in mmcv 2."""
    from mmcv.ops import CornerPool

    x = torch.randn(2, 3, 5, 6, device=device, requires_grad=True)
    expected = x.detach().clone()
    for c, i, j in np.ndindex(3, 5, 6):
        rows = slice(i, None) if ahead > 0 else slice(None, i + 1)
        columns = slice(j, None) if ahead > 0 else slice(None, j + 1)
        run = x[:, c, rows, j] if dim == 1 else x[:, c, i, columns]
        expected[:, c, i, j] = run.detach().amax(1)
    pooled = CornerPool(mode)(x)
    assert torch.equal(pooled, expected)
    pooled.sum().backward()
    assert x.grad.sum() == x.numel()


def test_criss_cross_attention_sees_its_row_and_column_once(device):
    """It is plain torch in mmcv: no op is asked for it."""
    from mmcv.ops import CrissCrossAttention

    layer, x = CrissCrossAttention(8).to(device), torch.randn(2, 8, 3, 4, device=device)
    with torch.no_grad():
        layer.gamma.scale.fill_(0.7)
        output = layer(x)
        query, key, value = layer.query_conv(x), layer.key_conv(x), layer.value_conv(x)
        for n, row, column in np.ndindex(2, 3, 4):
            seen = {(y, column) for y in range(3)} | {(row, x_) for x_ in range(4)}
            energy = torch.stack([query[n, :, row, column] @ key[n, :, y, x_] for y, x_ in seen])
            mixed = sum(a * value[n, :, y, x_] for a, (y, x_) in zip(energy.softmax(0), seen, strict=True))
            expected = 0.7 * mixed + x[n, :, row, column]
            torch.testing.assert_close(output[n, :, row, column], expected, rtol=1e-4, atol=1e-4)


def on_gpu(*shape, dtype=torch.float32):
    return torch.zeros(shape, device='cuda', dtype=dtype, requires_grad=dtype.is_floating_point)


def deformable_convolutions():
    from mmcv.ops import deform_conv2d, modulated_deform_conv2d

    shapes = (2, 4, 5, 6), (6, 4, 3, 3), (2, 18, 5, 6), (2, 9, 5, 6)
    x, weight, offset, mask = (on_gpu(*shape) for shape in shapes)
    yield deform_conv2d(x, offset, weight, 1, 1)
    yield modulated_deform_conv2d(x, offset, mask, weight, on_gpu(6), 1, 1)


def deformable_attention():
    value, location, weight = (
        on_gpu(*shape, dtype=torch.float16) for shape in ((2, 31, 2, 8), (2, 5, 2, 3, 4, 2), (2, 5, 2, 3, 4))
    )
    yield attend(value, on_gpu(3, 2, dtype=torch.int64), on_gpu(3, dtype=torch.int64), location, weight)


def carafe():
    import mmcv.ops

    yield mmcv.ops.carafe(on_gpu(2, 4, 5, 6), on_gpu(2, 9, 10, 12), 3, 1, 2)


def psa_masks():
    from mmcv.ops import PSAMask

    for kind in ('collect', 'distribute'):
        yield PSAMask(kind, (3, 3))(on_gpu(2, 9, 5, 6))


def focal_losses():
    """Without rows: the check of the classes waits, as mmcv's does."""
    from mmcv.ops import sigmoid_focal_loss

    classes = on_gpu(0, dtype=torch.int64)
    yield sigmoid_focal_loss(on_gpu(0, 5), classes, 2.0, 0.25, None, 'sum')


@pytest.mark.skipif(
    torch.__version__ < '2.5' and not torch.cuda.is_available(),
    reason='PyTorch 2.4 for CUDA aborts at a fake tensor of a GPU where there is none',
)
@pytest.mark.parametrize('run', [deformable_convolutions, deformable_attention, carafe, psa_masks, focal_losses])
def test_on_a_gpu_nothing_is_computed_elsewhere_or_waited_for(run):
    """PyTorch's fake tensors know their device and raise where a number would have to be fetched from it."""
    with FakeTensorMode():
        for output in run():
            assert output.is_cuda
            gradients = output.grad_fn.apply(torch.ones_like(output))
            assert all(gradient.is_cuda for gradient in gradients if gradient is not None)
