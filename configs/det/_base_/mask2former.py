"""Mask2Former for instances, 50 epochs of large-scale jitter, as MMDetection has it (arXiv 2112.01527, Section 4.2).

AdamW at 1e-4, a tenth of it for the backbone; drop path as for Swin. A leaf sets size and weights.
"""

_base_ = 'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py'

custom_imports = dict(imports=['convnext_dense'], allow_failed_imports=False)
model = dict(backbone=dict(_delete_=True, type='ConvNeXt', drop_path_rate=0.3))
