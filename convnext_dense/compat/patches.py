"""The defects of the OpenMMLab packages on today's Python and PyTorch, one patch each.

A patch mends what crashes or is unsafe, and leaves sound behaviour alone. It acts on its module when that is imported,
only in the versions that have the defect, and imports nothing itself. No two patches of the table share a module.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace

from packaging.specifiers import SpecifierSet

from . import checkpoint_configs, checkpoints, installed_packages, upstream_heads
from .import_hook import on_import
from .versions import PACKAGES, pip_version

MMENGINE_CODE = 'https://github.com/open-mmlab/mmengine/blob/v0.10.7/mmengine/'  # to link to


@dataclass(frozen=True)
class Patch:
    """A defect and its cure."""

    name: str  # short and unique
    module: str  # with the defect, of a package in versions.PACKAGES
    why: str  # what goes wrong without the patch
    apply: Callable[[ModuleType], None]  # mends the module
    versions: str = ''  # those with the defect, as in a requirement; empty means all versions so far
    link: str = ''  # where the defect is reported


def use_importlib_metadata(module: ModuleType) -> None:
    """Let MMEngine look for packages without ``pkg_resources``."""
    for name in ('is_installed', 'get_installed_path'):
        replace_function(module, name, getattr(installed_packages, name))


def ops_can_be_imported() -> bool:
    """Tell whether mmcv has its ops, compiled or served."""
    return find_spec('mmcv') is not None and find_spec('mmcv._ext') is not None


def collect_env_without_distutils(module: ModuleType) -> None:
    """Let ``collect_env`` run where Python has no distutils; it then names no compiler of Windows."""
    upstream_collect_env = module.collect_env
    # Upstream asks for this exception alone, and what it imports of distutils on Windows then raises it.
    stand_in = SimpleNamespace(errors=SimpleNamespace(DistutilsPlatformError=ImportError))

    def collect_env() -> dict:
        if find_spec('distutils') is not None:
            return upstream_collect_env()
        sys.modules['distutils'] = stand_in
        try:
            return upstream_collect_env()
        finally:
            del sys.modules['distutils']

    replace_function(module, 'collect_env', collect_env)


# The defects are those of mmengine 0.10.7, mmcv 2.1.0, mmdet 3.3.0 and mmsegmentation 1.2.2.
PATCHES = (
    Patch(
        name='pkg_resources',
        versions='<0.11.0rc3',
        module='mmengine.utils.package_utils',
        why="`_base_ = 'mmdet::...'` asks pkg_resources for the package, which setuptools >= 82 no longer has",
        apply=use_importlib_metadata,
    ),
    Patch(
        name='find_loader in mmengine',
        module='mmengine.utils.dl_utils.misc',
        why='mmcv_full_available() calls pkgutil.find_loader, which Python 3.14 removed',
        apply=lambda module: replace_function(module, 'mmcv_full_available', ops_can_be_imported),
    ),
    Patch(
        name='find_loader in mmcv',
        module='mmcv.utils.ext_loader',
        why='check_ops_exist() calls pkgutil.find_loader, which Python 3.14 removed',
        apply=lambda module: replace_function(module, 'check_ops_exist', ops_can_be_imported),
    ),
    Patch(
        name='distutils',
        module='mmengine.utils.dl_utils.collect_env',
        why='collect_env(), which every Runner calls, imports distutils, which Python >= 3.12 has only by setuptools',
        apply=collect_env_without_distutils,
    ),
    Patch(
        name='safe checkpoints',
        module='mmengine.runner.checkpoint',
        link='https://github.com/open-mmlab/mmengine/issues/1655',
        why="PyTorch >= 2.6 refuses MMEngine's own checkpoints, so that no run resumes; older versions, downloads and "
        'MMEngine 0.11.0rc3 run any code that a checkpoint contains. Here all are read safely, for any model',
        apply=checkpoints.read_safely_in,
    ),
    Patch(
        name='configs of checkpoints in the inferencers',
        module='mmengine.infer.infer',
        why='DetInferencer(weights=FILE) and its like run the config inside of the checkpoint; here it is read as data',
        apply=checkpoint_configs.infer_without_running_configs,
    ),
    Patch(
        name='configs of checkpoints in the runner',
        module='mmengine.runner.runner',
        why='resume() runs the config inside of the checkpoint to compare numbers of GPUs; here it is read as data',
        apply=checkpoint_configs.resume_without_running_configs,
    ),
    Patch(
        name='configs of checkpoints in the flexible runner',
        module='mmengine.runner._flexible_runner',
        why='resume() runs the config inside of the checkpoint, as in the runner',
        apply=checkpoint_configs.resume_without_running_configs,
    ),
    Patch(
        name='MMSyncBN in one process',
        module='mmcv.ops.sync_bn',
        why='SyncBatchNorm asks torch.distributed for the number of processes, so that the strong baselines of mmdet '
        'cannot be built in a process without a group',
        apply=upstream_heads.let_sync_bn_stand_alone,
    ),
    Patch(
        name='masks outside of the image',
        module='mmdet.models.roi_heads.mask_heads.fcn_mask_head',
        why='on the CPU a test of QueryInst ends with an error where a box lies outside of the image',
        apply=upstream_heads.paste_masks_anywhere,
    ),
    Patch(
        name='checkpoints of DDQ',
        module='mmdet.models.detectors.ddq_detr',
        why='a trained model has parameters under more names than a built one, so that its checkpoint does not fit',
        apply=upstream_heads.tie_branches_when_built,
    ),
    Patch(
        name='predictions of SSD',
        module='mmdet.models.dense_heads.ssd_head',
        link='https://github.com/open-mmlab/mmdetection/issues/11780',
        why='the head has no loss_cls, for which upstream asks when it predicts: every validation ends in an error',
        apply=upstream_heads.predict_without_a_loss,
    ),
    Patch(
        name='DMNet and channels-last maps',
        module='mmseg.models.decode_heads.dm_head',
        why='the head views its maps as channels-first; ConvNeXt gives channels-last ones',
        apply=upstream_heads.take_maps_of_any_layout,
    ),
)

_added: dict[str, Patch] = {}
_applied: set[str] = set()


def add_patch(patch: Patch) -> None:
    """Apply a patch if the installed version needs it: now if its module is imported, else when it is."""
    if patch.name not in _added:
        _added[patch.name] = patch
        if not why_not_needed(patch):
            on_import(patch.module, partial(_apply, patch))


def _apply(patch: Patch, module: ModuleType) -> None:
    patch.apply(module)
    _applied.add(patch.name)


def patch_report() -> list[tuple[str, str, str]]:
    """Return the name of every patch, what became of it, and why."""
    return [(name, *_status(patch)) for name, patch in _added.items()]


def _status(patch: Patch) -> tuple[str, str]:
    if patch.name in _applied:
        return 'applied', patch.why
    if reason := why_not_needed(patch):
        return 'not needed', reason
    return 'waiting', f'it is applied when {patch.module} is imported'


def why_not_needed(patch: Patch) -> str:
    """Say why the installed version needs no patch; empty if it does."""
    module = patch.module.partition('.')[0]
    for name in PACKAGES[module]:
        if installed := pip_version(name):
            if SpecifierSet(patch.versions).contains(installed, prereleases=True):
                return ''
            return f'{name} {installed} does not have the defect, versions {patch.versions} do'
    # Without sound metadata the package may still be there, by PYTHONPATH; its version is then unknown.
    return '' if find_spec(module) is not None else f'{module} is not installed'


def replace_function(module: ModuleType, name: str, replacement: Callable) -> None:
    """Replace a function in its module and in every loaded module that imported it by name."""
    original = getattr(module, name)
    for holder in [module, *sys.modules.values()]:
        if getattr(holder, '__dict__', {}).get(name) is original:
            setattr(holder, name, replacement)
