"""The compiled ops of mmcv that MMDetection and MMSegmentation call, written with torchvision and PyTorch.

Each op is a function with the name, the arguments and the values of the compiled one; it fills the output buffers in
place. To add an op, write its function in the file of its family and add its name to ``FAMILIES``.
"""

import importlib
from collections.abc import Callable

# file of this folder -> the ops of which it holds functions
FAMILIES = {
    'build_info': ('get_compiler_version', 'get_compiling_cuda_version'),
    'carafe': ('carafe_backward', 'carafe_forward'),
    'deform_conv': ('deform_conv_backward_input', 'deform_conv_backward_parameters', 'deform_conv_forward',
                    'modulated_deform_conv_backward', 'modulated_deform_conv_forward'),
    'deform_roi_pool': ('deform_roi_pool_backward', 'deform_roi_pool_forward'),
    'focal_loss': ('sigmoid_focal_loss_backward', 'sigmoid_focal_loss_forward'),
    'masked_conv': ('masked_col2im_forward', 'masked_im2col_forward'),
    'ms_deform_attn': ('ms_deform_attn_backward', 'ms_deform_attn_forward'),
    'nms': ('nms', 'nms_match', 'softnms'),
    'psa_mask': ('psamask_backward', 'psamask_forward'),
    'roi_align': ('roi_align_backward', 'roi_align_forward'),
    'roi_pool': ('roi_pool_backward', 'roi_pool_forward'),
    'sync_bn': ('sync_bn_backward_data', 'sync_bn_backward_param', 'sync_bn_forward_mean',
                'sync_bn_forward_output', 'sync_bn_forward_var'),
}  # fmt: skip
OPS = {op: file for file, ops in FAMILIES.items() for op in ops}


def find_op(name: str) -> Callable:
    """Return the function of the op, or one that raises ``NotImplementedError`` when called.

    Importing ``mmcv.ops`` asks for about 150 names, so a missing op may only complain once it is used.
    """
    if name in OPS:
        return getattr(importlib.import_module(f'{__name__}.{OPS[name]}'), name)

    def missing_op(*args: object, **kwargs: object) -> None:
        raise NotImplementedError(
            f"The mmcv op '{name}' is not implemented here. Implemented are the ops that MMDetection and "
            'MMSegmentation call; convnext_dense.compat.ops.OPS lists them. Use a model without this op, or install an '
            'mmcv with compiled ops (https://mmcv.readthedocs.io/en/2.x/get_started/installation.html), which are then '
            'used instead.'
        )

    missing_op.__name__ = missing_op.__qualname__ = name
    return missing_op
