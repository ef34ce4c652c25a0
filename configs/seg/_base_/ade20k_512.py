"""ADE20K in crops of 512 pixels."""

_base_ = ['ade20k.py']

from convnext_dense.tta import multi_scale

load, annotate = _base_.load, _base_.annotate
crop_size = (512, 512)
scale = (4 * crop_size[0], crop_size[1])  # longest and shortest side of an image

train_pipeline = [
    load,
    annotate,
    dict(type='RandomResize', scale=scale, ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    load,
    dict(type='Resize', scale=scale, keep_ratio=True),
    # after Resize: the ground truth stays at the original size, like the predictions
    annotate,
    dict(type='PackSegInputs'),
]
tta_pipeline = multi_scale(test_pipeline, _base_.ratios)

train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
