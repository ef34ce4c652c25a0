"""Swin, with which ConvNeXt is compared: sizes (arXiv 2103.14030, Section 3.3), and what has no weight decay."""

swin = {
    size: dict(
        backbone=dict(
            type='SwinTransformer',
            embed_dims=width,
            depths=[2, 2, depth, 2],
            num_heads=[num_heads * 2**i for i in range(4)],
        ),
        channels=[width * 2**i for i in range(4)],
    )
    for size, width, depth, num_heads in (('t', 96, 6, 3), ('s', 96, 18, 3), ('b', 128, 18, 4))
}
not_decayed = ['absolute_pos_embed', 'relative_position_bias_table', 'norm']
without_decay = dict(custom_keys={name: dict(decay_mult=0.0) for name in not_decayed})
