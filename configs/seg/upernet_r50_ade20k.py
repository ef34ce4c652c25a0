"""UperNet, ResNet-50, ImageNet-1k, ADE20K, 160k iterations (MMSegmentation, configs/upernet).

Command: torchrun --nproc_per_node 8 tools/train.py configs/seg/upernet_r50_ade20k.py
Expected: mIoU (ss) 42.05, mIoU (ms) 42.78.
Initial weights: open-mmlab://resnet50_v1c, Apache-2.0.
Note: MMSegmentation trains it with 4 GPUs x 4 images; it tests whole images, not windows.
"""

_base_ = ['_base_/upernet_512.py', '_base_/ade20k_512.py', '_base_/schedule_160k.py', '_base_/runtime.py']

weights = dict(type='Pretrained', checkpoint='open-mmlab://resnet50_v1c')
model = dict(
    backbone=dict(_delete_=True, type='ResNetV1c', depth=50, norm_cfg=_base_.norm, init_cfg=weights),
    decode_head=dict(in_channels=[256, 512, 1024, 2048]),
    auxiliary_head=dict(in_channels=1024),
    test_cfg=dict(_delete_=True, mode='whole'),
)
sgd = dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=5e-4)
optim_wrapper = dict(_delete_=True, type='OptimWrapper', optimizer=sgd)
param_scheduler = [dict(_base_.param_scheduler[1], power=0.9, eta_min=1e-4)]
