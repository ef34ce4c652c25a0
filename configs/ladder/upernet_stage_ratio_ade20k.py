"""UperNet on ADE20K, step 1 of the ladder, 'stage_ratio'; no weights were published."""

_base_ = ['_base_/upernet_ade20k.py']

model = dict(
    backbone=dict(step='stage_ratio'),
    decode_head=dict(in_channels=[256, 512, 1024, 2048]),
    auxiliary_head=dict(in_channels=1024),
)
