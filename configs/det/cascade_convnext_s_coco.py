"""Cascade Mask R-CNN, ConvNeXt-S, ImageNet-1k, COCO, 36 epochs (arXiv 2201.03545, Table 3).

Command: torchrun --nproc_per_node 8 tools/train.py configs/det/cascade_convnext_s_coco.py
Expected: box AP 51.9, mask AP 45.0; 108 M parameters, 827 GFLOPs at 1280x800.
Initial weights: convnext://small_1k, MIT.
"""

_base_ = ['_base_/cascade_mask_rcnn.py', '_base_/coco_instance.py', '_base_/schedule_3x.py', '_base_/runtime.py']

weights = dict(type='Pretrained', checkpoint='convnext://small_1k')
model = dict(
    backbone=dict(arch='small', drop_path_rate=0.6, init_cfg=weights),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
optim_wrapper = dict(type='AmpOptimWrapper', optimizer=dict(lr=2e-4), paramwise_cfg=dict(decay_rate=0.7))
