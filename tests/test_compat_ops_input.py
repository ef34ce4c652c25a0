"""Every op: its gradients, types, devices and odd input; what mmcv does, or one error that says what was wrong.

One table of valid calls of mmcv's functions; what is odd about the others is derived from it. The calls of
``mmcv._ext`` are those that mmcv makes for the valid ones, forward and backward.
"""

import importlib
import inspect
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from convnext_dense.compat.errors import UserError
from convnext_dense.compat.ops import OPS, find_op

NAN, INF = math.nan, math.inf

_numbers = torch.Generator().manual_seed(0)


def rand(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=_numbers)


def boxes(count: int = 6) -> Tensor:
    start = rand(count, 2) * 10
    return torch.cat([start, start + rand(count, 2) * 10 + 1], dim=1)


def rois(shapes: Tensor) -> Tensor:
    """Put the index of one of two images before each box."""
    return torch.cat([torch.arange(len(shapes))[:, None] % 2, shapes], dim=1)


class Call(NamedTuple):
    """A valid call of a function of mmcv."""

    function: str  # in mmcv.ops
    arguments: tuple
    trained: tuple[int, ...] = ()  # which arguments have a gradient
    half: int = 0  # which of them is in half precision under autocast


SIZES, STARTS = torch.tensor([[4, 5], [2, 3]]), torch.tensor([0, 20])
CLASSES = torch.tensor([0, 4, 2, 5, 1, 0])
NMS = dict(type='nms', iou_threshold=0.5)

CALLS = {
    'nms': Call('nms.nms', (boxes(), rand(6), 0.5)),
    'nms, offset 1': Call('nms.nms', (boxes(), rand(6), 0.5, 1)),
    'soft_nms': Call('nms.soft_nms', (boxes(), rand(6), 0.5)),
    'batched_nms': Call('nms.batched_nms', (boxes(), rand(6), torch.tensor([0, 0, 1, 1, 2, 0]), NMS)),
    'nms_match': Call('nms.nms_match', (torch.cat([boxes(), rand(6, 1)], dim=1), 0.5)),
    'roi_align': Call('roi_align.roi_align', (rand(2, 4, 8, 9), rois(boxes(3)), 2, 0.5, 0, 'avg', True), (0,)),
    'roi_align, max': Call('roi_align.roi_align', (rand(2, 4, 8, 9), rois(boxes(3)), 2, 0.5, 0, 'max', False), (0,)),
    'roi_pool': Call('roi_pool.roi_pool', (rand(2, 4, 8, 9), rois(boxes(3)), 2, 0.5), (0,)),
    'deform_roi_pool': Call(
        'deform_roi_pool.deform_roi_pool', (rand(2, 4, 8, 9), rois(boxes(3)), rand(3, 2, 2, 2), 2, 0.5), (0, 2)
    ),
    'deform_conv': Call(
        'deform_conv.deform_conv2d', (rand(2, 4, 6, 7), rand(2, 18, 6, 7), rand(3, 4, 3, 3), 1, 1), (0, 1, 2), half=1
    ),
    'modulated_deform_conv': Call(
        'modulated_deform_conv.modulated_deform_conv2d',
        (rand(2, 4, 6, 7), rand(2, 18, 6, 7), rand(2, 9, 6, 7), rand(3, 4, 3, 3), rand(3), 1, 1),
        (0, 1, 2, 3, 4),
        half=1,
    ),
    'masked_conv2d': Call(
        'masked_conv.masked_conv2d', (rand(1, 4, 6, 7), rand(1, 6, 7).round(), rand(3, 4, 3, 3), rand(3), 1)
    ),
    'carafe': Call('carafe.carafe', (rand(2, 4, 5, 6), rand(2, 18, 10, 12), 3, 2, 2), (0, 1)),
    'ms_deform_attn': Call(
        'multi_scale_deform_attn.MultiScaleDeformableAttnFunction.apply',
        (rand(2, 26, 2, 3), SIZES, STARTS, rand(2, 5, 2, 2, 3, 2), rand(2, 5, 2, 2, 3), 64),
        (0, 3, 4),
    ),
    'psa_mask': Call('psa_mask.psa_mask', (rand(2, 15, 4, 5), 0, (3, 5)), (0,)),
    'psa_mask, distribute': Call('psa_mask.psa_mask', (rand(2, 15, 4, 5), 1, (3, 5)), (0,)),
    'sigmoid_focal_loss': Call('focal_loss.sigmoid_focal_loss', (rand(6, 5), CLASSES, 2.0, 0.25, None, 'sum'), (0,)),
}
TRAINED = [name for name, call in CALLS.items() if call.trained]

# What an op fills or does not need; mmcv makes it of the right shape.
BUFFERS = """
output argmax_y argmax_x argmax columns ones rfeatures routput rmasks rtop_grad rbottom_grad_hs rbottom_grad rmask_grad
grad_input bottom_grad grad_offset grad_weight grad_bias grad_mask gradInput gradOffset gradWeight mask_grad grad_value
grad_sampling_loc grad_attn_weight
""".split()  # noqa: SIM905
FILLED_BY = {'dets': 'softnms', 'im': 'masked_col2im_forward', 'col': 'masked_im2col_forward'}
IN_MESSAGES = {'psamask': 'psa_mask', 'masked_im2col': 'masked_conv2d', 'masked_col2im': 'masked_conv2d'}


def function_of(call: Call):
    module, *names = call.function.split('.')
    found = importlib.import_module(f'mmcv.ops.{module}')
    for name in names:
        found = getattr(found, name)
    return found


def results(call: Call, changes: Mapping[int, object] = MappingProxyType({})) -> list[Tensor]:
    """Return what the function returns, as tensors; the arguments at some places may be changed."""
    arguments = [changes.get(i, argument) for i, argument in enumerate(call.arguments)]
    found = function_of(call)(*arguments)
    found = found if isinstance(found, tuple | list) else [found]
    return [part if isinstance(part, Tensor) else torch.as_tensor(part) for part in found]


def leaves(call: Call) -> dict[int, Tensor]:
    return {i: call.arguments[i].clone().requires_grad_() for i in call.trained}


def tensors(call: Call) -> dict[int, Tensor]:
    return {i: argument for i, argument in enumerate(call.arguments) if isinstance(argument, Tensor)}


def with_tensors(call: Call, change: Callable[[Tensor], Tensor]) -> Call:
    return call._replace(arguments=tuple(change(a) if isinstance(a, Tensor) else a for a in call.arguments))


@pytest.fixture(scope='module')
def ext_calls() -> dict[str, dict]:
    """The arguments by name of what mmcv asks ``mmcv._ext`` for in the valid calls."""
    import mmcv._ext as ext

    calls = {}

    def recorder(name: str):
        op = find_op(name)

        def record(*args, **kwargs):
            given = dict(zip(inspect.signature(op).parameters, args, strict=False)) | kwargs
            calls.setdefault(name, {k: v.clone() if isinstance(v, Tensor) else v for k, v in given.items()})
            return op(*args, **kwargs)

        return record

    with pytest.MonkeyPatch.context() as patch:
        for name in OPS:
            patch.setattr(ext, name, recorder(name))
        for call in CALLS.values():
            inputs = leaves(call)
            found = results(call, inputs)
            if inputs:
                found[0].sum().backward()
    return calls


EXT_OPS = sorted(name for name in OPS if not name.startswith(('sync_bn', 'get_comp')))


def test_the_table_reaches_every_op(ext_calls):
    assert sorted(ext_calls) == EXT_OPS


def refuse(op: str, message: str, **arguments) -> None:
    """Call an op that has to refuse the arguments."""
    with pytest.raises(UserError, match=message) as caught:
        find_op(op)(**arguments)
    named = str(caught.value).split()[0].rstrip(':')
    assert IN_MESSAGES.get(op.rpartition('_')[0], op).startswith(named), caught.value


# The way in: layouts, modes, gradients and types


@pytest.mark.parametrize('name', CALLS)
def test_layouts_and_modes_do_not_matter(name):
    call = CALLS[name]
    expected = results(call)
    assert all(part.isfinite().all() for part in expected if part.is_floating_point())
    given = tensors(call)
    if name == 'masked_conv2d':
        del given[2]  # of the weight, mmcv's wrapper takes a view
    strided = {place: t.repeat_interleave(2, -1)[..., ::2] for place, t in given.items()}
    reversed_strides = {place: t.movedim(0, -1).contiguous().movedim(-1, 0) for place, t in given.items()}
    channels_last = {
        place: t.contiguous(memory_format=torch.channels_last) for place, t in given.items() if t.ndim == 4
    }
    for changes in (strided, reversed_strides, channels_last):
        torch.testing.assert_close(results(call, changes), expected)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            torch.testing.assert_close(results(call), expected)


@pytest.mark.parametrize('name', CALLS)
def test_what_has_no_gradient_may_ask_for_one(name):
    """Boxes that a network predicts do; some ops are no part of the graph, as in mmcv."""
    call = CALLS[name]
    asking = {place: t.clone().requires_grad_() for place, t in tensors(call).items() if t.is_floating_point()}
    found = results(call, asking)
    torch.testing.assert_close([part.detach() for part in found], results(call))
    if not call.trained:
        return
    found[0].sum().backward()
    for place, leaf in asking.items():
        assert (leaf.grad is not None) == (place in call.trained), place


@pytest.mark.parametrize('name', TRAINED)
def test_a_second_derivative_is_refused(name):
    """By PyTorch, for mmcv's kernels have none."""
    call = CALLS[name]
    inputs = leaves(call)
    loss = results(call, inputs)[0].square().sum()
    gradients = torch.autograd.grad(loss, inputs.values(), create_graph=True)
    again = [gradient.square().sum() for gradient in gradients]
    with pytest.raises(
        RuntimeError, match=r'does not require grad|marked with @once_differentiable|not have been used'
    ):
        torch.autograd.grad(sum(again), inputs.values())


@pytest.mark.parametrize('name', TRAINED)
def test_forward_and_backward_under_autocast(name, device):
    """One input is half, as a convolution left it; the output has its type, and nothing is computed in it."""
    call = with_tensors(CALLS[name], lambda t: t.to(device))
    place = call.half
    rounded, inputs = leaves(call), leaves(call)
    with torch.no_grad():
        for given in (rounded, inputs):
            given[place].copy_(given[place].bfloat16())
    expected = results(call, rounded)[0]
    with torch.autocast(device.type, dtype=torch.bfloat16):
        found = results(call, inputs | {place: inputs[place].bfloat16()})[0]
        found.sum().backward()
    expected.sum().backward()
    assert found.dtype == torch.bfloat16
    # mmcv rounds the other inputs of these to the type of that one.
    rounding = 0.02 if name == 'ms_deform_attn' or 'deform_conv' in name else 0
    torch.testing.assert_close(found, expected.bfloat16(), rtol=rounding, atol=rounding)
    for leaf, exact in zip(inputs.values(), rounded.values(), strict=True):
        assert leaf.grad.dtype == torch.float32
        torch.testing.assert_close(leaf.grad, exact.grad, rtol=0.05, atol=0.02 * exact.grad.abs().max().item())


@pytest.mark.parametrize('name', CALLS)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_types_may_be_mixed(name, dtype):
    """Nothing is rounded but what came rounded, and the type of the output is that of one argument."""
    call = CALLS[name]
    floats = {place: t.to(dtype) for place, t in tensors(call).items() if t.is_floating_point()}
    one_each = [{place: t} for place, t in floats.items()]
    if name == 'masked_conv2d':  # its matrix product is the wrapper's, which takes one type
        one_each = []
    for change in (floats, *one_each):
        found = results(call, change)
        expected = results(call, {place: t.float() for place, t in change.items()})
        for one, other in zip(found, expected, strict=True):
            assert one.dtype in (dtype, other.dtype)
            # Other inputs of these are rounded to the type of one by mmcv's wrappers, and some products in mmcv itself.
            by_mmcv = change is not floats and (name == 'ms_deform_attn' or 'deform_conv' in name)
            rounding = 0.02 if by_mmcv or name == 'masked_conv2d' else 1e-5 if dtype == torch.float64 else 0
            torch.testing.assert_close(one.double(), other.to(one.dtype).double(), rtol=rounding, atol=rounding)


@pytest.mark.parametrize('name', TRAINED)
def test_the_gradients_are_the_derivatives(name, device):
    call = with_tensors(CALLS[name], lambda t: t.to(device, torch.float64 if t.is_floating_point() else t.dtype))
    inputs = leaves(call)
    assert torch.autograd.gradcheck(
        lambda *given: results(call, dict(zip(inputs, given, strict=True)))[0], tuple(inputs.values()), fast_mode=True
    )


# The others have to know how many samples or pixels there are.
@pytest.mark.skipif(
    torch.__version__ < '2.5' and not torch.cuda.is_available(),
    reason='PyTorch 2.4 for CUDA aborts at a fake tensor of a GPU where there is none',
)
@pytest.mark.parametrize(
    'name', [name for name in TRAINED if name not in ('roi_align, max', 'roi_pool', 'deform_roi_pool')]
)
def test_on_a_gpu_nothing_is_computed_elsewhere_or_waited_for(name):
    """PyTorch's fake tensors know their device and raise where a number would have to be fetched from it."""
    call = CALLS[name]
    if name == 'sigmoid_focal_loss':  # the check of the classes waits, as mmcv's does; without rows there is none
        call = call._replace(arguments=tuple(EMPTY[name].get(i, a) for i, a in enumerate(call.arguments)))
    with FakeTensorMode():
        call = with_tensors(call, lambda t: torch.zeros(t.shape, dtype=t.dtype, device='cuda'))
        (output,) = results(call, leaves(call))
        assert output.is_cuda
        gradients = output.grad_fn.apply(torch.ones_like(output))
        assert all(gradient.is_cuda for gradient in gradients if gradient is not None)


# Numbers that are not sound


@pytest.mark.parametrize('name', CALLS)
@pytest.mark.parametrize('value', [NAN, INF, -INF, 1e30, -1e30])
def test_unsound_numbers_give_a_result_or_an_error_by_name(name, value):
    """In one row, or everywhere. Where mmcv reads foreign memory there is an error."""
    call = CALLS[name]
    for place, tensor in tensors(call).items():
        if not tensor.is_floating_point():
            continue
        for rows in (slice(None), slice(1)):
            odd = tensor.clone()
            odd[rows] = value
            expected = [part.shape for part in results(call)]
            changed = leaves(call) | {place: odd}
            if 'roi' in name and place == 1:  # RoIs have to be sound
                with pytest.raises(UserError, match=r' of 3 RoIs .* that it cannot pool'):
                    results(call, changed)
                continue
            found = results(call, changed)
            if not name.startswith(('nms', 'soft', 'batched')):
                assert [part.shape for part in found] == expected
            if found[0].requires_grad:
                found[0].nan_to_num().sum().backward()


# Nothing at all

EMPTY = {
    'nms': {0: boxes(0), 1: rand(0)},
    'nms, offset 1': {0: boxes(0), 1: rand(0)},
    'soft_nms': {0: boxes(0), 1: rand(0)},
    'nms_match': {0: rand(0, 5)},
    'roi_align': {1: rand(0, 5)},
    'roi_align, max': {1: rand(0, 5)},
    'roi_pool': {1: rand(0, 5)},
    'deform_roi_pool': {1: rand(0, 5), 2: rand(0, 2, 2, 2)},
    'masked_conv2d': {1: torch.zeros(1, 6, 7)},
    'carafe': {0: rand(0, 4, 5, 6), 1: rand(0, 18, 10, 12)},
    'ms_deform_attn': {3: rand(2, 0, 2, 2, 3, 2), 4: rand(2, 0, 2, 2, 3)},
    'psa_mask': {0: rand(0, 15, 4, 5)},
    'sigmoid_focal_loss': {0: rand(0, 5), 1: CLASSES[:0]},
}


@pytest.mark.parametrize('name', EMPTY)
def test_nothing_gives_nothing(name):
    call = CALLS[name]
    inputs = leaves(call) | {place: t.clone().requires_grad_(place in call.trained) for place, t in EMPTY[name].items()}
    found = results(call, inputs)
    full = results(call)
    for part, other in zip(found, full, strict=False):
        assert part.dtype == other.dtype
        assert part.numel() == 0 or part.abs().sum() == 0
    if call.trained:
        found[0].sum().backward()
        for place in call.trained:
            leaf = inputs[place]
            assert leaf.grad is None or leaf.grad.abs().sum() == 0


@pytest.mark.parametrize('name', ['roi_align', 'roi_align, max', 'roi_pool', 'deform_roi_pool'])
def test_pooling_of_no_channels_images_and_cells(name):
    call = CALLS[name]
    none = torch.zeros(0, call.arguments[1].shape[1])
    without_offsets = {2: None} if name == 'deform_roi_pool' else {}
    cells = 3 if name == 'deform_roi_pool' else 2
    for changes, shape in (
        ({0: rand(2, 0, 8, 9)}, (3, 0, 2, 2)),
        ({0: rand(0, 4, 8, 9), 1: none}, (0, 4, 2, 2)),
        ({cells: (0, 2)}, (3, 4, 0, 2)),
    ):
        inputs = {0: rand(2, 4, 8, 9)} | without_offsets | changes
        inputs[0] = inputs[0].requires_grad_()
        (pooled,) = results(call, inputs)
        assert pooled.shape == shape
        pooled.sum().backward()
        assert inputs[0].grad.abs().sum() == 0


# What is refused, at the level of mmcv._ext


@pytest.mark.parametrize('op', EXT_OPS)
def test_tensors_that_do_not_fit_are_named(op, ext_calls):
    given = ext_calls[op]
    inputs = {
        k: v
        for k, v in given.items()
        if isinstance(v, Tensor) and v.numel() and k not in BUFFERS and FILLED_BY.get(k) != op
    }
    assert inputs
    for name, tensor in inputs.items():
        if len(inputs) > 1:
            refuse(op, 'on one device and got .* on meta', **given | {name: tensor.to('meta')})
        if not tensor.is_floating_point():
            refuse(op, rf'{name} is torch\.float32\. Allowed are integers', **given | {name: tensor.float()})
        elif not op.startswith(('psamask', 'masked')):  # they move numbers of any type
            refuse(op, r'\w+ is torch\.int64\. Allowed are floating-point', **given | {name: tensor.long()})
            refuse(op, r'\w+ is torch\.complex64', **given | {name: tensor.to(torch.complex64)})
        if op == 'nms_match':
            refuse(op, r'dets has shape \(6, 4\); .* ask for \(6, 5\)', **given | {name: tensor[:, :4]})
        else:
            refuse(op, r'has shape|RoIs|as many|needs|sizes', **given | {name: tensor[:-1]})


DEFORM, FOCAL = 'deform_conv_forward', 'sigmoid_focal_loss_forward'


@pytest.mark.parametrize(
    ('op', 'changes', 'message'),
    [
        ('softnms', dict(method=3), r'method is 3\. Allowed are 0, 1, 2\.'),
        ('nms', dict(iou_threshold='0.5'), r"numbers for thresholds and sigma; got '0\.5'"),
        ('roi_align_forward', dict(pool_mode=2), r'pool_mode is 2\. Allowed are 0, 1\.'),
        ('roi_align_forward', dict(rois=torch.tensor([[0.0, 5, 1, 4, 2]] * 3)), r'3 of 3 RoIs .* x1 <= x2, y1 <= y2'),
        ('psamask_forward', dict(psa_type=2), r'psa_type is 2\. Allowed are 0, 1\.'),
        ('carafe_forward', dict(scale_factor=0), r'a scale of 1 or more'),
        ('modulated_deform_conv_forward', dict(bias=rand(2), with_bias=True), r'bias has shape \(2,\); .* \(3,\)'),
        (DEFORM, dict(offset=rand(2, 18, 3, 3)), r'offset has shape \(2, 18, 3, 3\); .* \(2, 18, 6, 7\)'),
        (DEFORM, dict(weight=rand(3, 3, 3, 3)), r'weight has shape \(3, 3, 3, 3\); .* \(3, 4, 3, 3\)'),
        (DEFORM, dict(weight=rand(3, 4, 3, 0)), r'needs features \(N, C, H, W\) and a kernel'),
        (DEFORM, dict(group=0), r'strides, dilations and groups of 1 or more'),
        (DEFORM, dict(dilationH=0), r'strides, dilations and groups of 1 or more'),
        (DEFORM, dict(padW=-1), r'no negative padding'),
        (DEFORM, dict(group=2), r'3 output channels must be a multiple of groups=2'),
        (DEFORM, dict(deformable_group=3), r'4 input channels of deform_groups=3'),
        (DEFORM, dict(input=rand(2, 4, 1, 1), padH=0), r'map of \(1, 1\) pixels is too small'),
        ('masked_im2col_forward', dict(mask_h_idx=torch.tensor([-1]), mask_w_idx=torch.tensor([0])), r'rows -1 to -1'),
        ('masked_im2col_forward', dict(mask_h_idx=torch.tensor([0]), mask_w_idx=torch.tensor([7])), r'columns 7 to 7'),
        ('masked_im2col_forward', dict(im=rand(1, 3, 6, 7)), r'col has shape \(36, .*\); .* ask for \(27'),
        ('ms_deform_attn_forward', dict(value_level_start_index=STARTS - 1), r'that start at \[-1, 19\] do not lie'),
        ('ms_deform_attn_forward', dict(value_spatial_shapes=SIZES + 1), r'do not lie within the 26 pixels'),
        (FOCAL, dict(input=rand(6, 0)), r'one class or more .* got \(6, 0\)'),
        (FOCAL, dict(weight=rand(4)), r'a weight for each class or none, .* 4 weights'),
        (FOCAL, dict(target=CLASSES + 1), r'classes from 1 to 6\. Allowed are numbers up to 5: .* num_classes'),
        (FOCAL, dict(weight=rand(5)), r'classes from 0 to 5\. .* With class weights, background .* is not allowed'),
        (FOCAL, dict(weight=rand(5), target=CLASSES - 1), r'classes from -1 to 4\. .* With class weights, background'),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_are_named(op, changes, message, ext_calls):
    refuse(op, message, **ext_calls[op] | changes)


# RoIs and maps with which a kernel would read or write foreign memory

POOLS = ['roi_align', 'roi_pool', 'deform_roi_pool']


@pytest.mark.parametrize('op', POOLS)
def test_pooling_of_odd_maps_and_scales(op, ext_calls):
    given = ext_calls[f'{op}_forward']
    for scale in (0.0, -0.5, NAN, INF):
        refuse(f'{op}_forward', rf'spatial_scale is {scale}\. Allowed are positive', **given | {'spatial_scale': scale})
    for maps in (rand(2, 4, 0, 9), rand(2, 4, 8, 0), rand(4, 8, 9), rand(1, 2, 4, 8, 9)):
        refuse(f'{op}_forward', r'input has shape .* maps \(N, C, H, W\) of 1 x 1 pixel', **given | {'input': maps})
    refuse(f'{op}_forward', r'needs RoIs \(K, \d\) as', **given | {'rois': rand(3, 9)})
    refuse(f'{op}_forward', r'output has shape', **given | {'output': rand(3, 4, 2, 1)})


@pytest.mark.parametrize('op', [f'{name}_{way}' for name in POOLS for way in ('forward', 'backward')])
def test_rois_of_no_image_are_refused(op, ext_calls):
    """The index of an image is below 2 here. Compiled mmcv reads and writes wherever it leads."""
    given = ext_calls[op]
    for index in (-1.0, 2.0, 1e6, NAN):
        stray = given['rois'].clone()
        stray[1, 0] = index
        refuse(op, r'1 of 3 RoIs .* an image index below 2\.', **given | {'rois': stray})
