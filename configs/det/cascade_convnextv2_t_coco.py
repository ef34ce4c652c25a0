"""Cascade Mask R-CNN, ConvNeXt V2-T, FCMAE, COCO, 36 epochs (unpublished).

Command: torchrun --nproc_per_node 8 tools/train.py configs/det/cascade_convnextv2_t_coco.py
Expected: not published.
Initial weights: convnext://v2_tiny_fcmae, CC-BY-NC 4.0.
Note: heads, schedule and augmentation of ConvNeXt; lr, decay rate and drop path from ConvNeXt V2's sweep for Mask
R-CNN (arXiv 2301.00808, Section A.3).
"""

_base_ = ['_base_/cascade_mask_rcnn.py', '_base_/coco_instance.py', '_base_/schedule_3x.py', '_base_/runtime.py']

weights = dict(type='Pretrained', checkpoint='convnext://v2_tiny_fcmae')
model = dict(
    backbone=dict(arch='tiny', grn=True, drop_path_rate=0.2, init_cfg=weights),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
optim_wrapper = dict(type='AmpOptimWrapper', optimizer=dict(lr=1e-4), paramwise_cfg=dict(decay_rate=0.95))
