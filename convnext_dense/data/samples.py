"""Batches of drawn scenes, the inputs of ``model.train_step`` and ``model.test_step``, without files and pipelines."""

import copy
import math
from collections.abc import Iterable, Mapping, Sequence

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.structures import BaseDataElement, InstanceData, PixelData

from convnext_dense import configs
from convnext_dense.data.shapes import LABELS, SHAPES, SIDE_RANGE, Instance, Scene, draw_scene

SIDE = 128  # pixels of the drawn images
LARGE_SIDE = 224  # where a head needs as many places as it has queries
VOID = 255
MIN_AREA = 20  # pixels of a mask
MIN_OBJECTS = 2  # CrowdDet learns from pairs
STEP = 1000  # from a drawing with fewer objects to the one in its place
NUM_STUFF = len(LABELS) - len(SHAPES)  # the backgrounds, which come first


def draw_for(cfg: Config, indices: Sequence[int], training: bool, side: int | None = None) -> dict:
    """Return a batch for ``model.train_step`` or ``model.test_step``.

    Args:
        cfg: Config of a detector or segmentor; its pipeline tells whether there are masks.
        indices: Numbers of the drawings.
        training: Semi-supervised models learn from other batches than those that they predict on.
        side: Height and width in pixels; small by default.
    """
    heads = list(configs.walk(cfg.model, configs.CLASS_AGNOSTIC))
    steps = list(configs.walk(cfg.get('train_dataloader')))
    scales = [step['scale_factor'] for step in steps if step.get('type') == 'SegRescale']
    batch = draw_batch(
        cfg.default_scope, indices, side or smallest_side(heads), count_classes(heads), scales[0] if scales else 1.0
    )
    if not any(step.get('with_mask') or step.get('type') == 'LoadPanopticAnnotations' for step in steps):
        drop_masks(batch)
    if 'roi_head' in cfg.model and 'rpn_head' not in cfg.model:
        add_proposals(batch)
    preprocessor = (cfg.model.get('data_preprocessor') or {}).get('type')
    if preprocessor == 'MultiBranchDataPreprocessor' and training:
        return split_into_branches(batch)
    return make_clips(batch) if preprocessor == 'TrackDataPreprocessor' else batch


def smallest_side(heads: Sequence[Mapping]) -> int:
    """Return the side of a small drawing in pixels, which is larger where a head needs so many places or that size."""
    sizes = [head['input_size'] for head in heads if isinstance(head.get('input_size'), int)]
    return max([SIDE, *sizes, *(LARGE_SIDE for head in heads if 'num_queries' in head)])


def count_classes(heads: Sequence[Mapping]) -> int | None:
    """Return the number of classes that the heads of a config name, for panoptic models that of the things."""
    for key in ('num_things_classes', 'num_classes'):
        if counts := [head[key] for head in heads if head.get(key)]:
            return counts[0]
    return None


def draw_batch(
    scope: str, indices: Iterable[int], side: int, num_classes: int | None = None, seg_scale: float = 1.0
) -> dict[str, list]:
    """Return drawings with their ground truth.

    Args:
        scope: 'mmdet' or 'mmseg'.
        indices: Of the drawings; there are at least two objects in each.
        side: Height and width of the images in pixels.
        num_classes: Of a detector's objects (those of the background follow them in its label map), or all of a
            segmentor's; those of the drawings by default. Where there are fewer, several kinds of things share one.
        seg_scale: Of a detector's label map, for heads that learn from a smaller one.

    Returns:
        ``inputs``, images (3, side, side) of uint8 in BGR, and ``data_samples``.
    """
    drawings = [draw_objects(index, side) for index in indices]
    pack, drawn = (pack_labels, LABELS) if scope == 'mmseg' else (pack_instances, SHAPES)
    return dict(
        inputs=[
            torch.from_numpy(np.ascontiguousarray(scene.image[..., ::-1].transpose(2, 0, 1))) for scene in drawings
        ],
        data_samples=[pack(scene, num_classes or len(drawn), seg_scale) for scene in drawings],
    )


def drop_masks(batch: dict[str, list]) -> None:
    """Take the masks of the objects away, as for a detector of boxes."""
    for sample in batch['data_samples']:
        if 'gt_instances' in sample:
            del sample.gt_instances.masks


def add_proposals(batch: dict[str, list]) -> None:
    """Give each of a detector's samples boxes that were proposed beforehand: those of the ground truth."""
    for sample in batch['data_samples']:
        boxes = sample.gt_instances.bboxes
        sample.proposals = InstanceData(bboxes=boxes.clone(), scores=torch.ones(len(boxes)))


def split_into_branches(batch: dict[str, list]) -> dict[str, dict]:
    """Return a batch of semi-supervised training: the same pictures with labels, and twice without, unmoved."""
    for sample in batch['data_samples']:
        sample.set_metainfo(dict(homography_matrix=np.eye(3, dtype=np.float32)))
    branches = {name: copy.deepcopy(batch) for name in ('sup', 'unsup_teacher', 'unsup_student')}
    return {key: {name: branch[key] for name, branch in branches.items()} for key in batch}


def make_clips(batch: dict[str, list]) -> dict[str, list]:
    """Return a batch of videos: of each picture one with two equal frames, (2, 3, side, side)."""
    from mmdet.structures import TrackDataSample

    clips = []
    for sample in batch['data_samples']:
        sample.gt_instances.instances_ids = torch.arange(len(sample.gt_instances))
        frames = [copy.deepcopy(sample) for _ in range(2)]
        for index, frame in enumerate(frames):
            frame.set_metainfo(dict(frame_id=index, ori_video_length=len(frames)))
        clips.append(
            TrackDataSample(metainfo=dict(key_frames_inds=[0], ref_frames_inds=[1]), video_data_samples=frames)
        )
    return dict(inputs=[torch.stack([image, image]) for image in batch['inputs']], data_samples=clips)


def draw_objects(index: int, side: int) -> Scene:
    """Draw a square picture in which several objects can be seen."""
    scene = draw_scene(0, 'train', index, size=math.ceil(side / SIDE_RANGE[0]))
    square = np.s_[:side, :side]
    cut = [Instance(item.category, item.mask[square]) for item in scene.instances]
    visible = tuple(item for item in cut if item.mask.sum() >= MIN_AREA)
    if len(visible) < MIN_OBJECTS:
        return draw_objects(index + STEP, side)
    return Scene(scene.image[square], scene.label_map[square], visible)


def pack_labels(scene: Scene, num_classes: int, _: float) -> BaseDataElement:
    """Return a segmentor's sample: the label map, (1, H, W)."""
    sample = empty_sample('mmseg', scene.label_map.shape)
    labels = scene.label_map.astype(np.int64) - 1
    sample.gt_sem_seg = PixelData(data=torch.from_numpy(np.where(labels < 0, VOID, labels % num_classes))[None])
    return sample


def pack_instances(scene: Scene, num_classes: int, seg_scale: float) -> BaseDataElement:
    """Return a detector's sample: boxes x1, y1, x2, y2 in pixels, labels, masks, and the label map of all classes."""
    from mmdet.structures.mask import BitmapMasks

    height, width = scene.label_map.shape
    sample = empty_sample('mmdet', (height, width))
    masks = BitmapMasks([item.mask.astype(np.uint8) for item in scene.instances], height, width)
    sample.gt_instances = InstanceData(
        bboxes=masks.get_bboxes(dst_type='hbox').tensor,
        labels=torch.tensor([item.category % num_classes for item in scene.instances]),
        masks=masks,
    )
    sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
    labels = scene.label_map.astype(np.int64) - 1
    things = (labels - NUM_STUFF) % num_classes
    labels = np.select([labels < 0, labels < NUM_STUFF], [VOID, num_classes + labels], things)
    size = (round(width * seg_scale), round(height * seg_scale))
    small = cv2.resize(labels.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    sample.gt_sem_seg = PixelData(sem_seg=torch.from_numpy(small.astype(np.int64))[None])
    return sample


def empty_sample(scope: str, shape: tuple[int, int]) -> BaseDataElement:
    """Return the data sample of an image of (height, width) pixels, as a library has it."""
    if scope == 'mmseg':
        from mmseg.structures import SegDataSample as DataSample
    else:
        from mmdet.structures import DetDataSample as DataSample
    shapes = dict.fromkeys(('ori_shape', 'img_shape', 'pad_shape', 'batch_input_shape'), tuple(shape))
    return DataSample(
        metainfo=dict(img_id=0, img_path='', scale_factor=(1.0, 1.0), flip=False, border=[0] * 4, **shapes)
    )
