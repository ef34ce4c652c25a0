"""Time mmcv's ops as served here, beside a compiled mmcv, where one is installed, and beside a yardstick in PyTorch.

Run ``python benchmarks/ops.py [--device cuda] ["softnms*" ...]``. The functions of ``mmcv.ops`` are called, forward and
backward; the contestants take turns, and medians are printed.
"""

import argparse
import importlib
import statistics
import time
from collections.abc import Callable
from fnmatch import fnmatch
from functools import partial
from operator import attrgetter
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import torchvision
from torch import Tensor

from convnext_dense import compat
from convnext_dense.compat.ops import OPS, find_op

ROUNDS = 7


class Case(NamedTuple):
    """A call of a function of mmcv."""

    function: str  # in ``mmcv.ops``
    arguments: tuple
    trained: tuple[int, ...] = ()  # which of them have a gradient; where none has, there is no backward pass
    other: Callable[..., Tensor] | None = None  # a yardstick, which gets the same
    other_name: str = ''


def draw_boxes(count: int) -> tuple[Tensor, Tensor]:
    """Return boxes ``(N, 4)`` as corners, up to 100 pixels wide, and scores."""
    corner = torch.rand(count, 2) * 600
    return torch.cat([corner, corner + torch.rand(count, 2) * 100 + 1], dim=1), torch.rand(count)


def softnms(count: int, method: str, num_classes: int) -> Case:
    """Soft NMS of boxes that are moved apart by class, as mmcv's ``batched_nms`` does."""
    boxes, scores = draw_boxes(count)
    boxes += (torch.arange(count) % num_classes * (boxes.max() + 1))[:, None]
    return Case('nms.soft_nms', (boxes, scores, 0.5, 0.5, 0.05, method))


def attend(value: Tensor, sizes: Tensor, starts: Tensor, points: Tensor, weights: Tensor, step: int) -> Tensor:
    """Call mmcv's deformable attention in plain torch."""
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    return multi_scale_deformable_attn_pytorch(value, sizes, points, weights)


def focal_loss(logits: Tensor, classes: Tensor, *_: object) -> Tensor:
    """Call torchvision's focal loss, which takes the classes as numbers of 0 and 1."""
    return torchvision.ops.sigmoid_focal_loss(logits, torch.nn.functional.one_hot(classes, 81)[:, :80].float())


def roi_align(maps: Tensor, rois: Tensor, *_: object) -> Tensor:
    """Call torchvision's, which takes neither offsets nor their gamma."""
    return torchvision.ops.roi_align(maps, rois, 7, 0.125, 2, True)


def draw_cases() -> dict[str, Case]:
    """Return the calls; the maps are the second level of a feature pyramid, two images at stride 8."""
    boxes, scores = draw_boxes(4000)
    maps, rois = torch.randn(2, 256, 100, 168), torch.cat([torch.randint(0, 2, (512, 1)), draw_boxes(512)[0]], dim=1)
    sizes = torch.tensor([(50, 84), (25, 42), (13, 21), (7, 11)])
    starts = sizes.prod(dim=1).cumsum(0) - sizes.prod(dim=1)
    value = torch.rand(2, int(sizes.prod(dim=1).sum()), 8, 32)
    points, weights = torch.rand(2, 2000, 8, 4, 4, 2), torch.rand(2, 2000, 8, 4, 4)
    x, offset, kernel = torch.randn(2, 64, 50, 84), torch.randn(2, 18, 50, 84), torch.randn(64, 64, 3, 3)
    low, masks = torch.randn(1, 256, 50, 84), torch.rand(1, 25, 100, 168)
    logits, classes = torch.randn(20000, 80), torch.randint(0, 81, (20000,))
    attention = (value, sizes, starts, points, weights, 64)
    return {
        'nms, 4000 boxes': Case('nms.nms', (boxes, scores, 0.7), (), torchvision.ops.nms, 'torchvision.nms'),
        'nms with offset 1, 4000 boxes': Case('nms.nms', (boxes, scores, 0.7, 1)),
        'nms_match, 4000 boxes': Case('nms.nms_match', (torch.cat([boxes, scores[:, None]], dim=1), 0.7)),
        'softnms linear, 1000 boxes': softnms(1000, 'linear', 1),
        'softnms linear, 1000 in 80 classes': softnms(1000, 'linear', 80),
        'softnms linear, 4000 in 80 classes': softnms(4000, 'linear', 80),
        'softnms gaussian, 4000 boxes': softnms(4000, 'gaussian', 1),
        'roi_align': Case('roi_align.roi_align', (maps, rois, 7, 0.125, 2), (0,), roi_align, 'torchvision.roi_align'),
        'roi_pool': Case(
            'roi_pool.roi_pool', (maps, rois, 7, 0.125), (0,), torchvision.ops.roi_pool, 'torchvision, other rounding'
        ),
        'deform_roi_pool': Case(
            'deform_roi_pool.deform_roi_pool', (maps, rois, torch.randn(512, 2, 7, 7), 7, 0.125, 2, 0.1), (0, 2),
            roi_align, 'torchvision.roi_align',
        ),
        'deform_conv': Case('deform_conv.deform_conv2d', (x, offset, kernel, 1, 1), (0, 1, 2)),
        'carafe': Case('carafe.carafe', (low, masks, 5, 1, 2), (0, 1)),
        'ms_deform_attn': Case(
            'multi_scale_deform_attn.MultiScaleDeformableAttnFunction.apply', attention, (0, 3, 4), attend,
            'plain torch',
        ),
        'focal_loss': Case(
            'focal_loss.sigmoid_focal_loss', (logits, classes, 2.0, 0.25, None, 'none'), (0,), focal_loss, 'torchvision'
        ),
    }  # fmt: skip


def prepare(function: Callable, arguments: list, trained: tuple[int, ...]) -> Callable[[], object]:
    """Return the call of a function, or of the gradients of some of its arguments."""
    if not trained:
        return partial(function, *arguments)
    given = [each.detach().requires_grad_() if i in trained else each for i, each in enumerate(arguments)]
    output, inputs = function(*given), [given[i] for i in trained]
    return partial(torch.autograd.grad, output, inputs, torch.ones_like(output), retain_graph=True, allow_unused=True)


def time_case(case: Case, trained: tuple[int, ...], backends: dict[str, Any], device: str) -> dict[str, float]:
    """Return the median milliseconds of each contestant."""
    file, name = case.function.split('.', 1)
    module = importlib.import_module(f'mmcv.ops.{file}')
    arguments = [each.to(device) if isinstance(each, Tensor) else each for each in case.arguments]
    calls = {}
    for who, ext in backends.items():
        module.ext_module = ext
        calls[who] = prepare(attrgetter(name)(module), arguments, trained)
    if case.other:
        calls[case.other_name] = prepare(case.other, arguments, trained)
    times = {who: [] for who in calls}
    for _ in range(1 + ROUNDS):
        for who, call in calls.items():
            module.ext_module = backends.get(who)
            times[who].append(time_call(call, device))
    return {who: statistics.median(found[1:]) for who, found in times.items()}


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
    backends = {'ours': SimpleNamespace(**{op: find_op(op) for op in OPS})}
    if compat.ops_backend() == 'compiled':
        backends['compiled'] = importlib.import_module('mmcv._ext')
    print(f'{args.device}, {torch.get_num_threads()} threads, torch {torch.__version__}, median of {ROUNDS}, ms')
    torch.manual_seed(0)
    for name, case in draw_cases().items():
        ways = {f'{name}, forward': (), f'{name}, backward': case.trained} if case.trained else {name: ()}
        for title, trained in ways.items():
            if any(fnmatch(title, pattern) for pattern in args.cases):
                medians = time_case(case, trained, backends, args.device)
                print(f'{title:36}' + ', '.join(f'{who} {ms:.2f}' for who, ms in medians.items()), flush=True)


if __name__ == '__main__':
    main()
