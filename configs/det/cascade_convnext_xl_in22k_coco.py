"""Cascade Mask R-CNN, ConvNeXt-XL, ImageNet-22k, COCO, 36 epochs (arXiv 2201.03545, Table 3).

Command: torchrun --nproc_per_node 8 tools/train.py configs/det/cascade_convnext_xl_in22k_coco.py
Expected: box AP 55.2, mask AP 47.7; 407 M parameters, 1898 GFLOPs at 1280x800.
Initial weights: convnext://xlarge_22k, MIT.
"""

_base_ = ['_base_/cascade_mask_rcnn.py', '_base_/coco_instance.py', '_base_/schedule_3x.py', '_base_/runtime.py']

weights = dict(type='Pretrained', checkpoint='convnext://xlarge_22k')
model = dict(
    backbone=dict(arch='xlarge', drop_path_rate=0.8, init_cfg=weights),
    neck=dict(in_channels=[256, 512, 1024, 2048]),
)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(lr=1e-4), paramwise_cfg=dict(decay_rate=0.7))
