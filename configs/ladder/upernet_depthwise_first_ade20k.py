"""UperNet on ADE20K, step 6 of the ladder, 'depthwise_first'; no weights were published."""

_base_ = ['_base_/upernet_ade20k.py']

model = dict(
    backbone=dict(step='depthwise_first'),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
