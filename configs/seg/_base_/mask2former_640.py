"""Mask2Former on ADE20K as in `mask2former_512.py`, with 640-pixel crops, for larger models."""

_base_ = 'mmseg::mask2former/mask2former_swin-b-in22k-384x384-pre_8xb2-160k_ade20k-640x640.py'

custom_imports = dict(imports=['mmdet.models', 'convnext_dense'], allow_failed_imports=False)
model = dict(backbone=dict(_delete_=True, type='ConvNeXt', drop_path_rate=0.3))
embeddings = ('query_embed', 'query_feat', 'level_embed')
rates = {'backbone': dict(lr_mult=0.1, decay_mult=1.0), **{name: dict(decay_mult=0.0) for name in embeddings}}
optim_wrapper = dict(paramwise_cfg=dict(_delete_=True, custom_keys=rates, norm_decay_mult=0.0))
