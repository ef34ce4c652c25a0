"""UperNet on ADE20K for every step of the ladder, by the published recipe of its last step, ConvNeXt-T.

A leaf sets the step and the channels of its maps. Steps without published weights train from scratch unless
``init_cfg`` names weights of one's own; batch norms then take the statistics of all GPUs.
"""

_base_ = [
    '../../seg/_base_/upernet_512.py',
    '../../seg/_base_/ade20k_512.py',
    '../../seg/_base_/schedule_160k.py',
    '../../seg/_base_/runtime.py',
]

model = dict(backbone=dict(_delete_=True, type='ModernizedResNet', drop_path_rate=0.4))
optim_wrapper = dict(type='AmpOptimWrapper', optimizer=dict(lr=1e-4), paramwise_cfg=dict(decay_rate=0.9))
sync_bn = 'torch'
