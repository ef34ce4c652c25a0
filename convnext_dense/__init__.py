"""ConvNeXt backbones for detection and segmentation on MMEngine.

Importing the package prepares the OpenMMLab stack for the PyTorch at hand and registers the backbone, the optimizer
constructors, the embedded datasets, a head, the models of test-time augmentation, the hooks and the runner in
MMEngine's root registries.
"""

import sys

from convnext_dense import stack
from convnext_dense.errors import UserError

__version__ = '0.2.0'

stack.prepare()

if 'convnext_dense.doctor' not in sys.orig_argv:  # `python -m` imports this first; the doctor says what fails and why
    stack.log_problems()

    from convnext_dense import data, heads, hooks, runs, tta
    from convnext_dense.backbone import ConvNeXt
    from convnext_dense.lr_decay import ConvNeXtLayerDecay, ConvNeXtStageDecay

__all__ = [
    'ConvNeXt',
    'ConvNeXtLayerDecay',
    'ConvNeXtStageDecay',
    'UserError',
    '__version__',
    'data',
    'heads',
    'hooks',
    'runs',
    'stack',
    'tta',
]
