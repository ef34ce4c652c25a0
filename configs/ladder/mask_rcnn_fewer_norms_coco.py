"""Mask R-CNN on COCO, step 10 of the ladder, 'fewer_norms'; no weights were published."""

_base_ = ['_base_/mask_rcnn_coco.py']

model = dict(backbone=dict(step='fewer_norms'), neck=dict(in_channels=[96, 192, 384, 768]))
