"""Which op of ``mmcv.ops`` is served, by what, and how near to compiled mmcv. Out: ``docs/ops.md``.

One row per family of compiled ops. Each of the ops that ``mmcv.ops`` asks ``mmcv._ext`` for stands in exactly one row,
and a row either says what serves it or why nothing does; tests hold the table against mmcv, mmdet, mmseg and ``OPS``.
"""

from pathlib import Path
from typing import NamedTuple

FILE = Path(__file__).parents[3] / 'docs/ops.md'


class Row(NamedTuple):
    """One family of ops."""

    ops: tuple[str, ...]  # names in ``mmcv._ext``
    used_by: str  # who in mmdet and mmseg; '' for nobody
    served_by: str  # what computes it; '' where it is not served
    exactness: str  # beside compiled mmcv 2.1; for an op that is not served, why
    speed: str = ''  # time of compiled mmcv 2.1 / time of ours, above 1 is faster


# Boxes, RoIs and normalization
BOXES_AND_ROIS: tuple[Row, ...] = (
    Row(
        ops=('nms',),
        used_by='every detector with boxes, through batched_nms',
        served_by="torchvision's nms; with offset 1 plain torch, a block of boxes at a time",
        exactness='the same boxes in the same order, ties and NaN included',
        speed='1.1; with offset 1 1.8',
    ),
    Row(
        ops=('nms_match',),
        used_by='PISA (ScoreHLRSampler)',
        served_by='plain torch, a block of boxes at a time',
        exactness='the same groups in the same order, ties and NaN included',
        speed='1.8',
    ),
    Row(
        ops=('softnms',),
        used_by="CornerNet, CentripetalNet and every detector with nms=dict(type='soft_nms')",
        served_by='NumPy, vectorized over classes and the boxes that wait: of each class one wins at a time',
        exactness='the same boxes in the same order, bit-equal scores; with the gaussian method scores to 1e-7',
        speed='of one class 0.2 with 1000 boxes, 0.5 with 4000; of 80 classes 5 to 9 times the speed of one',
    ),
    Row(
        ops=('nms_rotated', 'nms_quadri'),
        used_by="nobody, but nms=dict(type='nms_rotated') reaches them",
        served_by='plain torch: the overlaps below, of pairs whose bounds meet',
        exactness='the same boxes where no overlap is within 1e-6 of the threshold or wrong in mmcv, as told below; '
        'labels do not tell boxes apart, as in mmcv',
        speed='38; quadrilaterals 18',
    ),
    Row(
        ops=('box_iou_rotated',),
        used_by='',
        served_by='plain torch: integrals over the edges, in the frame of the smaller box',
        exactness="to 1e-6 of the truth. mmcv's is wrong by up to 0.9 for 2 % to 10 % of the pairs with edges on one "
        'line, such as boxes of one angle and centre',
        speed='48',
    ),
    Row(
        ops=('box_iou_quadri',),
        used_by='',
        served_by='plain torch: integrals over pairs of edges, in float64',
        exactness="to 1e-6 of the truth, for concave ones too. mmcv's looks for corners inside as if both were "
        'rectangles, and is wrong by more than 0.01 for nearly half of all random convex pairs',
        speed='31',
    ),
    Row(
        ops=('bbox_overlaps',),
        used_by='',
        served_by='plain torch, part by part',
        exactness="bit-equal; on a GPU with the limits of mmcv's CUDA kernel",
        speed='2.9',
    ),
    Row(
        ops=('roi_align_forward', 'roi_align_backward'),
        used_by='every two-stage detector (RoIAlign), and the targets of mask heads',
        served_by="mean: torchvision's kernels; maximum: embedding_bag",
        exactness='mean: bit-equal; maximum: to 1e-6, and where two samples tie in the last bit the gradient may go to '
        'the other; half precision in float32; RoIs with NaN or of no image raise, and the mean of those of no image '
        'is NaN on a GPU, which has not to wait then',
        speed='mean: forward 2.1, backward 1.1; maximum: forward 1.1, backward 0.6',
    ),
    Row(
        ops=('roi_pool_forward', 'roi_pool_backward'),
        used_by="roi_layer=dict(type='RoIPool')",
        served_by="torchvision's roi_pool, with each cell as a RoI of its own: it rounds otherwise than mmcv",
        exactness="bit-equal to mmcv's CUDA kernels, argmax included, and on the CPU too; a RoI without size sends no "
        "gradient, mmcv's sends it to the first pixel",
    ),
    Row(
        ops=('deform_roi_pool_forward', 'deform_roi_pool_backward'),
        used_by='the configs with dpool and mdpool in dcn and dcnv2 (DeformRoIPoolPack, ModulatedDeformRoIPoolPack)',
        served_by='embedding_bag',
        exactness="to 1e-6 beside mmcv's CUDA kernels, and on the CPU too; within a pixel of the map's border the "
        "gradient of the offsets is the derivative, which mmcv's is not",
    ),
    Row(
        ops=('roi_align_rotated_forward', 'roi_align_rotated_backward'),
        used_by='',
        served_by='embedding_bag',
        exactness='to 3e-6; half precision in float32; RoIs with NaN or of no image raise',
        speed='forward 3.4, backward 5.4',
    ),
    Row(
        ops=('prroi_pool_forward', 'prroi_pool_backward', 'prroi_pool_coor_backward'),
        used_by="nobody, but roi_layer=dict(type='PrRoIPool') reaches them",
        served_by='two matrix products for each RoI',
        exactness="to 2e-5 beside mmcv's CUDA kernels, 1e-3 with cells of a hundredth of a pixel; on the CPU too",
    ),
    Row(
        ops=('border_align_forward', 'border_align_backward'),
        used_by='',
        served_by='embedding_bag',
        exactness="to 3e-7 beside mmcv's CUDA kernels, argmax equal; on the CPU too; NaN boxes give 0, where mmcv "
        'reads foreign memory',
    ),
    Row(
        ops=('points_in_polygons_forward',),
        used_by='',
        served_by='plain torch, part by part',
        exactness="equal to mmcv's CUDA kernel, points on the border included; on the CPU too",
    ),
    Row(
        ops=('min_area_polygons',),
        used_by='',
        served_by='plain torch, part by part',
        exactness="area to 1e-6 beside mmcv's CUDA kernel; of several smallest rectangles it may be another one; sets "
        'of points on one line are served, where mmcv writes to foreign memory; on the CPU too',
    ),
    Row(
        ops=('get_compiler_version', 'get_compiling_cuda_version'),
        used_by='the environment report',
        served_by='torchvision and torch by name',
        exactness='text',
    ),
)

# Convolutions, attention, upsampling and losses
LAYERS_AND_LOSSES: tuple[Row, ...] = (
    Row(
        ops=('deform_conv_forward', 'deform_conv_backward_input', 'deform_conv_backward_parameters'),
        used_by='DCN layers, RepPoints, FoveaBox, VFNet, TOOD, Cascade RPN, guided anchoring, CentripetalNet, SAC',
        served_by="torchvision's deform_conv2d and its backward",
        exactness='output bit-equal, gradients to 4e-7 of the largest, also where new offsets are 0; half precision in '
        'float32, bfloat16 too; NaN as an offset samples nothing; takes maps smaller than the kernel too, unlike mmcv',
        speed='forward 1.2, backward 1.5',
    ),
    Row(
        ops=('modulated_deform_conv_forward', 'modulated_deform_conv_backward'),
        used_by='DCNv2 layers, DyHead, CenterNet, the VL fusion head of GLIP',
        served_by="torchvision's deform_conv2d and its backward",
        exactness="as v1; offset maps larger than the output are read from their first number on, as DyHead's are",
        speed='forward 1.2, backward 1.6',
    ),
    Row(
        ops=('masked_im2col_forward', 'masked_col2im_forward'),
        used_by='guided anchoring, when it predicts',
        served_by='index_select',
        exactness="bit-equal to mmcv's CUDA kernels, and on the CPU too; a mask that is larger than the output raises, "
        'where mmcv writes to foreign memory',
    ),
    Row(
        ops=('carafe_forward', 'carafe_backward', 'carafe_naive_forward', 'carafe_naive_backward'),
        used_by='FPN_CARAFE, the mask head with CARAFE; nobody uses the naive one',
        served_by='bmm over the pixels, part by part',
        exactness="output bit-equal to mmcv's naive CUDA kernel, gradients to 2e-7 of the largest; half precision in "
        "float32; on the CPU too, where mmcv's own wrapper refuses the naive backward",
    ),
    Row(
        ops=('ms_deform_attn_forward', 'ms_deform_attn_backward'),
        used_by='Deformable DETR, DINO, DDQ, Grounding DINO, Mask2Former, on a GPU; on the CPU mmcv asks for no op',
        served_by='embedding_bag, and for the gradient of the values embedding_bag after a sort: no atomics',
        exactness="to 3e-7 of the largest beside mmcv's CUDA kernels; half precision in float32; any batch size",
    ),
    Row(
        ops=('psamask_forward', 'psamask_backward'),
        used_by='PSANet',
        served_by='copies through skew views, row by row',
        exactness='bit-equal',
        speed='forward 270, backward 400',
    ),
    Row(
        ops=('sigmoid_focal_loss_forward', 'sigmoid_focal_loss_backward'),
        used_by='RetinaNet and every head with FocalLoss on a GPU; on the CPU mmdet and mmseg ask for no op',
        served_by='plain torch, vectorized',
        exactness="to 4e-7 of the largest beside mmcv's CUDA kernels, 3e-6 at saturated logits; half precision in "
        "float32, where mmcv's is infinite from a logit of 9 on; a class weight for background raises, where mmcv "
        'reads foreign memory',
    ),
    Row(
        ops=('softmax_focal_loss_forward', 'softmax_focal_loss_backward'),
        used_by='',
        served_by='plain torch, vectorized',
        exactness="to 1e-7 of the largest beside mmcv's CUDA kernels; where the probability is 1 and gamma below 1, "
        "the gradient is 0 and mmcv's NaN; the class C raises, where mmcv reads the next row",
    ),
    Row(
        ops=(
            'sync_bn_forward_mean',
            'sync_bn_forward_var',
            'sync_bn_forward_output',
            'sync_bn_backward_param',
            'sync_bn_backward_data',
        ),
        used_by='MMSyncBN: the strong baselines and simple copy-paste of mmdet',
        served_by='plain torch, vectorized',
        exactness="that of torch's BatchNorm over all processes, to 1e-5; on the CPU too, and in a process without a "
        "group, where mmcv's cannot be built",
    ),
)

NOT_SERVED: tuple[Row, ...] = (
    Row(
        ops=('bias_act', 'filtered_lrelu', 'filtered_lrelu_act_', 'fused_bias_leakyrelu', 'upfirdn2d'),
        used_by='',
        served_by='',
        exactness='for generators of images, in MMagic',
    ),
    Row(
        ops=('correlation_forward', 'correlation_backward'),
        used_by='',
        served_by='',
        exactness='for optical flow, in MMFlow',
    ),
    Row(
        ops=('tin_shift_forward', 'tin_shift_backward'),
        used_by='',
        served_by='',
        exactness='for videos, in MMAction2',
    ),
    Row(
        ops=(
            'active_rotated_filter_forward',
            'active_rotated_filter_backward',
            'rotated_feature_align_forward',
            'rotated_feature_align_backward',
            'convex_giou',
            'convex_iou',
            'diff_iou_rotated_sort_vertices_forward',
            'riroi_align_rotated_forward',
            'riroi_align_rotated_backward',
        ),
        used_by='',
        served_by='',
        exactness='for rotated boxes, in MMRotate',
    ),
    Row(
        ops=(
            'get_indice_pairs_2d_forward',
            'get_indice_pairs_3d_forward',
            'get_indice_pairs_4d_forward',
            'get_indice_pairs_2d_backward',
            'get_indice_pairs_3d_backward',
            'indice_conv_forward',
            'indice_conv_backward',
            'fused_indice_conv_forward',
            'indice_maxpool_forward',
            'indice_maxpool_backward',
        ),
        used_by='',
        served_by='',
        exactness='sparse convolution, for point clouds, in MMDetection3D',
    ),
    Row(
        ops=(
            'bezier_align_forward',
            'bezier_align_backward',
            'contour_expand',
            'pixel_group',
        ),
        used_by='',
        served_by='',
        exactness='for text, in MMOCR',
    ),
    Row(
        ops=(
            'assign_score_withk_backward',
            'assign_score_withk_forward',
            'ball_query_forward',
            'chamfer_distance_backward',
            'chamfer_distance_forward',
            'dynamic_point_to_voxel_backward',
            'dynamic_point_to_voxel_forward',
            'dynamic_voxelize_forward',
            'furthest_point_sampling_forward',
            'furthest_point_sampling_with_dist_forward',
            'gather_points_backward',
            'gather_points_forward',
            'group_points_backward',
            'group_points_forward',
            'hard_voxelize_forward',
            'iou3d_boxes_overlap_bev_forward',
            'iou3d_nms3d_forward',
            'iou3d_nms3d_normal_forward',
            'knn_forward',
            'points_in_boxes_all_forward',
            'points_in_boxes_cpu_forward',
            'points_in_boxes_part_forward',
            'roiaware_pool3d_backward',
            'roiaware_pool3d_forward',
            'roipoint_pool3d_forward',
            'stack_ball_query_forward',
            'stack_group_points_backward',
            'stack_group_points_forward',
            'three_interpolate_backward',
            'three_interpolate_forward',
            'three_nn_forward',
        ),
        used_by='',
        served_by='',
        exactness='for points and boxes in 3D, in MMDetection3D',
    ),
)

OPS_TABLE = (*BOXES_AND_ROIS, *LAYERS_AND_LOSSES, *NOT_SERVED)

HEAD = """# The ops of mmcv

Where mmcv was not compiled, `mmcv._ext` is served from torchvision's and PyTorch's kernels, on the CPU and on a GPU.
Made from `convnext_dense/compat/ops/coverage.py` by `python tools/ops_table.py`; `--check` tells whether it is up to
date. An op that is not served raises `NotImplementedError` with its name as soon as it is called.

Exactness and speed are those beside compiled mmcv 2.1 on the CPU; where it has no CPU kernel, its CUDA kernel was
compiled for the CPU to compare values, and there is no speed. Speed is the time of compiled mmcv over the time here
(above 1 is faster), one thread, from `python tools/benchmark_ops.py`. Half precision is computed in float32 unless
told otherwise.

Input that does not fit - devices, types, shapes, modes, RoIs of no image or with NaN - raises an error that names the
op and the argument, also where mmcv reads foreign memory. Boxes are floating-point numbers, as in mmcv. No op has a
second derivative. Of many boxes the pairs are never held all at once: 100 000 boxes to suppress take less than 500 MB
on the CPU.

Of what MMDetection and MMSegmentation use, `CornerPool`, `CrissCrossAttention`, `point_sample` and the merge cells have
no compiled part in mmcv 2.1, and `SAConv2d` none of its own. The onedl fork has one op more, `line_nms_forward` for the
lanes of CLRerNet, which is not served.
"""


def write_page() -> Path:
    """Write the page and return its file."""
    FILE.write_text(describe_ops())
    return FILE


def is_current() -> bool:
    """Tell whether the page says what the table says."""
    return FILE.is_file() and FILE.read_text() == describe_ops()


def describe_ops() -> str:
    """Return the text of the page."""
    served = [row for row in OPS_TABLE if row.served_by]
    table = _format_rows(
        ['op', 'used by', 'served by', 'exactness', 'speed'],
        [[_names(row), row.used_by or 'nobody', row.served_by, row.exactness, row.speed or '-'] for row in served],
    )
    missing = _format_rows(
        ['op', 'why it is not served'],
        [[_names(row), row.exactness] for row in OPS_TABLE if not row.served_by],
    )
    return '\n'.join([HEAD, '## Served', '', table, '## Not served: nobody in mmdet and mmseg uses them', '', missing])


def _names(row: Row) -> str:
    return ', '.join(f'`{op}`' for op in row.ops)


def _format_rows(titles: list[str], rows: list[list[str]]) -> str:
    lines = [titles, ['---'] * len(titles), *rows]
    return ''.join(f'| {" | ".join(cells)} |\n' for cells in lines)
