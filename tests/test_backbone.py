"""The backbone against timm, and its promises: precision, freezing, recomputation, export, errors."""

import pytest
import timm
import torch
from small_models import SMALL, randomize
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from convnext_dense import ConvNeXt
from convnext_dense.backbone import Block
from convnext_dense.backbone.cpu_kernels import DepthwiseConvBF16


def relative_error(ours, theirs):
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.fixture(
    params=[
        pytest.param(('convnext_atto', False), id='V1'),
        pytest.param(('convnextv2_atto', True), id='V2'),
        pytest.param(('convnext_tiny', False), id='V1 tiny', marks=pytest.mark.slow),
    ]
)
def pair(request, from_timm):
    """timm's model with noticeable random weights, and ours with the same."""
    name, grn = request.param
    theirs = timm.create_model(name, features_only=True, drop_path_rate=0.3, conv_mlp=False)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, 1.0, 0.2) if parameter.ndim == 1 else nn.init.normal_(parameter, 0.0, 0.05)
    ours = ConvNeXt(name.split('_')[1], grn=grn, drop_path_rate=0.3, out_norm=False)
    ours.load_state_dict(from_timm(theirs.state_dict()))
    return ours, theirs


@pytest.mark.parametrize('is_training', [False, True], ids=['eval', 'train'])
@pytest.mark.parametrize('size', [(64, 64), (75, 101)], ids=['even', 'odd'])
def test_outputs_and_gradients_equal_timm(pair, from_timm, size, is_training):
    ours, theirs = (model.train(is_training) for model in pair)
    x = torch.randn(2, 3, *size)
    torch.manual_seed(1)  # the same blocks are dropped
    our_maps = ours(x)
    torch.manual_seed(1)
    their_maps = theirs(x)
    assert [m.shape for m in our_maps] == [m.shape for m in their_maps]
    for our_map, their_map in zip(our_maps, their_maps, strict=True):
        assert relative_error(our_map, their_map) < 1e-5
    sum((m.square() * 0.1).mean() for m in our_maps).backward()
    sum((m.square() * 0.1).mean() for m in their_maps).backward()
    expected = from_timm({name: p.grad for name, p in theirs.named_parameters()})
    gradients = {name: p.grad for name, p in ours.named_parameters()}
    assert set(gradients) == set(expected)
    for name, gradient in gradients.items():
        assert (gradient - expected[name]).norm() <= 1e-5 * expected[name].norm(), name


@pytest.mark.parametrize('pair', [('convnext_atto', False), ('convnextv2_atto', True)], ids=['V1', 'V2'], indirect=True)
def test_a_training_in_double_precision_equals_timm(pair, from_timm):
    ours, theirs = (model.double().train() for model in pair)
    optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05) for model in (ours, theirs)]
    for step in range(5):
        x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
        x[..., 48:] = 0  # the padding of a batch, where the first norm gets a map without variance
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            torch.manual_seed(step)  # the same blocks are dropped
            optimizer.zero_grad()
            sum(m.square().mean() for m in model(x)).backward()
            optimizer.step()
    expected = from_timm(theirs.state_dict())
    for name, tensor in ours.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-9, atol=1e-12, msg=name)


def test_output_norm_is_a_layer_norm_over_channels():
    model = ConvNeXt(SMALL, out_indices=(2,))
    nn.init.normal_(model.norm2.weight)
    nn.init.normal_(model.norm2.bias)
    x = torch.randn(2, 3, 64, 64)
    (normed,) = model(x)
    model.out_norm = False
    (plain,) = model(x)
    mean, var = plain.mean(1, keepdim=True), plain.var(1, keepdim=True, unbiased=False)
    expected = (plain - mean) / (var + 1e-6).sqrt() * model.norm2.weight[:, None, None] + model.norm2.bias[
        :, None, None
    ]
    torch.testing.assert_close(normed, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('grn', [False, True], ids=['v1', 'v2'])
def test_bf16_autocast_is_close_to_fp32(grn):
    model = ConvNeXt(SMALL, grn=grn)
    x = torch.randn(2, 3, 96, 64)
    expected = model(x)
    weights = [torch.randn_like(m) for m in expected]

    def gradients(maps):
        loss = sum((m.float() * w).mean() for m, w in zip(maps, weights, strict=True))
        return torch.autograd.grad(loss, list(model.parameters()))

    reference = gradients(expected)
    with torch.autocast('cpu', torch.bfloat16):
        maps = model(x)
    for ours, theirs in zip(maps, expected, strict=True):
        assert torch.isfinite(ours).all()
        assert relative_error(ours.float(), theirs) < 0.05
    for (name, _), ours, theirs in zip(model.named_parameters(), gradients(maps), reference, strict=True):
        assert ours.dtype == torch.float32
        assert (ours - theirs).norm() <= 0.1 * theirs.norm() + 1e-5, name


def test_fast_depthwise_gradients_equal_autograd():
    conv = nn.Conv2d(6, 6, 7, padding=3, groups=6)
    x = torch.randn(2, 6, 9, 11).to(memory_format=torch.channels_last)
    weights = torch.randn_like(x)
    x.requires_grad_()
    leaves = [x, conv.weight, conv.bias]
    reference = torch.autograd.grad((conv(x) * weights).mean(), leaves)
    ours = torch.autograd.grad(
        (DepthwiseConvBF16.apply(x.bfloat16(), conv.weight, conv.bias).float() * weights).mean(), leaves
    )
    for a, b in zip(ours, reference, strict=True):
        assert relative_error(a, b) < 0.01


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('grn', [False, True], ids=['v1', 'v2'])
def test_half_precision_weights_give_finite_maps(dtype, grn):
    model = ConvNeXt(SMALL, grn=grn).to(dtype)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        maps = model(x.to(dtype))
        expected = model.float()(x)
    for ours, theirs in zip(maps, expected, strict=True):
        assert ours.dtype == dtype
        assert torch.isfinite(ours).all()
        assert relative_error(ours.float(), theirs) < 0.05


def test_layer_norm_statistics_are_fp32_in_half_precision():
    # squares of these values overflow fp16; a LayerNorm that worked in fp16 would return nan
    model = ConvNeXt(SMALL, out_indices=(0,)).half()
    x = torch.randn(1, 8, 4, 4).half() * 1000
    assert torch.isfinite(model.norm0(x)).all()
    assert torch.isfinite(model.stages[0][0].norm(x.permute(0, 2, 3, 1))).all()


def test_grn_follows_its_equations():
    block = Block(4, 0.0, 1.0, grn=True, norm_eps=1e-6)
    nn.init.normal_(block.grn.gamma)
    nn.init.normal_(block.grn.beta)
    x = torch.randn(2, 3, 5, 16, dtype=torch.float64)
    block = block.double()
    norm = x.square().sum(dim=(1, 2), keepdim=True).sqrt()
    expected = block.grn.gamma * (x * norm / (norm.mean(-1, keepdim=True) + 1e-6)) + block.grn.beta + x
    torch.testing.assert_close(block.grn(x), expected, rtol=1e-5, atol=1e-6)


def test_drop_path_ramps_linearly_over_all_blocks():
    model = ConvNeXt('tiny', drop_path_rate=0.4)
    rates = [block.drop_path for stage in model.stages for block in stage]
    assert rates == pytest.approx([0.4 * i / 17 for i in range(18)])


def test_dropped_blocks_pass_their_input_through():
    block = Block(8, 0.999999, 1.0, grn=False, norm_eps=1e-6).train()
    x = torch.randn(4, 8, 6, 6)
    y = block(x)
    torch.testing.assert_close(y, x)
    y.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in block.parameters())  # DDP waits for each


@pytest.mark.parametrize('grn', [False, True], ids=['v1', 'v2'])
def test_dropped_images_are_not_computed(grn):
    block = randomize(Block(8, 0.5, None if grn else 1.0, grn, norm_eps=1e-6)).double().train()
    computed = []
    block.norm.register_forward_hook(lambda module, given, y: computed.append(len(y)))
    x = torch.randn(6, 8, 5, 7, dtype=torch.float64, requires_grad=True)
    y = block(x)
    kept = (y != x).flatten(1).any(dim=1)
    assert computed == [kept.sum()]
    assert 0 < kept.sum() < len(x)
    expected = x + 2 * (block.eval()(x) - x) * kept[:, None, None, None]
    torch.testing.assert_close(y, expected)
    ours, theirs = (torch.autograd.grad(z.square().sum(), [x, *block.parameters()]) for z in (y, expected))
    torch.testing.assert_close(ours, theirs)


def test_drop_path_keeps_the_expected_value():
    block = Block(4, 0.5, 1.0, grn=False, norm_eps=1e-6)
    x = torch.randn(1, 4, 5, 5)
    with torch.no_grad():
        branch = block.eval()(x) - x
        mean = block.train()(x.expand(4000, -1, -1, -1)).mean(0) - x
    assert relative_error(mean, branch) < 0.1


def test_integer_layer_scale():
    assert ConvNeXt(SMALL, layer_scale_init_value=1).stages[0][0].gamma.dtype == torch.float32


@pytest.mark.filterwarnings('ignore:`torch.jit.*` is deprecated:FutureWarning')
@pytest.mark.filterwarnings('ignore:`torch.jit.*` is deprecated:DeprecationWarning')
@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
def test_trace():
    model = ConvNeXt(SMALL).eval()
    x = torch.randn(1, 3, 64, 64)
    for a, b in zip(torch.jit.trace(model, x)(x), model(x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_fp16_autocast_gives_finite_maps():
    model = ConvNeXt(SMALL)
    x = torch.randn(1, 3, 64, 64)
    with torch.autocast('cpu', torch.float16):
        maps = model(x)
    for a, b in zip(maps, model(x), strict=True):
        assert torch.isfinite(a).all()
        assert relative_error(a.float(), b) < 0.01


@pytest.mark.parametrize('value', [0, None])
def test_no_layer_scale(value):
    model = ConvNeXt(SMALL, layer_scale_init_value=value)
    assert not [name for name, _ in model.named_parameters() if name.endswith('gamma')]
    assert all(torch.isfinite(m).all() for m in model(torch.randn(1, 3, 32, 32)))


@pytest.mark.parametrize('out_indices', [(0, 1, 2, 3), (-1,), (1, 3), (-3, -2), (3, 0)])
def test_out_indices(out_indices):
    x = torch.randn(1, 3, 64, 64)
    model, full = ConvNeXt(SMALL, out_indices=out_indices), ConvNeXt(SMALL)
    full.load_state_dict(model.state_dict(), strict=False)
    maps, every = model(x), full(x)
    assert len(maps) == len(out_indices)
    for i, m in zip(out_indices, maps, strict=True):
        torch.testing.assert_close(m, every[i])
        assert m.shape[1] == SMALL['dims'][i]


@pytest.mark.parametrize('frozen_stages', [-1, 0, 1, 2, 4])
def test_frozen_stages_stay_frozen_and_in_eval(frozen_stages):
    model = ConvNeXt(SMALL, frozen_stages=frozen_stages).train()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    for name, _ in model.named_parameters():
        kind, stage = name.split('.')[0], int(name.split('.')[1]) if '.' in name and name[0] in 'ds' else 9
        is_frozen = {
            'downsample_layers': stage < max(frozen_stages, 1) and frozen_stages >= 0,
            'stages': stage < frozen_stages,
        }.get(kind, False)
        assert (name not in trained) == is_frozen, name
    assert model.training
    for i, stage in enumerate(model.stages):
        assert stage.training == (i >= frozen_stages)
    sum(m.sum() for m in model(torch.randn(1, 3, 32, 32))).backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())


@pytest.mark.parametrize('with_cp', [True, 'cheap'])
@pytest.mark.parametrize('grn', [False, True], ids=['v1', 'v2'])
def test_recomputation_changes_no_gradient(grn, with_cp):
    plain, lean = (
        ConvNeXt(SMALL, grn=grn, drop_path_rate=0.5),
        ConvNeXt(SMALL, grn=grn, drop_path_rate=0.5, with_cp=with_cp),
    )
    lean.load_state_dict(plain.state_dict())
    x = torch.randn(3, 3, 64, 64)
    for model in (plain, lean):
        torch.manual_seed(3)
        sum(m.square().mean() for m in model(x)).backward()
    for (name, p), q in zip(plain.named_parameters(), lean.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=name)


def kept_bytes(model, x):
    """Return the bytes that a forward pass leaves for the backward pass."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        maps = model(x)
    kept = sum(event.self_cpu_memory_usage for event in profiler.key_averages())
    return kept - sum(each.nbytes for each in maps)


def test_cheap_recomputation_keeps_three_fifths_of_the_bytes_and_repeats_no_product():
    sizes = dict(depths=(2, 2, 4, 2), dims=(16, 32, 64, 128))
    theirs = timm.create_model('convnext_atto', features_only=True, **sizes)
    plain, lean, x = ConvNeXt(sizes), ConvNeXt(sizes, with_cp='cheap'), torch.randn(2, 3, 128, 128)
    assert kept_bytes(lean, x) < 0.62 * min(kept_bytes(model, x) for model in (plain, theirs))
    products = []
    for model in (plain, lean):
        with FlopCounterMode(display=False) as counter:
            sum(each.sum() for each in model(x)).backward()
        products.append(counter.get_total_flops())
    assert products[0] == products[1]


def test_in_channels():
    assert ConvNeXt(SMALL, in_channels=5)(torch.randn(1, 5, 32, 32))[0].shape == (1, 8, 8, 8)


def test_does_not_change_its_input():
    model = ConvNeXt(SMALL).eval()
    x = torch.randn(1, 3, 64, 64)
    before = x.clone()
    with torch.no_grad():
        first, second = model(x), model(x)
    torch.testing.assert_close(x, before, rtol=0, atol=0)
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_inference_equals_training_mode_without_gradient():
    # with and without autograd other kernels run (in-place GELU)
    model = ConvNeXt(SMALL).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        inference = model(x)
    for a, b in zip(inference, model(x), strict=True):
        torch.testing.assert_close(a, b.detach())


@pytest.mark.parametrize('grn', [False, True], ids=['v1', 'v2'])
def test_export(grn):
    model = ConvNeXt(SMALL, grn=grn).eval()
    x = torch.randn(1, 3, 64, 96)
    program = torch.export.export(model, (x,))
    for a, b in zip(program.module()(x), model(x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings('ignore:Guards may run slower on Python 3.13.0:RuntimeWarning')
@pytest.mark.parametrize('grn', [False, True], ids=['v1', 'v2'])
def test_compile_without_graph_breaks(grn):
    model = ConvNeXt(SMALL, grn=grn, drop_path_rate=0.5)
    x, found = torch.randn(3, 3, 64, 64), []
    for call in (torch.compile(model, backend='aot_eager', fullgraph=True), model):
        torch.manual_seed(1)  # for stochastic depth
        maps = call(x)
        found.append((maps, torch.autograd.grad(sum(m.square().mean() for m in maps), list(model.parameters()))))
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_compile_with_inductor():
    model = ConvNeXt(SMALL).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for a, b in zip(torch.compile(model)(x), model(x), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ('arguments', 'named'),
    [
        (dict(arch='tinny'), ("'tinny'", 'atto, femto', 'huge', 'dict(depths')),
        (dict(arch=dict(depths=(1, 1, 1, 1))), ('arch', 'atto', 'dims')),
        (dict(arch=dict(depths=(1, 1, 1), dims=(8, 8, 8, 8))), ("arch['depths']", 'four positive integers')),
        (dict(arch=dict(depths=(1, 1, 1, 1), dims=(8, 8, 8, 0))), ("arch['dims']", 'four positive integers')),
        (dict(out_indices=(0, 4)), ('out_indices', '0 to 3', '-4 to -1', '(0, 4)')),
        (dict(out_indices=()), ('out_indices', 'at least one', '()')),
        (dict(out_indices=(3, -1)), ('out_indices', 'at most once', '(3, -1)')),
        (dict(out_indices=2), ('out_indices', '0 to 3', '2')),
        (dict(frozen_stages=5), ('frozen_stages', '-1 (none)', '0 (the stem)', '4', '5')),
        (dict(frozen_stages=3, out_indices=(0, 1)), ('frozen_stages', 'up to 2', '3')),
        (dict(in_channels=0), ('in_channels', 'positive integer', '0')),
        (dict(drop_path_rate=1.0), ('drop_path_rate', '[0, 1)', '1.0')),
    ],
)
def test_bad_arguments_are_answered(arguments, named):
    with pytest.raises(ValueError) as error:
        ConvNeXt(**{'arch': SMALL, **arguments})
    assert all(word in str(error.value) for word in named)


@pytest.mark.parametrize('shape', [(1, 4, 32, 32), (3, 32, 32)])
def test_wrong_channel_count_is_answered(shape):
    with pytest.raises(ValueError, match=r'\(N, 3, H, W\).*in_channels.*got \(.*32\)'):
        ConvNeXt(SMALL)(torch.zeros(shape))
