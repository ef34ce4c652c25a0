"""UperNet, ConvNeXt-XL, ImageNet-22k, ADE20K, 160k iterations (arXiv 2201.03545, Table 4).

Command: torchrun --nproc_per_node 8 tools/train.py configs/seg/upernet_convnext_xl_in22k_ade20k.py
Expected: mIoU (ss) 53.6, mIoU (ms) 54.0; 391 M parameters, 3335 GFLOPs at 2560x640.
Initial weights: convnext://xlarge_22k, MIT.
"""

_base_ = ['_base_/upernet_640.py', '_base_/ade20k_640.py', '_base_/schedule_160k.py', '_base_/runtime.py']

weights = dict(type='Pretrained', checkpoint='convnext://xlarge_22k')
model = dict(
    backbone=dict(arch='xlarge', drop_path_rate=0.4, init_cfg=weights),
    decode_head=dict(in_channels=[256, 512, 1024, 2048]),
    auxiliary_head=dict(in_channels=1024),
)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(lr=8e-5), paramwise_cfg=dict(decay_rate=0.9))
