"""What mmcv's environment report says about the build of its ops."""

import torch


def get_compiler_version() -> str:
    """Name what serves the ops, since no compiler built them here."""
    import torchvision

    return f'n/a, ops served by torchvision {torchvision.__version__}'


def get_compiling_cuda_version() -> str:
    """Return the CUDA version that torch, and so torchvision, was built with."""
    return torch.version.cuda or 'not available'
