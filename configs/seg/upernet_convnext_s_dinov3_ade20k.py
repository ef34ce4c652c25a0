"""UperNet, ConvNeXt-S, DINOv3, ADE20K, 160k iterations (unpublished).

Command: torchrun --nproc_per_node 8 tools/train.py configs/seg/upernet_convnext_s_dinov3_ade20k.py
Expected: not published.
Initial weights: timm://convnext_small.dinov3_lvd1689m, DINOv3 License.
Note: the recipe of upernet_convnext_s_ade20k.py with other initial weights.
"""

_base_ = ['_base_/upernet_512.py', '_base_/ade20k_512.py', '_base_/schedule_160k.py', '_base_/runtime.py']

from convnext_dense.variants import channels

arch = 'small'
weights = dict(type='Pretrained', checkpoint='timm://convnext_small.dinov3_lvd1689m')
model = dict(
    backbone=dict(arch=arch, drop_path_rate=0.3, init_cfg=weights),
    decode_head=dict(in_channels=channels(arch)),
    auxiliary_head=dict(in_channels=channels(arch)[2]),
)
optim_wrapper = dict(type='AmpOptimWrapper', optimizer=dict(lr=1e-4), paramwise_cfg=dict(decay_rate=0.9))
