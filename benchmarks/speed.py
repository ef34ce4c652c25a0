"""Time whole images and training steps beside stock code: MMDetection and MMSegmentation with mmpretrain's backbone.

    make bench                          # all tables, with results in benchmarks/results; hours on two cores
    make bench ARGS='image windows'     # some
    make bench-smoke                    # stock and ours once; fails where ours has lost ground against the results
    make bench-gpu                      # on a GPU, with larger images, in minutes

Each row is one lane, a way to run the same model with the same weights on the same input. Lanes take turns, each in a
process of its own; a call that is not counted comes first. Results of a call are compared before they count. Where a
table has the machine's own speed, it was measured in the same turns.
"""

import argparse
import copy
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from counters import count
from mmengine.config import Config
from mmengine.registry import MODELS
from parity import COLORS, stock_name, with_stock
from tables import RESULTS, read_results, write_results
from torch import Tensor, nn
from torch.nn import functional as F

from convnext_dense.compat.ops import roi_samples
from convnext_dense.configs import load_config, model_scope
from convnext_dense.speed import compile_maps, keep_memory, speed_up
from convnext_dense.train import config as run_config
from convnext_dense.train.launch import device_type
from convnext_dense.train.screen import quiet
from convnext_dense.train.stats import prepare_step, prepare_test

DEVICE = device_type()
PICTURE = Path(__file__).parent.parent / f'docs/speed{"" if DEVICE == "cpu" else "_gpu"}.png'
ROUNDS, CALLS = 2, 3  # turns of each lane, and calls that count in a turn
LOST = 0.75  # share of the speed-up of the results that a smoke run must reach
REFERENCE = 'stock'
CASCADE = 'det/cascade_convnext_t_coco', (800, 480)
UPERNET = 'seg/upernet_convnext_t_ade20k'
COLUMNS = {
    'lane': '', 'time (s)': '.3f', 'fastest': '.3f', 'slowest': '.3f', 'speed-up': '.2f', 'GFLOP': '.0f',
    'GFLOP/s': '.0f', 'share': '.0%', 'GB/s': '.0f', 'peak memory (GB)': '.2f', 'saved (MB)': '.0f',
    'relayout (MB)': '.0f', 'launches': 'd', 'waits': 'd', 'difference': '.0e',
}  # fmt: skip


class Lane(NamedTuple):
    """A way to run a model.

    Its side is 'ours' or 'stock'; 'timm', 'torchvision' or 'transformers' for the bare backbone; a key of ``CEILINGS``
    for what the machine can do.
    """

    side: str
    amp: bool = False  # in bf16
    fast: bool = True  # with the layers of ``speed_up``; ours alone
    keep: bool = True  # with the memory kept that is freed
    compiled: bool = False  # backbone and neck by ``torch.compile``; ours alone
    kernels: bool = True  # RoIAlign as a sparse matrix; else torchvision's kernels, whose algorithm is mmcv's
    with_cp: bool | str = False  # what the backbone computes again; ours alone


BF16 = ', bf16'  # end of the names of lanes in it
COPIED = 2**28  # bytes
MACHINE = {
    'machine: product': Lane('product'),
    'machine: 3x3 convolution': Lane('convolution'),
    'machine: product, bf16': Lane('product', amp=True),
    'machine: 3x3 convolution, bf16': Lane('convolution', amp=True),
    'machine: copy': Lane('copy'),
}
CASCADE_LANES = {
    REFERENCE: Lane('stock', keep=False, kernels=False),
    'stock, our RoIAlign': Lane('stock', keep=False),
    'stock, our RoIAlign, memory kept': Lane('stock'),
    'ours, plain layers': Lane('ours', fast=False),
    'ours': Lane('ours'),
    'stock, bf16': Lane('stock', amp=True, keep=False, kernels=False),
    'ours, bf16': Lane('ours', amp=True),
    **MACHINE,
}
UPERNET_LANES = {
    REFERENCE: Lane('stock', keep=False),
    'stock, memory kept': Lane('stock'),
    'ours, plain layers': Lane('ours', fast=False),
    'ours': Lane('ours'),
    'stock, bf16': Lane('stock', amp=True, keep=False),
    'ours, bf16': Lane('ours', amp=True),
    **MACHINE,
}
BACKBONE_LANES = {
    REFERENCE: Lane('stock', keep=False),
    **{side: Lane(side, keep=False) for side in ('timm', 'torchvision', 'transformers', 'ours')},
    'ours, compiled': Lane('ours', keep=False, compiled=True),
    'stock, bf16': Lane('stock', amp=True, keep=False),
    'timm, bf16': Lane('timm', amp=True, keep=False),
    'ours, bf16': Lane('ours', amp=True, keep=False),
    **MACHINE,
}
BACKWARD_LANES = {
    **BACKBONE_LANES,
    "ours, with_cp='cheap'": Lane('ours', keep=False, with_cp='cheap'),
    'ours, with_cp=True': Lane('ours', keep=False, with_cp=True),
}


class Table(NamedTuple):
    """What is timed."""

    title: str
    config: str  # with our backbone
    size: tuple[int, int]  # width and height of the image
    job: Callable[[Config, nn.Module, tuple[int, int], bool], Callable[[], object]]  # makes the call
    lanes: dict[str, Lane]
    gpu_size: tuple[int, int] = (1280, 800)  # in place of ``size`` on a GPU


def image(cfg: Config, model: nn.Module, size: tuple[int, int], amp: bool) -> Callable[[], object]:
    """Return the test of an image, from pixels to objects or a label map."""
    return prepare_test(cfg, model, size, amp)[0]


def step(cfg: Config, model: nn.Module, size: tuple[int, int], amp: bool) -> Callable[[], object]:
    """Return a training step with one image of a detector or two of a segmentor, optimizer included."""
    cfg.train_dataloader.batch_size = 2 if cfg.default_scope == 'mmseg' else 1  # batch norm needs two
    cfg.optim_wrapper.optimizer.lr = 1e-9  # every step computes the same
    weights = copy.deepcopy(model.state_dict())
    work = prepare_step(cfg, model, size, amp)[0]
    model.load_state_dict(weights)  # others were drawn
    return work


def forward(cfg: Config, model: nn.Module, size: tuple[int, int], amp: bool) -> Callable[[], object]:
    """Return the maps of the bare backbone, in a test."""
    x = torch.randn(1, 3, *size[::-1], device=DEVICE)
    model.eval()

    @torch.inference_mode()
    def work() -> object:
        with torch.autocast(DEVICE, enabled=amp):
            return model(x)

    return work


def backward(cfg: Config, model: nn.Module, size: tuple[int, int], amp: bool) -> Callable[[], object]:
    """Return the gradients of the bare backbone, forward pass included."""
    x = torch.randn(1, 3, *size[::-1], device=DEVICE)
    model.train()

    def work() -> object:
        with torch.autocast(DEVICE, enabled=amp):
            loss = sum(each.float().square().mean() for each in model(x))
        model.zero_grad()
        loss.backward()
        return loss

    return work


TABLES = {
    'image': Table('Cascade Mask R-CNN, ConvNeXt-T: an image of 800x480', *CASCADE, image, CASCADE_LANES),
    'step': Table(
        'Cascade Mask R-CNN, ConvNeXt-T: a training step, one image of 640x640', *CASCADE, step, CASCADE_LANES
    ),
    'seg-image': Table(
        'UperNet, ConvNeXt-T: an image of 512x512', UPERNET, (512, 512), image, UPERNET_LANES, (2048, 512)
    ),
    'windows': Table(
        'UperNet, ConvNeXt-T: an image of 1024x512 in windows', UPERNET, (1024, 512), image, UPERNET_LANES
    ),
    'seg-step': Table(
        'UperNet, ConvNeXt-T: a training step, two crops of 512x512', UPERNET, (512, 512), step, UPERNET_LANES
    ),
    'forward': Table('ConvNeXt-T: four maps of 512x512', UPERNET, (512, 512), forward, BACKBONE_LANES),
    'backward': Table('ConvNeXt-T: forward and backward, 512x512', UPERNET, (512, 512), backward, BACKWARD_LANES),
}


def main() -> None:
    """Run the tables and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('tables', nargs='*', help=f'some of {", ".join(TABLES)} (default: all)')
    parser.add_argument('--smoke', action='store_true', help='one turn of stock and ours, compared with the results')
    parser.add_argument('--lane', help=argparse.SUPPRESS)  # one turn of a lane
    parser.add_argument('--count', action='store_true', help=argparse.SUPPRESS)
    options = parser.parse_args()
    if unknown := set(options.tables) - TABLES.keys():
        parser.error(f'there is no table {", ".join(sorted(unknown))}; there are {", ".join(TABLES)}')
    names = options.tables or list(TABLES)
    if options.lane:
        print(json.dumps(run(TABLES[names[0]], options.lane, options.count)))
    elif options.smoke:
        sys.exit(not all(list(map(keeps_up, names))))
    else:
        for name in names:
            title = TABLES[name].title if DEVICE == 'cpu' else f'{TABLES[name].title}; here {TABLES[name].gpu_size}'
            write_results(name, title, COLUMNS, take_turns(name, list(TABLES[name].lanes), ROUNDS))
        draw_picture()


def take_turns(name: str, lanes: Sequence[str], rounds: int) -> list[dict[str, Any]]:
    """Return the rows of a table, from some turns of each lane."""
    turns: dict[str, list[dict[str, Any]]] = {lane: [] for lane in lanes}
    for i in range(rounds):
        for lane in lanes:
            command = [sys.executable, __file__, name, '--lane', lane, *['--count'] * (i == 0)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            turns[lane].append(json.loads(done.stdout.splitlines()[-1]))
            print(f'{name}: {lane}: {turns[lane][-1]["times"]}', file=sys.stderr)
    return rows_of(turns)


def run(table: Table, lane_name: str, counted: bool) -> dict[str, Any]:
    """Return the times of the calls of a lane, what they compute and their peak of memory."""
    lane = table.lanes[lane_name]
    if lane.keep:
        keep_memory()
    if not lane.kernels:
        roi_samples.FEW_CHANNELS = 10**9
    dtype = torch.bfloat16 if lane.amp else torch.float32
    work = CEILINGS[lane.side](dtype) if lane.side in CEILINGS else build(table, lane)
    torch.manual_seed(0)
    digest = numbers_of(work())
    times = []
    for _ in range(CALLS):
        wait()
        start = time.perf_counter()
        work()
        wait()
        times.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if DEVICE == 'cuda':
        peak = torch.cuda.max_memory_allocated() / 2**30
    torch.manual_seed(0)  # the same stochastic depth for all
    return dict(times=times, digest=digest, peak=peak, counts=count(work) if counted else {})


def wait() -> None:
    """Let a GPU do what it was told."""
    if DEVICE == 'cuda':
        torch.cuda.synchronize()


def build(table: Table, lane: Lane) -> Callable[[], object]:
    """Return the call of a lane; all have the same weights and the same input."""
    cfg = load_config(table.config)
    run_config.fit_classes(cfg)
    run_config.drop_initial_weights(cfg.model)
    cfg.model.backbone.with_cp = lane.with_cp
    torch.manual_seed(0)
    with model_scope(cfg), quiet():
        model = MODELS.build(cfg.model)
        model.init_weights()
    if lane.side != 'ours':
        weights = {stock_name(name): value for name, value in model.state_dict().items()}
        cfg = with_stock(cfg)
        with model_scope(cfg), quiet():
            model = MODELS.build(cfg.model)
        model.load_state_dict(weights)
    elif lane.fast:
        speed_up(model)
    if lane.compiled:
        compile_maps(model)
    if table.job in (forward, backward):
        model = model.backbone if lane.side in ('ours', 'stock') else peer(lane.side)
    torch.manual_seed(1)
    with model_scope(cfg), quiet():
        return table.job(cfg, model.to(DEVICE), table.size if DEVICE == 'cpu' else table.gpu_size, lane.amp)


def peer(side: str) -> nn.Module:
    """Return another library's ConvNeXt-T as a backbone with random weights."""
    if side == 'timm':
        import timm

        return timm.create_model('convnext_tiny', features_only=True)
    if side == 'transformers':
        import transformers

        sizes = dict(depths=[3, 3, 9, 3], hidden_sizes=[96, 192, 384, 768])
        config = transformers.ConvNextConfig(**sizes, out_features=[f'stage{i}' for i in range(1, 5)])
        model = transformers.ConvNextBackbone(config)
        model.register_forward_hook(lambda module, given, found: found.feature_maps)
        return model
    from torchvision.models import convnext_tiny
    from torchvision.models.feature_extraction import create_feature_extractor

    model = create_feature_extractor(convnext_tiny(), {f'features.{i}': str(i) for i in (1, 3, 5, 7)})
    model.register_forward_hook(lambda module, given, found: list(found.values()))
    return model


def convolution(dtype: torch.dtype) -> Callable[[], Tensor]:
    """Return a convolution of RoI features, the most frequent layer of the heads, at its best."""
    shapes = (1000, 256, 7, 7), (256, 256, 3, 3)
    drawn = [torch.randn(shape).to(DEVICE, dtype, memory_format=torch.channels_last) for shape in shapes]
    return partial(F.conv2d, *drawn, padding=1)


CEILINGS = {
    'product': lambda dtype: partial(torch.matmul, *torch.randn(2, 4096, 4096).to(DEVICE, dtype)),
    'convolution': convolution,
    # into memory that is there
    'copy': lambda dtype: partial(Tensor.copy_, *torch.ones(2, COPIED // 4, device=DEVICE)),
}


def numbers_of(result: Any) -> list[float]:
    """Return a few numbers by which results of two lanes are compared."""
    if isinstance(result, dict):  # of a training step
        return [float(result['loss'])]
    if isinstance(result, Tensor):
        return [float(result.detach().float().norm())]
    first = result[0]
    if isinstance(first, Tensor):  # maps
        return [float(each.float().norm()) for each in result]
    if 'pred_sem_seg' in first:
        return [float(first.seg_logits.data.float().norm())]
    found = first.pred_instances
    return [float(found.scores.float().norm()), float(found.bboxes.float().norm()), float(found.masks.sum())]


def rows_of(turns: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return a row for each lane: medians, ratios to stock, counts, and how far its numbers are from those of stock."""
    rows = []
    reference = turns[REFERENCE][0]
    stock_time = statistics.median(value for turn in turns[REFERENCE] for value in turn['times'])
    for lane, found in turns.items():
        times, counts = [value for turn in found for value in turn['times']], found[0]['counts']
        median, is_machine = statistics.median(times), lane.startswith('machine')
        row = {'lane': lane, 'time (s)': median, 'fastest': min(times), 'slowest': max(times)}
        if counts.get('gflop'):
            row |= {'GFLOP': counts['gflop'], 'GFLOP/s': counts['gflop'] / median}
        if lane == 'machine: copy':
            row['GB/s'] = 2 * COPIED / median / 1e9  # read and written
        if not is_machine:
            row |= {'speed-up': stock_time / median, 'peak memory (GB)': max(turn['peak'] for turn in found)}
            row |= {key: counts.get(name) for key, name in COUNTED.items()}
            pairs = zip(found[0]['digest'], reference['digest'], strict=True)
            row['difference'] = max(abs(one - other) / abs(other) for one, other in pairs)
        rows.append(row)
    add_shares(rows)
    return rows


def add_shares(rows: list[dict[str, Any]]) -> None:
    """Add to each row of a model which share it reaches of the fastest product or convolution in its precision."""
    for is_bf16 in (False, True):
        same = [row for row in rows if 'GFLOP/s' in row and row['lane'].endswith(BF16) == is_bf16]
        best = max((row['GFLOP/s'] for row in same if 'speed-up' not in row), default=None)
        for row in same:
            if best and 'speed-up' in row:
                row['share'] = row['GFLOP/s'] / best


COUNTED = {'saved (MB)': 'saved_mb', 'relayout (MB)': 'relayout_mb', 'launches': 'launches', 'waits': 'waits'}


def draw_picture() -> None:
    """Draw how many times as fast as stock each lane is, for all tables that there are."""
    from matplotlib import pyplot

    tables = list(filter(None, map(read_results, TABLES)))
    figure, axes = pyplot.subplots(len(tables), figsize=(8, 1.9 * len(tables)), squeeze=False, layout='constrained')
    for axis, table in zip(axes.flat, tables, strict=True):
        rows = [row for row in table['rows'][::-1] if 'speed-up' in row]
        colors = [COLORS['ours'] if row['lane'].startswith('ours') else '#b0b0b0' for row in rows]
        bars = axis.barh([row['lane'] for row in rows], [row['speed-up'] for row in rows], color=colors)
        axis.bar_label(bars, fmt='%.2f', padding=3)
        axis.axvline(1, color='black', linewidth=0.8)
        axis.set_title(table['title'], fontsize=10)
        axis.spines[['top', 'right']].set_visible(False)
    axes.flat[-1].set_xlabel('times as fast as stock')
    figure.savefig(PICTURE, dpi=80)


def keeps_up(name: str) -> bool:
    """Tell whether ours is about as much faster than stock as in the results; print both."""
    results = read_results(name)
    if results is None:
        sys.exit(f'error: {RESULTS} has no results of {name} to compare with. make bench ARGS={name} writes them.')
    before = {row['lane']: row for row in results['rows']}
    now = {row['lane']: row for row in take_turns(name, [REFERENCE, 'ours'], 1)}
    found, expected = now['ours']['speed-up'], before['ours']['speed-up']
    print(f'{name}: ours is {found:.2f} times as fast as stock; in the results {expected:.2f}')
    return found >= LOST * expected


if __name__ == '__main__':
    main()
