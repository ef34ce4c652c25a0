"""36 epochs of AdamW with layer-wise learning-rate decay. A leaf sets precision, ``lr`` and ``decay_rate``.

Follows facebookresearch/ConvNeXt: lr x 0.1 after epochs 27 and 33, no gradient clipping.
"""

max_epochs = 36
warmup_iters = 500

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

param_scheduler = [
    # MMEngine reaches the full rate in the iteration before `end`
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=warmup_iters + 1),
    dict(type='MultiStepLR', begin=0, end=max_epochs, by_epoch=True, milestones=[27, 33], gamma=0.1),
]
optim_wrapper = dict(
    constructor='ConvNeXtLayerDecay', optimizer=dict(type='AdamW', betas=(0.9, 0.999), weight_decay=0.05)
)
auto_scale_lr = dict(enable=False, base_batch_size=16)  # 8 GPUs x 2 images
