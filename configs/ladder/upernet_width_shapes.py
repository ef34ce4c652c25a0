"""UperNet on the drawn data, step 4 of the ladder, 'width', at the size of ConvNeXt-atto."""

_base_ = ['_base_/upernet_shapes.py']

size = dict(depths=(2, 2, 6, 2), width=40)
model = dict(
    backbone=dict(step='width', design=size),
    decode_head=dict(in_channels=[160, 320, 640, 1280]),
    auxiliary_head=dict(in_channels=640),
)
