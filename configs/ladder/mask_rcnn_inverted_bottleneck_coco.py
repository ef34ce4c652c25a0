"""Mask R-CNN on COCO, step 5 of the ladder, 'inverted_bottleneck'; no weights were published."""

_base_ = ['_base_/mask_rcnn_coco.py']

model = dict(backbone=dict(step='inverted_bottleneck'), neck=dict(in_channels=[96, 192, 384, 768]))
