"""Checks of a whole run: each mistake is named with its cure, and the cure, when followed, passes."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from convnext_dense import UserError
from convnext_dense.data import check_run, import_data, write_shapes
from convnext_dense.train.check import check_data
from convnext_dense.weights.mmengine import check_classes

CLASSES = ('circle', 'square', 'triangle', 'star', 'cross')


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp('data') / 'shapes', num_train=12, num_val=8, size=64)


def detector(shapes, **changes):
    """A run on COCO JSONs with a mask head; ``changes`` have dotted keys."""
    load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True, with_mask=True)]
    common = dict(type='CocoDataset', data_root=str(shapes), metainfo=dict(classes=CLASSES), pipeline=load)
    files = {split: f'annotations/instances_{split}.json' for split in ('train', 'val')}
    datasets = {
        split: dict(**common, ann_file=file, data_prefix=dict(img=f'images/{split}'), test_mode=split == 'val')
        for split, file in files.items()
    }
    cfg = Config(
        dict(
            model=dict(roi_head=dict(mask_head=dict(type='FCNMaskHead'))),
            train_dataloader=dict(batch_size=2, dataset=datasets['train']),
            val_dataloader=dict(dataset=datasets['val']),
            val_evaluator=dict(type='CocoMetric', ann_file=str(shapes / files['val'])),
        )
    )
    cfg.merge_from_dict(changes)
    return cfg


@pytest.fixture
def labels(tmp_path):
    for split in ('train', 'val'):
        for i in range(2):
            for folder, mode in (('img', 'RGB'), ('ann', 'L')):
                (tmp_path / folder / split).mkdir(parents=True, exist_ok=True)
                values = np.kron([[0, 1], [1, i]], np.ones((8, 8))).astype(np.uint8)
                Image.fromarray(values).convert(mode).save(tmp_path / folder / split / f'{i}.png')
    return tmp_path


def segmentor(labels, **changes):
    """A run on label maps of two classes."""
    load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]
    common = dict(
        type='BaseSegDataset', data_root=str(labels), img_suffix='.png', metainfo=dict(classes=('ground', 'plum')),
        pipeline=load,
    )  # fmt: skip
    datasets = {
        split: dict(**common, data_prefix=dict(img_path=f'img/{split}', seg_map_path=f'ann/{split}'))
        for split in ('train', 'val')
    }
    cfg = Config(
        dict(
            model=dict(decode_head=dict(type='UPerHead', num_classes=2, norm_cfg=dict(type='BN'))),
            train_dataloader=dict(batch_size=2, dataset=datasets['train']),
            val_dataloader=dict(dataset=datasets['val']),
            val_evaluator=dict(type='IoUMetric'),
        )
    )
    cfg.merge_from_dict(changes)
    return cfg


def test_sound_runs_pass(shapes, labels):
    assert check_run(detector(shapes), ('train', 'val')) == []
    assert check_run(segmentor(labels), ('train', 'val')) == []


REVERSED = tuple(reversed(CLASSES))
LOAD_BOXES = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)]
REDUCED = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', reduce_zero_label=True)]
IGNORES = {'train_dataloader.dataset.ignore_index': 250, 'val_dataloader.dataset.ignore_index': 250}
ONE = {f'{split}_dataloader.dataset.metainfo.classes': ('plum',) for split in ('train', 'val')}


@pytest.mark.parametrize(
    ('build', 'changes', 'named', 'cure'),
    [
        (detector, {'val_evaluator.ann_file': 'nowhere.json'}, ('val_evaluator.ann_file', 'nowhere.json'), {}),
        (detector, {'train_dataloader.dataset.pipeline': LOAD_BOXES}, ('mask head', 'with_mask=True'),
         {'model.roi_head.mask_head': None}),
        (segmentor, {'train_dataloader.dataset.pipeline': REDUCED}, ('reduce_zero_label=False', 'LoadAnnotations'),
         {'train_dataloader.dataset.pipeline': [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]}),
        (segmentor, IGNORES, ('ignore_index=250', 'decode_head', 'val_evaluator'),
         {'model.decode_head.ignore_index': 250, 'val_evaluator.ignore_index': 250}),
        (segmentor, {'val_dataloader.dataset.data_prefix': dict(img_path='img/val', seg_map_path=None)},
         ('val_dataloader.dataset', 'seg_map_path', 'format_only', 'val_evaluator'),
         {'val_dataloader.dataset.pipeline': [dict(type='LoadImageFromFile')]}),
        (segmentor, {'model.decode_head.loss_decode': dict(class_weight=[1.0, 2.0, 3.0, 4.0])},
         ('UPerHead.loss_decode.class_weight', '4 weights', '2 classes'),
         {'model.decode_head.loss_decode': dict(class_weight=[1.0, 2.0])}),
        (segmentor, {'train_dataloader.batch_size': 1}, ('batch_size', 'UPerHead', 'GN'),
         {'model.decode_head.norm_cfg': dict(type='GN', num_groups=32)}),
    ],
    ids=['evaluator', 'masks', 'zero label', 'ignored value', 'no labels', 'class weights', 'batch of one'],
)  # fmt: skip
def test_parts_that_do_not_fit(build, changes, named, cure, shapes, labels):
    data = shapes if build is detector else labels
    with pytest.raises(UserError) as error:
        check_run(build(data, **changes), ('train', 'val'))
    assert all(word in str(error.value) for word in named)
    assert check_run(build(data, **({**changes, **cure} if cure else {})), ('train', 'val')) == []


def test_the_evaluator_reads_the_file_of_its_images(shapes):
    other = str(shapes / 'annotations/instances_train.json')
    with pytest.raises(UserError, match=r'val_evaluator\.ann_file.*instances_train.*instances_val'):
        check_run(detector(shapes, **{'val_evaluator.ann_file': other}), ('train', 'val'))


def test_joined_files_have_no_one_numbering(shapes):
    cfg = detector(shapes)
    plain = cfg.val_dataloader.dataset
    cfg.val_dataloader.dataset = dict(type='ConcatDataset', datasets=[plain, plain])
    with pytest.raises(UserError, match='joins 2 annotation files.*import-data'):
        check_run(cfg, ('train', 'val'))


def test_one_class_under_a_softmax(labels):
    wrong = segmentor(labels, **{**ONE, 'model.decode_head.num_classes': 1})
    with pytest.raises(UserError, match='background') as error:
        check_run(wrong, ('train', 'val'))
    assert 'reduce_zero_label=True' not in str(error.value)  # which would leave one class, and a loss of 0


def test_files_whose_classes_stand_in_another_order(shapes, tmp_path):
    """To write the classes in the order of the file exchanges the labels; the cure is a file in their order."""
    content = json.loads((shapes / 'annotations/instances_val.json').read_text())
    content['categories'] = [dict(id=i, name=name) for i, name in enumerate(REVERSED, 1)]
    for each in content['annotations']:
        each['category_id'] = 6 - each['category_id']
    (tmp_path / 'annotations').mkdir()
    (tmp_path / 'annotations/val.json').write_text(json.dumps(content))
    train = json.loads((shapes / 'annotations/instances_train.json').read_text())
    (tmp_path / 'annotations/train.json').write_text(json.dumps(train))
    (tmp_path / 'images').symlink_to(shapes / 'images')
    changes = {'val_dataloader.dataset.ann_file': str(tmp_path / 'annotations/val.json')}
    changes['val_evaluator.ann_file'] = changes['val_dataloader.dataset.ann_file']
    with pytest.raises(UserError, match='order.*import-data'):
        check_run(detector(shapes, **changes), ('train', 'val'))
    followed = {**changes, 'val_dataloader.dataset.metainfo.classes': REVERSED}
    with pytest.raises(UserError, match=r'classes of other order.*Labels would be exchanged'):
        check_run(detector(shapes, **followed), ('train', 'val'))
    found = import_data(tmp_path, tmp_path / 'out', data_format='coco')
    assert found.classes == list(CLASSES)
    cured = {split: str(file) for split, file in found.files.items()}
    own = {f'{split}_dataloader.dataset.ann_file': file for split, file in cured.items()}
    own |= {f'{split}_dataloader.dataset.{key}': value for split in cured for key, value in
            dict(data_root=str(found.root), data_prefix=dict(img='')).items()}  # fmt: skip
    assert check_run(detector(shapes, **own, **{'val_evaluator.ann_file': cured['val']}), ('train', 'val')) == []
    names = {category['id']: category['name'] for category in json.loads(found.files['val'].read_text())['categories']}
    old = {category['id']: category['name'] for category in content['categories']}
    ours = [names[each['category_id']] for each in json.loads(found.files['val'].read_text())['annotations']]
    assert ours == [old[each['category_id']] for each in content['annotations']]


# What annotations hold


def break_all(**fields):
    return lambda annotations: [each.update(fields) for each in annotations]


@pytest.mark.parametrize(
    ('breakage', 'named', 'is_cured_by_import'),
    [
        (break_all(iscrowd=1), ('crowd', 'iscrowd'), False),
        (lambda a: [each.pop('iscrowd') for each in a], ('iscrowd', '--fix'), True),
        (lambda a: a[0].update(id=0), ('id 0', '--fix'), True),
        (lambda a: [each.update(id=f'a{i}') for i, each in enumerate(a)], ('text', '--fix'), True),
        (lambda a: [each.update(segmentation=each['segmentation'][0]) for each in a], ('list of polygons',), True),
        (lambda a: a[0].update(segmentation=[[1, 2, 3, 4]]), ('fewer than three points', '--fix'), True),
        (lambda a: a[0].update(segmentation=[[1e300] * 8]), ('not finite', '--fix'), True),
        (lambda a: a[0].update(segmentation=dict(size=[64, 64], counts=[5, 5])), ('run lengths',), True),
    ],
    ids=['crowds', 'no iscrowd', 'id 0', 'text ids', 'flat', 'two points', 'huge', 'wrong sum'],
)
def test_annotations_that_end_in_errors_or_silence(breakage, named, is_cured_by_import, shapes, tmp_path):
    content = json.loads((shapes / 'annotations/instances_val.json').read_text())
    breakage(content['annotations'])
    (tmp_path / 'annotations').mkdir()
    file = tmp_path / 'annotations/val.json'
    file.write_text(json.dumps(content))
    (tmp_path / 'images').symlink_to(shapes / 'images/val')
    changes = {'val_dataloader.dataset.ann_file': str(file), 'val_evaluator.ann_file': str(file)}
    with pytest.raises(UserError) as error:
        check_run(detector(shapes, **changes), ('train', 'val'))
    assert all(word in str(error.value) for word in named)
    if is_cured_by_import:
        check_data(file, out=tmp_path / 'out')
        copy = str(tmp_path / 'out/val.json')
        cured = {'val_dataloader.dataset.ann_file': copy, 'val_evaluator.ann_file': copy}
        check_run(detector(shapes, **cured), ('train', 'val'))
        assert len(import_data(tmp_path / 'out', tmp_path / 'again').paths['val']) > 0


def test_run_lengths_that_the_pipeline_leaves_out(shapes, tmp_path):
    content = json.loads((shapes / 'annotations/instances_train.json').read_text())
    for each in content['annotations']:
        size = next((i['height'], i['width']) for i in content['images'] if i['id'] == each['image_id'])
        each['segmentation'] = dict(size=list(size), counts=[10, 20, size[0] * size[1] - 30])
    (tmp_path / 'train.json').write_text(json.dumps(content))
    changes = {'train_dataloader.dataset.ann_file': str(tmp_path / 'train.json')}
    check_run(detector(shapes, **changes), ('train', 'val'))
    pipeline = detector(shapes).train_dataloader.dataset.pipeline
    pipeline[1]['poly2mask'] = False
    with pytest.raises(UserError, match='poly2mask=True'):
        check_run(detector(shapes, **changes, **{'train_dataloader.dataset.pipeline': pipeline}), ('train', 'val'))


def test_masks_in_other_units_than_boxes_are_a_note(shapes, tmp_path):
    content = json.loads((shapes / 'annotations/instances_train.json').read_text())
    for each in content['annotations']:
        each['segmentation'] = [[value / 10 for value in polygon] for polygon in each['segmentation']]
    (tmp_path / 'train.json').write_text(json.dumps(content))
    changes = {'train_dataloader.dataset.ann_file': str(tmp_path / 'train.json')}
    (note,) = check_run(detector(shapes, **changes), ('train', 'val'))
    assert 'elsewhere than their boxes' in note


def test_names_of_pascal_voc(tmp_path):
    xml = '<annotation><object><name>Plum</name></object></annotation>'
    (tmp_path / 'Annotations').mkdir()
    (tmp_path / 'Annotations/a.xml').write_text(xml)
    (tmp_path / 'train.txt').write_text('a\n')
    dataset = dict(type='VOCDataset', data_root=str(tmp_path), ann_file='train.txt', data_prefix=dict(sub_data_root=''))
    for classes, is_right in ((('plum',), False), (('Plum',), True)):
        cfg = Config(dict(model={}, train_dataloader=dict(dataset=dict(**dataset, metainfo=dict(classes=classes)))))
        if is_right:
            assert check_run(cfg, ('train',)) == []
        else:
            with pytest.raises(UserError, match="'plum'.*'Plum'"):
                check_run(cfg, ('train',))


def test_images_of_other_suffixes_are_a_note(labels):
    Image.new('RGB', (16, 16)).save(labels / 'img/train/more.jpg')
    (note,) = check_run(segmentor(labels), ('train', 'val'))
    assert 'more.jpg' in note
    assert '--data' in note


@pytest.mark.parametrize('is_new', [False, True], ids=['a test', 'a training from its weights'])
@pytest.mark.parametrize(
    ('trained', 'is_refused'),
    [
        (CLASSES, False),
        (REVERSED, True),
        (CLASSES[:3], False),
        ((), False),
        (('a', 'b', 'c', 'd', 'cross'), 'in a test'),
    ],
)
def test_a_checkpoint_of_other_classes(trained, is_refused, is_new):
    """Labels are numbers: with as many classes in another order they are exchanged in silence."""
    dataset = SimpleNamespace(metainfo=dict(classes=CLASSES))
    loop = SimpleNamespace(dataloader=SimpleNamespace(dataset=dataset))
    runner = SimpleNamespace(_train_loop=None, _val_loop=dict(type='ValLoop'), _test_loop=loop)
    checkpoint = dict(meta=dict(dataset_meta=dict(classes=trained)))
    if not is_refused or (is_new and is_refused == 'in a test'):
        check_classes(checkpoint, runner, is_new)
        return
    with pytest.raises(UserError, match=f'--classes {",".join(trained)}.*order'):
        check_classes(checkpoint, runner, is_new)
