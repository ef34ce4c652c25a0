"""Mask2Former, ConvNeXt-T, ImageNet-1k, COCO, 50 epochs (unpublished).

Command: torchrun --nproc_per_node 8 tools/train.py configs/det/mask2former_convnext_t_coco.py
Expected: not published.
Initial weights: convnext://tiny_1k, MIT.
Note: the recipe of the paper's Swin-T (arXiv 2112.01527, Section 4.2), with which MMDetection's reaches mask AP 44.7.
"""

_base_ = ['_base_/mask2former.py']

weights = dict(type='Pretrained', checkpoint='convnext://tiny_1k')
model = dict(
    backbone=dict(arch='tiny', drop_path_rate=0.3, init_cfg=weights),
    panoptic_head=dict(in_channels=[96, 192, 384, 768]),
)
optim_wrapper = dict(optimizer=dict(lr=1e-4))  # the backbone learns at a tenth of it
