"""Mask R-CNN with the ladder's first step on the drawn data, narrow, from scratch. A leaf sets the recipe.

The size is that of the drawn ladder. Twelve epochs, with MMDetection's ``1x`` milestones.
"""

_base_ = ['../../det/_base_/mask_rcnn.py', '../../det/_base_/shapes_instance.py', '../../det/_base_/runtime.py']

width = 64
num_classes = 5
narrow = dict(in_channels=width, conv_out_channels=width, num_classes=num_classes)
model = dict(
    backbone=dict(_delete_=True, type='ModernizedResNet', step='resnet', design=dict(depths=(2, 3, 4, 2), width=27)),
    neck=dict(in_channels=[108, 216, 432, 864], out_channels=width),
    rpn_head=dict(in_channels=width, feat_channels=width, anchor_generator=dict(scales=[4])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=width),
        bbox_head=dict(in_channels=width, fc_out_channels=4 * width, num_classes=num_classes),
        mask_roi_extractor=dict(out_channels=width),
        mask_head=dict(num_convs=2, **narrow),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=128)),
        rpn_proposal=dict(nms_pre=200, max_per_img=100),
        rcnn=dict(sampler=dict(num=64)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=200, max_per_img=100)),
)

max_epochs = 12
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=max_epochs)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=31),
    dict(type='MultiStepLR', begin=0, end=max_epochs, by_epoch=True, milestones=[8, 11], gamma=0.1),
]
auto_scale_lr = dict(enable=False, base_batch_size=8)
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval=4))
randomness = dict(seed=0)
