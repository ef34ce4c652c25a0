"""The ladder against the paper's tables, torchvision, MMDetection and timm."""

import pytest
import torch
import torchvision
from mmengine.optim import build_optim_wrapper
from small_models import resnet_maps
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.resnet import Bottleneck

from convnext_dense.ladder import STEPS, ModernizedResNet, channels, steps

# arXiv 2201.03545, Tables 10 and 11: step, kernel, printed GFLOPs; parameters counted with a classifier of 1000 classes
TABLE_10 = (
    ('resnet', 3, 4.09, 25_557_032),
    ('stage_ratio', 3, 4.53, 28_628_520),
    ('patchify_stem', 3, 4.42, 28_622_120),
    ('depthwise', 3, 2.35, 15_722_600),
    ('width', 3, 5.27, 33_760_936),
    ('inverted_bottleneck', 3, 4.64, 25_851_400),
    ('depthwise_first', 3, 4.07, 25_625_416),
    ('kernel', 5, 4.10, 25_720_648),
    ('kernel', 7, 4.15, 25_863_496),
    ('kernel', 9, 4.21, 26_053_960),
    ('kernel', 11, 4.29, 26_292_040),
    ('gelu', 7, 4.15, 25_863_496),
    ('fewer_acts', 7, 4.15, 25_863_496),
    ('fewer_norms', 7, 4.15, 25_797_256),
    # The table prints 4.46 and 4.49 in these two rows. Its last three cells agree with the counts one row further down:
    # 4.46 is ConvNeXt-T's (4.456) and 4.49 that of Swin-T below it (4.491). Table 11 shows no such change at this step.
    ('layer_norm', 7, 4.15, 25_836_328),
    ('convnext', 7, 4.46, 28_582_504),
)
TABLE_11 = (
    ('resnet', 3, 15.01, 64_673_832),
    ('stage_ratio', 3, 14.52, 83_066_332),
    ('patchify_stem', 3, 14.38, 83_057_932),
    ('depthwise', 3, 7.23, 42_585_472),
    ('width', 3, 16.76, 96_526_568),
    ('inverted_bottleneck', 3, 15.68, 83_700_072),
    ('depthwise_first', 3, 14.63, 83_094_632),
    ('kernel', 5, 14.70, 83_369_064),
    ('kernel', 7, 14.81, 83_780_712),
    ('kernel', 9, 14.95, 84_329_576),
    ('kernel', 11, 15.13, 85_015_656),
    ('gelu', 7, 14.81, 83_780_712),
    ('fewer_acts', 7, 14.81, 83_780_712),
    ('fewer_norms', 7, 14.81, 83_600_232),
    ('layer_norm', 7, 14.81, 83_707_624),
    ('convnext', 7, 15.35, 88_573_416),
)
# steps that set depths and widths, in which the large networks differ
FAST = ('resnet', 'stage_ratio', 'width', 'convnext')
SMALL = dict(depths=(2, 2, 2, 2), width=8)


class Classifier(nn.Module):
    """A step with the paper's head: the mean, for 'convnext' a norm, and a linear layer."""

    def __init__(self, step, **options):
        super().__init__()
        self.backbone = ModernizedResNet(step, out_indices=(3,), **options)
        self.head = nn.Linear(self.backbone.dims[-1], 1000)

    def forward(self, x):
        return self.head(self.backbone(x)[0].mean((2, 3)))


@pytest.mark.parametrize(
    ('step', 'kernel', 'gflops', 'params', 'large'),
    [(*row, False) for row in TABLE_10]
    + [pytest.param(*row, True, marks=() if row[0] in FAST else pytest.mark.slow) for row in TABLE_11],
)
def test_cost_equals_the_papers_tables(step, kernel, gflops, params, large):
    with torch.device('meta'):
        model = Classifier(step, large=large, design=dict(kernel=kernel)).eval()
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, 3, 224, 224))
    assert round(counter.get_total_flops() / 2e9, 2) == gflops
    assert sum(p.numel() for p in model.parameters()) == params


def from_torchvision(key):
    """Rename a key of torchvision's ResNet by hand."""
    key = key.replace('downsample', 'shortcut').replace('bn', 'norm')
    if key.startswith('layer'):
        return f'stages.{int(key[5]) - 1}{key[6:]}'
    return key.replace('conv1', 'downsample_layers.0.0').replace('norm1', 'downsample_layers.0.1')


def shake(model):
    """Give norms weights and statistics that are not those of the identity."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)


@pytest.mark.parametrize(
    ('step', 'options', 'depths'),
    [
        ('resnet', {}, [3, 4, 6, 3]),
        ('stage_ratio', {}, [3, 3, 9, 3]),
        pytest.param('resnet', dict(large=True), [3, 24, 36, 3], marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize('is_training', [False, True], ids=['eval', 'train'])
def test_resnet_equals_torchvision_bit_for_bit(step, options, depths, is_training):
    theirs = torchvision.models.ResNet(Bottleneck, depths)
    shake(theirs)
    ours = ModernizedResNet(step, **options)
    weights = {from_torchvision(key): value for key, value in theirs.state_dict().items() if not key.startswith('fc')}
    ours.load_state_dict(weights)
    x = torch.randn(2, 3, 64, 64)
    our_maps, their_maps = ours.train(is_training)(x), resnet_maps(theirs.train(is_training), x)
    assert all(map(torch.equal, our_maps, their_maps))
    sum(m.mean() for m in our_maps).backward()
    sum(m.mean() for m in their_maps).backward()
    gradients = {name: p.grad for name, p in ours.named_parameters()}
    for name, p in theirs.named_parameters():
        assert name.startswith('fc') or torch.equal(gradients[from_torchvision(name)], p.grad), name


@pytest.mark.parametrize('constructor', ['ConvNeXtLayerDecay', 'ConvNeXtStageDecay'])
@pytest.mark.parametrize('step', steps())
def test_every_parameter_learns_at_one_rate(step, constructor):
    model = nn.Module()
    model.backbone = ModernizedResNet(step, design=SMALL, layer_scale_init_value=0.5, drop_path_rate=0.1)
    sum(m.square().mean() for m in model.backbone(torch.randn(4, 3, 64, 64))).backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())
    cfg = dict(constructor=constructor, paramwise_cfg=dict(decay_rate=0.9), optimizer=dict(type='AdamW', lr=1.0))
    groups = build_optim_wrapper(model, cfg).optimizer.param_groups
    assert sorted(id(p) for group in groups for p in group['params']) == sorted(map(id, model.parameters()))
    rates = {id(p): group['lr'] for group in groups for p in group['params']}
    by_name = {name: rates[id(p)] for name, p in model.backbone.named_parameters()}
    assert by_name['downsample_layers.0.0.weight'] == min(rates.values())
    shortcuts = [name for name in by_name if 'shortcut' in name]
    assert all(by_name[name] == by_name[f'{name.split(".shortcut")[0]}.conv1.weight'] for name in shortcuts)


def test_each_step_changes_the_network():
    networks = [repr(ModernizedResNet(step, design=dict(depths=(1, 1, 2, 1)))) for step in steps()]
    ratios = {ModernizedResNet(step, out_indices=(0,)).design.depths for step in steps()[:2]}
    assert len(set(networks)) == len(STEPS) - 1  # 'stage_ratio' changes the depths alone, which are given here
    assert len(ratios) == 2


@pytest.mark.parametrize('large', [False, True])
@pytest.mark.parametrize('step', steps())
def test_channels_are_those_of_the_maps(step, large):
    with torch.device('meta'):
        maps = ModernizedResNet(step, large)(torch.zeros(2, 3, 64, 96))
    assert [m.shape[1] for m in maps] == channels(step, large)
    assert [m.shape[2:] for m in maps] == [(16, 24), (8, 12), (4, 6), (2, 3)]


def test_norm_eval_and_frozen_stages():
    model = ModernizedResNet('resnet', design=SMALL, norm_eval=True, frozen_stages=1).train()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert not any(norm.training for norm in norms)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if name.startswith(('downsample', 'stages.0'))}


@pytest.mark.parametrize('step', ['resnet', 'layer_norm', 'convnext'])
def test_recomputation_changes_no_gradient(step):
    plain = ModernizedResNet(step, design=SMALL, drop_path_rate=0.5, norm_eval=True)
    lean = ModernizedResNet(step, design=SMALL, drop_path_rate=0.5, norm_eval=True, with_cp=True)
    lean.load_state_dict(plain.state_dict())
    x = torch.randn(3, 3, 64, 64)
    for model in (plain.train(), lean.train()):
        torch.manual_seed(3)
        sum(m.square().mean() for m in model(x)).backward()
    for (name, p), q in zip(plain.named_parameters(), lean.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=name)


@pytest.mark.parametrize(
    ('arguments', 'named'),
    [
        (dict(step='patchify'), ('patchify', 'patchify_stem', 'convnext')),
        (dict(design=dict(kernal=5)), ('kernal', 'kernel')),
        (dict(design=dict(kernel=4)), ('kernel must be odd', 'kernel=4')),
        (dict(design=dict(depths=(3, 3, 3))), ('depths must be four', '(3, 3, 3)')),
        (dict(design=dict(width=0)), ('width', 'positive')),
        (dict(design=dict(act='silu')), ('act must be relu or gelu', 'silu')),
        (dict(design=dict(norm='group')), ('norm must be batch or layer', 'group')),
        (dict(frozen_stages=7), ('frozen_stages', '7')),
    ],
)
def test_bad_arguments_are_answered(arguments, named):
    with pytest.raises(ValueError) as error:
        ModernizedResNet(**{'step': 'resnet', **arguments})
    assert all(word in str(error.value) for word in named)
