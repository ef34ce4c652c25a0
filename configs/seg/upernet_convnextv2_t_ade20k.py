"""UperNet, ConvNeXt V2-T, FCMAE and ImageNet-1k, ADE20K, 160k iterations (unpublished).

Command: torchrun --nproc_per_node 8 tools/train.py configs/seg/upernet_convnextv2_t_ade20k.py
Expected: not published.
Initial weights: convnext://v2_tiny_1k, CC-BY-NC 4.0.
Note: the recipe of the larger sizes (arXiv 2301.00808, Section A.4); no result was published for T.
"""

_base_ = ['_base_/upernet_512.py', '_base_/ade20k_512_v2.py', '_base_/schedule_160k.py', '_base_/runtime.py']

from convnext_dense.recipes import upernet

backbone, channels, optim_wrapper = upernet('v2_tiny_1k')
model = dict(backbone=backbone, decode_head=dict(in_channels=channels), auxiliary_head=dict(in_channels=channels[2]))
