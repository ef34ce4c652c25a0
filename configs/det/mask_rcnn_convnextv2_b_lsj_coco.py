"""Mask R-CNN, ConvNeXt V2-B, FCMAE, COCO, 36 epochs (MMDetection, projects/ConvNeXt-V2).

Command: torchrun --nproc_per_node 8 tools/train.py configs/det/mask_rcnn_convnextv2_b_lsj_coco.py
Expected: box AP 52.9, mask AP 46.4.
Initial weights: convnext://v2_base_fcmae, CC-BY-NC 4.0.
Note: mask_rcnn_convnextv2_b_coco.py with twice the warm-up, and batches padded to a multiple of 32 pixels, not to 1024.
"""

_base_ = ['_base_/mask_rcnn_lsj_coco.py']

weights = dict(type='Pretrained', checkpoint='convnext://v2_base_fcmae')
model = dict(
    backbone=dict(arch='base', grn=True, drop_path_rate=0.4, init_cfg=weights),
    data_preprocessor=dict(batch_augments=None),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
optim_wrapper = dict(type='AmpOptimWrapper', optimizer=dict(lr=1e-4), paramwise_cfg=dict(decay_rate=0.95))
warmup, steps = _base_.param_scheduler
param_scheduler = [dict(warmup, end=1000), steps]
