"""What makes the OpenMMLab stack run on today's PyTorch. It imports nothing of the rest of the package.

After ``prepare()`` mmcv's compiled ops are served by torchvision, defects of the libraries are patched, and checkpoints
are read without running code. ``prepare()`` imports no library: each change waits for the import of its module.
"""

from .broken import explained_import
from .checkpoints import check_exists, read_checkpoint
from .ext_finder import install_finder, ops_backend
from .patches import MMENGINE_CODE, PATCHES, Patch, add_patch, patch_report, replace_function
from .unpickling import TRUST_VARIABLE, trust_checkpoints
from .warnings import silence


def prepare() -> None:
    """Prepare the stack. Calling it again changes nothing."""
    install_finder()
    for patch in PATCHES:
        add_patch(patch)
