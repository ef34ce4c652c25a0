"""UperNet on ADE20K, step 12 of the ladder, 'convnext'; ConvNeXt-T's ImageNet-1k weights."""

_base_ = ['_base_/upernet_ade20k.py']

model = dict(
    backbone=dict(
        step='convnext', init_cfg=dict(type='Pretrained', checkpoint='convnext://tiny_1k'), layer_scale_init_value=1.0
    ),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
