"""The compiled ops of mmcv, one file per family, served by torchvision and plain torch.

In: the name of an op, as mmcv's Python wrappers ask ``mmcv._ext`` for it. Out: a function with the arguments of the
compiled op, output buffers filled in place included, and with its values.

To add an op: write a function of that name in the family's file (or in a new file) and add one line to ``OPS``.
"""

import importlib
from collections.abc import Callable

# op name -> the file of this folder that holds a function of that name
OPS: dict[str, str] = {
    'bbox_overlaps': 'bbox_overlaps',
    'border_align_backward': 'border_align',
    'border_align_forward': 'border_align',
    'box_iou_quadri': 'rotated_boxes',
    'box_iou_rotated': 'rotated_boxes',
    'carafe_backward': 'carafe',
    'carafe_forward': 'carafe',
    'carafe_naive_backward': 'carafe',
    'carafe_naive_forward': 'carafe',
    'deform_conv_backward_input': 'deform_conv',
    'deform_conv_backward_parameters': 'deform_conv',
    'deform_conv_forward': 'deform_conv',
    'deform_roi_pool_backward': 'deform_roi_pool',
    'deform_roi_pool_forward': 'deform_roi_pool',
    'get_compiler_version': 'build_info',
    'get_compiling_cuda_version': 'build_info',
    'masked_col2im_forward': 'masked_conv',
    'masked_im2col_forward': 'masked_conv',
    'min_area_polygons': 'polygons',
    'modulated_deform_conv_backward': 'deform_conv',
    'modulated_deform_conv_forward': 'deform_conv',
    'ms_deform_attn_backward': 'ms_deform_attn',
    'ms_deform_attn_forward': 'ms_deform_attn',
    'nms': 'nms',
    'nms_match': 'nms',
    'nms_quadri': 'rotated_boxes',
    'nms_rotated': 'rotated_boxes',
    'points_in_polygons_forward': 'polygons',
    'prroi_pool_backward': 'prroi_pool',
    'prroi_pool_coor_backward': 'prroi_pool',
    'prroi_pool_forward': 'prroi_pool',
    'psamask_backward': 'psa_mask',
    'psamask_forward': 'psa_mask',
    'roi_align_backward': 'roi_align',
    'roi_align_forward': 'roi_align',
    'roi_align_rotated_backward': 'roi_align_rotated',
    'roi_align_rotated_forward': 'roi_align_rotated',
    'roi_pool_backward': 'roi_pool',
    'roi_pool_forward': 'roi_pool',
    'sigmoid_focal_loss_backward': 'focal_loss',
    'sigmoid_focal_loss_forward': 'focal_loss',
    'softmax_focal_loss_backward': 'focal_loss',
    'softmax_focal_loss_forward': 'focal_loss',
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
    return _missing_op(name)


def _missing_op(name: str) -> Callable:
    def missing_op(*args: object, **kwargs: object) -> None:
        raise NotImplementedError(
            f"The mmcv op '{name}' is not implemented here: torchvision serves mmcv's ops, and of them those listed in "
            'convnext_dense.compat.ops.OPS. Use a model without this op, or install an mmcv with compiled ops '
            '(https://mmcv.readthedocs.io/en/2.x/get_started/installation.html), which is then used instead.'
        )

    missing_op.__name__ = missing_op.__qualname__ = name
    return missing_op
