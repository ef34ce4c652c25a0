"""The report on data: errors, notes, images in two splits, and a sound copy."""

import json

import numpy as np
import pytest
from PIL import Image, ImageFilter

from convnext_dense import UserError
from convnext_dense.data import write_shapes
from convnext_dense.data.pictures import image_size
from convnext_dense.train import check
from convnext_dense.train.check import check_data


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


def test_a_config_and_its_errors(data, tmp_path):
    options = {f'{split}_dataloader.dataset.data_root': str(data) for split in ('train', 'val', 'test')}
    options |= {f'{split}_dataloader.dataset.{key}': value for split in ('train', 'val', 'test')
                for key, value in dict(num_train=6, num_val=3, size=64).items()}  # fmt: skip
    text = check_data('seg/upernet_convnext_atto_shapes', cfg_options=options)
    assert 'train: 6 images' in text
    assert 'no errors' in text
    with pytest.raises(UserError, match='batch_size'):
        check_data('seg/upernet_convnext_atto_shapes', cfg_options={**options, 'train_dataloader.batch_size': 1})


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


def test_without_the_package_for_hashes(data, monkeypatch):
    monkeypatch.setattr(check, 'find_spec', lambda name: None)
    assert "pip install 'convnext-dense[data]'" in check_data(data, data_format='coco')


def test_data_that_cannot_be_read(tmp_path):
    (tmp_path / 'set.json').write_text('{"images": [')
    with pytest.raises(UserError, match='set.json is not JSON'):
        check_data(tmp_path, data_format='coco')
