"""A few hundred iterations from scratch: the full schedule with short phases and no layer-wise decay.

Gradients are clipped: those of the first steps are a hundred times as large as later ones, where images are padded, and
AdamW would remember them to the end (docs/parity.md).
"""

_base_ = ['schedule_3x.py']

max_epochs = 5
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=30),
    dict(type='CosineAnnealingLR', begin=0, end=max_epochs, by_epoch=True, convert_to_iter_based=True, eta_min=0),
]
optim_wrapper = dict(paramwise_cfg=dict(decay_rate=1.0), clip_grad=dict(max_norm=1.0))
auto_scale_lr = dict(base_batch_size=8)
randomness = dict(seed=0)
