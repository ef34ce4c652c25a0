"""UperNet, ConvNeXt V2-T, FCMAE and ImageNet-1k, ADE20K, 160k iterations (unpublished).

Command: torchrun --nproc_per_node 8 tools/train.py configs/seg/upernet_convnextv2_t_ade20k.py
Expected: not published.
Initial weights: convnext://v2_tiny_1k, CC-BY-NC 4.0.
Note: the recipe of the larger sizes (arXiv 2301.00808, Section A.4); no result was published for T.
"""

_base_ = ['_base_/upernet_512.py', '_base_/ade20k_512_v2.py', '_base_/schedule_160k.py', '_base_/runtime.py']

from convnext_dense.variants import channels

arch = 'tiny'
weights = dict(type='Pretrained', checkpoint='convnext://v2_tiny_1k')
model = dict(
    backbone=dict(arch=arch, grn=True, drop_path_rate=0.2, init_cfg=weights),
    decode_head=dict(in_channels=channels(arch)),
    auxiliary_head=dict(in_channels=channels(arch)[2]),
)
optim_wrapper = dict(type='AmpOptimWrapper', optimizer=dict(lr=1e-4))
