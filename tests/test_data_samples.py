"""Drawn scenes in the form in which the libraries' models take them."""

import numpy as np
import pytest
import torch

from convnext_dense.data.samples import (
    MIN_AREA,
    MIN_OBJECTS,
    NUM_STUFF,
    VOID,
    add_proposals,
    draw_batch,
    draw_objects,
    make_clips,
    split_into_branches,
)
from convnext_dense.data.shapes import LABELS, SHAPES, draw_scene


def test_a_detectors_batch():
    batch = draw_batch('mmdet', range(3), 96)
    assert len(batch['inputs']) == len(batch['data_samples']) == 3
    for image, sample in zip(batch['inputs'], batch['data_samples'], strict=True):
        assert image.shape == (3, 96, 96)
        assert image.dtype == torch.uint8
        assert sample.img_shape == sample.ori_shape == sample.batch_input_shape == (96, 96)
        truth = sample.gt_instances
        assert len(truth) >= MIN_OBJECTS
        assert truth.labels.max() < len(SHAPES)
        assert sample.ignored_instances.bboxes.shape == (0, 4)
        for box, mask in zip(truth.bboxes, truth.masks.masks, strict=True):
            rows, columns = np.nonzero(mask)
            assert len(rows) >= MIN_AREA
            assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_the_image_is_bgr_and_the_labels_are_those_of_the_drawing():
    scene = draw_objects(0, 96)
    (image,), (sample,) = draw_batch('mmseg', [0], 96).values()
    assert torch.equal(image, torch.from_numpy(scene.image[..., ::-1].transpose(2, 0, 1).copy()))
    labels = sample.gt_sem_seg.data[0].numpy()
    assert labels.shape == (96, 96)
    assert np.array_equal(labels == VOID, scene.label_map == 0)
    assert np.array_equal(labels[labels != VOID], scene.label_map[scene.label_map > 0] - 1)
    assert labels[labels != VOID].max() < len(LABELS)


def test_a_detectors_label_map_has_the_objects_first():
    (sample,) = draw_batch('mmdet', [0], 96)['data_samples']
    stuff = sample.gt_sem_seg.sem_seg[0]
    scene = draw_objects(0, 96)
    drawn = torch.from_numpy(scene.label_map.astype(np.int64)) - 1
    is_thing = drawn >= NUM_STUFF
    assert torch.equal(stuff[is_thing], drawn[is_thing] - NUM_STUFF)
    is_stuff = (drawn >= 0) & ~is_thing
    assert torch.equal(stuff[is_stuff], drawn[is_stuff] + len(SHAPES))
    assert (stuff[drawn < 0] == VOID).all()


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg'])
def test_few_classes_are_shared(scope):
    for sample in draw_batch(scope, range(4), 96, num_classes=2)['data_samples']:
        labels = sample.gt_instances.labels if scope == 'mmdet' else sample.gt_sem_seg.data
        assert set(labels.unique().tolist()) <= {0, 1, VOID}


def test_a_smaller_label_map():
    (sample,) = draw_batch('mmdet', [0], 96, seg_scale=0.125)['data_samples']
    assert sample.gt_sem_seg.sem_seg.shape == (1, 12, 12)


def test_a_drawing_with_few_objects_is_replaced():
    """Some drawings have but one object, and each index gives several."""
    assert min(len(draw_scene(0, 'train', index, size=64).instances) for index in range(20)) < MIN_OBJECTS
    assert all(len(draw_objects(index, 48).instances) >= MIN_OBJECTS for index in range(20))


def test_proposals_are_the_boxes_of_the_objects():
    batch = draw_batch('mmdet', [0], 96)
    add_proposals(batch)
    (sample,) = batch['data_samples']
    assert torch.equal(sample.proposals.bboxes, sample.gt_instances.bboxes)
    assert sample.proposals.scores.tolist() == [1.0] * len(sample.gt_instances)


def test_branches_of_semi_supervised_training():
    batch = split_into_branches(draw_batch('mmdet', [0, 1], 96))
    for branches in batch.values():
        assert list(branches) == ['sup', 'unsup_teacher', 'unsup_student']
        assert [len(branch) for branch in branches.values()] == [2, 2, 2]
    samples = batch['data_samples']
    samples['sup'][0].gt_instances.bboxes.zero_()
    assert samples['unsup_student'][0].gt_instances.bboxes.any()  # of its own
    assert np.array_equal(samples['unsup_teacher'][1].homography_matrix, np.eye(3))


def test_clips_have_two_frames_with_the_same_objects():
    batch = make_clips(draw_batch('mmdet', [0, 1], 96))
    assert [clip.shape for clip in batch['inputs']] == [(2, 3, 96, 96)] * 2
    clip = batch['data_samples'][0]
    (first,), (second,) = clip.get_key_frames(), clip.get_ref_frames()
    assert (first.frame_id, second.frame_id) == (0, 1)
    assert first.gt_instances.instances_ids.tolist() == list(range(len(second.gt_instances)))
    assert torch.equal(first.gt_instances.bboxes, second.gt_instances.bboxes)
