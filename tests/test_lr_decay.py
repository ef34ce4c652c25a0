"""The decay rules against the published table, written out here a second time by hand."""

import io
import logging

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from torch import nn

from convnext_dense import ConvNeXt, UserError
from convnext_dense.lr_decay import layer_index
from convnext_dense.train.run import describe_rates

SHALLOW, DEEP = (3, 3, 9, 3), (3, 3, 27, 3)
# From the published table, by the rule and the number of layers: the exponents of the decay rate, with those of the
# third stage's blocks by threes. The first ones of a deeper table are those of shallow models with so many layers.
EXPONENTS = {
    ('layer', 6): dict(downsample_layers=(7, 5, 4, 1), stages=(6, 5, (4, 3, 2), 1)),
    ('layer', 12): dict(downsample_layers=(13, 11, 10, 1), stages=(12, 11, (10, 9, 8, 7, 6, 5, 4, 3, 2), 1)),
    ('stage', 6): dict(downsample_layers=(7, 7, 7, 7), stages=(6, 5, (4,) * 3, 3)),
    ('stage', 12): dict(downsample_layers=(13, 13, 13, 13), stages=(12, 11, (10,) * 9, 9)),
}


def exponent(name: str, kind: str, num_layers: int) -> int:
    """Return the power of the decay rate for a parameter, by its full name alone."""
    where, part, *rest = name.split('.')
    if where != 'backbone' or part.startswith('norm'):
        return 0
    value = EXPONENTS[kind, num_layers][part][int(rest[0])]
    return value[int(rest[1]) // 3] if isinstance(value, tuple) else value


def does_not_decay(name: str, param: nn.Parameter) -> bool:
    return param.ndim == 1 or name.endswith('.bias') or '.grn.' in name


class Detector(nn.Module):
    def __init__(self, depths=SHALLOW, **options):
        super().__init__()
        self.backbone = ConvNeXt(dict(depths=depths, dims=(4, 8, 12, 16)), **options)
        self.neck = nn.Conv2d(4, 8, 1)
        self.bn = nn.BatchNorm2d(8)


def build(model, kind='ConvNeXtLayerDecay', optimizer=None, **paramwise_cfg):
    return build_optim_wrapper(
        model,
        dict(
            constructor=kind,
            paramwise_cfg=dict(decay_rate=0.7) | paramwise_cfg,
            optimizer=optimizer or dict(type='AdamW', lr=2e-4, weight_decay=0.05),
        ),
    )


def settings(model, wrapper):
    """Return name -> (lr, weight decay) of the trainable parameters, of which each is in exactly one group."""
    names = {id(param): name for name, param in model.named_parameters()}
    pairs = [(group, param) for group in wrapper.optimizer.param_groups for param in group['params']]
    found = [(names[id(p)], (group['lr'], group['weight_decay'])) for group, p in pairs if p.requires_grad]
    assert sorted(name for name, _ in found) == sorted(n for n, p in model.named_parameters() if p.requires_grad)
    return dict(found)


@pytest.mark.parametrize('grn', [False, True], ids=['v1', 'v2'])
@pytest.mark.parametrize('kind', ['layer', 'stage'])
@pytest.mark.parametrize(
    ('depths', 'given', 'num_layers'), [(SHALLOW, None, 6), (DEEP, None, 12), (SHALLOW, 12, 12), (DEEP, 12, 12)]
)
def test_rates_equal_the_published_table(kind, depths, given, num_layers, grn):
    model = Detector(depths, grn=grn)
    wrapper = build(model, f'ConvNeXt{kind.title()}Decay', num_layers=given)
    found = settings(model, wrapper)
    for name, param in model.named_parameters():
        lr = 2e-4 * 0.7 ** exponent(name, kind, num_layers)
        assert found[name] == (pytest.approx(lr), 0 if does_not_decay(name, param) else 0.05), name
    assert len(wrapper.optimizer.param_groups) <= 2 * (num_layers + 2)


def test_backbones_are_found_under_any_name_and_in_any_wrapper():
    model = nn.ModuleDict(dict(student=Detector(), teacher=Detector(DEEP), body=nn.DataParallel(Detector().backbone)))
    model.student.backbone = torch.compile(model.student.backbone)
    found = settings(model, build(model))
    stem = 'downsample_layers.0.0.weight'
    assert found[f'student.backbone._orig_mod.{stem}'][0] == pytest.approx(2e-4 * 0.7**7)
    assert found[f'teacher.backbone.{stem}'][0] == pytest.approx(2e-4 * 0.7**13)
    assert found[f'body.module.{stem}'][0] == pytest.approx(2e-4 * 0.7**7)
    assert found['teacher.neck.weight'][0] == 2e-4


def test_frozen_parameters_are_left_out():
    groups = build(Detector(frozen_stages=2)).optimizer.param_groups
    assert all(param.requires_grad for group in groups for param in group['params'])


def test_custom_keys_equal_mmengine_outside_of_the_backbone():
    keys = {'neck': dict(lr_mult=0.1, decay_mult=0.5), 'neck.b': dict(lr_mult=3.0, decay_mult=0.0)}
    model = Detector()
    found = settings(model, build(model, custom_keys=keys))
    optimizer = dict(type='AdamW', lr=2e-4, weight_decay=0.05)
    theirs = build_optim_wrapper(model, dict(paramwise_cfg=dict(custom_keys=keys), optimizer=optimizer))
    reference = settings(model, theirs)
    for name in ('neck.weight', 'neck.bias'):
        assert found[name] == pytest.approx(reference[name])
    assert found['neck.bias'] == pytest.approx((6e-4, 0.0))


def test_an_optimizer_may_have_no_weight_decay():
    model = Detector()
    found = settings(model, build(model, optimizer=dict(type='SGD', lr=0.1)))
    assert {weight_decay for _, weight_decay in found.values()} == {0}


@pytest.fixture
def logged():
    text, logger = io.StringIO(), MMLogger.get_current_instance()
    handler = logging.StreamHandler(text)
    handler.setLevel(logging.INFO)
    logger.addHandler(handler)
    yield text
    logger.removeHandler(handler)


def test_the_table_of_the_groups_is_logged(logged):
    build(model := Detector())
    title, table = logged.getvalue().split('\n', 1)
    assert title == 'ConvNeXtLayerDecay: decay rate 0.7, base lr 0.0002, lr 1.65e-05 to 0.0002'
    head, *rows = (line.split() for line in table.splitlines())
    assert head == ['slot', 'tensors', 'parameters', 'lr', 'decay', 'first', 'parameter']
    # a checkpoint tells the groups apart by their order
    assert [(row[0], row[4]) for row in rows] == [(str(slot), decay) for slot in range(8) for decay in ('0.05', '0')]
    assert sum(int(row[2].replace(',', '')) for row in rows) == sum(param.numel() for param in model.parameters())


@pytest.mark.parametrize(
    ('name', 'rates'),
    [
        ('cascade_convnext_t_coco', 'decay rate 0.7, base lr 0.0002, lr 1.65e-05 to 0.0002'),
        ('faster_rcnn_convnext_t_coco', 'decay rate 0.95, base lr 0.0001, lr 6.98e-05 to 0.0001'),
        ('retinanet_convnext_t_coco', 'decay rate 0.95, base lr 0.0001, lr 6.98e-05 to 0.0001'),
        ('rtmdet_convnext_t_coco', 'decay rate 0.8, base lr 0.001, lr 0.00021 to 0.001'),
        ('rtmdet_convnext_b_in22k_coco', 'decay rate 0.8, base lr 0.001, lr 5.5e-05 to 0.001'),
    ],
)
def test_table_of_a_config(name, rates):
    assert describe_rates(name).startswith(f'ConvNeXtLayerDecay: {rates}\n')


@pytest.mark.parametrize(
    'name', ['dino_convnext_t_coco', 'det/mask2former_convnext_t_coco', 'seg/mask2former_convnext_t_ade20k']
)
def test_configs_without_decay_have_no_table(name):
    with pytest.raises(UserError, match=r'constructor must be ConvNeXtLayerDecay or .* to show its rates; .* has None'):
        describe_rates(name)


@pytest.mark.parametrize(
    ('settings', 'named'),
    [
        (dict(decay_rate=None), ('decay_rate', '(0, 1]', 'None')),
        (dict(decay_rate=1.5), ('decay_rate', '(0, 1]', '1.5')),
        (dict(decay_type='layer_wise'), ('paramwise_cfg', 'decay_type', 'decay_rate, num_layers, custom_keys')),
        (dict(num_layers=6), ('num_layers=6', '(3, 3, 27, 3)', '12')),
        (dict(custom_keys={'neck': dict(lr_multi=0.1)}), ("custom_keys['neck']", 'lr_multi', 'lr_mult, decay_mult')),
        (dict(custom_keys={'backbone': dict(lr_mult=0.1)}), ("'backbone'", 'decay_rate')),
        (dict(optimizer=dict(type='AdamW')), ('lr', 'AdamW')),
    ],
)
def test_bad_settings_are_answered(settings, named):
    with pytest.raises(ValueError) as error:
        build(Detector(DEEP), **settings)
    assert all(word in str(error.value) for word in named)


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
