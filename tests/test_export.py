"""Exports: each family of heads predicts in onnxruntime what it predicts in PyTorch, or is refused before."""

import csv
import json
import os
import re
import subprocess
import venv
from pathlib import Path
from statistics import mode

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS

import convnext_dense
from convnext_dense import UserError, runtime
from convnext_dense.configs import load_config, model_scope, walk
from convnext_dense.export import export, parity, write
from convnext_dense.export.graph import Graph, average_pool, recording
from convnext_dense.export.steps import Steps, read_steps
from convnext_dense.predict import load_model, predict
from convnext_dense.report.compare import predict as predict_and_compare
from convnext_dense.results import Objects
from convnext_dense.runtime import Exported
from convnext_dense.swap import swap_backbone
from convnext_dense.train.config import drop_initial_weights
from convnext_dense.train.screen import quiet

pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')

pytestmark = pytest.mark.filterwarnings('ignore:The arguments `dropout`:DeprecationWarning')  # in mmcv
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
HEADS = re.compile(
    r'(fc_cls|rpn_cls|retina_cls|rtm_cls|atss_cls|gfl_cls|conv_cls|multi_level_conv_cls|multi_level_conv_obj|cls_score'
    r'|object_pred|cls_branches|cls_embed|rtm_reg|rtm_kernel)\b'
)
ROWS = list(csv.DictReader(Path(__file__).with_name('swap_configs.csv').read_text().splitlines()))
SMALL = dict(num_queries=40, num_layers=1, max_per_img=20, max_per_image=20)


def small_config(name, folder, arch='atto', size=None):
    """Return a config with a backbone, and images of 160 pixels; with the smallest backbone, few queries and layers."""
    size = size or ((160, 128) if arch == 'atto' else (480, 384))
    if name.endswith('.py'):  # of MMDetection or MMSegmentation
        file = folder / 'config.py'
        file.write_text(swap_backbone(name, arch, weights='').text(folder))
        name = file
    cfg = load_config(name)
    drop_initial_weights(cfg.model)
    for node in walk(cfg.model) if arch == 'atto' else ():
        node.update({key: value for key, value in SMALL.items() if key in node})
    for step in walk(cfg.test_dataloader.dataset.pipeline):
        if step.get('type', '').split('.')[-1] == 'Resize' and step.get('keep_ratio'):
            step.scale = size
        if step.get('type') == 'Pad' and 'size' in step:
            step.size = (max(size), max(size))
    if 'decode_head' in cfg.model:
        cfg.model.test_cfg = dict(cfg.model.test_cfg, mode='whole')
    return cfg


def write_checkpoint(cfg, file):
    """Write a checkpoint with random weights, whose last layers tell places apart."""
    text = cfg.pretty_text  # building a transformer changes its config
    counts = [node.get('num_classes') for node in walk(cfg.model)]
    classes = mode([count for count in counts if isinstance(count, int)] or [80])
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
    images = [(f'noise {size}', rng.integers(0, 256, (*size, 3), np.uint8)) for size in NOISE]
    monkeypatch.setattr(write, 'pictures', lambda model, given: images)


@pytest.fixture(scope='module')
def detector(tmp_path_factory):
    """Return the checkpoint of a detector with masks, and its exported file."""
    folder = tmp_path_factory.mktemp('detector')
    checkpoint = write_checkpoint(small_config(DETECTORS['cascade'], folder), folder / 'cascade.pth')
    export(checkpoint, out=folder / 'cascade.onnx')
    return checkpoint, folder / 'cascade.onnx'


NOISE = ((120, 160), (165, 123), (97, 131), (192, 256))
SLOWER = ('atss', 'pspnet', 'rtmdet', 'rtmdet-ins', 'dino', 'deformable-detr', 'mask2former')  # others stand for them


def families(names):
    return [pytest.param(name, marks=[pytest.mark.slow] if name in SLOWER else []) for name in names]


@pytest.mark.parametrize('name', families(DETECTORS))
def test_a_detector_finds_the_same(name, tmp_path):
    checkpoint = write_checkpoint(small_config(DETECTORS[name], tmp_path), tmp_path / f'{name}.pth')
    table = export(checkpoint, out=tmp_path / 'model.onnx')
    report = json.loads((tmp_path / 'model.parity.json').read_text())
    assert 'noise' in table
    assert len({tuple(each['size']) for each in report['images']}) >= 4
    assert report['parity']['objects'] >= 20
    assert report['parity']['missing'] == 0
    assert bool(report['parity']['compared']) == (name in ('rtmdet-ins', 'mask', 'cascade', 'mask2former'))


@pytest.mark.parametrize('name', families(SEGMENTORS))
def test_a_segmentor_labels_the_same(name, tmp_path):
    checkpoint = write_checkpoint(small_config(SEGMENTORS[name], tmp_path), tmp_path / f'{name}.pth')
    export(checkpoint, out=tmp_path / 'model.onnx')
    report = json.loads((tmp_path / 'model.parity.json').read_text())
    assert max(each['objects'] for each in report['images']) > 1
    assert report['parity']['compared'] > 100_000


PUBLISHED = {
    'cascade': 'det/cascade_convnext_t_coco',
    'mask': 'det/mask_rcnn_convnext_t_coco',
    'dino': 'det/dino_convnext_t_coco',
    'mask2former': 'det/mask2former_convnext_t_coco',
    'upernet': 'seg/upernet_convnext_t_ade20k',
}


@pytest.mark.slow
@pytest.mark.parametrize('name', [*PUBLISHED.values(), *(each for each in DETECTORS.values() if 'mmdet' in each)])
def test_full_sizes(name, tmp_path):
    checkpoint = write_checkpoint(small_config(name, tmp_path, 't'), tmp_path / 'full.pth')
    is_sensitive = 'dino' in name or 'mask2former' in name  # to rounding, with random weights
    # scores of a random cascade differ by 0.00001, the limit, on a CPU with AMX
    export(checkpoint, out=tmp_path / 'model.onnx', tolerance=2000 if is_sensitive else 2)
    report = json.loads((tmp_path / 'model.parity.json').read_text())
    assert report['parity']['missing'] == 0
    assert report['parity']['objects'] >= 4


@pytest.mark.slow
@pytest.mark.parametrize('name', [SEGMENTORS['upernet'], SEGMENTORS['pspnet']])
def test_the_exporter_to_come(name, tmp_path):
    """PyTorch's next exporter to ONNX, which takes minutes, makes the same graph."""
    pytest.importorskip('onnxscript')
    model = load_model(write_checkpoint(small_config(name, tmp_path), tmp_path / 'model.pth'), device='cpu')
    graph = write.Graph(model.network, read_steps(model.config.test_dataloader.dataset.pipeline))
    images, size = torch.randint(0, 256, (1, 97, 131, 3), dtype=torch.uint8), torch.tensor([80, 90])
    dynamic = torch.export.Dim.DYNAMIC
    with recording(), quiet():
        program = torch.onnx.export(
            graph, (images, size), dynamo=True, opset_version=18, external_data=False, input_names=write.INPUTS,
            dynamic_shapes=({1: dynamic, 2: dynamic}, None),
        )  # fmt: skip
        program.save(tmp_path / 'model.onnx')
        run, _ = runtime.open_onnx(tmp_path / 'model.onnx', 1, 'cpu', 'f32')
        for height, width in ((97, 131), (128, 150), (140, 99)):
            images = torch.randint(0, 256, (1, height, width, 3), dtype=torch.uint8)
            for ours, theirs in zip(run(images.numpy(), size.numpy()), graph(images, size), strict=True):
                np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-3)


def test_a_segmentor_takes_images_of_a_size_together(tmp_path):
    checkpoint = write_checkpoint(small_config(SEGMENTORS['upernet'], tmp_path), tmp_path / 'upernet.pth')
    export(checkpoint, out=tmp_path / 'model.onnx')
    run, _ = runtime.open_onnx(tmp_path / 'model.onnx', 1, 'cpu', 'f32')
    images = np.random.default_rng(1).integers(0, 256, (3, 75, 91, 3), np.uint8)
    size = np.array([60, 100])
    (together,) = run(images, size)
    assert together.shape == (3, 60, 100)
    assert all((run(image[None], size)[0][0] == labels).all() for image, labels in zip(images, together, strict=True))


def test_a_detector_that_finds_nothing(tmp_path, capsys):
    cfg = small_config(DETECTORS['cascade'], tmp_path)
    cfg.model.test_cfg.rcnn.score_thr = 0.999
    export(write_checkpoint(cfg, tmp_path / 'cascade.pth'), out=tmp_path / 'model.onnx')
    found = runtime.load(tmp_path / 'model.onnx')(np.zeros((50, 70, 3), np.uint8))
    assert len(found) == 0
    assert found.masks.shape == (0, 50, 70)
    assert found.to_coco() == []
    assert 'nothing was found' in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize('to', ['openvino', 'torch'])
def test_other_formats(to, detector, tmp_path):
    pytest.importorskip(to)
    file = tmp_path / f'model{write.TARGETS[to].suffix}'
    export(detector[0], to, file)
    report = json.loads(file.with_suffix('.parity.json').read_text())
    assert report['parity']['objects'] >= 20
    image = parity.draw(0, 123, 145)
    ours, theirs = runtime.load(file, 1)(image), runtime.load(detector[1], 1)(image)
    assert (ours.labels == theirs.labels).all()
    np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    'name', [SEGMENTORS['upernet'], DETECTORS['retinanet'], DETECTORS['faster'], PUBLISHED['cascade']]
)
def test_programs_of_pytorch(name, tmp_path):
    cfg = small_config(name, tmp_path, size=(400, 320))  # the smallest map of RetinaNet has two rows and more
    export(write_checkpoint(cfg, tmp_path / 'model.pth'), 'torch', tmp_path / 'model.pt2')
    report = json.loads((tmp_path / 'model.parity.json').read_text())
    assert report['parity']['objects'] > 5


def test_deformable_attention_is_refused_for_pytorch(tmp_path):
    checkpoint = write_checkpoint(small_config(DETECTORS['dino'], tmp_path), tmp_path / 'model.pth')
    with pytest.raises(UserError, match='--to onnx'):
        export(checkpoint, 'torch', tmp_path / 'model.pt2')


def test_what_a_file_says(detector):
    meta = runtime.load(detector[1]).meta
    assert meta['classes'] == [f'class {i}' for i in range(5)]
    assert meta['order'] == 'BGR'
    assert len(meta['mean']) == len(meta['std']) == 3
    assert meta['resize'] == dict(scale=None, factor=[1.0, 1.0], keep_ratio=False)
    assert meta['test_cfg']['rcnn']['max_per_img'] == 20
    assert meta['parity']['missing'] == 0
    assert {'licence', 'metrics', 'convnext_dense', 'torch'} <= meta.keys()


def test_an_exported_model_predicts_as_its_checkpoint(detector, tmp_path):
    photos = tmp_path / 'photos'
    photos.mkdir()
    for i, size in enumerate(parity.SIZES):
        cv2.imwrite(str(photos / f'{i}.png'), parity.draw(i, *size))
    found = []
    for model in detector:
        out = tmp_path / model.suffix
        assert predict(model, [photos], out, save=['coco'], score=0.2) == 0
        found.append(json.loads((out / 'predictions.json').read_text()))
    assert len(found[0]) == len(found[1]) > 10
    key = ('file_name', 'category_id', 'bbox')
    ours, theirs = (sorted([each[name] for name in key] for each in part) for part in found)
    assert [row[:2] for row in ours] == [row[:2] for row in theirs]
    np.testing.assert_allclose([row[2] for row in ours], [row[2] for row in theirs], atol=2e-3)


def test_options_that_come_before_the_export(detector):
    with pytest.raises(UserError, match='--tta'):
        load_model(detector[1], tta=True)


def test_a_segmentor_without_scores_is_not_tiled(tmp_path):
    checkpoint = write_checkpoint(small_config(SEGMENTORS['upernet'], tmp_path), tmp_path / 'upernet.pth')
    export(checkpoint, out=tmp_path / 'model.onnx')
    model = load_model(tmp_path / 'model.onnx')
    assert model(np.zeros((50, 50, 3), np.uint8), tile=50).size == (50, 50)
    with pytest.raises(UserError, match='checkpoint'):
        model(np.zeros((90, 90, 3), np.uint8), tile=50)
    with pytest.raises(UserError, match='checkpoint'):
        predict(tmp_path / 'model.onnx', [tmp_path], tmp_path / 'out', tile=50)
    with pytest.raises(UserError, match='--compare .* checkpoint'):
        predict_and_compare(tmp_path / 'model.onnx', [tmp_path], tmp_path / 'out', compare=tmp_path)


def test_no_file_where_predictions_differ(detector, tmp_path, monkeypatch):
    """A graph whose boxes are half a pixel off is not written, and says what is off."""
    monkeypatch.setattr(write.Graph, 'forward', shifted(write.Graph.forward))
    with pytest.raises(UserError, match=r'(?s)not written.*above the limit: boxes'):
        export(detector[0], out=tmp_path / 'model.onnx')
    assert list(tmp_path.iterdir()) == []
    export(detector[0], out=tmp_path / 'model.onnx', tolerance=600)
    assert json.loads((tmp_path / 'model.parity.json').read_text())['parity']['limits']['boxes'] == pytest.approx(0.6)


def shifted(forward):
    def wrapped(self, *arguments):
        boxes, *others = forward(self, *arguments)
        return boxes + 0.5, *others

    return wrapped


def test_an_object_less_is_a_difference():
    boxes = np.float32([[0, 0, 10, 10], [20, 20, 30, 30], [50, 0, 60, 9]])
    objects = Objects(boxes, np.float32([0.9, 0.8, 0.7]), np.array([0, 1, 1]), (64, 64), ('a', 'b'))
    assert parity.compare_objects(objects, objects)[:4] == (3, 0, 0, 0)
    assert parity.compare_objects(objects, objects.take([0, 2]))[:2] == (3, 1)
    assert parity.compare_objects(objects.take([]), objects)[:2] == (0, 3)
    other = Objects(boxes, objects.scores, np.array([0, 1, 0]), (64, 64), ('a', 'b'))
    assert parity.compare_objects(objects, other)[1] == 0  # the last of two full lists
    assert (
        parity.compare_objects(objects, Objects(boxes, objects.scores, np.array([1, 1, 1]), (64, 64), ('a', 'b')))[1]
        == 1
    )


@pytest.mark.parametrize(
    ('name', 'options', 'message'),
    [
        ('seg/upernet_convnext_atto_shapes', {'model.test_cfg.mode': 'slide'}, "mode='slide'.*mode=whole"),
        ('det/cascade_convnext_atto_shapes', {'model.test_cfg.rcnn.nms.type': 'soft_nms'}, 'soft_nms.*_delete_=True'),
        ('det/mask2former_convnext_t_coco', {'model.test_cfg.instance_on': False}, 'instance_on=True'),
    ],
)
def test_what_cannot_be_exported_is_refused_before(name, options, message):
    cfg = load_config(name, options)
    with model_scope(cfg), quiet():
        network = MODELS.build(cfg.model)
    with pytest.raises(UserError, match=message):
        write.Graph(network, Steps())


def test_the_advice_against_soft_nms_is_followed(tmp_path):
    cfg = small_config(DETECTORS['cascade'], tmp_path)
    cfg.model.test_cfg.rcnn.nms = dict(type='soft_nms', iou_threshold=0.5, min_score=0.05)
    (tmp_path / 'soft.py').write_text(cfg.pretty_text)
    checkpoint = write_checkpoint(cfg, tmp_path / 'cascade.pth')
    with pytest.raises(UserError, match='--config'):
        export(checkpoint, out=tmp_path / 'model.onnx', config=tmp_path / 'soft.py')
    (tmp_path / 'plain.py').write_text(
        "_base_ = ['soft.py']\n"
        'model = dict(test_cfg=dict(rcnn=dict(nms=dict(_delete_=True, type="nms", iou_threshold=0.5))))\n'
    )
    export(checkpoint, out=tmp_path / 'model.onnx', config=tmp_path / 'plain.py')


@pytest.mark.parametrize(
    ('pipeline', 'steps'),
    [
        ([dict(type='Resize', scale=(1333, 800), keep_ratio=True)], Steps((1333, 800), keep_ratio=True)),
        ([dict(type='mmdet.Resize', scale=640)], Steps((640, 640))),
        ([dict(type='Resize', scale_factor=0.5)], Steps(factor=(0.5, 0.5))),
        ([dict(type='Pad', size=(640, 512), pad_val=dict(img=(114, 114, 114)))], Steps(pad=(512, 640), pad_value=114)),
    ],
)
def test_steps_of_a_pipeline(pipeline, steps):
    load, pack = dict(type='LoadImageFromFile'), dict(type='PackDetInputs', meta_keys=('img_id',))
    assert read_steps([load, *pipeline, dict(type='LoadAnnotations'), pack]) == steps


@pytest.mark.parametrize(
    'step',
    [
        dict(type='ResizeShortestEdge', scale=800),
        dict(type='Resize', scale=(8, 8), interpolation='bicubic'),
        dict(type='Pad', size_divisor=32),
        dict(type='TestTimeAug', transforms=[]),
    ],
)
def test_a_step_that_cannot_be_done(step):
    with pytest.raises(UserError, match=step['type']):
        read_steps([dict(type='LoadImageFromFile'), step])


@settings(max_examples=60, deadline=None)
@given(st.tuples(*[st.integers(1, 90)] * 4), st.sampled_from([1, 3, 4]), st.integers(0, 9))
def test_images_are_resized_as_opencv_does(sizes, channels, seed):
    height, width, new_height, new_width = sizes
    image = np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)
    expected = cv2.resize(image, (new_width, new_height), interpolation=cv2.INTER_LINEAR)
    assert (runtime.resize(image, new_height, new_width) == expected.reshape(new_height, new_width, channels)).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 3000), st.sampled_from([(1333, 800), (640, 640), (512, 2048)]))
def test_sizes_are_those_of_mmcv(height, width, scale):
    import mmcv

    expected = mmcv.rescale_size((width, height), scale)[::-1]
    assert runtime.resized_size((height, width), dict(scale=scale, keep_ratio=True)) == expected


def test_masks_are_pasted_as_mmdetection_does():
    from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask

    rng = np.random.default_rng(0)
    corners = rng.uniform(-5, 70, (60, 2, 2)).astype(np.float32)
    boxes = np.sort(corners, axis=1).reshape(-1, 4).clip(0, 64)
    boxes[0] = 7, 9, 7, 20  # without extent
    masks = rng.random((60, 28, 28), np.float32)
    ours = runtime.paste(masks, boxes, (50, 64), 0.5)
    assert ours.any()
    theirs = np.zeros_like(ours)
    for mask, box, target in zip(torch.from_numpy(masks), torch.from_numpy(boxes), theirs, strict=True):
        part, place = _do_paste_mask(mask[None, None], box[None], 50, 64)
        target[place] = part[0].numpy() >= 0.5
    assert (ours != theirs).sum() <= 2  # of 192,000 pixels, by rounding


@settings(max_examples=40, deadline=None)
@given(st.tuples(*[st.integers(1, 40)] * 2), st.tuples(*[st.integers(1, 9)] * 2))
def test_average_pooling_by_products(size, parts):
    maps = torch.rand(2, 3, *size)
    torch.testing.assert_close(average_pool(maps, parts), F.adaptive_avg_pool2d(maps, parts))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(to='tensorrt'), 'onnx, openvino, torch'),
        (dict(out='model.xml'), r'\.onnx'),
        (dict(to='openvino', out='model.onnx'), r'\.xml'),
    ],
)
def test_mistakes_of_the_command(options, message, detector):
    with pytest.raises(UserError, match=message):
        export(detector[0], **options)


def test_a_file_is_not_replaced(detector):
    with pytest.raises(UserError, match='--force'):
        export(detector[0], out=detector[1])
    with pytest.raises(UserError, match='checkpoint'):
        export(detector[1])


def test_a_foreign_file_is_answered(tmp_path):
    import onnx

    value = onnx.helper.make_tensor_value_info('x', 1, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node('Identity', ['x'], ['y'])], 'g', [value],
                                   [onnx.helper.make_tensor_value_info('y', 1, [1])])  # fmt: skip
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid('', 18)], ir_version=9)
    onnx.save_model(model, tmp_path / 'foreign.onnx')
    (tmp_path / 'junk.onnx').write_bytes(b'junk')
    for name in ('foreign', 'junk'):
        with pytest.raises(UserError, match=f'{name}.onnx'):
            load_model(tmp_path / f'{name}.onnx')


def test_arrays_that_are_no_images(detector):
    model = runtime.load(detector[1])
    for image in (np.zeros((5, 5)), np.zeros((5, 5, 3)), np.zeros((0, 5, 3), np.uint8), np.zeros((5, 5, 4), np.uint8)):
        with pytest.raises(ValueError, match=r'\(height, width, 3\) of uint8'):
            model(image)


ALONE = """
import sys
import numpy as np
from convnext_dense.runtime import load
found = load(sys.argv[1])(np.load(sys.argv[2]))
np.savez(sys.argv[3], boxes=found.boxes, scores=found.scores, labels=found.labels, masks=found.masks)
assert not {'torch', 'mmengine', 'cv2', 'PIL', 'pycocotools'} & sys.modules.keys()
try:
    import torch
except ImportError:
    print('no PyTorch')
"""


def test_the_runtime_needs_numpy_and_onnxruntime_alone(detector, tmp_path):
    """In an environment that holds these two, this package and nothing else."""
    import onnxruntime

    venv.create(tmp_path / 'venv', with_pip=False)
    site = next((tmp_path / 'venv/lib').glob('python*/site-packages'))
    for package in (np, onnxruntime, convnext_dense):
        folder = Path(package.__file__).parent
        for each in (folder, folder.with_name(f'{folder.name}.libs')):
            if each.exists():
                (site / each.name).symlink_to(each)
    image = parity.draw(1, 140, 110)
    np.save(tmp_path / 'image.npy', image)
    command = [tmp_path / 'venv/bin/python', '-c', ALONE, detector[1], tmp_path / 'image.npy', tmp_path / 'found.npz']
    environment = {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ('no PyTorch\n', 0), done.stderr
    found, expected = np.load(tmp_path / 'found.npz'), load_model(detector[0], device='cpu')(image)
    assert len(expected) > 3
    assert (found['labels'] == expected.labels).all()
    np.testing.assert_allclose(found['boxes'], expected.boxes, atol=1e-3)
    assert (found['masks'] != expected.masks).mean() < 1e-4


LIKE_KNOWN = {
    'gfl': 'mmdet::gfl/gfl_r50_fpn_1x_coco.py',
    'yolox': 'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py',
    'fsaf': 'mmdet::fsaf/fsaf_r50_fpn_1x_coco.py',
    'double-head': 'mmdet::double_heads/dh-faster-rcnn_r50_fpn_1x_coco.py',
    'detr': 'mmdet::detr/detr_r50_8xb2-150e_coco.py',
    'maskformer': 'mmdet::maskformer/maskformer_r50_ms-16xb1-75e_coco.py',
}
NEW_OPTIONS = {'maskformer': {'model.test_cfg.instance_on': True}}


def graph_of(source, **options):
    """Return a model and its graph."""
    model = load_model(source, None, 'cpu', cfg_options=options, fast=False)
    return model, Graph(model.network, read_steps(write.test_pipeline(model.config)))


def compare_eagerly(source, channels=3, **options):
    """Return how a graph, run by PyTorch, predicts otherwise than its model: a report on two images of noise."""
    model, graph = graph_of(source, **options)
    rng = np.random.default_rng(0)
    images = [(str(size), rng.integers(0, 256, (*size, channels), np.uint8)) for size in ((97, 131), (180, 120))]

    def run(pixels, size):
        with torch.inference_mode():
            return [each.numpy() for each in graph(torch.from_numpy(pixels), torch.from_numpy(size))]

    meta = json.loads(json.dumps(write.describe(model, graph)))
    report = parity.compare(model, Exported(run, meta), images)
    assert not any(row.excess(1) for row in report.differences), str(report)
    return report.summary()


def refusal(source, **options):
    """Return why a model cannot be exported."""
    with pytest.raises(UserError) as error:
        graph_of(source, **options)
    return str(error.value)


@pytest.fixture(scope='module')
def retinanet(tmp_path_factory):
    """Return the checkpoint of a RetinaNet."""
    folder = tmp_path_factory.mktemp('retinanet')
    return write_checkpoint(small_config(DETECTORS['retinanet'], folder), folder / 'retinanet.pth')


@pytest.mark.parametrize('name', LIKE_KNOWN)
def test_a_head_like_a_known_one_finds_the_same(name, tmp_path):
    checkpoint = write_checkpoint(small_config(LIKE_KNOWN[name], tmp_path), tmp_path / f'{name}.pth')
    assert compare_eagerly(checkpoint, **NEW_OPTIONS.get(name, {}))['objects'] > 5


TEST_CFG = 'model.test_cfg'


@pytest.mark.parametrize(
    'options',
    [
        {f'{TEST_CFG}.rcnn.nms.class_agnostic': True, f'{TEST_CFG}.rcnn.max_per_img': -1},
        {f'{TEST_CFG}.rpn.nms_pre': -1, f'{TEST_CFG}.rpn.min_bbox_size': 20, f'{TEST_CFG}.rpn.max_per_img': 30},
        {f'{TEST_CFG}.rpn.nms.class_agnostic': True, f'{TEST_CFG}.rcnn.nms.split_thr': 5},
    ],
    ids=['rcnn', 'rpn', 'nms'],
)
def test_a_graph_follows_the_test_cfg_of_two_stages(detector, options):
    assert compare_eagerly(detector[0], **options)['objects'] > 5


def test_a_graph_follows_the_test_cfg_of_one_stage(retinanet):
    options = {f'{TEST_CFG}.min_bbox_size': 30, f'{TEST_CFG}.nms.class_agnostic': True, f'{TEST_CFG}.nms_pre': 50}
    assert compare_eagerly(retinanet, **options)['objects'] > 5


@pytest.mark.parametrize('channels', [1, 4])
def test_images_of_other_channels_are_exported(channels, tmp_path):
    cfg = small_config(DETECTORS['retinanet'], tmp_path)
    cfg.model.backbone.in_channels = channels
    given = dict(base='DetDataPreprocessor', mean=[100] * channels, std=[50] * channels, pad_size_divisor=32)
    cfg.model.data_preprocessor = dict(type='BandsPreprocessor', **given)
    cfg.test_dataloader.dataset.pipeline[0] = dict(type='LoadAnyImage', channels=channels)
    checkpoint = write_checkpoint(cfg, tmp_path / 'bands.pth')
    assert compare_eagerly(checkpoint, channels)['objects'] > 5


@pytest.fixture(scope='module')
def upernet(tmp_path_factory):
    """Return the checkpoint of an UperNet."""
    folder = tmp_path_factory.mktemp('upernet')
    return write_checkpoint(small_config(SEGMENTORS['upernet'], folder), folder / 'upernet.pth')


def test_images_are_padded_where_they_are_smaller_alone(upernet):
    settings = 'model.data_preprocessor.test_cfg'
    size = {f'{settings}.size': (140, 150), f'{settings}.size_divisor': None}  # the images become 95x128 and 160x107
    assert compare_eagerly(upernet, **size)['compared'] > 10_000


@pytest.mark.parametrize(
    ('name', 'part', 'method'),
    [
        ('retinanet', '', 'predict'),
        ('retinanet', 'bbox_head', '_bbox_post_process'),
        ('retinanet', 'data_preprocessor', 'forward'),
        ('detector', 'rpn_head', '_predict_by_feat_single'),
        ('detector', 'roi_head', '_bbox_forward'),
        ('detector', 'roi_head.bbox_head.0', 'regress_by_class'),
        ('detector', 'roi_head.mask_head.2', '_predict_by_feat_single'),
        ('upernet', '', 'postprocess_result'),
    ],
)
def test_a_class_that_goes_its_own_way_is_refused(name, part, method, request):
    fixture = request.getfixturevalue(name)
    model, _ = graph_of(fixture[0] if name == 'detector' else fixture)
    module = model.network.get_submodule(part)
    own = {method: lambda self, *args, **kwargs: None}
    module.__class__ = type('Own', (type(module),), own)
    with pytest.raises(UserError, match='cannot be exported: .*Own'):
        Graph(model.network, read_steps(write.test_pipeline(model.config)))


def test_a_model_that_predicts_at_random_is_refused(upernet):
    model, _ = graph_of(upernet)
    model.network.decode_head.rand_init = True
    with pytest.raises(UserError, match='UPerHead draws random numbers when it predicts'):
        Graph(model.network, read_steps(write.test_pipeline(model.config)))


def test_a_model_with_ops_of_mmcv_is_refused(tmp_path):
    cfg = small_config('mmdet::carafe/faster-rcnn_r50_fpn-carafe_1x_coco.py', tmp_path)
    assert 'ONNX has no operator for CARAFEPack' in refusal(write_checkpoint(cfg, tmp_path / 'carafe.pth'))


@pytest.mark.slow
@pytest.mark.parametrize('row', [row for row in ROWS if row['export']], ids=lambda row: row['config'])
def test_each_row_is_exported_or_refused(row, tmp_path):
    checkpoint = write_checkpoint(small_config(row['config'], tmp_path), tmp_path / 'model.pth')
    if row['export'] == 'yes':
        export(checkpoint, out=tmp_path / 'model.onnx')
        assert json.loads((tmp_path / 'model.parity.json').read_text())['parity']['objects'] > 5
        return
    with pytest.raises(UserError, match=re.escape(row['export'])):
        export(checkpoint, out=tmp_path / 'model.onnx')
