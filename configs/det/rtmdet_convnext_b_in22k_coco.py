"""RTMDet-L, ConvNeXt-B, ImageNet-22k, COCO, 100 epochs (open-mmlab/mmdetection, configs/rtmdet).

Command: torchrun --nproc_per_node 8 tools/train.py configs/det/rtmdet_convnext_b_in22k_coco.py
Expected: box AP 53.1.
Initial weights: convnext://base_22k_1k_384, MIT.
Note: MMDetection's decay puts some layers into other slots than facebookresearch's, which this package follows.
"""

_base_ = ['_base_/rtmdet.py']

from convnext_dense.variants import channels

arch = 'base'
weights = dict(type='Pretrained', checkpoint='convnext://base_22k_1k_384')
model = dict(backbone=dict(arch=arch, drop_path_rate=0.7, init_cfg=weights), neck=dict(in_channels=channels(arch)[1:]))
