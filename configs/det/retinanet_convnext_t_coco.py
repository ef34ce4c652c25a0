"""RetinaNet, ConvNeXt-T, ImageNet-1k, COCO, 12 epochs (unpublished).

Command: torchrun --nproc_per_node 8 tools/train.py configs/det/retinanet_convnext_t_coco.py
Expected: not published.
Initial weights: convnext://tiny_1k, MIT.
Note: schedule and lr of PVT's RetinaNet (arXiv 2102.12122, Section 5.2), weight decay and decay rate of ConvNeXt-T's
    Mask R-CNN; drop path of MMDetection's RetinaNet with Swin-T.
"""

_base_ = ['_base_/retinanet.py']

weights = dict(type='Pretrained', checkpoint='convnext://tiny_1k')
model = dict(
    backbone=dict(arch='tiny', drop_path_rate=0.2, init_cfg=weights),
    neck=dict(in_channels=[192, 384, 768]),
)
optim_wrapper = dict(type='AmpOptimWrapper', optimizer=dict(lr=1e-4), paramwise_cfg=dict(decay_rate=0.95))
