"""A thousand iterations from scratch: the full schedule with short phases and no stage-wise decay."""

_base_ = ['schedule_160k.py']

max_iters = 1000
train_cfg = dict(max_iters=max_iters, val_interval=250)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=31),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=0, end=max_iters + 1),
]
optim_wrapper = dict(paramwise_cfg=dict(decay_rate=1.0))
auto_scale_lr = dict(base_batch_size=8)
randomness = dict(seed=0)
