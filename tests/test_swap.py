"""The backbone of a library's or a user's config is exchanged by rule, or the user is told why that is impossible."""

import gc
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS
from torch import nn

from convnext_dense import UserError, cli, configs, ladder
from convnext_dense.configs import config_folder, dotted, find_config, load_config
from convnext_dense.swap import exchange, fit, proof, read, recipe, swap_backbone, write_swap
from convnext_dense.swap.read import Map, backbone_maps, stages_for

ROOT = Path(__file__).parent.parent
RETINANET = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
DEEPLAB = 'deeplabv3plus/deeplabv3plus_r50-d8_4xb4-80k_ade20k-512x512.py'
R50 = (256, 512, 1024, 2048)
ATTO = (40, 80, 160, 320)

RETINANET_WITH_ATTO = '''"""retinanet_r50_fpn_1x_coco with ConvNeXt-atto.

Drop path and learning rates follow det/cascade_convnext_t_coco.py.
"""

# the import comes first: it lets MMEngine find the configs of packages without pkg_resources
_base_ = __import__('convnext_dense') and 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='ConvNeXt',
        arch='atto',
        drop_path_rate=0.4,
        init_cfg=dict(type='Pretrained', checkpoint='timm://convnext_atto.d2_in1k'),
        out_indices=(1, 2, 3)
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
custom_imports = dict(imports=['convnext_dense'], allow_failed_imports=False)
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
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        return file

    return write


@pytest.fixture
def out(tmp_path):
    return tmp_path / 'written.py'


def maps_of(stages=(None,) * 4, widths=R50):
    return [Map(width, 4 * 2**i, stage) for i, (width, stage) in enumerate(zip(widths, stages, strict=True))]


# backbone, weights and recipe


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
    assert recipe.find_recipe(*asked).filename == str(config_folder() / leaf)


@pytest.mark.parametrize(
    ('asked', 'source'),
    [
        (('tiny', False, False), 'convnext://tiny_1k'),
        (('large', True, False), 'convnext://large_22k'),
        (('huge', False, True), 'convnext://v2_huge_1k'),
        (('base', True, True), 'convnext://v2_base_22k_1k'),
        (('huge', True, True), 'convnext://v2_huge_22k_1k_384'),
        (('atto', False, False), 'timm://convnext_atto.d2_in1k'),
        (('xlarge', False, False), 'No ImageNet-1k weights of ConvNeXt xlarge .* Try --in22k, .*--weights'),
        (('pico', True, True), 'No ImageNet-22k weights of ConvNeXt V2 pico .* Leave --in22k out, .*--weights'),
        (('atto', True, False), 'No ImageNet-22k weights of ConvNeXt atto .* Leave --in22k out'),
        (('small', False, True), 'No ImageNet-1k weights of ConvNeXt V2 small .* Try --in22k'),
    ],
)
def test_initial_weights_that_were_published_or_not(asked, source):
    if '://' in source:
        assert recipe.find_weights(*asked) == source
    else:
        with pytest.raises(UserError, match=source):
            recipe.find_weights(*asked)


# the steps of the ladder


@pytest.mark.parametrize(
    ('config', 'step', 'channels'),
    [
        (RETINANET, 'patchify_stem', {'neck': [512, 1024, 2048]}),
        (DEEPLAB, 'inverted_bottleneck', {'decode_head': 768, 'auxiliary_head': 384}),
    ],
)
def test_a_step_of_the_ladder_trains_and_predicts(config, step, channels, out):
    write_swap(config, f'ladder:{step}', out=out)
    cfg = load_config(out)
    backbone = cfg.model.backbone
    assert (backbone.type, backbone.step, backbone.get('init_cfg')) == ('ModernizedResNet', step, None)
    assert {part: cfg.model[part].in_channels for part in channels} == channels
    assert cfg.sync_bn == 'torch'


@pytest.mark.parametrize(
    ('step', 'weights', 'settings'),
    [
        ('resnet', None, dict(init_cfg='torchvision://resnet50', norm_eval=True)),
        ('convnext', None, dict(init_cfg='convnext://tiny_1k', layer_scale_init_value=1.0)),
        ('convnext', 'convnext://tiny_22k', dict(init_cfg='convnext://tiny_22k', layer_scale_init_value=1.0)),
        ('gelu', 'convnext://tiny_1k', dict(init_cfg='convnext://tiny_1k')),
        ('resnet', '', {}),
        ('convnext', '', {}),
        *((step, None, {}) for step in ladder.steps()[1:-1]),
    ],
)
def test_a_step_has_weights_with_what_they_need_and_the_recipe_of_the_tiny_convnext(step, weights, settings):
    if 'init_cfg' in settings:
        settings = dict(settings, init_cfg=dict(type='Pretrained', checkpoint=settings['init_cfg']))
    for scope in ('mmdet', 'mmseg'):
        backbone, found = recipe.find_backbone(scope, f'ladder:{step}', False, False, weights)
        assert backbone == dict(type='ModernizedResNet', step=step, drop_path_rate=0.4, **settings)
        assert found.optim_wrapper.optimizer.lr == 1e-4


# the text


def test_the_notes_on_a_segmentor():
    notes = swap_backbone(DEEPLAB, 'b', in22k=True).notes
    assert notes[0] == 'backbone: ResNetV1c -> ConvNeXt, maps at strides 4, 16, 32'
    assert 'model.decode_head.c1_in_channels: 256 -> 128' in notes
    assert 'model.pretrained: open-mmlab://resnet50_v1c -> None' in notes
    assert any(note.startswith('the old backbone was dilated: its last map had stride 8, now 32') for note in notes)
    assert notes[-1] == 'optimizer: SGD, lr 0.01 -> AdamW, lr 0.0001, ConvNeXtStageDecay 0.9'


@pytest.mark.parametrize(
    'config',
    [
        'libra_rcnn/libra-faster-rcnn_r50_fpn_1x_coco.py',  # a list of necks
        'mmseg::ocrnet/ocrnet_hr18_4xb4-80k_ade20k-512x512.py',  # a list of heads, and one of schedules
        'yolox/yolox_tiny_8xb8-300e_coco.py',  # a list of hooks, other pixel values
        'mmseg::knet/knet-s3_r50-d8_upernet_8xb2-adamw-80k_ade20k-512x512.py',  # a head in a head
    ],
)
def test_the_written_config_says_what_was_to_change(config, users):
    swap = swap_backbone(config, 'atto', weights='')
    written = load_config(users(swap.text()))
    expected = configs.apply(read.read_config(find_config(config)), swap.changes)
    assert {key: without_scope(value) for key, value in written.items()} == {**expected}


def without_scope(node):
    """Leave out what MMEngine notes where a config inherits that of a library."""
    if isinstance(node, dict):
        return {key: without_scope(child) for key, child in node.items() if key != '_scope_'}
    return type(node)(map(without_scope, node)) if isinstance(node, (list, tuple)) else node


def test_values_are_written_as_a_config_has_them():
    value = {'type': 'A', 'sizes': (1,), 'nested': [{'a-b': None, 'b': 1.5}, "it's"], 'is_on': True}
    text = configs.text.source(value)
    assert text == "dict(type='A', sizes=(1,), nested=[{'a-b': None, 'b': 1.5}, \"it's\"], is_on=True)"
    assert eval(text) == value


# neck and heads

LAST_THREE = dict(in_channels=[*R50[1:]], in_index=(1, 2, -1))


@pytest.mark.parametrize(
    ('model', 'stages', 'changed'),
    [
        (
            dict(neck=dict(type='FPN', in_channels=[*R50], start_level=1, end_level=2)),
            (None, 1, 2, 3),
            {'neck.in_channels': [80, 160, 320], 'neck.start_level': 0, 'neck.end_level': 1},
        ),
        (
            dict(neck=[dict(type='FPN', in_channels=R50), dict(type='BFP', in_channels=256)]),
            (0, 1, 2, 3),
            {'neck.0.in_channels': ATTO},
        ),
        (
            dict(decode_head=[dict(type='EncHead', add_lateral=True, **LAST_THREE)]),
            (None, 1, 2, 3),
            {'decode_head.0.in_channels': [80, 160, 320], 'decode_head.0.in_index': [0, 1, 2]},
        ),
    ],
)
def test_what_takes_the_maps_is_fitted(model, stages, changed):
    """The rules for single types are tried with the configs of swap_configs.csv."""
    owner = ConfigDict(type='Model', backbone=dict(type='ResNet'), **model)
    assert fit.match_maps(owner, maps_of()) == maps_of(stages)
    changes = fit.fit_takers(owner, ('model',), maps_of(stages), ATTO)
    assert {dotted(path[1:]): value for path, value in changes.items()} == changed


def test_maps_of_equal_channels_are_told_apart_by_their_order():
    assert fit.fit_channels([64] * 4, maps_of((0, 1, 2, 3), widths=[64] * 4), ATTO, 'neck') == [*ATTO]


@pytest.mark.parametrize('given', [[256, 512, 999], 999, 256])
def test_channels_that_no_map_has_are_refused(given):
    with pytest.raises(UserError, match=rf'neck is {re.escape(str(given))}, .* maps of 256, 512, 1024, 2048 channels'):
        fit.fit_channels(given, maps_of((None, 1, 2, 3)), ATTO, 'neck')


@pytest.mark.parametrize(
    ('preprocessor', 'changed'),
    [
        (fit.NORMALIZATION, []),
        (dict(type='DetDataPreprocessor', pad_size_divisor=32), ['mean', 'std', 'bgr_to_rgb']),  # YOLOX
        (dict(fit.NORMALIZATION, std=[1.0, 1.0, 1.0]), ['std']),
    ],
)
@pytest.mark.parametrize('place', ['', 'model.', 'model.detector.', 'model.data_preprocessor.'])
def test_images_are_normalized_as_the_weights_expect(preprocessor, changed, place):
    cfg = Config(dict(model=dict(detector=dict(backbone={}))))
    cfg.merge_from_dict({f'{place}data_preprocessor': preprocessor})
    changes = {dotted(path): value for path, value in fit.fit_normalization(cfg).items()}
    assert changes == {f'{place}data_preprocessor.{key}': fit.NORMALIZATION[key] for key in changed}


# the old backbone


@pytest.mark.parametrize(
    ('backbone', 'maps'),
    [
        (dict(type='mmpretrain.ConvNeXt', arch='small', out_indices=[1, -1]), [(192, 8), (768, 32)]),  # not installed
        (dict(type='mmpretrain.ConvNeXt'), [(768, 32)]),
        (dict(type='ConvNeXt', arch='atto', out_indices=(0, 2)), [(40, 4), (160, 16)]),
    ],
)
def test_the_maps_of_a_backbone(backbone, maps):
    assert backbone_maps(backbone) == [Map(*each) for each in maps]


@pytest.mark.parametrize(
    ('maps', 'stages'),
    [
        ([(256, 4), (512, 8), (1024, 16), (2048, 32)], (0, 1, 2, 3)),
        ([(512, 8), (1024, 8), (2048, 8)], (1, 2, 3)),  # dilated
        ([(768, 16)] * 4, None),  # ViT
        ([(1024, 16), (512, 8), (256, 4)], None),  # U-Net
        ([(16, 2), (32, 4)], None),
        ([(64, 4), (128, 8), (256, 16), (512, 32), (512, 32)], None),
    ],
)
def test_stages_take_the_place_of_maps_of_a_pyramid(maps, stages):
    maps = [Map(*each) for each in maps]
    if stages:
        assert stages_for(maps, 'Net') == stages
    else:
        with pytest.raises(UserError, match='^Net gives maps of .* at strides .* have the strides 4, 8, 16, 32'):
            stages_for(maps, 'Net')


# the run


def fit_optimizer(auto_scale_lr=None, **wrapper):
    cfg = Config(dict(optim_wrapper=wrapper, **(dict(auto_scale_lr=auto_scale_lr) if auto_scale_lr else {})))
    model = ConfigDict(type='ToyWrapper')
    return recipe.fit_optimizer(cfg, recipe.find_recipe('mmdet', 'base', True, False), model, ('model', 'detector'))


def test_an_sgd_is_replaced_and_its_batch_size_with_it():
    sgd = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.02, momentum=0.9), clip_grad=None)
    assert fit_optimizer(**sgd) == {
        ('auto_scale_lr',): dict(enable=False, base_batch_size=16),
        ('optim_wrapper',): dict(
            _delete_=True,
            type='OptimWrapper',
            constructor='ConvNeXtLayerDecay',
            paramwise_cfg=dict(decay_rate=0.8),
            optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
        ),
    }
    changes = fit_optimizer(**sgd, auto_scale_lr=dict(enable=True, base_batch_size=64))
    assert changes['auto_scale_lr',] == dict(_delete_=True, enable=True, base_batch_size=16)


def test_an_adamw_keeps_its_rate_and_the_wrapper_what_it_does():
    kept = dict(clip_grad=dict(max_norm=0.1), accumulative_counts=2, loss_scale='dynamic')
    optimizer = dict(type='AdamW', lr=3e-5, weight_decay=1e-4, eps=1e-8, betas=(0.9, 0.99))
    changes = fit_optimizer(type='AmpOptimWrapper', optimizer=optimizer, constructor='Other', **kept)
    assert changes.keys() == {('optim_wrapper',)}
    assert changes['optim_wrapper',].items() >= dict(type='AmpOptimWrapper', optimizer=optimizer, **kept).items()


def test_factors_of_single_parameters_are_kept_but_for_the_backbone(monkeypatch):
    def build():
        parts = dict(backbone=nn.LayerNorm(2), backbones=nn.LayerNorm(2), query_embed=nn.Embedding(1, 2))
        return nn.ModuleDict(dict(detector=nn.ModuleDict(parts)))

    monkeypatch.setitem(MODELS.module_dict, 'ToyWrapper', build)
    query = dict(lr_mult=0.5, decay_mult=0.0)
    keys = {
        'backbone.': dict(lr_mult=0.1, decay_mult=1.0),
        'absolute_pos_embed': dict(decay_mult=0.0),
        'query_embed': dict(query, bias_lr_mult=2.0),
        'backbones.weight': dict(decay_mult=0.0),
    }
    old = dict(optimizer=dict(type='AdamW', lr=1e-4), paramwise_cfg=dict(custom_keys=keys, norm_decay_mult=0.0))
    kept = {'query_embed': query, 'backbones.weight': dict(decay_mult=0.0)}
    assert fit_optimizer(**old)['optim_wrapper',]['paramwise_cfg'] == {'decay_rate': 0.8, 'custom_keys': kept}
    old['paramwise_cfg']['custom_keys'] = {'backbone.': dict(lr_mult=0.1)}
    assert fit_optimizer(**old)['optim_wrapper',]['paramwise_cfg'] == {'decay_rate': 0.8}


@pytest.mark.parametrize(
    ('schedule', 'fitted'),
    [
        (None, None),
        ([dict(type='LinearLR', start_factor=0.1), dict(type='MultiStepLR', milestones=[8])], None),
        ([dict(type='PolyLR', eta_min=0)], None),
        ([dict(type='CosineAnnealingMomentum', eta_min=0.8)], None),
        (dict(type='PolyLR', eta_min=1e-4), dict(_delete_=True, type='PolyLR', eta_min=0.0)),
        (
            [dict(type='LinearLR', start_factor=0.1), dict(type='CosineAnnealingLR', T_max=9, eta_min=0.0002)],
            [dict(type='LinearLR', start_factor=0.1), dict(type='CosineAnnealingLR', T_max=9, eta_min_ratio=0.05)],
        ),
        ([dict(type='PolyLR', eta_min=1e-4)] * 2, [dict(type='PolyLR', eta_min=0.0)] * 2),
    ],
)
def test_the_lowest_rate_is_a_share_of_the_highest(schedule, fitted):
    cfg = Config(dict(param_scheduler=schedule, optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.004))))
    assert recipe.fit_schedules(cfg) == ({('param_scheduler',): fitted} if fitted else {})


@pytest.mark.parametrize(
    ('given', 'is_installed', 'imports'),
    [
        (None, False, []),
        ('my_module', False, ['my_module']),
        (['my_module', 'convnext_dense'], False, ['my_module']),
        (['mmpretrain.models', 'my_module'], False, ['my_module']),  # of the old backbone
        (['mmpretrain.models'], True, ['mmpretrain.models']),
    ],
)
def test_imports(given, is_installed, imports, monkeypatch):
    monkeypatch.setattr(recipe, 'find_spec', lambda name: 'found' if is_installed else None)
    cfg = Config(dict(custom_imports=dict(imports=given, allow_failed_imports=True)) if given else {})
    changed = recipe.fit_run(cfg, {}, 'mmpretrain.ConvNeXt')['custom_imports',]
    assert changed == dict(imports=['convnext_dense', *imports], allow_failed_imports=False)


def test_hooks_and_checkpoints():
    ours, other = dict(type='CheckWeightsHook'), dict(type='EMAHook')
    for old, new in (([], [ours]), ([other], [other, ours]), ([ours, other], None)):
        assert recipe.fit_run(Config(dict(custom_hooks=old)), {}, 'ResNet').get(('custom_hooks',)) == new
    changes = recipe.fit_run(Config(dict(load_from='resnet.pth')), {}, 'ResNet')
    assert changes['load_from',] is None


# users' own configs


def test_a_users_config_is_inherited_by_its_path_from_the_new_ones_folder(users, tmp_path, capsys):
    file, out = users(USERS, 'mine/users.py'), tmp_path / 'others/new/written.py'
    write_swap(file, 'atto', weights='', out=out, proof=False)
    assert 'note: load_from: of_another_backbone.pth -> None\n' in capsys.readouterr().err
    assert "_base_ = __import__('convnext_dense') and '../../mine/users.py'\n" in out.read_text()
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

    monkeypatch.setattr(exchange.os.path, 'relpath', relpath)
    assert exchange.relative_path('/a/b.py', '/c') == '/a/b.py'


def test_a_config_with_our_backbone_changes_its_size(out):
    write_swap('det/cascade_convnext_t_coco', 's', out=out, proof=False)
    cfg, leaf = load_config(out), load_config('det/cascade_convnext_s_coco')
    del leaf.model.backbone.layer_scale_init_value  # the checkpoint has the values
    for key in ('model', 'optim_wrapper', 'custom_hooks'):
        assert without_scope(cfg[key]) == leaf[key]


def test_a_config_for_tests_alone(users, out):
    text = USERS + 'train_dataloader = train_cfg = optim_wrapper = param_scheduler = None'
    write_swap(users(text), 'atto', weights='', out=out)
    assert load_config(out).optim_wrapper is None


WRAPPER = """
_base_ = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'
detector = _base_.model
detector.init_cfg = dict(type='Pretrained', checkpoint='old.pth')
detector.data_preprocessor.bgr_to_rgb = False
model = dict(
    _delete_=True,
    type='SemiBaseDetector',
    detector=detector,
    data_preprocessor=dict(type='MultiBranchDataPreprocessor', data_preprocessor=detector.data_preprocessor),
)
"""


def test_a_detector_in_a_wrapper(users, out):
    """The wrapper's data preprocessor is the one that runs."""
    write_swap(users(WRAPPER), 'atto', weights='', out=out, proof=False)
    model = load_config(out).model
    assert model.detector.init_cfg is None
    assert model.detector.neck.in_channels == [80, 160, 320]
    assert model.data_preprocessor.data_preprocessor.bgr_to_rgb
    assert model.detector.data_preprocessor.bgr_to_rgb


def test_the_config_of_a_teacher_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = load_config('mmdet::ld/ld_r18-gflv1-r101_fpn_1x_coco.py')
    (teacher,) = fit.find_teacher(cfg).values()
    assert Config.fromfile(teacher).model.type == 'GFL'
    # as in a clone of MMDetection
    upstreams = tmp_path / cfg.model.teacher_config
    upstreams.parent.mkdir(parents=True)
    upstreams.touch()
    assert fit.find_teacher(cfg) == {}


OWN_CODE = """
from mmengine.registry import MODELS
from torch import nn

@MODELS.register_module()
class OwnBackbone(nn.Module):
    def forward(self, x):
        return [x[:, :1, ::stride, ::stride].repeat(1, stride, 1, 1) for stride in (8, 16, 32)]
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


def test_a_backbone_of_the_users_own(users, out, tmp_path, monkeypatch):
    users(OWN_CODE, 'own_backbone_of_a_user.py')
    monkeypatch.syspath_prepend(tmp_path)
    write_swap(users(OWN), 'atto', weights='', out=out)
    cfg = load_config(out)
    assert cfg.model.neck.in_channels == [80, 160, 320]
    assert cfg.custom_imports.imports == ['convnext_dense', 'own_backbone_of_a_user']


# mistakes


def refused(*arguments, **options) -> str:
    with pytest.raises(UserError) as error:
        write_swap(*arguments, **{'weights': '', **options})
    return str(error.value)


NOTHING = 'does not exist. Did you mean faster_rcnn/faster-rcnn_r50'


@pytest.mark.parametrize(
    ('config', 'options', 'pieces'),
    [
        (RETINANET, dict(arch='giant'), ("--arch 'giant'", 'atto, femto', 't (tiny)', 'ladder:STEP')),
        (RETINANET, dict(arch='ladder:depth'), ('ladder:depth', *ladder.steps())),
        (RETINANET, dict(arch='ladder:gelu', v2=True), ('ladder:gelu', '--v2')),
        (RETINANET, dict(arch='ladder:gelu', in22k=True), ('ladder:gelu', '--in22k')),
        *((RETINANET, dict(weights=name), (name,)) for name in ('nowhere/w.pth', 'ftp://a/b')),
        (RETINANET, dict(weights='convnext://tiny'), ("'tiny'", 'tiny_1k')),
        *((name, {}, (name, NOTHING)) for name in ('faster_rcnn/faster_rcnn_r50.py', 'mmdet::faster_rcnn/faster-r50')),
        *((name, {}, (name, 'does not exist')) for name in ('mmpretrain::convnext/a.py', '::a.py', 'a.b::c')),
        *((name, {}, ('is a folder',)) for name in ('', 'configs')),
    ],
)
def test_names_of_nothing(config, options, pieces, out, monkeypatch):
    monkeypatch.chdir(ROOT)
    message = refused(config, out=out, **options)
    assert all(piece in message for piece in pieces)
    assert not out.exists()


DET = "default_scope = 'mmdet'\n"
NO_TASK = 'users.py is not a config of a detector or a segmentor: it needs a model, and default_scope mmdet or mmseg.'
PURE_PYTHON = 'from mmengine.config import read_base\nwith read_base():\n    from .users2 import *\n'


@pytest.mark.filterwarnings('ignore::ResourceWarning')  # MMEngine leaves a file open
@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('model = dict(', "users.py cannot be read: SyntaxError: '(' was never closed"),
        ("_base_ = 'no.py'", 'users.py cannot be read: FileNotFoundError: '),
        (PURE_PYTHON, 'users.py is a config of the pure Python style'),
        (
            USERS + "custom_imports = dict(imports=['module_of_a_user'])",
            'imports module_of_a_user, which fails: RuntimeE',
        ),
        (DET, NO_TASK),
        ("model = dict(type='FCOS', backbone=dict(type='ResNet'))", NO_TASK),
        (
            DET + "model = dict(type='Two', a=dict(backbone=dict(type='A')), b=[dict(backbone=dict(type='B'))])",
            'Two has several backbones, in model.a, model.b.0.',
        ),
        (
            DET + "model = dict(type='FCOS', backbone=dict(type='ResNet', depth=7), neck=dict(type='FPN'))",
            "The backbone ResNet does not run, so the maps that neck and heads expect are unknown: KeyError: 'invalid",
        ),
    ],
)
def test_a_config_whose_backbone_cannot_be_exchanged(text, message, users, out, monkeypatch):
    monkeypatch.syspath_prepend(out.parent)
    users("raise RuntimeError('no luck')", 'module_of_a_user.py')
    users("default_scope = 'mmdet'\nmodel = dict(type='FCOS')", 'users2.py')
    assert message in refused(users(text), out=out)
    assert not out.exists()
    gc.collect()


@pytest.mark.parametrize(
    ('name', 'message'),
    [('users.py', 'exists already'), ('written', 'ends in .py'), ('users.py/deep/written.py', 'cannot be written')],
)
def test_a_name_that_no_new_config_may_have(name, message, users, tmp_path):
    refusal = refused(users(USERS), 'atto', out=tmp_path / name, proof=False)
    assert str(tmp_path / name) in refusal
    assert message in refusal
    assert (tmp_path / 'users.py').read_text() == USERS


INFINITE = "['loss_bbox'] = dict(type='L1Loss', loss_weight=float('inf'))"


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        (
            f"{USERS}model['bbox_head']['type'] = 'NoHead'",
            "RetinaNet cannot be built with this backbone: KeyError: 'NoHead",
        ),
        (f"{USERS}model['bbox_head']{INFINITE}", 'The loss of RetinaNet on drawn images is inf.'),
        # its two heads compare maps that are of one size where the backbone is dilated
        (
            "_base_ = 'mmseg::ocrnet/ocrnet_r101-d8_8xb2-40k_cityscapes-512x1024.py'",
            'CascadeEncoderDecoder does not run with this backbone on drawn images: RuntimeError: ',
        ),
    ],
)
def test_nothing_is_written_where_the_proof_fails(text, message, users, tmp_path):
    out = tmp_path / 'new/written.py'
    refusal = refused(users(text), 'atto', out=out)
    assert message in refusal
    assert ('--no-proof' in refusal) == ('does not run' in message)
    assert not out.parent.exists()


def test_a_parameter_without_a_gradient_is_told_and_allowed(out, capsys):
    """The FPN of NAS-FCOS is given four maps and looks at three, at places of its own."""
    write_swap('nas_fcos/nas-fcos_r50-caffe_fpn_nashead-gn-head_4xb4-1x_coco.py', 'atto', weights='', out=out)
    assert load_config(out).find_unused_parameters
    told = 'no gradient reaches backbone.norm0.weight, backbone.norm0.bias, hence find_unused_p'
    assert told in capsys.readouterr().err


def test_the_tool_prints_the_config_and_answers_a_mistake_with_one_message(capsys):
    """The FPN looks at three of four maps; the others' norms would wait for gradients."""
    cli.main('swap', [RETINANET, '--arch', 'atto', '--no-proof'])
    printed = capsys.readouterr()
    assert printed.out == RETINANET_WITH_ATTO
    assert 'note: model.neck.in_channels: [256, 512, 1024, 2048] -> [80, 160, 320]\n' in printed.err
    with pytest.raises(SystemExit, match='2'):
        cli.main('swap', [RETINANET, '--arch', 'huge'])
    printed = capsys.readouterr()
    assert printed.out == ''
    assert printed.err.startswith('error: No ImageNet-1k weights of ConvNeXt huge were published.')
    assert printed.err.count('\n') == 1


def test_a_gradient_that_is_not_finite(users, monkeypatch):
    def build(cfg, device):
        model = build_model(cfg, device)
        model.backbone.norm2.weight.register_hook(lambda gradient: gradient * math.nan)
        return model

    build_model = proof.build_model
    monkeypatch.setattr(proof, 'build_model', build)
    assert 'gradient of backbone.norm2.weight on drawn images is not finite' in refused(users(USERS), 'atto')


# under the libraries' own tools

METHODS = {  # one is inherited by a config of the user's own
    'mmdet': 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py',
    'mmseg': 'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py',
}
DRAWN = {'mmdet': 'det/cascade_convnext_atto_shapes', 'mmseg': 'seg/upernet_convnext_atto_shapes'}
SHORT = {
    'mmdet': """
model = dict(bbox_head=dict(num_classes=5), test_cfg=dict(score_thr=0.0))
val_evaluator['metric'] = test_evaluator['metric'] = 'bbox'
train_cfg = dict(max_epochs=1)
""",
    'mmseg': """
model = dict(data_preprocessor=dict(size=(96, 96)), decode_head=dict(num_classes=8))
train_cfg = dict(max_iters=2, val_interval=2)
""",
}


def drawn_config(package):
    """Return the text of a config that trains what it inherits on a few drawn images."""
    cfg = load_config(DRAWN[package])
    cfg.train_dataloader.batch_size = 2
    for split in ('train', 'val', 'test'):
        cfg[f'{split}_dataloader'].dataset.update(size=64, num_train=4, num_val=2)
    keys = [key for key in cfg if key.endswith(('_dataloader', '_evaluator'))]
    values = ''.join(f'{key} = dict({cfg[key].to_dict()!r}, _delete_=True)\n' for key in keys)
    return f"_base_ = 'written.py'\n{values}{SHORT[package]}default_hooks = dict(logger=dict(interval=1))\n"


def run_in(folder, *command):
    run = subprocess.run([sys.executable, *map(str, command)], cwd=folder, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    return run.stdout + run.stderr


@pytest.mark.slow
@pytest.mark.parametrize('tools', ['theirs', 'ours'])
@pytest.mark.parametrize('package', METHODS)
def test_tools_train_and_test_it(package, tools, users, tmp_path):
    """Those of the libraries do not import this package; docs/swap.md has a line for MMDetection's test."""
    config = users(f'_base_ = {METHODS[package]!r}', 'mine/own.py') if package == 'mmdet' else METHODS[package]
    write_swap(config, 'atto', weights='', out=tmp_path / 'written.py', proof=False)
    users(drawn_config(package), 'run.py')
    folder = ROOT / 'tools' if tools == 'ours' else config_folder(package).parent / 'tools'
    run_in(tmp_path, folder / 'train.py', 'run.py')
    scalars = next(tmp_path.glob('work_dirs/run/*/vis_data/scalars.json')).read_text()
    steps = [json.loads(line) for line in scalars.splitlines()]
    losses = [step['loss'] for step in steps if 'loss' in step]
    assert len(losses) == 2
    assert all(map(math.isfinite, losses))
    metric = {'mmdet': 'coco/bbox_mAP', 'mmseg': 'mIoU'}[package]
    assert metric in steps[-1]
    if tools == 'theirs':
        line = re.search(r'python -c "(.+)" \\\n', (ROOT / 'docs/swap.md').read_text())[1]
        before = ['-c', line] if package == 'mmdet' else []
        checkpoint = next(tmp_path.glob('work_dirs/run/*.pth'))
        assert metric in run_in(tmp_path, *before, folder / 'test.py', 'run.py', checkpoint)
