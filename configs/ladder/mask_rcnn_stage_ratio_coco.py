"""Mask R-CNN on COCO, step 1 of the ladder, 'stage_ratio'; no weights were published."""

_base_ = ['_base_/mask_rcnn_coco.py']

model = dict(backbone=dict(step='stage_ratio'), neck=dict(in_channels=[256, 512, 1024, 2048]))
