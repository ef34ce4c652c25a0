"""Detection's share of the runtime: scope, pictures and how the views of `tools/test.py --tta` are merged."""

_base_ = ['../../_base_/runtime.py']

default_scope = 'mmdet'
default_hooks = dict(visualization=dict(type='DetVisualizationHook'))
visualizer = dict(type='DetLocalVisualizer', alpha=0.5, vis_backends=[dict(type='LocalVisBackend')], name='visualizer')
tta_model = dict(type='InstanceTTA', tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100))
