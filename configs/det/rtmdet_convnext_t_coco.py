"""RTMDet-L, ConvNeXt-T, ImageNet-1k, COCO, 100 epochs (unpublished).

Command: torchrun --nproc_per_node 8 tools/train.py configs/det/rtmdet_convnext_t_coco.py
Expected: not published.
Initial weights: convnext://tiny_1k, MIT.
Note: the recipe of rtmdet_convnext_b_in22k_coco.py (RTMDet: arXiv 2212.07784), with the drop path of ConvNeXt-T's
    Cascade Mask R-CNN.
"""

_base_ = ['_base_/rtmdet.py']

weights = dict(type='Pretrained', checkpoint='convnext://tiny_1k')
model = dict(
    backbone=dict(arch='tiny', drop_path_rate=0.4, init_cfg=weights),
    neck=dict(in_channels=[192, 384, 768]),
)
optim_wrapper = dict(optimizer=dict(lr=1e-3), paramwise_cfg=dict(decay_rate=0.8))
