"""UperNet on ADE20K, step 8 of the ladder, 'gelu'; no weights were published."""

_base_ = ['_base_/upernet_ade20k.py']

model = dict(
    backbone=dict(step='gelu'), decode_head=dict(in_channels=[96, 192, 384, 768]), auxiliary_head=dict(in_channels=384)
)
