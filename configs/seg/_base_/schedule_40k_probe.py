"""40,000 iterations of AdamW for a head on a frozen backbone. A leaf sets precision and ``lr``.

Follows the linear evaluation on ADE20K of facebookresearch/dinov3: a cosine to 0 from iteration 0 on, with the warm-up
as a factor on it, no gradient clipping.
"""

max_iters = 40000
warmup_iters = 1500

train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=5000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

param_scheduler = [
    # MMEngine reaches the full rate in the iteration before `end`
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=warmup_iters + 1),
    dict(type='CosineAnnealingLR', T_max=max_iters, eta_min=0.0, by_epoch=False, begin=0, end=max_iters),
]
optim_wrapper = dict(optimizer=dict(type='AdamW', betas=(0.9, 0.999), weight_decay=1e-3))
auto_scale_lr = dict(enable=False, base_batch_size=16)  # 8 GPUs x 2 images
