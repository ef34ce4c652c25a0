"""Mask R-CNN on COCO, step 0 of the ladder, 'resnet'; torchvision's ResNet-50 weights."""

_base_ = ['_base_/mask_rcnn_coco.py']

model = dict(
    backbone=dict(step='resnet', init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50'), norm_eval=True),
    neck=dict(in_channels=[256, 512, 1024, 2048]),
)
