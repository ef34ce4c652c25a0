"""Mask2Former, ConvNeXt-T, ImageNet-1k, COCO, 50 epochs (unpublished).

Command: torchrun --nproc_per_node 8 tools/train.py configs/det/mask2former_convnext_t_coco.py
Expected: not published.
Initial weights: convnext://tiny_1k, MIT.
Note: the recipe of the paper's Swin-T (arXiv 2112.01527, Section 4.2), with which MMDetection's reaches mask AP 44.7.
"""

_base_ = ['_base_/mask2former.py']

from convnext_dense.variants import channels

arch = 'tiny'
weights = dict(type='Pretrained', checkpoint='convnext://tiny_1k')
model = dict(backbone=dict(arch=arch, init_cfg=weights), panoptic_head=dict(in_channels=channels(arch)))
