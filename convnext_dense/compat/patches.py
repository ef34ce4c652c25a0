"""The defects of the OpenMMLab packages on today's Python and PyTorch, one patch each.

A patch mends what crashes or is unsafe, and leaves sound behaviour alone. It acts on its module when that is imported,
only in the versions that have the defect, and imports nothing itself. No two patches of the table share a module.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from types import ModuleType

from packaging.specifiers import SpecifierSet

from . import checkpoint_configs, checkpoints, installed_packages, upstream_heads, warnings
from .import_hook import on_import
from .versions import MMCV, MMDET, MMENGINE, MMSEG

MMENGINE_CODE = 'https://github.com/open-mmlab/mmengine/blob/v0.10.7/mmengine/'
MMCV_CODE = 'https://github.com/open-mmlab/mmcv/blob/v2.1.0/mmcv/'
MMDET_CODE = 'https://github.com/open-mmlab/mmdetection/blob/v3.3.0/mmdet/'
MMSEG_CODE = 'https://github.com/open-mmlab/mmsegmentation/blob/v1.2.2/mmseg/'


@dataclass(frozen=True)
class Patch:
    """A defect and its cure.

    Attributes:
        name: Short and unique.
        packages: The names under which pip may have installed the package.
        module: The module to mend.
        link: Where the defect is reported, or the code that has it.
        why: What goes wrong without the patch.
        versions: Those with the defect, as in a requirement; empty means all versions so far.
        apply: Mends the module.
        during: Makes a context in which the module is imported.
    """

    name: str
    packages: tuple[str, ...]
    module: str
    link: str
    why: str
    versions: str = ''
    apply: Callable[[ModuleType], None] = lambda module: None
    during: Callable[[], AbstractContextManager] = nullcontext


@dataclass(frozen=True)
class PatchStatus:
    """What became of a patch: ``applied``, ``waiting`` for the import of its module, or ``not needed``."""

    patch: Patch
    status: str
    reason: str


def _use_importlib_metadata(module: ModuleType) -> None:
    for name in ('is_installed', 'get_installed_path', 'package2module'):
        replace_function(module, name, getattr(installed_packages, name))


def _ops_can_be_imported() -> bool:
    return find_spec('mmcv') is not None and find_spec('mmcv._ext') is not None


def _collect_env_without_distutils(module: ModuleType) -> None:
    upstream_collect_env = module.collect_env

    def collect_env() -> dict:
        with _importable_distutils():
            return upstream_collect_env()

    replace_function(module, 'collect_env', collect_env)


PATCHES = (
    Patch(
        name='pkg_resources',
        packages=MMENGINE,
        versions='<0.11.0rc3',
        module='mmengine.utils.package_utils',
        link=MMENGINE_CODE + 'utils/package_utils.py',
        why="`_base_ = 'mmdet::...'` asks pkg_resources for the package, which setuptools >= 82 no longer has",
        apply=_use_importlib_metadata,
    ),
    Patch(
        name='find_loader in mmengine',
        packages=MMENGINE,
        module='mmengine.utils.dl_utils.misc',
        link=MMENGINE_CODE + 'utils/dl_utils/misc.py',
        why='mmcv_full_available() calls pkgutil.find_loader, which Python 3.14 removed',
        apply=lambda module: replace_function(module, 'mmcv_full_available', _ops_can_be_imported),
    ),
    Patch(
        name='find_loader in mmcv',
        packages=MMCV,
        module='mmcv.utils.ext_loader',
        link=MMCV_CODE + 'utils/ext_loader.py',
        why='check_ops_exist() calls pkgutil.find_loader, which Python 3.14 removed',
        apply=lambda module: replace_function(module, 'check_ops_exist', _ops_can_be_imported),
    ),
    Patch(
        name='distutils',
        packages=MMENGINE,
        module='mmengine.utils.dl_utils.collect_env',
        link=MMENGINE_CODE + 'utils/dl_utils/collect_env.py',
        why='collect_env(), which every Runner calls, imports distutils, which Python >= 3.12 has only by setuptools',
        apply=_collect_env_without_distutils,
    ),
    Patch(
        name='safe checkpoints',
        packages=MMENGINE,
        module='mmengine.runner.checkpoint',
        link='https://github.com/open-mmlab/mmengine/issues/1655',
        why='PyTorch >= 2.6 refuses the HistoryBuffer and the NumPy scalars in every MMEngine checkpoint, so that no '
        'run resumes; older versions, downloads, and MMEngine 0.11.0rc3 run any code that a checkpoint contains. '
        'Everything that CheckpointLoader reads, for any model, is read safely',
        apply=checkpoints.read_safely_in,
    ),
    Patch(
        name='configs of checkpoints in the inferencers',
        packages=MMENGINE,
        module='mmengine.infer.infer',
        link=MMENGINE_CODE + 'infer/infer.py',
        why='DetInferencer(weights=FILE) and its like run the config inside of the checkpoint, which is Python; it is '
        'read as data',
        apply=checkpoint_configs.infer_without_running_configs,
    ),
    Patch(
        name='configs of checkpoints in the runner',
        packages=MMENGINE,
        module='mmengine.runner.runner',
        link=MMENGINE_CODE + 'runner/runner.py',
        why="resume() runs meta['config'] of the checkpoint, which is Python, to compare numbers of GPUs; it is "
        'read as data',
        apply=checkpoint_configs.resume_without_running_configs,
    ),
    Patch(
        name='configs of checkpoints in the flexible runner',
        packages=MMENGINE,
        module='mmengine.runner._flexible_runner',
        link=MMENGINE_CODE + 'runner/_flexible_runner.py',
        why="resume() runs meta['config'] of the checkpoint, as in the runner",
        apply=checkpoint_configs.resume_without_running_configs,
    ),
    Patch(
        name='idle log lines',
        packages=MMENGINE,
        module='mmengine.logging.logger',
        link=MMENGINE_CODE + 'fileio/file_client.py',
        why='a sound run logs warnings that no user can act on; convnext_dense/compat/warnings.py lists them',
        apply=warnings.silence_log_lines,
    ),
    Patch(
        name='MMSyncBN in one process',
        packages=MMCV,
        module='mmcv.ops.sync_bn',
        link=MMCV_CODE + 'ops/sync_bn.py',
        why='SyncBatchNorm asks torch.distributed for the number of processes, so that the strong baselines of mmdet '
        'cannot be built in a process without a group',
        apply=upstream_heads.let_sync_bn_stand_alone,
    ),
    Patch(
        name='masks outside of the image',
        packages=MMDET,
        module='mmdet.models.roi_heads.mask_heads.fcn_mask_head',
        link=MMDET_CODE + 'models/roi_heads/mask_heads/fcn_mask_head.py',
        why='on the CPU a test of QueryInst ends with an error where a box lies outside of the image',
        apply=upstream_heads.paste_masks_anywhere,
    ),
    Patch(
        name='checkpoints of DDQ',
        packages=MMDET,
        module='mmdet.models.detectors.ddq_detr',
        link=MMDET_CODE + 'models/detectors/ddq_detr.py',
        why='a trained model has parameters under more names than a built one, so that its checkpoint does not fit',
        apply=upstream_heads.tie_branches_when_built,
    ),
    Patch(
        name='predictions of SSD',
        packages=MMDET,
        module='mmdet.models.dense_heads.ssd_head',
        link='https://github.com/open-mmlab/mmdetection/issues/11780',
        why='the head has no loss_cls, for which upstream asks when it predicts: every validation ends in an error',
        apply=upstream_heads.predict_without_a_loss,
    ),
    Patch(
        name='DMNet and channels-last maps',
        packages=MMSEG,
        module='mmseg.models.decode_heads.dm_head',
        link=MMSEG_CODE + 'models/decode_heads/dm_head.py',
        why='the head views its maps as channels-first; ConvNeXt gives channels-last ones',
        apply=upstream_heads.take_maps_of_any_layout,
    ),
    Patch(
        name='TorchScript warning',
        packages=('torch',),
        versions='<2.6',
        module='torch.distributed.optim',
        link='https://github.com/pytorch/pytorch/issues/139661',
        why='the import, which MMEngine makes at every start, warns of TorchScript whatever the filters say',
        during=warnings.without_torchscript_warning,
    ),
)

_added: dict[str, Patch] = {}
_applied: set[str] = set()
_armed: set[str] = set()


def apply_patches() -> None:
    """Apply the patches that the installed versions need: now to imported modules, to others when they are imported."""
    for patch in PATCHES:
        _arm(patch)


def add_patch(patch: Patch) -> None:
    """Apply a patch of another room of this package, which needs what is in that room."""
    _added[patch.name] = patch
    _arm(patch)


def _arm(patch: Patch) -> None:
    if patch.name not in _armed and not _not_needed(patch):
        _armed.add(patch.name)
        on_import(patch.module, _applier(patch), patch.during)


def patch_report() -> list[PatchStatus]:
    """Return the status of every patch: those of ``PATCHES`` in their order, then the added ones."""
    return [_status(patch) for patch in (*PATCHES, *_added.values())]


def _status(patch: Patch) -> PatchStatus:
    if patch.name in _applied:
        return PatchStatus(patch, 'applied', patch.why)
    reason = _not_needed(patch)
    if reason:
        return PatchStatus(patch, 'not needed', reason)
    if patch.name in _armed:
        return PatchStatus(patch, 'waiting', f'it is applied when {patch.module} is imported')
    return PatchStatus(patch, 'waiting', 'convnext_dense.compat.prepare() has not been called')


def _applier(patch: Patch) -> Callable[[ModuleType], None]:
    def apply(module: ModuleType) -> None:
        patch.apply(module)
        _applied.add(patch.name)

    return apply


def _not_needed(patch: Patch) -> str:
    """Say why the installed version needs no patch; empty if it does."""
    installed = _installed(patch.packages)
    if installed is None:
        # Without metadata the package may still be there, by PYTHONPATH; its version is then unknown.
        module = patch.module.partition('.')[0]
        return '' if find_spec(module) is not None else f'{module} is not installed'
    if SpecifierSet(patch.versions).contains(installed[1], prereleases=True):
        return ''
    return f'{" ".join(installed)} does not have the defect, versions {patch.versions} do'


def _installed(packages: tuple[str, ...]) -> tuple[str, str] | None:
    """Return the name and the version of the first of these that pip knows."""
    for package in packages:
        try:
            return package, version(package)
        except PackageNotFoundError:
            continue
    return None


def replace_function(module: ModuleType, name: str, replacement: Callable) -> None:
    """Replace a function in its module and in every loaded module that imported it by name."""
    original = getattr(module, name)
    for holder in [module, *sys.modules.values()]:
        if getattr(holder, '__dict__', {}).get(name) is original:
            setattr(holder, name, replacement)


@contextmanager
def _importable_distutils() -> Iterator[None]:
    """Where Python has no distutils, stand in for the little of it that ``collect_env`` uses."""
    if find_spec('distutils') is not None:
        yield
        return
    errors, compilers = ModuleType('distutils.errors'), ModuleType('distutils.ccompiler')
    errors.DistutilsPlatformError = NoCompiler
    compilers.new_compiler = _find_no_compiler
    package = ModuleType('distutils')
    package.errors = errors
    stand_in = {each.__name__: each for each in (package, errors, compilers)}
    before = {name: sys.modules[name] for name in stand_in if name in sys.modules}
    sys.modules.update(stand_in)
    try:
        yield
    finally:
        for name in stand_in:
            del sys.modules[name]
        sys.modules.update(before)


class NoCompiler(Exception):
    """What distutils raises where it finds no compiler; ``collect_env`` then reports 'n/a'."""


def _find_no_compiler() -> None:
    raise NoCompiler
