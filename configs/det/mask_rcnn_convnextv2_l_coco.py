"""Mask R-CNN, ConvNeXt V2-L, FCMAE, COCO, 36 epochs (arXiv 2301.00808, Table 6).

Command: torchrun --nproc_per_node 8 tools/train.py configs/det/mask_rcnn_convnextv2_l_coco.py
Expected: box AP 54.4, mask AP 47.7; 875 GFLOPs at 1280x800.
Initial weights: convnext://v2_large_fcmae, CC-BY-NC 4.0.
Note: decay rate and drop path were swept (Section A.3) and the winners not published.
"""

_base_ = ['_base_/mask_rcnn_lsj_coco.py']

weights = dict(type='Pretrained', checkpoint='convnext://v2_large_fcmae')
model = dict(
    backbone=dict(arch='large', grn=True, drop_path_rate=0.5, init_cfg=weights),
    neck=dict(in_channels=[192, 384, 768, 1536]),
)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(lr=1e-4), paramwise_cfg=dict(decay_rate=0.95))
