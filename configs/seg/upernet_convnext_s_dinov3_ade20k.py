"""UperNet, ConvNeXt-S, DINOv3, ADE20K, 160k iterations (unpublished).

Command: torchrun --nproc_per_node 8 tools/train.py configs/seg/upernet_convnext_s_dinov3_ade20k.py
Expected: not published.
Initial weights: timm://convnext_small.dinov3_lvd1689m, DINOv3 License.
Note: the recipe of upernet_convnext_s_ade20k.py with other initial weights.
"""

_base_ = ['upernet_convnext_s_ade20k.py']

from convnext_dense.recipes import dinov3

weights = dict(checkpoint=dinov3('small'))
model = dict(backbone=dict(init_cfg=weights))
