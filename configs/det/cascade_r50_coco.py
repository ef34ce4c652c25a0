"""Cascade Mask R-CNN, ResNet-50, ImageNet-1k, COCO, 36 epochs (arXiv 2201.03545, Table 3).

Command: torchrun --nproc_per_node 8 tools/train.py configs/det/cascade_r50_coco.py
Expected: box AP 46.3, mask AP 40.1; 82 M parameters, 739 GFLOPs at 1280x800.
Initial weights: torchvision://resnet50, BSD-3-Clause.
Note: the row is from arXiv 2103.14030, Table 2, which gives optimizer and schedule; precision and the frozen norms
are not published.
"""

_base_ = ['_base_/cascade_mask_rcnn.py', '_base_/coco_instance.py', '_base_/schedule_3x_swin.py', '_base_/runtime.py']

norms = dict(norm_cfg=dict(type='BN', requires_grad=True), norm_eval=True, frozen_stages=1)
weights = dict(type='Pretrained', checkpoint='torchvision://resnet50')
model = dict(
    backbone=dict(_delete_=True, type='ResNet', depth=50, **norms, init_cfg=weights),
    neck=dict(in_channels=[256, 512, 1024, 2048]),
)
optim_wrapper = dict(type='AmpOptimWrapper', optimizer=dict(lr=1e-4))
