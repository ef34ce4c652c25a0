"""Each patch mends a defect that is shown first, and leaves a mended upstream alone."""

import importlib.util
import logging
import os
import pkgutil
import subprocess
import sys
import sysconfig
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError
from types import ModuleType

import pytest
from packaging.specifiers import SpecifierSet

from convnext_dense import compat as stack
from convnext_dense.compat import import_hook, installed_packages, patches
from convnext_dense.compat.patches import PATCHES
from convnext_dense.compat.versions import FORKS

BY_NAME = {patch.name: patch for patch in PATCHES}


@pytest.fixture(autouse=True)
def _prepared():
    stack.prepare()


def upstream_copy(module_name: str) -> ModuleType:
    """Execute the module's file once more under another name, which no patch knows."""
    found = importlib.util.find_spec(module_name)
    spec = importlib.util.spec_from_file_location(f'{module_name}_as_upstream', found.origin)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def is_fork(patch) -> bool:
    """Tell whether a fork is installed, which may have mended the defect in versions of its own."""
    return patches._installed(patch.packages)[0] in FORKS


def test_the_table_is_complete():
    assert len(BY_NAME) == len(PATCHES)
    assert len({patch.module for patch in PATCHES}) == len(PATCHES), 'two patches of a module would have an order'
    for patch in PATCHES:
        assert patch.link.startswith('https://github.com/'), patch.name
        assert patch.why, patch.name
        assert SpecifierSet(patch.versions) is not None


def test_pkg_resources(monkeypatch):
    monkeypatch.setitem(sys.modules, 'pkg_resources', None)
    patch = BY_NAME['pkg_resources']
    module = upstream_copy(patch.module)
    if not patches._not_needed(patch) and not is_fork(patch):
        with pytest.raises(ImportError):
            module.is_installed('mmengine')
    patch.apply(module)
    assert module.is_installed('mmengine')
    assert module.get_installed_path('mmengine').endswith('mmengine')


def test_packages_are_found_by_the_name_of_pip_and_of_python():
    from mmengine.utils import get_installed_path, is_installed

    assert is_installed('mmsegmentation')
    assert is_installed('mmseg')
    assert not is_installed('not_a_package')
    assert get_installed_path('mmsegmentation') == get_installed_path('mmseg')
    assert installed_packages.package2module('mmsegmentation') == 'mmseg'
    with pytest.raises(PackageNotFoundError, match='not_a_package'):
        get_installed_path('not_a_package')
    with pytest.raises(PackageNotFoundError, match='not_a_package'):
        installed_packages.package2module('not_a_package')


def test_a_fork_is_found_by_the_name_of_the_original(tmp_path, monkeypatch):
    """MMEngine asks for mmsegmentation wherever a config says mmseg::"""
    info = tmp_path / 'onedl_mmsegmentation-1.4.2.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text('Metadata-Version: 2.1\nName: onedl-mmsegmentation\nVersion: 1.4.2\n')
    (info / 'top_level.txt').write_text('mmseg\n')
    (tmp_path / 'mmseg').mkdir()
    monkeypatch.setattr(sys, 'path', [str(tmp_path)])
    assert installed_packages.is_installed('mmsegmentation')
    assert installed_packages.package2module('mmsegmentation') == 'mmseg'
    assert installed_packages.get_installed_path('mmsegmentation') == str(tmp_path / 'mmseg')


def test_packages_on_the_path_alone_are_found(tmp_path, monkeypatch):
    (tmp_path / 'on_path').mkdir()
    (tmp_path / 'on_path/__init__.py').touch()
    (tmp_path / 'namespace').mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert installed_packages.is_installed('on_path')
    assert installed_packages.get_installed_path('on_path') == str(tmp_path / 'on_path')
    assert not installed_packages.is_installed('namespace')
    with pytest.raises(RuntimeError, match='namespace is a namespace package'):
        installed_packages.get_installed_path('namespace')


def test_packages_with_another_name_or_another_place_are_found(tmp_path, monkeypatch):
    site, project = tmp_path / 'site', tmp_path / 'project'
    for name, modules, folder in (('dist-name', 'module_name', site), ('editable', 'edited', project)):
        info = site / f'{name.replace("-", "_")}-1.0.dist-info'
        info.mkdir(parents=True)
        (info / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n')
        (info / 'top_level.txt').write_text(f'{modules}\n')
        (folder / modules).mkdir(parents=True)
        (folder / modules / '__init__.py').touch()
    monkeypatch.syspath_prepend(site)
    monkeypatch.syspath_prepend(project)
    assert installed_packages.get_installed_path('dist_name') == str(site / 'module_name')
    assert installed_packages.get_installed_path('editable') == str(project / 'edited')
    (site / 'editable-1.0.dist-info/top_level.txt').unlink()
    with pytest.raises(ValueError, match='can not infer the module name of editable'):
        installed_packages.package2module('editable')


@pytest.mark.parametrize(
    ('name', 'function'),
    [('find_loader in mmengine', 'mmcv_full_available'), ('find_loader in mmcv', 'check_ops_exist')],
)
def test_find_loader(name, function, monkeypatch):
    monkeypatch.delattr(pkgutil, 'find_loader', raising=False)
    module = upstream_copy(BY_NAME[name].module)
    if not is_fork(BY_NAME[name]):
        with pytest.raises(AttributeError, match='find_loader'):
            getattr(module, function)()
    BY_NAME[name].apply(module)
    assert getattr(module, function)() is True
    monkeypatch.setitem(sys.modules, 'mmcv', None)
    assert getattr(module, function)() is False


def test_distutils(monkeypatch):
    monkeypatch.setitem(sys.modules, 'distutils', None)
    module = upstream_copy(BY_NAME['distutils'].module)
    with pytest.raises(ImportError, match='distutils'):
        module.collect_env()
    BY_NAME['distutils'].apply(module)
    assert {'GCC', 'PyTorch', 'MMEngine'} <= set(module.collect_env())
    assert sys.modules['distutils'] is None
    # Windows: no compiler is named, and distutils would look for one
    monkeypatch.setattr(sysconfig, 'get_config_var', lambda name: None)
    assert module.collect_env()['GCC'] == 'n/a'


def test_a_distutils_that_is_there_is_used(monkeypatch):
    monkeypatch.setattr(patches, 'find_spec', lambda name: 'found')
    before = sys.modules.get('distutils')
    with patches._importable_distutils():
        assert sys.modules.get('distutils') is before


@pytest.mark.parametrize(
    ('line', 'shown'),
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
def test_idle_log_lines(line, shown):
    record = logging.LogRecord('mmengine', logging.WARNING, 'file.py', 1, line, None, None)
    module = upstream_copy(BY_NAME['idle log lines'].module)
    assert module.FilterDuplicateWarning().filter(record)
    BY_NAME['idle log lines'].apply(module)
    upstream_filter = module.FilterDuplicateWarning()
    assert upstream_filter.filter(record) is shown
    assert upstream_filter.filter(record) is False, 'MMEngine drops repetitions'


def test_functions_that_others_imported_by_name_are_replaced():
    import mmengine.config.config
    import mmengine.utils
    import mmengine.utils.dl_utils

    for module in (mmengine.utils, mmengine.utils.package_utils, mmengine.config.config):
        if not patches._not_needed(BY_NAME['pkg_resources']):
            assert module.is_installed is installed_packages.is_installed, module
    assert mmengine.utils.dl_utils.mmcv_full_available is patches._ops_can_be_imported


def test_a_function_imported_before_the_patch_is_replaced(monkeypatch):
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
    monkeypatch.setattr(import_hook._finder(), 'actions', {})
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


def test_a_patched_module_can_be_reloaded(tmp_path):
    command = [sys.executable, '-c', RELOAD, str(tmp_path / 'file.pth')]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr


def test_applying_a_patch_twice_recurses_nowhere():
    module = upstream_copy('mmengine.runner.checkpoint')
    for _ in range(3):
        BY_NAME['safe checkpoints'].apply(module)
    assert module.torch.nn is sys.modules['torch.nn']
    module = upstream_copy('mmengine.utils.dl_utils.collect_env')
    for _ in range(3):
        BY_NAME['distutils'].apply(module)
    assert 'Python' in module.collect_env()


def test_a_module_is_imported_in_its_context(tmp_path, monkeypatch):
    (tmp_path / 'acted_upon.py').write_text('import os\nvalue = os.environ["IN_CONTEXT"]')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(import_hook._finder(), 'actions', {})
    monkeypatch.delitem(sys.modules, 'acted_upon', raising=False)

    @contextmanager
    def during():
        with monkeypatch.context() as patched:
            patched.setenv('IN_CONTEXT', 'yes')
            yield

    import_hook.on_import('acted_upon', lambda module: None, during)
    assert importlib.import_module('acted_upon').value == 'yes'
    assert 'IN_CONTEXT' not in os.environ


def test_preparing_again_patches_nothing_again():
    import mmengine.runner.checkpoint as module

    before = (module.torch, module.load_from_local)
    actions = {name: len(listed) for name, listed in import_hook._finder().actions.items()}
    stack.prepare()
    assert (module.torch, module.load_from_local) == before
    assert {name: len(listed) for name, listed in import_hook._finder().actions.items()} == actions


def test_the_report_says_what_became_of_each_patch(monkeypatch):
    import mmengine.runner.checkpoint  # noqa: F401

    report = {row.patch.name: row for row in stack.patch_report()}
    assert list(report)[: len(PATCHES)] == list(BY_NAME)  # other rooms add their own
    assert report['safe checkpoints'].status == 'applied'
    monkeypatch.setattr(patches, '_applied', set())
    waiting = {row.reason for row in stack.patch_report() if row.status == 'waiting'}
    assert 'it is applied when mmengine.runner.checkpoint is imported' in waiting
    monkeypatch.setattr(patches, '_armed', set())
    waiting = {row.reason for row in stack.patch_report() if row.status == 'waiting'}
    assert waiting == {'convnext_dense.compat.prepare() has not been called'}


def installed(monkeypatch, versions: dict[str, str]) -> list[str]:
    """Pretend these versions; return the modules for which patches are then prepared."""

    def version(name: str) -> str:
        if name not in versions:
            raise PackageNotFoundError(name)
        return versions[name]

    prepared = []
    monkeypatch.setattr(patches, 'version', version)
    monkeypatch.setattr(patches, '_armed', set())
    monkeypatch.setattr(patches, '_applied', set())
    monkeypatch.setattr(patches, 'on_import', lambda module, action, during: prepared.append(module))
    patches.apply_patches()
    return prepared


def test_a_mended_version_is_left_alone(monkeypatch):
    module = BY_NAME['pkg_resources'].module
    assert module in installed(monkeypatch, {'mmengine': '0.10.7', 'mmcv-lite': '2.1.0'})
    assert module in installed(monkeypatch, {'mmengine': '0.11.0rc2'})
    for mended in ('0.11.0rc3', '0.11.0', '1.0.0'):
        assert module not in installed(monkeypatch, {'mmengine': mended})
        status = {row.patch.name: row for row in stack.patch_report()}['pkg_resources']
        assert status.status == 'not needed'
        assert status.reason == f'mmengine {mended} does not have the defect, versions <0.11.0rc3 do'


def test_a_fork_is_named_as_it_is(monkeypatch):
    assert BY_NAME['safe checkpoints'].module in installed(monkeypatch, {'onedl-mmengine': '0.11.0'})
    reasons = {row.reason for row in stack.patch_report()}
    assert 'onedl-mmengine 0.11.0 does not have the defect, versions <0.11.0rc3 do' in reasons


def test_a_missing_package_needs_no_patch(monkeypatch):
    monkeypatch.setattr(patches, 'find_spec', lambda name: None)
    assert installed(monkeypatch, {'mmengine': '0.10.7'}).count('mmcv.utils.ext_loader') == 0
    reasons = {row.reason for row in stack.patch_report() if row.status == 'not needed'}
    assert reasons == {f'{module} is not installed' for module in ('mmcv', 'mmdet', 'mmseg', 'torch')}


def test_a_package_on_the_path_alone_is_patched(monkeypatch):
    assert 'mmcv.utils.ext_loader' in installed(monkeypatch, {})
