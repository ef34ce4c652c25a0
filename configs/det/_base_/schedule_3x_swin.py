"""36 epochs of AdamW for the backbones that ConvNeXt is compared with. A leaf sets precision and ``lr``.

Follows SwinTransformer/Swin-Transformer-Object-Detection: the schedule of ConvNeXt without layer-wise decay; norms and
position biases are not decayed.
"""

_base_ = ['schedule_3x.py']

not_decayed = ['absolute_pos_embed', 'relative_position_bias_table', 'norm']
optim_wrapper = dict(
    _delete_=True,
    optimizer=_base_.optim_wrapper.optimizer,
    paramwise_cfg=dict(custom_keys={name: dict(decay_mult=0.0) for name in not_decayed}),
)
