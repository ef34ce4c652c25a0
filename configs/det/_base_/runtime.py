"""Detection's share of the runtime: scope, pictures, test-time augmentation."""

_base_ = ['../../_base_/runtime.py', 'tta.py']

default_scope = 'mmdet'
default_hooks = dict(visualization=dict(type='DetVisualizationHook'))
visualizer = dict(type='DetLocalVisualizer', alpha=0.5, vis_backends=[dict(type='LocalVisBackend')], name='visualizer')
