"""DINO with four scales, ConvNeXt-T, ImageNet-1k, COCO, 12 epochs (arXiv 2306.07265).

Command: torchrun --nproc_per_node 8 tools/train.py configs/det/dino_convnext_t_coco.py
Expected: box AP 51.4.
Initial weights: convnext://tiny_1k, MIT.
Note: published by detrex without a config; here the recipe of dino_convnext_t_in22k_coco.py, whose note holds as well.
"""

_base_ = ['_base_/dino.py']

weights = dict(type='Pretrained', checkpoint='convnext://tiny_1k')
model = dict(
    backbone=dict(arch='tiny', drop_path_rate=0.0, init_cfg=weights),
    neck=dict(in_channels=[192, 384, 768]),
)
optim_wrapper = dict(optimizer=dict(lr=1e-4), paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.1))))
