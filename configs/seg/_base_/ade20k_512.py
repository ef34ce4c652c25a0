"""ADE20K, the 150 classes of its scene parsing benchmark, in crops of 512 pixels.

The folder is ``ADEChallengeData2016`` as it comes; label 0 is unlabelled, and the classes count from 1.
"""

dataset_type = 'ADE20KDataset'
data_root = 'data/ade/ADEChallengeData2016'
backend_args = None
crop_size = (512, 512)
scale = (4 * crop_size[0], crop_size[1])  # longest and shortest side of an image
ratios = [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]  # of the multi-scale test

load = dict(type='LoadImageFromFile', backend_args=backend_args)
annotate = dict(type='LoadAnnotations', backend_args=backend_args)
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
# `tools/test.py --tta`: the whole image, without windows
tta_model = dict(type='WholeImageTTA')
tta_pipeline = [
    load,
    dict(
        type='TestTimeAug',
        transforms=[
            [
                dict(type='Resize', scale=tuple(int(ratio * side) for side in scale), keep_ratio=True)
                for ratio in ratios
            ],
            [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)],
            [annotate],
            [dict(type='PackSegInputs')],
        ],
    ),
]

train_dataloader = dict(
    batch_size=2,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        reduce_zero_label=True,
        data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
        pipeline=train_pipeline,
        backend_args=backend_args,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        reduce_zero_label=True,
        data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation'),
        pipeline=test_pipeline,
        backend_args=backend_args,
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
