"""The listed messages are dropped, and none that only resembles them."""

import logging
import warnings

import pytest

from convnext_dense.stack import quiet

SAMPLES = {
    'mmcv.cnn.bricks.transformer': (ImportWarning, '``MultiScaleDeformableAttention`` has been moved to ``mmcv.ops``'),
    'mmengine.optim.optimizer.amp_optimizer_wrapper': (
        FutureWarning,
        "`torch.cuda.amp.GradScaler(args...)` is deprecated. Please use `torch.amp.GradScaler('cuda', args...)` instead.",
    ),
    'torch.functional': (
        UserWarning,
        'torch.meshgrid: in an upcoming release, it will be required to pass the indexing argument. (Triggered at)',
    ),
    'mmseg.models.builder': (
        UserWarning,
        '``build_loss`` would be deprecated soon, please use ``mmseg.registry.MODELS.build()`` ',
    ),
    'mmseg.engine.hooks.visualization_hook': (
        UserWarning,
        'The draw is False, it means that the hook for visualization will not take effect. The results will NOT be',
    ),
    'mmengine.visualization.visualizer': (
        UserWarning,
        "Failed to add <class 'mmengine.visualization.vis_backend.LocalVisBackend'>, please provide the `save_dir` arg",
    ),
}


def shown(message: str, category: type[Warning], module: str) -> bool:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        quiet.silence_warnings()
        warnings.warn_explicit(message, category, 'file.py', 1, module=module)
    return bool(caught)


def test_every_entry_has_a_sample_and_a_reason():
    assert len(SAMPLES) == len(quiet.WARNINGS)
    assert all(len(warned.reason) > 20 for warned in quiet.WARNINGS)
    assert all(len(reason) > 20 for reason in quiet.LOG_LINES.values())


@pytest.mark.parametrize('module', SAMPLES)
def test_a_listed_warning_is_dropped_and_its_neighbours_are_shown(module):
    category, message = SAMPLES[module]
    assert not shown(message, category, module)
    assert shown(message, category, 'users_own')
    assert shown(f'Note: {message}', category, module)
    assert shown(message, DeprecationWarning, module)


def test_real_warnings_are_dropped():
    import torch

    # What the import in MMEngine leads to, without a GPU
    code = compile('from torch.cuda.amp import GradScaler\nGradScaler(enabled=False)', 'amp.py', 'exec')
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        exec(code, {'__name__': 'mmengine.optim.optimizer.amp_optimizer_wrapper'})
        torch.meshgrid(torch.arange(2), torch.arange(2))
    assert {warning.category for warning in caught} <= {FutureWarning, UserWarning}
    assert caught
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        quiet.silence_warnings()
        exec(code, {'__name__': 'mmengine.optim.optimizer.amp_optimizer_wrapper'})
        torch.meshgrid(torch.arange(2), torch.arange(2))
    assert not caught


def test_silencing_again_adds_no_filter():
    with warnings.catch_warnings():
        quiet.silence_warnings()
        before = list(warnings.filters)
        quiet.silence_warnings()
        assert warnings.filters == before


@pytest.mark.parametrize(
    ('line', 'expected'),
    [
        ('"FileClient" will be deprecated in future. Please use io functions in', False),
        ('"HardDiskBackend" is the alias of "LocalBackend" and the former will be deprecated in future.', False),
        ('The prefix is not set in metric class IoUMetric.', False),
        ('The prefix is not set in metric class MyMetric.', True),
        ('Failed to search registry with scope "mmdet" in the "function" registry tree. As a workaround', False),
        ('Failed to search registry with scope "mmdet" in the "model" registry tree. As a workaround', True),
        ('The model and loaded state dict do not match exactly', True),
    ],
)
def test_a_listed_log_line_is_dropped(line, expected, monkeypatch):
    from mmengine.logging import logger

    class FilterDuplicateWarning(logger.FilterDuplicateWarning):
        """Restored after the test."""

    monkeypatch.setattr(logger, 'FilterDuplicateWarning', FilterDuplicateWarning)
    quiet.silence_log_lines(logger)
    record = logging.LogRecord('mmengine', logging.WARNING, 'file.py', 1, line, None, None)
    upstream_repeats = FilterDuplicateWarning('mmengine')
    assert upstream_repeats.filter(record) is expected
    assert upstream_repeats.filter(record) is False, 'MMEngine drops repetitions'
