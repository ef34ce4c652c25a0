"""Mask2Former for instances, 50 epochs of large-scale jitter, as MMDetection has it (arXiv 2112.01527, Section 4.2).

A leaf sets size, drop path and weights.
"""

_base_ = ['mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py', '../../_base_/mask2former.py', 'tta.py']

from convnext_dense.tta import multi_scale

custom_imports = dict(imports=['convnext_dense'], allow_failed_imports=False)
model = dict(backbone=dict(_delete_=True, type='ConvNeXt'))
optim_wrapper = dict(paramwise_cfg=dict(_delete_=True, **_base_.rates))
tta_pipeline = multi_scale(_base_.test_pipeline)
