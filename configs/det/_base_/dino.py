"""DINO with four scales, 12 epochs, as MMDetection has it; the backbone as in IDEA-Research/detrex.

AdamW at 1e-4, a tenth of it for the backbone, which has no stochastic depth. A leaf sets all of it.

Weight decay is detrex's: none for the norms of neck and transformer, the same for all of the backbone. There ConvNeXt's
norms are of a class that the rule for norms does not know; here the custom key 'backbone' overrides `norm_decay_mult`.
It matters little: at these rates layer scale and norms lose less than 0.01 % in 12 epochs.
"""

_base_ = ['mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py', 'tta.py']

from convnext_dense.tta import multi_scale

custom_imports = dict(imports=['convnext_dense'], allow_failed_imports=False)
model = dict(backbone=dict(_delete_=True, type='ConvNeXt', out_indices=(1, 2, 3)))
optim_wrapper = dict(paramwise_cfg=dict(norm_decay_mult=0.0))
default_hooks = dict(checkpoint=dict(max_keep_ckpts=3))  # as elsewhere here; upstream keeps all
tta_pipeline = multi_scale(_base_.test_pipeline)
