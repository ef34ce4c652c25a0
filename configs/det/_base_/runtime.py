"""Detection's share of the runtime: scope and pictures."""

_base_ = ['../../_base_/runtime.py']

default_scope = 'mmdet'
default_hooks = dict(visualization=dict(type='DetVisualizationHook'))
visualizer = dict(type='DetLocalVisualizer', alpha=0.5, vis_backends=[dict(type='LocalVisBackend')], name='visualizer')
