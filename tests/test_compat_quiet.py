"""The listed messages are dropped, and none that only resembles them."""

import warnings

import pytest

from convnext_dense.compat import warnings as quiet

SAMPLES = {
    'mmcv.cnn.bricks.transformer': (ImportWarning, '``MultiScaleDeformableAttention`` has been moved to ``mmcv.ops``'),
    'mmengine.optim.optimizer.amp_optimizer_wrapper': (
        FutureWarning,
        '`torch.cuda.amp.GradScaler(args...)` is deprecated. Please use `torch.amp.GradScaler',
    ),
    'torch.functional': (
        UserWarning,
        'torch.meshgrid: in an upcoming release, it will be required to pass the indexing argument. (Triggered at)',
    ),
    'mmcv.ops.masked_conv': (UserWarning, 'This overload of addmm is deprecated:\n\taddmm(Number beta, Tensor input,'),
    'mmseg.models.builder': (
        UserWarning,
        '``build_loss`` would be deprecated soon, please use ``mmseg.registry.MODELS.build()`` ',
    ),
    'mmseg.models.losses.cross_entropy_loss': (
        UserWarning,
        'Default ``avg_non_ignore`` is False, if you would like to ignore the certain label and average loss over',
    ),
    'mmseg.engine.hooks.visualization_hook': (
        UserWarning,
        'The draw is False, it means that the hook for visualization will not take effect. The results will NOT be',
    ),
    'mmdet.models.roi_heads.mask_heads.fcn_mask_head': (
        UserWarning,
        'To copy construct from a tensor, it is recommended to use sourceTensor.detach().clone() or',
    ),
    'torch.autograd.graph': (UserWarning, 'Grad strides do not match bucket view strides. This may indicate'),
    'mmengine.model.wrappers.distributed': (FutureWarning, '`broadcast_buffers` is deprecated. Use `forward_sync'),
    'torch.utils.checkpoint': (FutureWarning, '`torch.cpu.amp.autocast(args...)` is deprecated. Please use'),
    'mmseg.datasets.transforms.loading': (UserWarning, '`reduce_zero_label` will be deprecated, if you would like to'),
    'mmengine.structures.pixel_data': (UserWarning, 'The shape of value will convert from torch.Size([4, 4]) to'),
    'torch.utils.data.dataloader': (
        UserWarning,
        "'pin_memory' argument is set as true but no accelerator is found, then device pinned memory",
    ),
    'mmengine.utils.misc': (DeprecationWarning, "'maxsplit' is passed as positional argument"),
    'mmengine.visualization.visualizer': (
        UserWarning,
        "Failed to add <class 'mmengine.visualization.vis_backend.LocalVisBackend'>, please provide the `save_dir` arg",
    ),
    'mmdet.evaluation.metrics.faster_coco_metric': (
        UserWarning,
        'faster_coco_eval is not installed, metrics will not be computed. Please install it by: mim install',
    ),
}


def shown(message: str, category: type[Warning], module: str) -> bool:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        quiet.silence_warnings()
        warnings.warn_explicit(message, category, 'file.py', 1, module=module)
    return bool(caught)


def test_every_entry_has_a_sample():
    assert len(SAMPLES) == len(quiet.WARNINGS)


@pytest.mark.parametrize('module', SAMPLES)
def test_a_listed_warning_is_dropped_and_its_neighbours_are_shown(module):
    category, message = SAMPLES[module]
    assert not shown(message, category, module)
    assert shown(message, category, 'users_own')
    assert shown(f'Note: {message}', category, module)
    assert shown(message, BytesWarning, module)


def test_silencing_again_adds_no_filter():
    with warnings.catch_warnings():
        quiet.silence_warnings()
        before = list(warnings.filters)
        quiet.silence_warnings()
        assert warnings.filters == before


def test_the_warning_that_overrides_filters_is_dropped_alone():
    def warn_as_torch_does(message):
        with warnings.catch_warnings():
            warnings.simplefilter('always')
            warnings.warn(message, DeprecationWarning, stacklevel=2)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        with quiet.without_torchscript_warning():
            warn_as_torch_does('`TorchScript` support for functional optimizers is deprecated and will be removed')
            warn_as_torch_does('something else')
    assert [str(warning.message) for warning in caught] == ['something else']
