"""Mask R-CNN on COCO, step 6 of the ladder, 'depthwise_first'; no weights were published."""

_base_ = ['_base_/mask_rcnn_coco.py']

model = dict(backbone=dict(step='depthwise_first'), neck=dict(in_channels=[96, 192, 384, 768]))
