"""UperNet, ConvNeXt-T, ImageNet-1k, ADE20K, 160k iterations (arXiv 2201.03545, Table 4).

Command: torchrun --nproc_per_node 8 tools/train.py configs/seg/upernet_convnext_t_ade20k.py
Expected: mIoU (ss) 46.0, mIoU (ms) 46.7; 60 M parameters, 939 GFLOPs at 2048x512.
Initial weights: convnext://tiny_1k, MIT.
"""

_base_ = ['_base_/upernet_512.py', '_base_/ade20k_512.py', '_base_/schedule_160k.py', '_base_/runtime.py']

weights = dict(type='Pretrained', checkpoint='convnext://tiny_1k')
model = dict(
    backbone=dict(arch='tiny', drop_path_rate=0.4, init_cfg=weights),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
optim_wrapper = dict(type='AmpOptimWrapper', optimizer=dict(lr=1e-4), paramwise_cfg=dict(decay_rate=0.9))
