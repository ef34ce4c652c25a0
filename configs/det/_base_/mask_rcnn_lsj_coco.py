"""Mask R-CNN on COCO as ConvNeXt V2 trains it: large-scale jitter, 32 images a step, soft NMS.

Follows the text of arXiv 2301.00808, Section A.3; no config was published. A leaf sets the backbone, precision, ``lr``
and ``decay_rate``.
"""

_base_ = ['mask_rcnn.py', 'coco_instance.py', 'schedule_3x.py', 'runtime.py']

size = (1024, 1024)
train_pipeline = [
    *_base_.train_pipeline[:2],  # loading
    dict(type='RandomResize', scale=size, ratio_range=(0.1, 2.0), keep_ratio=True),
    # MMDetection's 'absolute_range', from 1024 to 1024 pixels, is the same crop
    dict(type='RandomCrop', crop_type='absolute', crop_size=size, recompute_bbox=True, allow_negative_crop=True),
    dict(type='FilterAnnotations', min_gt_bbox_wh=(1e-2, 1e-2)),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]

model = dict(
    data_preprocessor=dict(batch_augments=[dict(type='BatchFixedSizePad', size=size, pad_mask=True)]),
    test_cfg=dict(rcnn=dict(nms=dict(type='soft_nms'))),
)
train_dataloader = dict(batch_size=4, num_workers=4, dataset=dict(pipeline=train_pipeline))
auto_scale_lr = dict(base_batch_size=32)  # 8 GPUs x 4 images
