"""Cascade Mask R-CNN, ConvNeXt-atto, from scratch, drawn shapes, 5 epochs (this repository).

Command: python tools/train.py configs/det/cascade_convnext_atto_shapes.py
Expected: box AP50 >= 0.75, mask AP50 >= 0.70.
Measured: box AP50 0.871, mask AP50 0.869.
Initial weights: none.
Note: the first command, minutes on a CPU.
"""

_base_ = [
    '_base_/cascade_mask_rcnn_mini.py', '_base_/shapes_instance.py', '_base_/schedule_mini.py', '_base_/runtime.py'
]  # fmt: skip

model = dict(backbone=dict(arch='atto', drop_path_rate=0.0), neck=dict(in_channels=[40, 80, 160, 320]))
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(lr=1e-3), paramwise_cfg=dict(decay_rate=1.0))
default_hooks = dict(logger=dict(interval=20))
