"""RetinaNet as MMDetection has it, 12 epochs, on the three maps that it looks at. A leaf sets size and rates."""

_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'

custom_imports = dict(imports=['convnext_dense'], allow_failed_imports=False)
model = dict(backbone=dict(_delete_=True, type='ConvNeXt', out_indices=(1, 2, 3)), neck=dict(start_level=0))
optim_wrapper = dict(
    constructor='ConvNeXtLayerDecay',
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
)
default_hooks = dict(checkpoint=dict(max_keep_ckpts=3))  # as elsewhere here; upstream keeps all
