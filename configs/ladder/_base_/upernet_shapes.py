"""UperNet on the drawn data for every step of the ladder, narrow, from scratch, minutes on a CPU.

The sizes are this project's: depths 2, 3, 4, 2 and width 27 at 'resnet', those of ConvNeXt-atto from 'width' on.
A leaf sets the step, its size and the channels of its maps.
"""

_base_ = [
    '../../seg/_base_/upernet_mini.py',
    '../../seg/_base_/shapes_labels.py',
    '../../seg/_base_/schedule_mini.py',
    '../../seg/_base_/runtime.py',
]

model = dict(backbone=dict(_delete_=True, type='ModernizedResNet'))
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(lr=1e-3))
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval=500))
