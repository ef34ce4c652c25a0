"""UperNet on the drawn data, step 0 of the ladder, 'resnet', at the size of ConvNeXt-atto."""

_base_ = ['_base_/upernet_shapes.py']

size = dict(depths=(2, 3, 4, 2), width=27)
model = dict(
    backbone=dict(step='resnet', design=size),
    decode_head=dict(in_channels=[108, 216, 432, 864]),
    auxiliary_head=dict(in_channels=432),
)
