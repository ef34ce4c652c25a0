"""Mask R-CNN on COCO, step 2 of the ladder, 'patchify_stem'; no weights were published."""

_base_ = ['_base_/mask_rcnn_coco.py']

model = dict(backbone=dict(step='patchify_stem'), neck=dict(in_channels=[256, 512, 1024, 2048]))
