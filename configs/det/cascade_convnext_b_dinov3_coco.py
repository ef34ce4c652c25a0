"""Cascade Mask R-CNN, ConvNeXt-B, DINOv3, COCO, 36 epochs (unpublished).

Command: torchrun --nproc_per_node 8 tools/train.py configs/det/cascade_convnext_b_dinov3_coco.py
Expected: not published.
Initial weights: timm://convnext_base.dinov3_lvd1689m, DINOv3 License.
Note: the recipe of cascade_convnext_b_coco.py with other initial weights.
"""

_base_ = ['cascade_convnext_b_coco.py']

from convnext_dense.recipes import dinov3

weights = dict(checkpoint=dinov3('base'))
model = dict(backbone=dict(init_cfg=weights))
