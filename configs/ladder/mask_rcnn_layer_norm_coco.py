"""Mask R-CNN on COCO, step 11 of the ladder, 'layer_norm'; no weights were published."""

_base_ = ['_base_/mask_rcnn_coco.py']

model = dict(backbone=dict(step='layer_norm'), neck=dict(in_channels=[96, 192, 384, 768]))
