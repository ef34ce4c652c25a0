"""ConvNeXt backbones for detection and segmentation on MMEngine.

Importing the package prepares the OpenMMLab stack for the PyTorch at hand and registers the backbone, the optimizer
constructors, the embedded datasets, a head, the models of test-time augmentation, the hooks and the runner in
MMEngine's root registries.
"""

from convnext_dense import stack

__version__ = '0.2.0'

stack.prepare()

from convnext_dense import data, heads, hooks, runs, tta  # noqa: E402
from convnext_dense.backbone import ConvNeXt  # noqa: E402
from convnext_dense.errors import UserError  # noqa: E402
from convnext_dense.lr_decay import ConvNeXtLayerDecay, ConvNeXtStageDecay  # noqa: E402

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
