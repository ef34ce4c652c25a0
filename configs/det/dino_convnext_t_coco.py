"""DINO with four scales, ConvNeXt-T, ImageNet-1k, COCO, 12 epochs (unpublished).

Command: torchrun --nproc_per_node 8 tools/train.py configs/det/dino_convnext_t_coco.py
Expected: not published.
Initial weights: convnext://tiny_1k, MIT.
Note: the recipe of dino_convnext_t_in22k_coco.py with other initial weights.
"""

_base_ = ['dino_convnext_t_in22k_coco.py']

weights = dict(checkpoint='convnext://tiny_1k')
model = dict(backbone=dict(init_cfg=weights))
