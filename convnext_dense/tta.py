"""Test-time augmentation: a model predicts several views of an image, and its predictions are merged into one.

The views are resized and mirrored copies. A config names the merging model as ``tta_model`` and the views as
``tta_pipeline``; ``tools/test.py --tta`` uses both, and :func:`multi_scale` writes the pipeline. Each view carries the
metadata ``flip`` and ``flip_direction``.
"""

from collections.abc import Mapping, Sequence

import torch
from mmengine.config import ConfigDict
from mmengine.model import BaseTTAModel
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from torch import Tensor

NMS_TYPES = ('nms', 'soft_nms')  # the first is mmcv's default
FLIPPED_DIMS = {'horizontal': (-1,), 'vertical': (-2,), 'diagonal': (-2, -1)}


def multi_scale(test_pipeline: Sequence[Mapping], ratios: Sequence[float] = (0.75, 1.0, 1.25)) -> list[dict]:
    """Return the ``tta_pipeline`` that sees an image in several sizes, each as it is and mirrored.

    Args:
        test_pipeline: Loading, the ``Resize`` whose size is the unit of ``ratios``, and what follows.
        ratios: One for each size. The papers test no detector in several sizes; the default is this package's choice.

    >>> load, views = multi_scale([dict(type='Load'), dict(type='Resize', scale=(20, 10)), dict(type='Pack')], (0.5, 1))
    >>> [resize['scale'] for resize in views['transforms'][0]]
    [(10, 5), (20, 10)]
    """
    load, resize, *others = map(dict, test_pipeline)
    for step in others:
        if 'meta_keys' in step:
            step['meta_keys'] = tuple(dict.fromkeys((*step['meta_keys'], 'flip', 'flip_direction')))
    resizes = [scaled(resize, ratio) for ratio in ratios]
    flips = [dict(type='RandomFlip', prob=prob) for prob in (0.0, 1.0)]
    return [load, dict(type='TestTimeAug', transforms=[resizes, flips, *([step] for step in others)])]


def scaled(resize: Mapping, ratio: float) -> dict:
    """Return a ``Resize`` to ``ratio`` times the size, given as ``scale`` in pixels or as ``scale_factor``.

    >>> scaled(dict(type='Resize', scale_factor=2.0), 0.5)
    {'type': 'Resize', 'scale_factor': 1.0}
    """
    if 'scale' in resize:
        return dict(resize, scale=tuple(round(ratio * side) for side in resize['scale']))
    return dict(resize, scale_factor=ratio * resize['scale_factor'])


@MODELS.register_module()
class WholeImageTTA(BaseTTAModel):
    """Average a segmentor's class probabilities over the views, each predicted as a whole and not in windows.

    This is the multi-scale test of facebookresearch/ConvNeXt. MMSegmentation's ``SegTTAModel`` keeps the windows of the
    config, and keeps the scores of all views until the last one: 12 views of a large image with 150 classes take 30 GB.

    Args:
        **kwargs: As for ``BaseTTAModel``: ``module``, the segmentor or its config.
    """

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        self.module.test_cfg = ConfigDict(self.module.test_cfg or {}, mode='whole')

    def test_step(self, data: Mapping[str, Sequence]) -> list[BaseDataElement]:
        """Return a data sample for each image, with the mean probabilities as its ``seg_logits``.

        Args:
            data: ``inputs`` and ``data_samples``; each a list of views, each view a list of images.
        """
        means, num_views = None, len(data['inputs'])
        for view in range(num_views):
            samples = self.module.test_step({key: values[view] for key, values in data.items()})
            shares = [self.probabilities(sample.seg_logits.data) / num_views for sample in samples]
            if means is None:
                merged, means = samples, shares
            else:
                for mean, share in zip(means, shares, strict=True):
                    mean += share
        for sample, mean in zip(merged, means, strict=True):
            sample.seg_logits = PixelData(data=mean)
            sample.pred_sem_seg = PixelData(data=self.decide(mean))
        return merged

    def merge_preds(self, data_samples_list: Sequence) -> list[BaseDataElement]:
        """Not called: :meth:`test_step` adds the views up one by one."""
        raise NotImplementedError

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the probabilities of scores (C, H, W); a segmentor with one channel has them already."""
        return logits.softmax(dim=0) if self.module.out_channels > 1 else logits

    def decide(self, probabilities: Tensor) -> Tensor:
        """Return the label map (1, H, W) of probabilities (C, H, W)."""
        if self.module.out_channels > 1:
            return probabilities.argmax(dim=0, keepdim=True)
        return (probabilities > self.module.decode_head.threshold).to(probabilities)


@MODELS.register_module()
class InstanceTTA(BaseTTAModel):
    """Merge a detector's boxes and masks over the views by non-maximum suppression within each class.

    A box that stays keeps its own mask. MMDetection's ``DetTTAModel`` refuses models that predict masks.

    Args:
        tta_cfg: ``nms``, as in a detector's ``test_cfg.rcnn``, and ``max_per_img``, the most boxes of an image.
        **kwargs: As for ``BaseTTAModel``: ``module``, the detector or its config.

    Raises:
        ValueError: ``tta_cfg.nms.type`` is unknown.
    """

    def __init__(self, tta_cfg: Mapping, **kwargs) -> None:
        super().__init__(**kwargs)
        self.nms = {'type': NMS_TYPES[0], **tta_cfg['nms']}
        if self.nms['type'] not in NMS_TYPES:
            raise ValueError(f'tta_cfg.nms.type is {" or ".join(NMS_TYPES)}; got {self.nms["type"]!r}.')
        self.max_per_img = tta_cfg['max_per_img']

    def test_step(self, data: Mapping[str, Sequence]) -> list[BaseDataElement]:
        """Return a data sample for each image; ``data`` as in :class:`WholeImageTTA`."""
        samples = [[as_upright(sample) for sample in view] for view in data['data_samples']]
        return super().test_step({**data, 'data_samples': samples})

    def merge_preds(self, data_samples_list: Sequence[Sequence[BaseDataElement]]) -> list[BaseDataElement]:
        """Return a data sample for each image from its views: boxes and masks at the original size, not mirrored."""
        merged = []
        for views in data_samples_list:
            views[0].pred_instances = self.merge(views)
            merged.append(views[0])
        return merged

    def merge(self, views: Sequence[BaseDataElement]) -> InstanceData:
        """Return the instances of all views of an image after suppression, best first."""
        merged = InstanceData.cat([upright_boxes(view) for view in views])
        merged.place = torch.arange(len(merged), device=merged.bboxes.device)
        merged = self.suppress(merged)
        kept = merged.pop('place').tolist()
        if 'masks' in views[0].pred_instances:
            # only now, of the few that are left: the masks of all views are large
            places = [(view, i) for view in views for i in range(len(view.pred_instances))]
            masks = [upright_mask(*places[place]) for place in kept]
            merged.masks = torch.cat([views[0].pred_instances.masks[:0], *masks])
        return merged

    def suppress(self, instances: InstanceData) -> InstanceData:
        """Return the instances that non-maximum suppression within each class leaves, best first."""
        from mmcv.ops import batched_nms

        if len(instances) == 0:
            return instances
        boxes, kept = batched_nms(instances.bboxes, instances.scores, instances.labels, dict(self.nms))
        instances = instances[kept][: self.max_per_img]
        instances.scores = boxes[: self.max_per_img, 4]  # soft NMS lowers them
        return instances


def as_upright(sample: BaseDataElement) -> BaseDataElement:
    """Return a copy of a view's data sample with ``flip`` off and the direction of the flip in ``mirrored``.

    MMDetection's cascade tries to mirror the masks of a flipped image within their boxes (``merge_aug_masks``), which
    fails; it leaves those of an image that is not flipped alone.
    """
    direction = sample.flip_direction if sample.get('flip') else None
    copy = sample.clone()
    copy.set_metainfo(dict(mirrored=direction, flip=False))
    return copy


def upright_boxes(view: BaseDataElement) -> InstanceData:
    """Return the instances of a view without masks, with their boxes as they are in the original image."""
    from mmdet.structures.bbox import bbox_flip

    instances = view.pred_instances.clone()
    instances.pop('masks', None)
    if view.mirrored is not None:
        instances.bboxes = bbox_flip(instances.bboxes, view.ori_shape, view.mirrored)
    return instances


def upright_mask(view: BaseDataElement, index: int) -> Tensor:
    """Return the mask (1, H, W) of an instance of a view as it is in the original image."""
    mask = view.pred_instances.masks[index : index + 1]
    return mask if view.mirrored is None else mask.flip(FLIPPED_DIMS[view.mirrored])
