"""UperNet, ConvNeXt V2-H, FCMAE and ImageNet-22k, ADE20K, 160k iterations (arXiv 2301.00808, Table 7).

Command: torchrun --nproc_per_node 8 tools/train.py configs/seg/upernet_convnextv2_h_in22k_ade20k.py
Expected: mIoU (ms) 57.0.
Initial weights: convnext://v2_huge_22k_1k_512, CC-BY-NC 4.0.
Note: lr, decay rate and drop path were swept (Section A.4) and the winners not published, nor was which weights the row
starts from. V2-H is public only after ImageNet-1k as well, at 384 or 512 pixels: these are nearer to the crops.
"""

_base_ = ['_base_/upernet_640.py', '_base_/ade20k_640_v2.py', '_base_/schedule_160k.py', '_base_/runtime.py']

from convnext_dense.recipes import upernet

backbone, channels, optim_wrapper = upernet('v2_huge_22k_1k_512')
model = dict(backbone=backbone, decode_head=dict(in_channels=channels), auxiliary_head=dict(in_channels=channels[2]))
