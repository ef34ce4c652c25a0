"""Mask R-CNN on COCO, step 8 of the ladder, 'gelu'; no weights were published."""

_base_ = ['_base_/mask_rcnn_coco.py']

model = dict(backbone=dict(step='gelu'), neck=dict(in_channels=[96, 192, 384, 768]))
