"""RTMDet-L with ConvNeXt, 100 epochs, as MMDetection has it for ConvNeXt-B. A leaf sets the backbone and the rates."""

_base_ = 'mmdet::rtmdet/rtmdet_l_convnext_b_4xb32-100e_coco.py'

custom_imports = dict(imports=['convnext_dense'], allow_failed_imports=False)
model = dict(backbone=dict(_delete_=True, type='ConvNeXt', out_indices=(1, 2, 3)))
optim_wrapper = dict(constructor='ConvNeXtLayerDecay', paramwise_cfg=dict(_delete_=True))
train_dataloader = dict(batch_size=16)
auto_scale_lr = dict(base_batch_size=128)  # 8 GPUs x 16 images, as 4 x 32 there
