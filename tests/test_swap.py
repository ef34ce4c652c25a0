"""The backbone of a library's or a user's config is exchanged by rule, or the user is told why that is impossible."""

import gc
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config, ConfigDict

from convnext_dense import UserError
from convnext_dense.configs import config_folder, load_config
from convnext_dense.swap import exchange, fit, proof, prove, read, recipe, swap_backbone, write, write_swap
from convnext_dense.swap.changes import apply
from convnext_dense.swap.fit import Pair
from convnext_dense.swap.read import Map, backbone_maps, stages_for

ROOT = Path(__file__).parent.parent
RETINANET = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
R50 = (256, 512, 1024, 2048)
ATTO = (40, 80, 160, 320)

RETINANET_WITH_ATTO = '''"""retinanet_r50_fpn_1x_coco with ConvNeXt-atto.

Data, schedule, neck and heads are those of mmdet::retinanet/retinanet_r50_fpn_1x_coco.py.
Drop path and learning rates follow det/cascade_convnext_t_coco.py, the nearest size with a recipe.
"""

# the import comes first: it lets MMEngine find the configs of packages without pkg_resources
_base_ = __import__('convnext_dense') and 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
custom_imports = dict(imports=['convnext_dense'], allow_failed_imports=False)
model = dict(
    backbone=dict(
        _delete_=True,
        type='ConvNeXt',
        arch='atto',
        out_indices=(1, 2, 3),
        drop_path_rate=0.4,
        init_cfg=dict(type='Pretrained', checkpoint='timm://convnext_atto.d2_in1k')
    ),
    neck=dict(in_channels=[80, 160, 320], start_level=0)
)
auto_scale_lr = dict(_delete_=True, enable=False, base_batch_size=16)
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    constructor='ConvNeXtLayerDecay',
    paramwise_cfg=dict(decay_rate=0.7),
    optimizer=dict(type='AdamW', lr=0.0002, betas=(0.9, 0.999), weight_decay=0.05)
)
custom_hooks = [dict(type='CheckWeightsHook')]
'''

USERS = """
_base_ = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'
num_classes = 3
model = dict(bbox_head=dict(num_classes=num_classes))
load_from = 'of_another_backbone.pth'
"""


@pytest.fixture
def users(tmp_path):
    """A user's config: `users('text')` writes it and returns the file."""

    def write(text, name='users.py'):
        file = tmp_path / name
        file.write_text(text)
        return file

    return write


def pairs(stages, widths=R50):
    return [
        Pair(Map(width, 4 * 2**place), stage) for place, (width, stage) in enumerate(zip(widths, stages, strict=True))
    ]


# the recipes


@pytest.mark.parametrize(
    ('asked', 'leaf'),
    [
        (('mmdet', 'nano', False, False), 'det/cascade_convnext_t_coco.py'),
        (('mmdet', 'base', False, False), 'det/cascade_convnext_b_coco.py'),
        (('mmdet', 'base', True, False), 'det/cascade_convnext_b_in22k_coco.py'),
        (('mmdet', 'large', False, False), 'det/cascade_convnext_l_in22k_coco.py'),
        (('mmdet', 'small', True, True), 'det/cascade_convnextv2_t_coco.py'),
        (('mmseg', 'huge', False, False), 'seg/upernet_convnext_xl_in22k_ade20k.py'),
        (('mmseg', 'huge', True, True), 'seg/upernet_convnextv2_h_in22k_ade20k.py'),
    ],
)
def test_a_size_has_its_own_recipe_or_that_of_the_nearest(asked, leaf):
    found, cfg = recipe.find_recipe(*asked), load_config(ROOT / 'configs' / leaf)
    assert found.leaf == leaf
    assert found.drop_path_rate == cfg.model.backbone.drop_path_rate
    assert found.optim_wrapper == cfg.optim_wrapper
    assert found.batch_size == 16


@pytest.mark.parametrize('v2', [False, True])
@pytest.mark.parametrize('arch', ['atto', 'tiny', 'small', 'base', 'large', 'xlarge', 'huge'])
def test_every_size_has_a_recipe_in_both_libraries(arch, v2):
    for scope, kind in (('mmdet', 'ConvNeXtLayerDecay'), ('mmseg', 'ConvNeXtStageDecay')):
        assert recipe.find_recipe(scope, arch, False, v2).optim_wrapper.constructor == kind


@pytest.mark.parametrize(
    ('asked', 'source'),
    [
        (('tiny', False, False), 'convnext://tiny_1k'),
        (('large', True, False), 'convnext://large_22k'),
        (('huge', False, True), 'convnext://v2_huge_1k'),
        (('base', True, True), 'convnext://v2_base_22k_1k'),
        (('huge', True, True), 'convnext://v2_huge_22k_1k_384'),
        (('atto', False, False), 'timm://convnext_atto.d2_in1k'),
    ],
)
def test_initial_weights(asked, source):
    assert recipe.find_weights(*asked) == source


@pytest.mark.parametrize(
    ('asked', 'pieces'),
    [
        (('xlarge', False, False), ('ImageNet-1k', 'ConvNeXt xlarge', 'Try --in22k')),
        (('pico', True, True), ('ImageNet-22k', 'ConvNeXt V2 pico', 'Leave --in22k out')),
        (('atto', True, False), ('ImageNet-22k', 'ConvNeXt atto', 'Leave --in22k out')),
        (('small', False, True), ('ImageNet-1k', 'ConvNeXt V2 small', '--weights')),
    ],
)
def test_initial_weights_that_were_not_published(asked, pieces):
    with pytest.raises(UserError) as error:
        recipe.find_weights(*asked)
    assert all(piece in str(error.value) for piece in (*pieces, '--weights'))


# the text


def test_the_text_of_a_detector():
    """The FPN looks at three of four maps; the others' norms would wait for gradients."""
    assert swap_backbone(RETINANET, 'atto').text() == RETINANET_WITH_ATTO


def test_the_notes_on_a_segmentor():
    swap = swap_backbone('deeplabv3plus/deeplabv3plus_r50-d8_4xb4-80k_ade20k-512x512.py', 'b', in22k=True)
    assert swap.notes == [
        'backbone: ResNetV1c -> ConvNeXt, maps at strides 4, 16, 32',
        'model.decode_head.in_channels: 2048 -> 1024',
        'model.decode_head.c1_in_channels: 256 -> 128',
        'model.auxiliary_head.in_channels: 1024 -> 512',
        'the old backbone was dilated: its last map had stride 8, now 32; heads without a pyramid (UPerNet has one) '
        'see coarser maps',
        'optimizer: SGD, lr 0.01 -> AdamW, lr 0.0001, ConvNeXtStageDecay 0.9',
    ]


@pytest.mark.parametrize(
    'config',
    [
        'libra_rcnn/libra-faster-rcnn_r50_fpn_1x_coco.py',  # a list of necks
        'mmseg::ocrnet/ocrnet_hr18_4xb4-80k_ade20k-512x512.py',  # a list of heads, and one of schedules
        'yolox/yolox_tiny_8xb8-300e_coco.py',  # a list of hooks, other pixel values
        'mmseg::knet/knet-s3_r50-d8_upernet_8xb2-adamw-80k_ade20k-512x512.py',  # a head in a head
    ],
)
def test_the_written_config_says_what_was_to_change(config, tmp_path):
    swap = swap_backbone(config, 'atto', weights='')
    file = tmp_path / 'written.py'
    file.write_text(swap.text(tmp_path))
    written, expected = load_config(file), apply(read.read_config(read.find_config(config)[1]), swap.changes)
    added = {path[0] for path in swap.changes}
    assert {*written} - {*expected} <= {'neck', 'decode_head', 'param_scheduler'}
    assert added <= {*written}
    for key in expected:
        assert without_scope(written[key]) == without_scope(expected[key]), key


def without_scope(node):
    """Leave out what MMEngine notes where a config quotes its base."""
    if isinstance(node, dict):
        return {key: without_scope(child) for key, child in node.items() if key != '_scope_'}
    return type(node)(map(without_scope, node)) if isinstance(node, (list, tuple)) else node


def test_values_are_written_as_a_config_has_them():
    value = {'type': 'A', 'sizes': (1,), 'nested': [{'a-b': None, 'lambda': 1.5}, "it's"], 'is_on': True}
    text = write.source(value)
    assert text == "dict(type='A', sizes=(1,), nested=[{'a-b': None, 'lambda': 1.5}, \"it's\"], is_on=True)"
    assert eval(text) == value


# neck and heads


@pytest.mark.parametrize(
    ('model', 'stages', 'changed'),
    [
        (
            dict(neck=dict(type='FPN', in_channels=[*R50], start_level=1, end_level=2)),
            (None, 1, 2, 3),
            {'neck.in_channels': [80, 160, 320], 'neck.start_level': 0, 'neck.end_level': 1},
        ),
        (
            dict(neck=dict(type='NASFCOS_FPN', in_channels=[*R50], start_level=1)),
            (0, 1, 2, 3),
            {'neck.in_channels': [*ATTO]},
        ),
        (
            dict(neck=[dict(type='FPN', in_channels=R50), dict(type='BFP', in_channels=256)]),
            (0, 1, 2, 3),
            {'neck.0.in_channels': ATTO},
        ),
        (dict(neck=dict(type='DilatedEncoder', in_channels=2048)), (None, None, None, 3), {'neck.in_channels': 320}),
        (
            dict(neck=dict(type='YOLOV3Neck', in_channels=[*R50[::-1]])),
            (0, 1, 2, 3),
            {'neck.in_channels': [*ATTO[::-1]]},
        ),
        (
            dict(neck=dict(type='JPU', in_channels=R50), auxiliary_head=dict(in_channels=1024, in_index=2)),
            (0, 1, 2, 3),
            {'neck.in_channels': ATTO, 'auxiliary_head.in_channels': 160},
        ),
        (
            dict(
                decode_head=dict(in_channels=2048, in_index=3, c1_in_channels=256),
                auxiliary_head=dict(in_channels=1024, in_index=-2),
            ),
            (0, None, 2, 3),
            {
                'decode_head.in_channels': 320,
                'decode_head.c1_in_channels': 40,
                'decode_head.in_index': 2,
                'auxiliary_head.in_channels': 160,
                'auxiliary_head.in_index': 1,
            },
        ),
        (
            dict(decode_head=[dict(in_channels=[*R50[1:]], in_index=(1, 2, 3)) for _ in range(2)]),
            (None, 1, 2, 3),
            {
                'decode_head.0.in_channels': [80, 160, 320],
                'decode_head.0.in_index': [0, 1, 2],
                'decode_head.1.in_channels': [80, 160, 320],
                'decode_head.1.in_index': [0, 1, 2],
            },
        ),
        (
            dict(
                decode_head=dict(type='EncHead', in_channels=[*R50[1:]], in_index=(1, 2, 3)),
                auxiliary_head=dict(in_channels=1024, in_index=2),
            ),
            (None, None, 2, 3),
            {
                'decode_head.in_channels': [160, 320],
                'decode_head.in_index': [0, 1],
                'auxiliary_head.in_channels': 160,
                'auxiliary_head.in_index': 0,
            },
        ),
        (
            dict(decode_head=dict(type='EncHead', add_lateral=True, in_channels=[*R50[1:]], in_index=(1, 2, 3))),
            (None, 1, 2, 3),
            {'decode_head.in_channels': [80, 160, 320], 'decode_head.in_index': [0, 1, 2]},
        ),
        (
            dict(decode_head=dict(type='mmseg.IterativeDecodeHead', kernel_generate_head=dict(in_channels=[*R50]))),
            (0, 1, 2, 3),
            {'decode_head.kernel_generate_head.in_channels': [*ATTO]},
        ),
        (
            dict(
                neck=dict(type='SSDNeck', in_channels=(256, 512, 1024, 2048), out_channels=(256, 512, 1024, 2048, 64)),
                bbox_head=dict(in_channels=(256, 512, 1024, 2048, 64)),
            ),
            (0, 1, 2, 3),
            {
                'neck.in_channels': ATTO,
                'neck.out_channels': (*ATTO, 64),
                'bbox_head.in_channels': (*ATTO, 64),
            },
        ),
    ],
)  # fmt: skip
def test_what_takes_the_maps_is_fitted(model, stages, changed):
    owner = ConfigDict(type='Model', backbone=dict(type='ResNet'), **model)
    maps = [Map(width, 4 * 2**place) for place, width in enumerate(R50)]
    assert fit.pair_maps(owner, maps) == pairs(stages)
    changes = fit.fit_takers(owner, ('model',), pairs(stages), ATTO)
    assert {'.'.join(map(str, path[1:])): value for path, value in changes.items()} == changed


def test_maps_of_equal_channels_are_told_apart_by_their_order():
    owner = ConfigDict(type='Model', backbone=dict(type='Net'), neck=dict(type='FPN', in_channels=[64, 64, 64, 64]))
    changes = fit.fit_takers(owner, ('model',), pairs((0, 1, 2, 3), widths=[64] * 4), ATTO)
    assert changes == {('model', 'neck', 'in_channels'): [*ATTO]}


def test_channels_that_no_map_has_are_refused():
    owner = ConfigDict(type='Model', backbone=dict(type='ResNet'), neck=dict(type='FPN', in_channels=[256, 512, 999]))
    with pytest.raises(UserError, match=r'model.neck.in_channels has 999 .* gives maps of 256, 512, 1024, 2048'):
        fit.fit_takers(owner, ('model',), pairs((0, 1, 2, 3)), ATTO)


@pytest.mark.parametrize(
    ('preprocessor', 'changed'),
    [
        (dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True), []),
        (dict(type='DetDataPreprocessor', pad_size_divisor=32), ['mean', 'std', 'bgr_to_rgb']),  # YOLOX
        (dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], bgr_to_rgb=False), ['mean', 'std', 'bgr_to_rgb']),
        (dict(mean=[123.675, 116.28, 103.53], std=[1.0, 1.0, 1.0], bgr_to_rgb=True), ['std']),
    ],
)
@pytest.mark.parametrize('place', [(), ('model',), ('model', 'detector'), ('model', 'data_preprocessor')])
def test_images_are_normalized_as_the_weights_expect(preprocessor, changed, place):
    cfg = ConfigDict(model=dict(detector=dict(backbone={})))
    if place == ('model', 'data_preprocessor'):
        cfg.model.data_preprocessor = dict(type='MultiBranchDataPreprocessor')
    owner = cfg
    for key in place:
        owner = owner[key]
    owner.data_preprocessor = preprocessor
    changes = fit.fit_normalization(cfg, ('model', 'detector'))
    assert [path[-1] for path in changes] == changed
    assert all(path[:-1] == (*place, 'data_preprocessor') for path in changes)
    assert all(value == fit.NORMALIZATION[path[-1]] for path, value in changes.items())


# the old backbone


def test_the_maps_of_a_backbone_that_is_not_installed():
    assert backbone_maps(dict(type='mmpretrain.ConvNeXt', arch='small', out_indices=[1, -1])) == [(192, 8), (768, 32)]
    assert backbone_maps(dict(type='mmpretrain.ConvNeXt')) == [(768, 32)]


def test_the_maps_of_our_own():
    assert backbone_maps(dict(type='ConvNeXt', arch='atto', out_indices=(0, 2))) == [(40, 4), (160, 16)]


@pytest.mark.parametrize(
    ('maps', 'stages'),
    [
        ([(256, 4), (512, 8), (1024, 16), (2048, 32)], (0, 1, 2, 3)),
        ([(2048, 32)], (3,)),
        ([(512, 8), (1024, 8), (2048, 8)], (1, 2, 3)),  # dilated
        ([(256, 4), (512, 8), (1024, 16), (2048, 16)], (0, 1, 2, 3)),
    ],
)
def test_stages_that_take_the_place_of_maps(maps, stages):
    assert stages_for([Map(*each) for each in maps], 'Net') == stages


@pytest.mark.parametrize(
    'maps',
    [
        [(768, 16)] * 4,  # ViT
        [(1024, 16), (512, 8), (256, 4)],  # U-Net
        [(16, 2), (32, 4)],
        [(256, 8), (512, 16), (1024, 32), (2048, 64)],
        [(64, 4), (128, 8), (256, 16), (512, 32), (512, 32)],
    ],
)
def test_maps_without_a_pyramid_are_refused(maps):
    with pytest.raises(
        UserError, match=r"^Net gives maps of .* at strides .*; ConvNeXt's maps have the strides 4, 8, 16, 32"
    ):
        stages_for([Map(*each) for each in maps], 'Net')


# the run


def fit_optimizer(names=(), auto_scale_lr=None, **wrapper):
    cfg = Config(dict(optim_wrapper=wrapper, **(dict(auto_scale_lr=auto_scale_lr) if auto_scale_lr else {})))
    return recipe.fit_optimizer(cfg, recipe.find_recipe('mmdet', 'base', True, False), lambda: names)


def test_an_sgd_is_replaced_and_its_batch_size_with_it():
    changes = fit_optimizer(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.02, momentum=0.9), clip_grad=None)
    assert changes == {
        ('auto_scale_lr',): dict(enable=False, base_batch_size=16),
        ('optim_wrapper',): dict(
            _delete_=True,
            type='OptimWrapper',
            constructor='ConvNeXtLayerDecay',
            paramwise_cfg=dict(decay_rate=0.8),
            optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
        ),
    }


def test_a_users_wish_to_scale_the_rate_stays():
    scaling = dict(enable=True, base_batch_size=64)
    changes = fit_optimizer(optimizer=dict(type='SGD', lr=0.02), auto_scale_lr=scaling)
    assert changes['auto_scale_lr',] == dict(_delete_=True, enable=True, base_batch_size=16)


def test_an_adamw_keeps_its_rate_and_the_wrapper_what_it_does():
    kept = dict(clip_grad=dict(max_norm=0.1), accumulative_counts=2, loss_scale='dynamic')
    optimizer = dict(type='AdamW', lr=3e-5, weight_decay=1e-4, eps=1e-8, betas=(0.9, 0.99))
    changes = fit_optimizer(type='AmpOptimWrapper', optimizer=optimizer, constructor='Other', **kept)
    assert ('auto_scale_lr',) not in changes
    wrapper = changes['optim_wrapper',]
    assert wrapper['type'] == 'AmpOptimWrapper'
    assert wrapper['optimizer'] == optimizer
    assert {key: wrapper[key] for key in kept} == kept


def test_factors_of_single_parameters_are_kept_but_for_the_backbone():
    keys = {
        'backbone': dict(lr_mult=0.1, decay_mult=1.0),
        'absolute_pos_embed': dict(decay_mult=0.0),
        'query_embed': dict(lr_mult=0.5, decay_mult=0.0, bias_lr_mult=2.0),
        'norm': dict(decay_mult=0.0),
    }
    names = ['transformer.query_embed.weight', 'neck.convs.0.norm.weight']
    optimizer = dict(type='AdamW', lr=1e-4)
    changes = fit_optimizer(names, optimizer=optimizer, paramwise_cfg=dict(custom_keys=keys, norm_decay_mult=0.0))
    assert changes['optim_wrapper',]['paramwise_cfg'] == {
        'decay_rate': 0.8,
        'custom_keys': {'query_embed': dict(lr_mult=0.5, decay_mult=0.0), 'norm': dict(decay_mult=0.0)},
    }
    changes = fit_optimizer([], optimizer=optimizer, paramwise_cfg=dict(custom_keys=keys))
    assert changes['optim_wrapper',]['paramwise_cfg'] == {'decay_rate': 0.8}


def test_a_model_is_built_for_its_names_only_where_they_matter():
    wrapper = dict(optimizer=dict(type='SGD', lr=0.1), paramwise_cfg=dict(norm_decay_mult=0.0))
    recipe.fit_optimizer(Config(dict(optim_wrapper=wrapper)), recipe.find_recipe('mmdet', 'tiny', False, False), None)


def test_the_names_outside_of_the_backbone():
    cfg = ConfigDict(type='ToyWrapper')
    from mmengine.registry import MODELS
    from torch import nn

    def build():
        return nn.ModuleDict(dict(detector=nn.ModuleDict(dict(backbone=nn.Linear(1, 1), backbones=nn.Linear(1, 1)))))

    MODELS.register_module('ToyWrapper', module=build)
    try:
        names = exchange.names_outside(cfg, ('model', 'detector'))
    finally:
        del MODELS.module_dict['ToyWrapper']
    assert names == ['detector.backbones.weight', 'detector.backbones.bias']


def test_a_config_without_an_optimizer_has_none_afterwards():
    assert recipe.fit_optimizer(Config({}), recipe.find_recipe('mmdet', 'tiny', False, False), None) == {}


@pytest.mark.parametrize(
    ('schedule', 'changed'),
    [
        (None, {}),
        ([], {}),
        ([dict(type='LinearLR', start_factor=0.1), dict(type='MultiStepLR', milestones=[8])], {}),
        ([dict(type='PolyLR', eta_min=0)], {}),
        ([dict(type='CosineAnnealingMomentum', eta_min=0.8)], {}),
        (dict(type='PolyLR', eta_min=1e-4), {(): dict(_delete_=True, type='PolyLR', eta_min=0.0)}),
        (
            [dict(type='LinearLR', start_factor=0.1), dict(type='CosineAnnealingLR', T_max=9, eta_min=0.0002)],
            {(1,): dict(type='CosineAnnealingLR', T_max=9, eta_min_ratio=0.05)},
        ),
        ([dict(type='PolyLR', eta_min=1e-4)] * 2, {(place,): dict(type='PolyLR', eta_min=0.0) for place in (0, 1)}),
    ],
)  # fmt: skip
def test_the_lowest_rate_is_a_share_of_the_highest(schedule, changed):
    cfg = Config(dict(param_scheduler=schedule, optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.004))))
    assert recipe.fit_schedules(cfg) == {('param_scheduler', *path): value for path, value in changed.items()}


@pytest.mark.parametrize(
    ('given', 'imports'),
    [
        (None, ['convnext_dense']),
        ('my_module', ['convnext_dense', 'my_module']),
        (['my_module', 'convnext_dense'], ['convnext_dense', 'my_module']),
        (['mmpretrain.models', 'my_module'], ['convnext_dense', 'my_module']),
    ],
)
def test_imports(given, imports, monkeypatch):
    monkeypatch.setattr(recipe, 'find_spec', lambda name: None)
    cfg = Config(dict(custom_imports=dict(imports=given, allow_failed_imports=True)) if given else {})
    changed = {('custom_imports',): dict(imports=imports, allow_failed_imports=False)}
    assert recipe.fit_imports(cfg, 'mmpretrain.ConvNeXt') == changed


def test_imports_of_the_old_backbone_that_are_there_stay(monkeypatch):
    monkeypatch.setattr(recipe, 'find_spec', lambda name: 'found')
    changes = recipe.fit_imports(Config(dict(custom_imports=dict(imports='mmpretrain.models'))), 'mmpretrain.Net')
    assert changes['custom_imports',]['imports'] == ['convnext_dense', 'mmpretrain.models']


def test_hooks_and_checkpoints():
    ours, other = dict(type='CheckWeightsHook'), dict(type='EMAHook')
    assert recipe.fit_checkpoints(Config({})) == {('custom_hooks',): [ours]}
    assert recipe.fit_checkpoints(Config(dict(custom_hooks=[other]))) == {('custom_hooks',): [other, ours]}
    assert recipe.fit_checkpoints(Config(dict(custom_hooks=[ours, other]))) == {}
    changes = recipe.fit_checkpoints(Config(dict(custom_hooks=[ours], load_from='resnet.pth')))
    assert changes == {('load_from',): None}


# users' own configs


def test_a_users_config_is_inherited_by_its_path_from_the_new_ones_folder(users, tmp_path):
    (tmp_path / 'mine').mkdir()
    file = users(USERS, 'mine/users.py')
    swap = swap_backbone(file, 'atto', weights='')
    assert "_base_ = __import__('convnext_dense') and '../mine/users.py'\n" in swap.text(tmp_path / 'others')
    assert 'users with ConvNeXt-atto.' in swap.text(tmp_path)
    assert 'load_from: of_another_backbone.pth holds another backbone, and is not loaded' in swap.notes
    out = tmp_path / 'others/new/written.py'
    write_swap(file, 'atto', weights='', out=out, proof=False)
    cfg = load_config(out)
    assert cfg.model.bbox_head.num_classes == 3
    assert cfg.model.backbone == dict(type='ConvNeXt', arch='atto', out_indices=(1, 2, 3), drop_path_rate=0.4)
    assert cfg.load_from is None


def test_a_folder_behind_a_link_is_resolved(users, tmp_path):
    (tmp_path / 'a/b').mkdir(parents=True)
    (tmp_path / 'link').symlink_to(tmp_path / 'a/b')
    write_swap(users(USERS), 'atto', weights='', out=tmp_path / 'link/written.py', proof=False)
    assert load_config(tmp_path / 'link/written.py').model.backbone.type == 'ConvNeXt'


def test_paths_on_two_drives(monkeypatch):
    def relpath(file, folder):
        raise ValueError('path is on mount C:, start on mount D:')

    monkeypatch.setattr(write.os.path, 'relpath', relpath)
    assert write.relative_path('/a/b.py', '/c') == '/a/b.py'


def test_a_config_with_our_backbone_changes_its_size(tmp_path):
    out = tmp_path / 'written.py'
    write_swap(ROOT / 'configs/det/cascade_convnext_t_coco.py', 's', out=out, proof=False)
    cfg = load_config(out)
    leaf = load_config(ROOT / 'configs/det/cascade_convnext_s_coco.py')
    del leaf.model.backbone.layer_scale_init_value  # the checkpoint has the values
    assert cfg.model == leaf.model
    assert cfg.optim_wrapper == leaf.optim_wrapper
    assert cfg.custom_hooks == leaf.custom_hooks


def test_a_config_for_tests_alone(users, tmp_path):
    nothing = '\n'.join(
        f'{key} = None' for key in ('train_dataloader', 'train_cfg', 'optim_wrapper', 'param_scheduler')
    )
    write_swap(users(USERS + nothing), 'atto', weights='', out=tmp_path / 'written.py')
    assert load_config(tmp_path / 'written.py').optim_wrapper is None


@pytest.mark.parametrize(
    ('schedule', 'expected'),
    [(None, None), (dict(type='PolyLR', power=0.9, eta_min=1e-4), dict(type='PolyLR', power=0.9, eta_min=0.0))],
)
def test_one_schedule_or_none(schedule, expected, users, tmp_path):
    users(USERS)
    text = f"_base_ = 'users.py'\nparam_scheduler = {schedule and dict(schedule, _delete_=True)}\n"
    write_swap(users(text, 'one.py'), 'atto', weights='', out=tmp_path / 'written.py', proof=False)
    assert load_config(tmp_path / 'written.py').param_scheduler == expected


WRAPPER = """
_base_ = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'
detector = _base_.model
detector.init_cfg = dict(type='Pretrained', checkpoint='old.pth')
model = dict(
    _delete_=True,
    type='SemiBaseDetector',
    detector=detector,
    data_preprocessor=dict(type='MultiBranchDataPreprocessor', data_preprocessor=_base_.model.data_preprocessor),
)
"""


def test_a_detector_in_a_wrapper(users, tmp_path, capsys):
    write_swap(users(WRAPPER), 'atto', weights='', out=tmp_path / 'written.py', proof=False)
    assert 'note: model.detector.init_cfg: old.pth holds another backbone, and is not loaded' in capsys.readouterr().err
    model = load_config(tmp_path / 'written.py').model
    assert model.detector.init_cfg is None
    assert model.detector.backbone.type == 'ConvNeXt'
    assert model.detector.neck.in_channels == [80, 160, 320]
    assert model.type == 'SemiBaseDetector'


OWN_CODE = """
from mmengine.registry import MODELS
from torch import nn

@MODELS.register_module()
class OwnBackbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(3, 8, 1, stride=8), nn.Conv2d(8, 16, 1, 2), nn.Conv2d(16, 32, 1, 2)])

    def forward(self, x):
        maps = []
        for layer in self.layers:
            x = layer(x)
            maps.append(x)
        return maps
"""
OWN = """
_base_ = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'
custom_imports = dict(imports=['own_backbone_of_a_user'])
model = dict(
    backbone=dict(_delete_=True, type='OwnBackbone'),
    neck=dict(in_channels=[8, 16, 32], start_level=0),
    bbox_head=dict(num_classes=2),
)
"""


@pytest.mark.parametrize('student', ['ld_r18-gflv1-r101_fpn_1x_coco', 'ld_r101-gflv1-r101-dcn_fpn_2x_coco'])
def test_the_config_of_a_teacher_is_found_from_any_folder(student, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    teacher = swap_backbone(f'mmdet::ld/{student}.py', 'atto', weights='').changes['model', 'teacher_config']
    assert Config.fromfile(teacher).model.type == 'GFL'
    # as in a clone of MMDetection
    upstreams = load_config(read.find_config(f'ld/{student}.py')[1]).model.teacher_config
    (tmp_path / upstreams).parent.mkdir(parents=True)
    (tmp_path / upstreams).touch()
    assert ('model', 'teacher_config') not in swap_backbone(f'mmdet::ld/{student}.py', 'atto', weights='').changes


def test_a_backbone_of_the_users_own(users, tmp_path, monkeypatch):
    users(OWN_CODE, 'own_backbone_of_a_user.py')
    monkeypatch.syspath_prepend(tmp_path)
    write_swap(users(OWN), 'atto', weights='', out=tmp_path / 'written.py')
    cfg = load_config(tmp_path / 'written.py')
    assert cfg.model.neck.in_channels == [80, 160, 320]
    assert cfg.custom_imports.imports == ['convnext_dense', 'own_backbone_of_a_user']


# mistakes


def refused(*arguments, **options) -> str:
    with pytest.raises(UserError) as error:
        write_swap(*arguments, **{'weights': '', **options})
    return str(error.value)


def test_initial_weights_that_are_not_there(tmp_path):
    message = refused(RETINANET, 'atto', weights='nowhere/w.pth', out=tmp_path / 'written.py')
    assert message == 'Checkpoint nowhere/w.pth does not exist, and neither does the folder nowhere. Correct the path.'
    assert refused(RETINANET, weights='convnext://tiny').startswith("No published weights are called 'tiny'. Known: ti")
    assert refused(RETINANET, weights='ftp://a/b').startswith('Weights are not fetched from ftp://a/b. Give a path')
    assert not (tmp_path / 'written.py').exists()


def test_code_of_the_user_that_fails(users, tmp_path, monkeypatch):
    users("raise RuntimeError('no luck')", 'code_of_a_user_that_fails.py')
    monkeypatch.syspath_prepend(tmp_path)
    file = users(USERS + "custom_imports = dict(imports=['code_of_a_user_that_fails'])")
    assert refused(file) == (f'The config {file} imports code_of_a_user_that_fails, which fails: RuntimeError: no luck')


def test_a_size_that_does_not_exist():
    assert refused(RETINANET, 'giant') == (
        "--arch 'giant' is no size of ConvNeXt. Allowed: atto, femto, pico, nano, tiny, small, base, large, xlarge, "
        'huge, t (tiny), s (small), b (base), l (large), xl (xlarge), h (huge).'
    )


@pytest.mark.parametrize(
    'name', ['faster_rcnn/faster_rcnn_r50_fpn_1x_coco.py', 'mmdet::faster_rcnn/faster-rcnn_r50.py']
)
def test_a_config_that_does_not_exist(name):
    message = refused(name)
    assert message.startswith(f'There is no config {name}. Give a file, or a config that')
    assert 'Did you mean faster_rcnn/faster-rcnn_r50' in message


@pytest.mark.parametrize('name', ['mmpretrain::convnext/a.py', '::a.py', 'a.b::c', '', 'configs'])
def test_a_config_of_nobody(name):
    assert refused(name).startswith(f'There is no config {name}. Give a file, or a config that')


DET, SEG = "default_scope = 'mmdet'\n", "default_scope = 'mmseg'\n"
NO_TASK = 'users.py is not a config of a detector or a segmentor: it needs a model, and default_scope mmdet or mmseg.'
C4 = "model = dict(type='C4', backbone=dict(type='ResNet', depth=18), bbox_head=dict(in_channels=512))"
VIT = """
vit = dict(type='VisionTransformer', img_size=256, embed_dims=12, num_heads=2, num_layers=2, out_indices=(0, 1))
model = dict(type='Net', backbone=vit, decode_head=dict(in_channels=12))
"""


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('model = dict(', "users.py cannot be read: SyntaxError: '(' was never closed"),
        (DET, NO_TASK),
        (DET + "model = 'FCOS'", NO_TASK),
        ("model = dict(type='FCOS', backbone=dict(type='ResNet'))", NO_TASK),
        (DET + "model = dict(type='Net')", 'Net has no `backbone` in its config: there is nothing to exchange.'),
        (
            DET + "model = dict(type='Two', a=dict(backbone=dict(type='A')), b=[dict(backbone=dict(type='B'))])",
            'Two has several backbones, in model.a, model.b.0: exchange them by hand, as the README shows.',
        ),
        (
            DET + C4,
            'C4 has no neck, and its heads are made for the maps of ResNet. Choose a config of the same method with an '
            'FPN.',
        ),
        (
            SEG + VIT,
            "VisionTransformer gives maps of 12, 12 channels at strides 16, 16; ConvNeXt's maps have the strides 4, 8",
        ),
        (
            DET + "model = dict(type='FCOS', backbone=dict(type='ResNet', depth=7), neck=dict(type='FPN'))",
            "The backbone ResNet does not run (KeyError: 'invalid depth 7 for resnet')",
        ),
    ],
)
def test_a_config_whose_backbone_cannot_be_exchanged(text, message, users, tmp_path):
    out = tmp_path / 'written.py'
    assert message in refused(users(text), out=out)
    assert not out.exists()


@pytest.mark.filterwarnings('ignore::ResourceWarning')  # MMEngine leaves a file open
def test_a_config_whose_base_is_not_there(users):
    file = users("_base_ = 'no.py'")
    assert refused(file).startswith(f'The config {file} cannot be read: FileNotFoundError: ')
    gc.collect()


def test_a_config_of_the_pure_python_style(users):
    file = users('from mmengine.config import read_base\nwith read_base():\n    from .users2 import *\n')
    users("default_scope = 'mmdet'\nmodel = dict(type='FCOS')", 'users2.py')
    assert refused(file) == (
        f'{file} is a config of the pure Python style, which other configs cannot inherit by `_base_`. Give the text '
        'config of the same model.'
    )


def test_a_file_that_is_there_is_not_lost(users, tmp_path):
    out = tmp_path / 'written.py'
    out.write_text('precious')
    assert refused(users(USERS), out=out) == f'{out} exists already. Choose another name with -o, or remove it.'
    assert out.read_text() == 'precious'


def test_a_name_that_no_config_may_have(users, tmp_path):
    out = tmp_path / 'written'
    assert refused(users(USERS), out=out) == f'-o {out}: a config needs a name that ends in .py.'


def test_a_folder_that_cannot_be_written(users, tmp_path, monkeypatch):
    (tmp_path / 'file').touch()
    out = tmp_path / 'file/deep/written.py'
    assert refused(users(USERS), out=out) == f'{out} cannot be written (Not a directory). Choose another place with -o.'

    def deny(**_):
        raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr(write.tempfile, 'TemporaryFile', deny)
    out = tmp_path / 'written.py'
    assert (
        refused(users(USERS), out=out) == f'{out} cannot be written (Permission denied). Choose another place with -o.'
    )


def test_nothing_is_written_where_the_proof_fails(users, tmp_path):
    """The two heads of OCRNet compare maps that are of one size where the backbone is dilated."""
    out = tmp_path / 'new/written.py'
    message = refused('ocrnet/ocrnet_r101-d8_8xb2-40k_cityscapes-512x1024.py', 'atto', out=out)
    assert message.startswith('CascadeEncoderDecoder does not run with this backbone on drawn images: RuntimeError: ')
    assert '--no-proof' in message
    assert not out.parent.exists()


def test_a_model_that_cannot_be_built(users, tmp_path):
    file = users(USERS + "model['bbox_head']['type'] = 'NoSuchHead'\n")
    assert refused(file, 'atto', out=tmp_path / 'written.py').startswith(
        "RetinaNet cannot be built with this backbone: KeyError: 'NoSuchHead is not in the mmdet::model registry."
    )


def test_a_loss_that_is_not_finite(users, tmp_path):
    text = USERS + "model['bbox_head']['loss_bbox'] = dict(type='L1Loss', loss_weight=float('inf'))\n"
    assert refused(users(text), 'atto', out=tmp_path / 'written.py') == (
        'The loss of RetinaNet on drawn images is inf.'
    )


def test_a_parameter_without_a_gradient_is_told_and_allowed(tmp_path, capsys):
    """The FPN of NAS-FCOS is given four maps and looks at three, at places of its own."""
    out = tmp_path / 'written.py'
    write_swap('nas_fcos/nas-fcos_r50-caffe_fpn_nashead-gn-head_4xb4-1x_coco.py', 'atto', weights='', out=out)
    assert load_config(out).find_unused_parameters
    assert (
        'no gradient reaches backbone.norm0.weight, backbone.norm0.bias, hence find_unused_p' in capsys.readouterr().err
    )


def test_without_a_name_the_config_is_printed(capsys):
    write_swap(RETINANET, 'atto', proof=False)
    printed = capsys.readouterr()
    assert printed.out == RETINANET_WITH_ATTO
    assert printed.err == (
        'note: backbone: ResNet -> ConvNeXt, maps at strides 8, 16, 32\n'
        'note: model.neck.in_channels: [256, 512, 1024, 2048] -> [80, 160, 320]\n'
        'note: optimizer: SGD, lr 0.01 -> AdamW, lr 0.0002, ConvNeXtLayerDecay 0.7\n'
    )


# the proof


@pytest.fixture
def written(users, tmp_path):
    write_swap(users(USERS), 'atto', weights='', out=tmp_path / 'written.py', proof=False)
    return tmp_path / 'written.py'


def test_a_proof_trains_and_predicts(written, monkeypatch):
    """Without training no score would pass the threshold of the config."""
    models = []

    def build(cfg, device):
        models.append((model := build_model(cfg, device), {k: v.clone() for k, v in model.state_dict().items()}))
        return model

    build_model = proof.build_model
    monkeypatch.setattr(proof, 'build_model', build)
    proven = prove(written, 'cpu')
    assert 0 < proven.num_predictions <= proof.NUM_BOXES
    assert proven.without_gradient == ()
    ((model, before),) = models
    assert proven.num_params == sum(parameter.numel() for parameter in model.parameters())
    trained = model.backbone.named_parameters('backbone')
    assert all(not torch.equal(parameter, before[name]) for name, parameter in trained)


def test_a_gradient_that_is_not_finite(written, monkeypatch):
    def build(cfg, device):
        model = build_model(cfg, device)
        model.backbone.norm2.weight.register_hook(lambda gradient: gradient * math.nan)
        return model

    build_model = proof.build_model
    monkeypatch.setattr(proof, 'build_model', build)
    with pytest.raises(UserError, match='gradient of backbone.norm2.weight on drawn images is not finite'):
        prove(written, 'cpu')


# under the libraries' own tools

DRAWN = {
    'mmdet': """
_base_ = 'written.py'
load, annotate, pack = (
    dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True), dict(type='PackDetInputs')
)
sampler, dataset = dict(type='DefaultSampler', shuffle=False), dict(type='ShapesInstances')
model = dict(bbox_head=dict(num_classes=5), test_cfg=dict(score_thr=0.0))
val_evaluator = dict(ann_file='shapes/annotations/instances_val.json')
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=1)
""",
    'mmseg': """
_base_ = 'written.py'
load, annotate, pack = dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')
sampler, dataset = dict(type='InfiniteSampler', shuffle=False), dict(type='ShapesLabels')
model = dict(data_preprocessor=dict(size=(96, 96)), decode_head=dict(num_classes=8))
train_cfg = dict(max_iters=2, val_interval=2)
""",
}
DRAWN_LOADERS = """
dataset.update(data_root='shapes', size=64, num_train=4, num_val=2)
train_dataloader = dict(
    _delete_=True, batch_size=2, num_workers=0, sampler=sampler,
    dataset=dict(**dataset, split='train', pipeline=[load, annotate, pack]),
)
val_dataloader = dict(
    _delete_=True, batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        **dataset, split='val', test_mode=True, pipeline=[load, dict(type='Resize', scale_factor=1.0), annotate, pack]
    ),
)
test_dataloader = val_dataloader
default_hooks = dict(logger=dict(interval=1))
"""
METHODS = {
    'mmdet': "_base_ = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'",  # a config of the user's own
    'mmseg': 'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py',
}


@pytest.fixture(params=METHODS)
def drawn_run(request, tmp_path, users):
    """A config of drawn data that inherits the written one."""
    package = request.param
    config = METHODS[package]
    if '_base_' in config:
        (tmp_path / 'mine').mkdir()
        config = users(config, 'mine/own.py')
    write_swap(config, 'atto', weights='', out=tmp_path / 'written.py', proof=False)
    (tmp_path / 'run.py').write_text(DRAWN[package] + DRAWN_LOADERS)
    return package, tmp_path


def run_in(folder, tool):
    command = [sys.executable, str(tool), 'run.py']
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    scalars = next(folder.glob('work_dirs/run/*/vis_data/scalars.json')).read_text()
    steps = [json.loads(line) for line in scalars.splitlines()]
    return [step['loss'] for step in steps if 'loss' in step], steps[-1]


@pytest.mark.slow
def test_the_libraries_own_tools_train_and_test_it(drawn_run):
    """They do not import this package by themselves; docs/swap.md has a line for MMDetection's test."""
    package, folder = drawn_run
    tools = config_folder(package).parent / 'tools'
    losses, metrics = run_in(folder, tools / 'train.py')
    assert len(losses) == 2
    assert all(map(math.isfinite, losses))
    metric = {'mmdet': 'coco/bbox_mAP', 'mmseg': 'mIoU'}[package]
    assert metric in metrics

    before = re.search(r'python -c "(.+)" \\\n', (ROOT / 'docs/swap.md').read_text())[1]
    command = [sys.executable, *(['-c', before] if package == 'mmdet' else []), str(tools / 'test.py'), 'run.py']
    checkpoint = next(folder.glob('work_dirs/run/*.pth'))
    run = subprocess.run([*command, str(checkpoint)], cwd=folder, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert metric in run.stdout + run.stderr


@pytest.mark.slow
def test_our_tool_trains_with_it(drawn_run):
    _, folder = drawn_run
    losses, _ = run_in(folder, ROOT / 'tools/train.py')
    assert len(losses) == 2
    assert all(map(math.isfinite, losses))


def test_the_tool_answers_a_mistake_with_one_message(tmp_path):
    command = [sys.executable, str(ROOT / 'tools/swap_backbone.py'), RETINANET, '--arch', 'huge', '-o', 'written.py']
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert run.returncode == 2
    assert run.stderr.startswith('error: No ImageNet-1k weights of ConvNeXt huge were published.')
    assert run.stderr.count('\n') == 1
    assert list(tmp_path.iterdir()) == []
