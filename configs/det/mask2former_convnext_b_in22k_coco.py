"""Mask2Former, ConvNeXt-B, ImageNet-22k, COCO, 50 epochs (unpublished).

Command: torchrun --nproc_per_node 8 tools/train.py configs/det/mask2former_convnext_b_in22k_coco.py
Expected: not published.
Initial weights: convnext://base_22k, MIT.
Note: the recipe of the paper's Swin-B (arXiv 2112.01527, Section 4.2).
"""

_base_ = ['_base_/mask2former.py']

from convnext_dense.variants import channels

arch = 'base'
weights = dict(type='Pretrained', checkpoint='convnext://base_22k')
model = dict(backbone=dict(arch=arch, init_cfg=weights), panoptic_head=dict(in_channels=channels(arch)))
