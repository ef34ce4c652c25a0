"""Deformable and masked convolution, CARAFE and SyncBatchNorm against plain loops, closed forms and gradcheck."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from convnext_dense import compat as stack
from convnext_dense.compat import upstream_heads
from convnext_dense.compat.errors import UserError
from convnext_dense.compat.ops import carafe, deform_conv, find_op

NAN = float('nan')


@pytest.fixture(autouse=True)
def _prepared():
    stack.prepare()


def sample_by_hand(image: np.ndarray, y: float, x: float) -> float:
    """Weigh every pixel by a tent around it; the world outside of the image is 0."""
    value = 0.0
    for row, column in np.ndindex(image.shape):
        value += max(0, 1 - abs(y - row)) * max(0, 1 - abs(x - column)) * image[row, column]
    return value


def deform_conv_by_hand(x, offset, weight, mask, bias, stride, padding, dilation, groups, deform_groups):
    """Convolve pixel by pixel."""
    x, offset, weight, mask, bias = (
        tensor if tensor is None else tensor.detach().double().cpu().numpy()
        for tensor in (x, offset, weight, mask, bias)
    )
    num_images, channels = x.shape[:2]
    out_channels, group_channels, taps_y, taps_x = weight.shape
    output = np.zeros((num_images, out_channels, *offset.shape[2:]))
    for n, o, row, column in np.ndindex(output.shape):
        total = 0.0 if bias is None else bias[o]
        for c, i, j in itertools.product(range(group_channels), range(taps_y), range(taps_x)):
            channel = o // (out_channels // groups) * group_channels + c
            tap = (channel // (channels // deform_groups) * taps_y + i) * taps_x + j
            y = row * stride[0] - padding[0] + i * dilation[0] + offset[n, 2 * tap, row, column]
            x_ = column * stride[1] - padding[1] + j * dilation[1] + offset[n, 2 * tap + 1, row, column]
            factor = 1.0 if mask is None else mask[n, tap, row, column]
            total += weight[o, c, i, j] * factor * sample_by_hand(x[n, channel], y, x_)
        output[n, o, row, column] = total
    return torch.from_numpy(output)


def draw_convolution(stride, padding, dilation, groups, deform_groups, kernel, device='cpu', dtype=torch.float64):
    """Return features, offsets of up to about 2 pixels, weights, factors and a bias."""
    stride, padding, dilation = (
        value if isinstance(value, tuple) else (value, value) for value in (stride, padding, dilation)
    )
    x = torch.randn(2, 4, 5, 6)
    weight = torch.randn(6, 4 // groups, *kernel)
    size = [
        (x.shape[2 + axis] + 2 * padding[axis] - dilation[axis] * (kernel[axis] - 1) - 1) // stride[axis] + 1
        for axis in range(2)
    ]
    taps = deform_groups * math.prod(kernel)
    offset, mask = torch.randn(2, 2 * taps, *size), torch.rand(2, taps, *size)
    drawn = (x, offset, weight, mask, torch.randn(6))
    return tuple(tensor.to(device, dtype).requires_grad_() for tensor in drawn), stride, padding, dilation


CONVOLUTIONS = {
    'plain': dict(stride=1, padding=1, dilation=1, groups=1, deform_groups=1, kernel=(3, 3)),
    'strided, dilated': dict(stride=(2, 1), padding=(2, 1), dilation=(1, 2), groups=1, deform_groups=1, kernel=(3, 3)),
    'groups': dict(stride=1, padding=0, dilation=1, groups=2, deform_groups=4, kernel=(2, 3)),
    'pointwise': dict(stride=2, padding=0, dilation=1, groups=1, deform_groups=2, kernel=(1, 1)),
}


@pytest.mark.parametrize('case', CONVOLUTIONS.values(), ids=CONVOLUTIONS)
@pytest.mark.parametrize('version', [1, 2])
def test_deformable_convolution_is_its_definition(version, case, device):
    from mmcv.ops import deform_conv2d, modulated_deform_conv2d

    (x, offset, weight, mask, bias), *geometry = draw_convolution(**case, device=device, dtype=torch.float32)
    groups = case['groups'], case['deform_groups']
    if version == 1:
        output, mask, bias = deform_conv2d(x, offset, weight, *geometry, *groups), None, None
    else:
        output = modulated_deform_conv2d(x, offset, mask, weight, bias, *geometry, *groups)
    expected = deform_conv_by_hand(x, offset, weight, mask, bias, *geometry, *groups)
    torch.testing.assert_close(output.cpu(), expected.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('case', CONVOLUTIONS.values(), ids=CONVOLUTIONS)
@pytest.mark.parametrize('version', [1, 2])
def test_the_gradients_of_deformable_convolution_are_its_derivatives(version, case, device):
    from mmcv.ops import deform_conv2d, modulated_deform_conv2d

    (x, offset, weight, mask, bias), *geometry = draw_convolution(**case, device=device)
    geometry += [case['groups'], case['deform_groups']]

    def convolve(x, offset, weight, mask=None, bias=None):
        if version == 1:
            return deform_conv2d(x, offset, weight, *geometry)
        return modulated_deform_conv2d(x, offset, mask, weight, bias, *geometry)

    inputs = (x, offset, weight) if version == 1 else (x, offset, weight, mask, bias)
    assert torch.autograd.gradcheck(convolve, inputs, fast_mode=True)


@pytest.mark.parametrize('groups', [1, 2])
def test_without_offsets_it_is_a_convolution(groups, device):
    from mmcv.ops import deform_conv2d, modulated_deform_conv2d

    x = torch.randn(2, 4, 7, 8, device=device, requires_grad=True)
    weight = torch.randn(6, 4 // groups, 3, 3, device=device, requires_grad=True)
    bias = torch.randn(6, device=device, requires_grad=True)
    offset, mask = torch.zeros(2, 18, 4, 4, device=device), torch.ones(2, 9, 4, 4, device=device)
    geometry = (2, 1, 1, groups)
    plain = F.conv2d(x, weight, bias, *geometry)
    ours = modulated_deform_conv2d(x, offset, mask, weight, bias, *geometry)
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        deform_conv2d(x, offset, weight, *geometry), plain - bias[:, None, None], rtol=1e-4, atol=1e-4
    )
    gradient = torch.randn_like(plain)
    for found, expected in zip(
        *(torch.autograd.grad(y, (x, weight, bias), gradient) for y in (ours, plain)), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_whole_offsets_move_the_image(device):
    """The offsets' order is y, x."""
    from mmcv.ops import deform_conv2d

    x, weight = torch.randn(1, 3, 8, 9, device=device), torch.randn(2, 3, 3, 3, device=device)
    offset = torch.tensor([1.0, -2.0], device=device).repeat(9)[None, :, None, None].expand(1, 18, 8, 9).contiguous()
    moved = torch.zeros_like(x)
    moved[:, :, :-1, 2:] = x[:, :, 1:, :-2]
    inner = (..., slice(1, -1), slice(3, -1))  # at the border the moved image lost what the samples still see
    torch.testing.assert_close(
        deform_conv2d(x, offset, weight, 1, 1)[inner], F.conv2d(moved, weight, padding=1)[inner], rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize('version', [1, 2])
def test_a_sample_on_the_outer_edge_of_the_padding_has_no_slope(version, device):
    """As in mmcv. Every new layer has such samples, since its offsets start at 0."""
    from mmcv.ops import deform_conv2d, modulated_deform_conv2d

    x, weight = torch.ones(1, 1, 3, 3, device=device), torch.ones(1, 1, 3, 3, device=device)
    offset = torch.zeros(1, 18, 3, 3, device=device, requires_grad=True)
    if version == 1:
        output = deform_conv2d(x, offset, weight, 1, 1)
    else:
        output = modulated_deform_conv2d(x, offset, torch.ones(1, 9, 3, 3, device=device), weight, None, 1, 1)
    slopes = torch.autograd.grad(output.sum(), offset)[0].view(3, 3, 2, 3, 3)
    assert slopes[0, 1, 0, 0].tolist() == [0, 0, 0]  # upper taps of the first row, by y: at y = -1
    assert slopes[1, 0, 1, :, 0].tolist() == [0, 0, 0]  # left taps of the first column, by x
    assert slopes[2, 1, 0, 1].tolist() == [-1, -1, -1]  # lower taps of the middle row: further down the image ends
    nudged = offset.detach() - 1e-3
    assert deform_conv2d(x, nudged, weight, 1, 1)[0, 0, 0, 0] < 4


def backward_of_v1(x, offset, weight, gradient, grads, scratch, scale=1, weight_only=False):
    geometry = dict(kW=3, kH=3, dW=1, dH=1, padW=1, padH=1, dilationW=1, dilationH=1, group=1, deformable_group=1)
    if not weight_only:
        find_op('deform_conv_backward_input')(
            x, offset, gradient, *grads[:2], weight, scratch, **geometry, im2col_step=1
        )
    find_op('deform_conv_backward_parameters')(
        x, offset, gradient, grads[2], scratch, scratch, **geometry, scale=scale, im2col_step=1
    )


def test_the_ops_of_v1_fill_and_add_as_the_compiled_ones():
    inputs, *_ = draw_convolution(**CONVOLUTIONS['plain'])
    inputs = [tensor.detach() for tensor in inputs[:3]]
    gradient = torch.randn(2, 6, 5, 6, dtype=torch.float64)
    twice = []
    for start in (0, 5):
        twice.append([torch.full_like(tensor, start) for tensor in inputs])
        backward_of_v1(*inputs, gradient, twice[-1], torch.empty(0), scale=1 + start)
    (grad_x, grad_offset, grad_weight), (more_x, same_offset, more_weight) = twice
    torch.testing.assert_close(more_x, grad_x + 5)
    torch.testing.assert_close(same_offset, grad_offset)
    torch.testing.assert_close(more_weight, 6 * grad_weight + 5)


def test_one_run_of_the_kernel_finds_all_gradients_of_v1(monkeypatch):
    """And what it found for one gradient of the output is not taken for another's."""
    inputs, *_ = draw_convolution(**CONVOLUTIONS['plain'])
    inputs = [tensor.detach() for tensor in inputs[:3]]
    first, second = torch.randn(2, 2, 6, 5, 6, dtype=torch.float64)
    runs = []
    run = deform_conv._Convolution.gradients
    monkeypatch.setattr(deform_conv._Convolution, 'gradients', lambda *a: runs.append(1) or run(*a))

    def grad_weight(gradient, scratch, **options):
        grads = [torch.zeros_like(tensor) for tensor in inputs]
        backward_of_v1(*inputs, gradient, grads, scratch, **options)
        return grads[2]

    expected = grad_weight(second, torch.empty(0), weight_only=True)
    scratch = torch.empty(0)
    torch.testing.assert_close(grad_weight(second, scratch), expected)
    assert len(runs) == 2
    find_op('deform_conv_backward_input')(  # the layer's weight is not asked for
        inputs[0], inputs[1], first, *(torch.zeros_like(tensor) for tensor in inputs[:2]), inputs[2], scratch,
        kW=3, kH=3, dW=1, dH=1, padW=1, padH=1, dilationW=1, dilationH=1, group=1, deformable_group=1, im2col_step=1,
    )  # fmt: skip
    torch.testing.assert_close(grad_weight(second, scratch, weight_only=True), expected)


def test_images_one_at_a_time_give_what_all_at_once_give(monkeypatch):
    from mmcv.ops import modulated_deform_conv2d

    inputs, *geometry = draw_convolution(**CONVOLUTIONS['strided, dilated'])
    x, offset, weight, mask, bias = inputs
    results = []
    for numbers in (1, 10**6):
        monkeypatch.setattr(deform_conv, 'numbers_at_once', lambda device, numbers=numbers: numbers)
        output = modulated_deform_conv2d(x, offset, mask, weight, bias, *geometry)
        results.append((output, *torch.autograd.grad(output.square().sum(), inputs)))
    for one, both in zip(*results, strict=True):
        torch.testing.assert_close(one, both)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_deformable_convolution_computes_half_precision_in_float32(dtype, device):
    from mmcv.ops import deform_conv2d, modulated_deform_conv2d

    inputs, *geometry = draw_convolution(**CONVOLUTIONS['plain'], device=device, dtype=dtype)
    x, offset, weight, mask, bias = inputs
    exact = [tensor.detach().float() for tensor in inputs]
    output = modulated_deform_conv2d(x, offset, mask, weight, bias, *geometry)
    assert output.dtype == dtype
    torch.testing.assert_close(
        output, modulated_deform_conv2d(exact[0], exact[1], exact[3], exact[2], exact[4], *geometry).to(dtype)
    )
    output.float().sum().backward()
    assert {tensor.grad.dtype for tensor in inputs} == {dtype}
    torch.testing.assert_close(
        deform_conv2d(x, offset, weight, *geometry), deform_conv2d(exact[0], exact[1], exact[2], *geometry).to(dtype)
    )


@pytest.mark.parametrize(('kind', 'scale'), [('DCN', 1), ('DCNv2', 0.5)])
@pytest.mark.parametrize('autocast', [False, True])
def test_a_new_layer_is_a_convolution_and_learns_its_offsets(kind, scale, autocast, device):
    """With a mask of sigmoid(0)."""
    import mmcv.ops  # noqa: F401  registers the layers
    from mmengine.registry import MODELS

    layer = MODELS.build(dict(type=kind, in_channels=4, out_channels=6, kernel_size=3, padding=1, bias=False)).to(
        device
    )
    x = torch.randn(2, 4, 8, 8, device=device)
    dtype = torch.bfloat16 if device.type == 'cpu' else torch.float16
    with torch.autocast(device.type, dtype=dtype, enabled=autocast):
        output = layer(x)
    assert output.dtype == (dtype if autocast else torch.float32)
    tolerance = 3e-2 if autocast else 1e-5
    torch.testing.assert_close(
        output.float(), scale * F.conv2d(x, layer.weight, padding=1), rtol=tolerance, atol=tolerance
    )
    output.float().square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_switchable_atrous_convolution_starts_the_same_with_and_without_deformation():
    from mmcv.ops import SAConv2d

    plain, deformed = (SAConv2d(4, 6, 3, padding=1, bias=False, use_deform=use) for use in (False, True))
    deformed.load_state_dict(plain.state_dict(), strict=False)
    x = torch.randn(1, 4, 8, 8)
    torch.testing.assert_close(deformed(x), plain(x), rtol=1e-4, atol=1e-4)
    deformed(x).sum().backward()
    assert deformed.offset_s.weight.grad.abs().sum() > 0


@pytest.mark.parametrize('bad', [NAN, math.inf, -math.inf, 1e30, -1e30])
def test_offsets_that_lead_nowhere_sample_nothing(bad, device):
    from mmcv.ops import deform_conv2d

    (x, offset, weight, _, _), *_ = draw_convolution(**CONVOLUTIONS['plain'], device=device, dtype=torch.float32)
    with torch.no_grad():
        offset[:, :, 2] = bad
    output = deform_conv2d(x, offset, weight, 1, 1)
    assert output[:, :, 2].abs().sum() == 0
    output.sum().backward()
    assert offset.grad[:, :, 2].abs().sum() == 0
    assert x.grad.isfinite().all()


def test_a_tiny_feature_map_is_padded():
    """Smaller than the kernel, as the last level of a pyramid may be."""
    from mmcv.ops import DeformConv2d, deform_conv2d

    x, weight = torch.randn(1, 2, 1, 2), torch.randn(3, 2, 3, 3)
    offset = torch.zeros(1, 18, 1, 2)
    torch.testing.assert_close(deform_conv2d(x, offset, weight, 1, 1), F.conv2d(x, weight, padding=1))
    layer = DeformConv2d(2, 3, 3, padding=1)
    torch.testing.assert_close(layer(x, offset), F.conv2d(x, layer.weight, padding=1))


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(offset=torch.zeros(1, 18, 3, 3)), r'deform_conv: offset has shape \(1, 18, 3, 3\); .* \(1, 18, 5, 6\)'),
        (dict(offset=torch.zeros(2, 18, 5, 6)), r'deform_conv: offset has shape'),
        (dict(offset=torch.zeros(1, 9, 5, 6)), r'deform_conv: offset has shape'),
        (dict(weight=torch.zeros(2, 3, 3, 3)), r'deform_conv: weight has shape \(2, 3, 3, 3\).* \(2, 4, 3, 3\)'),
        (dict(weight=torch.zeros(2, 4, 3, 0)), r'needs features \(N, C, H, W\) and a kernel'),
        (dict(x=torch.zeros(1, 4, 5, 6, dtype=torch.int64)), r'input is torch.int64\. .* call input.float\(\)'),
        (dict(offset=torch.zeros(1, 18, 5, 6, device='meta')), r'on one device and got .* offset on meta'),
        (dict(groups=0), r'strides, dilations and groups of 1 or more'),
        (dict(groups=4), r'2 output channels must be a multiple of groups=4'),
        (dict(deform_groups=3), r'4 input channels of deform_groups=3'),
        (dict(dilation=0), r'strides, dilations and groups of 1 or more'),
        (dict(padding=-1), r'no negative padding'),
    ],
)
def test_a_deformable_convolution_that_does_not_fit_says_why(change, message):
    given = dict(x=torch.zeros(1, 4, 5, 6), offset=torch.zeros(1, 18, 5, 6), weight=torch.zeros(2, 4, 3, 3))
    given |= dict(stride=1, padding=1, dilation=1, groups=1, deform_groups=1) | change
    x, offset, weight, stride, padding, dilation, groups, deform_groups = given.values()
    geometry = [stride] * 2 + [padding] * 2 + [dilation] * 2 + [groups, deform_groups]
    names = ('dW', 'dH', 'padW', 'padH', 'dilationW', 'dilationH', 'group', 'deformable_group')
    scratch = torch.empty(0)
    with pytest.raises(UserError, match=message):
        find_op('deform_conv_forward')(
            x, weight, offset, torch.zeros(1, 2, 5, 6), scratch, scratch, kW=3, kH=3, im2col_step=1,
            **dict(zip(names, geometry, strict=True)),
        )  # fmt: skip


def test_larger_offset_maps_are_read_from_their_first_number_on():
    """As compiled mmcv does; mmdet's DyHead gives the coarser level the offsets of the finer one."""
    from mmcv.ops import modulated_deform_conv2d

    x, weight = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 3, 3)
    both = torch.randn(2, 27, 8, 10)
    offset, mask = both[:, :18].requires_grad_(), both[:, 18:].requires_grad_()
    output = modulated_deform_conv2d(x, offset, mask, weight, None, 1, 1)
    first_offset = offset.reshape(2, -1)[:, : 18 * 20].view(2, 18, 4, 5)
    first_mask = mask.reshape(2, -1)[:, : 9 * 20].view(2, 9, 4, 5)
    expected = modulated_deform_conv2d(x, first_offset, first_mask, weight, None, 1, 1)
    assert torch.equal(output, expected)
    for found, other in zip(
        torch.autograd.grad(output.sum(), (offset, mask)),
        torch.autograd.grad(expected.sum(), (offset, mask)),
        strict=True,
    ):
        assert torch.equal(found, other)
    assert found.flatten(1)[:, 9 * 20 :].abs().sum() == 0
    with pytest.raises(UserError, match=r'offset has shape \(2, 18, 3, 10\)'):
        modulated_deform_conv2d(x, offset[:, :, :3], mask, weight, None, 1, 1)


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


def test_a_mask_larger_than_the_output_is_refused():
    from mmcv.ops import MaskedConv2d

    with pytest.raises(UserError, match=r'pixels in rows 0 to 5 and columns 0 to 6, and the map is 4 x 5\. Pad by'):
        MaskedConv2d(3, 4, 3)(torch.randn(1, 3, 6, 7), torch.ones(1, 6, 7))


def carafe_by_hand(features, masks, kernel, groups, scale):
    features, masks = features.detach().cpu().numpy(), masks.detach().cpu().numpy()
    num_images, channels, height, width = features.shape
    output = np.zeros((num_images, channels, height * scale, width * scale))
    for n, c, row, column in np.ndindex(output.shape):
        for i, j in np.ndindex(kernel, kernel):
            y, x = row // scale + i - kernel // 2, column // scale + j - kernel // 2
            if 0 <= y < height and 0 <= x < width:
                tap = (c // (channels // groups) * kernel + i) * kernel + j
                output[n, c, row, column] += features[n, c, y, x] * masks[n, tap, row, column]
    return torch.from_numpy(output)


CARAFES = [(5, 1, 2), (3, 2, 3), (1, 4, 1)]


@pytest.mark.parametrize(('kernel', 'groups', 'scale'), CARAFES)
def test_carafe_is_its_definition(kernel, groups, scale, device):
    import mmcv.ops

    features = torch.randn(2, 4, 3, 5, device=device)
    masks = torch.randn(2, groups * kernel**2, 3 * scale, 5 * scale, device=device)
    output = mmcv.ops.carafe(features, masks, kernel, groups, scale)
    expected = carafe_by_hand(features, masks, kernel, groups, scale)
    torch.testing.assert_close(output.cpu(), expected.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(('kernel', 'groups', 'scale'), CARAFES)
def test_the_gradients_of_carafe_are_its_derivatives(kernel, groups, scale, device, monkeypatch):
    import mmcv.ops

    features = torch.randn(2, 4, 3, 5, device=device, dtype=torch.float64, requires_grad=True)
    masks = torch.randn(2, groups * kernel**2, 3 * scale, 5 * scale, device=device).double().requires_grad_()
    for numbers in (1, 3 * 5 * 4 * kernel**2, 10**6):  # a row, an image, all at a time
        monkeypatch.setattr(carafe, 'numbers_at_once', lambda device, numbers=numbers: numbers)
        assert torch.autograd.gradcheck(
            lambda *inputs: mmcv.ops.carafe(*inputs, kernel, groups, scale), (features, masks), fast_mode=True
        )


def test_carafe_with_equal_weights_is_an_average(device):
    from mmcv.ops import carafe

    features = torch.randn(2, 3, 4, 5, device=device)
    average = F.interpolate(F.avg_pool2d(features, 3, stride=1, padding=1), scale_factor=2)
    masks = torch.full((2, 9, 8, 10), 1 / 9, device=device)
    torch.testing.assert_close(carafe(features, masks, 3, 1, 2), average)
    masks = torch.zeros(2, 9, 8, 10, device=device)
    masks[:, 4] = 1
    assert torch.equal(carafe(features, masks, 3, 1, 2), F.interpolate(features, scale_factor=2))


def test_carafe_computes_half_precision_in_float32(device):
    from mmcv.ops import CARAFEPack, carafe

    features, masks = torch.randn(1, 8, 4, 4, device=device), torch.rand(1, 25, 8, 8, device=device)
    half = [tensor.bfloat16().requires_grad_() for tensor in (features, masks)]
    output = carafe(*half, 5, 1, 2)
    exact = carafe(*(tensor.detach().float() for tensor in half), 5, 1, 2)
    torch.testing.assert_close(output, exact.bfloat16())
    with torch.autocast(device.type, dtype=torch.bfloat16):
        assert torch.equal(carafe(*(tensor.detach().float() for tensor in half), 5, 1, 2), exact)
        mixed = CARAFEPack(8, 2).to(device)(features)
    assert mixed.shape == (1, 8, 8, 8)
    output.sum().backward()
    assert half[0].grad.dtype == half[1].grad.dtype == torch.bfloat16


def test_a_carafe_pack_learns(device):
    from mmcv.ops import CARAFEPack

    layer = CARAFEPack(8, 2).to(device)
    layer(torch.randn(1, 8, 4, 4, device=device)).square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())
    assert layer.content_encoder.weight.grad.abs().sum() > 0


@pytest.fixture
def one_process():
    """A process group of this process."""
    torch.distributed.init_process_group('gloo', store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_sync_batch_norm_of_one_process_is_batch_norm(one_process):
    check_that_it_is_batch_norm()


@pytest.fixture
def alone(monkeypatch):
    """``mmcv.ops.sync_bn``, patched for a process without a group; upstream's layer cannot be built there."""
    from mmcv.ops import sync_bn as module

    monkeypatch.setattr(module, 'dist', torch.distributed)
    with pytest.raises(ValueError, match='process group has not been initialized'):
        module.SyncBatchNorm(5)
    upstream_heads.let_sync_bn_stand_alone(module)
    return module


def test_sync_batch_norm_without_a_process_group_is_batch_norm(alone):
    check_that_it_is_batch_norm()


def test_sync_batch_norm_that_stands_alone_still_asks_a_group(alone, one_process, monkeypatch):
    monkeypatch.setattr(
        torch.distributed, 'get_world_size', lambda group: 3 if group is torch.distributed.group.WORLD else 0
    )
    assert alone.SyncBatchNorm(5).group_size == 3
    assert alone.dist.all_reduce is torch.distributed.all_reduce


def test_a_strong_baseline_of_mmdet_trains_in_one_process(alone):
    from mmengine.config import Config
    from mmengine.registry import MODELS, DefaultScope

    from convnext_dense.configs import config_folder

    name = 'strong_baselines/mask-rcnn_r50_fpn_rpn-2conv_4conv1fc_syncbn-all_lsj-100e_coco.py'
    head = Config.fromfile(config_folder('mmdet') / name).model.roi_head.bbox_head
    assert head.norm_cfg.type == 'MMSyncBN'
    head.update(in_channels=4, conv_out_channels=4, fc_out_channels=8)
    with DefaultScope.overwrite_default_scope('mmdet'):
        head = MODELS.build(head)
    scores, _ = head(torch.randn(3, 4, 7, 7))
    scores.sum().backward()
    assert head.shared_convs[0].bn.weight.grad.isfinite().all()
    assert head(torch.zeros(0, 4, 7, 7))[0].shape == (0, 81)  # no RoIs
    assert head.eval()(torch.randn(3, 4, 7, 7))[0].isfinite().all()


@pytest.mark.parametrize(
    ('layer', 'message'),
    [(dict(affine=False), 'weight is None.* affine=True'), (dict(num_features=4), r'weight has shape \(4,\)')],
)
def test_a_sync_batch_norm_that_does_not_fit_says_why(layer, message, alone):
    """mmcv would read foreign memory."""
    norm = alone.SyncBatchNorm(**dict(num_features=5) | layer)
    with pytest.raises(UserError, match=f'sync_bn: {message}'):
        norm(torch.randn(3, 5, 4, 6))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float64])
def test_sync_batch_norm_of_mmcv_takes_half_and_float_alone(dtype, alone):
    with pytest.raises(AssertionError, match='only support Half or Float'):
        alone.SyncBatchNorm(5)(torch.zeros(3, 5, 4, 6, dtype=dtype))


def check_that_it_is_batch_norm():
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
    batches, gradients = torch.randn(2, 3, 4, 6), torch.randn(2, 3, 4, 6)  # two processes, (N, C, S) each
    weight, bias = torch.rand(4), torch.randn(4)
    means = [torch.zeros(4) for _ in range(2)]
    for batch, mean in zip(batches, means, strict=True):
        find_op('sync_bn_forward_mean')(batch, mean)
    mean = sum(means) / 2
    variances = [torch.zeros(4) for _ in range(2)]
    for batch, variance in zip(batches, variances, strict=True):
        find_op('sync_bn_forward_var')(batch, mean, variance)
    variance = sum(variances) / 2

    plain = nn.BatchNorm1d(4)
    with torch.no_grad():
        plain.weight.copy_(weight)
        plain.bias.copy_(bias)
    x = batches.flatten(0, 1).requires_grad_()
    expected = plain(x)
    expected.backward(gradients.flatten(0, 1))

    norms, outputs, std = torch.zeros_like(batches), torch.zeros_like(batches), torch.zeros(4)
    for batch, norm, output in zip(batches, norms, outputs, strict=True):
        running = torch.zeros(4), torch.ones(4)
        find_op('sync_bn_forward_output')(
            batch, mean, variance, weight, bias, *running, norm, std, output, 1e-5, torch.tensor(0.1), 2
        )
    torch.testing.assert_close(outputs.flatten(0, 1), expected)
    torch.testing.assert_close(running[0], plain.running_mean)
    torch.testing.assert_close(running[1], plain.running_var)

    grads = torch.zeros(2, 2, 4)  # process, weight or bias
    for gradient, norm, (grad_weight, grad_bias) in zip(gradients, norms, grads, strict=True):
        find_op('sync_bn_backward_param')(gradient, norm, grad_weight, grad_bias)
    torch.testing.assert_close(grads.sum(0), torch.stack([plain.weight.grad, plain.bias.grad]))
    grad_inputs = torch.zeros_like(batches)
    for gradient, norm, grad_input in zip(gradients, norms, grad_inputs, strict=True):
        find_op('sync_bn_backward_data')(gradient, weight, *grads.mean(0), norm, std, grad_input)
    torch.testing.assert_close(grad_inputs.flatten(0, 1), x.grad, rtol=1e-4, atol=1e-5)
