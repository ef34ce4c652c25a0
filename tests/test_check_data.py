"""The report on data: errors, notes, images in two splits, and a sound copy."""

import json

import numpy as np
import pytest
from PIL import Image, ImageFilter

from convnext_dense import UserError
from convnext_dense.configs import load_config
from convnext_dense.data import check_split, import_data, write_shapes
from convnext_dense.data.pictures import image_size
from convnext_dense.train import check
from convnext_dense.train.check import check_data
from convnext_dense.train.own_data import prepare_data


@pytest.fixture
def data(tmp_path):
    """COCO JSONs and images; the drawings differ to the eye."""
    return write_shapes(tmp_path / 'd', num_train=6, num_val=3, size=64)


def test_sound_data(data, tmp_path):
    text = check_data(data / 'annotations/instances_train.json', as_json=tmp_path / 'report.json')
    assert 'COCO JSON' in text
    assert 'which makes the scores too good' not in text
    assert json.loads((tmp_path / 'report.json').read_text())['errors'] == []


@pytest.mark.parametrize(
    ('leak', 'is_found'),
    [
        (lambda image: image, True),
        (lambda image: image.filter(ImageFilter.GaussianBlur(0.5)), True),
        (lambda image: image.resize((image.width * 2, image.height * 2)), True),
        (lambda image: Image.fromarray(np.asarray(image)[:, ::-1]), False),
    ],
    ids=['the same', 'blurred', 'enlarged', 'mirrored'],
)
def test_images_in_two_splits(leak, is_found, data, tmp_path):
    name = 'images/{}/000001.png'
    with Image.open(data / name.format('train')) as image:
        leak(image).save(data / name.format('val'))
    for split in ('train', 'val'):
        file = data / f'annotations/instances_{split}.json'
        content = json.loads(file.read_text())
        for image in content['images']:
            image['width'], image['height'] = image_size(data / f'images/{split}' / image['file_name'])
        file.write_text(json.dumps(content))
    text = check_data(data, data_format='coco', page=tmp_path / 'report.html')
    assert ('<h2>images in two splits</h2>' in (tmp_path / 'report.html').read_text()) == is_found
    assert ('train and val share 1 images' in text and '000001.png' in text) == is_found


def test_a_split_that_is_another_one_is_compared_once(data):
    files = [str(file) for file in sorted((data / 'images/train').iterdir())]
    lines, _ = check.find_same({'train': files[:3], 'val': files[2:], 'test': files[2:]})
    assert len(lines) == 1
    assert lines[0].startswith('train and val share 1 images')
    assert check.find_same({'train': files, 'val': [*files]}) == ([], [])


def test_a_config_and_its_errors(drawn, tmp_path):
    text = check_data('seg/upernet_convnext_atto_shapes', cfg_options=drawn)
    assert 'train: 8 images' in text
    assert 'no errors' in text
    with pytest.raises(UserError, match='batch_size'):
        check_data('seg/upernet_convnext_atto_shapes', cfg_options={**drawn, 'train_dataloader.batch_size': 1})
    with pytest.raises(UserError, match=r'is a config.*--format.*--fix'):  # which a config leaves nothing to do
        check_data('seg/upernet_convnext_atto_shapes', out=tmp_path / 'sound', data_format='coco', seed=0)


def test_a_sound_copy_and_the_original_stays(data, tmp_path):
    file = data / 'annotations/instances_train.json'
    content = json.loads(file.read_text())
    content['annotations'][0]['segmentation'] = [[1, 2, 3, 4]]
    file.write_text(json.dumps(content))
    before = file.read_bytes()
    text = check_data(file, out=tmp_path / 'sound', page=tmp_path / 'report.html')
    page = (tmp_path / 'report.html').read_text()
    assert (
        '<h2>a polygon of fewer than three points; its box is kept</h2><figure><img src="data:image/png;base64,' in page
    )
    assert 'http' not in page  # it needs no other file
    assert 'fewer than three points' in text
    assert file.read_bytes() == before
    written = json.loads((tmp_path / 'sound/train.json').read_text())
    assert all(len(each['segmentation'][0]) >= 6 for each in written['annotations'])


SQUARES = np.kron([[0, 1], [2, 0]], np.ones((12, 16))).astype(np.uint8)
COLOURS = np.array([(0, 0, 0), (128, 0, 0), (0, 128, 0)], np.uint8)
MAPS = {  # kind -> the squares as such a map, a value or colour that no class has, and the file of classes
    'numbers': (SQUARES, 7, 'background\ncat\ndog\n'),
    'numbers from 1': (SQUARES, 7, 'cat\ndog\n'),
    'one number too many': (SQUARES, 3, 'background\ncat\ndog\n'),
    'lines of values': (SQUARES, 7, '0 background\n1 cat\n2 dog\n'),
    'colours': (COLOURS[SQUARES], (9, 99, 9), 'background 0 0 0\ncat 128 0 0\ndog 0 128 0\n'),
    'black and white': ((SQUARES > 0).astype(np.uint8) * 255, 7, ''),
    'black and white with names': ((SQUARES > 0).astype(np.uint8) * 255, 7, 'background\nlesion\n'),
}


def write_faulty_maps(root, values, stray, classes):
    """Write six images and their label maps, three of which are sound; a fourth holds a value that no class has."""
    for name in ('images', 'masks'):
        (root / name).mkdir(parents=True)
    for i in range(6):
        Image.new('RGB', (32, 24), (9 * i, 0, 0)).save(root / f'images/{i}.jpg')
        drawn = values.copy()
        if i == 0:
            drawn[0, 0] = stray
        Image.fromarray(drawn[:-1] if i == 1 else drawn).save(root / f'masks/{i}.png')
    (root / 'masks/2.png').write_bytes(b'no image')
    if classes:
        (root / 'classes.txt').write_text(classes)
    return root


def contents(folder):
    return {file: file.read_bytes() for file in folder.rglob('*') if file.is_file()}


@pytest.mark.parametrize('kind', MAPS)
def test_a_sound_copy_of_label_maps(kind, tmp_path):
    source, sound = write_faulty_maps(tmp_path / 'd', *MAPS[kind]), tmp_path / 'sound'
    before = contents(source)
    with pytest.raises(UserError, match=r'1.png is 32x23[^$]*2.png cannot be read[^$]*check-data PATH --fix OUT'):
        check_data(source)
    text = check_data(source, out=sound, page=tmp_path / 'page.html')
    assert all(words in text for words in ('another size', '1.png', 'cannot be read', '2.png', 'without a class', '0.'))
    assert contents(source) == before

    found = import_data(sound, tmp_path / 'out')
    expected = SQUARES > 0 if kind.startswith('black') else SQUARES.astype(int) - (kind == 'numbers from 1')
    names = {'numbers from 1': ['cat', 'dog'], 'black and white': ['background', 'foreground'],
             'black and white with names': ['background', 'lesion']}  # fmt: skip
    assert found.classes == names.get(kind, ['background', 'cat', 'dog'])
    assert sorted(path.name for paths in found.paths.values() for path in paths) == ['0.jpg', '3.jpg', '4.jpg', '5.jpg']
    for file in found.files.values():
        for entry in json.loads(file.read_text())['data_list']:
            is_faulty = entry['img_path'].endswith('0.jpg')
            drawn = np.where(np.indices(SQUARES.shape).sum(0) == 0, 255, expected) if is_faulty else expected
            with Image.open(found.root / entry['seg_map_path']) as image:
                np.testing.assert_array_equal(np.array(image), drawn % 256)

    cfg = load_config(prepare_data('seg/upernet_convnext_atto_shapes', sound, tmp_path / 'work/data'))
    assert check_split(cfg, 'train') == check_split(cfg, 'val') == []


def test_a_sound_copy_of_a_sound_copy_is_the_same(tmp_path):
    check_data(write_faulty_maps(tmp_path / 'd', *MAPS['numbers']), out=tmp_path / 'sound')
    check_data(tmp_path / 'sound', out=tmp_path / 'again')
    first, second = (
        {file.name: content for file, content in contents(tmp_path / name).items() if file.suffix == '.png'}
        for name in ('sound', 'again')
    )
    assert first == second
    assert len(first) == 4
    (tmp_path / 'sound/labels/images/3.png').write_bytes(b'')
    with pytest.raises(UserError, match='3.png cannot be read'):
        import_data(tmp_path / 'sound/train.json', tmp_path / 'out')


def test_a_list_that_was_edited_badly(tmp_path):
    check_data(write_faulty_maps(tmp_path / 'd', *MAPS['numbers']), out=tmp_path / 'sound')
    file = tmp_path / 'sound/train.json'
    file.write_text(file.read_text().replace('img_path', 'image'))
    with pytest.raises(UserError, match=r'train.json is no list of label maps.*img_path'):
        import_data(tmp_path / 'sound', tmp_path / 'out')


def test_without_the_package_for_hashes(data, monkeypatch):
    monkeypatch.setattr(check, 'find_spec', lambda name: None)
    assert "pip install 'convnext-dense[data]'" in check_data(data, data_format='coco')


def test_data_that_cannot_be_read(tmp_path):
    (tmp_path / 'set.json').write_text('{"images": [')
    with pytest.raises(UserError, match='set.json is not JSON'):
        check_data(tmp_path, data_format='coco')
