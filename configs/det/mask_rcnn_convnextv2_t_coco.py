"""Mask R-CNN, ConvNeXt V2-T, FCMAE, COCO, 36 epochs (unpublished).

Command: torchrun --nproc_per_node 8 tools/train.py configs/det/mask_rcnn_convnextv2_t_coco.py
Expected: not published.
Initial weights: convnext://v2_tiny_fcmae, CC-BY-NC 4.0.
Note: the recipe of the larger sizes (arXiv 2301.00808, Section A.3); no result was published for T.
"""

_base_ = ['_base_/mask_rcnn_lsj_coco.py']

from convnext_dense.recipes import mask_rcnn

backbone, channels, optim_wrapper = mask_rcnn('v2_tiny_fcmae')
model = dict(backbone=backbone, neck=dict(in_channels=channels))
