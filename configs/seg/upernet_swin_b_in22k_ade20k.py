"""UperNet, Swin-B, ImageNet-22k, ADE20K, 160k iterations (arXiv 2201.03545, Table 4).

Command: torchrun --nproc_per_node 8 tools/train.py configs/seg/upernet_swin_b_in22k_ade20k.py
Expected: mIoU (ms) 51.7; 121 M parameters, 1841 GFLOPs at 2560x640.
Initial weights: swin_base_patch4_window7_224_22k_20220317-4f79f7c0.pth of MMSegmentation, MIT.
Note: no config was published for this row; learning rate, drop path and window are Swin's for Swin-B at 512 pixels.
"""

_base_ = ['_base_/upernet_640.py', '_base_/ade20k_640.py', '_base_/schedule_160k_swin.py', '_base_/runtime.py']

swin = dict(embed_dims=128, depths=[2, 2, 18, 2], num_heads=[4, 8, 16, 32], drop_path_rate=0.3)
weights = dict(
    type='Pretrained', checkpoint=f'{_base_.mmseg_files}/swin_base_patch4_window7_224_22k_20220317-4f79f7c0.pth'
)
model = dict(
    backbone=dict(_delete_=True, type='SwinTransformer', **swin, init_cfg=weights),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(lr=6e-5))
