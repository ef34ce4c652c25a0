"""Time the served ops beside compiled mmcv's in one run, and beside torchvision's.

The contestants take turns; medians and their ratio are printed. A case is a function that draws its input on a device
and returns what to run; ``CASES`` lists them by name, in the order of the table.
"""

import argparse
import gc
import importlib
import importlib.util
import statistics
import time
from collections.abc import Callable
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import torch
import torchvision
from torch import Tensor

from convnext_dense import compat as stack
from convnext_dense.compat.ops import OPS, find_op


class Turn(NamedTuple):
    """What a case runs."""

    op: Callable[[Any], object]  # takes the module of the ops: ours, or a compiled one
    other: Callable[[], object] | None = None  # a yardstick where mmcv was not compiled
    other_name: str = ''


def draw_boxes(count: int, device: str, extent: float = 600.0) -> tuple[Tensor, Tensor]:
    """Return boxes ``(N, 4)`` as corners, up to 100 pixels wide, and scores."""
    corner = torch.rand(count, 2) * extent
    boxes = torch.cat([corner, corner + torch.rand(count, 2) * 100 + 1], dim=1)
    return boxes.to(device), torch.rand(count).to(device)


def draw_rotated(count: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return rotated boxes ``(N, 5)``, the same as corners ``(N, 8)``, and scores."""
    boxes, scores = draw_boxes(count, 'cpu')
    sizes, angle = boxes[:, 2:] - boxes[:, :2], torch.rand(count, 1) * 3
    rotated = torch.cat([boxes[:, :2], sizes, angle], dim=1)
    cos, sin, (w, h) = angle.cos(), angle.sin(), sizes.split(1, dim=1)
    along, aside = torch.cat([w * cos, w * sin], dim=1) / 2, torch.cat([-h * sin, h * cos], dim=1) / 2
    center = boxes[:, :2]
    corners = [center + along + aside, center - along + aside, center - along - aside, center + along - aside]
    return rotated.to(device), torch.cat(corners, dim=1).to(device), scores.to(device)


def draw_map(device: str, channels: int = 256) -> Tensor:
    """Return the second level of a feature pyramid, two images at stride 8."""
    return torch.randn(2, channels, 100, 168, device=device)


def draw_rois(count: int, device: str) -> Tensor:
    """Return RoIs ``(K, 5)`` of two images."""
    image = torch.randint(0, 2, (count, 1)).float()
    return torch.cat([image, draw_boxes(count, 'cpu')[0]], dim=1).to(device)


def nms(offset: int, device: str) -> Turn:
    """Horizontal NMS."""
    boxes, scores = draw_boxes(4000, device)
    return Turn(
        lambda ext: ext.nms(boxes, scores, iou_threshold=0.7, offset=offset),
        lambda: torchvision.ops.nms(boxes, scores, 0.7),
        'torchvision.nms',
    )


def nms_match(device: str) -> Turn:
    """NMS that tells who suppressed whom."""
    boxes, scores = draw_boxes(4000, device)
    dets = torch.cat([boxes, scores[:, None]], dim=1).cpu()
    return Turn(lambda ext: ext.nms_match(dets, iou_threshold=0.7))


def softnms(count: int, method: int, classes: int, device: str) -> Turn:
    """Soft NMS of boxes that are moved apart by class, as mmcv's ``batched_nms`` does."""
    boxes, scores = (t.cpu() for t in draw_boxes(count, device))
    boxes = boxes + (torch.arange(count) % classes * (boxes.max() + 1))[:, None]
    numbers = dict(iou_threshold=0.5, sigma=0.5, min_score=0.05, method=method, offset=0)
    return Turn(lambda ext: ext.softnms(boxes, scores, torch.empty(count, 5), **numbers))


def nms_rotated(quadri: bool, device: str) -> Turn:
    """NMS of rotated boxes, or of their corners."""
    rotated, corners, scores = draw_rotated(2000, device)
    boxes = corners if quadri else rotated
    order = scores.sort(descending=True).indices
    if quadri:
        return Turn(lambda ext: ext.nms_quadri(boxes, scores, order, boxes[order], 0.3, 0))
    return Turn(lambda ext: ext.nms_rotated(boxes, scores, order, boxes[order], order[:0], 0.3, 0))


def box_iou(quadri: bool, device: str) -> Turn:
    """Overlaps of all pairs."""
    rotated, corners, _ = draw_rotated(1000, device)
    boxes = corners if quadri else rotated
    ious = boxes.new_zeros(1000 * 1000)
    name = 'box_iou_quadri' if quadri else 'box_iou_rotated'
    return Turn(lambda ext: getattr(ext, name)(boxes, boxes, ious, mode_flag=0, aligned=False))


def bbox_overlaps(device: str) -> Turn:
    """Overlaps of all pairs of upright boxes."""
    boxes, others = draw_boxes(20000, device)[0], draw_boxes(100, device)[0]
    ious = boxes.new_zeros(20000, 100)
    return Turn(
        lambda ext: ext.bbox_overlaps(boxes, others, ious, mode=0, aligned=False, offset=0),
        lambda: torchvision.ops.box_iou(boxes, others),
        'torchvision.box_iou',
    )


def points_in_polygons(device: str) -> Turn:
    """All pairs of points and quadrilaterals."""
    points, polygons = torch.rand(20000, 2, device=device) * 600, draw_rotated(100, device)[1]
    inside = torch.zeros(20000, 100, device=device)
    return Turn(lambda ext: ext.points_in_polygons_forward(points, polygons, inside))


def min_area_polygons(device: str) -> Turn:
    """Smallest rectangles around nine points."""
    points, polygons = torch.rand(5000, 18, device=device), torch.zeros(5000, 8, device=device)
    return Turn(lambda ext: ext.min_area_polygons(points, polygons))


def roi_align(mode: int, backward: bool, device: str) -> Turn:
    """RoIAlign: 0 takes the maximum, 1 the mean."""
    features, rois = draw_map(device), draw_rois(512, device)
    output, y, x = (torch.zeros(512, 256, 7, 7, device=device) for _ in range(3))
    buffers = (y, x) if mode == 0 else (y[:0], x[:0])
    numbers = dict(
        aligned_height=7, aligned_width=7, spatial_scale=0.125, sampling_ratio=2, pool_mode=mode, aligned=True
    )
    find_op('roi_align_forward')(features, rois, output, *buffers, **numbers)
    if backward:
        total = torch.zeros_like(features)
        return Turn(lambda ext: ext.roi_align_backward(output, rois, *buffers, total, **numbers))
    return Turn(
        lambda ext: ext.roi_align_forward(features, rois, output, *buffers, **numbers),
        lambda: torchvision.ops.roi_align(features, rois, 7, 0.125, 2, True),
        'torchvision.roi_align, mean',
    )


def roi_align_rotated(backward: bool, device: str) -> Turn:
    """RoIAlign of rotated boxes."""
    features, upright = draw_map(device), draw_rois(512, device)
    boxes = draw_rotated(512, device)[0]
    rois = torch.cat([upright[:, :1], boxes], dim=1)
    output = torch.zeros(512, 256, 7, 7, device=device)
    numbers = (7, 7, 0.125, 2, True, True)
    if backward:
        total = torch.zeros_like(features)
        return Turn(lambda ext: ext.roi_align_rotated_backward(torch.ones_like(output), rois, total, *numbers))
    return Turn(
        lambda ext: ext.roi_align_rotated_forward(features, rois, output, *numbers),
        lambda: torchvision.ops.roi_align(features, upright, 7, 0.125, 2, True),
        'torchvision.roi_align, upright',
    )


def roi_pool(backward: bool, device: str) -> Turn:
    """RoI max pooling."""
    features, rois = draw_map(device), draw_rois(512, device)
    output = torch.zeros(512, 256, 7, 7, device=device)
    argmax = torch.zeros(512, 256, 7, 7, dtype=torch.int32, device=device)
    find_op('roi_pool_forward')(features, rois, output, argmax, 7, 7, 0.125)
    if backward:
        total = torch.zeros_like(features)
        return Turn(lambda ext: ext.roi_pool_backward(output, rois, argmax, total, 7, 7, 0.125))
    return Turn(
        lambda ext: ext.roi_pool_forward(features, rois, output, argmax, 7, 7, 0.125),
        lambda: torchvision.ops.roi_pool(features, rois, 7, 0.125),
        'torchvision.roi_pool, other rounding',
    )


def deform_roi_pool(backward: bool, device: str) -> Turn:
    """Deformable RoI pooling with offsets."""
    features, rois = draw_map(device), draw_rois(512, device)
    offset = torch.randn(512, 2, 7, 7, device=device)
    output = torch.zeros(512, 256, 7, 7, device=device)
    numbers = (7, 7, 0.125, 2, 0.1)
    if backward:
        totals = (torch.zeros_like(features), torch.zeros_like(offset))
        gradient = torch.ones_like(output)
        return Turn(lambda ext: ext.deform_roi_pool_backward(gradient, features, rois, offset, *totals, *numbers))
    return Turn(
        lambda ext: ext.deform_roi_pool_forward(features, rois, offset, output, *numbers),
        lambda: torchvision.ops.roi_align(features, rois, 7, 0.125, 2, True),
        'torchvision.roi_align',
    )


def prroi_pool(backward: bool, device: str) -> Turn:
    """Precise RoI pooling."""
    features, rois = draw_map(device), draw_rois(128, device)
    output = torch.zeros(128, 256, 7, 7, device=device)
    if backward:
        total = torch.zeros_like(features)
        return Turn(lambda ext: ext.prroi_pool_backward(torch.ones_like(output), rois, total, 7, 7, 0.125))
    return Turn(lambda ext: ext.prroi_pool_forward(features, rois, output, 7, 7, 0.125))


def border_align(backward: bool, device: str) -> Turn:
    """BorderAlign of a box for each pixel."""
    features = torch.randn(1, 4 * 64, 50, 84, device=device)
    boxes = draw_boxes(50 * 84, device)[0][None] / 8
    output = torch.zeros(1, 64, 50 * 84, 4, device=device)
    argmax = torch.zeros(output.shape, dtype=torch.int32, device=device)
    find_op('border_align_forward')(features, boxes, output, argmax, 10)
    if backward:
        total = torch.zeros_like(features)
        return Turn(lambda ext: ext.border_align_backward(output, boxes, argmax, total, 10))
    return Turn(lambda ext: ext.border_align_forward(features, boxes, output, argmax, 10))


def deform_conv(backward: bool, device: str) -> Turn:
    """Deformable convolution v1, 3 x 3; the backward turn finds all gradients, as a training step does."""
    x, weight, offset = (
        torch.randn(*shape, device=device) for shape in ((2, 64, 50, 84), (64, 64, 3, 3), (2, 18, 50, 84))
    )
    output, scratch = torch.zeros_like(x), torch.empty(0, device=device)
    total_x, total_offset, total_weight = (torch.zeros_like(tensor) for tensor in (x, offset, weight))
    geometry = dict(
        kW=3, kH=3, dW=1, dH=1, padW=1, padH=1, dilationW=1, dilationH=1, group=1, deformable_group=1, im2col_step=2
    )

    def run(ext: Any) -> None:
        if not backward:
            ext.deform_conv_forward(x, weight, offset, output, scratch, scratch, **geometry)
            return
        ext.deform_conv_backward_input(x, offset, x, total_x, total_offset, weight, scratch, **geometry)
        ext.deform_conv_backward_parameters(x, offset, x, total_weight, scratch, scratch, **geometry, scale=1)

    return Turn(run)


def modulated_deform_conv(backward: bool, device: str) -> Turn:
    """Deformable convolution v2, 3 x 3."""
    shapes = ((2, 64, 50, 84), (64, 64, 3, 3), (64,), (2, 18, 50, 84), (2, 9, 50, 84))
    x, weight, bias, offset, mask = inputs = [torch.randn(*shape, device=device) for shape in shapes]
    totals = [torch.zeros_like(tensor) for tensor in inputs]
    output, scratch = torch.zeros_like(x), torch.empty(0, device=device)
    geometry = dict(
        kernel_h=3, kernel_w=3, stride_h=1, stride_w=1, pad_h=1, pad_w=1, dilation_h=1, dilation_w=1, group=1,
        deformable_group=1, with_bias=True,
    )  # fmt: skip
    before, after = (x, weight, bias, scratch, offset, mask), (scratch,)
    if backward:
        return Turn(lambda ext: ext.modulated_deform_conv_backward(*before, *after, *totals, output, **geometry))
    return Turn(lambda ext: ext.modulated_deform_conv_forward(*before, output, *after, **geometry))


def psa_mask(backward: bool, device: str) -> Turn:
    """PSANet's masks of 25 x 25 taps on 13 x 13 pixels."""
    masks, attention = torch.randn(2, 25 * 25, 13, 13, device=device), torch.zeros(2, 13 * 13, 13, 13, device=device)
    sizes = (0, 2, 13, 13, 25, 25, 12, 12)
    if backward:
        return Turn(lambda ext: ext.psamask_backward(attention, masks, *sizes))
    return Turn(lambda ext: ext.psamask_forward(masks, attention, *sizes))


def ms_deform_attn(backward: bool, device: str) -> Turn:
    """Deformable attention of 2000 queries to four levels, beside mmcv's in plain torch."""
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    sizes = torch.tensor([(50, 84), (25, 42), (13, 21), (7, 11)], device=device)
    pixels = sizes.prod(dim=1)
    starts = pixels.cumsum(0) - pixels
    shapes = ((2, int(pixels.sum()), 8, 32), (2, 2000, 8, 4, 4, 2), (2, 2000, 8, 4, 4))
    value, location, weight = (torch.rand(*shape, device=device) for shape in shapes)
    gradient = torch.randn(2, 2000, 256, device=device)
    totals = [torch.zeros_like(tensor) for tensor in (value, location, weight)]
    arguments = (value, sizes, starts, location, weight)
    if not backward:
        return Turn(
            lambda ext: ext.ms_deform_attn_forward(*arguments, 64),
            lambda: multi_scale_deformable_attn_pytorch(value, sizes, location, weight),
            'plain torch',
        )
    inputs = [tensor.clone().requires_grad_() for tensor in (value, location, weight)]
    output = multi_scale_deformable_attn_pytorch(inputs[0], sizes, *inputs[1:])
    return Turn(
        lambda ext: ext.ms_deform_attn_backward(*arguments, gradient, *totals, 64),
        lambda: torch.autograd.grad(output, inputs, gradient, retain_graph=True),
        'plain torch',
    )


def carafe(backward: bool, device: str) -> Turn:
    """CARAFE, twice as large, 5 x 5 taps, beside a loop over the taps in plain torch."""
    features, masks = torch.randn(1, 256, 50, 84, device=device), torch.rand(1, 25, 100, 168, device=device)
    output = torch.zeros(1, 256, 100, 168, device=device)

    def by_taps(features: Tensor, masks: Tensor) -> Tensor:
        padded = torch.nn.functional.pad(features, (2, 2, 2, 2))[:, :, :, None, :, None]
        masks = masks.view(1, 25, 50, 2, 84, 2)
        return sum(padded[:, :, i // 5 : i // 5 + 50, :, i % 5 : i % 5 + 84] * masks[:, i, None] for i in range(25))

    scratch = torch.empty(0, device=device)
    if not backward:
        return Turn(
            lambda ext: ext.carafe_forward(features, masks, scratch, scratch, scratch, output, 5, 1, 2),
            lambda: by_taps(features, masks),
            'loop over the taps',
        )
    pixels_last, totals = (
        features.permute(0, 2, 3, 1).contiguous(),
        (torch.zeros_like(features), torch.zeros_like(masks)),
    )
    inputs = features.clone().requires_grad_(), masks.clone().requires_grad_()
    enlarged = by_taps(*inputs)
    return Turn(
        lambda ext: ext.carafe_backward(output, pixels_last, masks, *[scratch] * 4, *totals, 5, 1, 2),
        lambda: torch.autograd.grad(enlarged, inputs, output.view(enlarged.shape), retain_graph=True),
        'loop over the taps',
    )


def focal_loss(backward: bool, device: str) -> Turn:
    """Sigmoid focal loss of 20000 points, 80 classes, beside torchvision's."""
    logits, classes = torch.randn(20000, 80, device=device), torch.randint(0, 81, (20000,), device=device)
    output, no_weights = torch.zeros_like(logits), torch.empty(0, device=device)
    targets = torch.nn.functional.one_hot(classes, 81)[:, :80].float()
    loss_of_torchvision = torchvision.ops.sigmoid_focal_loss
    if not backward:
        return Turn(
            lambda ext: ext.sigmoid_focal_loss_forward(logits, classes, no_weights, output, 2.0, 0.25),
            lambda: loss_of_torchvision(logits, targets),
            'torchvision',
        )
    given = logits.clone().requires_grad_()
    loss = loss_of_torchvision(given, targets).sum()
    return Turn(
        lambda ext: ext.sigmoid_focal_loss_backward(logits, classes, no_weights, output, 2.0, 0.25),
        lambda: torch.autograd.grad(loss, given, retain_graph=True),
        'torchvision',
    )


def masked_conv(device: str) -> Turn:
    """The patches of a tenth of 100 x 168 pixels, 256 channels, beside those of all pixels."""
    features, mask = draw_map(device)[:1], torch.rand(100, 168, device=device) > 0.9
    rows, columns = mask.nonzero().T.contiguous()
    patches = torch.zeros(256 * 9, len(rows), device=device)
    return Turn(
        lambda ext: ext.masked_im2col_forward(features, rows, columns, patches, 3, 3, 1, 1),
        lambda: torch.nn.functional.unfold(features, 3, padding=1),
        'unfold',
    )


BOX_CASES: dict[str, Callable[[str], Turn]] = {
    'nms, 4000 boxes': partial(nms, 0),
    'nms with offset 1, 4000 boxes': partial(nms, 1),
    'nms_match, 4000 boxes': nms_match,
    'softnms linear, 1000 boxes': partial(softnms, 1000, 1, 1),
    'softnms linear, 1000 in 80 classes': partial(softnms, 1000, 1, 80),
    'softnms linear, 4000 boxes': partial(softnms, 4000, 1, 1),
    'softnms linear, 4000 in 80 classes': partial(softnms, 4000, 1, 80),
    'softnms gaussian, 4000 boxes': partial(softnms, 4000, 2, 1),
    'nms_rotated, 2000 boxes': partial(nms_rotated, False),
    'nms_quadri, 2000 boxes': partial(nms_rotated, True),
    'box_iou_rotated, 1000 x 1000': partial(box_iou, False),
    'box_iou_quadri, 1000 x 1000': partial(box_iou, True),
    'bbox_overlaps, 20000 x 100': bbox_overlaps,
    'points_in_polygons, 20000 x 100': points_in_polygons,
    'min_area_polygons, 5000 sets': min_area_polygons,
}
ROI_CASES: dict[str, Callable[[str], Turn]] = {
    'roi_align mean, forward': partial(roi_align, 1, False),
    'roi_align mean, backward': partial(roi_align, 1, True),
    'roi_align max, forward': partial(roi_align, 0, False),
    'roi_align max, backward': partial(roi_align, 0, True),
    'roi_align_rotated, forward': partial(roi_align_rotated, False),
    'roi_align_rotated, backward': partial(roi_align_rotated, True),
    'roi_pool, forward': partial(roi_pool, False),
    'roi_pool, backward': partial(roi_pool, True),
    'deform_roi_pool, forward': partial(deform_roi_pool, False),
    'deform_roi_pool, backward': partial(deform_roi_pool, True),
    'border_align, forward': partial(border_align, False),
    'border_align, backward': partial(border_align, True),
    'prroi_pool, forward': partial(prroi_pool, False),
    'prroi_pool, backward': partial(prroi_pool, True),
}
LAYER_CASES: dict[str, Callable[[str], Turn]] = {
    'deform_conv, forward': partial(deform_conv, False),
    'deform_conv, backward': partial(deform_conv, True),
    'modulated_deform_conv, forward': partial(modulated_deform_conv, False),
    'modulated_deform_conv, backward': partial(modulated_deform_conv, True),
    'masked_conv2d, patches': masked_conv,
    'carafe, forward': partial(carafe, False),
    'carafe, backward': partial(carafe, True),
    'ms_deform_attn, forward': partial(ms_deform_attn, False),
    'ms_deform_attn, backward': partial(ms_deform_attn, True),
    'psa_mask, forward': partial(psa_mask, False),
    'psa_mask, backward': partial(psa_mask, True),
    'sigmoid_focal_loss, forward': partial(focal_loss, False),
    'sigmoid_focal_loss, backward': partial(focal_loss, True),
}
CASES = {**BOX_CASES, **ROI_CASES, **LAYER_CASES}


def parse_args() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('cases', nargs='*', default=['*'], help='patterns of names, for example "nms*" (default: all)')
    parser.add_argument('--rounds', type=int, default=7, help='counted turns of each contestant')
    parser.add_argument('--threads', type=int, help='CPU threads (default: all)')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument(
        '--compiled',
        type=Path,
        action='append',
        metavar='FILE',
        default=[],
        help='compiled ops other than those of the installed mmcv; may be given several times',
    )
    return parser.parse_args()


def load_compiled(files: list[Path]) -> SimpleNamespace | ModuleType | None:
    """Return the compiled ops, from the files or as mmcv's; None where there are none."""
    if not files:
        return importlib.import_module('mmcv._ext') if stack.ops_backend() == 'compiled' else None
    ops = {}
    for file in files:
        spec = importlib.util.spec_from_file_location(file.name.partition('.')[0], file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        ops.update(vars(module))
    return SimpleNamespace(**ops)


def contestants_of(turn: Turn, compiled: SimpleNamespace | ModuleType | None) -> dict[str, Callable[[], object]]:
    """Return name -> call, ours first."""
    ours = SimpleNamespace(**{name: find_op(name) for name in OPS})
    calls = {'ours': partial(turn.op, ours)}
    if compiled:
        try:
            turn.op(compiled)
            calls['compiled'] = partial(turn.op, compiled)
        except (AttributeError, RuntimeError):  # not in this build, or not for this device
            pass
    if turn.other:
        calls['other'] = turn.other
    return calls


def timed(call: Callable[[], object], device: str) -> float:
    """Return the seconds that a call takes."""
    if device.startswith('cuda'):
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if device.startswith('cuda'):
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    """Time the cases and print one row for each."""
    args = parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    stack.prepare()
    compiled = load_compiled(args.compiled)
    print(
        f'{args.device}, {torch.get_num_threads()} threads, torch {torch.__version__}, torchvision '
        f'{torchvision.__version__}, median of {args.rounds}'
    )
    print(f'{"":36}{"ours":>12}{"compiled":>12}{"other":>12}{"compiled / ours":>17}{"other / ours":>14}')
    for name, case in CASES.items():
        if not any(fnmatch(name, pattern) for pattern in args.cases):
            continue
        torch.manual_seed(0)
        turn = case(args.device)
        calls = contestants_of(turn, compiled)
        seconds = {contestant: [] for contestant in calls}
        for _ in range(1 + args.rounds):
            for contestant, call in calls.items():
                gc.collect()
                seconds[contestant].append(timed(call, args.device))
        medians = {contestant: statistics.median(values[1:]) for contestant, values in seconds.items()}
        row = [f'{1000 * medians[c]:.2f} ms' if c in medians else '-' for c in ('ours', 'compiled', 'other')]
        ratios = [f'{medians[c] / medians["ours"]:.2f}' if c in medians else '-' for c in ('compiled', 'other')]
        print(
            f'{name:36}'
            + ''.join(f'{cell:>12}' for cell in row)
            + f'{ratios[0]:>17}{ratios[1]:>14}  {turn.other_name}',
            flush=True,
        )


if __name__ == '__main__':
    main()
