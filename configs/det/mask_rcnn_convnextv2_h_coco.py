"""Mask R-CNN, ConvNeXt V2-H, FCMAE, COCO, 36 epochs (arXiv 2301.00808, Table 6).

Command: torchrun --nproc_per_node 8 tools/train.py configs/det/mask_rcnn_convnextv2_h_coco.py
Expected: box AP 55.7, mask AP 48.9; 2525 GFLOPs at 1280x800.
Initial weights: convnext://v2_huge_fcmae, CC-BY-NC 4.0.
Note: decay rate and drop path were swept (Section A.3) and the winners not published.
"""

_base_ = ['_base_/mask_rcnn_lsj_coco.py']

weights = dict(type='Pretrained', checkpoint='convnext://v2_huge_fcmae')
model = dict(
    backbone=dict(arch='huge', grn=True, drop_path_rate=0.5, init_cfg=weights),
    neck=dict(in_channels=[352, 704, 1408, 2816]),
)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(lr=1e-4), paramwise_cfg=dict(decay_rate=0.95))
