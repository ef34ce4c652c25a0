"""A user's own data: one data set in every format is read back equal, and one command trains on it."""

import base64
import io
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from convnext_dense import UserError
from convnext_dense.configs import load_config
from convnext_dense.data import import_data, write_shapes
from convnext_dense.data.annotation import FaultError, decode_counts, read_box, read_polygon, read_segmentation
from convnext_dense.data.formats import recognise
from convnext_dense.data.pictures import read_image
from convnext_dense.train.own_data import prepare_data

pytestmark = pytest.mark.filterwarnings('ignore:For binary segmentation:UserWarning')  # MMSegmentation's advice
CLASSES = ['circle', 'square', 'triangle', 'star', 'cross']


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    """The drawn data set: COCO JSON and label maps of the same images."""
    return write_shapes(tmp_path_factory.mktemp('data') / 'shapes', num_train=10, num_val=4, size=64)


@pytest.fixture(scope='module')
def coco(shapes):
    files = {split: shapes / f'annotations/instances_{split}.json' for split in ('train', 'val')}
    return {split: json.loads(file.read_text()) for split, file in files.items()}


def objects_of(content):
    """Yield file name, size, and the objects of each image of a COCO JSON."""
    names = {category['id']: category['name'] for category in content['categories']}
    for image in content['images']:
        own = [each for each in content['annotations'] if each['image_id'] == image['id']]
        yield image, [(names[each['category_id']], each['bbox'], each.get('segmentation')) for each in own]


def copy_images(shapes, split, folder):
    folder.mkdir(parents=True, exist_ok=True)
    for file in (shapes / f'images/{split}').iterdir():
        (folder / f'{split}_{file.name}').write_bytes(file.read_bytes())


def write_yolo(shapes, coco, root, with_polygons=True):
    for split, content in coco.items():
        copy_images(shapes, split, root / 'images' / split)
        for image, objects in objects_of(content):
            lines = []
            width, height = image['width'], image['height']
            for label, (x, y, w, h), segmentation in objects:
                values = [(x + w / 2) / width, (y + h / 2) / height, w / width, h / height]
                if with_polygons:
                    values = [value / (width, height)[i % 2] for i, value in enumerate(segmentation[0])]
                lines.append(' '.join(map(str, (CLASSES.index(label), *values))))
            file = root / 'labels' / split / f'{split}_{Path(image["file_name"]).stem}.txt'
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text('\n'.join(lines))
    names = '\n'.join(f'  {i}: {name}' for i, name in enumerate(CLASSES))
    (root / 'data.yaml').write_text(f'path: /somewhere/else\ntrain: images/train\nval: images/val\nnames:\n{names}\n')
    return root


def write_labelme(shapes, coco, root):
    for split, content in coco.items():
        copy_images(shapes, split, root / split)
        for image, objects in objects_of(content):
            name = f'{split}_{image["file_name"]}'
            entries = [
                dict(label=label, shape_type='polygon', group_id=i, points=np.reshape(polygon, (-1, 2)).tolist())
                for i, (label, _, segmentation) in enumerate(objects)
                for polygon in segmentation
            ]
            content = dict(version='5', shapes=entries, imagePath=f'C:\\photos\\{name}', imageData=None)
            (root / split / f'{Path(name).stem}.json').write_text(json.dumps(content))
    return root


def in_one_piece(content):
    """Return a COCO JSON without objects of several polygons, which a line of YOLO cannot hold."""
    return {**content, 'annotations': [each for each in content['annotations'] if len(each['segmentation']) == 1]}


def boxes(content):
    """Return the objects by image: class and box, rounded; the numbers of classes and images play no part."""
    found = {}
    for image, objects in objects_of(content):
        name = Path(image['file_name']).name.removeprefix('train_').removeprefix('val_')
        found[name] = sorted((label, *(round(float(value), 2) for value in box)) for label, box, _ in objects)
    return found


def masks(content):
    """Return the pixels of all objects of each image, by class."""
    found = {}
    for image, objects in objects_of(content):
        name = Path(image['file_name']).name.removeprefix('train_').removeprefix('val_')
        areas = dict.fromkeys(CLASSES, 0)
        for label, _, segmentation in objects:
            runs = coco_mask.frPyObjects(segmentation, image['height'], image['width'])
            areas[label] += int(coco_mask.decode(runs).any(axis=2).sum())
        found[name] = areas
    return found


@pytest.mark.parametrize(
    ('write', 'title'),
    [
        (lambda shapes, coco, root: shapes / 'annotations', 'COCO JSON'),
        (write_yolo, 'YOLO'),
        (write_labelme, 'LabelMe JSON'),
    ],
    ids=['coco', 'yolo', 'labelme'],
)
def test_every_format_with_masks_is_read_back_equal(write, title, shapes, coco, tmp_path):
    if title == 'YOLO':
        coco = {split: in_one_piece(content) for split, content in coco.items()}
    source = write(shapes, coco, tmp_path / 'source')
    if title == 'COCO JSON':
        source = shapes
    found = import_data(source, tmp_path / 'out', task='det', data_format='coco' if title == 'COCO JSON' else None)
    assert found.title == title
    assert sorted(found.classes) == sorted(CLASSES)
    assert (found.num_images, found.has_masks) == ({'train': 10, 'val': 4}, True)
    for split, expected in coco.items():
        content = json.loads(found.files[split].read_text())
        assert boxes(content) == boxes(expected)
        assert masks(content) == masks(expected)
        assert [each['id'] for each in content['annotations']] == list(range(1, len(content['annotations']) + 1))
        assert all((found.root / image['file_name']).is_file() for image in content['images'])


def test_objects_are_drawn_as_label_maps(shapes, tmp_path):
    """Equal to the data set's own label maps, but for what the drawing hides and for its backgrounds."""
    found = import_data(shapes / 'annotations/instances_train.json', tmp_path / 'out', task='seg')
    assert found.classes == ['background', *CLASSES]
    entries = [json.loads(file.read_text()) for file in found.files.values()]
    entries = [entry for content in entries for entry in content['data_list']]
    assert len(entries) == 10
    for entry in entries:
        ours = cv2.imread(entry['seg_map_path'], cv2.IMREAD_UNCHANGED)
        theirs = cv2.imread(str(shapes / 'labels/train' / Path(entry['img_path']).name), cv2.IMREAD_UNCHANGED)
        assert ((np.maximum(theirs.astype(int) - 3, 0) == ours).mean()) > 0.99


# Label maps


def write_maps(root, maps, save=None):
    """Write grey label maps, (H, W) of numbers, and images of their size."""
    for i, values in enumerate(maps):
        for folder in ('images', 'labels'):
            (root / folder).mkdir(parents=True, exist_ok=True)
        Image.new('RGB', np.shape(values)[1::-1], (i, i, i)).save(root / f'images/p{i}.jpg')
        image = Image.fromarray(np.asarray(values, np.uint8))
        (save(image) if save else image).save(root / f'labels/p{i}.png')
    return root


QUARTERS = [np.kron([[0, 1], [2, 3]], np.ones((8, 8), int))] * 4
COLOURS = [(10, 20, 30), (200, 0, 0), (0, 200, 0), (0, 0, 200)]


def in_colours(image):
    return Image.fromarray(np.array(COLOURS, np.uint8)[np.asarray(image)])


def as_palette(image):
    image = image.convert('P')
    image.putpalette([channel for colour in COLOURS for channel in colour])
    return image


def maps_of(found):
    """Return the values of each label map that the files name."""
    listed = [entry for file in found.files.values() for entry in json.loads(file.read_text())['data_list']]
    paths = [entry['seg_map_path'] for entry in listed]
    return [tuple(np.unique(np.asarray(Image.open(found.root / path))).tolist()) for path in paths]


@pytest.mark.parametrize(
    ('save', 'classes'),
    [
        (None, [f'class_{i}' for i in range(4)]),
        (as_palette, [f'class_{i}' for i in range(4)]),
        (in_colours, [f'colour_{r}_{g}_{b}' for r, g, b in sorted(COLOURS)]),
    ],
    ids=['numbers', 'palette', 'colours'],
)
def test_classes_that_nobody_names_are_numbered(save, classes, tmp_path):
    found = import_data(write_maps(tmp_path / 'd', QUARTERS, save=save), tmp_path / 'out')
    assert found.classes == classes
    assert maps_of(found) == [(0, 1, 2, 3)] * 4
    assert any('number' in note for note in found.notes)


def test_the_file_of_classes_of_roboflow(tmp_path):
    root = write_maps(tmp_path / 'd', QUARTERS)
    (root / '_classes.csv').write_text('Pixel Value, Class\n0, sky\n1, road\n2, tree\n3, car\n')
    found = import_data(root, tmp_path / 'out')
    assert found.classes == ['sky', 'road', 'tree', 'car']
    assert maps_of(found) == [(0, 1, 2, 3)] * 4


# What is refused


def test_values_that_the_file_of_classes_does_not_name(tmp_path):
    root = write_maps(tmp_path / 'd', QUARTERS)
    (root / 'classes.csv').write_text('name,value\nsky,0\nroad,1\n')
    with pytest.raises(UserError, match='hold 2, 3, which the file of classes does not name'):
        import_data(root, tmp_path / 'out')


def test_one_class_is_refused_and_its_advice_helps(tmp_path):
    """Every pixel of the one class: nothing can be learned until the background has a value of its own."""
    root = write_maps(tmp_path / 'd', [np.zeros((16, 16))] * 4)
    with pytest.raises(UserError, match='one class.*background a value of its own'):
        import_data(root, tmp_path / 'out')
    root = write_maps(tmp_path / 'e', [q // 2 for q in QUARTERS])
    assert len(import_data(root, tmp_path / 'out').classes) == 2


def test_data_that_can_be_read_in_two_ways(shapes, coco, tmp_path):
    root = write_yolo(shapes, coco, tmp_path / 'd')
    write_labelme(shapes, coco, tmp_path / 'd/more')
    with pytest.raises(UserError) as error:
        recognise(root)
    assert all(f'--format {name}' in str(error.value) for name in ('yolo', 'labelme'))
    assert recognise(root, 'yolo') == 'yolo'


@pytest.mark.parametrize(
    ('options', 'named'),
    [
        (dict(source='nowhere'), ('nowhere', 'does not exist')),
        (dict(source='empty'), ('COCO', 'Pascal VOC', 'YOLO', 'LabelMe', 'label maps')),
        (dict(data_format='csv'), ("'csv'", 'coco', 'masks')),
        (dict(classes=['a']), ('1 classes', '5', 'circle')),
        (dict(images='empty'), ('--images', '--labels', 'together')),
    ],
)
def test_options_that_do_not_fit(options, named, shapes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('empty').mkdir()
    with pytest.raises(UserError) as error:
        import_data(**{'source': shapes / 'annotations', 'out': tmp_path / 'out', **options})
    assert all(word in str(error.value) for word in named)


@pytest.mark.parametrize(
    ('value', 'fault'),
    [
        ([[1, 2, 3, 4]], 'fewer than three points'),
        ([[1, 2, 3, 4, 5]], 'odd number'),
        ([[1, 1, 5, 5, 9, 9]], 'without area'),
        ([[1, 2, float('nan'), 4, 5, 6]], 'not finite'),
        ([[1, 2, 10**400, 4, 5, 6]], 'not finite'),
        ([[1e300] * 8], 'not finite'),
        ([[0, 0, 500, 0, 500, 500]], 'far outside'),
        ([['a', 2, 3, 4, 5, 6]], 'not a number'),
        ([[True, 2, 3, 4, 5, 6]], 'not a number'),
        ({'size': [40, 30], 'counts': [1200]}, 'another image size'),
        ({'size': [30, 40], 'counts': [600, 700]}, 'do not add up'),
        ({'size': [30, 40], 'counts': [1200]}, 'an empty mask'),
        ({'size': [30, 40], 'counts': [-5, 1205]}, 'no whole numbers'),
        ({'size': [30, 40], 'counts': 'x' * 9}, 'foreign characters'),
        ({'size': [30, 40], 'counts': 'PPPP'}, 'cut short'),
        ({'size': [30, 40]}, 'neither a list nor text'),
        ('polygon', 'neither polygons nor run lengths'),
    ],
)
def test_segmentations_that_are_none(value, fault):
    with pytest.raises(FaultError, match=fault):
        read_segmentation(value, 40, 30)


@pytest.mark.parametrize('value', [[1, 1, 9, 1, 9, 9], [[1, 1], [9, 1], [9, 9]], [[1, 1, 9, 1, 9, 9]]])
def test_polygons_in_every_nesting(value):
    assert read_segmentation(value, 40, 30) == [[1, 1, 9, 1, 9, 9]]


def test_boxes():
    assert read_box(['1', 2, 3, 4.5], 40, 30) == (1, 2, 3, 4.5)
    assert read_box([-2, 25, 10, 10], 40, 30) == (0, 25, 8, 5)
    for value, fault in (([1, 2, 3], 'four numbers'), ([1, 2, 0, 4], 'without area'), ([50, 2, 3, 4], 'outside')):
        with pytest.raises(FaultError, match=fault):
            read_box(value, 40, 30)
    with pytest.raises(FaultError, match='not a list'):
        read_polygon('1,2,3', 40, 30)


@pytest.mark.parametrize('density', [0.0, 0.1, 0.5, 1.0])
def test_run_lengths_are_those_of_pycocotools(density):
    values = np.asfortranarray(np.random.default_rng(0).random((23, 31)) < density, np.uint8)
    runs = decode_counts(coco_mask.encode(values)['counts'])
    flat = np.repeat(np.arange(len(runs)) % 2, runs)
    assert np.array_equal(flat.reshape(31, 23).T, values)


def test_faulty_objects_are_left_out_and_told(shapes, coco, tmp_path):
    content = json.loads(json.dumps(coco['train']))
    first, second, third = content['annotations'][:3]
    first.update(segmentation=[[1, 2, 3, 4]], bbox=None)
    second.update(segmentation=None, bbox=[1, 1, 0, 0])
    third.update(category_id=99)
    (tmp_path / 'annotations').mkdir()
    (tmp_path / 'annotations/train.json').write_text(json.dumps(content))
    (tmp_path / 'images').symlink_to(shapes / 'images/train')
    found = import_data(tmp_path, tmp_path / 'out', data_format='coco')
    assert sum(found.num_objects.values()) == len(content['annotations']) - 3
    text = '\n'.join(found.notes)
    for word in ('fewer than three points', 'without area', 'category', 'annotation 1', 'annotation 2', 'annotation 3'):
        assert word in text


# Images of other kinds


def save_bands(path, values):
    tifffile = pytest.importorskip('tifffile')
    tifffile.imwrite(path, values, photometric='minisblack', planarconfig='contig')


def test_sixteen_bits_are_stretched_and_not_cut(tmp_path):
    values = np.linspace(100, 4000, 64 * 64).reshape(64, 64).astype(np.uint16)
    cv2.imwrite(str(tmp_path / 'a.png'), values)
    image = read_image(tmp_path / 'a.png', stretch=(100, 4000))
    assert image.shape == (64, 64, 3)
    expected = (values.astype(float) - 100) * 255 / 3900
    np.testing.assert_allclose(image[..., 1], expected, atol=1e-3)
    own = read_image(tmp_path / 'a.png')
    low, high = np.percentile(values, (0.5, 99.5))
    np.testing.assert_allclose(own[..., 0], ((values - low) * 255 / (high - low)).clip(0, 255), atol=1e-3)


def test_eight_bits_are_what_mmcv_loads(tmp_path):
    from mmcv import imread

    rng = np.random.default_rng(0)
    colours = Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    colours.save(tmp_path / 'turned.jpg', exif=exif)
    colours.convert('L').save(tmp_path / 'grey.png')
    colours.convert('RGBA').save(tmp_path / 'alpha.png')
    colours.convert('P').save(tmp_path / 'palette.png')
    for name in ('turned.jpg', 'grey.png', 'alpha.png', 'palette.png'):
        assert np.array_equal(read_image(tmp_path / name), imread(str(tmp_path / name))), name


# The one command


def own_config(base, shapes, tmp_path, **options):
    return load_config(prepare_data(base, shapes, tmp_path / 'work/data', **options))


def test_the_config_of_a_detector(shapes, tmp_path, capsys):
    cfg = own_config('det/cascade_convnext_t_coco', shapes / 'annotations', tmp_path)
    assert cfg.train_dataloader.dataset.metainfo.classes == tuple(CLASSES)
    assert [head.num_classes for head in cfg.model.roi_head.bbox_head] == [5, 5, 5]
    assert cfg.model.roi_head.mask_head.num_classes == 5
    assert cfg.val_evaluator.ann_file == cfg.val_dataloader.dataset.ann_file == str(tmp_path / 'work/data/val.json')
    assert cfg.train_dataloader.dataset.pipeline == load_config('det/cascade_convnext_t_coco').train_pipeline
    assert cfg.train_cfg.max_epochs * 5 == 1000  # iterations, for 10 images by 2
    assert cfg.auto_scale_lr.enable
    assert cfg.experiment_name == 'work'  # the run is called after its folder, and not data
    text = capsys.readouterr().err
    for word in ('COCO JSON', 'train 10, val 4', 'circle', 'data.py', '200 epochs'):
        assert word in text
    assert len(text.splitlines()) <= 10


def test_the_schedule_follows_the_batch(shapes, tmp_path):
    cfg = own_config('det/cascade_convnext_t_coco', shapes / 'annotations', tmp_path, batch='1')
    assert (cfg.train_dataloader.batch_size, cfg.train_cfg.max_epochs, cfg.train_cfg.val_interval) == (1, 100, 9)


def test_the_config_is_used_again_as_it_was_edited(shapes, tmp_path):
    file = prepare_data('det/mask_rcnn_convnext_t_coco', shapes / 'annotations', tmp_path / 'data')
    file.write_text(f'{file.read_text()}\ntrain_cfg = dict(max_epochs=3)\n')
    assert prepare_data('det/mask_rcnn_convnext_t_coco', shapes / 'annotations', tmp_path / 'data') == file
    assert load_config(file).train_cfg.max_epochs == 3
    with pytest.raises(UserError, match='other data or another config'):
        prepare_data('det/mask_rcnn_convnext_s_coco', shapes / 'annotations', tmp_path / 'data')


def test_a_segmentor_trains_and_scores_on_masks(tmp_path):
    from convnext_dense import train

    root = write_maps(tmp_path / 'd', [np.kron([[0, 1], [1, 0]], np.ones((32, 32), int))] * 6)
    options = {'train_cfg.max_iters': 2, 'train_cfg.val_interval': 2, 'train_dataloader.batch_size': 2}
    runner = train.train('seg/upernet_convnext_atto_shapes', str(tmp_path / 'w'), data=root, cfg_options=options)
    assert runner.iter == 2
    assert runner.model.decode_head.num_classes == 2
    assert 0 <= runner.message_hub.get_scalar('val/mIoU').current() <= 100


def test_boxes_alone_under_a_mask_head(shapes, coco, tmp_path, capsys):
    from convnext_dense import train

    source = write_yolo(shapes, coco, tmp_path / 'd', with_polygons=False)
    options = {'train_cfg.max_epochs': 1, 'train_dataloader.batch_size': 4}
    runner = train.train('det/cascade_convnext_atto_shapes', str(tmp_path / 'w'), data=source, cfg_options=options)
    assert 'the model gets no mask heads' in capsys.readouterr().err
    assert not runner.model.roi_head.with_mask
    assert runner.cfg.val_evaluator.metric == 'bbox'
    assert {'loss_rpn_cls', 's0.loss_bbox'} <= {name.split('/')[-1] for name in runner.message_hub.log_scalars}
    assert not any('mask' in name for name in runner.message_hub.log_scalars)


def test_boxes_alone_for_a_model_of_masks(shapes, coco, tmp_path):
    source = write_yolo(shapes, coco, tmp_path / 'd', with_polygons=False)
    with pytest.raises(UserError, match='no masks.*cascade_convnext_t_coco'):
        prepare_data('det/mask2former_convnext_t_coco', source, tmp_path / 'data')
    advised = own_config('det/cascade_convnext_t_coco', source, tmp_path)
    assert advised.model.roi_head.mask_head is None
    assert advised.val_evaluator.metric == 'bbox'


@pytest.mark.parametrize('channels', [2, 4, 12])
def test_bands(channels, tmp_path):
    from mmengine.registry import MODELS, init_default_scope

    rng = np.random.default_rng(0)
    root = write_maps(tmp_path / 'd', QUARTERS)
    for file in list((root / 'images').iterdir()):
        file.unlink()
        save_bands(file.with_suffix('.tif'), rng.normal(100, 20, (16, 16, channels)).astype(np.float32))
    cfg = own_config('seg/upernet_convnext_atto_shapes', root, tmp_path)
    assert cfg.model.backbone.in_channels == channels
    assert cfg.model.data_preprocessor.type == 'BandsPreprocessor'
    init_default_scope('mmseg')
    preprocessor = MODELS.build(cfg.model.data_preprocessor)
    load = cfg.train_dataloader.dataset.pipeline[0]
    assert load.type == 'LoadAnyImage'
    files = sorted((root / 'images').iterdir())
    images = [torch.from_numpy(read_image(file, channels, load.stretch)).permute(2, 0, 1) for file in files]
    stacked = torch.stack([(image - preprocessor.mean) / preprocessor.std for image in images])
    assert stacked.mean((0, 2, 3)).abs().max() < 1e-2
    assert (stacked.std((0, 2, 3)) - 1).abs().max() < 1e-2


def test_labelme_masks_and_circles(tmp_path):
    Image.new('RGB', (60, 50)).save(tmp_path / 'a.png')
    mask = np.zeros((6, 10), np.uint8)
    mask[1:5, 2:8] = 255
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, 'PNG')
    encoded = base64.b64encode(buffer.getvalue()).decode()
    shapes = [
        dict(label='m', shape_type='mask', points=[[20, 10], [29, 15]], mask=encoded),
        dict(label='c', shape_type='circle', points=[[30, 30], [40, 30]]),
        dict(label='r', shape_type='rectangle', points=[[9, 8], [1, 2]]),
        dict(label='l', shape_type='line', points=[[1, 1], [5, 5]]),
    ]
    (tmp_path / 'a.json').write_text(json.dumps(dict(shapes=shapes, imagePath='a.png')))
    found = import_data(tmp_path, tmp_path / 'out')
    content = json.loads(found.files['train'].read_text())
    by_name = {found.classes[each['category_id'] - 1]: each for each in content['annotations']}
    assert by_name['m']['bbox'] == [22, 11, 6, 4]
    assert by_name['m']['area'] == 24
    assert by_name['c']['bbox'] == pytest.approx([20, 20, 20, 20], abs=0.1)
    assert by_name['r']['bbox'] == [1, 2, 8, 6]
    assert 'l' not in by_name
    assert any('line' in note for note in found.notes)


def test_a_wrapper_with_a_pipeline_of_its_own_keeps_the_inner_one(shapes, tmp_path):
    loading = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)]
    mixing = [dict(type='RandomFlip', prob=0.5), dict(type='PackDetInputs')]
    base = tmp_path / 'mixed.py'
    base.write_text(
        "_base_ = 'convnext_dense::det/faster_rcnn_convnext_t_coco.py'\n"
        "train_dataloader = dict(dataset=dict(_delete_=True, type='MultiImageMixDataset',\n"
        f"    dataset=dict(type='CocoDataset', ann_file='a.json', pipeline={loading}), pipeline={mixing}))\n"
    )
    dataset = own_config(base, shapes, tmp_path).train_dataloader.dataset
    assert [step.type for step in dataset.pipeline] == [step['type'] for step in mixing]
    assert [step.type for step in dataset.dataset.pipeline] == [step['type'] for step in loading]
