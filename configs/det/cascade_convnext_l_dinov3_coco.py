"""Cascade Mask R-CNN, ConvNeXt-L, DINOv3, COCO, 36 epochs (unpublished).

Command: torchrun --nproc_per_node 8 tools/train.py configs/det/cascade_convnext_l_dinov3_coco.py
Expected: not published.
Initial weights: timm://convnext_large.dinov3_lvd1689m, DINOv3 License.
Note: the recipe of cascade_convnext_l_in22k_coco.py with other initial weights.
"""

_base_ = ['_base_/cascade_mask_rcnn.py', '_base_/coco_instance.py', '_base_/schedule_3x.py', '_base_/runtime.py']

from convnext_dense.variants import channels

arch = 'large'
weights = dict(type='Pretrained', checkpoint='timm://convnext_large.dinov3_lvd1689m')
model = dict(backbone=dict(arch=arch, drop_path_rate=0.7, init_cfg=weights), neck=dict(in_channels=channels(arch)))
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(lr=1e-4), paramwise_cfg=dict(decay_rate=0.7))
