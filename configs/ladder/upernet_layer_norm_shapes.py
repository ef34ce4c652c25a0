"""UperNet on the drawn data, step 11 of the ladder, 'layer_norm', at the size of ConvNeXt-atto."""

_base_ = ['_base_/upernet_shapes.py']

size = dict(depths=(2, 2, 6, 2), width=40)
model = dict(
    backbone=dict(step='layer_norm', design=size),
    decode_head=dict(in_channels=[40, 80, 160, 320]),
    auxiliary_head=dict(in_channels=160),
)
