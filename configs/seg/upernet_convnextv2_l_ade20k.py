"""UperNet, ConvNeXt V2-L, FCMAE and ImageNet-1k, ADE20K, 160k iterations (arXiv 2301.00808, Table 7).

Command: torchrun --nproc_per_node 8 tools/train.py configs/seg/upernet_convnextv2_l_ade20k.py
Expected: mIoU (ms) 53.7; 235 M parameters, 1573 GFLOPs at 2048x512.
Initial weights: convnext://v2_large_1k, CC-BY-NC 4.0.
Note: lr, decay rate and drop path were swept (Section A.4) and the winners not published.
"""

_base_ = ['_base_/upernet_512.py', '_base_/ade20k_512_v2.py', '_base_/schedule_160k.py', '_base_/runtime.py']

from convnext_dense.recipes import upernet

backbone, channels, optim_wrapper = upernet('v2_large_1k')
model = dict(backbone=backbone, decode_head=dict(in_channels=channels), auxiliary_head=dict(in_channels=channels[2]))
