"""Mask R-CNN on COCO, step 12 of the ladder, 'convnext'; ConvNeXt-T's ImageNet-1k weights."""

_base_ = ['_base_/mask_rcnn_coco.py']

model = dict(
    backbone=dict(
        step='convnext', init_cfg=dict(type='Pretrained', checkpoint='convnext://tiny_1k'), layer_scale_init_value=1.0
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
