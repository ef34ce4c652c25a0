"""Time the ops beside those of a compiled mmcv, where one is installed, and beside a yardstick in PyTorch.

Run ``python benchmarks/ops.py [--device cuda] ["softnms*" ...]``. The contestants take turns; medians are printed.
"""

import argparse
import importlib
import statistics
import time
from collections.abc import Callable
from fnmatch import fnmatch
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import torchvision
from torch import Tensor

from convnext_dense import compat
from convnext_dense.compat.ops import OPS, find_op

ROUNDS = 7


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


def roi_align(backward: bool, device: str) -> Turn:
    """RoIAlign of 512 RoIs."""
    features, rois = draw_map(device), draw_rois(512, device)
    output = torch.zeros(512, 256, 7, 7, device=device)
    numbers = (output[:0], output[:0], 7, 7, 0.125, 2, 1, True)
    if backward:
        total, (y, x, *rest) = torch.zeros_like(features), numbers
        return Turn(lambda ext: ext.roi_align_backward(output, rois, y, x, total, *rest))
    return Turn(
        lambda ext: ext.roi_align_forward(features, rois, output, *numbers),
        lambda: torchvision.ops.roi_align(features, rois, 7, 0.125, 2, True),
        'torchvision.roi_align',
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
    """CARAFE, twice as large, 5 x 5 taps."""
    features, masks = torch.randn(1, 256, 50, 84, device=device), torch.rand(1, 25, 100, 168, device=device)
    output, scratch = torch.zeros(1, 256, 100, 168, device=device), torch.empty(0, device=device)
    if not backward:
        return Turn(lambda ext: ext.carafe_forward(features, masks, scratch, scratch, scratch, output, 5, 1, 2))
    pixels_last = features.permute(0, 2, 3, 1).contiguous()
    totals = (torch.zeros_like(features), torch.zeros_like(masks))
    return Turn(lambda ext: ext.carafe_backward(output, pixels_last, masks, *[scratch] * 4, *totals, 5, 1, 2))


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


CASES: dict[str, Callable[[str], Turn]] = {
    'nms, 4000 boxes': partial(nms, 0),
    'nms with offset 1, 4000 boxes': partial(nms, 1),
    'nms_match, 4000 boxes': nms_match,
    'softnms linear, 1000 boxes': partial(softnms, 1000, 1, 1),
    'softnms linear, 1000 in 80 classes': partial(softnms, 1000, 1, 80),
    'softnms linear, 4000 in 80 classes': partial(softnms, 4000, 1, 80),
    'softnms gaussian, 4000 boxes': partial(softnms, 4000, 2, 1),
    **{
        f'{case.__name__}, {way}': partial(case, way == 'backward')
        for case in (
            roi_align, roi_pool, deform_roi_pool, deform_conv, carafe, ms_deform_attn, focal_loss
        )
        for way in ('forward', 'backward')
    },
}  # fmt: skip


def time_call(call: Callable[[], object], device: str) -> float:
    """Return the milliseconds that a call takes."""
    wait = torch.cuda.synchronize if device.startswith('cuda') else lambda: None
    wait()
    start = time.perf_counter()
    call()
    wait()
    return 1000 * (time.perf_counter() - start)


def main() -> None:
    """Time the cases and print one row for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('cases', nargs='*', default=['*'], help='patterns of names (default: all)')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    args = parser.parse_args()
    compat.prepare()
    print(f'{args.device}, {torch.get_num_threads()} threads, torch {torch.__version__}, median of {ROUNDS}, ms')
    for name, case in CASES.items():
        if not any(fnmatch(name, pattern) for pattern in args.cases):
            continue
        torch.manual_seed(0)
        turn = case(args.device)
        calls = {'ours': partial(turn.op, SimpleNamespace(**{op: find_op(op) for op in OPS}))}
        if compat.ops_backend() == 'compiled':
            calls['compiled'] = partial(turn.op, importlib.import_module('mmcv._ext'))
        if turn.other:
            calls[turn.other_name] = turn.other
        rounds = [[time_call(call, args.device) for call in calls.values()] for _ in range(1 + ROUNDS)][1:]
        medians = [statistics.median(times) for times in zip(*rounds, strict=True)]
        print(f'{name:36}' + ', '.join(f'{who} {ms:.2f}' for who, ms in zip(calls, medians, strict=True)), flush=True)


if __name__ == '__main__':
    main()
