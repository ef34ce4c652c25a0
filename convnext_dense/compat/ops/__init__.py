"""The compiled ops of mmcv that MMDetection and MMSegmentation call, written with torchvision and PyTorch.

Each op is a function with the name, the arguments and the values of the compiled one; it fills the output buffers in
place. To add an op, write its function in the file of its family and add one line to ``OPS``.
"""

import importlib
from collections.abc import Callable

# op name -> the file of this folder that holds a function of that name
OPS: dict[str, str] = {
    'carafe_backward': 'carafe',
    'carafe_forward': 'carafe',
    'deform_conv_backward_input': 'deform_conv',
    'deform_conv_backward_parameters': 'deform_conv',
    'deform_conv_forward': 'deform_conv',
    'deform_roi_pool_backward': 'deform_roi_pool',
    'deform_roi_pool_forward': 'deform_roi_pool',
    'get_compiler_version': 'build_info',
    'get_compiling_cuda_version': 'build_info',
    'masked_col2im_forward': 'masked_conv',
    'masked_im2col_forward': 'masked_conv',
    'modulated_deform_conv_backward': 'deform_conv',
    'modulated_deform_conv_forward': 'deform_conv',
    'ms_deform_attn_backward': 'ms_deform_attn',
    'ms_deform_attn_forward': 'ms_deform_attn',
    'nms': 'nms',
    'nms_match': 'nms',
    'psamask_backward': 'psa_mask',
    'psamask_forward': 'psa_mask',
    'roi_align_backward': 'roi_align',
    'roi_align_forward': 'roi_align',
    'roi_pool_backward': 'roi_pool',
    'roi_pool_forward': 'roi_pool',
    'sigmoid_focal_loss_backward': 'focal_loss',
    'sigmoid_focal_loss_forward': 'focal_loss',
    'softnms': 'nms',
    'sync_bn_backward_data': 'sync_bn',
    'sync_bn_backward_param': 'sync_bn',
    'sync_bn_forward_mean': 'sync_bn',
    'sync_bn_forward_output': 'sync_bn',
    'sync_bn_forward_var': 'sync_bn',
}


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
