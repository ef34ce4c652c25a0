"""The decay rules against the published table, written out here a second time by hand."""

import io
import logging
from pathlib import Path

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from convnext_dense import ConvNeXt, UserError
from convnext_dense.lr_decay import layer_index
from convnext_dense.train.run import describe_rates

CONFIGS = Path(__file__).parent.parent / 'configs'
# exponent of the decay rate, from the published table; the third stage's blocks by threes
LAYER_WISE = {
    6: dict(down=(7, 5, 4, 1), stages=(6, 5, (4, 3, 2), 1)),
    12: dict(down=(13, 11, 10, 1), stages=(12, 11, (10, 9, 8, 7, 6, 5, 4, 3, 2), 1)),
}
STAGE_WISE = {6: dict(down=(7,) * 4, stages=(6, 5, 4, 3)), 12: dict(down=(13,) * 4, stages=(12, 11, 10, 9))}
SHALLOW, DEEP = (3, 3, 9, 3), (3, 3, 27, 3)


class Detector(nn.Module):
    def __init__(self, depths=SHALLOW, name='backbone', **kwargs):
        super().__init__()
        self.add_module(name, ConvNeXt(dict(depths=depths, dims=(4, 8, 12, 16)), **kwargs))
        self.neck = nn.Conv2d(4, 8, 1)
        self.bn = nn.BatchNorm2d(8)


def build(model, kind='ConvNeXtLayerDecay', lr=2e-4, weight_decay=0.05, **paramwise_cfg):
    cfg = dict(
        type='OptimWrapper',
        constructor=kind,
        paramwise_cfg=dict(dict(decay_rate=0.7), **paramwise_cfg),
        optimizer=dict(type='AdamW', lr=lr, weight_decay=weight_decay),
    )
    return build_optim_wrapper(model, cfg)


def settings(model, wrapper):
    """Return name -> (lr, weight decay); every parameter must be in exactly one group."""
    names = {id(p): name for name, p in model.named_parameters()}
    found = {}
    for group in wrapper.optimizer.param_groups:
        for p in group['params']:
            assert names[id(p)] not in found
            found[names[id(p)]] = (group['lr'], group['weight_decay'])
    return found


def exponent(name, table):
    """Return the expected exponent of a backbone parameter, by string surgery alone."""
    part, stage, *rest = name.split('.')
    if part.startswith('norm'):
        return 0
    if part == 'downsample_layers':
        return table['down'][int(stage)]
    value = table['stages'][int(stage)]
    return value[int(rest[0]) // 3] if isinstance(value, tuple) else value


@pytest.mark.parametrize('grn', [False, True], ids=['v1', 'v2'])
@pytest.mark.parametrize(('kind', 'tables'), [('ConvNeXtLayerDecay', LAYER_WISE), ('ConvNeXtStageDecay', STAGE_WISE)])
@pytest.mark.parametrize(('depths', 'num_layers'), [(SHALLOW, 6), (DEEP, 12), (SHALLOW, 12)])
def test_rates_equal_the_published_table(kind, tables, depths, num_layers, grn):
    if depths == SHALLOW and num_layers == 12 and kind == 'ConvNeXtLayerDecay':
        expected_table = dict(down=(13, 11, 10, 1), stages=(12, 11, (10, 9, 8), 1))
    else:
        expected_table = tables[num_layers]
    model = Detector(depths, grn=grn)
    derived = num_layers == (6 if depths == SHALLOW else 12)
    wrapper = build(model, kind, num_layers=None if derived else num_layers)
    found = settings(model, wrapper)
    assert set(found) == {name for name, _ in model.named_parameters()}
    for name, p in model.named_parameters():
        power = exponent(name.removeprefix('backbone.'), expected_table) if name.startswith('backbone.') else 0
        weight_decay = 0 if p.ndim == 1 or name.endswith('.bias') or 'grn' in name else 0.05
        assert found[name] == (pytest.approx(2e-4 * 0.7**power), weight_decay), name
    assert len(wrapper.optimizer.param_groups) <= 2 * (num_layers + 2)


class Teacher(nn.Module):
    def __init__(self):
        super().__init__()
        self.student = Detector(name='trunk')
        self.teacher = Detector(DEEP, name='body')


def test_any_prefix_and_several_backbones():
    model = Teacher()
    found = settings(model, build(model))
    assert found['student.trunk.downsample_layers.0.0.weight'][0] == pytest.approx(2e-4 * 0.7**7)
    assert found['teacher.body.downsample_layers.0.0.weight'][0] == pytest.approx(2e-4 * 0.7**13)
    assert found['teacher.neck.weight'][0] == 2e-4


def test_compiled_backbone():
    model = Detector()
    model.backbone = torch.compile(model.backbone)
    found = settings(model, build(model))
    assert found['backbone._orig_mod.downsample_layers.0.0.weight'][0] == pytest.approx(2e-4 * 0.7**7)


def test_data_parallel_wrapper():
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = Detector()

    wrapper = Wrapper()
    found = settings(wrapper.module, build(wrapper))
    assert found['backbone.stages.0.0.dwconv.weight'][0] == pytest.approx(2e-4 * 0.7**6)


def test_frozen_parameters_are_left_out():
    model = Detector(frozen_stages=2)
    found = settings(model, build(model))
    assert set(found) == {name for name, p in model.named_parameters() if p.requires_grad}
    assert 'backbone.stages.2.0.dwconv.weight' in found
    assert 'backbone.stages.1.0.dwconv.weight' not in found


def test_custom_keys_equal_mmengine_outside_of_the_backbone():
    keys = {'neck': dict(lr_mult=0.1, decay_mult=0.5), 'neck.b': dict(lr_mult=3.0, decay_mult=0.0)}
    model = Detector()
    found = settings(model, build(model, custom_keys=keys))
    reference = settings(
        model,
        build_optim_wrapper(
            model,
            dict(
                type='OptimWrapper',
                paramwise_cfg=dict(custom_keys=keys),
                optimizer=dict(type='AdamW', lr=2e-4, weight_decay=0.05),
            ),
        ),
    )
    for name in ('neck.weight', 'neck.bias'):
        assert found[name] == pytest.approx(reference[name])
    assert found['neck.bias'] == pytest.approx((6e-4, 0.0))


def test_optimizer_without_weight_decay():
    model = Detector()
    cfg = dict(constructor='ConvNeXtLayerDecay', paramwise_cfg=dict(decay_rate=0.9), optimizer=dict(type='SGD', lr=0.1))
    assert len(settings(model, build_optim_wrapper(model, cfg))) == len(list(model.parameters()))


@pytest.fixture
def logged():
    text, logger = io.StringIO(), MMLogger.get_current_instance()
    handler = logging.StreamHandler(text)
    logger.addHandler(handler)
    yield text
    logger.removeHandler(handler)


def test_the_table_is_logged(logged):
    build(Detector())
    assert 'ConvNeXtLayerDecay: decay rate 0.7' in logged.getvalue()


def test_table_of_the_groups():
    constructor = OPTIM_WRAPPER_CONSTRUCTORS.get('ConvNeXtLayerDecay')(
        dict(optimizer=dict(type='AdamW', lr=2e-4, weight_decay=0.05)), dict(decay_rate=0.7)
    )
    model = Detector()
    table = constructor.describe(constructor.group(model)).splitlines()
    assert table[0].startswith('ConvNeXtLayerDecay: decay rate 0.7, base lr 0.0002, lr 1.65e-05 to 0.0002')
    assert table[1].split() == ['slot', 'tensors', 'parameters', 'lr', 'decay', 'first', 'parameter']
    counts = [int(row.split()[2].replace(',', '')) for row in table[2:]]
    assert sum(counts) == sum(p.numel() for p in model.parameters())
    assert {int(row.split()[0]) for row in table[2:]} == set(range(8))


@pytest.mark.parametrize(
    ('name', 'rates'),
    [
        ('det/faster_rcnn_convnext_t_coco', 'decay rate 0.95, base lr 0.0001, lr 6.98e-05 to 0.0001'),
        ('det/retinanet_convnext_t_coco', 'decay rate 0.95, base lr 0.0001, lr 6.98e-05 to 0.0001'),
        ('det/rtmdet_convnext_t_coco', 'decay rate 0.8, base lr 0.001, lr 0.00021 to 0.001'),
        ('det/rtmdet_convnext_b_in22k_coco', 'decay rate 0.8, base lr 0.001, lr 5.5e-05 to 0.001'),
    ],
)
def test_table_of_modern_heads(name, rates):
    assert describe_rates(CONFIGS / f'{name}.py').startswith(f'ConvNeXtLayerDecay: {rates}\n')


@pytest.mark.parametrize(
    'name', ['det/dino_convnext_t_coco', 'det/mask2former_convnext_t_coco', 'seg/mask2former_convnext_t_ade20k']
)
def test_configs_without_decay_have_no_table(name):
    with pytest.raises(UserError, match=r'constructor must be ConvNeXtLayerDecay or .* to show its rates; .* has None'):
        describe_rates(CONFIGS / f'{name}.py')


@pytest.mark.parametrize(
    ('paramwise_cfg', 'named'),
    [
        (dict(decay_rate=None), ('decay_rate', '(0, 1]', 'None')),
        (dict(decay_rate=1.5), ('decay_rate', '(0, 1]', '1.5')),
        (dict(decay_type='layer_wise'), ('paramwise_cfg', 'decay_type', 'decay_rate, num_layers, custom_keys')),
        (dict(num_layers=6), ('num_layers=6', '(3, 3, 27, 3)', '12')),
        (dict(custom_keys={'neck': dict(lr_multi=0.1)}), ("custom_keys['neck']", 'lr_multi', 'lr_mult, decay_mult')),
        (dict(custom_keys={'backbone': dict(lr_mult=0.1)}), ("'backbone'", 'decay_rate')),
    ],
)
def test_bad_settings_are_answered(paramwise_cfg, named):
    with pytest.raises(ValueError) as error:
        build(Detector(DEEP), **paramwise_cfg)
    assert all(word in str(error.value) for word in named)


def test_an_optimizer_without_lr_is_answered():
    cfg = dict(constructor='ConvNeXtLayerDecay', paramwise_cfg=dict(decay_rate=0.9), optimizer=dict(type='AdamW'))
    with pytest.raises(ValueError, match='lr'):
        build_optim_wrapper(Detector(), cfg)


def test_a_custom_key_without_a_parameter_is_a_warning(logged):
    build(Detector(), custom_keys={'nack': dict(lr_mult=0.1)})
    assert "'nack' matches no parameter" in logged.getvalue()


def test_model_without_a_convnext_is_answered():
    with pytest.raises(ValueError, match=r"Conv2d has none\. Set model.backbone.type='ConvNeXt'"):
        build(nn.Conv2d(1, 1, 1))


def test_backbone_parameter_without_a_rule_is_answered():
    model = Detector()
    model.backbone.adapter = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="No learning-rate rule covers the backbone parameter 'adapter"):
        build(model)


@pytest.mark.parametrize(
    'name', ['stages.2.9.gamma', 'stages.4.0.gamma', 'downsample_layers.4.0.weight', 'head.weight']
)
def test_names_outside_of_the_depths_are_answered(name):
    with pytest.raises(ValueError, match='No learning-rate rule covers'):
        layer_index(name, SHALLOW)
