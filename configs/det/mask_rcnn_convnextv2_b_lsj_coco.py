"""Mask R-CNN, ConvNeXt V2-B, FCMAE, COCO, 36 epochs (MMDetection, projects/ConvNeXt-V2).

Command: torchrun --nproc_per_node 8 tools/train.py configs/det/mask_rcnn_convnextv2_b_lsj_coco.py
Expected: box AP 52.9, mask AP 46.4.
Initial weights: convnext://v2_base_fcmae, CC-BY-NC 4.0.
Note: crops of random size and a longer warm-up tell it from mask_rcnn_convnextv2_b_coco.py.
"""

_base_ = ['_base_/mask_rcnn_lsj_mmdet.py']

from convnext_dense.variants import channels

arch = 'base'
weights = dict(type='Pretrained', checkpoint='convnext://v2_base_fcmae')
model = dict(
    backbone=dict(arch=arch, grn=True, drop_path_rate=0.4, init_cfg=weights), neck=dict(in_channels=channels(arch))
)
optim_wrapper = dict(type='AmpOptimWrapper', optimizer=dict(lr=1e-4), paramwise_cfg=dict(decay_rate=0.95))
