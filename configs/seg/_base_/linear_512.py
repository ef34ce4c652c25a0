"""A batch norm and one linear layer on the last map of a frozen backbone, for crops of 512 pixels.

Follows the linear evaluation on ADE20K of facebookresearch/dinov3. A leaf sets ``arch``, the weights, with the trained
norm of the last map, and ``decode_head.in_channels``.
"""

_base_ = ['upernet_512.py']

head = _base_.model.decode_head
model = dict(
    backbone=dict(out_indices=(3,), frozen_stages=4, frozen_norms=True),
    decode_head=dict(
        _delete_=True,
        type='LinearHead',
        in_index=0,
        **{key: head[key] for key in ('dropout_ratio', 'num_classes', 'norm_cfg', 'align_corners', 'loss_decode')},
    ),
    auxiliary_head=None,
)
