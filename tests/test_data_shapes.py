"""The drawn data set: its scenes, its folder on disk, and what the stock datasets read from it."""

import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

import convnext_dense  # noqa: F401 - makes mmdet importable
from convnext_dense.compat.errors import UserError
from convnext_dense.data import datasets, shapes
from convnext_dense.data.datasets import polygons, write_shapes
from convnext_dense.data.shapes import LABELS, SHAPES, draw_scene

# Enough pictures for empty ones in both splits.
SMALL = {'seed': 3, 'num_train': 60, 'num_val': 40}
FEW = {'num_train': 3, 'num_val': 2, 'size': 64}


@pytest.fixture(scope='module')
def scenes():
    return [draw_scene(3, 'train', index) for index in range(400)]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp('data') / 'shapes', **SMALL)


def hashes(root):
    files = sorted(path for path in Path(root).rglob('*') if path.is_file())
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def overlap(a, b):
    """Intersection over union of two masks."""
    return (a & b).sum() / (a | b).sum()


def tight_box(mask):
    rows, columns = np.nonzero(mask)
    return [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]


def siblings(root):
    return sorted(path.name for path in Path(root).parent.iterdir())


# -------------------------------------------------------------------------------------------------------------- scenes


@pytest.mark.parametrize('other', [(1, 'train', 5), (0, 'val', 5), (0, 'train', 6)])
def test_scene_differs_with_seed_split_and_index(other):
    assert draw_scene(0, 'train', 5).image.tobytes() != draw_scene(*other).image.tobytes()


@pytest.mark.parametrize('size', [64, 128, 200])
def test_scene_sizes_and_types(size):
    sides = set()
    for index in range(12):
        scene = draw_scene(0, 'val', index, size=size)
        height, width = scene.label_map.shape
        sides |= {height, width}
        assert scene.image.shape == (height, width, 3)
        assert scene.image.dtype == scene.label_map.dtype == np.uint8
        assert all(item.mask.shape == (height, width) and item.mask.dtype == bool for item in scene.instances)
    assert min(sides) >= 0.87 * size
    assert max(sides) <= 1.13 * size
    assert len(sides) > 6


def test_shares_of_empty_scenes(scenes):
    empty = sum(not scene.instances for scene in scenes)
    assert 0.02 * len(scenes) <= empty <= 0.09 * len(scenes)
    counts = [len(scene.instances) for scene in scenes]
    assert set(counts) == {0, 1, 2, 3, 4, 5}
    assert 2.2 <= np.mean(counts) <= 3.5


def test_classes_and_backgrounds_are_about_equally_frequent(scenes):
    categories = np.bincount([item.category for scene in scenes for item in scene.instances], minlength=len(SHAPES))
    assert categories.min() > 0.6 * categories.max()
    pixels = np.sum([np.bincount(scene.label_map.ravel(), minlength=9) for scene in scenes], axis=0)
    assert len(pixels) == 1 + len(LABELS)
    assert pixels[1:4].min() > 0.6 * pixels[1:4].max()


def test_visible_masks_are_disjoint_and_large_enough(scenes):
    for scene in scenes:
        if scene.instances:
            assert np.sum([item.mask for item in scene.instances], axis=0).max() == 1
        for item in scene.instances:
            assert min(tight_box(item.mask)[2:]) >= shapes.MIN_VISIBLE_SIDE
    sides = [max(tight_box(item.mask)[2:]) for scene in scenes for item in scene.instances]
    assert np.mean(np.array(sides) >= 16) > 0.85


def test_some_shapes_are_occluded_but_none_has_a_hole(scenes):
    occluded = 0
    for item in (item for scene in scenes for item in scene.instances):
        outline = cv2.findContours(item.mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
        assert (outline[1][0, :, 3] == -1).all()
        occluded += len(outline[0]) > 1
    assert occluded > 3  # cut into several parts


def test_label_map_agrees_with_the_instances(scenes):
    names = list(LABELS)
    for scene in scenes:
        assert scene.label_map.max() <= len(LABELS)
        unlabelled = scene.label_map == 0
        things = np.zeros(scene.label_map.shape, np.uint8)
        for item in scene.instances:
            things |= item.mask
            expected = 1 + names.index(list(SHAPES)[item.category])
            assert (scene.label_map[item.mask] == expected).all()
        assert bool(unlabelled.any()) == bool(scene.instances)
        # Beyond the band of one pixel, everything is background and labelled.
        beyond = cv2.dilate(things, np.ones((3, 3), np.uint8)) == 0
        assert np.isin(scene.label_map[beyond], (1, 2, 3)).all()
        assert (scene.label_map[~beyond & (things == 0)] == 0).all()


def test_shapes_stand_out_from_their_surroundings(scenes):
    contrasts = []
    for scene in scenes:
        image = scene.image.astype(float)
        covered = np.zeros(scene.label_map.shape, bool)
        for item in scene.instances:
            covered |= item.mask
        for item in scene.instances:
            ring = (cv2.dilate(item.mask.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0) & ~covered
            if ring.any():
                inner = cv2.erode(item.mask.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
                contrasts.append(np.linalg.norm(image[inner].mean(0) - image[ring].mean(0)))
    assert np.quantile(contrasts, 0.02) > 40
    assert np.median(contrasts) > 90


# -------------------------------------------------------------------------------------------------------------- folder


def test_layout(folder):
    numbers = {'train': 60, 'val': 40}
    expected = {f'annotations/instances_{split}.json' for split in numbers} | {'shapes.json'}
    for split, number in numbers.items():
        expected |= {f'{kind}/{split}/{i:06d}.png' for kind in ('images', 'labels') for i in range(number)}
    assert set(hashes(folder)) == expected
    assert siblings(folder) == ['shapes']
    assert json.loads((folder / 'shapes.json').read_text()) == {
        'version': datasets.FORMAT_VERSION,
        'size': 128,
        **SMALL,
    }


def test_two_writes_are_equal_to_the_byte(folder, tmp_path):
    assert hashes(write_shapes(tmp_path / 'again', **SMALL)) == hashes(folder)


def test_pictures_do_not_depend_on_their_number(folder, tmp_path):
    fewer = write_shapes(tmp_path / 'fewer', seed=3, num_train=7, num_val=5)
    ours, theirs = hashes(fewer), hashes(folder)
    pictures = [name for name in ours if name.endswith('.png')]
    assert len(pictures) == 24
    assert all(ours[name] == theirs[name] for name in pictures)
    few, many = (json.loads((root / 'annotations/instances_train.json').read_text()) for root in (fewer, folder))
    assert few['images'] == many['images'][:7]
    assert few['annotations'] == many['annotations'][: len(few['annotations'])]


def test_pycocotools_reads_boxes_and_masks(folder):
    from pycocotools.coco import COCO

    coco = COCO(str(folder / 'annotations/instances_train.json'))
    assert [(c['id'], c['name']) for c in coco.loadCats(coco.getCatIds())] == list(enumerate(SHAPES, start=1))
    overlaps = []
    for index in range(60):
        scene = draw_scene(3, 'train', index)
        image = coco.loadImgs([index + 1])[0]
        assert (image['height'], image['width']) == scene.label_map.shape
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=[index + 1]))
        assert len(annotations) == len(scene.instances)
        for annotation, item in zip(annotations, scene.instances, strict=True):
            assert annotation['bbox'] == tight_box(item.mask)
            assert annotation['area'] == item.mask.sum()
            assert annotation['category_id'] == item.category + 1
            mask = coco.annToMask(annotation).astype(bool)
            overlaps.append(overlap(mask, item.mask))
    assert min(overlaps) > 0.95
    assert np.mean(overlaps) > 0.99


def test_polygons_of_odd_masks():
    from pycocotools import mask as coco_mask

    single, full, parted = np.zeros((5, 6), bool), np.ones((5, 6), bool), np.zeros((5, 6), bool)
    single[4, 5] = True
    parted[0, :] = parted[2:4, 1:3] = True
    for mask in (single, full, parted):
        rles = coco_mask.frPyObjects(polygons(mask), *mask.shape)
        assert (coco_mask.decode(coco_mask.merge(rles)).astype(bool) == mask).all()
    assert len(polygons(parted)) == 2


# ------------------------------------------------------------------------------------------- writing, and what is there


def test_the_same_data_set_is_reused(folder, monkeypatch):
    monkeypatch.setattr(datasets, 'draw_scene', lambda *_, **__: pytest.fail('drew again'))
    before = hashes(folder)
    assert write_shapes(folder, **SMALL) == folder
    assert hashes(folder) == before


def test_parents_are_created_and_links_followed(tmp_path):
    (tmp_path / 'disk').mkdir()
    (tmp_path / 'link').symlink_to(tmp_path / 'disk', target_is_directory=True)
    root = write_shapes(tmp_path / 'link', **FEW)
    assert root == tmp_path / 'link'
    assert root.is_symlink()
    assert (tmp_path / 'disk/shapes.json').is_file()
    assert (write_shapes(str(tmp_path / 'a/b/c'), **FEW) / 'shapes.json').is_file()


def test_other_parameters_are_refused(folder):
    before = hashes(folder)
    message = 'other parameters: seed 3 instead of 4, num_train 60 instead of 61. Nothing was changed. Choose another'
    with pytest.raises(UserError, match=re.escape(message)):
        write_shapes(folder, **SMALL | {'seed': 4, 'num_train': 61})
    assert hashes(folder) == before


def test_an_older_format_is_refused(folder, monkeypatch):
    monkeypatch.setattr(datasets, 'FORMAT_VERSION', 99)
    with pytest.raises(
        UserError, match=f'version {json.loads((folder / "shapes.json").read_text())["version"]} instead'
    ):
        write_shapes(folder, **SMALL)


@pytest.mark.parametrize('names', [['holiday.jpg'], ['a', 'b', 'c', 'd'], ['shapes.json']])
def test_a_foreign_folder_stays_untouched(tmp_path, names):
    root = tmp_path / 'photos'
    root.mkdir()
    for name in names:
        (root / name).write_text('mine')
    before = hashes(root)
    with pytest.raises(
        UserError, match=r'photos holds something else than the drawn data set: .* \(and no shapes.json'
    ):
        write_shapes(root, **FEW)
    assert hashes(root) == before
    assert siblings(root) == ['photos']


def test_a_file_in_the_way_stays_untouched(tmp_path):
    (tmp_path / 'shapes').write_text('mine')
    with pytest.raises(UserError, match=r'is a file, and the drawn data set needs a folder of that name\. Nothing'):
        write_shapes(tmp_path / 'shapes', **FEW)
    with pytest.raises(UserError, match=r'cannot write the drawn data set to .*File exists: .*shapes.*\. Choose a'):
        write_shapes(tmp_path / 'shapes/below', **FEW)
    assert (tmp_path / 'shapes').read_text() == 'mine'


def test_a_folder_without_permission(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, 'Permission denied')

    monkeypatch.setattr(Path, 'mkdir', refuse)
    with pytest.raises(UserError, match=r'\[Errno 13\] Permission denied\. Choose a folder on a disk that is'):
        write_shapes(tmp_path / 'shapes', **FEW)


@pytest.mark.parametrize(
    ('raised', 'expected', 'message'),
    [
        (KeyboardInterrupt(), KeyboardInterrupt, None),
        (RuntimeError('boom'), RuntimeError, 'boom'),
        (OSError(errno.ENOSPC, 'No space left on device'), UserError, 'No space left on device. Choose a folder'),
    ],
)
def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch, raised, expected, message):
    def interrupt(path, image):
        if path.name == '000001.png' and 'val' in path.parts:
            raise raised
        path.write_bytes(b'')

    monkeypatch.setattr(datasets, '_write_png', interrupt)
    with pytest.raises(expected, match=message):
        write_shapes(tmp_path / 'shapes', **FEW)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    assert (write_shapes(tmp_path / 'shapes', **FEW) / 'shapes.json').is_file()


def test_the_remains_of_a_dead_writer_do_not_disturb(tmp_path):
    dead = tmp_path / '.shapes.00000000'
    (dead / 'images').mkdir(parents=True)
    assert (write_shapes(tmp_path / 'shapes', **FEW) / 'shapes.json').is_file()
    assert dead.is_dir()


@pytest.mark.parametrize('parameters', [FEW, FEW | {'seed': 7}])
def test_a_faster_process_wins(tmp_path, monkeypatch, parameters):
    """Just before the rename, another process's folder appears."""
    write_shapes(tmp_path / 'other', **parameters)
    winner = hashes(tmp_path / 'other')
    written = datasets._write

    def write_late(draft, wanted):
        written(draft, wanted)
        shutil.move(tmp_path / 'other', tmp_path / 'shapes')

    monkeypatch.setattr(datasets, '_write', write_late)
    if parameters == FEW:
        assert write_shapes(tmp_path / 'shapes', **FEW) == tmp_path / 'shapes'
    else:
        with pytest.raises(UserError, match='other parameters: seed 7 instead of 0'):
            write_shapes(tmp_path / 'shapes', **FEW)
    assert hashes(tmp_path / 'shapes') == winner
    assert siblings(tmp_path / 'shapes') == ['shapes']


@pytest.mark.slow
def test_several_processes_at_once(tmp_path):
    program = (
        'import sys; from convnext_dense.data import write_shapes; '
        'write_shapes(sys.argv[1], num_train=30, num_val=10, size=64)'
    )
    command = [sys.executable, '-c', program, str(tmp_path / 'shapes')]
    environment = os.environ | {'PYTHONPATH': os.pathsep.join(path for path in sys.path if path)}
    running = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) for _ in range(3)]
    errors = [process.communicate(timeout=60)[1].decode() for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], errors
    assert siblings(tmp_path / 'shapes') == ['shapes']
    alone = write_shapes(tmp_path / 'alone', num_train=30, num_val=10, size=64)
    assert hashes(tmp_path / 'shapes') == hashes(alone)


@pytest.mark.parametrize(
    ('wrong', 'message'),
    [
        ({'seed': -1}, 'seed=-1 for the drawn data set: give a whole number from 0 to 4294967296.'),
        ({'num_train': 0}, 'num_train=0 for the drawn data set: give a whole number from 1 to 1000000.'),
        ({'num_val': 2.5}, 'num_val=2.5 for'),
        ({'num_val': True}, 'num_val=True for'),
        ({'size': 63}, 'size=63 for the drawn data set: give a whole number from 64 to 1024.'),
        ({'size': 4096}, 'size=4096 for'),
        ({'seed': '0'}, "seed='0' for"),
    ],
)
def test_parameters_out_of_range(tmp_path, wrong, message):
    with pytest.raises(UserError, match=re.escape(message)):
        write_shapes(tmp_path / 'shapes', **FEW | wrong)
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------------------ datasets


def build(**config):
    from mmengine.registry import DATASETS

    return DATASETS.build(config)


@pytest.mark.parametrize('split', ['train', 'val'])
def test_a_config_by_hand_reads_the_same(folder, split):
    """Boxes, masks and labels through CocoDataset and LoadAnnotations are those of the scenes."""
    from mmdet.datasets import CocoDataset
    from mmengine.registry import init_default_scope

    init_default_scope('mmdet')
    pipeline = [{'type': 'LoadImageFromFile'}, {'type': 'LoadAnnotations', 'with_bbox': True, 'with_mask': True}]
    plain = CocoDataset(
        data_root=str(folder),
        ann_file=f'annotations/instances_{split}.json',
        data_prefix={'img': f'images/{split}/'},
        metainfo={'classes': tuple(SHAPES)},
        pipeline=pipeline,
    )
    ours = build(type='ShapesInstances', data_root=folder, split=split, pipeline=pipeline, **SMALL)
    assert type(ours) is CocoDataset
    assert ours.metainfo['classes'] == tuple(SHAPES)
    assert len(ours.metainfo['palette']) == len(SHAPES)
    assert len(plain) == len(ours) == SMALL[f'num_{split}']
    for index in range(len(plain)):
        scene = draw_scene(3, split, index)
        loaded = plain[index]
        assert loaded['img_path'] == ours[index]['img_path']
        assert (loaded['img'] == scene.image[..., ::-1]).all()
        boxes = np.array([tight_box(item.mask) for item in scene.instances]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        assert (loaded['gt_bboxes'].tensor.numpy() == boxes).all()
        assert loaded['gt_bboxes_labels'].tolist() == [item.category for item in scene.instances]
        for mask, item in zip(loaded['gt_masks'].masks, scene.instances, strict=True):
            assert overlap(mask.astype(bool), item.mask) > 0.95


def test_shapes_instances_passes_arguments_on(folder):
    config = dict(type='ShapesInstances', data_root=folder, **SMALL)
    assert len(build(**config, indices=5)) == 5
    kept = build(**config, filter_cfg={'filter_empty_gt': True})
    assert 40 < len(kept) < 60
    assert build(**config, metainfo={'classes': ('star',)}).metainfo['classes'] == ('star',)


@pytest.mark.parametrize('split', ['train', 'val'])
def test_shapes_labels_is_a_stock_segmentation_dataset(folder, split):
    from mmengine.registry import init_default_scope
    from mmseg.datasets import BaseSegDataset

    init_default_scope('mmseg')
    pipeline = [{'type': 'LoadImageFromFile'}, {'type': 'LoadAnnotations'}]
    dataset = build(type='ShapesLabels', data_root=folder, split=split, pipeline=pipeline, **SMALL)
    assert type(dataset) is BaseSegDataset
    assert dataset.metainfo['classes'] == tuple(LABELS)
    assert dataset.metainfo['palette'] == list(LABELS.values())
    assert len(dataset) == SMALL[f'num_{split}']
    for index in range(10):
        scene, loaded = draw_scene(3, split, index), dataset[index]
        assert (loaded['img'] == scene.image[..., ::-1]).all()
        assert (loaded['gt_seg_map'] == np.where(scene.label_map == 0, 255, scene.label_map - 1)).all()


@pytest.mark.parametrize('builder', ['ShapesInstances', 'ShapesLabels'])
def test_unknown_split(tmp_path, builder):
    with pytest.raises(UserError, match=r"split='test': the drawn data set has 'train' and 'val'; name one of them\."):
        build(type=builder, data_root=tmp_path / 'shapes', split='test')
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ('builder', 'library', 'missing'),
    [('ShapesInstances', 'mmdet', 'mmdet'), ('ShapesLabels', 'mmseg', 'mmseg'), ('ShapesLabels', 'mmseg', 'ftfy')],
)
def test_library_that_is_not_installed(tmp_path, monkeypatch, builder, library, missing):
    def import_module(name):
        raise ModuleNotFoundError(f'No module named {missing!r}', name=missing)

    monkeypatch.setattr(datasets.importlib, 'import_module', import_module)
    message = f"{builder} builds a dataset of {library}, and {missing} is not installed. Install it: pip install 'conv"
    with pytest.raises(UserError, match=re.escape(message)):
        getattr(datasets, builder)(tmp_path / 'shapes')
    assert list(tmp_path.iterdir()) == []
