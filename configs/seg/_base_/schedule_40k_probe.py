"""40,000 iterations of AdamW for a head on a frozen backbone.

Follows the linear evaluation on ADE20K of facebookresearch/dinov3: a cosine to 0 from iteration 0 on, with the warm-up
as a factor on it, no gradient clipping.
"""

_base_ = ['runtime.py']

max_iters = 40000
warmup_iters = 1500
interval = 5000  # of validations and checkpoints

train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=interval)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

param_scheduler = [
    # MMEngine reaches the full rate in the iteration before `end`
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=warmup_iters + 1),
    dict(type='CosineAnnealingLR', T_max=max_iters, eta_min=0.0, by_epoch=False, begin=0, end=max_iters),
]
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.999), weight_decay=1e-3))
default_hooks = dict(checkpoint=dict(interval=interval))
auto_scale_lr = dict(enable=False, base_batch_size=16)  # 8 GPUs x 2 images
