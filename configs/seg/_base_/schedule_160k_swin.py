"""160,000 iterations of AdamW for Swin. A leaf sets precision and ``lr``.

Follows SwinTransformer/Swin-Transformer-Semantic-Segmentation: the schedule of ConvNeXt without stage-wise decay and
with less weight decay; norms and position biases are not decayed.
"""

_base_ = ['schedule_160k.py', '../../_base_/swin.py']

optim_wrapper = dict(
    _delete_=True,
    optimizer=dict(_base_.optim_wrapper.optimizer, weight_decay=0.01),
    paramwise_cfg=_base_.without_decay,
)
