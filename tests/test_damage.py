"""Files that are damaged in the middle of a training are left out by name, up to a bound."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from mmdet.datasets import CocoDataset
from mmengine.config import Config
from mmengine.runner import Runner
from mmseg.datasets import BaseSegDataset
from PIL import Image

from convnext_dense import UserError
from convnext_dense.data import write_shapes
from convnext_dense.train import config as run_config
from convnext_dense.train import damage
from convnext_dense.train import run as runs

ROOT = Path(__file__).parent.parent
SIDE = 32


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def encoded(values, dtype=np.uint8) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((SIDE, SIDE), values, dtype)).save(file, 'png')
    return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    draw = np.random.default_rng(0)
    for kind in ('images', 'labels'):
        (tmp_path / kind).mkdir()
    for i in range(4):
        pixels = draw.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f'images/{i}.{"png" if i % 2 else "jpg"}')
        Image.fromarray(draw.integers(0, 3, (SIDE, SIDE), np.uint8)).save(tmp_path / f'labels/{i}.png')
    return tmp_path


def labelled(folder: Path, reduced: bool = False) -> BaseSegDataset:
    """A dataset of the JPEG images and their label maps, places 0 and 1."""
    pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
    if reduced:
        pipeline[0] = dict(type='LoadDeferredImage', load=pipeline[0])
        pipeline.insert(
            2, dict(type='LoadResizedImage', resize=dict(type='mmseg.Resize', scale=(SIDE // 2, SIDE // 2)))
        )
    return BaseSegDataset(
        data_root=str(folder),
        data_prefix=dict(img_path='images', seg_map_path='labels'),
        pipeline=[
            {**step, 'type': f'mmseg.{step["type"]}' if 'Image' not in step['type'] else step['type']}
            for step in pipeline
        ],
        metainfo=dict(classes=('a', 'b', 'c')),
    )


FILES = {  # what is wrong -> (file, what is done to it, what is said)
    'an image that is cut short': ('images/0.jpg', cut, 'is (damaged|a JPEG that is cut short)'),
    'an image that is empty': ('images/0.jpg', lambda file: file.write_bytes(b''), r'cannot be read|is damaged'),
    'an image that is none': ('images/0.jpg', lambda file: file.write_text('<html>' * 99), 'is damaged'),
    'an image that has gone': ('images/0.jpg', Path.unlink, 'does not exist'),
    'a label map that is cut short': ('labels/0.png', cut, 'cannot be read|PNG that is cut short'),
    'a label map that is none': ('labels/0.png', lambda file: file.write_bytes(b'junk'), 'cannot be read'),
    'a label map that has gone': ('labels/0.png', Path.unlink, 'does not exist'),
    'labels of other classes': (
        'labels/0.png',
        lambda file: file.write_bytes(encoded(7)),
        'has the label 7 of 3 classes',
    ),
}


@pytest.mark.parametrize('reduced', [False, True])
@pytest.mark.parametrize('name', FILES)
def test_a_damaged_file_is_named_and_the_next_sample_taken(name, reduced, folder):
    file, spoil, said = FILES[name]
    dataset = labelled(folder, reduced)
    sound = damage.load_sample(dataset, 0)
    assert damage.LEFT_OUT not in sound['data_samples'].metainfo
    spoil(folder / file)
    sample = damage.load_sample(dataset, 0)['data_samples']
    assert Path(sample.img_path).name == '2.jpg'
    ((named, problem),) = sample.metainfo[damage.LEFT_OUT].items()
    assert Path(named) == folder / file
    assert re.search(said, problem), problem


def test_ignored_labels_are_no_damage(folder):
    (folder / 'labels/0.png').write_bytes(encoded(255))
    sample = damage.load_sample(labelled(folder), 0)['data_samples']
    assert Path(sample.img_path).name == '0.jpg'


def test_a_mask_that_cannot_be_read_is_named(folder):
    objects = [
        dict(id=i, image_id=i, category_id=1, bbox=[2, 2, 8, 8], area=64, iscrowd=0, segmentation=segmentation)
        for i, segmentation in enumerate(([[2, 2, 10, 2, 10, 10]], dict(size=[SIDE, SIDE], counts=['junk'])))
    ]
    images = [dict(id=i, file_name=f'{2 * i}.jpg', width=SIDE, height=SIDE) for i in range(2)]
    text = json.dumps(dict(images=images, annotations=objects, categories=[dict(id=1, name='a')]))
    (folder / 'a.json').write_text(text)
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='mmdet.LoadAnnotations', with_bbox=True, with_mask=True, poly2mask=True),
        dict(type='mmdet.PackDetInputs'),
    ]
    dataset = CocoDataset(
        ann_file=str(folder / 'a.json'), data_prefix=dict(img=str(folder / 'images')), pipeline=pipeline,
        metainfo=dict(classes=('a',)),
    )  # fmt: skip
    sample = damage.load_sample(dataset, 1)['data_samples']
    ((named, problem),) = sample.metainfo[damage.LEFT_OUT].items()
    assert named == f'annotations of {folder}/images/2.jpg'
    assert 'cannot be read' in problem


def test_other_errors_pass(folder):
    dataset = labelled(folder)
    dataset.pipeline.transforms.append(lambda results: results['inputs'].nonsense())
    with pytest.raises(AttributeError, match='nonsense'):
        damage.load_sample(dataset, 0)


def test_a_dataset_of_damaged_files_alone_is_an_error(folder):
    for file in (folder / 'images').glob('*.jpg'):
        cut(file)
    with pytest.raises(UserError, match=r'damaged files in a row: .*0\.jpg'):
        damage.load_sample(labelled(folder), 0)


# Whole trainings


SEGMENTOR = """
_base_ = '{root}/configs/seg/upernet_convnext_atto_shapes.py'
data = dict(data_root='{shapes}', num_train=12, num_val=2, size=64)
labels = dict(type='LoadAnnotations', reduce_zero_label=True)
size = dict(type='Resize', scale=(64, 64), keep_ratio=False)
load = [dict(type='LoadImageFromFile'), labels, size, dict(type='PackSegInputs')]
train_dataloader = dict(batch_size=2, num_workers={workers}, dataset=dict(pipeline=load, **data))
val_dataloader = val_cfg = val_evaluator = test_dataloader = test_cfg = test_evaluator = None
train_cfg = dict(max_iters=8)
default_hooks = dict(checkpoint=dict(interval=2), logger=dict(interval=1))
model = dict(
    data_preprocessor=dict(size=(64, 64), test_cfg=None),
    backbone=dict(out_indices=(3,)),
    decode_head=dict(
        _delete_=True, type='FCNHead', in_channels=320, in_index=0, channels=8, num_convs=1,
        num_classes=8, norm_cfg=dict(type='GN', num_groups=4), loss_decode=dict(type='CrossEntropyLoss'),
    ),
    auxiliary_head=None,
)
"""


def train(folder: Path, spoil: int, workers: int, **options) -> Runner:
    """Train on twelve drawings, of which some label maps are damaged after the check."""
    shapes = write_shapes(folder / 'shapes', num_train=12, num_val=2, size=64)
    for file in sorted(Path(shapes, 'labels/train').iterdir())[:spoil]:
        cut(file)
    (folder / 'config.py').write_text(SEGMENTOR.format(root=ROOT, shapes=shapes, workers=workers))
    return runs.train(folder / 'config.py', str(folder / 'run'), check=False, cfg_options=options)


@pytest.mark.parametrize('workers', [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_training_goes_on_and_counts_what_it_left_out(workers, tmp_path, capfd):
    runner = train(tmp_path, 3, workers)
    assert runner.iter == 8
    said = capfd.readouterr().out
    left_out = runner.message_hub.runtime_info[damage.LEFT_OUT]
    assert len(left_out) == 3
    assert [said.count(f'{file} ') for file in left_out] == [1, 1, 1]
    assert '3 damaged files were left out' in said


def test_too_many_damaged_files_end_it(tmp_path):
    hooks = [dict(type='CheckWeightsHook'), dict(type='DamageHook', max_left_out=2)]
    with pytest.raises(UserError, match=r'[3-5] files are damaged, more than 2: .*check-data') as error:
        train(tmp_path, 5, 0, custom_hooks=hooks)
    assert 'continues from' in str(error.value) or 'No checkpoint was written yet' in str(error.value)


# Loggers


def test_a_logger_of_the_config_that_fails_is_switched_off():
    cfg = Config(dict(visualizer=dict(vis_backends=[dict(type='LocalVisBackend'), dict(type='WandbVisBackend', a=1)])))
    run_config.guard_loggers(cfg)
    first, second = cfg.visualizer.vis_backends
    assert first == dict(type='LocalVisBackend')
    assert second == dict(type='GuardedVisBackend', backend='WandbVisBackend', a=1)
    run_config.guard_loggers(cfg)
    assert cfg.visualizer.vis_backends[1] == second
