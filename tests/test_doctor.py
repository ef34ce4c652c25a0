"""What the doctor prints for installations that work and for some that do not."""

import sys
import warnings
from types import SimpleNamespace

import pytest
import torch

import convnext_dense
from convnext_dense.compat import doctor
from convnext_dense.compat.broken import find_cure
from convnext_dense.compat.versions import find_installed

TITLES = ['Versions', 'Ops of mmcv', 'Patches', 'GPU', 'What does not work']


def sections(report: str) -> dict[str, list[str]]:
    """Return title -> lines."""
    blocks = [block.splitlines() for block in report.strip().split('\n\n')[1:]]
    return {title: [line[2:] for line in lines] for title, *lines in blocks}


def test_a_sound_installation(capsys):
    assert doctor.main() == 0
    text, errors = capsys.readouterr()
    assert errors == ''
    assert text.startswith(f'convnext-dense {convnext_dense.__version__}\n\nVersions\n')
    report = sections(text)
    assert list(report) == TITLES
    rows = {line.split()[0]: line.split()[1:] for line in report['Versions']}
    assert rows['Python'] == ['.'.join(map(str, sys.version_info[:3]))]
    assert rows['torch'] == [find_installed()['torch']['torch'], 'supported:', '>=2.4']
    assert report['What does not work'] == ['nothing: all that is installed works']
    assert {line.split()[0] for line in report['Patches']} <= {'applied', 'not', 'waiting'}
    assert any('weights that do not fit' in line for line in report['Patches']), "the weights' room adds its own"


def test_an_installation_of_the_core(monkeypatch, capsys):
    absent = {'mmcv', 'mmdet', 'mmseg', 'pycocotools', 'timm'}
    installed = {module: names for module, names in find_installed().items() if module not in absent}
    real = doctor.find_spec
    monkeypatch.setattr(doctor, 'find_spec', lambda module: None if module in absent else real(module))
    monkeypatch.setattr(doctor.versions, 'find_installed', lambda: installed)
    monkeypatch.setattr(doctor, 'ops_backend', lambda: None)
    assert doctor.main() == 0
    report = sections(capsys.readouterr().out)
    assert report['Ops of mmcv'] == ['mmcv is not installed']
    assert {'mmcv-lite', 'mmdet', 'mmsegmentation'} <= {line.split()[0] for line in report['Versions'] if ' - ' in line}


def test_all_is_tried_and_the_report_has_what_fails(monkeypatch, capsys):
    def fail():
        print('not for the reader')
        warnings.warn('nor this', stacklevel=1)
        raise ModuleNotFoundError("\nNo module named 'shapely'\nand so on")

    trials = (('detectors', 'os', fail), ('segmentors', 'sys', fail), ('others', 'not_a_module', fail))
    monkeypatch.setattr(doctor, 'TRIALS', trials)
    assert doctor.main() == 1
    said = capsys.readouterr()
    assert sections(said.out)['What does not work'] == [
        "detectors: ModuleNotFoundError: No module named 'shapely'",
        '  cure: pip install shapely',
        "segmentors: ModuleNotFoundError: No module named 'shapely'",
        '  cure: pip install shapely',
    ]
    assert 'not for the reader' not in said.out
    assert said.err == ''


@pytest.mark.parametrize(
    ('module', 'error', 'cure'),
    [
        ('torchvision', 'operator torchvision::nms does not exist', 'pip install torch==2.4.1 torchvision'),
        ('torchvision', "Couldn't load custom C++ ops. This can", 'pip install torch==2.4.1 torchvision'),
        (
            'mmcv',
            'ImportError: mmcv/_ext.cpython-311-x86_64-linux-gnu.so: undefined symbol: _ZN2at4_ops5zeros4callE',
            "pip uninstall -y mmcv; pip install 'mmcv-lite<2.2,>=2.1'",
        ),
        ('cv2', 'libGL.so.1: cannot open shared object', 'pip install --force-reinstall --no-deps opencv-python-headl'),
        ('cv2', 'numpy.core.multiarray failed to import', 'pip install --upgrade opencv-python'),
        ('pycocotools', 'numpy.dtype size changed, may indicate', 'pip install --upgrade pycocotools'),
        ('mmdet', "No module named 'scipy.optimize'", 'pip install scipy'),
        ('mmengine', "No module named 'cv2'", 'pip install opencv-python'),
        ('mmdet', "No module named 'mmcv'", "pip install 'mmcv-lite<2.2,>=2.1'"),
        ('mmseg', 'SyntaxError: invalid syntax', 'pip install --force-reinstall --no-deps mmsegmentation'),
        ('torch', "Could not run 'torchvision::nms' with arguments from the 'CUDA' backend", 'the same CUDA'),
        ('torch', 'CUDA error: no kernel image is available for execution', 'the compute capability of this GPU'),
        ('torch', 'The NVIDIA driver on your system is too old', 'update the driver of the GPU'),
    ],
)
def test_cures(module, error, cure):
    installed = {'torch': {'torch': '2.4.1+cu121'}} | ({'mmcv': {'mmcv': '2.1.0'}} if module == 'mmcv' else {})
    assert cure in find_cure(error, module, installed)


# GPUs, of which this machine may have none


def test_gpus(monkeypatch):
    gpu = SimpleNamespace(name='NVIDIA H200', major=9, minor=0, total_memory=140 * 2**30)
    for name, value in dict(is_available=True, device_count=2, get_device_properties=gpu).items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    assert doctor.gpu_lines() == ['NVIDIA H200, compute capability 9.0, 140 GiB'] * 2


@pytest.mark.parametrize(('cuda', 'built'), [('13.0', 'built for CUDA 13.0'), (None, 'built without CUDA')])
def test_no_gpu(cuda, built, monkeypatch):
    monkeypatch.setattr(torch.version, 'cuda', cuda)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    (line,) = doctor.gpu_lines()
    assert built in line


@pytest.mark.parametrize(
    ('said', 'is_problem'),
    [
        ('Found no NVIDIA driver on your system.', False),
        ('No CUDA GPUs are available', False),
        ('The NVIDIA driver on your system is too old (found version 11040).', True),
    ],
)
def test_a_gpu_that_pytorch_cannot_use(said, is_problem, monkeypatch):
    def init():
        raise RuntimeError(said)

    monkeypatch.setattr(torch.cuda, 'init', init)
    monkeypatch.setattr(doctor, 'TRIALS', [trial for trial in doctor.TRIALS if trial[0] == 'the GPU'])
    problems = list(doctor.run_trials({}))
    assert [problem.what for problem in problems] == [f'the GPU: RuntimeError: {said}'] * is_problem


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_a_real_gpu():
    assert doctor.gpu_lines()[0].startswith(f'{torch.cuda.get_device_name(0)}, compute capability ')
    assert list(doctor.run_trials(find_installed())) == []
