"""Exports: each family of heads predicts in onnxruntime what it predicts in PyTorch, or is refused before."""

import json
import re

import numpy as np
import pytest
import torch
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS

from convnext_dense.configs import load_config, model_scope, walk
from convnext_dense.export import export, parity, write
from convnext_dense.swap import swap_backbone
from convnext_dense.train.screen import quiet

pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')

pytestmark = [
    pytest.mark.filterwarnings('ignore:__array__ implementation:DeprecationWarning'),  # pycocotools and NumPy 2
    pytest.mark.filterwarnings('ignore:The arguments `dropout`:DeprecationWarning'),  # in mmcv
]
DETECTORS = {
    'retinanet': 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
    'atss': 'mmdet::atss/atss_r50_fpn_1x_coco.py',
    'rtmdet': 'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
    'rtmdet-ins': 'mmdet::rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py',
    'faster': 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    'mask': 'ladder/mask_rcnn_resnet_sgd_shapes',
    'cascade': 'det/cascade_convnext_atto_shapes',
    'deformable-detr': 'mmdet::deformable_detr/deformable-detr-refine-twostage_r50_16xb2-50e_coco.py',
    'dino': 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py',
    'mask2former': 'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',
}
SEGMENTORS = {
    'upernet': 'seg/upernet_convnext_atto_shapes',
    'pspnet': 'mmseg::pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024.py',
    'mask2former': 'mmseg::mask2former/mask2former_r50_8xb2-90k_cityscapes-512x1024.py',
}
HEADS = re.compile(r'(fc_cls|rpn_cls|retina_cls|rtm_cls|atss_cls|cls_branches|cls_embed|rtm_reg|rtm_kernel)\b')
SMALL = dict(num_queries=40, num_layers=1, max_per_img=20, max_per_image=20)


def small_config(name, folder):
    """Return a config with the smallest backbone, few queries and layers, and images of 160 pixels."""
    if name.startswith('mm'):
        file = folder / 'config.py'
        file.write_text(swap_backbone(name, 'atto', weights='').text(folder))
        name = file
    cfg = load_config(name)
    for node in walk(cfg.model):
        node.update({key: value for key, value in SMALL.items() if key in node})
    for step in walk(cfg.test_dataloader.dataset.pipeline):
        if step.get('type', '').split('.')[-1] == 'Resize' and 'scale' in step:
            step.scale = (160, 128)
        if step.get('type') == 'Pad':
            step.size = (160, 160)
    if 'decode_head' in cfg.model:
        cfg.model.test_cfg = dict(mode='whole')
    return cfg


def write_checkpoint(cfg, file):
    """Write a checkpoint with random weights, whose last layers tell places apart."""
    text = cfg.pretty_text  # building a transformer changes its config
    counts = [node.get('num_classes') for node in walk(cfg.model)]
    classes = max([count for count in counts if isinstance(count, int)], default=80)
    with model_scope(cfg), quiet():
        torch.manual_seed(0)
        network = revert_sync_batchnorm(MODELS.build(cfg.model))
        network.init_weights()
        for name, module in network.named_modules():
            if HEADS.search(name) and hasattr(module, 'bias'):
                torch.nn.init.normal_(module.weight, std=3 / module.weight[0].numel() ** 0.5)
                torch.nn.init.normal_(module.bias, -2 if 'cls' in name else 1, 0.5)
    meta = dict(cfg=text, experiment_name=file.stem, dataset_meta=dict(classes=[f'class {i}' for i in range(classes)]))
    torch.save(dict(state_dict=network.state_dict(), meta=meta), file)
    return file


@pytest.fixture(autouse=True)
def noise(monkeypatch):
    """Compare images of noise: on plain ones, random weights find objects of one score everywhere."""
    rng = np.random.default_rng(0)
    images = [(f'noise {size}', rng.integers(0, 256, (*size, 3), np.uint8)) for size in parity.SIZES]
    monkeypatch.setattr(write, 'pictures', lambda model, given: images)


@pytest.fixture(scope='module')
def detector(tmp_path_factory):
    """Return the checkpoint of a detector with masks, and its exported file."""
    folder = tmp_path_factory.mktemp('detector')
    checkpoint = write_checkpoint(small_config(DETECTORS['cascade'], folder), folder / 'cascade.pth')
    export(checkpoint, out=folder / 'cascade.onnx')
    return checkpoint, folder / 'cascade.onnx'


@pytest.mark.parametrize('name', DETECTORS)
def test_a_detector_finds_the_same(name, tmp_path):
    checkpoint = write_checkpoint(small_config(DETECTORS[name], tmp_path), tmp_path / f'{name}.pth')
    table = export(checkpoint, out=tmp_path / 'model.onnx')
    report = json.loads((tmp_path / 'model.parity.json').read_text())
    assert 'noise' in table
    assert len({tuple(each['size']) for each in report['images']}) >= 4
    assert report['parity']['objects'] >= 20
    assert report['parity']['missing'] == 0
    assert bool(report['parity']['compared']) == (name in ('rtmdet-ins', 'mask', 'cascade', 'mask2former'))


@pytest.mark.parametrize('name', SEGMENTORS)
def test_a_segmentor_labels_the_same(name, tmp_path):
    checkpoint = write_checkpoint(small_config(SEGMENTORS[name], tmp_path), tmp_path / f'{name}.pth')
    export(checkpoint, out=tmp_path / 'model.onnx')
    report = json.loads((tmp_path / 'model.parity.json').read_text())
    assert max(each['objects'] for each in report['images']) > 1
    assert report['parity']['compared'] > 100_000
