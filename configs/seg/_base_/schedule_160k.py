"""160,000 iterations of AdamW with stage-wise learning-rate decay. A leaf sets precision, ``lr`` and ``decay_rate``.

Follows facebookresearch/ConvNeXt: the rate falls linearly to 0 from iteration 0 on, and the warm-up is a factor on it.
"""

max_iters = 160000
warmup_iters = 1500

train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=16000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

param_scheduler = [
    # MMEngine reaches the last value in the iteration before `end`
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=warmup_iters + 1),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=0, end=max_iters + 1),
]
optim_wrapper = dict(
    constructor='ConvNeXtStageDecay',
    optimizer=dict(type='AdamW', betas=(0.9, 0.999), weight_decay=0.05),
)
auto_scale_lr = dict(enable=False, base_batch_size=16)  # 8 GPUs x 2 images
