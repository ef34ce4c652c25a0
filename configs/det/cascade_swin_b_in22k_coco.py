"""Cascade Mask R-CNN, Swin-B, ImageNet-22k, COCO, 36 epochs (arXiv 2201.03545, Table 3).

Command: torchrun --nproc_per_node 8 tools/train.py configs/det/cascade_swin_b_in22k_coco.py
Expected: box AP 53.0, mask AP 45.8; 145 M parameters, 982 GFLOPs at 1280x800.
Initial weights: swin_base_patch4_window7_224_22k.pth of microsoft/Swin-Transformer, MIT.
Note: the paper swept this row and published no values; these are Swin's own for Swin-B.
"""

_base_ = ['_base_/cascade_mask_rcnn.py', '_base_/coco_instance.py', '_base_/schedule_3x_swin.py', '_base_/runtime.py']

swin = dict(embed_dims=128, depths=[2, 2, 18, 2], num_heads=[4, 8, 16, 32], drop_path_rate=0.3)
weights = dict(type='Pretrained', checkpoint=f'{_base_.swin_files}/swin_base_patch4_window7_224_22k.pth')
model = dict(
    backbone=dict(_delete_=True, type='SwinTransformer', **swin, convert_weights=True, init_cfg=weights),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
optim_wrapper = dict(type='AmpOptimWrapper', optimizer=dict(lr=1e-4))
