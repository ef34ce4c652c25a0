"""Cascade Mask R-CNN, ConvNeXt-S, DINOv3, COCO, 36 epochs (unpublished).

Command: torchrun --nproc_per_node 8 tools/train.py configs/det/cascade_convnext_s_dinov3_coco.py
Expected: not published.
Initial weights: timm://convnext_small.dinov3_lvd1689m, DINOv3 License.
Note: the recipe of cascade_convnext_s_coco.py with other initial weights.
"""

_base_ = ['_base_/cascade_mask_rcnn.py', '_base_/coco_instance.py', '_base_/schedule_3x.py', '_base_/runtime.py']

from convnext_dense.variants import channels

arch = 'small'
weights = dict(type='Pretrained', checkpoint='timm://convnext_small.dinov3_lvd1689m')
model = dict(backbone=dict(arch=arch, drop_path_rate=0.6, init_cfg=weights), neck=dict(in_channels=channels(arch)))
optim_wrapper = dict(type='AmpOptimWrapper', optimizer=dict(lr=2e-4), paramwise_cfg=dict(decay_rate=0.7))
