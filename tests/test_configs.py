"""The leaf configs: short, with a header that tells the truth, and models that fit together."""

import ast
import copy
import math
import re
from functools import cache
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import TRANSFORMS, init_default_scope
from torch import nn

from convnext_dense.configs import load_config, walk
from convnext_dense.swap.read import library_configs
from convnext_dense.train import config_header
from convnext_dense.train.stats import build_on_meta
from convnext_dense.variants import VARIANTS

ROOT = Path(__file__).parent.parent
LEAVES = sorted([*(ROOT / 'configs').glob('det/*.py'), *(ROOT / 'configs').glob('seg/*.py')])
NUMBER = r'\d+(\.\d+)?'
TITLE = r'.+, .+, .+, (COCO|ADE20K|drawn shapes), \d+k? (epochs|iterations) \(.+\)\.'
METRIC = rf'(box AP|mask AP|box AP50|mask AP50|mIoU|mIoU \(ss\)|mIoU \(ms\)) (>= )?{NUMBER}'
EXPECTED = (
    rf'(?P<unknown>not published)|(?P<metrics>{METRIC}(, {METRIC})*)'
    rf'(; ((?P<params>{NUMBER}) M parameters, )?(?P<gflops>{NUMBER}) GFLOPs at (?P<size>\d+x\d+))?'
)


def pytest_generate_tests(metafunc):
    if 'leaf' in metafunc.fixturenames:
        metafunc.parametrize('leaf', LEAVES, ids=lambda leaf: leaf.stem)


@cache
def load(leaf: Path) -> Config:
    """Read a leaf once for the tests that only look at it."""
    return Config.fromfile(leaf)


def build_at_no_cost(cfg: Config) -> nn.Module:
    """Build a model of any size."""
    init_default_scope(cfg.default_scope)
    return build_on_meta(copy.deepcopy(cfg.model))  # some models change their config


def read_header(leaf: Path) -> dict[str, str]:
    """Return title, command, expectation, weights and note of a leaf, each on one line."""
    docstring = ast.get_docstring(ast.parse(leaf.read_text()))
    entries = re.split(r'^(Command|Expected|Measured|Initial weights|Note):\s', docstring, flags=re.MULTILINE)
    texts = [' '.join(text.split()) for text in entries]
    return dict(zip(['Title', *texts[1::2]], texts[::2], strict=True))


def test_leaf_is_short(leaf):
    assert len(leaf.read_text().splitlines()) <= 20


def test_header_follows_the_grammar(leaf):
    header = read_header(leaf)
    is_drawn = leaf.stem.endswith('_shapes')
    entries = ['Title', 'Command', 'Expected', *['Measured'] * is_drawn, 'Initial weights']
    assert list(header)[: len(entries)] == entries
    assert set(header) - {*entries} <= {'Note'}
    assert re.fullmatch(TITLE, header['Title']), header['Title']
    launcher = 'python' if is_drawn else 'torchrun --nproc_per_node 8'
    assert header['Command'] == f'{launcher} tools/train.py configs/{leaf.parent.name}/{leaf.name}'
    assert re.fullmatch(EXPECTED, header['Expected'].removesuffix('.')), header['Expected']
    assert all(text.endswith('.') for name, text in header.items() if name != 'Command')


SIZES = dict(T='tiny', S='small', B='base', L='large', XL='xlarge', H='huge')


def test_title_says_what_is_trained(leaf):
    cfg = load(leaf)
    backbone, checkpoint = cfg.model.backbone, (cfg.model.backbone.get('init_cfg') or {}).get('checkpoint', '')
    method, network, start, _, duration = read_header(leaf)['Title'].split('(')[0].strip().split(', ')
    family, _, size = network.rpartition('-')
    if backbone.type == 'ConvNeXt':
        assert family == 'ConvNeXt' + ' V2' * backbone.get('grn', False)
        assert SIZES.get(size, size) == backbone.arch
    elif backbone.type == 'SwinTransformer':
        widths = {'T': (96, 6), 'S': (96, 18), 'B': (128, 18)}
        assert (family, widths[size]) == ('Swin', (backbone.embed_dims, backbone.depths[2]))
    else:
        assert network == f'ResNet-{backbone.depth}'
        assert backbone.type in ('ResNet', 'ResNetV1c')
    marks = {'from scratch': '^$', 'DINOv3': 'dinov3', 'FCMAE': '_fcmae$', 'ImageNet-22k': '_22k', 'ImageNet-1k': '.'}
    known = next(data for data, mark in marks.items() if re.search(mark, checkpoint))
    assert start == ('FCMAE and ' if 'v2_' in checkpoint and known != 'FCMAE' else '') + known
    count, unit = duration.split()
    epochs = cfg.train_cfg.get('max_epochs') or round(cfg.train_cfg.max_iters * 16 / 118287)  # steps of 16 on COCO
    assert int(count.replace('k', '000')) == (epochs if unit == 'epochs' else cfg.train_cfg.max_iters)
    methods = {
        'CascadeRCNN': 'Cascade Mask R-CNN', 'MaskRCNN': 'Mask R-CNN', 'FasterRCNN': 'Faster R-CNN',
        'RetinaNet': 'RetinaNet', 'RTMDet': 'RTMDet-L', 'DINO': 'DINO with four scales', 'Mask2Former': 'Mask2Former',
        'UPerHead': 'UperNet', 'LinearHead': 'Linear probe', 'Mask2FormerHead': 'Mask2Former',
    }  # fmt: skip
    head = cfg.model.get('decode_head')
    assert method == methods[head.type.rpartition('.')[2] if head else cfg.model.type]


def test_header_names_the_initial_weights(leaf):
    init_cfg = load(leaf).model.backbone.get('init_cfg')
    named, _, licence = read_header(leaf)['Initial weights'].removesuffix('.').partition(', ')
    if init_cfg is None:
        assert named == 'none'
        return
    assert init_cfg.type == 'Pretrained'
    assert named == init_cfg.checkpoint
    licences = {
        'convnext://v2_': 'CC-BY-NC 4.0',
        'convnext://': 'MIT',
        'timm://': 'DINOv3 License',
        'torchvision://': 'BSD-3-Clause',
        'open-mmlab://': 'Apache-2.0',
        'https://': 'MIT',  # Swin
    }
    assert licence == next(licence for start, licence in licences.items() if named.startswith(start))


def test_what_was_measured_reaches_what_is_expected(leaf):
    header = config_header.read_header(leaf)
    bounds = [metric for metric in header.metrics if metric.is_bound]
    assert [metric.name for metric in header.measured] == [metric.name for metric in bounds]
    assert all(reached.value >= bound.value for reached, bound in zip(header.measured, bounds, strict=True))


def test_unpublished_results_are_explained(leaf):
    header = read_header(leaf)
    if 'unpublished' in header['Title'] or 'not published' in header['Expected']:
        assert 'not published' in header['Expected']
        assert header['Note']


def test_leaf_builds_with_the_published_number_of_parameters(leaf):
    cfg = load(leaf)
    borrows = any(str(node.get('type')).startswith('mmdet.') for node in walk(cfg.model))  # parts of MMDetection
    assert cfg.custom_imports.imports == ['convnext_dense', *['mmdet.models'] * borrows]
    model = build_at_no_cost(cfg)
    published = re.search(r'(\d+) M parameters', read_header(leaf)['Expected'])
    if published:
        assert round(sum(p.numel() for p in model.parameters()) / 1e6) == int(published[1])
    if cfg.model.backbone.type == 'ConvNeXt':
        assert model.backbone.dims == VARIANTS[cfg.model.backbone.arch].dims


# of the maps that a neck puts out, in pixels
STRIDES = {
    **dict.fromkeys(('MaskRCNN', 'CascadeRCNN', 'FasterRCNN'), (4, 8, 16, 32, 64)),
    'RetinaNet': (8, 16, 32, 64, 128),
    'DINO': (8, 16, 32, 64),
    'RTMDet': (8, 16, 32),
}


def test_maps_of_the_full_size_fit_the_heads(leaf):
    """DINO's transformer, which reads sizes out of tensors, and that of Mask2Former run in test_config_steps.py."""
    cfg = load(leaf)
    model, kind = build_at_no_cost(cfg).eval(), cfg.model.type
    maps = model.extract_feat(torch.zeros(1, 3, 64, 96, device='meta'))
    if model.with_neck:
        width = 64 if leaf.stem.endswith('_shapes') else 256
        assert [tuple(m.shape[1:]) for m in maps] == [
            (width, math.ceil(64 / stride), math.ceil(96 / stride)) for stride in STRIDES[kind]
        ]
    if hasattr(model, 'rpn_head'):
        model.rpn_head(maps)
    elif kind in ('RetinaNet', 'RTMDet'):
        scores, _ = model.bbox_head(maps)
        anchors = 9 if kind == 'RetinaNet' else 1
        assert [s.shape[1:] for s in scores] == [(80 * anchors, *m.shape[2:]) for m in maps]
    elif 'Mask2FormerHead' in str(cfg.model):
        decoder = (model.panoptic_head if kind == 'Mask2Former' else model.decode_head).pixel_decoder
        for layer, m in zip([*decoder.input_convs, *decoder.lateral_convs], reversed(maps), strict=True):
            assert layer(m).shape == (1, 256, *m.shape[2:])
    elif kind == 'EncoderDecoder':
        scores = model.decode_head(maps)
        assert scores.shape[1] == cfg.model.decode_head.num_classes
        if model.with_auxiliary_head:
            assert model.auxiliary_head(maps).shape[1] == cfg.model.decode_head.num_classes


@pytest.mark.parametrize(
    'name',
    [
        'det/cascade_convnext_atto_shapes',
        'det/cascade_swin_t_coco',
        'det/mask_rcnn_convnextv2_b_lsj_coco',
        'det/rtmdet_convnext_b_in22k_coco',
        'seg/mask2former_convnext_b_in22k_ade20k',
        'seg/upernet_convnextv2_h_in22k_ade20k',
        'seg/linear_convnext_t_dinov3_ade20k',
        'seg/upernet_swin_b_in22k_ade20k',
    ],
)
def test_leaf_survives_a_dump(name, tmp_path):
    cfg = load_config(ROOT / f'configs/{name}.py')
    assert not any(callable(cfg[key]) for key in cfg)  # MMEngine drops the functions that a config imports
    cfg.dump(tmp_path / 'dumped.py')
    dumped = Config.fromfile(tmp_path / 'dumped.py')
    for key in ('model', 'train_dataloader', 'optim_wrapper', 'tta_pipeline'):
        assert dumped.get(key) == cfg.get(key)


def coco_leaves(method: str) -> list[str]:
    return sorted(file.stem for file in (ROOT / 'configs/det').glob(f'{method}_*_coco.py'))


@pytest.mark.parametrize('name', coco_leaves('cascade'))
def test_cascade_differs_from_mmdetections_only_where_the_recipe_does(name):
    ours = Config.fromfile(ROOT / f'configs/det/{name}.py').model
    theirs = Config.fromfile(library_configs('mmdet') / '_base_/models/cascade-mask-rcnn_r50_fpn.py').model
    for part in ('data_preprocessor', 'rpn_head', 'train_cfg', 'test_cfg'):
        assert ours[part].to_dict() == theirs[part].to_dict(), part
    for part in ('bbox_roi_extractor', 'mask_roi_extractor', 'mask_head', 'type', 'num_stages', 'stage_loss_weights'):
        assert ours.roi_head[part] == theirs.roi_head[part], part


@pytest.mark.parametrize('name', coco_leaves('mask_rcnn'))
def test_mask_rcnn_is_mmdetections(name):
    ours = Config.fromfile(ROOT / f'configs/det/{name}.py').model
    theirs = Config.fromfile(library_configs('mmdet') / '_base_/models/mask-rcnn_r50_fpn.py').model
    if 'convnextv2' in name:
        theirs.test_cfg.rcnn.nms.type = 'soft_nms'
        ours.data_preprocessor.pop('batch_augments')  # of which other tests tell
    assert list(ours.neck.pop('in_channels')) != theirs.neck.pop('in_channels')
    for part in ('type', 'data_preprocessor', 'neck', 'rpn_head', 'roi_head', 'train_cfg', 'test_cfg'):
        assert ours[part] == theirs[part], part


def test_the_recipe_of_mmdetection_differs_from_the_papers_as_its_header_says():
    paper, other = (
        Config.fromfile(ROOT / f'configs/det/mask_rcnn_convnextv2_b{name}_coco.py').to_dict() for name in ('', '_lsj')
    )
    padding = dict(type='BatchFixedSizePad', size=(1024, 1024), pad_mask=True)
    assert paper['model']['data_preprocessor'].pop('batch_augments') == [padding]
    assert other['model']['data_preprocessor'].pop('batch_augments') is None
    assert paper['model']['data_preprocessor']['pad_size_divisor'] == 32
    assert [recipe['param_scheduler'][0].pop('end') for recipe in (paper, other)] == [501, 1000]
    shared = other.keys() & paper.keys()
    assert {key: other[key] for key in shared} == {key: paper[key] for key in shared}
    assert other.keys() - shared <= {'warmup', 'steps'}


@pytest.mark.parametrize('shape', [(300, 2000), (1024, 1024), (1500, 1600), (700, 800)])
def test_its_crop_is_the_papers(shape):
    """A range of sizes from 1024 to 1024 pixels, as MMDetection has it, is one size."""
    init_default_scope('mmdet')
    crop = dict(type='RandomCrop', crop_size=(1024, 1024))
    paper, other = (TRANSFORMS.build(dict(crop, crop_type=kind)) for kind in ('absolute', 'absolute_range'))
    assert paper._get_crop_size(shape) == other._get_crop_size(shape) == tuple(min(side, 1024) for side in shape)


def test_upernet_r50_is_mmsegmentations():
    ours = Config.fromfile(ROOT / 'configs/seg/upernet_r50_ade20k.py')
    theirs = Config.fromfile(library_configs('mmseg') / 'upernet/upernet_r50_4xb4-160k_ade20k-512x512.py')
    for part in ('type', 'decode_head', 'auxiliary_head', 'train_cfg', 'test_cfg'):
        assert ours.model[part] == theirs.model[part], part
    assert ours.model.data_preprocessor == theirs.model.data_preprocessor
    assert ours.model.backbone.init_cfg.checkpoint == theirs.model.pretrained
    defaults = dict(num_stages=4, out_indices=(0, 1, 2, 3), dilations=(1,) * 4, strides=(1, 2, 2, 2), norm_eval=False)
    defaults.update(style='pytorch', contract_dilation=True, init_cfg=ours.model.backbone.init_cfg)
    assert {**defaults, **ours.model.backbone} == {**theirs.model.backbone, 'init_cfg': ours.model.backbone.init_cfg}
    assert ours.optim_wrapper.optimizer == theirs.optimizer
    assert ours.train_cfg.max_iters == theirs.train_cfg.max_iters
    for split in ('train', 'test'):
        steps = [step for step in ours[f'{split}_dataloader'].dataset.pipeline if 'Load' not in step.type]
        assert steps == [step for step in theirs[f'{split}_pipeline'] if 'Load' not in step.type]
    # both are steps of 16 images
    assert ours.auto_scale_lr.base_batch_size == 4 * theirs.train_dataloader.batch_size
