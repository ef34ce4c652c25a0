"""UperNet on ADE20K, step 0 of the ladder, 'resnet'; torchvision's ResNet-50 weights."""

_base_ = ['_base_/upernet_ade20k.py']

model = dict(
    backbone=dict(step='resnet', init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50'), norm_eval=True),
    decode_head=dict(in_channels=[256, 512, 1024, 2048]),
    auxiliary_head=dict(in_channels=1024),
)
