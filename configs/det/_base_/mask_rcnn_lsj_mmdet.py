"""ConvNeXt V2's Mask R-CNN as MMDetection reads it: crops of random size, a longer warm-up.

Follows open-mmlab/mmdetection ``projects/ConvNeXt-V2``.
"""

_base_ = ['mask_rcnn_lsj_coco.py']

train_pipeline = [
    dict(step, crop_type='absolute_range') if step.type == 'RandomCrop' else step for step in _base_.train_pipeline
]
warmup, steps = _base_.param_scheduler
param_scheduler = [dict(warmup, end=1000), steps]
model = dict(data_preprocessor=dict(batch_augments=None))
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
