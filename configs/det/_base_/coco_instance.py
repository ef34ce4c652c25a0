"""COCO instance segmentation with the multi-scale and crop augmentation of DETR, as in the paper's recipes.

Another data set in COCO format needs ``data_root``, ``metainfo = dict(classes=(...))``, the annotation files and
``num_classes``; the README shows one.
"""

_base_ = []  # without it MMEngine takes a file that imports for a config of its other style

from convnext_dense.tta import multi_scale

dataset_type = 'CocoDataset'
data_root = 'data/coco/'
backend_args = None
long_side = 1333
short_sides = [480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800]

resize = dict(type='RandomChoiceResize', scales=[(side, long_side) for side in short_sides], keep_ratio=True)
resize_to_crop = dict(
    type='RandomChoiceResize', scales=[(side, long_side) for side in (400, 500, 600)], keep_ratio=True
)
crop = dict(type='RandomCrop', crop_type='absolute_range', crop_size=(384, 600), allow_negative_crop=True)
train_pipeline = [
    dict(type='LoadImageFromFile', backend_args=backend_args),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='RandomChoice', transforms=[[resize], [resize_to_crop, crop, resize]]),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile', backend_args=backend_args),
    dict(type='Resize', scale=(long_side, short_sides[-1]), keep_ratio=True),
    # after Resize: the ground truth stays at the original size, like the predictions
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs'),
]

tta_pipeline = multi_scale(test_pipeline)

train_dataloader = dict(
    batch_size=2,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    batch_sampler=dict(type='AspectRatioBatchSampler'),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='annotations/instances_train2017.json',
        data_prefix=dict(img='train2017/'),
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
        pipeline=train_pipeline,
        backend_args=backend_args,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='annotations/instances_val2017.json',
        data_prefix=dict(img='val2017/'),
        test_mode=True,
        pipeline=test_pipeline,
        backend_args=backend_args,
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(
    type='CocoMetric',
    ann_file=data_root + 'annotations/instances_val2017.json',
    metric=['bbox', 'segm'],
    format_only=False,
    backend_args=backend_args,
)
test_evaluator = val_evaluator
