"""Mask R-CNN on COCO, step 9 of the ladder, 'fewer_acts'; no weights were published."""

_base_ = ['_base_/mask_rcnn_coco.py']

model = dict(backbone=dict(step='fewer_acts'), neck=dict(in_channels=[96, 192, 384, 768]))
