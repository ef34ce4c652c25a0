"""UperNet, ConvNeXt-L, DINOv3, ADE20K, 160k iterations (unpublished).

Command: torchrun --nproc_per_node 8 tools/train.py configs/seg/upernet_convnext_l_dinov3_ade20k.py
Expected: not published.
Initial weights: timm://convnext_large.dinov3_lvd1689m, DINOv3 License.
Note: the recipe of upernet_convnext_l_in22k_ade20k.py with other initial weights.
"""

_base_ = ['_base_/upernet_640.py', '_base_/ade20k_640.py', '_base_/schedule_160k.py', '_base_/runtime.py']

from convnext_dense.variants import channels

arch = 'large'
weights = dict(type='Pretrained', checkpoint='timm://convnext_large.dinov3_lvd1689m')
model = dict(
    backbone=dict(arch=arch, drop_path_rate=0.4, init_cfg=weights),
    decode_head=dict(in_channels=channels(arch)),
    auxiliary_head=dict(in_channels=channels(arch)[2]),
)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(lr=1e-4), paramwise_cfg=dict(decay_rate=0.9))
