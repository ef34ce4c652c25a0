"""UperNet on ADE20K, step 4 of the ladder, 'width'; no weights were published."""

_base_ = ['_base_/upernet_ade20k.py']

model = dict(
    backbone=dict(step='width'),
    decode_head=dict(in_channels=[384, 768, 1536, 3072]),
    auxiliary_head=dict(in_channels=1536),
)
