"""UperNet, ConvNeXt-S, ImageNet-1k, ADE20K, 160k iterations (arXiv 2201.03545, Table 4).

Command: torchrun --nproc_per_node 8 tools/train.py configs/seg/upernet_convnext_s_ade20k.py
Expected: mIoU (ss) 48.7, mIoU (ms) 49.6; 82 M parameters, 1027 GFLOPs at 2048x512.
Initial weights: convnext://small_1k, MIT.
"""

_base_ = ['_base_/upernet_512.py', '_base_/ade20k_512.py', '_base_/schedule_160k.py', '_base_/runtime.py']

weights = dict(type='Pretrained', checkpoint='convnext://small_1k')
model = dict(
    backbone=dict(arch='small', drop_path_rate=0.3, init_cfg=weights),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
optim_wrapper = dict(type='AmpOptimWrapper', optimizer=dict(lr=1e-4), paramwise_cfg=dict(decay_rate=0.9))
