"""Mask2Former on ADE20K as in `mask2former_512.py`, with 640-pixel crops, for larger models."""

_base_ = [
    'mmseg::mask2former/mask2former_swin-b-in22k-384x384-pre_8xb2-160k_ade20k-640x640.py',
    '../../_base_/mask2former.py',
]

custom_imports = dict(imports=['convnext_dense', 'mmdet.models'], allow_failed_imports=False)
model = dict(backbone=dict(_delete_=True, **_base_.backbone))
optim_wrapper = dict(paramwise_cfg=dict(_delete_=True, **_base_.rates))
default_hooks = dict(checkpoint=dict(max_keep_ckpts=3))  # as elsewhere here; upstream keeps all
