"""UperNet, Swin-B, ImageNet-22k, ADE20K, 160k iterations (arXiv 2201.03545, Table 4).

Command: torchrun --nproc_per_node 8 tools/train.py configs/seg/upernet_swin_b_in22k_ade20k.py
Expected: mIoU (ms) 51.7; 121 M parameters, 1841 GFLOPs at 2560x640.
Initial weights: https://download.openmmlab.com/mmsegmentation/v0.5/pretrain/swin/swin_base_patch4_window7_224_22k_20220317-4f79f7c0.pth,
MIT.
Note: no config was published for this row; learning rate, drop path and window are Swin's for Swin-B at 512 pixels.
"""

_base_ = ['_base_/upernet_640.py', '_base_/ade20k_640.py', '_base_/schedule_160k_swin.py', '_base_/runtime.py']

size = _base_.swin.b
model = dict(
    backbone=dict(_delete_=True, **size.backbone, **size.seg, drop_path_rate=0.3),
    decode_head=dict(in_channels=size.channels),
    auxiliary_head=dict(in_channels=size.channels[2]),
)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(lr=6e-5))
