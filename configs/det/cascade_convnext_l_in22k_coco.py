"""Cascade Mask R-CNN, ConvNeXt-L, ImageNet-22k, COCO, 36 epochs (arXiv 2201.03545, Table 3).

Command: torchrun --nproc_per_node 8 tools/train.py configs/det/cascade_convnext_l_in22k_coco.py
Expected: box AP 54.8, mask AP 47.6; 255 M parameters, 1354 GFLOPs at 1280x800.
Initial weights: convnext://large_22k, MIT.
"""

_base_ = ['_base_/cascade_mask_rcnn.py', '_base_/coco_instance.py', '_base_/schedule_3x.py', '_base_/runtime.py']

from convnext_dense.recipes import cascade_mask_rcnn

backbone, channels, optim_wrapper = cascade_mask_rcnn('large_22k')
model = dict(backbone=backbone, neck=dict(in_channels=channels))
