"""Linear probe, ConvNeXt-T, DINOv3, ADE20K, 40k iterations (arXiv 2508.10104, Table 15).

Command: torchrun --nproc_per_node 8 tools/train.py configs/seg/linear_convnext_t_dinov3_ade20k.py
Expected: mIoU (ss) 42.7.
Initial weights: timm://convnext_tiny.dinov3_lvd1689m, DINOv3 License.
Note: settings of facebookresearch/dinov3 for its ViT-7B; the learning rate and weight decay of this row are not
published.
"""

_base_ = ['_base_/linear_512.py', '_base_/ade20k_512.py', '_base_/schedule_40k_probe.py']

weights = dict(type='Pretrained', checkpoint='timm://convnext_tiny.dinov3_lvd1689m', final_norm=True)
model = dict(
    backbone=dict(arch='tiny', init_cfg=weights),
    decode_head=dict(in_channels=768),
)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
