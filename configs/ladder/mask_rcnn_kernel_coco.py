"""Mask R-CNN on COCO, step 7 of the ladder, 'kernel'; no weights were published."""

_base_ = ['_base_/mask_rcnn_coco.py']

model = dict(backbone=dict(step='kernel'), neck=dict(in_channels=[96, 192, 384, 768]))
