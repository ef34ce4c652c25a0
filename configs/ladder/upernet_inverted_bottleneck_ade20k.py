"""UperNet on ADE20K, step 5 of the ladder, 'inverted_bottleneck'; no weights were published."""

_base_ = ['_base_/upernet_ade20k.py']

model = dict(
    backbone=dict(step='inverted_bottleneck'),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
