"""The embedded drawn data set as semantic segmentation; it is written on first use."""

_base_ = []  # without it MMEngine takes a file that imports for a config of its other style

from convnext_dense.tta import multi_scale

data_root = 'data/shapes'
image_size = 112  # mean side in pixels; batches are padded to 128

load, annotate, pack = dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')
train_pipeline = [load, annotate, dict(type='RandomFlip', prob=0.5), pack]
test_pipeline = [load, dict(type='Resize', scale_factor=1.0), annotate, pack]
tta_pipeline = multi_scale(test_pipeline, (0.75, 1.0, 1.25))

train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(type='ShapesLabels', data_root=data_root, split='train', size=image_size, pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=1,  # MMSegmentation takes test images of one size alone
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='ShapesLabels', data_root=data_root, split='val', size=image_size, test_mode=True, pipeline=test_pipeline
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
