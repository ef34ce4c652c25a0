"""The ladder's first step by a modern recipe: AdamW, scales and crops, stochastic depth.

Compare with ``mask_rcnn_resnet_sgd_shapes.py``, which is the same but for the recipe. The augmentation is that of the
paper's detectors (arXiv 2201.03545, Section A.3) at the size of the drawn images.
"""

_base_ = ['_base_/mask_rcnn_resnet_shapes.py']

model = dict(backbone=dict(drop_path_rate=0.1))
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.999), weight_decay=0.05))

resize = dict(type='RandomResize', scale=(112, 112), ratio_range=(0.75, 1.25), keep_ratio=True)
crop = dict(type='RandomCrop', crop_type='absolute_range', crop_size=(64, 96), allow_negative_crop=True)
load, annotate, flip, pack = _base_.train_pipeline
train_pipeline = [
    load,
    annotate,
    flip,
    dict(type='RandomChoice', transforms=[[resize], [crop, resize]]),
    pack,
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
