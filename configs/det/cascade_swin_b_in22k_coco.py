"""Cascade Mask R-CNN, Swin-B, ImageNet-22k, COCO, 36 epochs (arXiv 2201.03545, Table 3).

Command: torchrun --nproc_per_node 8 tools/train.py configs/det/cascade_swin_b_in22k_coco.py
Expected: box AP 53.0, mask AP 45.8; 145 M parameters, 982 GFLOPs at 1280x800.
Initial weights: https://github.com/SwinTransformer/storage/releases/download/v1.0.0/swin_base_patch4_window7_224_22k.pth,
MIT.
Note: the paper swept this row and published no values; these are Swin's own for Swin-B.
"""

_base_ = ['_base_/cascade_mask_rcnn.py', '_base_/coco_instance.py', '_base_/schedule_3x_swin.py', '_base_/runtime.py']

size = _base_.swin.b
model = dict(
    backbone=dict(_delete_=True, **size.backbone, **size.det, drop_path_rate=0.3), neck=dict(in_channels=size.channels)
)
optim_wrapper = dict(type='AmpOptimWrapper', optimizer=dict(lr=1e-4))
