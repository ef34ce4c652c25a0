"""Mask2Former, ConvNeXt-B, ImageNet-22k, ADE20K, 160k iterations (unpublished).

Command: torchrun --nproc_per_node 8 tools/train.py configs/seg/mask2former_convnext_b_in22k_ade20k.py
Expected: not published.
Initial weights: convnext://base_22k, MIT.
Note: the recipe of the paper's Swin-B (arXiv 2112.01527, Section 4.2), with which MMSegmentation's reaches mIoU 53.9.
"""

_base_ = ['_base_/mask2former_640.py']

from convnext_dense.variants import channels

arch = 'base'
weights = dict(type='Pretrained', checkpoint='convnext://base_22k')
model = dict(backbone=dict(arch=arch, init_cfg=weights), decode_head=dict(in_channels=channels(arch)))
