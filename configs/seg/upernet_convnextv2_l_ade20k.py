"""UperNet, ConvNeXt V2-L, FCMAE and ImageNet-1k, ADE20K, 160k iterations (arXiv 2301.00808, Table 7).

Command: torchrun --nproc_per_node 8 tools/train.py configs/seg/upernet_convnextv2_l_ade20k.py
Expected: mIoU (ms) 53.7; 235 M parameters, 1573 GFLOPs at 2048x512.
Initial weights: convnext://v2_large_1k, CC-BY-NC 4.0.
Note: lr, decay rate and drop path were swept (Section A.4) and the winners not published.
"""

_base_ = ['_base_/upernet_512.py', '_base_/ade20k_512_v2.py', '_base_/schedule_160k.py', '_base_/runtime.py']

weights = dict(type='Pretrained', checkpoint='convnext://v2_large_1k')
model = dict(
    backbone=dict(arch='large', grn=True, drop_path_rate=0.4, init_cfg=weights),
    decode_head=dict(in_channels=[192, 384, 768, 1536]),
    auxiliary_head=dict(in_channels=768),
)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(lr=1e-4), paramwise_cfg=dict(decay_rate=0.9))
