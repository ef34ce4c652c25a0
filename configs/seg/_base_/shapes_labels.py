"""The embedded drawn data set as semantic segmentation; it is written on first use."""

data_root = 'data/shapes'
image_size = 112  # mean side in pixels; batches are padded to 128

load, annotate = dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')
train_pipeline = [load, annotate, dict(type='RandomFlip', prob=0.5), dict(type='PackSegInputs')]
test_pipeline = [load, annotate, dict(type='PackSegInputs')]
tta_model = dict(type='WholeImageTTA')
tta_pipeline = [
    load,
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='Resize', scale_factor=factor) for factor in (0.75, 1.0, 1.25)],
            [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)],
            [annotate],
            [dict(type='PackSegInputs')],
        ],
    ),
]

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
