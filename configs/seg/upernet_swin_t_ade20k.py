"""UperNet, Swin-T, ImageNet-1k, ADE20K, 160k iterations (arXiv 2201.03545, Table 4).

Command: torchrun --nproc_per_node 8 tools/train.py configs/seg/upernet_swin_t_ade20k.py
Expected: mIoU (ms) 45.8; 60 M parameters, 945 GFLOPs at 2048x512.
Initial weights: swin_tiny_patch4_window7_224_20220317-1cdeb081.pth of MMSegmentation, MIT.
"""

_base_ = ['_base_/upernet_512.py', '_base_/ade20k_512.py', '_base_/schedule_160k_swin.py', '_base_/runtime.py']

swin = dict(embed_dims=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], drop_path_rate=0.3)
weights = dict(type='Pretrained', checkpoint=f'{_base_.mmseg_files}/swin_tiny_patch4_window7_224_20220317-1cdeb081.pth')
model = dict(
    backbone=dict(_delete_=True, type='SwinTransformer', **swin, init_cfg=weights),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(lr=6e-5))
