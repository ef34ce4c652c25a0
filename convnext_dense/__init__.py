"""ConvNeXt backbones for detection and segmentation on MMEngine.

Importing the package makes the OpenMMLab stack work on the PyTorch at hand and registers the backbone, the optimizer
constructors, the embedded data sets, a head, the models of test-time augmentation, the hooks and the runner in
MMEngine's root registries. Where PyTorch is not installed it does nothing, so that :mod:`convnext_dense.runtime` runs.
"""

from importlib.util import find_spec

__version__ = '0.3.0.dev0'

if find_spec('torch'):  # else convnext_dense.runtime alone can be used
    from convnext_dense import compat
    from convnext_dense.compat.errors import UserError

    compat.prepare()
    with compat.explained_import():
        from convnext_dense import data, heads, ladder, train, tta, weights
        from convnext_dense.backbone import ConvNeXt
        from convnext_dense.lr_decay import ConvNeXtLayerDecay, ConvNeXtStageDecay
        from convnext_dense.predict import load_model

__all__ = [
    'ConvNeXt',
    'ConvNeXtLayerDecay',
    'ConvNeXtStageDecay',
    'UserError',
    '__version__',
    'compat',
    'data',
    'heads',
    'ladder',
    'load_model',
    'train',
    'tta',
    'weights',
]
