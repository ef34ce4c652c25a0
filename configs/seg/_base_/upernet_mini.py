"""UperNet with narrow heads, for 128-pixel images on a CPU."""

_base_ = ['upernet_512.py']

window = (128, 128)
narrow = dict(channels=64, num_classes=8, norm_cfg=dict(type='BN', requires_grad=True))
model = dict(
    # pictures of a batch differ in size: all are padded
    data_preprocessor=dict(size=window, test_cfg=dict(size_divisor=32)),
    decode_head=dict(**narrow),
    auxiliary_head=dict(**narrow),
    test_cfg=dict(_delete_=True, mode='whole'),
)
