"""Counts: equal to arithmetic over depths and widths, to built models, and to what the papers print."""

import csv
import json
import math
import runpy
import sys
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from decimal import Decimal
from pathlib import Path

import pytest
import torch
from mmcv.cnn import get_model_complexity_info
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

from convnext_dense import ConvNeXt, UserError, configs
from convnext_dense.configs import walk
from convnext_dense.data.samples import empty_sample
from convnext_dense.swap.read import library_configs
from convnext_dense.train import measurement
from convnext_dense.train import stats as model_stats
from convnext_dense.train.config_header import Header
from convnext_dense.train.model_tables import describe_models
from convnext_dense.train.stats import Counts, ModelStats, count_call, count_config, count_model, default_size
from convnext_dense.variants import VARIANTS

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / 'configs'
DRAWN = CONFIGS / 'det/cascade_convnext_atto_shapes.py'
DRAWN_SEG = CONFIGS / 'seg/upernet_convnext_atto_shapes.py'
CASCADE_T = CONFIGS / 'det/cascade_convnext_t_coco.py'
MMDET, MMSEG = map(library_configs, ('mmdet', 'mmseg'))
# millions of parameters and GFLOPs as the papers print them (arXiv 2201.03545, Tables 3 and 4), and the image
INF = float('inf')
COCO, ADE, LARGE_ADE = (1280, 800), (2048, 512), (2560, 640)
PUBLISHED = {
    'det/mask_rcnn_convnext_t_coco': (48, 262, COCO),
    'det/cascade_convnext_t_coco': (86, 741, COCO),
    'det/cascade_convnext_s_coco': (108, 827, COCO),
    'det/cascade_convnext_b_coco': (146, 964, COCO),
    'det/cascade_convnext_b_in22k_coco': (146, 964, COCO),
    'det/cascade_convnext_l_in22k_coco': (255, 1354, COCO),
    'det/cascade_convnext_xl_in22k_coco': (407, 1898, COCO),
    'det/cascade_r50_coco': (82, 739, COCO),
    'det/cascade_swin_t_coco': (86, 745, COCO),
    'det/cascade_swin_s_coco': (107, 838, COCO),
    'det/cascade_swin_b_in22k_coco': (145, 982, COCO),
    'det/mask_rcnn_swin_t_coco': (48, 267, COCO),
    'seg/upernet_convnext_t_ade20k': (60, 939, ADE),
    'seg/upernet_convnext_s_ade20k': (82, 1027, ADE),
    'seg/upernet_convnext_b_ade20k': (122, 1170, ADE),
    'seg/upernet_convnext_b_in22k_ade20k': (122, 1828, LARGE_ADE),
    'seg/upernet_convnext_l_in22k_ade20k': (235, 2458, LARGE_ADE),
    'seg/upernet_convnext_xl_in22k_ade20k': (391, 3335, LARGE_ADE),
    'seg/upernet_swin_t_ade20k': (60, 945, ADE),
    'seg/upernet_swin_s_ade20k': (81, 1038, ADE),
    'seg/upernet_swin_b_in22k_ade20k': (121, 1841, LARGE_ADE),
}


@pytest.fixture
def stats_of(leaf_stats):
    return lambda name: leaf_stats(CONFIGS / f'{name}.py')


def on_meta(make, *shape):
    with torch.device('meta'):
        return make(), torch.empty(shape)


@pytest.mark.parametrize(
    ('make', 'shape', 'macs', 'activations'),
    [
        (lambda: nn.Conv2d(3, 8, 3, stride=2, padding=1), (2, 3, 32, 64), 2 * 16 * 32 * 8 * 3 * 9, 2 * 16 * 32 * 8),
        (lambda: nn.Conv2d(8, 16, 5, groups=4), (1, 8, 12, 9), 8 * 5 * 16 * 2 * 25, 8 * 5 * 16),
        (lambda: nn.Conv2d(8, 8, 3, padding='same', groups=8), (1, 8, 6, 6), 36 * 8 * 9, 36 * 8),
        (lambda: nn.Conv1d(4, 6, 3), (1, 4, 10), 8 * 6 * 4 * 3, 8 * 6),
        (lambda: nn.ConvTranspose2d(4, 6, 2, stride=2), (1, 4, 5, 7), 5 * 7 * 4 * 6 * 4, 10 * 14 * 6),
        (lambda: nn.Linear(7, 11), (5, 7), 5 * 7 * 11, 5 * 11),
        (lambda: nn.Linear(7, 11), (2, 3, 5, 7), 30 * 7 * 11, 30 * 11),
        (lambda: nn.Linear(7, 11, bias=False), (2, 5, 7), 10 * 7 * 11, 10 * 11),
        (lambda: nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4), nn.GELU(), nn.MaxPool2d(2)), (2, 4, 6, 6), 0, 0),
    ],
)
def test_a_layer(make, shape, macs, activations):
    layer, x = on_meta(make, *shape)
    layer.eval()
    assert count_call(layer, x)[1] == Counts(0, macs, activations)


def test_a_linear_layer_on_a_view():
    layer, x = on_meta(lambda: nn.Linear(7, 11, bias=False), 2, 7, 3, 5)
    assert count_call(layer, x.permute(0, 2, 3, 1))[1] == Counts(0, 30 * 7 * 11, 30 * 11)


def test_attention_counts_matrix_products_that_are_no_activations():
    q, k = torch.empty(2, 4, 49, 8, device='meta'), torch.empty(2, 4, 8, 49, device='meta')
    assert count_call(torch.matmul, q, k)[1] == Counts(0, 2 * 4 * 49 * 49 * 8, 0)


def convnext_by_hand(arch, width, height, v2):
    """Count parameters, multiply-adds and activations by the layers of a block and the steps between stages."""
    depths, dims = VARIANTS[arch]
    params = macs = activations = 0
    for i, (depth, dim) in enumerate(zip(depths, dims, strict=True)):
        pixels = (width // (4 << i)) * (height // (4 << i))
        taps = 48 if i == 0 else 4 * dims[i - 1]  # 4x4x3 of the image, or 2x2 of the map before
        norm = 2 * dim if i == 0 else 2 * dims[i - 1]
        params += taps * dim + dim + norm
        macs += pixels * taps * dim
        activations += pixels * dim
        scale = 8 * dim if v2 else dim  # GRN's gamma and beta, or layer scale
        params += depth * ((49 * dim + dim) + 2 * dim + (4 * dim * dim + 4 * dim) + scale + (4 * dim * dim + dim))
        macs += depth * pixels * (49 * dim + 8 * dim * dim)
        activations += depth * pixels * 6 * dim
        params += 2 * dim  # the output norm
    return Counts(params, macs, activations)


@pytest.mark.parametrize('v2', [False, True])
@pytest.mark.parametrize('arch', VARIANTS)
def test_convnext_by_hand(arch, v2):
    model, x = on_meta(lambda: ConvNeXt(arch, grn=v2), 1, 3, 800, 1280)
    counts = count_call(model, x)[1] + Counts(params=model_stats.num_params(model))
    assert counts == convnext_by_hand(arch, 1280, 800, v2)


def test_neck_and_heads_of_a_cascade_by_hand(stats_of):
    maps = [(1280 // stride) * (800 // stride) for stride in (4, 8, 16, 32)]
    dims = VARIANTS['tiny'].dims
    neck_macs = sum(pixels * (dim * 256 + 256 * 256 * 9) for pixels, dim in zip(maps, dims, strict=True))
    neck_outputs = sum(2 * pixels * 256 for pixels in maps)
    rpn_pixels = sum(maps) + 20 * 13  # a fifth map of stride 64, of the fourth's every other pixel
    rpn_macs, rpn_outputs = rpn_pixels * (256 * 256 * 9 + 256 * (3 + 12)), rpn_pixels * (256 + 3 + 12)
    box_macs = 4 * 49 * 256 * 256 * 9 + 49 * 256 * 1024 + 1024 * (81 + 320)
    box_outputs = 4 * 49 * 256 + 1024 + 81 + 320
    mask_macs = 4 * 196 * 256 * 256 * 9 + 196 * 256 * 256 * 4 + 784 * 256 * 80
    mask_outputs = 4 * 196 * 256 + 784 * 256 + 784 * 80
    parts = stats_of('det/cascade_convnext_t_coco').parts
    assert (parts['neck'].macs, parts['neck'].activations) == (neck_macs, neck_outputs)
    assert parts['heads'].macs == rpn_macs + 3 * (1000 * box_macs + 100 * mask_macs)
    assert parts['heads'].activations == rpn_outputs + 3 * (1000 * box_outputs + 100 * mask_outputs)


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_figures(name, stats_of):
    params, gflops, size = PUBLISHED[name]
    stats = stats_of(name)
    assert stats.size == size
    assert round(stats.total.params / 1e6) == params
    assert stats.total.macs / 1e9 == pytest.approx(gflops, rel=0.002)
    # the header, from which the page of models is made, says the same
    assert (stats.header.params, stats.header.gflops, stats.header.size) == (params, gflops, size)
    assert abs(stats.difference) < 0.2


class AllParts(nn.Module):
    """A model with a forward that needs no image, for counters that look at modules."""

    def __init__(self, model, size):
        super().__init__()
        self.model, self.size = model, size

    def forward(self, _):
        self.parts = count_model(self.model, self.size)


def count_by_hooks(name):
    """Count with the hooks of mmcv, which made the published figures; BN stands in place of SyncBN."""
    cfg, size = Config.fromfile(CONFIGS / f'{name}.py'), PUBLISHED[name][2]
    for norm in [node for node in walk(cfg.model) if node.get('type') == 'SyncBN']:
        norm['type'] = 'BN'
    with configs.model_scope(cfg):
        whole = AllParts(model_stats.build_on_meta(cfg.model), size)
        hooked, _ = get_model_complexity_info(whole, (3, 32, 32), print_per_layer_stat=False, as_strings=False)
    backbone = cfg.model.backbone
    if backbone.type == 'ConvNeXt':  # its faster layers are no modules that hooks look at; the paper's are
        hooked -= sum(getattr(module, '__flops__', 0) for module in whole.model.backbone.modules())
        hooked += convnext_by_hand(backbone.arch, *size, v2=False).macs + convolution_biases(backbone.arch, *size)
    return hooked / 1e9


def convolution_biases(arch, width, height):
    """Count an addition for each output of a convolution: one in each block, one before each stage."""
    depths, dims = VARIANTS[arch]
    pixels = [(width // stride) * (height // stride) for stride in (4, 8, 16, 32)]
    return sum((depth + 1) * dim * n for depth, dim, n in zip(depths, dims, pixels, strict=True))


@pytest.mark.parametrize('name', [name for name in PUBLISHED if 'swin' not in name])
def test_published_figures_to_their_last_digit(name):
    """What the published counter adds to multiply-adds is all that lies between its figures and ours."""
    assert round(count_by_hooks(name)) == PUBLISHED[name][1]


def test_what_headers_promise(stats_of):
    promised = 0
    for file in model_stats.leaf_configs():
        stats = stats_of(f'{file.parent.name}/{file.stem}')
        assert stats.total == stats.parts['backbone'] + stats.parts['neck'] + stats.parts['heads']
        assert min(stats.parts['backbone'].macs, stats.parts['heads'].params) > 0
        is_counted = file.stem.split('_')[0] not in ('dino', 'mask2former')
        assert (stats.parts['heads'].macs is not None) == is_counted == (not stats.uncounted), file
        assert not is_counted or stats.parts['heads'].macs > 0
        if stats.header.params is not None:
            digits = Decimal(stats.total.params) / 10**6
            assert digits.quantize(stats.header.params) == stats.header.params, file
        if stats.header.gflops is not None:
            assert abs(stats.difference) < 1, file
            promised += 1
    assert promised >= len(PUBLISHED)


def test_the_largest_model_takes_no_memory():
    cfg = Config.fromfile(CONFIGS / 'det/cascade_convnext_xl_in22k_coco.py')
    with configs.model_scope(cfg):
        model = model_stats.build_on_meta(cfg.model)
    tensors = [*model.parameters(), *model.buffers()]
    assert sum(tensor.numel() for tensor in tensors) > 400e6
    assert all(tensor.is_meta for tensor in tensors)


@pytest.mark.parametrize('file', [DRAWN, DRAWN_SEG])
def test_parameters_of_a_built_model(file):
    cfg = Config.fromfile(file)
    with configs.model_scope(cfg):
        model = MODELS.build(cfg.model)
    stats = count_config(file)
    assert all(parameter.is_cpu for parameter in model.parameters())
    assert stats.total.params == sum(parameter.numel() for parameter in model.parameters())
    assert stats.parts['backbone'].params == sum(parameter.numel() for parameter in model.backbone.parameters())


def test_an_auxiliary_head_has_parameters_but_does_not_run():
    cfg = Config.fromfile(DRAWN_SEG)
    auxiliary = cfg.model.auxiliary_head
    with configs.model_scope(cfg):
        whole, _ = count_model(model_stats.build_on_meta(cfg.model), (128, 128))
        cfg.model.auxiliary_head = None
        without, _ = count_model(model_stats.build_on_meta(cfg.model), (128, 128))
    assert auxiliary is not None
    assert whole['heads'].params > without['heads'].params
    assert (whole['heads'].macs, whole['heads'].activations) == (without['heads'].macs, without['heads'].activations)


# RTMDet: MMDetection's README; YOLOX: half the paper's, which counts a multiply-add twice; RetinaNet: MMDetection's
# documentation of get_flops.py
@pytest.mark.parametrize(
    ('config', 'params', 'gflops', 'size'),
    [
        ('rtmdet/rtmdet_s_8xb32-300e_coco.py', 8.89, 14.8, (640, 640)),
        ('yolox/yolox_s_8xb8-300e_coco.py', 9.0, 13.4, (640, 640)),
        ('retinanet/retinanet_r50_fpn_1x_coco.py', 37.74, 239.32, (1280, 800)),
    ],
)
def test_single_stage_detectors(config, params, gflops, size):
    stats = count_config(MMDET / config)
    assert stats.size == size
    assert stats.header is None
    assert stats.total.params / 1e6 == pytest.approx(params, rel=0.01)
    assert stats.total.macs / 1e9 == pytest.approx(gflops, rel=0.01)


def test_flops_follow_the_number_of_rois_that_the_config_allows(tmp_path, stats_of):
    few = tmp_path / 'few.py'
    few.write_text(f"_base_ = ['{CASCADE_T}']\nmodel = dict(test_cfg=dict(rpn=dict(max_per_img=300)))\n")
    box_macs = 4 * 49 * 256 * 256 * 9 + 49 * 256 * 1024 + 1024 * (81 + 320)
    whole = stats_of('det/cascade_convnext_t_coco').total.macs
    assert whole - count_config(few).total.macs == 3 * 700 * box_macs


def test_heads_follow_the_classes_of_the_data(tmp_path, stats_of, capsys):
    """What is counted and measured is what trains."""
    own = tmp_path / 'own.py'
    names = tuple('abcdefghijklmnopqrst')
    dataset = dict(metainfo=dict(classes=names))
    own.write_text(f"_base_ = ['{CASCADE_T}']\ntrain_dataloader = dict(dataset={dataset})\n")
    stats, whole = count_config(own), stats_of('det/cascade_convnext_t_coco')
    assert capsys.readouterr().err == 'note: 4 heads set to 20 classes (a, b, c, d, e, ...)\n'
    fewer_boxes, fewer_masks = 60 * 1025 + 240 * 1025, 60 * 257  # of 80 classes
    assert whole.total.params - stats.total.params == 3 * (fewer_boxes + fewer_masks)
    assert whole.total.macs - stats.total.macs == 3 * (1000 * 300 * 1024 + 100 * 784 * 60 * 256)


def test_measuring_runs_heads_that_follow_the_classes(tmp_path, monkeypatch):
    dataset = dict(metainfo=dict(classes=('one', 'two', 'three')))
    (tmp_path / 'own.py').write_text(f"_base_ = ['{DRAWN_SEG}']\ntrain_dataloader = dict(dataset={dataset})\n")
    built = []
    monkeypatch.setattr(measurement, 'build', lambda cfg: built.append(cfg) or model_stats.build(cfg))
    measurement.measure_test(tmp_path / 'own.py', (64, 64))
    assert built[0].decode_head.num_classes == 3


USERS_WORDS = '"""Mine.\n\nExpected: something better than before.\n"""\n'


def test_a_users_docstring_is_no_header(tmp_path, stats_of):
    (tmp_path / 'own.py').write_text(f"{USERS_WORDS}_base_ = ['{CASCADE_T}']\n")
    stats = count_config(tmp_path / 'own.py')
    assert stats.header is None
    assert stats.total == stats_of('det/cascade_convnext_t_coco').total
    header = '"""Mine.\n\nCommand: run\nExpected: box AP 50.4; 86 M parameters.\n"""\n'
    (tmp_path / 'own.py').write_text(f"{header}_base_ = ['{CASCADE_T}']\n")
    assert count_config(tmp_path / 'own.py').header.params == 86


def test_a_wrong_header_of_our_own_is_a_mistake(tmp_path, monkeypatch):
    monkeypatch.setattr(model_stats, 'CONFIGS', tmp_path)
    (tmp_path / 'det').mkdir()
    (tmp_path / 'det/leaf.py').write_text(f"{USERS_WORDS}_base_ = ['{CASCADE_T}']\n")
    with pytest.raises(UserError, match=r'leaf.py, line 1: the header has no "Command:"'):
        count_config(tmp_path / 'det/leaf.py')


@pytest.mark.parametrize(
    ('test_dataloader', 'scope', 'header', 'size'),
    [
        ({}, 'mmdet', None, (1280, 800)),
        ({}, 'mmseg', None, (2048, 512)),
        (dict(pipeline=[dict(type='Resize', scale=(1333, 800))]), 'mmdet', None, (1280, 800)),
        (dict(pipeline=[dict(type='Resize', scale=(2560, 640))]), 'mmseg', None, (2560, 640)),
        (dict(pipeline=[dict(type='Resize', scale=(500, 300))]), 'mmdet', None, (512, 320)),
        (dict(pipeline=[dict(type='Resize', scale=(800, 1333))]), 'mmdet', None, (1280, 800)),
        (dict(pipeline=[dict(type='Resize', scale=(300, 500), keep_ratio=True)]), 'mmdet', None, (512, 320)),
        (dict(pipeline=[dict(type='Resize', scale=(300, 500))]), 'mmdet', None, (320, 512)),
        (dict(pipeline=[dict(type='Resize', scale=640)]), 'mmdet', None, (640, 640)),
        (dict(pipeline=[dict(type='Resize', scale=(800, INF), keep_ratio=True)]), 'mmdet', None, (1280, 800)),
        (dict(pipeline=[dict(type='Resize', scale=(INF, 640), keep_ratio=True)]), 'mmseg', None, (2560, 640)),
        (dict(pipeline=[dict(type='Resize', scale=(INF, INF), keep_ratio=True)]), 'mmseg', None, (2048, 512)),
        (dict(pipeline=[dict(type='Resize', scale_factor=1.0)]), 'mmdet', None, (1280, 800)),
        (dict(type='ShapesInstances', size=112), 'mmdet', None, (128, 128)),
        (dict(pipeline=[dict(type='Resize', scale=(1333, 800))]), 'mmdet', (1024, 1024), (1024, 1024)),
    ],
)
def test_default_size(test_dataloader, scope, header, size):
    cfg = Config(dict(test_dataloader=dict(dataset=test_dataloader), default_scope=scope))
    assert default_size(cfg, header and Header('title', 'command', size=header)) == size


def test_published_counts_at_another_size_are_not_compared(stats_of):
    stats = count_config(CASCADE_T, (640, 384))
    assert (stats.published_gflops, stats.difference) == (None, None)
    assert stats.total.macs < stats_of('det/cascade_convnext_t_coco').total.macs
    assert stats.total.params == stats_of('det/cascade_convnext_t_coco').total.params


@pytest.fixture
def tiny_config(tmp_path):
    """A config of an inline model, as a user may write one."""

    def write(model, scope='mmdet'):
        (tmp_path / 'tiny.py').write_text(f'default_scope = {scope!r}\nmodel = {model!r}\n')
        return tmp_path / 'tiny.py'

    return write


@pytest.mark.parametrize(
    ('model', 'message'),
    [
        ({}, 'has no model: there is nothing to count.'),
        (dict(type='NoSuchDetector'), 'The config cannot be built: NoSuchDetector is not in the'),
        (dict(type='DetTTAModel', module=dict(type='RetinaNet')), 'The config cannot be built'),
        (dict(type='FPN', in_channels=[8], out_channels=8, num_outs=1), 'FPN has no backbone: only detectors and'),
    ],
)
def test_models_that_are_none(tiny_config, model, message):
    with pytest.raises(UserError) as error:
        count_config(tiny_config(model))
    assert message in str(error.value)


# parameters: the papers', arXiv 2011.12450 (106 M with 300 proposals), 2203.03605 (47 M), 2112.01527 (44 M)
@pytest.mark.parametrize(
    ('config', 'params', 'reason'),
    [
        (
            'sparse_rcnn/sparse-rcnn_r50_fpn_300-proposals_crop-ms-480-800-3x_coco.py',
            106,
            'of the heads of SparseRCNN only the parameters are counted: two-stage detectors are counted with '
            'StandardRoIHead or CascadeRoIHead; got SparseRoIHead.',
        ),
        (
            'dino/dino-4scale_r50_8xb2-12e_coco.py',
            47,
            'of the heads of DINO only the parameters are counted: DINO does not run without values (',
        ),
        (
            'mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',
            44,
            'of the heads of Mask2Former only the parameters are counted: panoptic_head.pixel_decoder.encoder.layers.',
        ),
    ],
)
def test_heads_that_cannot_be_counted(config, params, reason, capsys):
    text = describe_models([MMDET / config])[0]
    assert capsys.readouterr().err.startswith(f'note: {MMDET / config}: {reason}')
    backbone, _, heads, total = (line.split() for line in text.splitlines()[1:])
    assert backbone[2:4] == ['backbone', '23.51']
    assert float(backbone[4]) == pytest.approx(4.09 * 1280 * 800 / 224**2, rel=0.002)  # ResNet-50 has 4.09 at 224x224
    assert heads[0] == 'heads'
    assert len(heads) == len(total) == 2
    assert float(total[1]) == pytest.approx(params, abs=1)


def test_sums_with_what_is_not_counted():
    assert Counts(1, None, None) + Counts(2, 3, 4) == Counts(3, None, None)
    header = Header('title', 'run', gflops=Decimal(1), size=(64, 32))
    stats = ModelStats(Path('a.py'), header.size, {'heads': Counts(1, None)}, header)
    assert (stats.published_gflops, stats.difference) == (1, None)


@pytest.mark.parametrize(
    ('config', 'place'),
    [
        (MMDET / 'condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py', 'heads of CondInst'),
        (MMSEG / 'point_rend/pointrend_r50_4xb2-80k_cityscapes-512x1024.py', 'heads of CascadeEncoderDecoder'),
        (MMDET / 'carafe/faster-rcnn_r50_fpn-carafe_1x_coco.py', 'neck and heads of FasterRCNN'),
    ],
)
def test_what_fails_without_values_has_its_parameters(config, place):
    stats = count_config(config, (512, 256))
    assert place in stats.uncounted
    assert ' does not run without values (' in stats.uncounted
    assert (stats.parts['neck'].macs is None) == place.startswith('neck')
    assert stats.parts['heads'].macs is None
    with configs.model_scope(stats.cfg):
        model = model_stats.build(stats.cfg.model)
    assert stats.total.params == sum(parameter.numel() for parameter in model.parameters())


def test_the_failing_module_is_the_innermost_one_at_work():
    """Neither the last one that was entered nor a layer without a name."""

    class Head(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)

        def forward(self, x):
            self.layer(x)
            raise KeyError('metainfo')

    model = torch.nn.Sequential(torch.nn.Sequential(Head()))
    with pytest.raises(UserError) as error, model_stats.explained_failures(model):
        model(torch.ones(1, 1))
    assert str(error.value) == "Sequential does not run: 0.0 ends with KeyError: 'metainfo'"
    with pytest.raises(UserError) as error, model_stats.explained_failures(model):
        raise ValueError('x')
    assert str(error.value) == 'Sequential does not run: Sequential ends with ValueError: x'


@pytest.mark.parametrize('work', [count_config, lambda file: measurement.measure_test(file, (64, 64))])
def test_channels_that_do_not_fit_are_a_mistake_and_are_found(work, tmp_path):
    file = tmp_path / 'own.py'
    file.write_text(f"_base_ = ['{DRAWN_SEG}']\nmodel = dict(decode_head=dict(in_channels=[40, 80, 160, 700]))\n")
    with pytest.raises(UserError) as error:
        work(file)
    assert str(error.value).startswith('EncoderDecoder does not run: decode_head.')
    assert ' ends with RuntimeError: ' in str(error.value)


def test_a_wrong_config_does_not_lose_the_others(tmp_path, monkeypatch, capsys):
    wrong = tmp_path / 'wrong.py'
    wrong.write_text(f"_base_ = ['{DRAWN_SEG}']\nmodel = dict(backbone=dict(arch='tinny'))\n")
    with pytest.raises(SystemExit) as leave:
        run_tool(monkeypatch, str(wrong), 'no.py', str(DRAWN), '--out', str(tmp_path / 'table.csv'))
    assert leave.value.code == 2
    told = capsys.readouterr()
    mistakes = told.err.splitlines()
    assert mistakes[0].startswith(f"error: {wrong}: The config cannot be built: Unknown ConvNeXt arch 'tinny'.")
    assert mistakes[1].startswith('The config file no.py does not exist.')
    assert f'det/{DRAWN.name}' in told.out
    assert len((tmp_path / 'table.csv').read_text().splitlines()) == 1 + 4
    with pytest.raises(
        UserError, match=r'wrong\.py: The config cannot be built: .* The config file no\.py does not ex'
    ):
        describe_models([wrong, 'no.py'])


def test_backbones_that_do_not_run():
    cfg = Config.fromfile(DRAWN)
    with configs.model_scope(cfg):
        model = model_stats.build_on_meta(cfg.model)
        model.backbone.forward = lambda image: image.sum().item()
        with pytest.raises(UserError, match=r'^backbone does not run without values \(RuntimeError: Tensor\.item'):
            count_model(model, (64, 64))


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (
            dict(size=(1333, 800)),
            '--size takes width and height in pixels, multiples of 32 (the stride of the last map); got 1333 800.',
        ),
        (dict(size=(0, 32)), 'got 0 32.'),
        (dict(amp=True), '--amp is for measuring: give --measure or --train with it.'),
        (dict(out='table.txt'), '--out takes a file that ends in .md, .csv, .json; got table.txt.'),
        (dict(out='no/such/folder/table.md'), 'cannot be written (No such file or directory). Give another file with'),
    ],
)
def test_options_that_are_wrong(kwargs, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        describe_models([DRAWN], **kwargs)
    assert message in str(error.value)


def test_an_installation_without_configs(monkeypatch, tmp_path):
    monkeypatch.setattr(model_stats, 'CONFIGS', tmp_path)
    with pytest.raises(UserError, match='There are no configs in .*: name a config file, or run this in a clone'):
        describe_models()


def test_tables(tmp_path, stats_of):
    stats = stats_of('det/cascade_convnext_t_coco')
    text, failures = describe_models([CASCADE_T, DRAWN], out=str(tmp_path / 'table.json'))
    assert failures == []
    rows = json.loads((tmp_path / 'table.json').read_text())
    assert [row['part'] for row in rows] == ['backbone', 'neck', 'heads', 'total'] * 2
    assert {row['config'] for row in rows} == {'det/cascade_convnext_t_coco.py', f'det/{DRAWN.name}'}
    total = rows[3]
    assert total['params (M)'] == round(stats.total.params / 1e6, 2) == 85.93
    assert (total['published params (M)'], total['published GFLOPs']) == (86, 741)
    assert total['difference (%)'] == round(100 * (total['GFLOPs'] / 741 - 1), 2)
    for column in ('params (M)', 'GFLOPs', 'activations (M)'):
        assert math.isclose(sum(row[column] for row in rows[:3]), total[column], abs_tol=0.02)

    head, *lines = text.splitlines()
    assert len(lines) == 8
    assert head.split('  ')[0] == 'config'
    assert lines[0].split() == ['det/cascade_convnext_t_coco.py', '1280x800', 'backbone', '27.82', '90.91', '274.18']
    assert lines[3].split() == ['total', '85.93', '86', '740.15', '741', '-0.11', '634.84']
    assert 'peak memory' not in head

    describe_models([CASCADE_T], out=str(tmp_path / 'table.csv'))
    with (tmp_path / 'table.csv').open(newline='') as stream:
        assert [row['GFLOPs'] for row in csv.DictReader(stream)][-1] == '740.15'
    describe_models([CASCADE_T], out=str(tmp_path / 'table.md'))
    above, table = (tmp_path / 'table.md').read_text().split('\n\n| ')
    assert above.startswith('# Model statistics\n')
    head, rule, *lines = f'| {table}'.splitlines()
    assert head.startswith('| config | input | part | params (M) | published params (M) | GFLOPs |')
    assert rule.count('---:') == head.count('|') - 4
    assert lines[3].startswith(
        '| det/cascade_convnext_t_coco.py | 1280x800 | total | 85.93 | 86 | 740.15 | 741 | -0.11'
    )


@pytest.mark.parametrize('file', [DRAWN, DRAWN_SEG])
def test_measuring_runs_the_model(file, monkeypatch):
    monkeypatch.setattr(measurement, 'MIN_TURNS', 1)
    monkeypatch.setattr(measurement, 'MAX_TURNS', 2)
    calls = []
    monkeypatch.setattr(measurement, 'empty_sample', lambda *args: calls.append(args) or empty_sample(*args))
    measured = measurement.measure_test(file, (128, 128))
    assert 0 < measured.seconds < 60
    assert calls[-1][1] == (128, 128)
    assert measured.num_bytes >= 0 or not Path('/proc/self/status').is_file()
    assert measured.device.startswith('CPU, ') or torch.cuda.is_available()


@pytest.mark.parametrize('amp', [False, True])
@pytest.mark.parametrize('file', [DRAWN, DRAWN_SEG], ids=['detector', 'segmentor'])
def test_measuring_trains_the_model(file, amp, tmp_path, monkeypatch):
    monkeypatch.setattr(measurement, 'MIN_TURNS', 1)
    monkeypatch.setattr(measurement, 'MAX_TURNS', 1)
    batches, draw = [], measurement.draw_for
    monkeypatch.setattr(measurement, 'draw_for', lambda *args: batches.append(draw(*args)) or batches[-1])
    (tmp_path / 'own.py').write_text(f"_base_ = ['{file}']\ntrain_dataloader = dict(batch_size=2)\n")
    measured = measurement.measure_training(tmp_path / 'own.py', (128, 32), amp)
    side = 128 if file == DRAWN_SEG else 64  # the crop, or as many pixels
    assert [image.shape for image in batches[0]['inputs']] == [(3, side, side)] * 2
    assert 0 < measured.seconds < 60
    assert measured.device.endswith(', bfloat16 AMP' if amp else ', fp32') or torch.cuda.is_available()
    assert measured.num_bytes > 0 or not Path('/proc/self/status').is_file()


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ("optim_wrapper = dict(optimizer=dict(type='AdamWW'))", 'The config cannot be built: .*AdamWW'),
        ("optim_wrapper = dict(constructor='Nope')", 'The config cannot be built: .*Nope'),
        (
            "train_dataloader = dict(batch_size='2')",
            r"train_dataloader\.batch_size is a number of 1 or more; got '2'\.",
        ),
    ],
)
def test_mistakes_in_a_training(change, message, tmp_path):
    (tmp_path / 'own.py').write_text(f"_base_ = ['{DRAWN}']\n{change}\n")
    with pytest.raises(UserError, match=message):
        measurement.measure_training(tmp_path / 'own.py', (64, 64))


def test_a_failed_measurement_does_not_lose_the_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(measurement, 'MIN_TURNS', 1)
    monkeypatch.setattr(measurement, 'MAX_TURNS', 1)
    monkeypatch.setattr(measurement, 'ProcessPoolExecutor', lambda *args: ThreadPoolExecutor(1))
    (tmp_path / 'own.py').write_text(f"_base_ = ['{DRAWN}']\noptim_wrapper = None\n")
    configs = [tmp_path / 'own.py', DRAWN]
    text, failures = describe_models(configs, (64, 64), train=True, out=str(tmp_path / 'table.csv'))
    assert [failure.partition(' has ')[2].split(':')[0] for failure in failures] == [
        'no optim_wrapper or no train_dataloader'
    ]
    with (tmp_path / 'table.csv').open(newline='') as stream:
        totals = [row for row in csv.DictReader(stream) if row['part'] == 'total']
    assert [bool(row['params (M)']) for row in totals] == [True, True]
    assert [row['step images'] for row in totals] == ['', '8 x 64x64']
    assert '8 x 64x64' in text


def test_a_config_without_training_has_no_step(tiny_config):
    with pytest.raises(UserError, match=r'tiny\.py has no optim_wrapper or no train_dataloader: no training step can'):
        measurement.measure_training(tiny_config(dict(type='RetinaNet')), (64, 64))


def test_measuring_a_model_that_changes_its_config(tmp_path, monkeypatch):
    """DINO builds itself from a config once, and not a second time."""
    monkeypatch.setattr(measurement, 'MIN_TURNS', 1)
    monkeypatch.setattr(measurement, 'MAX_TURNS', 1)
    small = dict(num_queries=8, encoder=dict(num_layers=1), decoder=dict(num_layers=1), backbone=dict(arch='atto'))
    small['neck'] = dict(in_channels=[80, 160, 320])
    (tmp_path / 'own.py').write_text(f"_base_ = ['{CONFIGS / 'det/dino_convnext_t_coco.py'}']\nmodel = {small}\n")
    assert measurement.measure_test(tmp_path / 'own.py', (128, 128)).seconds > 0


def test_an_untrained_detector_finds_objects_to_segment():
    cfg = Config.fromfile(DRAWN)
    with configs.model_scope(cfg), torch.inference_mode():
        model = MODELS.build(cfg.model).eval()
        batch = dict(
            inputs=[torch.zeros(3, 128, 128, dtype=torch.uint8)], data_samples=[empty_sample('mmdet', (128, 128))]
        )
        measurement.find_objects(model)
        (sample,) = model.test_step(batch)
    assert len(sample.pred_instances) >= 20
    assert set(sample.pred_instances.labels.tolist()) == {0}
    assert sample.pred_instances.masks.shape[1:] == (128, 128)


def run_tool(monkeypatch, *arguments):
    monkeypatch.setattr(sys, 'argv', ['model_stats.py', *arguments])
    runpy.run_path(str(ROOT / 'tools/model_stats.py'), run_name='__main__')


def test_the_tool(tmp_path, monkeypatch, capsys):
    options = ('--measure', '--train', '--amp', '--out', str(tmp_path / 'table.json'))
    run_tool(monkeypatch, str(DRAWN), '--size', '64', '64', *options)
    assert (
        'peak memory (MB)  time (ms)  training memory (MB)  step time (ms)  step images  device'
        in capsys.readouterr().out
    )
    total = json.loads((tmp_path / 'table.json').read_text())[-1]
    assert total['input'] == '64x64'
    assert total['time (ms)'] > 0
    assert total['step time (ms)'] > 0
    assert total['device'].endswith(' AMP')
    # what the process adds holds the weights at least
    assert total['peak memory (MB)'] is None or total['peak memory (MB)'] > 4 * total['params (M)']


def test_the_tool_answers_a_mistake(monkeypatch, capsys):
    with pytest.raises(SystemExit) as leave:
        run_tool(monkeypatch, 'configs/no.py')
    assert leave.value.code == 2
    assert capsys.readouterr().err.startswith('error: The config file configs/no.py does not exist.')


@pytest.mark.parametrize(
    ('training', 'work', 'remedy'),
    [
        (False, 'an image of 64x32', 'a smaller --size, or leave --measure out'),
        (True, 'a training step', 'the config a smaller train_dataloader.batch_size, or leave --train out'),
    ],
)
@pytest.mark.parametrize(
    ('error', 'reason'),
    [
        (BrokenProcessPool(), 'its process was ended, for want of memory most likely'),
        (torch.cuda.OutOfMemoryError(), 'memory is short'),
        (MemoryError(), 'memory is short'),
    ],
)
def test_measuring_more_than_memory_holds(error, reason, training, work, remedy, monkeypatch):
    class Pool(ThreadPoolExecutor):
        def submit(self, *args):
            raise error

    monkeypatch.setattr(measurement, 'ProcessPoolExecutor', lambda *args: Pool(1))
    with pytest.raises(UserError) as raised:
        measurement.measure_config(DRAWN, (64, 32), training)
    assert str(raised.value).endswith(
        f'shapes.py cannot be measured with {work}: {reason}. Give {remedy}: counting needs no memory.'
    )


# 2e14 bytes of pixels or weights: more than a process can address, however generous the system is
@pytest.mark.parametrize(
    ('size', 'num_classes'),
    [((8_000_000, 8_000_000), 8), ((64, 64), 10**13)],
    ids=['image', 'weights'],
)
def test_measuring_more_than_a_cpu_can_allocate(size, num_classes, tmp_path, monkeypatch):
    monkeypatch.setattr(measurement, 'ProcessPoolExecutor', lambda *args: ThreadPoolExecutor(1))
    file = tmp_path / 'large.py'
    file.write_text(f"_base_ = ['{DRAWN_SEG}']\nmodel = dict(decode_head=dict(num_classes={num_classes}))\n")
    with pytest.raises(UserError) as raised:
        measurement.measure_config(file, size)
    assert 'DefaultCPUAllocator' in str(raised.value.__cause__)
    work = f'an image of {size[0]}x{size[1]}'
    assert str(raised.value).startswith(f'{file} cannot be measured with {work}: memory is short. Give a smaller --si')


def test_other_errors_of_measuring_stay_what_they_are(monkeypatch):
    monkeypatch.setattr(measurement, 'ProcessPoolExecutor', lambda *args: ThreadPoolExecutor(1))
    monkeypatch.setattr(measurement, 'build', lambda model_cfg: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        measurement.measure_config(DRAWN, (64, 64))
