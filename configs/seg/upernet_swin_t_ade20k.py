"""UperNet, Swin-T, ImageNet-1k, ADE20K, 160k iterations (arXiv 2201.03545, Table 4).

Command: torchrun --nproc_per_node 8 tools/train.py configs/seg/upernet_swin_t_ade20k.py
Expected: mIoU (ms) 45.8; 60 M parameters, 945 GFLOPs at 2048x512.
Initial weights: https://download.openmmlab.com/mmsegmentation/v0.5/pretrain/swin/swin_tiny_patch4_window7_224_20220317-1cdeb081.pth,
MIT.
"""

_base_ = ['_base_/upernet_512.py', '_base_/ade20k_512.py', '_base_/schedule_160k_swin.py', '_base_/runtime.py']

size = _base_.swin.t
model = dict(
    backbone=dict(_delete_=True, **size.backbone, **size.seg, drop_path_rate=0.3),
    decode_head=dict(in_channels=size.channels),
    auxiliary_head=dict(in_channels=size.channels[2]),
)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(lr=6e-5))
