"""What a run trains on, as pictures and in numbers."""

import copy
import re

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import DATASETS, VISUALIZERS

from convnext_dense import UserError
from convnext_dense.configs import load_config, model_scope
from convnext_dense.train.browse import browse
from convnext_dense.train.pictures import as_rgb, draw_batch


def test_no_samples_are_refused(tmp_path):
    with pytest.raises(UserError, match='--samples.*got 0'):
        browse('det/cascade_convnext_atto_shapes', tmp_path, samples=0)


@pytest.mark.parametrize('config', ['det/cascade_convnext_atto_shapes', 'seg/upernet_convnext_atto_shapes'])
def test_pictures_and_numbers(config, drawn, tmp_path):
    text = browse(config, tmp_path, samples=3, cfg_options=drawn)
    assert 'number 8' in text
    assert 'star' in text
    picture = cv2.imread(str(tmp_path / 'samples.png'))
    assert picture.shape[1] > 3 * 300  # three samples side by side, enlarged so that labels can be read
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 100
    page = (tmp_path / 'data.html').read_text()
    assert 'src="data:image/png;base64,' in page
    assert not re.search('(src|href)="(?!data:)', page)  # it needs no other file
    first = (tmp_path / 'samples.png').read_bytes()
    browse(config, tmp_path, samples=3, cfg_options=drawn)
    assert (tmp_path / 'samples.png').read_bytes() == first  # the seed tells which samples, and their augmentation


def test_shares_of_sizes_sum_to_one(drawn, tmp_path):
    text = browse('det/cascade_convnext_atto_shapes', tmp_path, samples=4, cfg_options=drawn)
    line = next(line for line in text.splitlines() if line.startswith('objects'))
    shares = [int(share) for share in re.findall(r'(\d+)%', line)]
    assert sum(shares) == pytest.approx(100, abs=3)


def test_a_config_without_training_data(tmp_path):
    (tmp_path / 'config.py').write_text("model = dict(type='RetinaNet')\n")
    with pytest.raises(UserError, match='train_dataloader'):
        browse(tmp_path / 'config.py', tmp_path)


def test_drawing_leaves_the_batch_as_it_is(drawn, tmp_path):
    cfg = load_config('det/cascade_convnext_atto_shapes', drawn)
    with model_scope(cfg):
        dataset = DATASETS.build(cfg.train_dataloader.dataset)
        visualizer = VISUALIZERS.build({**cfg.visualizer, 'name': 'unchanged', 'vis_backends': []})
    visualizer.dataset_meta = dataset.metainfo
    batch = [dataset[0], dataset[1]]
    before = copy.deepcopy(batch)
    draw_batch(visualizer, [e['inputs'] for e in batch], [e['data_samples'] for e in batch], tmp_path / 'batch.png')
    for ours, theirs in zip(batch, before, strict=True):
        assert torch.equal(ours['inputs'], theirs['inputs'])
        boxes = [each['data_samples'].gt_instances.bboxes.tensor for each in (ours, theirs)]
        masks = [each['data_samples'].gt_instances.masks.masks for each in (ours, theirs)]
        assert torch.equal(*boxes)
        assert np.array_equal(*masks)


def test_colours_are_those_of_the_image():
    image = torch.zeros(3, 2, 2)
    image[2] = 300  # R of BGR, beyond what a byte holds
    assert as_rgb(image)[0, 0].tolist() == [255, 0, 0]
    assert as_rgb(torch.full((5, 2, 2), 7.0))[1, 1].tolist() == [7, 7, 7]
