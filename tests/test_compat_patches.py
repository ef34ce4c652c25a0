"""Each patch mends a defect that is shown first, and leaves a mended upstream alone."""

import importlib.util
import pkgutil
import sys
import sysconfig
from importlib.metadata import PackageNotFoundError
from types import ModuleType

import pytest

from convnext_dense import compat
from convnext_dense.compat import import_hook, installed_packages, patches
from convnext_dense.compat.patches import PATCHES
from convnext_dense.compat.versions import FORKS, find_installed

BY_NAME = {patch.name: patch for patch in PATCHES}


def upstream_copy(module_name: str) -> ModuleType:
    """Execute the module's file once more under another name, which no patch knows."""
    found = importlib.util.find_spec(module_name)
    spec = importlib.util.spec_from_file_location(f'{module_name}_as_upstream', found.origin)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def has_defect(patch) -> bool:
    """Tell whether the defect can be shown: a fork may have mended it in versions of its own."""
    installed = find_installed()[patch.module.partition('.')[0]]
    return not patches.why_not_needed(patch) and not set(FORKS) & set(installed)


def test_the_table_is_complete():
    assert len(BY_NAME) == len(PATCHES)
    assert len({patch.module for patch in PATCHES}) == len(PATCHES), 'two patches of a module would have an order'


def test_pkg_resources(monkeypatch):
    monkeypatch.setitem(sys.modules, 'pkg_resources', None)
    patch = BY_NAME['pkg_resources']
    module = upstream_copy(patch.module)
    if has_defect(patch):
        with pytest.raises(ImportError):
            module.is_installed('mmengine')
    patch.apply(module)
    assert module.is_installed('mmengine')
    assert module.get_installed_path('mmengine').endswith('mmengine')


def write_package(folder, module, name=None, top_level=''):
    """Write a module, with what pip knows of it."""
    (folder / module).mkdir(parents=True)
    (folder / module / '__init__.py').touch()
    if name:
        info = folder / f'{name.replace("-", "_")}-1.0.dist-info'
        info.mkdir()
        (info / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n')
        (info / 'top_level.txt').write_text(top_level)


@pytest.mark.parametrize(
    ('name', 'module'),
    [
        ('mmsegmentation', 'mmseg'),  # a fork, for which MMEngine asks by the name of the original
        ('mmseg', 'mmseg'),
        ('dist_name', 'module_name'),
        ('on_path', 'on_path'),
    ],
)
def test_packages_are_found_by_the_name_of_pip_and_of_python(name, module, tmp_path, monkeypatch):
    write_package(tmp_path, 'mmseg', 'onedl-mmsegmentation', 'mmseg')
    write_package(tmp_path, 'module_name', 'dist-name', 'module_name\n')
    write_package(tmp_path, 'on_path')
    monkeypatch.delitem(sys.modules, 'mmseg', raising=False)
    monkeypatch.setattr(sys, 'path', [str(tmp_path)])
    assert installed_packages.is_installed(name)
    assert installed_packages.get_installed_path(name) == str(tmp_path / module)


def test_packages_that_are_not_there(tmp_path, monkeypatch):
    (tmp_path / 'namespace').mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    for name, error in (('not_a_package', PackageNotFoundError), ('namespace', RuntimeError)):
        assert not installed_packages.is_installed(name)
        with pytest.raises(error, match=name):
            installed_packages.get_installed_path(name)


@pytest.mark.parametrize(
    ('name', 'function'),
    [('find_loader in mmengine', 'mmcv_full_available'), ('find_loader in mmcv', 'check_ops_exist')],
)
def test_find_loader(name, function, monkeypatch):
    monkeypatch.delattr(pkgutil, 'find_loader', raising=False)
    module = upstream_copy(BY_NAME[name].module)
    if has_defect(BY_NAME[name]):
        with pytest.raises(AttributeError, match='find_loader'):
            getattr(module, function)()
    BY_NAME[name].apply(module)
    assert getattr(module, function)() is True
    monkeypatch.setitem(sys.modules, 'mmcv', None)
    assert getattr(module, function)() is False


def test_distutils(monkeypatch):
    for name in [name for name in sys.modules if name.startswith('distutils.')]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, 'distutils', None)
    module = upstream_copy(BY_NAME['distutils'].module)
    with pytest.raises(ImportError, match='distutils'):
        module.collect_env()
    monkeypatch.setattr(patches, 'find_spec', lambda name: None)
    BY_NAME['distutils'].apply(module)
    assert {'GCC', 'PyTorch', 'MMEngine'} <= set(module.collect_env())
    assert 'distutils' not in sys.modules
    # Windows: no compiler is named, and distutils would look for one
    monkeypatch.setattr(sysconfig, 'get_config_var', lambda name: None)
    assert module.collect_env()['GCC'] == 'n/a'


def test_functions_that_others_imported_by_name_are_replaced(monkeypatch):
    defective, user = ModuleType('defective'), ModuleType('user')
    defective.function = user.function = lambda: 'defect'
    user.other = lambda: 'other'
    for module in (defective, user):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    patches.replace_function(defective, 'function', lambda: 'mended')
    assert (defective.function(), user.function(), user.other()) == ('mended', 'mended', 'other')


@pytest.mark.parametrize('loaded_before', [True, False])
def test_an_action_runs_on_import_and_on_reload(loaded_before, tmp_path, monkeypatch):
    (tmp_path / 'acted_upon.py').write_text('value = 1')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(import_hook.FINDER, 'actions', {})
    monkeypatch.delitem(sys.modules, 'acted_upon', raising=False)
    if loaded_before:
        importlib.import_module('acted_upon')
    import_hook.on_import('acted_upon', lambda module: setattr(module, 'value', module.value + 1))
    module = importlib.import_module('acted_upon')
    assert module.value == 2
    assert importlib.reload(module).value == 2
    assert type(module.__loader__).__name__ == 'SourceFileLoader'


RELOAD = """
import importlib, sys, torch, convnext_dense
from mmengine.runner import checkpoint
from mmengine.utils import is_installed
from mmengine.utils.dl_utils import collect_env
torch.save({'w': torch.ones(1)}, sys.argv[1])
for name in ('utils.package_utils', 'utils.dl_utils.misc', 'utils.dl_utils.collect_env', 'logging.logger',
             'runner.checkpoint', 'runner.checkpoint'):
    importlib.reload(importlib.import_module(f'mmengine.{name}'))
convnext_dense.compat.prepare()
assert checkpoint._load_checkpoint(sys.argv[1])['w'] == 1
assert checkpoint.load_from_local(sys.argv[1])['w'] == 1
assert is_installed('mmengine') and collect_env()
from mmengine.utils.dl_utils.misc import mmcv_full_available
mmcv_full_available()
"""


def test_a_patched_module_can_be_reloaded(run_python, tmp_path):
    result = run_python(RELOAD, tmp_path / 'file.pth')
    assert result.returncode == 0, result.stderr


def test_preparing_again_patches_nothing_again():
    import mmengine.runner.checkpoint as module

    before = (module.torch, module.load_from_local)
    actions = {name: len(listed) for name, listed in import_hook.FINDER.actions.items()}
    compat.prepare()
    assert (module.torch, module.load_from_local) == before
    assert {name: len(listed) for name, listed in import_hook.FINDER.actions.items()} == actions


@pytest.fixture
def report_of(monkeypatch):
    """Patch a stack of these versions; return the status and the reason of each patch."""

    def report(**versions):
        monkeypatch.setattr(patches, 'pip_version', versions.get)
        monkeypatch.setattr(patches, '_added', {})
        monkeypatch.setattr(patches, '_applied', set())
        monkeypatch.setattr(patches, 'on_import', lambda module, action: None)
        compat.prepare()
        return {name: row for name, *row in compat.patch_report()}

    return report


def test_the_report_says_what_became_of_each_patch(report_of):
    import mmengine.runner.checkpoint  # noqa: F401

    assert {name: status for name, status, _ in compat.patch_report()}['safe checkpoints'] == 'applied'
    report = report_of(mmengine='0.10.7')
    assert list(report) == list(BY_NAME)
    assert report['safe checkpoints'] == ['waiting', 'it is applied when mmengine.runner.checkpoint is imported']


@pytest.mark.parametrize(
    ('name', 'version', 'status'),
    [
        ('mmengine', '', 'waiting'),  # a folder of metadata that pip left half-way
        ('mmengine', '0.10.7', 'waiting'),
        ('mmengine', '0.11.0rc2', 'waiting'),
        ('mmengine', '0.11.0rc3', 'not needed'),
        ('onedl-mmengine', '0.11.0', 'not needed'),
    ],
)
def test_a_mended_version_is_left_alone(name, version, status, report_of):
    found, reason = report_of(**{name: version})['pkg_resources']
    assert found == status
    assert status == 'waiting' or reason.startswith(f'{name} {version} does not have the defect')


@pytest.mark.parametrize(('place', 'status'), [(None, 'not needed'), ('on the path', 'waiting')])
def test_a_package_that_pip_does_not_know(place, status, report_of, monkeypatch):
    monkeypatch.setattr(patches, 'find_spec', lambda name: place)
    assert report_of(mmengine='0.10.7')['find_loader in mmcv'][0] == status
