"""Faster R-CNN, ConvNeXt-T, ImageNet-1k, COCO, 36 epochs (unpublished).

Command: torchrun --nproc_per_node 8 tools/train.py configs/det/faster_rcnn_convnext_t_coco.py
Expected: not published.
Initial weights: convnext://tiny_1k, MIT.
Note: the recipe of Mask R-CNN with ConvNeXt-T (arXiv 2201.03545, Table 3) without masks.
"""

_base_ = ['_base_/faster_rcnn.py', '_base_/coco_detection.py', '_base_/schedule_3x.py', '_base_/runtime.py']

weights = dict(type='Pretrained', checkpoint='convnext://tiny_1k')
model = dict(
    backbone=dict(arch='tiny', drop_path_rate=0.4, init_cfg=weights),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
optim_wrapper = dict(type='AmpOptimWrapper', optimizer=dict(lr=1e-4), paramwise_cfg=dict(decay_rate=0.95))
