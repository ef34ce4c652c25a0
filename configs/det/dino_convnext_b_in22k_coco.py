"""DINO with four scales, ConvNeXt-B, ImageNet-22k, COCO, 12 epochs (IDEA-Research/detrex, projects/dino).

Command: torchrun --nproc_per_node 8 tools/train.py configs/det/dino_convnext_b_in22k_coco.py
Expected: box AP 55.1.
Initial weights: convnext://base_22k_1k_384, MIT.
Note: published by detrex, whose DINO has other constants in its position embedding; MMDetection's own R50 is 0.2 AP
    below detrex's.
"""

_base_ = ['_base_/dino.py']

weights = dict(type='Pretrained', checkpoint='convnext://base_22k_1k_384')
model = dict(
    backbone=dict(arch='base', drop_path_rate=0.0, init_cfg=weights),
    neck=dict(in_channels=[256, 512, 1024]),
)
optim_wrapper = dict(optimizer=dict(lr=1e-4), paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.1))))
