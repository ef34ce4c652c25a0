"""RTMDet-L, ConvNeXt-T, ImageNet-1k, COCO, 100 epochs (unpublished).

Command: torchrun --nproc_per_node 8 tools/train.py configs/det/rtmdet_convnext_t_coco.py
Expected: not published.
Initial weights: convnext://tiny_1k, MIT.
Note: the recipe of rtmdet_convnext_b_in22k_coco.py (RTMDet: arXiv 2212.07784), with the drop path of ConvNeXt-T's
    Cascade Mask R-CNN.
"""

_base_ = ['_base_/rtmdet.py']

from convnext_dense.variants import channels

arch = 'tiny'
weights = dict(type='Pretrained', checkpoint='convnext://tiny_1k')
model = dict(backbone=dict(arch=arch, drop_path_rate=0.4, init_cfg=weights), neck=dict(in_channels=channels(arch)[1:]))
