"""Deformable and masked convolution, CARAFE and SyncBatchNorm against plain loops, closed forms and gradcheck."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from convnext_dense.compat import upstream_heads
from convnext_dense.compat.errors import UserError
from convnext_dense.compat.ops import carafe, deform_conv, find_op

NAN = float('nan')


def deform_conv_by_hand(x, offset, weight, mask, bias, stride, padding, dilation, groups, deform_groups):
    """Sample the taps of each output pixel in a loop: every pixel is weighed by a tent around it, outside is 0."""
    num_images, _, height, width = x.shape
    size, num_taps = offset.shape[2:], weight[0, 0].numel()
    x, offset = x.unflatten(1, (deform_groups, -1)), offset.view(num_images, deform_groups, num_taps, 2, *size)
    columns = x.new_zeros(*x.shape[:3], num_taps, *size)
    for n, g, tap, row, column in np.ndindex(num_images, deform_groups, num_taps, *size):
        i, j = divmod(tap, weight.shape[3])
        y, x_ = offset[n, g, tap, :, row, column].tolist()
        y += row * stride[0] - padding[0] + i * dilation[0]
        x_ += column * stride[1] - padding[1] + j * dilation[1]
        rows = (1 - (torch.arange(height).double() - y).abs()).clamp(min=0)
        cols = (1 - (torch.arange(width).double() - x_).abs()).clamp(min=0)
        columns[n, g, :, tap, row, column] = rows @ x[n, g] @ cols
    if mask is not None:
        columns *= mask.view(num_images, deform_groups, 1, num_taps, *size)
    columns = columns.flatten(1, 3).unflatten(1, (groups, -1))
    output = torch.einsum('gok,ngkhw->ngohw', weight.flatten(1).unflatten(0, (groups, -1)), columns).flatten(1, 2)
    return output if bias is None else output + bias[:, None, None]


def convolve(x, offset, weight, *mask_and_bias, **geometry):
    """Run v1, or v2 where there are a mask and a bias."""
    from mmcv.ops import deform_conv2d, modulated_deform_conv2d

    geometry = (dict(stride=1, padding=1, dilation=1, groups=1, deform_groups=1) | geometry).values()
    if mask_and_bias:
        mask, bias = mask_and_bias
        return modulated_deform_conv2d(x, offset, mask, weight, bias, *geometry)
    return deform_conv2d(x, offset, weight, *geometry)


def draw_convolution(kernel=(3, 3), size=(5, 6), groups=1, deform_groups=1, device='cpu'):
    """Return features, offsets of up to about 2 pixels, weights, factors and a bias."""
    taps = deform_groups * math.prod(kernel)
    offset, mask = torch.randn(2, 2 * taps, *size), torch.rand(2, taps, *size)
    drawn = (torch.randn(2, 4, 5, 6), offset, torch.randn(6, 4 // groups, *kernel), mask, torch.randn(6))
    return [tensor.double().to(device).requires_grad_() for tensor in drawn]


# kernel, size of the output and the geometry
CONVOLUTIONS = {
    'plain': ((3, 3), (5, 6), dict(stride=(1, 1), padding=(1, 1), dilation=(1, 1), groups=1, deform_groups=1)),
    'strided': ((3, 3), (4, 4), dict(stride=(2, 1), padding=(2, 1), dilation=(1, 2), groups=1, deform_groups=1)),
    'groups': ((2, 3), (4, 4), dict(stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=2, deform_groups=4)),
    'pointwise': ((1, 1), (3, 3), dict(stride=(2, 2), padding=(0, 0), dilation=(1, 1), groups=1, deform_groups=2)),
}


@pytest.mark.parametrize(('kernel', 'size', 'geometry'), CONVOLUTIONS.values(), ids=CONVOLUTIONS)
@pytest.mark.parametrize('version', [1, 2])
def test_deformable_convolution_is_its_definition(version, kernel, size, geometry, device, monkeypatch):
    groups, deform_groups = geometry['groups'], geometry['deform_groups']
    x, offset, weight, *mask_and_bias = draw_convolution(kernel, size, groups, deform_groups, device)
    inputs = (x, offset, weight) if version == 1 else (x, offset, weight, *mask_and_bias)
    output = convolve(*inputs, **geometry)
    drawn = (x, offset, weight, *(mask_and_bias if version == 2 else (None, None)))
    drawn = (tensor if tensor is None else tensor.detach().cpu() for tensor in drawn)
    expected = deform_conv_by_hand(*drawn, *geometry.values())
    torch.testing.assert_close(output.cpu(), expected)
    for numbers in (1, 10**6):  # images one at a time, and all at once
        monkeypatch.setattr(deform_conv, 'numbers_at_once', lambda device, numbers=numbers: numbers)
        torch.testing.assert_close(convolve(*inputs, **geometry), output)
        assert torch.autograd.gradcheck(lambda *given: convolve(*given, **geometry), inputs, fast_mode=True)


@pytest.mark.parametrize('version', [1, 2])
def test_a_sample_on_the_outer_edge_of_the_padding_has_no_slope(version, device):
    """As in mmcv. Every new layer has such samples, since its offsets start at 0."""
    x, weight = torch.ones(1, 1, 3, 3, device=device), torch.ones(1, 1, 3, 3, device=device)
    offset = torch.zeros(1, 18, 3, 3, device=device, requires_grad=True)
    mask_and_bias = (torch.ones(1, 9, 3, 3, device=device), None) if version == 2 else ()
    output = convolve(x, offset, weight, *mask_and_bias)
    slopes = torch.autograd.grad(output.sum(), offset)[0].view(3, 3, 2, 3, 3)
    assert slopes[0, 1, 0, 0].tolist() == [0, 0, 0]  # upper taps of the first row, by y: at y = -1
    assert slopes[1, 0, 1, :, 0].tolist() == [0, 0, 0]  # left taps of the first column, by x
    assert slopes[2, 1, 0, 1].tolist() == [-1, -1, -1]  # lower taps of the middle row: further down the image ends


V1 = dict(kW=3, kH=3, dW=1, dH=1, padW=1, padH=1, dilationW=1, dilationH=1, group=1, deformable_group=1, im2col_step=1)


def test_the_ops_of_v1_fill_and_add_and_find_all_gradients_in_one_run(monkeypatch):
    """And what was found for one gradient of the output is not taken for another's."""
    x, offset, weight, _, _ = (tensor.detach() for tensor in draw_convolution())
    gradient, other_gradient = torch.randn(2, 2, 6, 5, 6).double()
    runs = []
    run = deform_conv._Convolution.gradients
    monkeypatch.setattr(deform_conv._Convolution, 'gradients', lambda *a, **given: runs.append(1) or run(*a, **given))

    def backward(gradient_of_input, gradient_of_weight, start=0, scale=1):
        grads, scratch = [torch.full_like(tensor, start) for tensor in (x, offset, weight)], torch.empty(0)
        find_op('deform_conv_backward_input')(x, offset, gradient_of_input, *grads[:2], weight, scratch, **V1)
        find_op('deform_conv_backward_parameters')(
            x, offset, gradient_of_weight, grads[2], scratch, scratch, **V1, scale=scale
        )
        return grads

    grad_x, grad_offset, grad_weight = backward(gradient, gradient)
    assert len(runs) == 1
    more_x, same_offset, more_weight = backward(gradient, gradient, start=5, scale=6)
    torch.testing.assert_close(more_x, grad_x + 5)
    torch.testing.assert_close(same_offset, grad_offset)
    torch.testing.assert_close(more_weight, 6 * grad_weight + 5)
    torch.testing.assert_close(backward(other_gradient, gradient)[2], grad_weight)


@pytest.mark.parametrize(('kind', 'scale'), [('DCN', 1), ('DCNv2', 0.5)])
def test_a_new_layer_is_a_convolution_and_learns_its_offsets(kind, scale, device):
    """With a mask of sigmoid(0)."""
    import mmcv.ops  # noqa: F401  registers the layers
    from mmengine.registry import MODELS

    layer = MODELS.build(dict(type=kind, in_channels=4, out_channels=6, kernel_size=3, padding=1, bias=False))
    layer, x = layer.to(device), torch.randn(2, 4, 8, 8, device=device)
    output = layer(x)
    torch.testing.assert_close(output, scale * F.conv2d(x, layer.weight, padding=1), rtol=1e-4, atol=1e-5)
    output.square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in layer.parameters())


@pytest.mark.parametrize('bad', [NAN, math.inf, -math.inf, 1e30, -1e30])
def test_offsets_that_lead_nowhere_sample_nothing(bad, device):
    x, offset, weight, _, _ = draw_convolution(device=device)
    with torch.no_grad():
        offset[:, :, 2] = bad
    output = convolve(x, offset, weight)
    assert output[:, :, 2].abs().sum() == 0
    output.sum().backward()
    assert offset.grad[:, :, 2].abs().sum() == 0
    assert x.grad.isfinite().all()


def test_larger_offset_maps_are_read_from_their_first_number_on():
    """As compiled mmcv does; mmdet's DyHead gives the coarser level the offsets of the finer one."""
    x, weight, both = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 3, 3), torch.randn(2, 27, 8, 10)
    offset, mask = both[:, :18].requires_grad_(), both[:, 18:].requires_grad_()
    output = convolve(x, offset, weight, mask, None)
    first_offset = offset.reshape(2, -1)[:, : 18 * 20].view(2, 18, 4, 5)
    first_mask = mask.reshape(2, -1)[:, : 9 * 20].view(2, 9, 4, 5)
    expected = convolve(x, first_offset, weight, first_mask, None)
    assert torch.equal(output, expected)
    found, others = (torch.autograd.grad(y.sum(), (offset, mask)) for y in (output, expected))
    for gradient, other in zip(found, others, strict=True):
        assert torch.equal(gradient, other)
    with pytest.raises(UserError, match=r'offset has shape \(2, 18, 3, 10\)'):
        convolve(x, offset[:, :, :3], weight, mask, None)


@pytest.mark.parametrize(('kernel', 'padding'), [(3, 1), (1, 0), ((3, 5), (1, 2))])
def test_masked_convolution_is_a_convolution_where_the_mask_says(kernel, padding, device):
    from mmcv.ops import MaskedConv2d

    layer = MaskedConv2d(3, 4, kernel, padding=padding).to(device)
    x, mask = torch.randn(1, 3, 6, 7, device=device), torch.rand(1, 6, 7, device=device) > 0.5
    with torch.no_grad():
        torch.testing.assert_close(layer(x, mask), layer(x) * mask, rtol=1e-5, atol=1e-5)
        assert layer(x, torch.zeros_like(mask)).abs().sum() == 0


def test_the_patches_of_masked_convolution_are_those_of_unfold():
    """In the corners too, and with a padding that makes the output larger than the mask."""
    image = torch.randn(1, 2, 4, 5)
    rows, columns = torch.tensor([0, 0, 3, 3, 2]), torch.tensor([0, 4, 0, 4, 2])
    for padding in (0, 1, 2):
        patches = torch.full((2 * 3 * 2, 5), -7.0)
        find_op('masked_im2col_forward')(image, rows, columns, patches, 3, 2, padding, padding)
        unfolded = F.unfold(F.pad(image, (padding, 2, padding, 3)), (3, 2))
        width = 5 + padding + 2 - 1
        assert torch.equal(patches, unfolded[0][:, rows * width + columns])


@pytest.mark.parametrize(('kernel', 'groups', 'scale'), [(5, 1, 2), (3, 2, 3), (1, 4, 1)])
def test_carafe_is_its_definition(kernel, groups, scale, device, monkeypatch):
    import mmcv.ops

    features = torch.randn(2, 4, 3, 5, device=device).double().requires_grad_()
    masks = torch.randn(2, groups * kernel**2, 3 * scale, 5 * scale, device=device).double().requires_grad_()
    around = F.unfold(features, kernel, padding=kernel // 2).view(2, groups, -1, kernel**2, 3, 5)
    around = around.repeat_interleave(scale, dim=-2).repeat_interleave(scale, dim=-1)
    expected = (around * masks.view(2, groups, 1, kernel**2, 3 * scale, 5 * scale)).sum(dim=3).flatten(1, 2)
    gradient = torch.randn_like(expected)
    expected_gradients = torch.autograd.grad(expected, (features, masks), gradient)
    for numbers in (1, 3 * 5 * 4 * kernel**2, 10**6):  # a row, an image, all at a time
        monkeypatch.setattr(carafe, 'numbers_at_once', lambda device, numbers=numbers: numbers)
        output = mmcv.ops.carafe(features, masks, kernel, groups, scale)
        torch.testing.assert_close(output, expected)
        torch.testing.assert_close(torch.autograd.grad(output, (features, masks), gradient), expected_gradients)


@pytest.fixture
def alone(monkeypatch):
    """``mmcv.ops.sync_bn``, patched for a process without a group; upstream's layer cannot be built there."""
    from mmcv.ops import sync_bn as module

    monkeypatch.setattr(module, 'dist', torch.distributed)
    with pytest.raises(ValueError, match='process group has not been initialized'):
        module.SyncBatchNorm(5)
    upstream_heads.let_sync_bn_stand_alone(module)
    return module


def test_sync_batch_norm_that_stands_alone_still_asks_a_group(alone, one_process, monkeypatch):
    monkeypatch.setattr(
        torch.distributed, 'get_world_size', lambda group: 3 if group is torch.distributed.group.WORLD else 0
    )
    assert alone.SyncBatchNorm(5).group_size == 3
    assert alone.dist.all_reduce is torch.distributed.all_reduce


@pytest.mark.parametrize(
    ('layer', 'message'),
    [(dict(affine=False), 'weight is None.* affine=True'), (dict(num_features=4), r'weight has shape \(4,\)')],
)
def test_a_sync_batch_norm_that_does_not_fit_says_why(layer, message, alone):
    """mmcv would read foreign memory."""
    norm = alone.SyncBatchNorm(**dict(num_features=5) | layer)
    with pytest.raises(UserError, match=f'sync_bn: {message}'):
        norm(torch.randn(3, 5, 4, 6))


@pytest.mark.parametrize('processes', ['one_process', 'alone'])
def test_sync_batch_norm_of_one_process_is_batch_norm(processes, request):
    request.getfixturevalue(processes)
    from mmcv.ops import SyncBatchNorm

    ours, plain = SyncBatchNorm(5), nn.BatchNorm2d(5)
    with torch.no_grad():
        ours.bias.normal_()
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(3, 5, 4, 6) * 3 + 1
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [norm(given) for norm, given in zip((ours, plain), inputs, strict=True)]
    torch.testing.assert_close(*outputs)
    for output in outputs:
        output.backward(torch.linspace(-1, 1, x.numel()).view_as(x))
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-4, atol=1e-5)
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(getattr(ours, name).grad, parameter.grad, rtol=1e-4, atol=1e-4)
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(getattr(ours, name), buffer)
    torch.testing.assert_close(ours.eval()(x), plain.eval()(x))
    ours.train()(torch.zeros(0, 5, 4, 6))  # a head without RoIs


def test_the_parts_of_sync_batch_norm_add_up_over_processes():
    """Two batches with means and variances averaged between, as the wrapper does it, are one batch of both."""
    plain = nn.BatchNorm1d(4)
    weight, bias = torch.rand(4), torch.randn(4)
    plain.load_state_dict(plain.state_dict() | dict(weight=weight, bias=bias))
    batches, gradients = torch.randn(2, 2, 3, 4, 6)  # of two processes, (N, C, S) each
    x = batches.flatten(0, 1).requires_grad_()
    expected = plain(x)
    expected.backward(gradients.flatten(0, 1))

    means, variances, std = torch.zeros(2, 4), torch.zeros(2, 4), torch.zeros(4)
    norms, outputs, grad_inputs = torch.zeros(3, 2, 3, 4, 6)
    grads = torch.zeros(2, 2, 4)  # process, weight or bias
    for process in range(2):
        find_op('sync_bn_forward_mean')(batches[process], means[process])
    mean = means.mean(0)
    for process in range(2):
        find_op('sync_bn_forward_var')(batches[process], mean, variances[process])
    variance = variances.mean(0)
    for process in range(2):
        running = torch.zeros(4), torch.ones(4)
        buffers = (norms[process], std, outputs[process])
        find_op('sync_bn_forward_output')(
            batches[process], mean, variance, weight, bias, *running, *buffers, 1e-5, torch.tensor(0.1), 2
        )
        find_op('sync_bn_backward_param')(gradients[process], norms[process], *grads[process])
    for process in range(2):
        buffers = (norms[process], std, grad_inputs[process])
        find_op('sync_bn_backward_data')(gradients[process], weight, *grads.mean(0), *buffers)

    torch.testing.assert_close(outputs.flatten(0, 1), expected)
    torch.testing.assert_close(running, (plain.running_mean, plain.running_var))
    torch.testing.assert_close(grads.sum(0), torch.stack([plain.weight.grad, plain.bias.grad]))
    torch.testing.assert_close(grad_inputs.flatten(0, 1), x.grad, rtol=1e-4, atol=1e-5)
