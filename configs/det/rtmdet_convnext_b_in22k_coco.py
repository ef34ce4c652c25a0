"""RTMDet-L, ConvNeXt-B, ImageNet-22k, COCO, 100 epochs (open-mmlab/mmdetection, configs/rtmdet).

Command: torchrun --nproc_per_node 8 tools/train.py configs/det/rtmdet_convnext_b_in22k_coco.py
Expected: box AP 53.1.
Initial weights: convnext://base_22k_1k_384, MIT.
Note: MMDetection's decay puts some layers into other slots than facebookresearch's, which this package follows.
"""

_base_ = ['_base_/rtmdet.py']

weights = dict(type='Pretrained', checkpoint='convnext://base_22k_1k_384')
model = dict(
    backbone=dict(arch='base', drop_path_rate=0.7, init_cfg=weights),
    neck=dict(in_channels=[256, 512, 1024]),
)
optim_wrapper = dict(optimizer=dict(lr=1e-3), paramwise_cfg=dict(decay_rate=0.8))
