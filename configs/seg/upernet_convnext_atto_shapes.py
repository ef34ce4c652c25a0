"""UperNet, ConvNeXt-atto, from scratch, drawn shapes, 1000 iterations (this repository).

Command: python tools/train.py configs/seg/upernet_convnext_atto_shapes.py
Expected: mIoU >= 80.
Measured: mIoU 85.7.
Initial weights: none.
"""

_base_ = ['_base_/upernet_mini.py', '_base_/shapes_labels.py', '_base_/schedule_mini.py', '_base_/runtime.py']

from convnext_dense.variants import channels

arch = 'atto'
model = dict(
    backbone=dict(arch=arch, drop_path_rate=0.0),
    decode_head=dict(in_channels=channels(arch)),
    auxiliary_head=dict(in_channels=channels(arch)[2]),
)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(lr=1e-3))
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval=500))
