"""Swin, with which ConvNeXt is compared: sizes (arXiv 2103.14030, Section 3.3), weights, what has no weight decay.

Detectors start from Swin's own files, segmentors from the same weights under MMSegmentation's names; of size B they are
those of ImageNet-22k.
"""

swin_files = 'https://github.com/SwinTransformer/storage/releases/download/v1.0.0/swin_'
mmseg_files = 'https://download.openmmlab.com/mmsegmentation/v0.5/pretrain/swin/swin_'
swin = {
    size: dict(
        backbone=dict(
            type='SwinTransformer',
            embed_dims=width,
            depths=[2, 2, depth, 2],
            num_heads=[num_heads * 2**i for i in range(4)],
        ),
        channels=[width * 2**i for i in range(4)],
        det=dict(convert_weights=True, init_cfg=dict(type='Pretrained', checkpoint=f'{swin_files}{file}.pth')),
        seg=dict(init_cfg=dict(type='Pretrained', checkpoint=f'{mmseg_files}{file}_20220317-{digest}.pth')),
    )
    for size, width, depth, num_heads, file, digest in (
        ('t', 96, 6, 3, 'tiny_patch4_window7_224', '1cdeb081'),
        ('s', 96, 18, 3, 'small_patch4_window7_224', '7ba6d6dd'),
        ('b', 128, 18, 4, 'base_patch4_window7_224_22k', '4f79f7c0'),
    )
}
not_decayed = ['absolute_pos_embed', 'relative_position_bias_table', 'norm']
without_decay = dict(custom_keys={name: dict(decay_mult=0.0) for name in not_decayed})
