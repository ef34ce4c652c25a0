"""What is said of versions that do not work together and of a broken installation; pip's metadata is written here."""

import importlib
import logging
import re
import sys
from importlib.metadata import requires
from pathlib import Path

import pytest

from convnext_dense.compat import broken, versions
from convnext_dense.compat.versions import FORKS, OURS, UNSAID, find_installed, find_problems

CORE = ('torch 2.14.1', 'torchvision 0.29.1 torch>=2.14.0', 'numpy 2.4.6', 'mmengine 0.10.7')
MM = ('mmcv-lite 2.1.0', 'mmdet 3.3.0', 'mmsegmentation 1.2.2', 'pycocotools 2.0.11', 'ftfy 6.3.1', 'regex 2026.1.1')
ONEDL = ('onedl-mmengine 0.10.12', 'onedl-mmcv 2.3.6', 'onedl-mmdetection 3.5.1', 'onedl-mmsegmentation 1.4.2 numpy>2')


def write_metadata(folder, package, *more):
    """Let pip know a package such as 'torchvision 0.29.1 torch>=2.14.0', which needs that torch."""
    name, version, *needs = package.split()
    info = folder / f'{name.replace("-", "_")}-{version}.dist-info'
    info.mkdir()
    lines = [f'Name: {name}', f'Version: {version}', *(f'Requires-Dist: {each}' for each in (*needs, *more))]
    (info / 'METADATA').write_text('\n'.join(['Metadata-Version: 2.1', *lines, '']))


@pytest.fixture
def pip_knows(tmp_path, monkeypatch):
    """Let pip know the given packages and this one, and no others."""
    write_metadata(tmp_path, f'{OURS} 0', *requires(OURS))

    def know(*packages):
        for package in packages:
            write_metadata(tmp_path, package)
        monkeypatch.setattr(versions, 'find_spec', lambda module: None)
        monkeypatch.setattr(sys, 'path', [str(tmp_path)])
        return find_installed()

    return know


@pytest.mark.parametrize(
    'packages',
    [
        CORE,
        CORE + MM,
        CORE[:3] + ONEDL + MM[3:],
        ('torch 2.4.0a0+git1234',),  # built from source
        ('torch 3.0.0',),
        ('mmengine 0.11.0rc3',),
        ('mmdet 3.4.0',),  # which nobody has tried yet
        ('onedl-mmdetection 3.6.0',),
        ('timm 1.0.27',),  # for which only the tests are too new
        ('mmdet special', 'mmsegmentation 1.2.2 numpy>=1.*', 'numpy 2.4.6'),  # metadata of an earlier time
    ],
)
def test_no_problems(packages, pip_knows):
    installed = pip_knows(*packages)
    assert {name for versions in installed.values() for name in versions} == {each.split()[0] for each in packages}
    assert find_problems(installed) == []


def test_a_module_without_metadata_is_there(pip_knows, monkeypatch, tmp_path):
    (tmp_path / 'timm-1.0.31.dist-info').mkdir()  # what pip leaves when it is stopped
    pip_knows('torch 2.14.1')
    monkeypatch.setattr(versions, 'find_spec', lambda module: module == 'mmdet' or None)
    installed = find_installed()
    assert installed == {'torch': {'torch': '2.14.1'}, 'mmdet': {'': ''}, 'timm': {'timm': ''}}
    assert find_problems(installed) == []


@pytest.mark.parametrize(
    ('package', 'supported', 'cure'),
    [
        ('torch 2.3.1', '>=2.4', "pip install 'torch>=2.4'"),
        ('numpy 1.25.2', '>=1.26', "pip install 'numpy>=1.26'"),
        ('mmdet 2.28.0', '<3.4,>=3.3', "pip install 'mmdet<3.4,>=3.3'"),
        ('mmcv 2.0.1', '<2.2,>=2.1', "pip uninstall -y mmcv; pip install 'mmcv-lite<2.2,>=2.1'"),
        ('onedl-mmcv 2.3.5', '<2.4,>=2.3.6', "pip install 'onedl-mmcv<2.4,>=2.3.6'"),
    ],
)
def test_a_package_that_is_too_old(package, supported, cure, pip_knows):
    (problem,) = find_problems(pip_knows(package))
    assert problem == (f'{package} is too old for {OURS}, which takes {supported}', cure)


@pytest.mark.parametrize(('names', 'module'), [('mmcv-lite mmcv', 'mmcv'), ('mmengine onedl-mmengine', 'mmengine')])
def test_two_packages_of_one_module(names, module, pip_knows):
    (problem,) = find_problems(pip_knows(*CORE, *MM, {'mmcv': 'mmcv 2.1.0', 'mmengine': ONEDL[0]}[module]))
    assert problem.what.startswith(f'{names.replace(" ", " and ")} are both installed')
    assert problem.what.endswith(f' the one module {module}')
    assert problem.cure.startswith(f'pip uninstall -y {names}, then')


@pytest.mark.parametrize(
    ('package', 'needed', 'there', 'cure'),
    [
        (CORE[1], 'torch>=2.14.0', 'torch 2.13.0+cpu', 'pip install torch==2.13.0 torchvision'),
        ('mmdet 3.3.0', 'mmcv-lite<2.2', 'mmcv 2.2.0', "pip uninstall -y mmcv; pip install 'mmcv-lite<2.2'"),
        ('mmsegmentation 1.2.2', 'mmcv-lite<2.2', 'mmcv-lite 2.3.0', "pip install 'mmcv-lite<2.2'"),
        ('mmpretrain 1.2.0', 'transformers<4.56', 'transformers 5.23.0', "pip install 'transformers<4.56'"),
        ('pycocotools 2.0.7', 'numpy<2', 'numpy 2.4.6', "pip install 'numpy<2'"),
        (ONEDL[3], 'numpy>2', 'numpy 1.26.4', "pip install 'numpy>2'"),
    ],
)
def test_a_package_that_needs_another_version(package, needed, there, cure, pip_knows):
    (problem,) = find_problems(pip_knows(package, there))
    name, version, *_ = package.split()
    assert problem == (f'{name} {version} needs {needed}, and {there} is installed', cure)


@pytest.mark.parametrize(
    ('module', 'name', 'who'),
    [('mmdet', 'mmcv_maximum_version', 'mmdet<3.4'), ('mmseg', 'MMCV_MAX', 'mmsegmentation<1.3')],
)
def test_what_is_said_of_mmcv_is_true(module, name, who):
    """mmdet and mmseg themselves hold the bound."""
    pytest.importorskip('mmcv')
    bound = getattr(importlib.import_module(module), name, None)
    if bound is not None:  # a fork has none
        assert UNSAID[who] == f'mmcv-lite<{bound.removesuffix(".0")}'


def test_problems_that_let_the_import_work_are_logged_in_one_line_each(pip_knows, caplog):
    """Metadata can be wrong: these modules can be imported."""
    for module in broken.NEEDED:
        importlib.import_module(module)
    pip_knows(*CORE[2:], 'torch 2.13.0', CORE[1], 'mmcv 2.2.0', *MM[1:])
    with caplog.at_level(logging.WARNING), broken.explained_import():
        pass
    assert [record.name for record in caplog.records] == ['convnext_dense'] * len(caplog.messages)
    assert all('. Cure: pip' in message and '\n' not in message for message in caplog.messages)
    for what in ('torchvision 0.29.1 needs torch>=2.14.0', 'mmdet 3.3.0 needs mmcv-lite<2.2, and mmcv 2.2.0'):
        assert any(what in message for message in caplog.messages)


NO_OPS = "raise RuntimeError('operator torchvision::nms does not exist')"
NO_GL = "raise ImportError('libGL.so.1: cannot open shared object file: No such file or directory')"


@pytest.mark.parametrize(
    ('module', 'text', 'said', 'cure'),
    [
        ('torchvision', NO_OPS, 'torchvision 0.20 needs torch==0.1, and torch ', 'pip install torch=='),
        ('cv2', NO_GL, 'ImportError: libGL.so.1: cannot open', 'pip install .* opencv-python-headless'),
        ('torch', "raise OSError('libcublas.so.13')", 'OSError: libcublas.so.13', 'pip install --force-reinstall'),
        ('mmengine', 'import not_there', "ModuleNotFoundError: No module named 'not_there'", 'pip install not_there'),
    ],
    ids=['torchvision of another torch', 'no libGL', 'torch', 'a module that is missing'],
)
def test_the_import_says_what_is_broken_and_the_cure(module, text, said, cure, run_python, tmp_path):
    (tmp_path / f'{module}.py').write_text(text)
    if module == 'torchvision':
        write_metadata(tmp_path, 'torchvision 0.20 torch==0.1')
    result = run_python('import sys; sys.path.insert(0, sys.argv[1]); import convnext_dense', tmp_path)
    assert result.returncode == 1
    last = result.stderr[result.stderr.rindex('\nImportError: ') :]
    assert re.search(rf'convnext_dense cannot be imported \(.*because\n +{said}.*\. Cure: {cure}', last)


def test_the_ranges_of_the_forks_stand_in_the_page():
    text = (Path(__file__).parent.parent / 'docs/versions.md').read_text()
    assert all(f"'{fork}{versions}'" in text for fork, versions in FORKS.items())
