"""UperNet, ResNet-50, ImageNet-1k, ADE20K, 160k iterations (after MMSegmentation).

Command: torchrun --nproc_per_node 8 tools/train.py configs/seg/upernet_r50_ade20k.py
Expected: not published.
Initial weights: torchvision://resnet50, BSD-3-Clause.
Note: optimizer and schedule of MMSegmentation's upernet_r50_4xb4-160k_ade20k-512x512, whose ResNet has another stem:
mIoU (ss) 42.05, mIoU (ms) 42.78.
"""

_base_ = ['_base_/upernet_512.py', '_base_/ade20k_512.py', '_base_/schedule_160k_swin.py', '_base_/runtime.py']

weights = dict(type='Pretrained', checkpoint='torchvision://resnet50')
model = dict(
    backbone=dict(_delete_=True, type='ResNet', depth=50, norm_cfg=_base_.norm, init_cfg=weights),
    decode_head=dict(in_channels=[256 * 2**i for i in range(4)]),
    auxiliary_head=dict(in_channels=1024),
)
sgd = dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=5e-4)
optim_wrapper = dict(_delete_=True, type='OptimWrapper', optimizer=sgd)
param_scheduler = [dict(_base_.param_scheduler[1], power=0.9, eta_min=1e-4)]
