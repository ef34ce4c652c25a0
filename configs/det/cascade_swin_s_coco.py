"""Cascade Mask R-CNN, Swin-S, ImageNet-1k, COCO, 36 epochs (arXiv 2201.03545, Table 3).

Command: torchrun --nproc_per_node 8 tools/train.py configs/det/cascade_swin_s_coco.py
Expected: box AP 51.9, mask AP 45.0; 107 M parameters, 838 GFLOPs at 1280x800.
Initial weights: https://github.com/SwinTransformer/storage/releases/download/v1.0.0/swin_small_patch4_window7_224.pth,
MIT.
"""

_base_ = ['_base_/cascade_mask_rcnn.py', '_base_/coco_instance.py', '_base_/schedule_3x_swin.py', '_base_/runtime.py']

size = _base_.swin.s
model = dict(
    backbone=dict(_delete_=True, **size.backbone, **size.det, drop_path_rate=0.2), neck=dict(in_channels=size.channels)
)
optim_wrapper = dict(type='AmpOptimWrapper', optimizer=dict(lr=1e-4))
