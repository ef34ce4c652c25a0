"""Mask R-CNN on COCO, step 4 of the ladder, 'width'; no weights were published."""

_base_ = ['_base_/mask_rcnn_coco.py']

model = dict(backbone=dict(step='width'), neck=dict(in_channels=[384, 768, 1536, 3072]))
