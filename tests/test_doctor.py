"""What the doctor prints for installations that work and for some that do not."""

import re
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import convnext_dense
from convnext_dense import compat as stack
from convnext_dense.compat import doctor
from convnext_dense.compat.doctor import Failure, Trial
from convnext_dense.compat.patches import Patch, PatchStatus
from convnext_dense.compat.versions import Problem, find_installed

TITLES = ['Versions', 'Ops of mmcv', 'Patches', 'GPU', 'What does not work']


def run_doctor(*paths: Path) -> subprocess.CompletedProcess:
    """Run the doctor with folders that come first on Python's path."""
    start = f'import sys; sys.path[:0] = {[str(path) for path in paths]}'
    code = f'{start}; import runpy; runpy.run_module("convnext_dense.compat.doctor", run_name="__main__")'
    command = [sys.executable, '-c', code] if paths else [sys.executable, '-m', 'convnext_dense.compat.doctor']
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def pip_version(name: str) -> str:
    return find_installed()[name][name]


def sections(report: str) -> dict[str, list[str]]:
    """Return title -> lines."""
    blocks = [block.splitlines() for block in report.strip().split('\n\n')[1:]]
    return {title: [line[2:] for line in lines] for title, *lines in blocks}


def test_a_sound_installation():
    result = run_doctor()
    assert (result.returncode, result.stderr) == (0, '')
    assert result.stdout.startswith(f'convnext-dense {convnext_dense.__version__}\n\nVersions\n')
    report = sections(result.stdout)
    assert list(report) == TITLES
    rows = {line.split()[0]: line.split()[1:] for line in report['Versions']}
    assert rows['Python'] == ['.'.join(map(str, sys.version_info[:3])), 'supported']
    assert rows['torch'][:2] == [pip_version('torch'), 'supported' if torch.__version__ >= '2.10' else 'supported;']
    assert report['What does not work'] == ['nothing: all that is installed works']
    statuses = {line.split()[0] for line in report['Patches'] if not line.startswith(' ')}
    assert statuses <= {'applied', 'not', 'waiting'}
    assert any('weights that do not fit' in line for line in report['Patches']), "the weights' room adds its own"
    assert max(map(len, result.stdout.splitlines())) <= doctor.WIDTH


def test_pytorch_and_torchvision_of_different_times(tmp_path):
    """This torchvision says what a real one says when its compiled part does not load."""
    (tmp_path / 'torchvision').mkdir()
    error = "raise RuntimeError('operator torchvision::nms does not exist')"
    (tmp_path / 'torchvision/__init__.py').write_text(error)
    info = tmp_path / 'torchvision-0.20.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text(
        'Metadata-Version: 2.1\nName: torchvision\nVersion: 0.20\nRequires-Dist: torch==0.1\n'
    )
    result = run_doctor(tmp_path)
    assert (result.returncode, result.stderr) == (1, '')
    assert 'Traceback' not in result.stdout
    version = torch.__version__.partition('+')[0]
    missing = ' (and so the ops of mmcv, detectors, segmentors)' if 'mmdet' in find_installed() else ''
    assert sections(result.stdout)['What does not work'] == [
        f'torchvision 0.20 needs torch==0.1, and torch {pip_version("torch")} is installed',
        f"torchvision's ops{missing}: RuntimeError: operator torchvision::nms does not exist",
        f'    cure: pip install torch=={version} torchvision',
    ]


def test_a_pytorch_that_does_not_load(tmp_path):
    (tmp_path / 'torch.py').write_text("raise ImportError('libcublas.so.13: cannot open shared object file')")
    result = run_doctor(tmp_path)
    assert (result.returncode, result.stderr) == (1, '')
    report = sections(result.stdout)
    assert report['GPU'] == ['not examined, since PyTorch fails']
    assert report['What does not work'][0].startswith("PyTorch (and so torchvision's ops, the backbone, training and ")
    assert report['What does not work'][0].endswith(': ImportError: libcublas.so.13: cannot open shared object file')
    assert report['What does not work'][1].startswith('    cure: pip install --force-reinstall --no-deps torch; where')


def test_an_installation_of_the_core(monkeypatch, capsys):
    absent = {'mmcv', 'mmdet', 'mmseg', 'pycocotools', 'ftfy', 'regex', 'timm', 'mmpretrain', 'transformers'}
    installed = {module: names for module, names in find_installed().items() if module not in absent}
    real = doctor.find_spec
    monkeypatch.setattr(doctor, 'find_spec', lambda module: None if module in absent else real(module))
    monkeypatch.setattr(doctor.versions, 'find_installed', lambda: installed)
    monkeypatch.setattr(stack, 'ops_backend', lambda: None)
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


def test_what_needs_a_failure_is_not_tried(monkeypatch):
    def fail():
        print('not for the reader')
        warnings.warn('nor this', stacklevel=1)
        raise OSError('\nlib.so: cannot open\nand so on')

    tried = []
    monkeypatch.setattr(
        doctor,
        'TRIALS',
        (
            Trial('one', 'os', fail),
            Trial('two', 'sys', lambda: tried.append('two'), needs=('os',)),
            Trial('three', 're', lambda: tried.append('three'), needs=('sys',)),
            Trial('four', 'math', lambda: tried.append('four')),
            Trial('five', 'not_a_module', fail),
        ),
    )
    (failure,) = doctor.run_trials()
    assert tried == ['four']
    assert doctor.describe(failure) == 'one (and so two, three): OSError: lib.so: cannot open'


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
    assert doctor.find_cure(Failure('a trial', module, error, []), installed) == cure


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
    monkeypatch.setattr(stack, 'patch_report', lambda: [PatchStatus(patch, 'not needed', 'word ' * 40)])
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
    monkeypatch.setattr(torch.cuda.nccl, 'version', lambda: (2, 27, 3))
    monkeypatch.setattr(torch.distributed, 'is_nccl_available', lambda: True)
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
            'NCCL 2.27.3: several GPUs can train together',
        ],
        [],
    )


def test_a_torchvision_without_kernels_for_the_gpu(two_gpus, monkeypatch):
    error = "NotImplementedError: Could not run 'torchvision::nms' with arguments from the 'CUDA' backend."
    two_gpus['run_nms', 'cuda'] = error
    monkeypatch.setattr(torch.distributed, 'is_nccl_available', lambda: False)
    lines, (failure,) = doctor.examine_gpu()
    assert lines[2:] == [
        'the backbone on the GPU: works',
        "torchvision's ops on the GPU: failed",
        'NCCL is not in this PyTorch: several GPUs cannot train together',
    ]
    assert doctor.describe(failure) == f"torchvision's ops on the GPU: {error}"


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
    assert doctor.describe(failure) == 'the GPU: CUDA initialization: The NVIDIA driver on your system is too old.'


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_a_real_gpu():
    lines, failures = doctor.examine_gpu()
    assert lines[0].startswith(f'0: {torch.cuda.get_device_name(0)}, compute capability ')
    assert not failures
