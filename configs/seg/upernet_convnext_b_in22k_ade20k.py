"""UperNet, ConvNeXt-B, ImageNet-22k, ADE20K, 160k iterations (arXiv 2201.03545, Table 4).

Command: torchrun --nproc_per_node 8 tools/train.py configs/seg/upernet_convnext_b_in22k_ade20k.py
Expected: mIoU (ss) 52.6, mIoU (ms) 53.1; 122 M parameters, 1828 GFLOPs at 2560x640.
Initial weights: convnext://base_22k, MIT.
"""

_base_ = ['_base_/upernet_640.py', '_base_/ade20k_640.py', '_base_/schedule_160k.py', '_base_/runtime.py']

weights = dict(type='Pretrained', checkpoint='convnext://base_22k')
model = dict(
    backbone=dict(arch='base', drop_path_rate=0.4, init_cfg=weights),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)
optim_wrapper = dict(type='AmpOptimWrapper', optimizer=dict(lr=1e-4), paramwise_cfg=dict(decay_rate=0.9))
