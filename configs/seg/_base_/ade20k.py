"""ADE20K, the 150 classes of its scene parsing benchmark, whatever the size of the crops.

The folder is ``ADEChallengeData2016`` as it comes; label 0 is unlabelled, and the classes count from 1.
"""

dataset_type = 'ADE20KDataset'
data_root = 'data/ade/ADEChallengeData2016'
backend_args = None
load = dict(type='LoadImageFromFile', backend_args=backend_args)
annotate = dict(type='LoadAnnotations', backend_args=backend_args)
# sizes of the multi-scale test; ConvNeXt V2's are closer together (arXiv 2301.00808, Section A.4)
ratios = [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]
ratios_v2 = [0.75, 0.875, 1.0, 1.125, 1.25]

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
        backend_args=backend_args,
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
