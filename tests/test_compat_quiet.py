"""The commands drop the listed messages and none that only resembles them; an import drops none for a program."""

import logging
import warnings

import pytest
from mmengine.logging.logger import FilterDuplicateWarning

from convnext_dense import cli
from convnext_dense.compat import warnings as quiet

# Of one row with one text, of rows for several texts and several modules, and of those whose patterns have escapes
SAMPLES = [
    (UserWarning, 'The shape of value will convert from torch.Size([4, 4]) to', 'mmengine.structures.pixel_data'),
    (UserWarning, '``build_loss`` would be deprecated soon, please use ``mmseg.registry', 'mmseg.models.builder'),
    (FutureWarning, '`torch.cuda.amp.GradScaler(args...)` is deprecated. Please use', 'mmengine.optim.amp'),
    (FutureWarning, '`torch.cpu.amp.autocast(args...)` is deprecated. Please use', 'torch.utils.checkpoint'),
    (
        UserWarning,
        "Failed to add <class 'mmengine.visualization.vis_backend.LocalVisBackend'>, please provide the `save_dir` arg",
        'mmengine.visualization.visualizer',
    ),
]


@pytest.fixture
def silence(monkeypatch):
    """Silence for one test, from a state in which nothing is silenced."""
    monkeypatch.setattr(FilterDuplicateWarning, 'filter', FilterDuplicateWarning.filter)
    quiet.silence.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter('always')
        yield quiet.silence
    quiet.silence.cache_clear()


def shown(message: str, category: type[Warning], module: str) -> bool:
    with warnings.catch_warnings(record=True) as caught:
        warnings.warn_explicit(message, category, 'file.py', 1, module=module)
    return bool(caught)


@pytest.mark.parametrize(('category', 'message', 'module'), SAMPLES)
def test_a_listed_warning_is_dropped_and_its_neighbours_are_shown(category, message, module, silence):
    assert shown(message, category, module)
    silence()
    assert not shown(message, category, module)
    assert shown(message, category, 'users_own')
    assert shown(f'Note: {message}', category, module)
    assert shown(message, BytesWarning, module)


@pytest.mark.parametrize(
    ('line', 'is_shown'),
    [
        ('"FileClient" will be deprecated in future. Please use io functions in', False),
        ('The prefix is not set in metric class IoUMetric.', False),
        ('The prefix is not set in metric class MyMetric.', True),
        ('Failed to search registry with scope "mmdet" in the "function" registry tree. As a workaround', False),
        ('Failed to search registry with scope "mmdet" in the "model" registry tree. As a workaround', True),
    ],
)
def test_a_listed_log_line_is_dropped_and_its_neighbours_are_shown(line, is_shown, silence):
    silence()
    record = logging.LogRecord('mmengine', logging.WARNING, 'file.py', 1, line, None, None)
    upstream_filter = FilterDuplicateWarning()
    assert upstream_filter.filter(record) is is_shown
    assert upstream_filter.filter(record) is False, 'MMEngine drops repetitions'


def test_every_command_is_silenced(silence, monkeypatch, capsys):
    category, message, module = SAMPLES[0]
    monkeypatch.setitem(cli.COMMANDS, 'run', cli.Command('Run', 'a function', shown=True))
    monkeypatch.setattr(cli, 'resolve_name', lambda place: lambda: shown(message, category, module))
    cli.main('run', [])
    assert capsys.readouterr().out == 'False\n'


IN_A_PROGRAM = """
import sys, warnings
import convnext_dense
from mmengine.logging import MMLogger
for number in range(2):
    warnings.warn_explicit('`reduce_zero_label` will be deprecated', UserWarning, 'a.py', number, sys.argv[1])
    MMLogger.get_instance('run').warning(f'"FileClient" will be deprecated in future {number}')
    convnext_dense.compat.silence()
"""


def test_an_import_silences_nothing_for_a_program(run_python):
    result = run_python(IN_A_PROGRAM, 'mmseg.datasets.transforms.loading')
    said = result.stdout + result.stderr
    assert (said.count('`reduce_zero_label`'), said.count('"FileClient"')) == (1, 1), said


def test_an_import_of_ours_is_quiet_and_keeps_the_filters_of_libraries():
    def warn_as_torch_does(message):
        with warnings.catch_warnings():
            warnings.simplefilter('always')  # which overrides all filters
            warnings.warn(message, DeprecationWarning, stacklevel=2)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        before = list(warnings.filters)
        with quiet.quiet_import():
            warn_as_torch_does('`TorchScript` support for functional optimizers is deprecated and will be removed')
            warn_as_torch_does('something else')
            assert not shown(SAMPLES[0][1], UserWarning, SAMPLES[0][2])
            warnings.filterwarnings('ignore', 'of a library')
        assert [each[:2] for each in warnings.filters if each not in before] == [warnings.filters[0][:2]]
        assert not shown('of a library', UserWarning, 'library')
        assert shown(SAMPLES[0][1], UserWarning, SAMPLES[0][2])
    assert [str(warning.message) for warning in caught] == ['something else']
