"""36 epochs of AdamW for the backbones that ConvNeXt is compared with. A leaf sets precision and ``lr``.

Follows SwinTransformer/Swin-Transformer-Object-Detection: the schedule of ConvNeXt without layer-wise decay; norms and
position biases are not decayed.
"""

_base_ = ['schedule_3x.py', '../../_base_/swin.py']

optim_wrapper = dict(_delete_=True, optimizer=_base_.optim_wrapper.optimizer, paramwise_cfg=_base_.without_decay)
