"""UperNet, ConvNeXt-T, DINOv3, ADE20K, 160k iterations (unpublished).

Command: torchrun --nproc_per_node 8 tools/train.py configs/seg/upernet_convnext_t_dinov3_ade20k.py
Expected: not published.
Initial weights: timm://convnext_tiny.dinov3_lvd1689m, DINOv3 License.
Note: the recipe of upernet_convnext_t_ade20k.py with other initial weights.
"""

_base_ = ['_base_/upernet_512.py', '_base_/ade20k_512.py', '_base_/schedule_160k.py', '_base_/runtime.py']

weights = dict(type='Pretrained', checkpoint='timm://convnext_tiny.dinov3_lvd1689m')
model = dict(
    backbone=dict(arch='tiny', drop_path_rate=0.4, init_cfg=weights),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
optim_wrapper = dict(type='AmpOptimWrapper', optimizer=dict(lr=1e-4), paramwise_cfg=dict(decay_rate=0.9))
