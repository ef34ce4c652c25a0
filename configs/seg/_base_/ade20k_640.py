"""ADE20K in crops of 640 pixels: all sizes in proportion."""

_base_ = ['ade20k_512.py']

from convnext_dense.tta import multi_scale

crop_size = (640, 640)
scale = (4 * crop_size[0], crop_size[1])
sizes = dict(RandomResize=dict(scale=scale), Resize=dict(scale=scale), RandomCrop=dict(crop_size=crop_size))
train_pipeline = [dict(step, **sizes.get(step.type, {})) for step in _base_.train_pipeline]
test_pipeline = [dict(step, **sizes.get(step.type, {})) for step in _base_.test_pipeline]
tta_pipeline = multi_scale(test_pipeline, _base_.ratios)

train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
