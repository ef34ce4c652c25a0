"""UperNet on ADE20K, step 3 of the ladder, 'depthwise'; no weights were published."""

_base_ = ['_base_/upernet_ade20k.py']

model = dict(
    backbone=dict(step='depthwise'),
    decode_head=dict(in_channels=[256, 512, 1024, 2048]),
    auxiliary_head=dict(in_channels=1024),
)
