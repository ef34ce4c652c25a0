"""What the doctor prints for installations that work and for some that do not."""

import re
import subprocess
import sys
import warnings
from types import SimpleNamespace

import pytest
import torch

import convnext_dense
from convnext_dense.compat import doctor
from convnext_dense.compat.broken import find_cure
from convnext_dense.compat.doctor import Trial
from convnext_dense.compat.patches import Patch, PatchStatus
from convnext_dense.compat.versions import Problem, find_installed

TITLES = ['Versions', 'Ops of mmcv', 'Patches', 'GPU', 'What does not work']


def pip_version(name: str) -> str:
    return find_installed()[name][name]


def sections(report: str) -> dict[str, list[str]]:
    """Return title -> lines."""
    blocks = [block.splitlines() for block in report.strip().split('\n\n')[1:]]
    return {title: [line[2:] for line in lines] for title, *lines in blocks}


def test_a_sound_installation():
    command = [sys.executable, '-m', 'convnext_dense.compat.doctor']
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (result.returncode, result.stderr) == (0, '')
    assert result.stdout.startswith(f'convnext-dense {convnext_dense.__version__}\n\nVersions\n')
    report = sections(result.stdout)
    assert list(report) == TITLES
    rows = {line.split()[0]: line.split()[1:] for line in report['Versions']}
    assert rows['Python'] == ['.'.join(map(str, sys.version_info[:3]))]
    assert rows['torch'][:2] == [pip_version('torch'), 'supported' if torch.__version__ >= '2.10' else 'supported;']
    assert report['What does not work'] == ['nothing: all that is installed works']
    statuses = {line.split()[0] for line in report['Patches'] if not line.startswith(' ')}
    assert statuses <= {'applied', 'not', 'waiting'}
    assert any('weights that do not fit' in line for line in report['Patches']), "the weights' room adds its own"
    assert max(map(len, result.stdout.splitlines())) <= doctor.WIDTH


def test_an_installation_of_the_core(monkeypatch, capsys):
    absent = {'mmcv', 'mmdet', 'mmseg', 'pycocotools', 'ftfy', 'regex', 'timm', 'mmpretrain', 'transformers'}
    installed = {module: names for module, names in find_installed().items() if module not in absent}
    real = doctor.find_spec
    monkeypatch.setattr(doctor, 'find_spec', lambda module: None if module in absent else real(module))
    monkeypatch.setattr(doctor.versions, 'find_installed', lambda: installed)
    monkeypatch.setattr(doctor, 'ops_backend', lambda: None)
    assert doctor.main() == 0
    report = sections(capsys.readouterr().out)
    assert report['Ops of mmcv'] == ['mmcv is not installed']
    assert [re.sub(' +', ' ', line) for line in report['Versions'][-3:]] == [
        'mmdet - not installed: no detectors',
        'mmsegmentation - not installed: no segmentors',
        'timm - not installed: no weights by timm://NAME',
    ]


def test_the_exit_status_and_the_cure_of_what_fails(monkeypatch, capsys):
    def fail():
        raise ModuleNotFoundError("No module named 'shapely'")

    monkeypatch.setattr(doctor, 'TRIALS', (Trial('detectors', 'sys', fail),))
    assert doctor.main() == 1
    assert sections(capsys.readouterr().out)['What does not work'] == [
        "detectors: ModuleNotFoundError: No module named 'shapely'",
        '    cure: pip install shapely',
    ]


def test_all_is_tried_and_nothing_but_the_report_is_shown(monkeypatch, capsys):
    def fail():
        print('not for the reader')
        warnings.warn('nor this', stacklevel=1)
        raise OSError('\nlib.so: cannot open\nand so on')

    trials = (Trial('one', 'os', fail), Trial('two', 'sys', fail), Trial('three', 'not_a_module', fail))
    monkeypatch.setattr(doctor, 'TRIALS', trials)
    assert [problem.what for problem in doctor.run_trials(find_installed())] == [
        'one: OSError: lib.so: cannot open',
        'two: OSError: lib.so: cannot open',
    ]
    assert capsys.readouterr() == ('', '')


@pytest.mark.parametrize(
    ('module', 'error', 'cure'),
    [
        (
            'torchvision',
            'RuntimeError: operator torchvision::nms does not exist',
            'pip install torch==2.4.1 torchvision',
        ),
        (
            'torchvision',
            "RuntimeError: Couldn't load custom C++ ops. This can happen if",
            'pip install torch==2.4.1 torchvision',
        ),
        (
            'mmcv',
            'ImportError: mmcv/_ext.cpython-311-x86_64-linux-gnu.so: undefined symbol: _ZN2at4_ops5zeros4callE',
            'compile this mmcv for the installed PyTorch, or take the other one: pip uninstall -y mmcv; pip install '
            "'mmcv-lite<2.2,>=2.1'",
        ),
        (
            'cv2',
            'ImportError: libGL.so.1: cannot open shared object file: No such file or directory',
            'pip install --force-reinstall --no-deps opencv-python-headless',
        ),
        ('cv2', 'ImportError: numpy.core.multiarray failed to import', 'pip install --upgrade opencv-python'),
        (
            'pycocotools',
            'ValueError: numpy.dtype size changed, may indicate binary incompatibility.',
            'pip install --upgrade pycocotools',
        ),
        ('mmdet', "ModuleNotFoundError: No module named 'scipy.optimize'", 'pip install scipy'),
        ('mmengine', "ModuleNotFoundError: No module named 'cv2'", 'pip install opencv-python'),
        (
            'mmseg',
            'SyntaxError: invalid syntax',
            'pip install --force-reinstall --no-deps mmsegmentation; where that is no help, python -c "import mmseg" '
            'says more',
        ),
        (
            'torch',
            "NotImplementedError: Could not run 'torchvision::nms' with arguments from the 'CUDA' backend. This could",
            'reinstall torch and torchvision from one place, both built for the same CUDA',
        ),
        (
            'torch',
            'RuntimeError: CUDA error: no kernel image is available for execution on the device',
            'install a PyTorch that was built for the compute capability of this GPU',
        ),
        (
            'torch',
            'CUDA initialization: The NVIDIA driver on your system is too old (found version 11040).',
            'update the driver of the GPU, or install a PyTorch that was built for an older CUDA',
        ),
    ],
)
def test_cures(module, error, cure):
    installed = {'torch': {'torch': '2.4.1+cu121'}, 'mmcv': {'mmcv': '2.1.0'}}
    assert find_cure(error, module, installed) == cure


def test_problems_with_one_cure_stand_together():
    problems = [Problem('a', 'x'), Problem('b', 'y'), Problem('c', 'x')]
    assert doctor.problem_lines(problems) == ['a', 'c', '    cure: x', 'b', '    cure: y']


def test_an_old_pytorch_reads_files_of_strangers_at_a_risk():
    (line,) = [line for line in doctor.version_lines({'torch': {'torch': '2.6.0'}}) if line.startswith('torch ')]
    assert line.split(maxsplit=2)[2] == 'supported; before 2.10 a .pth file of a stranger can attack it'
    (line,) = [line for line in doctor.version_lines({'torch': {'': ''}}) if line.startswith('torch ')]
    assert line.split() == ['torch', '?', 'untested']


def test_a_clone_that_was_never_installed(monkeypatch):
    monkeypatch.setattr(doctor.versions, '_our_requirements', list)
    *rows, note = doctor.version_lines({'torch': {'torch': '2.14.1'}})
    assert rows[1].split() == ['torch', '2.14.1', 'untested']
    assert note == 'The supported ranges are unknown, since pip does not know convnext-dense: pip install -e .'


def test_patches_are_wrapped(monkeypatch):
    patch = Patch('name', ('torch',), '', 'torch', 'link', 'why')
    monkeypatch.setattr(doctor, 'patch_report', lambda: [PatchStatus(patch, 'not needed', 'word ' * 40)])
    first, *others = doctor.patch_lines()
    assert first.startswith('not needed  name: word word')
    assert len(others) == 1
    assert others[0].startswith(' ' * 14 + 'word')


# GPUs, of which this machine may have none


@pytest.fixture
def two_gpus(monkeypatch):
    gpu = SimpleNamespace(name='NVIDIA H200', major=9, minor=0, total_memory=140 * 2**30)
    for name, value in dict(is_available=True, device_count=2, get_device_properties=gpu).items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setattr(torch.version, 'cuda', '13.0')
    errors = {}
    monkeypatch.setattr(doctor, 'try_quietly', lambda run: errors.get((run.func.__name__, *run.args), ''))
    return errors


def test_gpus(two_gpus):
    assert doctor.examine_gpu() == (
        [
            '0: NVIDIA H200, compute capability 9.0, 140 GiB',
            '1: NVIDIA H200, compute capability 9.0, 140 GiB',
            'the backbone on the GPU: works',
            "torchvision's ops on the GPU: works",
        ],
        [],
    )


def test_a_torchvision_without_kernels_for_the_gpu(two_gpus):
    error = "NotImplementedError: Could not run 'torchvision::nms' with arguments from the 'CUDA' backend."
    two_gpus['run_nms', 'cuda'] = error
    lines, (failure,) = doctor.examine_gpu()
    assert lines[2:] == [
        'the backbone on the GPU: works',
        "torchvision's ops on the GPU: failed",
    ]
    assert failure.what == f"torchvision's ops on the GPU: {error}"


@pytest.mark.parametrize(('cuda', 'built'), [('13.0', 'built for CUDA 13.0'), (None, 'built without CUDA')])
def test_no_gpu(cuda, built, monkeypatch):
    monkeypatch.setattr(torch.version, 'cuda', cuda)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    assert doctor.examine_gpu() == ([f'none that PyTorch, {built}, can use: runs use the CPU'], [])


def test_an_old_driver(monkeypatch):
    def is_available():
        warnings.warn('CUDA initialization: The NVIDIA driver on your system is too old.\nUpdate it', stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, 'is_available', is_available)
    _, (failure,) = doctor.examine_gpu()
    assert failure.what == 'the GPU: CUDA initialization: The NVIDIA driver on your system is too old.'


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_a_real_gpu():
    lines, failures = doctor.examine_gpu()
    assert lines[0].startswith(f'0: {torch.cuda.get_device_name(0)}, compute capability ')
    assert not failures
