"""Generated data sets that no tool would write: each is imported, refused with one message, or read without loss."""

import contextlib
import io
import itertools
import json
import os
import re
from functools import cache

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, MODELS, DefaultScope
from PIL import Image
from small_models import DIMS, SMALL

from convnext_dense import UserError
from convnext_dense.configs import load_config
from convnext_dense.data import import_data

NUMBERS = st.one_of(
    st.integers(-5, 70), st.floats(), st.sampled_from([10**400, -(10**20), 1e300, None, 'x', '12.5', True, [], {}])
)
POLYGON = st.lists(NUMBERS, max_size=9)
RUNS = st.fixed_dictionaries(
    dict(
        size=st.one_of(st.just([32, 32]), st.lists(NUMBERS, max_size=3)), counts=st.one_of(POLYGON, st.text(max_size=9))
    )
)
SEGMENTATION = st.one_of(st.none(), POLYGON, st.lists(POLYGON, max_size=3), RUNS, st.text(max_size=3))
IDS = st.one_of(st.integers(-1, 4), st.text(max_size=2), st.none(), st.floats())
BOX = st.one_of(st.lists(NUMBERS, max_size=5), st.just([2, 3, 10, 12]), NUMBERS)
ANNOTATION = st.fixed_dictionaries(
    {}, optional=dict(id=IDS, image_id=IDS, category_id=IDS, bbox=BOX, segmentation=SEGMENTATION, iscrowd=NUMBERS)
)
CATEGORY = st.fixed_dictionaries({}, optional=dict(id=IDS, name=st.one_of(st.text(max_size=3), NUMBERS)))
SOUND = dict(id=9, image_id=1, category_id=1, bbox=[2, 3, 10, 12], iscrowd=0)
RUN = dict(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
FEW = int(os.environ.get('HOSTILE_EXAMPLES', 10))  # of each kind; more where time allows
EVERY = 1 if FEW > 10 else 5  # data set is trained on for a step
NUMBERED = itertools.count()


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    """Two images in a folder, beside which the annotations are written."""
    root = tmp_path_factory.mktemp('hostile')
    for name in ('a', 'b'):
        Image.new('RGB', (32, 32)).save(root / f'{name}.png')
    return root


def outcome(root, **options):
    """Import a data set; return what was written, or None where one message refuses it."""
    try:
        found = import_data(root, root / 'out', **options)
    except UserError:
        return None
    for file in found.files.values():
        content = json.loads(file.read_text())
        load_all(found, file, content)
        for each in content.get('annotations', ()):
            x, y, w, h = each['bbox']
            assert 0 <= x < x + w <= 32 and 0 <= y < y + h <= 32  # noqa: PT018
            assert each['area'] > 0
    return found


def load_all(found, file, content):
    """Load every sample as a training does; every object that is no crowd arrives, with a mask where it has one."""
    if 'annotations' not in content:
        return
    with_masks = all('segmentation' in each for each in content['annotations'])
    steps = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True, with_mask=with_masks),
        dict(type='PackDetInputs'),
    ]
    with contextlib.redirect_stdout(io.StringIO()), DefaultScope.overwrite_default_scope('mmdet'):
        dataset = DATASETS.build(
            dict(type='mmdet.CocoDataset', ann_file=str(file), data_root=str(found.root), data_prefix=dict(img=''),
                 metainfo=dict(classes=tuple(found.classes)), pipeline=steps)
        )  # fmt: skip
    loaded = 0
    for i in range(len(dataset)):
        instances = dataset[i]['data_samples'].gt_instances
        loaded += len(instances)
        assert not with_masks or instances.masks.masks.any(axis=(1, 2)).all()
    large = [each for each in content['annotations'] if not each['iscrowd'] and min(each['bbox'][2:]) >= 1]
    assert loaded == len(large)
    if len(dataset) and next(NUMBERED) % EVERY == 0:
        train_step(detector(len(found.classes), with_masks), [dataset[i] for i in range(len(dataset))])


@cache
def detector(num_classes, with_masks):
    """Return a small Faster or Mask R-CNN."""
    cfg = load_config('ladder/mask_rcnn_resnet_sgd_shapes').model
    cfg.backbone = dict(type='ConvNeXt', arch=SMALL)
    cfg.neck.in_channels = list(DIMS)
    for head in (cfg.roi_head.bbox_head, cfg.roi_head.mask_head):
        head.num_classes = num_classes
    if not with_masks:
        cfg.roi_head.mask_head = cfg.roi_head.mask_roi_extractor = None
    with DefaultScope.overwrite_default_scope('mmdet'):
        return MODELS.build(cfg).train()


def train_step(model, samples):
    """Take the loss of a batch and its gradients, as a training does; both are finite."""
    with DefaultScope.overwrite_default_scope('mmdet'):
        losses, _ = model.parse_losses(model(**model.data_preprocessor(pseudo_collate(samples), True), mode='loss'))
    losses.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad()
    assert losses.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients)


def count(found):
    return sum(len(json.loads(file.read_text())['annotations']) for file in found.files.values())


def coco_case(root, annotations, categories, images):
    content = dict(images=images, annotations=annotations, categories=categories)
    (root / 'set.json').write_text(json.dumps(content))
    found = outcome(root, data_format='coco')
    if found is None:
        return
    counts = [re.search(r'(\d+) times', note) for note in found.notes if note.startswith('left out')]
    told = sum(int(count[1]) if count else 1 for count in counts)
    objects = [each for each in annotations if isinstance(each, dict)]
    assert count(found) + told >= len(objects)  # nothing is lost in silence


@settings(max_examples=FEW, **RUN)
@given(
    annotations=st.lists(ANNOTATION, max_size=4),
    categories=st.lists(CATEGORY, max_size=2),
    image=st.fixed_dictionaries(
        {}, optional=dict(id=IDS, file_name=st.text(max_size=4), width=NUMBERS, height=NUMBERS)
    ),
)
def test_coco(images, annotations, categories, image):
    named = [dict(id=1, file_name='a.png', width=32, height=32), dict(id=2, file_name='b.png'), image]
    coco_case(images, [SOUND, *annotations], [dict(id=1, name='plum'), *categories], named[: 2 + bool(image)])


YOLO_LINE = st.lists(st.one_of(st.floats(width=32), st.integers(-1, 3), st.text('ab -.', max_size=2)), max_size=9)


@settings(max_examples=FEW, **RUN)
@given(
    lines=st.lists(YOLO_LINE, max_size=3),
    names=st.one_of(st.lists(st.text(max_size=3), max_size=3), NUMBERS, st.none()),
)
def test_yolo(tmp_path_factory, lines, names):
    root = tmp_path_factory.mktemp('yolo')
    for name in ('a', 'b'):
        (root / 'images').mkdir(exist_ok=True)
        (root / 'labels').mkdir(exist_ok=True)
        Image.new('RGB', (32, 32)).save(root / f'images/{name}.png')
        (root / f'labels/{name}.txt').write_text('0 0.5 0.5 0.4 0.4\n')
    text = '\n'.join(' '.join(map(str, line)) for line in lines)
    (root / 'labels/a.txt').write_text(f'0 0.5 0.5 0.4 0.4\n{text}\n', encoding='utf-8')
    (root / 'data.yaml').write_text(json.dumps(dict(train='images', names=names), default=str), encoding='utf-8')
    outcome(root, data_format='yolo')


XML_NUMBER = st.one_of(st.integers(-5, 70).map(str), st.sampled_from(['', 'nan', 'inf', '1e400', 'x', '12.5']))


@settings(max_examples=FEW, **RUN)
@given(
    objects=st.lists(st.tuples(st.text('ab<&', max_size=2), st.lists(XML_NUMBER, min_size=4, max_size=4)), max_size=3),
    end=st.sampled_from(['</annotation>', '', '<', '<!ENTITY a "b">']),
)
def test_voc(tmp_path_factory, objects, end):
    root = tmp_path_factory.mktemp('voc')
    Image.new('RGB', (32, 32)).save(root / 'a.png')
    Image.new('RGB', (32, 32)).save(root / 'b.png')
    sides = ('xmin', 'ymin', 'xmax', 'ymax')
    sound = '<object><name>p</name><bndbox><xmin>2</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>'
    entries = [
        f'<object><name>{name}</name><bndbox>{"".join(f"<{s}>{v}</{s}>" for s, v in zip(sides, box, strict=True))}'
        '</bndbox></object>'
        for name, box in objects
    ]
    (root / 'a.xml').write_text(f'<annotation>{sound}{"".join(entries)}{end}')
    (root / 'b.xml').write_text(f'<annotation>{sound}</annotation>')
    outcome(root, data_format='voc')


SHAPE = st.fixed_dictionaries(
    {},
    optional=dict(
        label=st.one_of(st.text(max_size=2), NUMBERS),
        shape_type=st.sampled_from(['polygon', 'rectangle', 'circle', 'mask', 'line', 'cuboid', None]),
        points=st.one_of(st.lists(st.one_of(st.lists(NUMBERS, min_size=2, max_size=2), NUMBERS), max_size=4), NUMBERS),
        group_id=NUMBERS,
        mask=st.one_of(st.text(max_size=8), NUMBERS),
    ),
)


@settings(max_examples=FEW, **RUN)
@given(shapes=st.lists(SHAPE, max_size=3), path=st.one_of(st.text(max_size=4), NUMBERS))
def test_labelme(tmp_path_factory, shapes, path):
    root = tmp_path_factory.mktemp('labelme')
    sound = dict(label='p', points=[[2, 2], [9, 2], [9, 9]], shape_type='polygon')
    for name in ('a', 'b'):
        Image.new('RGB', (32, 32)).save(root / f'{name}.png')
        content = dict(shapes=[sound, *(shapes if name == 'a' else [])], imagePath=path if name == 'a' else 'b.png')
        (root / f'{name}.json').write_text(json.dumps(content))
    outcome(root, data_format='labelme')


@settings(max_examples=FEW, **RUN)
@given(
    values=st.lists(st.integers(0, 255), min_size=1, max_size=4),
    mode=st.sampled_from(['L', 'P', 'RGB', 'RGBA', '1', 'I;16', 'LA', 'F']),
    classes=st.one_of(st.none(), st.lists(st.text('ab, 1#\n:', max_size=6), max_size=4)),
    size=st.sampled_from([(32, 32), (32, 31), (1, 1)]),
)
def test_label_maps(tmp_path_factory, values, mode, classes, size):
    root = tmp_path_factory.mktemp('maps')
    for folder in ('images', 'labels'):
        (root / folder).mkdir()
    pattern = np.resize(np.array(values, np.uint8), size[::-1])
    for name in ('a', 'b'):
        Image.new('RGB', (32, 32)).save(root / f'images/{name}.jpg')
        image = Image.fromarray(pattern).convert('I' if mode == 'I;16' else mode)
        image = image.convert(mode)
        image.save(root / f'labels/{name}.{"tif" if mode == "F" else "png"}')
    if classes is not None:
        (root / 'classes.txt').write_text('\n'.join(classes))
    found = outcome(root)
    if found is not None:
        written = json.loads(found.files['train'].read_text())['data_list']
        labels = np.asarray(Image.open(found.root / written[0]['seg_map_path']).convert('L'))
        allowed = {*range(len(found.classes) + found.reduce_zero_label), 255}
        assert set(np.unique(labels).tolist()) <= allowed


STARTS = ['{"images": [', '{"shapes": [], "imagePath"', '<annotation', '0 0.5 0.5 1 1', 'names: [', '']


def test_garbage_files(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(40):
        root = tmp_path / str(i)
        root.mkdir()
        Image.new('RGB', (8, 8)).save(root / 'a.png')
        for name in ('a.json', 'a.xml', 'a.txt', 'data.yaml', 'classes.txt', 'a_mask.png'):
            start = rng.choice(STARTS)
            (root / name).write_bytes(start.encode() + rng.bytes(30))
        for data_format in (None, 'coco', 'voc', 'yolo', 'labelme', 'masks'):
            outcome(root, data_format=data_format)  # raises nothing
