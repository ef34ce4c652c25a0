"""What makes the OpenMMLab stack run on today's PyTorch.

In: the installed torch, torchvision, mmengine and mmcv. Out, after ``prepare()``: mmcv's compiled ops served by
torchvision, upstream defects patched, messages without meaning silenced, checkpoints read without running code.

``prepare()`` imports none of them: each change waits for the import of the module that it concerns.
"""

from .checkpoints import TRUST_VARIABLE, check_exists, read_checkpoint, trust_checkpoints
from .ext_finder import install_finder, ops_backend
from .patches import Patch, PatchStatus, add_patch, apply_patches, patch_report, replace_function
from .versions import log_problems
from .warnings import silence_warnings

__all__ = [
    'TRUST_VARIABLE',
    'Patch',
    'PatchStatus',
    'add_patch',
    'check_exists',
    'log_problems',
    'ops_backend',
    'patch_report',
    'prepare',
    'read_checkpoint',
    'replace_function',
    'trust_checkpoints',
]


def prepare() -> None:
    """Prepare the stack. Calling it again changes nothing."""
    install_finder()
    apply_patches()
    silence_warnings()
