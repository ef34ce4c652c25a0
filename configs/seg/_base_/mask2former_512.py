"""Mask2Former on ADE20K, 512-pixel crops, 160,000 iterations, as MMSegmentation has it (arXiv 2112.01527, Section 4.2).

A leaf sets size, drop path and weights.
"""

_base_ = ['mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py', '../../_base_/mask2former.py']

custom_imports = dict(imports=['convnext_dense', 'mmdet.models'], allow_failed_imports=False)
model = dict(backbone=dict(_delete_=True, type='ConvNeXt'))
optim_wrapper = dict(paramwise_cfg=dict(_delete_=True, **_base_.rates))
default_hooks = dict(checkpoint=dict(max_keep_ckpts=3))  # as elsewhere here; upstream keeps all
