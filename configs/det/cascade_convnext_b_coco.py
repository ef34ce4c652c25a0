"""Cascade Mask R-CNN, ConvNeXt-B, ImageNet-1k, COCO, 36 epochs (arXiv 2201.03545, Table 3).

Command: torchrun --nproc_per_node 8 tools/train.py configs/det/cascade_convnext_b_coco.py
Expected: box AP 52.7, mask AP 45.6; 146 M parameters, 964 GFLOPs at 1280x800.
Initial weights: convnext://base_1k, MIT.
"""

_base_ = ['_base_/cascade_mask_rcnn.py', '_base_/coco_instance.py', '_base_/schedule_3x.py', '_base_/runtime.py']

weights = dict(type='Pretrained', checkpoint='convnext://base_1k')
model = dict(
    backbone=dict(arch='base', drop_path_rate=0.7, init_cfg=weights),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
optim_wrapper = dict(type='AmpOptimWrapper', optimizer=dict(lr=2e-4), paramwise_cfg=dict(decay_rate=0.8))
