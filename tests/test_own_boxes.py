"""Boxes as tools and people really leave them: read right, told, or refused."""

import base64
import io
import json
import math
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from convnext_dense import UserError
from convnext_dense.data import import_data
from convnext_dense.data.formats import recognise
from convnext_dense.data.records import ImageIndex, find_files

WIDTH, HEIGHT = 64, 48
CLASSES = ['cat', 'dog']
NAMES = [f'{i}.jpg' for i in range(1, 7)]
SPLITS = {'train': NAMES[1:5], 'val': [NAMES[0], NAMES[5]]}


def truth_of(name):
    """Return the objects of an image: class, and left, top, width and height in pixels."""
    i = int(''.join(filter(str.isdigit, Path(name).stem)))
    return [('cat', (2 * i, 3, 10, 12)), ('dog', (40, 2 * i, 16, 8))]


def write_image(file, size=(WIDTH, HEIGHT), **options):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', size, (90, 120, 150)).save(file, **options)


def write(file, text):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text if isinstance(text, bytes) else text.encode())


def write_images(root, names=NAMES, **options):
    for name in names:
        write_image(root / name, **options)


def coco_text(names=NAMES, called=lambda name: name):
    content = dict(images=[], annotations=[], categories=[dict(id=i, name=name) for i, name in enumerate(CLASSES, 1)])
    for i, name in enumerate(names, 1):
        content['images'].append(dict(id=i, file_name=called(name), width=WIDTH, height=HEIGHT))
        for label, box in truth_of(name):
            number, label = len(content['annotations']) + 1, CLASSES.index(label) + 1
            content['annotations'].append(dict(id=number, image_id=i, category_id=label, bbox=box, iscrowd=0))
    return json.dumps(content)


def voc_box(x, y, w, h):
    sides = dict(xmin=x + 1, ymin=y + 1, xmax=x + w + 1, ymax=y + h + 1)
    return f'<bndbox>{"".join(f"<{side}>{value}</{side}>" for side, value in sides.items())}</bndbox>'


def voc_text(name, size=(WIDTH, HEIGHT), box=voc_box):
    objects = ''.join(f'<object><name>{label}</name>{box(*sides)}</object>' for label, sides in truth_of(name))
    size = f'<size><width>{size[0]}</width><height>{size[1]}</height></size>'
    return f'<annotation><filename>{name}</filename>{size}{objects}</annotation>'


def write_voc(root, names=NAMES, images='JPEGImages', labels='Annotations'):
    write_images(root / images, names)
    for name in names:
        write(root / labels / f'{Path(name).stem}.xml', voc_text(name))
    return root


def yolo_text(name, line='{label} {x} {y} {w} {h}'):
    lines = [
        line.format(
            label=CLASSES.index(label), x=(x + w / 2) / WIDTH, y=(y + h / 2) / HEIGHT, w=w / WIDTH, h=h / HEIGHT
        )
        for label, (x, y, w, h) in truth_of(name)
    ]
    return '\n'.join(lines)


def write_yolo(root, names=NAMES, images='images', labels='labels', suffix='.txt', text=yolo_text):
    write_images(root / images, names)
    for name in names:
        write(root / labels / f'{Path(name).stem}{suffix}', text(name))
    return root


def write_yaml(root, **content):
    write(root / 'data.yaml', json.dumps({'train': 'images', 'names': CLASSES, **content}))
    return root


def labelme_text(name, shapes=None, **content):
    if shapes is None:
        shapes = [
            dict(label=label, shape_type='rectangle', points=[[x, y], [x + w, y + h]])
            for label, (x, y, w, h) in truth_of(name)
        ]
    return json.dumps(dict(shapes=shapes, imagePath=name, imageWidth=WIDTH, imageHeight=HEIGHT) | content)


def write_labelme(root, names=NAMES, images='.', labels='.'):
    write_images(root / images, names)
    for name in names:
        write(root / labels / f'{Path(name).stem}.json', labelme_text(name))
    return root


def read(root, **options):
    """Import a data set; return what was written, and image -> objects by the image's path."""
    found = import_data(root, root.parent / f'{root.name}.out', **options)
    objects = {}
    for file in found.files.values():
        content = json.loads(file.read_text())
        names = {each['id']: each['name'] for each in content['categories']}
        for image in content['images']:
            own = [each for each in content['annotations'] if each['image_id'] == image['id']]
            objects[image['file_name']] = sorted((names[each['category_id']], each['bbox']) for each in own)
    return found, objects


def is_true(objects, names=NAMES):
    """Tell whether exactly these images have exactly the objects that were drawn."""
    by_name = {Path(name).name: own for name, own in objects.items()}
    expected = {name: [(label, pytest.approx(box, abs=1e-3)) for label, box in truth_of(name)] for name in names}
    return by_name == expected


def splits_of(found):
    return {split: sorted(path.name for path in paths) for split, paths in found.paths.items()}


def refusal(root, **options):
    with pytest.raises(UserError) as error:
        import_data(root, root.parent / 'refused', **options)
    return str(error.value)


# Numbers of another kind


def corners(name):
    return '\n'.join(
        f'{CLASSES.index(label)} {x / WIDTH} {y / HEIGHT} {(x + w) / WIDTH} {(y + h) / HEIGHT}'
        for label, (x, y, w, h) in truth_of(name)
    )


def pixels(name):
    return '\n'.join(
        f'{CLASSES.index(label)} {x + w / 2} {y + h / 2} {w} {h}' for label, (x, y, w, h) in truth_of(name)
    )


@pytest.mark.parametrize(
    ('text', 'words'),
    [(corners, ('12 boxes stick out', 'left, top', '(left + right) / 2')), (pixels, ('12 of 12', 'pixels', '0 to 1'))],
)
def test_yolo_boxes_of_another_kind_are_refused(text, words, tmp_path):
    root = write_yaml(write_yolo(tmp_path / 'd', text=text))
    message = refusal(root)
    assert all(word in message for word in words)


def test_boxes_that_stick_out_a_little_are_no_corners(tmp_path):
    root = write_yaml(write_yolo(tmp_path / 'd', text=lambda name: f'0 0.05 0.5 0.2 0.2\n{yolo_text(name)}'))
    assert sum(read(root)[0].num_objects.values()) == 18


def turned(file):
    exif = Image.Exif()
    exif[0x0112] = 6
    write_image(file, exif=exif)


@pytest.mark.parametrize('write_them', [write_voc, write_labelme])
@pytest.mark.parametrize('spoil', [lambda file: write_image(file, size=(32, 24)), turned], ids=['scaled', 'turned'])
def test_images_of_another_size_than_their_annotations_are_left_out(write_them, spoil, tmp_path):
    root = write_them(tmp_path / 'd')
    files = sorted(root.rglob('*.jpg'))
    spoil(files[2])
    found, objects = read(root)
    assert is_true(objects, [name for name in NAMES if name != files[2].name])
    assert any('size in the annotations' in note and '64x48' in note for note in found.notes)
    for file in files:
        spoil(file)
    assert '6 times' in refusal(root)


def test_a_size_of_zero_tells_nothing(tmp_path):
    root = write_voc(tmp_path / 'd')
    for name in NAMES:
        write(root / f'Annotations/{Path(name).stem}.xml', voc_text(name, size=(0, 0)))
    assert is_true(read(root)[1])


# Splits


@pytest.mark.parametrize(
    ('names', 'line'),
    [
        (NAMES, '{stem}'),
        (NAMES, '{name}'),
        (NAMES, 'JPEGImages/{name}'),
        (NAMES, '{stem}  1'),
        (NAMES, '{stem} -1'),
        ([f'my cat {name}' for name in NAMES], '{stem}'),
        ([f'my cat {name}' for name in NAMES], '{stem} 1'),
    ],
)
def test_lists_of_voc_are_read_as_tools_write_them(names, line, tmp_path):
    root = write_voc(tmp_path / 'd', names)
    for split, own in (('Train', names[1:5]), ('Validation', [names[0], names[5]]), ('cat_train', names)):
        lines = [line.format(name=name, stem=Path(name).stem) for name in own]
        write(root / f'ImageSets/Main/{split}.txt', '\r\n'.join(lines))
    found, objects = read(root)
    assert (found.title, found.has_masks) == ('Pascal VOC XML', False)
    assert is_true(objects, names)
    assert splits_of(found) == {'train': sorted(names[1:5]), 'val': sorted([names[0], names[5]])}


def test_lists_of_two_data_sets_with_equal_names(tmp_path):
    root = tmp_path / 'd'
    for folder, train in (('a', NAMES[:3]), ('b', NAMES[3:])):
        write_voc(root / folder)
        for split, own in (('train', train), ('val', [name for name in NAMES if name not in train])):
            write(root / folder / f'ImageSets/Main/{split}.txt', '\n'.join(Path(name).stem for name in own))
    found, _ = read(root)
    train = {str(path.relative_to(root)) for path in found.paths['train']}
    assert train == {f'{folder}/JPEGImages/{i}.jpg' for folder, own in (('a', '123'), ('b', '456')) for i in own}


def test_the_lists_of_darknet_tell_the_splits(tmp_path):
    root = write_yolo(tmp_path / 'd', images='data/obj', labels='data/obj')
    write(root / 'data/obj.data', 'classes=2\ntrain=data/train.txt\nvalid=data/test.txt\nnames=data/obj.names\n')
    write(root / 'data/obj.names', '\ufeffcat\r\ndog\r\n')
    for name, split in (('train', 'train'), ('test', 'val')):
        write(root / f'data/{name}.txt', '\n'.join(f'data/obj/{image}' for image in SPLITS[split]))
    found, objects = read(root)
    assert is_true(objects)
    assert splits_of(found) == SPLITS
    (root / 'data/obj.data').unlink()
    assert splits_of(read(root)[0])['test'] == SPLITS['val']


@pytest.mark.parametrize('write_them', [write_voc, write_yolo, write_labelme])
def test_the_names_of_images_tell_no_split(write_them, tmp_path):
    names = ['train_station_1.jpg', 'bus_2.jpg', 'test_car_3.jpg', 'bus_4.jpg', 'dev_5.jpg', 'val_6.jpg']
    root = write_them(tmp_path / 'd', names)
    if write_them is write_yolo:
        write(root / 'classes.txt', '\n'.join(CLASSES))
    found, objects = read(root)
    assert is_true(objects, names)
    assert [*found.num_images] == ['train', 'val']
    assert any('seed' in note for note in found.notes)


def test_folders_tell_the_split(tmp_path):
    for split, names in SPLITS.items():
        write_voc(tmp_path / 'd', names, images=split, labels=split)
    assert splits_of(read(tmp_path / 'd')[0]) == SPLITS


# Names of classes


@pytest.mark.parametrize('names', [['cat', 'cat'], {0: 'cat', 1: 'cat'}])
def test_a_class_that_is_there_twice_is_refused(names, tmp_path):
    message = refusal(write_yaml(write_yolo(tmp_path / 'd'), names=names))
    assert 'data.yaml' in message
    assert 'cat more than once' in message


@pytest.mark.parametrize('names', ['{0: a, x: b}', '{0: a, 2: b}', '{null: a, 0: b}'])
def test_numbers_of_classes_that_are_none(names, tmp_path):
    root = write_yolo(tmp_path / 'd')
    write(root / 'data.yaml', f'train: images\nnames: {names}\n')
    message = refusal(root)
    assert 'data.yaml' in message
    assert 'number the classes from 0' in message


def test_numbers_of_classes_as_text(tmp_path):
    assert is_true(read(write_yaml(write_yolo(tmp_path / 'd'), names={'1': 'dog', '0': 'cat'}))[1])


@pytest.mark.parametrize('name', ['classes.txt', 'labels.txt', 'train/_darknet.labels', 'data/fruits.names'])
@pytest.mark.parametrize('start', ['', '\ufeff'])
def test_files_that_name_the_classes_of_yolo(name, start, tmp_path):
    root = write_yolo(tmp_path / 'd')
    write(root / name, f'{start}cat\r\ndog\r\n')
    assert is_true(read(root)[1])


def test_a_yaml_one_folder_down(tmp_path):
    inner = write_yaml(write_yolo(tmp_path / 'd/Project.v1', images='train/images', labels='train/labels'))
    write_yaml(inner, train='../train/images')
    assert is_true(read(tmp_path / 'd')[1])
    write_yaml(write_yolo(tmp_path / 'd/other'))
    assert 'several YOLO data sets' in refusal(tmp_path / 'd')
    write_images(tmp_path / 'd')
    write(tmp_path / 'd/train.json', coco_text())
    assert recognise(tmp_path / 'd', 'coco') == 'coco'


# What can be read is read


@pytest.mark.parametrize(
    'line',
    [
        '{label}.0 {x} {y} {w} {h}',
        '{label},{x},{y},{w},{h}',
        '{label}, {x}, {y}, {w}, {h}',
        '{label}\t{x}\t{y}\t{w}\t{h}',
        '{label} {x} {y} {w} {h} 0.91',
    ],
)
@pytest.mark.parametrize('has_yaml', [True, False])
def test_lines_of_yolo(line, has_yaml, tmp_path):
    root = write_yolo(tmp_path / 'd', text=lambda name: '\ufeff' + yolo_text(name, line))
    if has_yaml:
        write_yaml(root)
    else:
        write(root / 'classes.txt', 'cat\ndog')
    found, objects = read(root)
    assert is_true(objects)
    assert any('12 lines' in note and 'confidence' in note for note in found.notes) == line.endswith('0.91')


def test_commas_within_numbers_are_told(tmp_path):
    root = write_yaml(write_yolo(tmp_path / 'd'))
    write(root / 'labels/1.txt', '0 0,5 0,5 0,2 0,2')
    found, _ = read(root)
    assert any('not a number' in note and '1.txt, line 1' in note for note in found.notes)


@pytest.mark.parametrize(
    'places',
    [
        dict(images='Images', labels='Labels'),
        dict(images='images', labels='labels', suffix='.TXT'),
        dict(images='images/all', labels='labels'),
        dict(images='images', labels='images'),
        dict(images='JPEGImages', labels='labels'),
    ],
)
def test_label_files_are_found(places, tmp_path):
    assert is_true(read(write_yaml(write_yolo(tmp_path / 'd', **places), train=places['images']))[1])


def test_images_outside_of_the_data(tmp_path):
    write_yolo(tmp_path / 'far', images='images/train', labels='labels/train')
    write_yaml(tmp_path / 'd', train=str(tmp_path / 'far/images/train'))
    assert is_true(read(tmp_path / 'd')[1])


def test_a_yaml_beside_the_data(tmp_path):
    root = write_yolo(tmp_path / 'd', images='images/all', labels='labels/all')
    write_yaml(root / 'config', train='../images/all')
    assert is_true(read(root)[1])


def test_label_files_of_two_images_are_told(tmp_path):
    root = write_yaml(write_yolo(tmp_path / 'd'))
    write_image(root / 'images/1.png')
    assert any('two images of one name: 1.txt' in note for note in read(root)[0].notes)


def test_lists_of_another_machine(tmp_path):
    root = write_yaml(write_yolo(tmp_path / 'd'), train='train.txt', val='C:\\data\\val.txt')
    for split, names in SPLITS.items():
        write(root / f'{split}.txt', '\n'.join(f'/home/other/ds/images/{name}' for name in names))
    found, objects = read(root)
    assert is_true(objects)
    assert splits_of(found) == SPLITS


def test_a_split_that_is_not_there(tmp_path):
    root = write_yaml(write_yolo(tmp_path / 'd'), val='../valid/images', test='../test/images')
    found, objects = read(root)
    assert is_true(objects)
    assert sum('which does not exist' in note for note in found.notes) == 2
    write_yaml(root, train='../train/images')
    assert '../train/images' in refusal(root)


def rotated(x, y, w, h):
    sides = dict(cx=x + w / 2, cy=y + h / 2, w=h, h=w, angle=math.pi / 2)
    return f'<robndbox>{"".join(f"<{side}>{value}</{side}>" for side, value in sides.items())}</robndbox>'


def swapped(x, y, w, h):
    return voc_box(x + w, y + h, -w, -h)


@pytest.mark.parametrize('box', [rotated, swapped])
def test_other_boxes_of_voc(box, tmp_path):
    root = write_voc(tmp_path / 'd')
    for name in NAMES:
        write(root / f'Annotations/{Path(name).stem}.xml', voc_text(name, box=box))
    found, objects = read(root)
    assert is_true(objects)
    assert any('12 boxes are rotated' in note for note in found.notes) == (box is rotated)


def outlined(x, y, w, h):
    corners = [x, y, x + w, y, x + w, y + h]
    points = ''.join(
        f'<{"xy"[i % 2]}{i // 2 + 1}>{value}</{"xy"[i % 2]}{i // 2 + 1}>' for i, value in enumerate(corners)
    )
    return f'{voc_box(x, y, w, h)}<polygon>{points}</polygon>'


def test_polygons_of_voc(tmp_path):
    root = write_voc(tmp_path / 'd')
    for name in NAMES:
        write(root / f'Annotations/{Path(name).stem}.xml', voc_text(name, box=outlined))
    found, objects = read(root)
    assert found.has_masks
    assert is_true(objects)
    content = json.loads(found.files['train'].read_text())
    assert all(each['area'] == each['bbox'][2] * each['bbox'][3] / 2 for each in content['annotations'])
    text = voc_text('1.jpg', box=outlined).replace('<x3>', '<z3>').replace('</x3>', '</z3>')
    write(root / 'Annotations/1.xml', text)
    found, objects = read(root)
    assert is_true(objects)
    assert any('odd number' in note and 'beside a box' in note for note in found.notes)


# Images that are there under another name


@pytest.mark.parametrize(
    ('real', 'called'),
    [
        ('IMG {}.JPG', 'img {}.jpg'),
        (unicodedata.normalize('NFD', 'é{}.jpg'), unicodedata.normalize('NFC', 'é{}.jpg')),
        ('a b{}.jpg', '/data/upload/1/a%20b{}.jpg'),
        ('{}.png', '{}.jpg'),
        ('{}.jpg', '{}.heic'),
    ],
)
@pytest.mark.parametrize('kind', ['coco', 'voc', 'labelme'])
def test_images_under_another_name(kind, real, called, tmp_path):
    names = [real.format(i) for i in range(1, 7)]
    root = tmp_path / 'd'
    write_images(root / 'images', names)
    for i, name in enumerate(names, 1):
        text = called.format(i)
        if kind == 'coco':
            write(root / 'a.json', coco_text(names, called=lambda name: called.format(*filter(str.isdigit, name))))
        elif kind == 'voc':
            write(root / f'xml/x{i}.xml', voc_text(name).replace(f'<filename>{name}', f'<filename>{text}'))
        else:
            write(root / f'json/x{i}.json', labelme_text(name, imagePath=text))
    assert is_true(read(root)[1], names)


def test_a_mask_is_not_the_image_that_is_missing(tmp_path):
    write_image(tmp_path / 'images/a.jpg')
    write_image(tmp_path / 'masks/b.png')
    index = ImageIndex(tmp_path)
    assert index.find('b.jpg', tmp_path) is None
    assert index.find('A.png', tmp_path) == tmp_path / 'images/a.jpg'
    assert index.find('x' * 5000, tmp_path) is None


def test_two_files_of_other_suffixes_are_not_the_image_that_is_missing(tmp_path):
    write_images(tmp_path, ['a/1.png', 'b/1.bmp'])
    assert ImageIndex(tmp_path).find('1.jpg', tmp_path) is None
    with pytest.raises(UserError, match='several files'):
        ImageIndex(tmp_path).find('1', tmp_path)


@pytest.mark.parametrize('folder', ['annots', 'Annotations', 'labels_json'])
def test_images_beside_the_folder_of_annotations(folder, tmp_path):
    write_images(tmp_path / 'd/images')
    write(tmp_path / 'd' / folder / 'train.json', coco_text())
    for source in (tmp_path / 'd' / folder, tmp_path / 'd' / folder / 'train.json'):
        assert is_true(read(source)[1])


def test_images_of_a_kind_that_is_not_read(tmp_path):
    root = write_voc(tmp_path / 'd')
    for name in NAMES[:2]:
        (root / f'JPEGImages/{name}').rename(root / f'JPEGImages/{Path(name).stem}.heic')
        write(root / f'Annotations/{Path(name).stem}.xml', voc_text(name).replace('.jpg<', '.heic<'))
    found, objects = read(root)
    assert is_true(objects, NAMES[2:])
    assert any('.heic, which is not read, 2 times' in note for note in found.notes)
    for name in NAMES[2:]:
        (root / f'JPEGImages/{name}').rename(root / f'JPEGImages/{Path(name).stem}.heic')
    message = refusal(root)
    assert '.heic' in message
    assert 'PNG or JPEG' in message


@pytest.mark.parametrize('kind', ['coco', 'voc', 'labelme'])
def test_the_folder_of_an_annotation_decides_among_equal_names(kind, tmp_path):
    root = tmp_path / 'd'
    for folder in ('task_1', 'task_2'):
        if kind == 'coco':
            write_images(root / folder / 'images')
            write(root / folder / 'annotations/instances_default.json', coco_text())
        else:
            (write_voc if kind == 'voc' else write_labelme)(root / folder, images='images', labels='labels')
    found, objects = read(root)
    assert sorted(objects) == sorted(f'{task}/images/{name}' for task in ('task_1', 'task_2') for name in NAMES)
    assert sum(found.num_objects.values()) == 24


def test_of_two_images_with_one_stem_the_named_one(tmp_path):
    root = write_voc(tmp_path / 'd')
    write_images(root / 'JPEGImages', [f'{Path(name).stem}.png' for name in NAMES])
    assert is_true(read(root)[1])


@pytest.mark.parametrize('write_them', [write_voc, write_labelme])
def test_a_missing_image_does_not_stop_the_others(write_them, tmp_path):
    root = write_them(tmp_path / 'd')
    files = sorted(root.rglob('*.jpg'))
    files[2].unlink()
    found, objects = read(root)
    assert is_true(objects, [name for name in NAMES if name != files[2].name])
    assert any('not there' in note and files[2].name in note for note in found.notes)
    for file in root.rglob('*.jpg'):
        file.unlink()
    assert 'not there, 6 times' in refusal(root)


def test_links_that_lead_back_end(tmp_path):
    write_voc(tmp_path / 'd')
    (tmp_path / 'd/latest').symlink_to('.')
    assert is_true(read(tmp_path / 'd')[1])
    (tmp_path / 'd/all').symlink_to(tmp_path)
    (tmp_path / 'd/again').symlink_to(tmp_path / 'd/JPEGImages')
    assert len(list(find_files(tmp_path / 'd', ['.jpg']))) == 12


# Recognition


def test_the_notes_of_label_studio_are_not_coco(tmp_path):
    root = write_yolo(tmp_path / 'd')
    write(root / 'classes.txt', 'cat\ndog')
    write(root / 'notes.json', json.dumps(dict(categories=[dict(id=0, name='cat')], info=dict(year=2024))))
    assert is_true(read(root)[1])


def test_cvat_for_images_names_the_export_to_choose(tmp_path):
    write_images(tmp_path / 'd/images')
    image = '<image id="0" name="1.jpg" width="64" height="48"><box label="cat" xtl="1"/></image>'
    write(
        tmp_path / 'd/annotations.xml', f'<?xml version="1.0"?><annotations><version>1.1</version>{image}</annotations>'
    )
    for source in (tmp_path / 'd', tmp_path / 'd/annotations.xml'):
        message = refusal(source)
        assert all(word in message for word in ('annotations.xml', 'COCO 1.0', 'Pascal VOC 1.1'))


def test_xml_of_other_programs_is_not_voc(tmp_path):
    write_images(tmp_path / 'd')
    write(tmp_path / 'd/1.xml', '<annotation><filename>1.jpg</filename></annotation>')
    assert 'known format' in refusal(tmp_path / 'd')


# Nothing is lost in silence


PNG = io.BytesIO()
Image.new('L', (9, 9), 255).save(PNG, 'PNG')
MASK = dict(label='cat', shape_type='mask', mask=base64.b64encode(PNG.getvalue()).decode())


@pytest.mark.parametrize(
    'shape',
    [
        dict(label='cat', shape_type='circle', points=[[None, 1], [2, 3]]),
        dict(label='cat', shape_type='circle', points=[['a', 'b'], [2, 3]]),
        dict(label='cat', shape_type='circle', points=[[10**400, 1], [2, 3]]),
        MASK | dict(points=[]),
        MASK | dict(points=[[None, None], [3, 3]]),
        MASK | dict(points=[[1, 1], ['x', 3]]),
    ],
)
def test_shapes_of_labelme_that_are_none(shape, tmp_path):
    root = write_labelme(tmp_path / 'd')
    sound = json.loads(labelme_text('1.jpg'))['shapes']
    write(root / '1.json', labelme_text('1.jpg', [*sound, shape]))
    found, objects = read(root)
    assert is_true(objects)
    assert any('once: 1.json: shape 3' in note for note in found.notes)


def test_a_rectangle_in_a_group_with_a_polygon_is_told(tmp_path):
    root = write_labelme(tmp_path / 'd')
    polygon = dict(label='cat', group_id=1, points=[[2, 2], [20, 2], [20, 20]])
    rectangle = dict(label='cat', group_id=1, shape_type='rectangle', points=[[1, 1], [21, 21]])
    write(root / '1.json', labelme_text('1.jpg', [polygon, rectangle]))
    found, objects = read(root)
    assert objects['1.jpg'] == [('cat', [2, 2, 18, 18])]
    assert any('rectangle in a group' in note and '1.json' in note for note in found.notes)


@pytest.mark.parametrize('write_them', [write_voc, write_labelme])
def test_images_without_annotations_are_counted(write_them, tmp_path):
    root = write_them(tmp_path / 'd')
    write_images(root / 'more', ['8.jpg', '9.jpg'])
    assert any('2 images without' in note and 'more/8.jpg' in note for note in read(root)[0].notes)


def test_empty_files_and_long_comments_of_voc(tmp_path):
    root = write_voc(tmp_path / 'd')
    write(root / 'Annotations/3.xml', '')
    write(root / 'Annotations/4.xml', f'<?xml version="1.0"?>\n<!--{"<x>" * 1000}-->\n{voc_text("4.jpg")}')
    found, objects = read(root)
    assert is_true(objects, [name for name in NAMES if name != '3.jpg'])
    assert any('empty' in note and '3.xml' in note for note in found.notes)


def test_label_files_without_images_and_images_without_label_files(tmp_path):
    root = write_yaml(write_yolo(tmp_path / 'd'))
    (root / 'labels/1.txt').rename(root / 'labels/x1.txt')
    found, objects = read(root)
    assert objects['images/1.jpg'] == []
    assert any('1 images have no label file' in note and '1.jpg' in note for note in found.notes)
    assert any('1 label files have no image' in note and 'x1.txt' in note for note in found.notes)
    (root / 'data.yaml').unlink()
    write(root / 'classes.txt', 'cat\ndog')
    found, objects = read(root)
    assert is_true(objects, NAMES[1:])
    assert any('1 images without a label file' in note for note in found.notes)


@pytest.mark.parametrize('key', ['path', 'train'])
def test_a_path_of_any_length(key, tmp_path):
    root = write_yaml(write_yolo(tmp_path / 'd'), **{key: 'x' * 5000})
    if key == 'path':
        assert is_true(read(root)[1])
    else:
        assert 'does not exist' in refusal(root)


@pytest.mark.parametrize('name', ['export.zip', 'export.tar.gz'])
def test_an_archive_has_to_be_unpacked(name, tmp_path):
    write(tmp_path / name, 'PK')
    assert 'Unpack it' in refusal(tmp_path / name)


def test_data_of_an_unknown_kind_is_described(tmp_path):
    write_images(tmp_path)
    write(tmp_path / 'via_region_data.json', '{"a.jpg1": {"filename": "a.jpg", "regions": {}}}')
    text = refusal(tmp_path)
    assert all(words in text for words in (f'{len(NAMES)} .jpg, 1 .json', 'no data in a known format', 'Export it as'))


def test_files_of_coco_without_objects_are_one_note(tmp_path):
    write_images(tmp_path / 'images')
    write(tmp_path / 'annotations/instances_train2017.json', coco_text())
    for name in ('captions_train2017', 'person_keypoints_train2017'):
        write(tmp_path / f'annotations/{name}.json', coco_text())
    (note,) = (note for note in read(tmp_path)[0].notes if 'left out' in note)
    assert all(words in note for words in ('captions_train2017.json', 'person_keypoints', 'instances_*.json'))
