"""Mask2Former on ADE20K, 512-pixel crops, 160,000 iterations, as MMSegmentation has it (arXiv 2112.01527, Section 4.2).

AdamW at 1e-4, a tenth of it for the backbone; drop path as for Swin. A leaf sets size and weights.
"""

_base_ = 'mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py'

custom_imports = dict(imports=['mmdet.models', 'convnext_dense'], allow_failed_imports=False)
model = dict(backbone=dict(_delete_=True, type='ConvNeXt', drop_path_rate=0.3))
