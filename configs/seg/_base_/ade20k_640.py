"""ADE20K in crops of 640 pixels: all sizes in proportion."""

_base_ = ['ade20k_512.py']

crop_size = (640, 640)
scale = (4 * crop_size[0], crop_size[1])
sizes = dict(RandomResize=dict(scale=scale), Resize=dict(scale=scale), RandomCrop=dict(crop_size=crop_size))
train_pipeline = [dict(step, **sizes.get(step.type, {})) for step in _base_.train_pipeline]
test_pipeline = [dict(step, **sizes.get(step.type, {})) for step in _base_.test_pipeline]
resizes = [
    dict(type='Resize', scale=tuple(int(ratio * side) for side in scale), keep_ratio=True) for ratio in _base_.ratios
]
load, views = _base_.tta_pipeline
tta_pipeline = [load, dict(views, transforms=[resizes, *views.transforms[1:]])]

train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
