"""Mask R-CNN on COCO, step 3 of the ladder, 'depthwise'; no weights were published."""

_base_ = ['_base_/mask_rcnn_coco.py']

model = dict(backbone=dict(step='depthwise'), neck=dict(in_channels=[256, 512, 1024, 2048]))
