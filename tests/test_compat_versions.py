"""Which versions are judged how, what is known not to work and what is said of it; pip's metadata is written here."""

import importlib.metadata
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from convnext_dense.compat import broken, versions
from convnext_dense.compat.versions import FORKS, KNOWN_TO_FAIL, PACKAGES, find_installed, find_problems, judge

CORE = ('torch 2.14.1', 'torchvision 0.29.1 torch>=2.14.0', 'numpy 2.4.6', 'mmengine 0.10.7')
MM = ('mmcv-lite 2.1.0', 'mmdet 3.3.0', 'mmsegmentation 1.2.2', 'pycocotools 2.0.11', 'ftfy 6.3.1', 'regex 2026.1.1')
ONEDL = ('onedl-mmengine 0.10.12', 'onedl-mmcv 2.3.6', 'onedl-mmdetection 3.5.1', 'onedl-mmsegmentation 1.4.2 numpy>2')


def write_metadata(folder, *packages):
    """Let pip know packages such as 'torchvision 0.29.1 torch>=2.14.0', which needs that torch."""
    for package in packages:
        name, version, *requirements = package.split()
        info = folder / f'{name.replace("-", "_")}-{version}.dist-info'
        info.mkdir()
        lines = [f'Name: {name}', f'Version: {version}', *(f'Requires-Dist: {each}' for each in requirements)]
        (info / 'METADATA').write_text('\n'.join(['Metadata-Version: 2.1', *lines, '']))


@pytest.fixture
def pip_knows(tmp_path, monkeypatch):
    """Let pip know the given packages and this one, and no others."""
    ours = importlib.metadata.requires(versions.OURS)

    def know(*packages):
        write_metadata(tmp_path, *packages)
        monkeypatch.setattr(versions, '_our_requirements', lambda: ours)
        monkeypatch.setattr(versions, '_is_there', lambda module: False)
        monkeypatch.setattr(sys, 'path', [str(tmp_path)])
        return find_installed()

    return know


def with_versions(packages, **versions):
    """Replace versions: mmdet='3.4.0'."""
    return [' '.join([each.split()[0], versions.get(each.split()[0], each.split()[1])]) for each in packages]


@pytest.mark.parametrize('packages', [CORE, CORE + MM, CORE[:3] + ONEDL + MM[3:]], ids=['core', 'mm', 'onedl'])
def test_what_is_tested_is_supported(packages, pip_knows):
    installed = pip_knows(*packages)
    assert {name for versions in installed.values() for name in versions} == {each.split()[0] for each in packages}
    assert {judge(module, installed) for module in installed} == {'supported'}
    assert find_problems(installed) == []


@pytest.mark.parametrize(
    ('package', 'verdict'),
    [
        ('torch 2.4.0', 'supported'),
        ('torch 2.4.0a0+git1234', 'supported'),  # built from source
        ('torch 2.13.0+cpu', 'supported'),
        ('torch 2.3.1', 'too old'),
        ('torch 3.0.0', 'supported'),
        ('numpy 1.25.2', 'too old'),
        ('mmengine 0.11.0rc3', 'supported'),
        ('mmengine-lite 0.10.6', 'too old'),
        ('mmcv 2.1.0', 'supported'),
        ('mmcv 2.0.1', 'too old'),
        ('mmdet 3.4.0', 'untested'),
        ('onedl-mmdetection 3.5.1', 'supported'),
        ('onedl-mmdetection 3.6.0', 'untested'),
        ('onedl-mmcv 2.3.5', 'too old'),
        ('timm 1.0.27', 'untested'),  # only the tests ask for it
        ('transformers 4.55.0', 'untested'),
    ],
)
def test_ranges(package, verdict, pip_knows):
    installed = pip_knows(package)
    (module,) = installed
    assert judge(module, installed) == verdict


def test_no_range_no_verdict(pip_knows, monkeypatch):
    """As in a clone that was never installed."""
    installed = pip_knows(*CORE)

    def unknown(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.undo()
    for name in ('metadata', 'requires'):
        monkeypatch.setattr(versions.metadata, name, unknown)
    assert {judge(module, installed) for module in installed} == {'untested'}
    assert versions.install_command('mmcv', {}) == "pip install 'mmcv-lite'"


def test_a_module_on_the_path_alone_is_there(pip_knows, monkeypatch):
    pip_knows('torch 2.14.1')
    monkeypatch.setattr(versions, '_is_there', lambda module: module == 'mmdet')
    installed = find_installed()
    assert installed == {'torch': {'torch': '2.14.1'}, 'mmdet': {'': ''}}
    assert judge('mmdet', installed) == 'untested'
    assert 'mmdet' in find_problems(installed)[-2].what  # which needs mmcv and pycocotools


def test_odd_metadata_stops_no_import(pip_knows, tmp_path):
    """What pip leaves when it is stopped, a version that is none, and a requirement of an earlier time."""
    (tmp_path / 'timm-1.0.31.dist-info').mkdir()
    installed = pip_knows(*CORE, 'mmdet special', 'mmsegmentation 1.2.2 numpy>=1.*', *MM[3:], 'mmcv 2.1.0')
    assert installed['timm'] == {'timm': ''}
    assert {module for module in installed if judge(module, installed) == 'untested'} == {'timm', 'mmdet'}
    assert find_problems(installed) == []


@pytest.mark.parametrize(
    ('packages', 'what', 'cure'),
    [
        (CORE[1:], 'torch is not installed', "pip install 'torch>=2.4'"),
        (CORE[:1] + CORE[2:], 'torchvision is not installed', 'pip install torch==2.14.1 torchvision'),
        (
            ('torch 2.13.0+cpu', *CORE[1:]),
            'torchvision 0.29.1 needs torch>=2.14.0, and torch 2.13.0+cpu is installed',
            'pip install torch==2.13.0 torchvision',
        ),
        (
            with_versions(CORE, mmengine='0.9.0'),
            'mmengine 0.9.0 is too old for convnext-dense, which takes >=0.10.7',
            "pip install 'mmengine>=0.10.7'",
        ),
        (
            with_versions(CORE + MM, mmdet='2.28.0'),
            'mmdet 2.28.0 is too old for convnext-dense, which takes <3.4,>=3.3',
            "pip install 'mmdet<3.4,>=3.3'",
        ),
        (
            (*CORE, 'mmcv 2.0.1'),
            'mmcv 2.0.1 is too old for convnext-dense, which takes <2.2,>=2.1',
            "pip uninstall -y mmcv; pip install 'mmcv-lite<2.2,>=2.1'",
        ),
        (
            (*CORE, 'onedl-mmcv 2.3.5'),
            'onedl-mmcv 2.3.5 is too old for convnext-dense, which takes >=2.3.6,<2.4',
            "pip install 'onedl-mmcv>=2.3.6,<2.4'",
        ),
        (
            (*CORE[:3], 'mmengine-lite 0.10.6'),
            'mmengine-lite 0.10.6 is too old for convnext-dense, which takes >=0.10.7',
            "pip uninstall -y mmengine-lite; pip install 'mmengine>=0.10.7'",
        ),
        (
            (*CORE, *MM[1:]),
            'mmcv-lite is not installed, which mmdet and mmseg cannot be imported without',
            "pip install 'mmcv-lite<2.2,>=2.1'",
        ),
        (
            (*CORE, *MM[:3], *MM[4:]),
            'pycocotools is not installed, which mmdet cannot be imported without',
            "pip install 'pycocotools'",
        ),
        (
            (*CORE, *MM[:4], MM[5]),
            'ftfy is not installed, which mmseg cannot be imported without',
            "pip install 'ftfy'",
        ),
        (
            (*CORE, *MM, 'mmcv 2.1.0'),
            'mmcv-lite and mmcv are both installed, and their files are mixed in the one module mmcv',
            'pip uninstall -y mmcv-lite mmcv, then pip install the one that you want',
        ),
        (
            (*CORE, ONEDL[0]),
            'mmengine and onedl-mmengine are both installed, and their files are mixed in the one module mmengine',
            'pip uninstall -y mmengine onedl-mmengine, then pip install the one that you want',
        ),
        (
            (*CORE, 'mmcv 2.2.0', MM[1], MM[3]),
            'mmdet 3.3.0 and mmcv 2.2.0 do not work together: mmdet asserts mmcv < 2.2 when it is imported',
            "pip uninstall -y mmcv mmcv-lite; pip install 'mmcv-lite>=2.1,<2.2'",
        ),
        (
            (*CORE, 'mmcv 2.3.0', MM[2], *MM[4:]),
            'mmsegmentation 1.2.2 and mmcv 2.3.0 do not work together: mmseg asserts mmcv < 2.2 when it is imported',
            "pip uninstall -y mmcv mmcv-lite; pip install 'mmcv-lite>=2.1,<2.2'",
        ),
        (
            (*CORE, *MM, 'mmpretrain 1.2.0', 'transformers 5.23.0'),
            'mmpretrain 1.2.0 and transformers 5.23.0 do not work together: mmdet.models imports mmpretrain where it '
            'is installed, and that ends with a TypeError',
            "pip uninstall -y mmpretrain, which nothing here needs; or pip install 'transformers<4.56'",
        ),
        (
            (*CORE, 'pycocotools 2.0.7'),
            'pycocotools 2.0.7 and numpy 2.4.6 do not work together: these pycocotools were compiled for NumPy 1',
            'pip install --upgrade pycocotools',
        ),
        (
            (*CORE[:2], 'numpy 1.26.4', *ONEDL, *MM[3:]),
            'onedl-mmsegmentation 1.4.2 needs numpy>2, and numpy 1.26.4 is installed',
            "pip install 'numpy>2'",
        ),
    ],
)
def test_problems(packages, what, cure, pip_knows):
    (problem,) = find_problems(pip_knows(*packages))
    assert problem.what == what
    assert problem.cure == cure


def test_versions_that_do_not_work_together_are_judged_so(pip_knows):
    installed = pip_knows(*CORE, 'mmcv 2.2.0', *MM[1:])
    verdicts = {module: judge(module, installed) for module in installed}
    assert {module for module, verdict in verdicts.items() if verdict == 'does not work'} == {'mmcv', 'mmdet', 'mmseg'}


def test_the_tables_are_complete():
    assert set(FORKS) <= {name for package in PACKAGES for name in package.names}
    modules = {package.module for package in PACKAGES}
    assert {module for package in PACKAGES for module in package.needed_by} <= {*modules, ''}
    for package in PACKAGES:
        assert not (package.used_for and package.needed_by), package
        if package.used_for or package.needed_by:
            assert versions.supported_range(package.names[0]) is not None, package
    for failing in KNOWN_TO_FAIL:
        assert set(failing.versions) <= modules
        assert all(SpecifierSet(each) for each in failing.versions.values())
        assert failing.link.startswith('https://github.com/')
        assert failing.why


def test_what_is_said_of_mmcv_is_true():
    """mmdet and mmseg themselves hold the bound."""
    for module, name in (('mmdet', 'mmcv_maximum_version'), ('mmseg', 'MMCV_MAX')):
        pytest.importorskip('mmcv')
        bound = getattr(importlib.import_module(module), name, None)
        version = next(iter(find_installed()[module].values()))
        failing = next(each for each in KNOWN_TO_FAIL if module in each.versions)
        if Version(version) in SpecifierSet(failing.versions[module]):
            assert failing.versions['mmcv'] == f'>={bound.removesuffix(".0")}'
        else:
            assert bound is None, 'a fork without a bound'


def test_problems_are_logged_in_one_line_each(pip_knows, caplog):
    pip_knows(*CORE, 'mmcv 2.2.0', *MM[1:])
    with caplog.at_level(logging.WARNING):
        broken.log_problems()
    assert [record.name for record in caplog.records] == ['convnext_dense'] * 2
    assert 'mmdet 3.3.0 and mmcv 2.2.0 do not work together' in caplog.messages[0]
    assert 'Cure: pip uninstall -y mmcv mmcv-lite' in caplog.messages[0]
    assert '\n' not in ''.join(caplog.messages)


def import_with(folder, *lines):
    """Import the package in a Python that finds the modules and the metadata of a folder first."""
    code = '\n'.join([f'import sys; sys.path.insert(0, {str(folder)!r})', *lines, 'import convnext_dense as c'])
    command = [sys.executable, '-c', f'{code}\nprint(c.ConvNeXt)']
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_the_import_goes_on_where_the_package_works(tmp_path):
    """This pip knows two engines, and a torchvision of another time that can be imported."""
    (name,) = find_installed()['mmengine']
    write_metadata(tmp_path, 'mmengine-lite 0.10.7', 'torchvision 0.20 torch==0.1')
    result = import_with(tmp_path)
    assert result.returncode == 0, result.stderr
    twice, other = result.stderr.splitlines()
    said = re.fullmatch(r'convnext_dense: (\S+) and (\S+) are both installed, .*\. Cure: .*', twice)
    assert set(said.groups()) == {name, 'mmengine-lite'}
    assert 'torchvision 0.20 needs torch==0.1' in other


NO_OPS = "raise RuntimeError('operator torchvision::nms does not exist')"
NO_GL = "raise ImportError('libGL.so.1: cannot open shared object file: No such file or directory')"


@pytest.mark.parametrize(
    ('files', 'package', 'error', 'cause', 'cure'),
    [
        (
            {'torchvision/__init__.py': NO_OPS},
            'torchvision 0.20 torch==0.1',
            'RuntimeError: operator torchvision::nms does not exist',
            'torchvision 0.20 needs torch==0.1, and torch ',
            'pip install torch==',
        ),
        (
            {'cv2/__init__.py': NO_GL},
            None,
            'ImportError: libGL.so.1: cannot open',
            'libGL.so.1: cannot open',
            'pip install --force-reinstall --no-deps opencv-python-headless',
        ),
        (
            {'torch/__init__.py': "raise OSError('libcublas.so.13: cannot open shared object file')"},
            None,
            'OSError: libcublas.so.13',
            'libcublas.so.13: cannot open',
            'pip install --force-reinstall --no-deps torch;',
        ),
        (
            {'mmengine/__init__.py': 'import not_there'},
            None,
            "ModuleNotFoundError: No module named 'not_there'",
            'not_there',
            'pip install not_there',
        ),
    ],
    ids=['torchvision of another torch', 'no libGL', 'torch', 'a module that is missing'],
)
def test_the_import_says_what_is_broken_and_the_cure(files, package, error, cause, cure, tmp_path):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    if package:
        write_metadata(tmp_path, package)
    result = import_with(tmp_path)
    assert result.returncode == 1
    last = result.stderr[result.stderr.rindex('\nImportError: ') :]
    assert f'convnext_dense cannot be imported ({error}' in last
    assert cause in last.split('because')[1]
    assert f'Cure: {cure}' in last


@pytest.mark.parametrize('name', ['mmcv-lite', 'torchvision'])
def test_a_missing_package_is_named(name, tmp_path, pip_knows):
    """Metadata alone shows it: the core works without mmcv, so that this is a line and no error."""
    (problem,) = find_problems(pip_knows(*(each for each in CORE + MM if each.split()[0] != name)))
    assert f'{name} is not installed' in problem.what


def test_the_ranges_of_the_forks_stand_in_noxfile_and_page():
    root = Path(__file__).parent.parent
    for file in ('noxfile.py', 'docs/versions.md'):
        text = (root / file).read_text()
        assert all(f"'{fork}{versions}'" in text for fork, versions in FORKS.items()), file
