"""Cascade Mask R-CNN, ConvNeXt-L, ImageNet-22k, COCO, 36 epochs (arXiv 2201.03545, Table 3).

Command: torchrun --nproc_per_node 8 tools/train.py configs/det/cascade_convnext_l_in22k_coco.py
Expected: box AP 54.8, mask AP 47.6; 255 M parameters, 1354 GFLOPs at 1280x800.
Initial weights: convnext://large_22k, MIT.
"""

_base_ = ['_base_/cascade_mask_rcnn.py', '_base_/coco_instance.py', '_base_/schedule_3x.py', '_base_/runtime.py']

weights = dict(type='Pretrained', checkpoint='convnext://large_22k')
model = dict(
    backbone=dict(arch='large', drop_path_rate=0.7, init_cfg=weights),
    neck=dict(in_channels=[192, 384, 768, 1536]),
)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(lr=1e-4), paramwise_cfg=dict(decay_rate=0.7))
