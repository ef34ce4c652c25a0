"""What every run shares: the package, the screen, logs, checkpoints, seeds."""

custom_imports = dict(imports=['convnext_dense'], allow_failed_imports=False)
runner_type = 'OneLineRunner'
log_processor = dict(type='OneLineLogProcessor', window_size=50, by_epoch=True)
log_level = 'INFO'

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50, interval_exp_name=10**9),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=3),
    sampler_seed=dict(type='DistSamplerSeedHook'),
)
custom_hooks = [dict(type='CheckWeightsHook')]  # tools/train.py adds those of its screen

env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)
load_from = None
resume = False
