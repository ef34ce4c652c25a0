"""UperNet, ConvNeXt-atto, from scratch, drawn shapes, 1000 iterations (this repository).

Command: python tools/train.py configs/seg/upernet_convnext_atto_shapes.py
Expected: mIoU >= 80.
Measured: mIoU 89.4.
Initial weights: none.
"""

_base_ = ['_base_/upernet_mini.py', '_base_/shapes_labels.py', '_base_/schedule_mini.py', '_base_/runtime.py']

model = dict(
    backbone=dict(arch='atto', drop_path_rate=0.0),
    decode_head=dict(in_channels=[40, 80, 160, 320]),
    auxiliary_head=dict(in_channels=160),
)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(lr=1e-3), paramwise_cfg=dict(decay_rate=1.0))
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval=500))
