"""Cascade Mask R-CNN, Swin-T, ImageNet-1k, COCO, 36 epochs (arXiv 2201.03545, Table 3).

Command: torchrun --nproc_per_node 8 tools/train.py configs/det/cascade_swin_t_coco.py
Expected: box AP 50.4, mask AP 43.7; 86 M parameters, 745 GFLOPs at 1280x800.
Initial weights: https://github.com/SwinTransformer/storage/releases/download/v1.0.0/swin_tiny_patch4_window7_224.pth,
MIT.
"""

_base_ = ['_base_/cascade_mask_rcnn.py', '_base_/coco_instance.py', '_base_/schedule_3x_swin.py', '_base_/runtime.py']

size = _base_.swin.t
model = dict(
    backbone=dict(_delete_=True, **size.backbone, **size.det, drop_path_rate=0.2), neck=dict(in_channels=size.channels)
)
optim_wrapper = dict(type='AmpOptimWrapper', optimizer=dict(lr=1e-4))
