"""Cascade Mask R-CNN, ConvNeXt-T, DINOv3, COCO, 36 epochs (unpublished).

Command: torchrun --nproc_per_node 8 tools/train.py configs/det/cascade_convnext_t_dinov3_coco.py
Expected: not published.
Initial weights: timm://convnext_tiny.dinov3_lvd1689m, DINOv3 License.
Note: the recipe of cascade_convnext_t_coco.py with other initial weights.
"""

_base_ = ['_base_/cascade_mask_rcnn.py', '_base_/coco_instance.py', '_base_/schedule_3x.py', '_base_/runtime.py']

weights = dict(type='Pretrained', checkpoint='timm://convnext_tiny.dinov3_lvd1689m')
model = dict(
    backbone=dict(arch='tiny', drop_path_rate=0.4, init_cfg=weights),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
optim_wrapper = dict(type='AmpOptimWrapper', optimizer=dict(lr=2e-4), paramwise_cfg=dict(decay_rate=0.7))
