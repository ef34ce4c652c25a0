"""Mask2Former, ConvNeXt-T, ImageNet-1k, ADE20K, 160k iterations (unpublished).

Command: torchrun --nproc_per_node 8 tools/train.py configs/seg/mask2former_convnext_t_ade20k.py
Expected: not published.
Initial weights: convnext://tiny_1k, MIT.
Note: the recipe of the paper's Swin-T (arXiv 2112.01527, Section 4.2), with which MMSegmentation's reaches mIoU 48.66.
"""

_base_ = ['_base_/mask2former_512.py']

weights = dict(type='Pretrained', checkpoint='convnext://tiny_1k')
model = dict(
    backbone=dict(arch='tiny', drop_path_rate=0.3, init_cfg=weights),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
)
optim_wrapper = dict(optimizer=dict(lr=1e-4))  # the backbone learns at a tenth of it
