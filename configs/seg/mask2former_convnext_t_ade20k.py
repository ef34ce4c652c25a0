"""Mask2Former, ConvNeXt-T, ImageNet-1k, ADE20K, 160k iterations (unpublished).

Command: torchrun --nproc_per_node 8 tools/train.py configs/seg/mask2former_convnext_t_ade20k.py
Expected: not published.
Initial weights: convnext://tiny_1k, MIT.
Note: the recipe of the paper's Swin-T (arXiv 2112.01527, Section 4.2), with which MMSegmentation's reaches mIoU 48.66.
"""

_base_ = ['_base_/mask2former_512.py']

from convnext_dense.variants import channels

arch = 'tiny'
weights = dict(type='Pretrained', checkpoint='convnext://tiny_1k')
model = dict(backbone=dict(arch=arch, init_cfg=weights), decode_head=dict(in_channels=channels(arch)))
