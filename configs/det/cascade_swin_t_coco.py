"""Cascade Mask R-CNN, Swin-T, ImageNet-1k, COCO, 36 epochs (arXiv 2201.03545, Table 3).

Command: torchrun --nproc_per_node 8 tools/train.py configs/det/cascade_swin_t_coco.py
Expected: box AP 50.4, mask AP 43.7; 86 M parameters, 745 GFLOPs at 1280x800.
Initial weights: swin_tiny_patch4_window7_224.pth of microsoft/Swin-Transformer, MIT.
"""

_base_ = ['_base_/cascade_mask_rcnn.py', '_base_/coco_instance.py', '_base_/schedule_3x_swin.py', '_base_/runtime.py']

swin = dict(embed_dims=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], drop_path_rate=0.2)
weights = dict(type='Pretrained', checkpoint=f'{_base_.swin_files}/swin_tiny_patch4_window7_224.pth')
model = dict(
    backbone=dict(_delete_=True, type='SwinTransformer', **swin, convert_weights=True, init_cfg=weights),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
optim_wrapper = dict(type='AmpOptimWrapper', optimizer=dict(lr=1e-4))
