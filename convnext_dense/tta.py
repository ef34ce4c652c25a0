"""Test-time augmentation: several views of an image go in, one prediction comes out.

A config names a model here as ``tta_model`` and the views as ``tta_pipeline``; ``tools/test.py --tta`` uses both. The
views of an image are resized and mirrored copies, each with the metadata ``flip`` and ``flip_direction``.
"""

from collections.abc import Mapping, Sequence

import torch
from mmengine.model import BaseTTAModel
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from torch import Tensor

FLIPPED_DIMS = {'horizontal': (-1,), 'vertical': (-2,), 'diagonal': (-2, -1)}


@MODELS.register_module()
class WholeImageTTA(BaseTTAModel):
    """Average a segmentor's class probabilities over the views, each predicted as a whole and not in windows.

    The multi-scale test of facebookresearch/ConvNeXt. MMSegmentation's ``SegTTAModel`` keeps windows where the config
    has them, and the scores of all views until the last: 12 views of a large image with 150 classes take 30 GB.

    Args:
        **kwargs: As for ``BaseTTAModel``: ``module``, the segmentor or its config.
    """

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        self.module.test_cfg = type(self.module.test_cfg)(self.module.test_cfg, mode='whole')

    def test_step(self, data: Mapping[str, Sequence]) -> list[BaseDataElement]:
        """Return a data sample for each image, with the mean probabilities as its ``seg_logits``.

        Args:
            data: ``inputs`` and ``data_samples``; each a list of views, each view a list of images.
        """
        merged = None
        num_views = len(data['inputs'])
        for view in range(num_views):
            samples = self.module.test_step({key: values[view] for key, values in data.items()})
            shares = [self.probabilities(sample.seg_logits.data) / num_views for sample in samples]
            if merged is None:
                merged, sums = samples, shares
            else:
                sums = [total.add_(share) for total, share in zip(sums, shares, strict=True)]
        for sample, mean in zip(merged, sums, strict=True):
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
    """Merge a detector's boxes, and its masks where it predicts them, by suppressing the lesser of overlapping boxes.

    MMDetection's ``DetTTAModel``, which this replaces, refuses masks. A box that stays keeps its own mask.

    Args:
        tta_cfg: ``nms``, as in a detector's ``test_cfg.rcnn``, and ``max_per_img``, the most boxes of an image.
        **kwargs: As for ``BaseTTAModel``: ``module``, the detector or its config.
    """

    def __init__(self, tta_cfg: Mapping, **kwargs) -> None:
        super().__init__(**kwargs)
        self.nms = dict(tta_cfg['nms'])
        self.max_per_img = tta_cfg['max_per_img']

    def test_step(self, data: Mapping[str, Sequence]) -> list[BaseDataElement]:
        """Return a data sample for each image.

        Args:
            data: ``inputs`` and ``data_samples``; each a list of views, each view a list of images.
        """
        samples = [[as_upright(sample) for sample in view] for view in data['data_samples']]
        return super().test_step({**data, 'data_samples': samples})

    def merge_preds(self, data_samples_list: Sequence[Sequence[BaseDataElement]]) -> list[BaseDataElement]:
        """Return a data sample for each image; its boxes and masks are at the original size, not mirrored.

        Args:
            data_samples_list: The views of each image.
        """
        merged = []
        for views in data_samples_list:
            instances = [unflip(view.pred_instances, view.mirrored, view.ori_shape) for view in views]
            views[0].pred_instances = self.suppress(InstanceData.cat(instances))
            merged.append(views[0])
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
    """Return a copy of a view's data sample that passes for one of an upright image; ``mirrored`` tells what it is.

    MMDetection's cascade would mirror the masks within their boxes (``merge_aug_masks``), and fail in doing so.
    """
    direction = sample.flip_direction if sample.get('flip') else None
    copy = sample.clone()
    copy.set_metainfo(dict(mirrored=direction, flip=False))
    return copy


def unflip(instances: InstanceData, direction: str | None, shape: Sequence[int]) -> InstanceData:
    """Return instances of a mirrored view in the coordinates of the original image.

    Args:
        instances: ``bboxes`` (N, 4) as x1, y1, x2, y2 in pixels and perhaps ``masks`` (N, H, W), both at the original
            size but mirrored as the view is.
        direction: 'horizontal', 'vertical' or 'diagonal' (both); None: the view is not mirrored.
        shape: Height and width of the original image.

    >>> instances = InstanceData(bboxes=torch.tensor([[1.0, 0.0, 3.0, 2.0]]))
    >>> unflip(instances, 'horizontal', (5, 10)).bboxes
    tensor([[7., 0., 9., 2.]])
    """
    if direction is None:
        return instances
    dims = FLIPPED_DIMS[direction]
    height, width = shape[:2]
    flipped = instances.clone()
    x1, y1, x2, y2 = instances.bboxes.unbind(dim=-1)
    if -1 in dims:
        x1, x2 = width - x2, width - x1
    if -2 in dims:
        y1, y2 = height - y2, height - y1
    flipped.bboxes = torch.stack([x1, y1, x2, y2], dim=-1)
    if 'masks' in instances:
        flipped.masks = instances.masks.flip(dims)
    return flipped
