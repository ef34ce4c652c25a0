"""Segmentation's share of the runtime: scope, iterations instead of epochs, pictures, test-time augmentation."""

_base_ = ['../../_base_/runtime.py']

default_scope = 'mmseg'
log_processor = dict(by_epoch=False)
default_hooks = dict(
    logger=dict(log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=16000),
    visualization=dict(type='SegVisualizationHook'),
)
visualizer = dict(type='SegLocalVisualizer', alpha=0.5, vis_backends=[dict(type='LocalVisBackend')], name='visualizer')
tta_model = dict(type='WholeImageTTA')  # `tools/test.py --tta` sees the whole image, without windows
env_cfg = dict(cudnn_benchmark=True)  # crops are of one size
