"""UperNet, ConvNeXt V2-H, FCMAE and ImageNet-22k, ADE20K, 160k iterations (arXiv 2301.00808, Table 7).

Command: torchrun --nproc_per_node 8 tools/train.py configs/seg/upernet_convnextv2_h_in22k_ade20k.py
Expected: mIoU (ms) 57.0.
Initial weights: convnext://v2_huge_22k_1k_512, CC-BY-NC 4.0.
Note: lr, decay rate and drop path were swept (Section A.4) and the winners not published, nor was which weights the row
starts from. V2-H is public only after ImageNet-1k as well, at 384 or 512 pixels: these are nearer to the crops.
"""

_base_ = ['_base_/upernet_640.py', '_base_/ade20k_640_v2.py', '_base_/schedule_160k.py', '_base_/runtime.py']

weights = dict(type='Pretrained', checkpoint='convnext://v2_huge_22k_1k_512')
model = dict(
    backbone=dict(arch='huge', grn=True, drop_path_rate=0.4, init_cfg=weights),
    decode_head=dict(in_channels=[352, 704, 1408, 2816]),
    auxiliary_head=dict(in_channels=1408),
)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(lr=1e-4), paramwise_cfg=dict(decay_rate=0.9))
