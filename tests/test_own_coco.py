"""COCO files as people have them: what they say is read as it is meant, or answered, and nothing of theirs is lost."""

import copy
import json
from collections import Counter

import cv2
import numpy as np
import pytest
import tifffile

from convnext_dense import UserError
from convnext_dense.data import import_data
from convnext_dense.data.pictures import find_kind, image_size, read_image

CLASSES = ('cat', 'dog', 'bird')
SIDE = 64


@pytest.fixture
def content():
    """Return a COCO file of six images, each with a cat, a dog and a bird side by side."""
    images = [dict(id=i, file_name=f'{i}.png', width=SIDE, height=SIDE) for i in range(1, 7)]
    annotations = []
    for image in images:
        for label in range(3):
            left, top = 2 + 20 * label, 4 + 5 * image['id']
            box = [left, top, 15, 18]
            corners = [left, top, left + 15, top, left + 15, top + 18, left, top + 18]
            ids = dict(id=len(annotations) + 1, image_id=image['id'], category_id=label + 1, iscrowd=0)
            annotations.append(dict(ids, bbox=box, area=270, segmentation=[corners]))
    categories = [dict(id=i + 1, name=name) for i, name in enumerate(CLASSES)]
    return dict(images=images, annotations=annotations, categories=categories)


def save(content, file):
    """Write a COCO file and its images, each of its own grey."""
    file.parent.mkdir(parents=True, exist_ok=True)
    for image in content['images']:
        path = file.parent / image['file_name']
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((SIDE, SIDE, 3), 20 * len(path.stem) + int(path.stem[-1]), np.uint8))
    file.write_text(json.dumps(content))
    return file


def objects_of(found):
    """Return how often each class, left side and top was written, over all splits."""
    objects = Counter()
    for file in found.files.values():
        written = json.loads(file.read_text())
        names = {each['id']: each['name'] for each in written['categories']}
        objects.update((names[each['category_id']], *each['bbox'][:2]) for each in written['annotations'])
    return objects


def expected(content):
    return Counter((CLASSES[each['category_id'] - 1], *each['bbox'][:2]) for each in content['annotations'])


def each(field, change):
    """Return a change of a field of all annotations."""
    return lambda content: [entry.update({field: change(entry)}) for entry in content['annotations']]


AS_MEANT = {
    'ids with a point': each('image_id', lambda entry: float(entry['image_id'])),
    'ids as text': each('image_id', lambda entry: str(entry['image_id'])),
    'category ids as text': lambda content: [entry.update(id=str(entry['id'])) for entry in content['categories']],
    'annotations in a mapping': lambda c: c.update(annotations={str(entry['id']): entry for entry in c['annotations']}),
    'an empty polygon': each('segmentation', lambda entry: [[]]),
    'no box but a polygon': each('bbox', lambda entry: None),
    'a flat box and a polygon': each('bbox', lambda entry: [*entry['bbox'][:2], 0, 0]),
    'sizes of 0': lambda content: [image.update(width=0, height=0) for image in content['images']],
    'all annotations twice': lambda content: content['annotations'].extend(copy.deepcopy(content['annotations'])),
    'an image twice': lambda content: content['images'].append(dict(content['images'][0])),
}


@pytest.mark.parametrize('kind', AS_MEANT)
def test_what_can_be_read_is_read(kind, content, tmp_path):
    wanted = expected(content)
    AS_MEANT[kind](content)
    found = import_data(save(content, tmp_path / 'd/set.json'), tmp_path / 'out')
    assert objects_of(found) == wanted
    assert sum(found.num_images.values()) == 6


def as_runs(entry):
    left, top, width, height = entry['bbox']
    runs = [left * SIDE + top]
    for _ in range(width):
        runs += [height, SIDE - height]
    runs[-1] = SIDE * SIDE - sum(runs[:-1])
    return dict(size=[SIDE, SIDE], counts=runs)


def test_a_box_comes_from_run_lengths_where_there_is_none(content, tmp_path):
    wanted = expected(content)
    for entry in content['annotations']:
        entry.update(segmentation=as_runs(entry))
        del entry['bbox']
    assert objects_of(import_data(save(content, tmp_path / 'd/set.json'), tmp_path / 'out')) == wanted


@pytest.mark.parametrize(
    'mask',
    [[[1, 2, 3, 4]], dict(size=[9, 9], counts=[81]), [[0.1, 0.1, 0.2, 0.1, 0.2, 0.3]]],
    ids=['short', 'size', 'unit'],
)
def test_a_bad_mask_does_not_take_the_box_with_it(mask, content, tmp_path):
    wanted = expected(content)
    content['annotations'][3]['segmentation'] = mask
    file = save(content, tmp_path / 'd/set.json')
    found = import_data(file, tmp_path / 'boxes')
    assert objects_of(found) == wanted
    assert any('annotation 4' in note and 'kept' in note for note in found.notes)
    masks = import_data(file, tmp_path / 'masks', with_masks=True)
    crowds = [entry for path in masks.files.values() for entry in json.loads(path.read_text())['annotations']]
    assert sum(entry['iscrowd'] for entry in crowds) == 1  # it is not learned as background


def corners(entry):
    left, top, width, height = entry['bbox']
    return [left, top, left + width, top + height]


REFUSED = {
    'corners': (each('bbox', corners), r'corners, \[x1, y1, x2, y2\].*\[left, top, width, height\]'),
    'shares': (each('bbox', lambda entry: [side / SIDE for side in entry['bbox']]), 'shares of the image'),
    'rotated': (each('bbox', lambda entry: [*entry['bbox'], 30]), r'not four numbers, 18 times.*annotation 1'),
    'one id for two images': (lambda c: c['images'][1].update(id=1), r'1\.png and 2\.png have the same id, 1'),
    'resized': (lambda c: [i.update(width=128, height=128) for i in c['images']], 'size in the annotations.*6 times'),
    'no image': (lambda c: [i.update(file_name='none.png') for i in c['images']], r'not in .*none\.png'),
}


@pytest.mark.parametrize('kind', REFUSED)
def test_what_cannot_be_right_is_refused_with_its_reason(kind, content, tmp_path):
    file = save(content, tmp_path / 'd/set.json')
    change, named = REFUSED[kind]
    change(content)
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=named):
        import_data(file, tmp_path / 'out')


def test_images_that_are_gone_or_of_another_size_are_left_out_and_named(content, tmp_path):
    file = save(content, tmp_path / 'd/set.json')
    (tmp_path / 'd/2.png').unlink()
    content['images'][4]['width'] = 99
    file.write_text(json.dumps(content))
    found = import_data(file, tmp_path / 'out')
    assert sum(found.num_images.values()) == 4
    assert sum(objects_of(found).values()) == 12
    notes = ' '.join(found.notes)
    assert '2.png' in notes
    assert '5.png' in notes
    assert 'EXIF' in notes


# --- several files


def save_parts(content, folder, **ids):
    """Write a file for each part, with the images of these ids."""
    save(content, folder / 'all.json').unlink()
    for name, own in ids.items():
        images = [image for image in content['images'] if image['id'] in own]
        annotations = [entry for entry in content['annotations'] if entry['image_id'] in own]
        (folder / f'{name}.json').write_text(json.dumps(dict(content, images=images, annotations=annotations)))
    return folder


@pytest.mark.parametrize(
    ('files', 'sizes', 'named'),
    [
        (dict(train=[1, 2, 3, 4], val=[5, 6], trainval=[1, 2, 3, 4, 5, 6]), (4, 2), 'trainval'),
        (dict(train=[1, 2, 3, 4], train_backup=[1, 2, 3, 4], val=[5, 6]), (4, 2), 'twice, 12 times'),
        (dict(train=[1, 2, 3, 4, 5], val=[5, 6]), (4, 2), 'left out of train: 1 images that are in val too'),
        (dict(train=[1, 2], val=[1, 2]), (2, 2), 'train and val are the same 2 images'),
        (dict(instances_train=[1, 2, 3], instances_val=[4], captions_train=[1, 2, 3]), (3, 1), 'captions_train'),
        (dict(test=[1, 2, 3, 4, 5, 6]), (5, 1), 'no training images: the 6 of test'),
        (dict(train=[1]), (1,), 'scores say nothing'),
    ],
)
def test_files_that_overlap_count_each_image_once(files, sizes, named, content, tmp_path):
    found = import_data(save_parts(content, tmp_path / 'd', **files), tmp_path / 'out')
    assert tuple(found.num_images.values()) == sizes
    assert max(objects_of(found).values()) == 1 or 'same' in named
    assert any(named in note for note in found.notes)


def test_splits_without_one_to_train_on_are_refused(content, tmp_path):
    with pytest.raises(UserError, match='test, val|val, test'):
        import_data(save_parts(content, tmp_path / 'd', val=[1, 2], test=[3, 4]), tmp_path / 'out')


@pytest.mark.parametrize('pad', [0, 2**21])
def test_a_file_is_recognised_wherever_its_keys_stand(pad, content, tmp_path):
    file = save(content, tmp_path / 'd/set.json')
    turned = dict(annotations=content['annotations'], info=' ' * pad, images=content['images'])
    file.write_text('\ufeff' + json.dumps(turned | dict(categories=content['categories'])), encoding='utf-8')
    assert objects_of(import_data(tmp_path / 'd', tmp_path / 'out')) == expected(content)


# --- classes


def test_names_in_another_order_keep_their_objects(content, tmp_path):
    file = save(content, tmp_path / 'd/set.json')
    found = import_data(file, tmp_path / 'out', classes=['bird', 'cat', 'fish', 'dog'])
    assert found.classes == ['bird', 'cat', 'fish', 'dog']
    assert objects_of(found) == expected(content)


def test_other_names_are_told(content, tmp_path):
    found = import_data(save(content, tmp_path / 'd/set.json'), tmp_path / 'out', classes=['a', 'b', 'c'])
    assert any('cat becomes a' in note for note in found.notes)
    with pytest.raises(UserError, match='2 classes'):
        import_data(tmp_path / 'd/set.json', tmp_path / 'out', classes=['a', 'b'])


def test_a_class_called_background_is_the_background_of_label_maps(content, tmp_path):
    content['categories'][1]['name'] = 'background'
    found = import_data(save(content, tmp_path / 'd/set.json'), tmp_path / 'out', task='seg')
    assert found.classes == ['background', 'cat', 'bird']
    labels = cv2.imread(str(tmp_path / 'out/labels/1.png'), cv2.IMREAD_UNCHANGED)
    assert labels[20, [5, 30, 50]].tolist() == [1, 0, 2]


# --- the user's files


def snapshot(folder):
    return {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def test_label_maps_never_touch_the_data(content, tmp_path):
    save(content, tmp_path / 'images/set.json').unlink()
    for image in content['images']:
        image['file_name'] = str(tmp_path / 'images' / image['file_name'])
    (tmp_path / 'd').mkdir()
    (tmp_path / 'd/set.json').write_text(json.dumps(content))
    before = snapshot(tmp_path)
    found = import_data(tmp_path / 'd/set.json', tmp_path / 'out', task='seg')
    assert {path: content for path, content in snapshot(tmp_path).items() if path in before} == before
    listed = json.loads(found.files['train'].read_text())['data_list']
    assert all((tmp_path / entry['seg_map_path']).is_relative_to(tmp_path / 'out') for entry in listed)


@pytest.mark.parametrize('out', ['d', '.', 'other'])
def test_a_folder_with_files_of_the_user_is_not_written_to(out, content, tmp_path):
    file = save(content, tmp_path / 'd/train.json')
    (tmp_path / 'other').mkdir()
    (tmp_path / 'other/train.json').write_text('mine')
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match='Give a'):
        import_data(file, tmp_path / out)
    assert snapshot(tmp_path) == before


def test_a_place_that_cannot_be_written_is_answered(content, tmp_path):
    file = save(content, tmp_path / 'd/set.json')
    (tmp_path / 'file').write_text('mine')
    with pytest.raises(UserError, match='file/out cannot be made'):
        import_data(file, tmp_path / 'file/out')


def test_two_images_of_one_name_have_label_maps_of_their_own(content, tmp_path):
    content['images'][1]['file_name'] = '1.jpg'
    found = import_data(save(content, tmp_path / 'd/set.json'), tmp_path / 'out', task='seg')
    listed = [entry for file in found.files.values() for entry in json.loads(file.read_text())['data_list']]
    assert len({entry['seg_map_path'] for entry in listed}) == 6


# --- TIFF files


@pytest.mark.parametrize(
    ('shape', 'kind', 'options', 'channels'),
    [
        ((SIDE, SIDE, 3), np.uint16, dict(photometric='rgb'), 3),
        ((SIDE, SIDE, 4), np.uint8, dict(photometric='rgb', extrasamples=['unspecified']), 4),
        ((SIDE, SIDE, 4), np.uint8, dict(photometric='rgb', extrasamples=['unassalpha']), 3),
        ((5, SIDE, SIDE), np.uint8, dict(photometric='minisblack', planarconfig='separate'), 5),
        ((SIDE, SIDE, 2), np.uint8, dict(photometric='minisblack', planarconfig='contig'), 2),
        ((SIDE, SIDE, 5), np.uint8, {}, 5),
    ],
    ids=['16 bits', 'RGB and infrared', 'RGB and opacity', 'planes', 'two bands', 'pages'],
)
def test_a_tiff_is_read_with_all_its_bands(shape, kind, options, channels, tmp_path):
    values = np.random.default_rng(0).integers(0, 200, shape).astype(kind)
    tifffile.imwrite(tmp_path / 'x.tif', values, **options)
    found = find_kind([tmp_path / 'x.tif'])
    assert found.channels == channels
    assert image_size(tmp_path / 'x.tif') == (SIDE, SIDE)
    image = read_image(tmp_path / 'x.tif', channels, found.stretch)
    bands = values if shape[-1] < SIDE else values.transpose(1, 2, 0)
    if channels == 3:
        bands = bands[..., 2::-1]
    if kind == np.uint8:
        assert np.array_equal(image, bands)
    else:
        assert np.corrcoef(image.ravel(), bands.ravel())[0, 1] > 0.99
        assert image.max() == 255


def test_an_image_without_a_number_is_no_obstacle(tmp_path):
    tifffile.imwrite(tmp_path / 'a.tif', np.full((8, 8), np.nan, np.float32))
    tifffile.imwrite(tmp_path / 'b.tif', np.linspace(0, 5, 64, dtype=np.float32).reshape(8, 8))
    found = find_kind([tmp_path / 'a.tif', tmp_path / 'b.tif'])
    assert 0 <= found.stretch[0] < found.stretch[1] <= 5
    assert np.isfinite(read_image(tmp_path / 'a.tif', 3, found.stretch)).all()
