"""UperNet, ConvNeXt-L, ImageNet-22k, ADE20K, 160k iterations (arXiv 2201.03545, Table 4).

Command: torchrun --nproc_per_node 8 tools/train.py configs/seg/upernet_convnext_l_in22k_ade20k.py
Expected: mIoU (ss) 53.2, mIoU (ms) 53.7; 235 M parameters, 2458 GFLOPs at 2560x640.
Initial weights: convnext://large_22k, MIT.
"""

_base_ = ['_base_/upernet_640.py', '_base_/ade20k_640.py', '_base_/schedule_160k.py', '_base_/runtime.py']

weights = dict(type='Pretrained', checkpoint='convnext://large_22k')
model = dict(
    backbone=dict(arch='large', drop_path_rate=0.4, init_cfg=weights),
    decode_head=dict(in_channels=[192, 384, 768, 1536]),
    auxiliary_head=dict(in_channels=768),
)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(lr=1e-4), paramwise_cfg=dict(decay_rate=0.9))
