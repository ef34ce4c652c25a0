"""Cascade Mask R-CNN, ConvNeXt V2-B, FCMAE, COCO, 36 epochs (unpublished).

Command: torchrun --nproc_per_node 8 tools/train.py configs/det/cascade_convnextv2_b_coco.py
Expected: not published.
Initial weights: convnext://v2_base_fcmae, CC-BY-NC 4.0.
Note: heads, schedule and augmentation of ConvNeXt; lr, decay rate and drop path from ConvNeXt V2's sweep for Mask
R-CNN (arXiv 2301.00808, Section A.3).
"""

_base_ = ['_base_/cascade_mask_rcnn.py', '_base_/coco_instance.py', '_base_/schedule_3x.py', '_base_/runtime.py']

from convnext_dense.recipes import cascade_mask_rcnn

backbone, channels, optim_wrapper = cascade_mask_rcnn('v2_base_fcmae')
model = dict(backbone=backbone, neck=dict(in_channels=channels))
