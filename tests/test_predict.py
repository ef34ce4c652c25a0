"""Predictions: equal to upstream's, in tiles and batches, in every kind of file, and after an interruption."""

import csv
import dataclasses
import itertools
import json
import os
import re
import shutil
import struct
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import MODELS
from PIL import ExifTags, Image
from pycocotools import mask as coco_mask

import convnext_dense
from convnext_dense import UserError, cli
from convnext_dense.configs import load_config, model_scope
from convnext_dense.data import import_data, write_shapes
from convnext_dense.predict import Objects, load_model, predict, run
from convnext_dense.predict.inputs import find_sources, read_ahead
from convnext_dense.predict.output import Output, read_images, yolo_lines
from convnext_dense.predict.tiles import blend, cut, encode_part, has_plain_values, join
from convnext_dense.report import compare

pytestmark = [
    pytest.mark.filterwarnings('ignore:.*is deprecated:DeprecationWarning:supervision'),
    pytest.mark.filterwarnings('ignore::FutureWarning:supervision'),
]
CONFIGS = {'objects': 'det/cascade_convnext_atto_shapes', 'label maps': 'seg/upernet_convnext_atto_shapes'}
OPTIONS = {'objects': {'model.test_cfg.rcnn.max_per_img': 12}, 'label maps': {}}
CLASSES = ('circle', 'square', 'triangle', 'star', 'cross')


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    """Return a folder with six drawn images of two sizes."""
    shapes = write_shapes(tmp_path_factory.mktemp('data') / 'shapes', num_train=1, num_val=6, size=64)
    folder = tmp_path_factory.mktemp('photos')
    for i, file in enumerate(sorted((shapes / 'images/val').iterdir())):
        cv2.imwrite(str(folder / file.name), cv2.resize(cv2.imread(str(file)), (70, 60) if i < 4 else (50, 64)))
    return folder


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory):
    """Return the checkpoints of a detector and of a segmentor with random weights, each in a folder of its own."""
    files = {}
    for kind, name in CONFIGS.items():
        torch.manual_seed(1)
        cfg = load_config(name, OPTIONS[kind])
        with model_scope(cfg):
            network = MODELS.build(cfg.model)
            network.init_weights()
        files[kind] = tmp_path_factory.mktemp('run') / 'epoch_1.pth'
        meta = dict(cfg=cfg.pretty_text, experiment_name=f'{Path(name).name}_20260131_093000')
        meta['dataset_meta'] = dict(classes=CLASSES if kind == 'objects' else ('sand', 'paper', 'grid', *CLASSES))
        torch.save(dict(state_dict=network.state_dict(), meta=meta), files[kind])
    return files


@pytest.fixture(scope='module')
def detector(checkpoints):
    return load_model(checkpoints['objects'], device='cpu')


@pytest.fixture(scope='module')
def segmentor(checkpoints):
    return load_model(checkpoints['label maps'], device='cpu')


def test_a_config_without_faster_layers(checkpoints, detector):
    plain = load_model(checkpoints['objects'], device='cpu', cfg_options={'speed_up': False})
    rooms = [[type(part).__module__ for part in model.network.modules()] for model in (plain, detector)]
    assert [any('convnext_dense.speed' in room for room in each) for each in rooms] == [False, True]
    assert all(model.network.rpn_head._forward_hooks for model in (plain, detector))  # boxes stay precise in bf16


def test_objects_equal_those_of_mmdetection(detector, checkpoints, images):
    from mmdet.apis import inference_detector, init_detector

    network = init_detector(
        load_config(CONFIGS['objects'], OPTIONS['objects']), str(checkpoints['objects']), device='cpu'
    )
    for file in images.iterdir():
        ours, theirs = detector(file), inference_detector(network, str(file)).pred_instances
        order = np.argsort(-theirs.scores.numpy(), kind='stable')
        assert len(ours) > 5
        assert np.allclose(ours.boxes, theirs.bboxes.numpy()[order], rtol=1e-4, atol=1e-3)  # to rounding
        assert np.array_equal(ours.labels, theirs.labels.numpy()[order])
        assert (ours.masks != theirs.masks.numpy()[order]).mean() < 1e-3


def test_label_maps_equal_those_of_mmsegmentation(segmentor, checkpoints, images):
    from mmseg.apis import inference_model, init_model

    network = init_model(load_config(CONFIGS['label maps']), str(checkpoints['label maps']), device='cpu')
    for file in images.iterdir():
        expected = inference_model(network, str(file)).pred_sem_seg.data[0].numpy()
        result = segmentor(str(file))
        assert np.array_equal(result.labels, expected)
        assert sum(result.areas().values()) == expected.size == np.prod(result.size)


def test_an_array_a_file_and_a_list_give_the_same(detector, images):
    files = sorted(images.iterdir())[:2]
    one, other = detector(files)
    assert np.array_equal(one.boxes, detector(cv2.imread(str(files[0]))).boxes)
    assert np.array_equal(other.boxes, detector(str(files[1])).boxes)


def test_arrays_and_pictures_of_other_shapes(segmentor, images):
    pixels = cv2.imread(str(min(images.iterdir())))
    grey = pixels[..., 0]
    opaque = np.dstack([pixels, grey])
    rgb = np.ascontiguousarray(pixels[..., ::-1])
    expected, expected_grey = segmentor(pixels).labels, segmentor(cv2.merge([grey] * 3)).labels
    for given in (opaque, pixels[::-1][::-1], Image.fromarray(rgb), Image.fromarray(np.dstack([rgb, grey]))):
        assert np.array_equal(segmentor(given).labels, expected)
    for given in (grey, grey[..., None], Image.fromarray(grey)):
        assert np.array_equal(segmentor(given).labels, expected_grey)
    assert np.array_equal(segmentor(grey, tile=40).labels, segmentor(cv2.merge([grey] * 3), tile=40).labels)
    turned = Image.fromarray(rgb).transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[ExifTags.Base.Orientation] = 6
    assert np.array_equal(segmentor(turned).labels, expected)


@pytest.mark.parametrize('tile', [None, 16])
@pytest.mark.parametrize(
    'given',
    [
        np.zeros((20, 20, 3), np.float32), np.zeros((20, 20), np.uint16), np.zeros((20, 20, 2), np.uint8),
        np.zeros((3, 20, 20), np.uint8), np.zeros((0, 20, 3), np.uint8), np.uint8(3), torch.zeros(20, 20, 3),
        Image.fromarray(np.zeros((20, 20), np.uint16)), Image.new('HSV', (20, 20)), None, 7, {},
    ],
    ids=lambda given: f'{type(given).__name__}-{getattr(given, "dtype", "")}-{getattr(given, "shape", "")}',
)  # fmt: skip
def test_what_is_no_image_is_answered(given, tile, segmentor):
    with pytest.raises(UserError, match=rf'uint8.*\b3\b.*got {type(given).__name__}'):
        segmentor(given, tile=tile)


@pytest.mark.parametrize('tile', [None, 16])
@pytest.mark.parametrize('name', ['none.png', 'none.tif', ''])
def test_an_image_that_is_not_there_is_named(name, tile, segmentor, tmp_path):
    with pytest.raises(UserError, match=f'image {tmp_path / name}'):
        segmentor(tmp_path / name, tile=tile)


def test_results_become_coco_and_supervision(detector, segmentor, images):
    file = min(images.iterdir())
    objects = detector(file)
    results = objects.to_coco(image_id=3, category_ids=[10, 20, 30, 40, 50])
    assert [each['category_id'] // 10 - 1 for each in results] == objects.labels.tolist()
    left, top, right, bottom = objects.boxes[0]
    assert results[0]['bbox'] == pytest.approx([left, top, right - left, bottom - top], abs=1e-3)
    assert np.array_equal(coco_mask.decode(results[0]['segmentation']), objects.masks[0])
    found = objects.to_supervision()
    assert np.array_equal(found.xyxy, objects.boxes)
    assert found.data['class_name'].tolist() == objects.names

    regions = segmentor(file)
    masks = {each['category_id'] - 1: coco_mask.decode(each['segmentation']) for each in regions.to_coco()}
    assert np.array_equal(sum(label * mask for label, mask in masks.items()), regions.labels)


# --- tiles


def test_an_image_that_fits_into_a_tile_is_predicted_as_without(detector, segmentor, images):
    file = min(images.iterdir())
    assert np.array_equal(detector(file, tile=70).boxes, detector(file).boxes)
    assert np.array_equal(segmentor(file, tile=70).labels, segmentor(file).labels)


@pytest.mark.parametrize(
    ('height', 'width', 'side', 'overlap'), [(64, 64, 64, 0.5), (500, 77, 64, 0.25), (65, 64, 64, 0)]
)
def test_tiles_cover_an_image_and_overlap(height, width, side, overlap):
    tiles = cut(height, width, side, overlap)
    seen = np.zeros((height, width), int)
    for left, top, right, bottom in tiles:
        assert (right - left, bottom - top) == (min(side, width), min(side, height))
        seen[top:bottom, left:right] += 1
    assert seen.min() == 1
    lefts = sorted({tile.left for tile in tiles})
    assert all(right - left <= side - int(overlap * side) for left, right in itertools.pairwise(lefts))


def seen_by(tile, boxes, labels, size):
    """Return what a faultless detector finds in a tile."""
    low, high = np.array(tile[:2] * 2), np.array(tile[2:] * 2)
    clipped = boxes.clip(low, high)
    there = (clipped[:, 2:] > clipped[:, :2]).all(1)
    inner = clipped[there] - low
    masks = np.zeros((len(inner), tile.bottom - tile.top, tile.right - tile.left), np.uint8)
    for mask, (left, top, right, bottom) in zip(masks, inner, strict=True):
        mask[top:bottom, left:right] = 1
    rles = [coco_mask.encode(np.asfortranarray(mask)) for mask in masks]
    scores = np.linspace(0.9, 0.5, len(boxes), dtype=np.float32)[there]
    return Objects(inner.astype(np.float32), scores, labels[there], masks.shape[1:], CLASSES, rles)


@pytest.mark.parametrize('side', [50, 64, 200])
def test_objects_cut_by_tiles_are_whole_again(side):
    size = (150, 170)
    grid = [(x, y) for x in range(3, 150, 28) for y in range(3, 130, 28)]
    rng = np.random.default_rng(0)
    boxes = np.array([(x, y, x + rng.integers(5, 25), y + rng.integers(5, 25)) for x, y in grid])
    boxes = np.concatenate([boxes, [[2, 60, 165, 64]]])  # through all tiles of a row
    labels = np.array([i % 4 for i in range(len(grid))] + [4])
    tiles = cut(*size, side, 0.4)
    found = join(tiles, [seen_by(tile, boxes, labels, size) for tile in tiles])
    assert len(found) == len(boxes)
    order = [int(np.flatnonzero((np.abs(found.boxes - box).max(1) < 1.5) & (found.labels == label))[0])
             for box, label in zip(boxes, labels, strict=True)]  # fmt: skip
    assert sorted(order) == list(range(len(boxes)))
    for mask, (left, top, right, bottom) in zip(found.masks[order], boxes, strict=True):
        assert mask.sum() == mask[top:bottom, left:right].sum() == (right - left) * (bottom - top)


def test_neighbours_of_one_class_stay_apart():
    boxes, labels = np.array([[30, 10, 48, 30], [50, 10, 70, 30], [30, 32, 70, 50]]), np.zeros(3, int)
    tiles = cut(60, 100, 60, 0.4)
    found = join(tiles, [seen_by(tile, boxes, labels, (60, 100)) for tile in tiles])
    assert sorted(found.boxes.round().tolist()) == sorted(boxes.tolist())


def test_what_a_tile_finds_twice_is_one_object():
    boxes, size = np.array([[40, 10, 80, 30]]), (60, 96)
    tiles = cut(*size, 60, 0.4)
    one, other = (seen_by(tile, boxes, np.zeros(1, int), size) for tile in tiles)
    other = other.take([0, 0])
    other.boxes[1] += [3, 2, -2, -2]
    assert join(tiles, [one, other]).boxes.round().tolist() == boxes.tolist()


@pytest.mark.parametrize('num_classes', [1, 4])
def test_blended_scores_of_a_segmentor_without_context_equal_the_whole(num_classes):
    scores = np.random.default_rng(0).normal(size=(num_classes, 90, 130)).astype(np.float32)
    tiles = cut(90, 130, 40, 0.3)
    parts = iter([scores[:, tile.top : tile.bottom, tile.left : tile.right] for tile in tiles])
    expected = scores.argmax(0) if num_classes > 1 else scores[0] > 0
    assert np.array_equal(blend(tiles, parts, (90, 130)), expected)


def test_a_part_of_a_mask_is_encoded_as_the_whole():
    rng = np.random.default_rng(0)
    for left, top, height, width in [(0, 0, 20, 30), (4, 5, 7, 9), (10, 0, 20, 3), (3, 19, 1, 20)]:
        whole = np.zeros((20, 30), np.uint8)
        part = rng.random((height, width)) < 0.7
        part[:, 0] = True
        whole[top : top + height, left : left + width] = part
        assert encode_part(part, left, top, (20, 30)) == coco_mask.encode(np.asfortranarray(whole))


@pytest.mark.filterwarnings('ignore:Dataset has no geotransform')
def test_a_tiff_is_read_in_windows(segmentor, images, tmp_path, monkeypatch):
    rasterio = pytest.importorskip('rasterio')
    pixels = np.vstack([np.hstack([cv2.imread(str(file)) for file in sorted(images.iterdir())[:2]])] * 2)
    options = dict(width=140, height=120, count=3, dtype='uint8', tiled=True, blockxsize=16, blockysize=16)
    with rasterio.open(tmp_path / 'large.tif', 'w', **options) as file:
        file.write(pixels[..., ::-1].transpose(2, 0, 1))
    expected = segmentor(pixels, tile=64).labels
    monkeypatch.setattr(type(segmentor), 'read', None)  # the whole is not read
    assert np.array_equal(segmentor(tmp_path / 'large.tif', tile=64).labels, expected)
    assert run.predict_with(segmentor, [tmp_path / 'large.tif'], tmp_path / 'out', tile=64) == 0  # with a picture


def test_the_header_of_a_tiff_of_many_pixels_is_read(tmp_path):
    tags = {256: 20000, 257: 20000, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 20000, 279: 4 * 10**8}
    entries = b''.join(struct.pack('<HHII', tag, 4, 1, value) for tag, value in tags.items())
    (tmp_path / 'large.tif').write_bytes(struct.pack('<2sHIH', b'II', 42, 8, len(tags)) + entries + bytes(4))
    with pytest.raises(Image.DecompressionBombError), Image.open(tmp_path / 'large.tif'):
        pass
    assert has_plain_values(tmp_path / 'large.tif')


# --- models


def test_a_work_dir_stands_for_its_best_checkpoint(checkpoints, tmp_path):
    content = torch.load(checkpoints['objects'], weights_only=False)
    for name in ('epoch_1.pth', 'best_coco_bbox_mAP_epoch_1.pth', 'epoch_2.pth'):
        torch.save(content, tmp_path / name)
    assert Path(load_model(tmp_path).checkpoint).name == 'best_coco_bbox_mAP_epoch_1.pth'
    (tmp_path / 'best_coco_bbox_mAP_epoch_1.pth').unlink()
    assert Path(load_model(tmp_path).checkpoint).name == 'epoch_2.pth'


def test_a_published_model_is_loaded(checkpoints, detector, images, tmp_path):
    from convnext_dense.weights.publish import publish

    published = publish(checkpoints['objects'], tmp_path / 'mine')
    model, file = load_model(published.file), min(images.iterdir())
    assert model.classes == CLASSES
    assert np.array_equal(model(file).boxes, detector(file).boxes)


def test_tta_is_that_of_the_config(checkpoints, images):
    file = min(images.iterdir())
    model = load_model(checkpoints['label maps'], tta=True)
    assert model(file).size == (60, 70)
    assert model(file, tile=40).size == (60, 70)


@pytest.mark.parametrize(
    ('source', 'named'),
    [
        ('{tmp}', 'no checkpoint'),
        ('{tmp}/none.pth', 'none.pth'),
        ('det/some.py', '--config'),
        ('{tmp}/bare.pth', '--config'),
    ],
)
def test_what_is_no_model_is_answered(source, named, tmp_path, checkpoints):
    folder = tmp_path / 'empty'
    folder.mkdir()
    torch.save(torch.load(checkpoints['objects'], weights_only=False)['state_dict'], folder / 'bare.pth')
    if source == '{tmp}':
        (folder / 'bare.pth').unlink()
    with pytest.raises(UserError, match=named):
        load_model(source.format(tmp=folder))


def test_weights_that_do_not_fit_are_refused(checkpoints):
    with pytest.raises(UserError, match='does not fit'):
        load_model(checkpoints['objects'], CONFIGS['label maps'])


@pytest.mark.parametrize('kind', CONFIGS)
@pytest.mark.parametrize('more', [-1, 1])
def test_as_many_names_as_the_heads_have_classes(kind, more, checkpoints, tmp_path):
    content = torch.load(checkpoints[kind], weights_only=False)
    number = len(content['meta']['dataset_meta']['classes'])
    content['meta']['dataset_meta']['classes'] = [f'class {i}' for i in range(number + more)]
    torch.save(content, tmp_path / 'epoch_1.pth')
    with pytest.raises(UserError, match=rf'\b{number + more}\b.*class 0.*\b{number}\b'):
        load_model(tmp_path / 'epoch_1.pth')


# --- the command


def predict_all(checkpoints, inputs, out, kind='objects', **options):
    return predict(checkpoints[kind], [str(each) for each in inputs], out, device='cpu', **options)


def rows_of(out):
    return [json.loads(line) for line in (out / 'images.jsonl').read_text().splitlines()][1:]


def test_the_command_writes_what_was_found(checkpoints, detector, images, tmp_path, capsys):
    with pytest.raises(SystemExit, match='0'):
        cli.main('predict', [str(checkpoints['objects']), str(images), '--out', str(tmp_path), '--score', '0.16',
                             '--save', 'pictures', 'coco', 'csv', 'yolo', '--device', 'cpu'])  # fmt: skip
    files = sorted(images.iterdir())
    results = json.loads((tmp_path / 'predictions.json').read_text())
    expected = {file.name: detector(file).select(0.16) for file in files}
    assert sum(map(len, expected.values())) == len(results) > 0
    for name, objects in expected.items():
        own = [each for each in results if each['file_name'] == name]
        assert [each['bbox'] for each in own] == [each['bbox'] for each in objects.to_coco()]
    with (tmp_path / 'predictions.csv').open() as stream:
        table = list(csv.DictReader(stream))
    assert [row['class'] for row in table] == [CLASSES[each['category_id'] - 1] for each in results]
    assert sorted(file.stem for file in (tmp_path / 'pictures').iterdir()) == [file.stem for file in files]
    picture = cv2.imread(str(tmp_path / f'pictures/{files[0].stem}.jpg')).astype(float)
    assert np.abs(picture - cv2.imread(str(files[0]))).max() > 50
    assert '6 of 6' in capsys.readouterr().out


def test_yolo_labels_are_read_back(checkpoints, images, tmp_path):
    data = tmp_path / 'data'
    predict_all(checkpoints, [images], data, score=0.16, save=['yolo'])
    (data / 'images').mkdir()
    for file in images.iterdir():
        (data / 'images' / file.name).write_bytes(file.read_bytes())
    imported = import_data(data, tmp_path / 'coco', data_format='yolo')
    assert imported.classes == list(CLASSES)
    read = Counter()
    for file in (tmp_path / 'coco').glob('*.json'):
        content = json.loads(file.read_text())
        names = {each['id']: Path(each['file_name']).name for each in content['images']}
        read.update((names[each['image_id']], each['category_id']) for each in content['annotations'])
    written = Counter((row['file_name'], each['category_id']) for row in rows_of(data) for each in row['objects'])
    assert read == written
    assert written.total() > 20


def test_yolo_lines_hold_the_box_or_the_outline():
    objects = Objects(np.float32([[10, 20, 30, 60]]), np.ones(1), np.array([2]), (100, 200), CLASSES)
    assert yolo_lines(objects) == '2 0.1 0.4 0.1 0.4\n'
    mask = np.zeros((100, 200), np.uint8)
    cv2.circle(mask, (60, 50), 30, 1, -1)
    mask[0:2, 0:2] = 1  # a smaller part
    objects = dataclasses.replace(objects, given_masks=[coco_mask.encode(np.asfortranarray(mask))])
    label, *outline = map(float, yolo_lines(objects).split())
    assert label == 2
    polygon = np.array(outline).reshape(-1, 2) * [200, 100]
    drawn = coco_mask.decode(coco_mask.frPyObjects([polygon.ravel().tolist()], 100, 200))[..., 0]
    mask[0:2, 0:2] = 0
    assert (drawn & mask).sum() / (drawn | mask).sum() > 0.93


def test_label_maps_are_written_and_counted(checkpoints, segmentor, images, tmp_path):
    predict_all(checkpoints, [images], tmp_path, 'label maps', save=['maps', 'csv', 'pictures'])
    for file in images.iterdir():
        written = cv2.imread(str(tmp_path / f'labels/{file.stem}.png'), cv2.IMREAD_UNCHANGED)
        assert np.array_equal(written, segmentor(file).labels)
    with (tmp_path / 'predictions.csv').open() as stream:
        pixels = sum(int(row['pixels']) for row in csv.DictReader(stream))
    assert pixels == 4 * 60 * 70 + 2 * 64 * 50


@pytest.mark.parametrize('batch', [1, 3])
def test_bad_files_do_not_stop_the_others(checkpoints, images, tmp_path, batch, capsys):
    folder = tmp_path / 'photos'
    folder.mkdir()
    good = sorted(images.iterdir())
    for file in good:
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / '000000_cut.png').write_bytes(good[0].read_bytes()[:300])
    (folder / '000002_text.jpg').write_text('no picture')
    assert predict_all(checkpoints, [folder], tmp_path / 'out', batch=batch) == 1
    said = capsys.readouterr().out
    assert '6 of 8' in said
    assert '000002_text.jpg' in said
    assert '000000_cut.png cannot be read: it is a PNG that is cut short' in said
    assert {row['file_name'] for row in rows_of(tmp_path / 'out') if 'error' not in row} == {each.name for each in good}


def test_batches_give_what_single_images_give(checkpoints, images, tmp_path):
    predict_all(checkpoints, [images], tmp_path / 'one', save=['coco'])
    predict_all(checkpoints, [images], tmp_path / 'many', save=['coco'], batch=4)
    one, many = (json.loads((tmp_path / name / 'predictions.json').read_text()) for name in ('one', 'many'))
    assert [each['file_name'] for each in one] == [each['file_name'] for each in many]
    assert np.allclose([each['bbox'] for each in one], [each['bbox'] for each in many], atol=1e-2)


def test_an_interrupted_prediction_goes_on_and_gives_the_same(checkpoints, images, tmp_path, monkeypatch, capsys):
    predict_all(checkpoints, [images], tmp_path / 'whole', save=['coco', 'csv'])
    seen = []

    def broken_off(model, frames, *others):
        seen.append(frames)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return predict_batch(model, frames, *others)

    predict_batch = run.predict_batch
    monkeypatch.setattr(run, 'predict_batch', broken_off)
    with pytest.raises(KeyboardInterrupt):
        predict_all(checkpoints, [images], tmp_path / 'twice', save=['coco', 'csv'])
    log = tmp_path / 'twice/images.jsonl'
    assert len(rows_of(tmp_path / 'twice')) == 3
    log.write_bytes(log.read_bytes() + b'{"file_name": "half a li')
    predict_all(checkpoints, [images], tmp_path / 'twice', save=['coco', 'csv'])
    assert '3 of 6 files were predicted before' in capsys.readouterr().err
    for name in ('images.jsonl', 'predictions.json', 'predictions.csv'):
        assert (tmp_path / 'twice' / name).read_text() == (tmp_path / 'whole' / name).read_text()


def test_a_folder_keeps_to_one_model_and_one_set_of_options(checkpoints, images, tmp_path):
    predict_all(checkpoints, [min(images.iterdir())], tmp_path)
    with pytest.raises(UserError, match=r'score.*0\.3.*0\.5.*--out'):
        predict_all(checkpoints, [images], tmp_path, score=0.5)
    with pytest.raises(UserError, match='epoch_1'):
        predict_all(checkpoints, [images], tmp_path, 'label maps')
    with pytest.raises(UserError, match='config'):
        predict_all(checkpoints, [images], tmp_path, cfg_options={'model.test_cfg.rcnn.max_per_img': 3})
    other = tmp_path.with_name('other')
    other.mkdir()
    shutil.copy(min(images.iterdir()), other)
    with pytest.raises(UserError, match=f'folder.*{images}'):
        predict_all(checkpoints, [other], tmp_path)


def test_a_changed_image_is_predicted_again_and_own_pictures_are_not(checkpoints, images, tmp_path, capsys):
    photos = tmp_path / 'photos'
    shutil.copytree(images, photos)
    predict_all(checkpoints, [photos], photos / 'out', save=['pictures', 'csv'])
    first, second = sorted(photos.glob('*.png'))[:2]
    shutil.copy(second, first)
    os.utime(first, (1, 1))
    predict_all(checkpoints, [photos], photos / 'out', save=['pictures', 'csv'])
    assert '5 of 6 files were predicted before' in capsys.readouterr().err
    with (photos / 'out/predictions.csv').open() as stream:
        rows = list(csv.DictReader(stream))
    one, other = ([row['x1'] for row in rows if row['file_name'] == file.name] for file in (first, second))
    assert one == other


@pytest.mark.parametrize('inside', ['pictures/000000.jpg', 'labels/000000.txt', 'x.png'])
def test_a_folder_of_the_user_is_not_written_to(inside, checkpoints, images, tmp_path):
    (tmp_path / inside).parent.mkdir(exist_ok=True)
    shutil.copy(min(images.iterdir()), tmp_path / inside)
    before = (tmp_path / inside).read_bytes()
    with pytest.raises(UserError, match='no prediction wrote'):
        predict_all(checkpoints, [images], tmp_path)
    assert (tmp_path / inside).read_bytes() == before


def test_an_image_that_cannot_be_drawn_does_not_stop_the_others(checkpoints, images, tmp_path, monkeypatch):
    def fail(frame, result):
        raise ValueError('a side too long')

    monkeypatch.setattr(Output, 'add_picture', lambda self, frame, result: fail(frame, result))
    assert predict_all(checkpoints, [images], tmp_path / 'out') == 1
    assert all('a side too long' in row['error'] for row in rows_of(tmp_path / 'out'))


def write_video(file, images, count=6, code='mp4v'):
    """Write a video of 64x64 pixels with so many frames."""
    video = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*code), 10, (64, 64))
    for image in itertools.islice(itertools.cycle(sorted(images.iterdir())), count):
        video.write(cv2.resize(cv2.imread(str(image)), (64, 64)))
    video.release()
    return file


def test_a_video_becomes_a_video(checkpoints, images, tmp_path):
    write_video(tmp_path / 'clip.mp4', images)
    assert predict_all(checkpoints, [tmp_path / 'clip.mp4'], tmp_path / 'out', batch=4) == 0
    assert [row['frame'] for row in rows_of(tmp_path / 'out')[:-1]] == list(range(6))
    drawn = cv2.VideoCapture(str(tmp_path / 'out/pictures/clip.mp4'))
    assert (drawn.get(cv2.CAP_PROP_FRAME_COUNT), drawn.get(cv2.CAP_PROP_FPS)) == (6, 10)
    drawn.release()


@pytest.mark.parametrize(('name', 'code'), [('clip.mp4', 'mp4v'), ('clip.avi', 'MJPG')])
@pytest.mark.parametrize('count', [1, 30])
def test_a_sound_video_has_as_many_frames_as_it_promises(name, code, count, images, tmp_path, capfd):
    _, [source] = find_sources([write_video(tmp_path / name, images, count, code)])
    frames = list(read_ahead([source], None))
    assert [frame.number for frame in frames] == list(range(count))
    assert not any(isinstance(frame.image, UserError) for frame in frames)
    assert 'note' not in capfd.readouterr().err


@pytest.mark.parametrize(('name', 'code'), [('clip.mp4', 'mp4v'), ('clip.avi', 'MJPG')])
def test_a_damaged_video_is_named_and_its_other_frames_are_kept(name, code, checkpoints, images, tmp_path, capsys):
    content = bytearray(write_video(tmp_path / name, images, 30, code).read_bytes())
    third = len(content) // 3
    content[third : third + 4000] = bytes(4000)
    (tmp_path / name).write_bytes(content)
    for _ in range(2):  # it is not done
        assert predict_all(checkpoints, [tmp_path / name], tmp_path / 'out', 'label maps', save=['csv']) == 1
        said = capsys.readouterr()
        assert re.search(rf'0 of 1 files.*{name} .*\d\d of 30 frames', said.out, re.DOTALL)
        assert 'before' not in said.err
    with (tmp_path / 'out/predictions.csv').open() as stream:
        frames = {int(row['frame']) for row in csv.DictReader(stream)}
    assert 15 < len(frames) < 30
    assert len(frames) < 1 + max(frames) or name == 'clip.avi'  # those behind the damage have their own numbers


def test_a_trimmed_video_is_no_damaged_one(images, tmp_path, capfd):
    content = bytearray(write_video(tmp_path / 'clip.mp4', images, 30).read_bytes())
    place = content.index(b'elst') + 12  # of the duration and the beginning that an edit list shows
    content[place : place + 4] = (1000).to_bytes(4, 'big')
    (tmp_path / 'clip.mp4').write_bytes(content)
    _, sources = find_sources([tmp_path / 'clip.mp4'])
    frames = list(read_ahead(sources, None))
    assert len(frames) < 30
    assert not any(isinstance(frame.image, UserError) for frame in frames)
    assert re.search(r'clip\.mp4.*30', capfd.readouterr().err)


def test_a_video_with_a_frame_that_failed_is_predicted_again(checkpoints, images, tmp_path, monkeypatch, capsys):
    inputs = [write_video(tmp_path / 'clip.mp4', images)]

    def fail_once(self, frame, result):
        if frame.number == 2:
            monkeypatch.undo()
            raise ValueError('a bad moment')

    monkeypatch.setattr(Output, 'add_picture', fail_once)
    assert predict_all(checkpoints, inputs, tmp_path / 'out', 'label maps') == 1
    assert re.search('0 of 1 files.*clip.mp4, frame 2.*a bad moment', capsys.readouterr().out, re.DOTALL)
    assert predict_all(checkpoints, inputs, tmp_path / 'out', 'label maps') == 0
    assert len(list(read_images(tmp_path / 'out'))) == 6
    predict_all(checkpoints, inputs, tmp_path / 'out', 'label maps')
    assert '1 of 1 files were predicted before' in capsys.readouterr().err


def test_what_an_earlier_file_held_is_forgotten(checkpoints, images, tmp_path):
    clip, image = write_video(tmp_path / 'clip.mp4', images), tmp_path / 'image.png'
    shutil.copy(min(images.iterdir()), image)
    predict_all(checkpoints, [clip, image], tmp_path / 'out', 'label maps', save=['csv'])
    write_video(clip, images, count=3)
    image.write_text('no picture')
    assert predict_all(checkpoints, [clip, image], tmp_path / 'out', 'label maps', save=['csv']) == 1
    assert [row['frame'] for row in read_images(tmp_path / 'out')] == [0, 1, 2]


def test_a_gif_that_moves_is_a_video(checkpoints, images, tmp_path):
    pages = [Image.fromarray(cv2.imread(str(file))).resize((41, 33)) for file in sorted(images.iterdir())]
    pages[0].save(tmp_path / 'moves.gif', save_all=True, append_images=pages[1:4], duration=100)
    pages[0].save(tmp_path / 'still.gif')
    if not cv2.haveImageReader(str(tmp_path / 'still.gif')):
        pytest.skip('OpenCV before 4.12 may lack GIF')
    assert predict_all(checkpoints, tmp_path.glob('*.gif'), tmp_path / 'out', 'label maps') == 0
    found = [(row['file_name'], row.get('frame')) for row in read_images(tmp_path / 'out')]
    assert sorted(found, key=str) == [*(('moves.gif', i) for i in range(4)), ('still.gif', None)]
    drawn = cv2.VideoCapture(str(tmp_path / 'out/pictures/moves.mp4'))
    assert (drawn.get(cv2.CAP_PROP_FRAME_COUNT), drawn.read()[1].shape) == (4, (34, 42, 3))  # of an even size
    drawn.release()


def test_pages_that_are_left_out_are_named(checkpoints, images, tmp_path, capsys):
    pages = [Image.fromarray(cv2.imread(str(file))) for file in sorted(images.iterdir())]
    for name in ('scan.tif', 'moves.webp'):
        pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:3])
    pages[0].save(tmp_path / 'page.tif')
    predict_all(checkpoints, [tmp_path], tmp_path / 'out', 'label maps', save=['csv'])
    said = capsys.readouterr().err
    assert re.search(r'note: 2 .*first.*moves\.webp.*scan\.tif', said)
    assert 'page.tif' not in said


@pytest.mark.parametrize('overlap', [0, 0.25])
def test_tiles_without_an_overlap_are_told_to_cut_objects(overlap, checkpoints, images, tmp_path, capsys):
    options = dict(save=['coco'], tile=200, overlap=overlap)
    predict_all(checkpoints, [min(images.iterdir())], tmp_path, **options)
    assert ('in parts' in capsys.readouterr().err) == (overlap == 0)


@pytest.mark.parametrize(
    ('options', 'named'),
    [
        (dict(classes=['squirrel']), 'squirrel.*circle'),
        (dict(save=['maps']), 'maps.*pictures, coco'),
        (dict(batch=0), '--batch'),
        (dict(tile=0), 'tile'),
        (dict(score=1.5), '--score'),
        (dict(kind='label maps', score=0.5), '--score'),
    ],
)
def test_options_that_cannot_be_are_answered(checkpoints, images, tmp_path, options, named):
    with pytest.raises(UserError, match=named):
        predict_all(checkpoints, [images], tmp_path, **options)


# --- inputs


def test_inputs_are_files_folders_patterns_and_lists(images, tmp_path):
    files = sorted(images.iterdir())
    inside = tmp_path / 'list.txt'
    inside.write_text(f'\ufeff{files[0]}\r\n\r\nbeside.png\n', encoding='utf-8')
    (tmp_path / 'beside.png').write_bytes(files[1].read_bytes())
    assert [each.path for each in find_sources([images])[1]] == files
    assert [each.path for each in find_sources([f'{images}/*2.png', files[2], files[0]])[1]] == [files[2], files[0]]
    assert [each.path for each in find_sources([inside])[1]] == [files[0], tmp_path / 'beside.png']


def test_files_that_share_a_name_keep_their_results_apart(tmp_path):
    for name in ('a/x.png', 'b/x.png', 'a/x.jpg', 'a/y.jpg'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    sources = {each.name: each.stem for each in find_sources([tmp_path])[1]}
    assert sources == {name: name for name in ('a/x.jpg', 'a/x.png', 'a/y.jpg', 'b/x.png')}
    (tmp_path / 'a/x.jpg').unlink()
    assert {each.stem for each in find_sources([tmp_path])[1]} == {'a/x', 'a/y', 'b/x'}


@pytest.mark.parametrize('given', ['none.jpg', '*.none', 'notes.docx', 'empty', 'lists.txt', 'empty.txt', 'latin.txt'])
def test_what_is_no_input_is_answered(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('notes.docx').touch()
    Path('empty').mkdir()
    for name, text in (('lists', b'lists.txt'), ('empty', b'\n'), ('latin', b'\xe4.jpg')):
        Path(f'{name}.txt').write_bytes(text)
    with pytest.raises(UserError, match=given.replace('*', '.')):
        find_sources([given])


def test_images_are_read_ahead_in_their_order(images):
    _, sources = find_sources([images])
    seen = [frame.source for frame in read_ahead(sources, lambda path: np.zeros((1, 1, 3)), workers=3, ahead=2)]
    assert seen == sources


def test_load_model_is_at_the_top():
    assert convnext_dense.load_model is load_model


# --- compared with what is right


def test_predictions_are_compared_with_coco_annotations(checkpoints, images, tmp_path, capsys):
    """The predictions of a model are taken for what is right, so that each object is found and AP is 1."""
    detector = load_model(checkpoints['objects'])
    content = dict(images=[], annotations=[], categories=[dict(id=9 - i, name=each) for i, each in enumerate(CLASSES)])
    for file in images.iterdir():
        found = detector(file)
        content['images'].append(dict(id=file.stem, file_name=f'elsewhere/{file.name}'))
        for each in found.to_coco(file.stem, [9, 8, 7, 6, 5]):
            content['annotations'].append(dict(each, id=len(content['annotations']) + 1, iscrowd=0))
    (tmp_path / 'ann.json').write_text(json.dumps(content))
    options = dict(inputs=[images], out=tmp_path / 'out', device='cpu', save=['coco'])
    assert compare.predict(checkpoints['objects'], compare=tmp_path / 'ann.json', **options) == 0
    said = capsys.readouterr().out
    assert '6 of 6 annotated images, 6 predicted' in said
    assert re.search(r'mean +1\.000 +1\.000', said)
    compare.predict(
        checkpoints['objects'], compare=tmp_path / 'ann.json', **options | dict(inputs=[min(images.iterdir())])
    )
    assert '1 of 6 annotated images, 1 predicted' in capsys.readouterr().out  # whatever the folder holds


@pytest.mark.parametrize('reduce_zero_label', [False, True])
def test_predictions_are_compared_with_label_maps(checkpoints, images, tmp_path, capsys, reduce_zero_label):
    segmentor = load_model(checkpoints['label maps'])
    (tmp_path / 'right').mkdir()
    for file in images.iterdir():
        labels = segmentor(file).labels + np.uint8(reduce_zero_label)
        labels[:10] = 0 if reduce_zero_label else 255  # pixels without a class
        cv2.imwrite(str(tmp_path / f'right/{file.stem}.png'), labels)
    options = dict(inputs=[images], out=tmp_path / 'out', device='cpu')
    options['cfg_options'] = {'test_dataloader.dataset.reduce_zero_label': reduce_zero_label}
    assert compare.predict(checkpoints['label maps'], compare=tmp_path / 'right', **options) == 0
    said = capsys.readouterr().out
    assert 'compared with' in said
    assert re.search(r'mIoU +1\.000', said)


def test_the_label_maps_of_these_images_are_compared(checkpoints, images, tmp_path, capsys):
    """Those of an earlier run are wrong; those that are right have a palette, or another size."""
    segmentor, files = load_model(checkpoints['label maps']), sorted(images.iterdir())
    (tmp_path / 'right').mkdir()
    for file in files:
        labels = Image.fromarray(segmentor(file).labels + (file == files[0]))
        labels.putpalette([each for colour in segmentor.palette for each in colour])
        labels.save(tmp_path / f'right/{file.stem}.png')
    options = dict(out=tmp_path / 'out', device='cpu', compare=tmp_path / 'right')
    options['cfg_options'] = {'test_dataloader.dataset.reduce_zero_label': False}
    compare.predict(checkpoints['label maps'], inputs=files[:2], **options)
    compare.predict(checkpoints['label maps'], inputs=files[1:3], **options)
    assert re.search(r'2 of 2 images\nmIoU +0\..*2 of 2 images\nmIoU +1\.000', capsys.readouterr().out, re.DOTALL)
    Image.new('L', (70, 60), 255).save(tmp_path / f'right/{files[0].stem}.png')  # no pixel has a class
    compare.predict(checkpoints['label maps'], inputs=files[:1], **options)
    assert re.search(r'1 of 1 images\nmIoU +-', capsys.readouterr().out)
    labels.convert('RGB').save(tmp_path / f'right/{files[1].stem}.png')
    with pytest.raises(UserError, match=rf'{files[1].stem}\.png.*3\).*60, 70'):
        compare.predict(checkpoints['label maps'], inputs=files[1:3], **options)


def test_files_whose_results_get_other_names_are_predicted_again(checkpoints, images, tmp_path):
    one, other = tmp_path / 'photos/x.png', tmp_path / 'photos/x.bmp'
    one.parent.mkdir()
    shutil.copy(min(images.iterdir()), one)
    predict_all(checkpoints, [one], tmp_path / 'out', 'label maps')
    cv2.imwrite(str(other), 255 - cv2.imread(str(one)))
    predict_all(checkpoints, [one, other], tmp_path / 'out', 'label maps')
    assert {file.name for file in (tmp_path / 'out/labels').iterdir()} >= {'x.png.png', 'x.bmp.png'}


@pytest.mark.parametrize('kind', CONFIGS)
def test_what_cannot_be_compared_is_answered(kind, checkpoints, images, tmp_path):
    options = dict(inputs=[images], out=tmp_path / 'out', device='cpu')
    with pytest.raises(UserError, match=f'none.*{kind}'):
        compare.predict(checkpoints[kind], compare=tmp_path / 'none', **options)


def test_images_without_objects_do_not_hide_the_masks():
    mask = coco_mask.encode(np.asfortranarray(np.pad(np.ones((20, 10), np.uint8), ((5, 75), (3, 187)))))
    mask = dict(mask, counts=mask['counts'].decode())
    found = dict(category_id=2, score=0.9, bbox=[3, 5, 10, 20], segmentation=mask)
    rows = {'a.png': dict(width=200, height=100, objects=[]), 'b.png': dict(width=200, height=100, objects=[found])}
    instance = dict(bbox=[3, 5, 13, 25], bbox_label=1, ignore_flag=0)
    right = {'a.png': [], 'b.png': [dict(instance, mask=mask)]}
    assert re.search(r'square( +1\.000){4}', compare.compare_objects(rows, right, CLASSES))
    right['b.png'] = [dict(instance, mask=None)]
    said = compare.compare_objects(rows, right, CLASSES)
    assert re.search(r'square( +1\.000){2}$', said, re.MULTILINE)
    assert 'mask' not in said  # nothing says what they should be
    for size, counts in ([9, 9], [81]), ([100, 200], [5, 10]), ([100, 200], [5, 10**6]), ([100, 200], 'zzz'):
        right['b.png'] = [dict(instance, mask=dict(size=size, counts=counts))]
        with pytest.raises(UserError, match=r'b\.png'):
            compare.compare_objects(rows, right, CLASSES)


@pytest.mark.parametrize(
    'change',
    [
        lambda content: content.pop('annotations'),
        lambda content: content['annotations'][0].pop('bbox'),
        lambda content: content['annotations'][0].update(category_id=77),
        lambda content: content['annotations'][0].update(bbox=[1, 2, 'x', 4]),
        lambda content: content['images'][0].pop('file_name'),
    ],
)
def test_annotations_that_are_none_are_answered_before_the_prediction(change, tmp_path):
    content = dict(
        images=[dict(id=1, file_name='a.png')],
        annotations=[dict(id=1, image_id=1, category_id=1, bbox=[1, 2, 3, 4])],
        categories=[dict(id=1, name='star')],
    )
    (tmp_path / 'ann.json').write_text(json.dumps(content))
    assert compare.read_right(tmp_path / 'ann.json', CLASSES)['a.png'][0]['bbox'] == [1, 2, 4, 6]
    change(content)
    (tmp_path / 'ann.json').write_text(json.dumps(content))
    with pytest.raises(UserError, match='ann.json.*check-data'):
        compare.read_right(tmp_path / 'ann.json', CLASSES)
