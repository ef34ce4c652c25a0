"""Cascade Mask R-CNN, ConvNeXt-atto from scratch on drawn shapes: the first command, minutes on a CPU.

Command: python tools/train.py configs/det/cascade_convnext_atto_shapes.py
Expected: box AP50 >= 0.75 and mask AP50 >= 0.70 on held-out drawings.
"""

_base_ = [
    '_base_/cascade_mask_rcnn_mini.py', '_base_/shapes_instance.py', '_base_/schedule_mini.py', '_base_/runtime.py'
]  # fmt: skip

model = dict(backbone=dict(arch='atto', drop_path_rate=0.0), neck=dict(in_channels=[40, 80, 160, 320]))
default_hooks = dict(logger=dict(interval=20))
