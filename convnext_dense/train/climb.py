"""The ladder of ``convnext_dense.ladder`` as a table and a picture: what each step costs, and what it learns.

Accuracies on ImageNet are the paper's (arXiv 2201.03545, Tables 10 and 11). Costs are counted and measured here, and
mIoU comes from trainings on the drawn data set.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from convnext_dense import configs
from convnext_dense.compat.errors import UserError
from convnext_dense.compat.files import write_text
from convnext_dense.ladder import STEPS, ModernizedResNet, Step, steps
from convnext_dense.train.screen import tell
from convnext_dense.train.stats import STRIDE, count_call, count_config, format_markdown, measure_config, num_params
from convnext_dense.train.summary import read_scalars

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MEASURED = ('time (ms)', 'peak memory (MB)', 'step time (ms)', 'training memory (MB)')
COLUMNS = {  # column of the table -> format
    'step': '', 'top-1': '.2f', 'top-1 large': '.2f', 'params (M)': '.2f', 'GFLOPs': '.2f', 'GFLOPs large': '.2f',
    'detector params (M)': '.1f', 'detector GFLOPs': '.0f', 'time (ms)': '.0f', 'peak memory (MB)': '.0f',
    'step time (ms)': '.0f', 'training memory (MB)': '.0f', 'mIoU': '.1f', 'mIoU of the seeds': '',
}  # fmt: skip
STAGES = {  # of the paper's Section 2 -> number of steps
    'modern training': 1, 'macro design': 2, 'ResNeXt': 2, 'inverted\nbottleneck': 1, 'large kernels': 2,
    'micro design': 5,
}  # fmt: skip
PANELS = {  # title -> label of a series -> column
    'ImageNet-1k top-1 (%), the paper': {'ResNet-50 to ConvNeXt-T': 'top-1', 'ResNet-200 to ConvNeXt-B': 'top-1 large'},
    'GFLOPs at 224x224, counted': {'ResNet-50 to ConvNeXt-T': 'GFLOPs', 'ResNet-200 to ConvNeXt-B': 'GFLOPs large'},
    'Mask R-CNN, measured, relative to resnet': {'training step, time': 'step time (ms)', 'image, time': 'time (ms)'},
    'UperNet on drawn images, mIoU (%)': {'mean': 'mIoU'},
}
SWIN = {'top-1': ('Swin-T', 81.30), 'top-1 large': ('Swin-B', 83.50)}  # in the same tables
COLORS, INKS = ('#1f6fb4', '#a9c7e4'), ('white', 'black')


def climb(
    out: str | os.PathLike = 'work_dirs/ladder',
    size: Sequence[int] = (640, 416),
    rounds: int = 3,
    train: bool = False,
    seeds: int = 3,
    jobs: int = 1,
) -> str:
    """Count, measure and, on request, train every step; return a table. The options are those of the command.

    The table is also written to ``ladder.json`` and ``ladder.md``, and drawn as ``ladder.png``. What is finished in
    ``out`` is not done again, so that a run that was interrupted goes on. ``size`` is width and height in pixels. Of
    several trainings at a time, ``jobs``, each has one thread.

    Raises:
        UserError: A number is out of range, or a training fails.
    """
    if min(*size, seeds, jobs) < 1 or rounds < 0 or any(side % STRIDE for side in size):
        raise UserError(
            f'--size takes multiples of {STRIDE}, --seeds and --jobs 1 or more, --rounds 0 or more; got size '
            f'{tuple(size)}, seeds {seeds}, jobs {jobs}, rounds {rounds}.'
        )
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    rows = [count_step(step) for step in STEPS]
    measured = measure_steps(folder / 'measured.json', tuple(size), rounds) if rounds else {}
    learned = train_steps(folder / 'runs', seeds, jobs) if train else read_steps(folder / 'runs')
    for row in rows:
        row.update(measured.get(row['step'], {}))
        if scores := learned.get(row['step']):
            row.update({'mIoU': statistics.mean(scores), 'mIoU of the seeds': ', '.join(f'{s:.1f}' for s in scores)})
    (folder / 'ladder.json').write_text(json.dumps(rows, indent=1))
    table = format_markdown(rows, COLUMNS)
    (folder / 'ladder.md').write_text(table)
    draw_ladder(rows, folder / 'ladder.png')
    return table


def count_step(step: Step) -> dict[str, object]:
    """Return a step's accuracies in the paper and its counted costs, at 224x224 and as Mask R-CNN at 1280x800."""
    row = {'step': step.name, 'top-1': step.top1, 'top-1 large': step.top1_large}
    for suffix, large in (('', False), (' large', True)):
        with torch.device('meta'):
            backbone, image = ModernizedResNet(step.name, large).eval(), torch.empty(1, 3, 224, 224)
        _, macs, _ = count_call(backbone, image)
        row[f'GFLOPs{suffix}'] = macs / 1e9
        row.setdefault('params (M)', num_params(backbone) / 1e6)
    detector = count_config(f'ladder/mask_rcnn_{step.name}_coco', (1280, 800)).parts['total']
    return row | {'detector params (M)': detector.params / 1e6, 'detector GFLOPs': detector.macs / 1e9}


def measure_steps(file: Path, size: tuple[int, int], rounds: int) -> dict[str, dict[str, float]]:
    """Measure an image and a training step of Mask R-CNN with every step, in turns, and return the medians.

    Each measurement is kept in ``file``, and those that are there are not repeated.
    """
    known = json.loads(file.read_text()) if file.is_file() else {}
    found: dict[str, list] = {step: [] for step in steps()}
    for turn in range(rounds):
        for step in steps():
            key = f'{step} {size[0]}x{size[1]} {turn}'
            if key not in known:
                config = f'ladder/mask_rcnn_{step}_coco'
                columns = measure_config(config, size, False, False) | measure_config(config, size, True, False)
                known[key] = {name: columns[name] for name in MEASURED}
                write_text(json.dumps(known, indent=1), file)
                tell(f'measured: {key}')
            found[step].append(known[key])
    medians = {}
    for step, turns in found.items():
        names = [name for name in MEASURED if turns[0][name] is not None]  # others could not be measured here
        medians[step] = {name: statistics.median(turn[name] for turn in turns) for name in names}
    return medians


def train_steps(folder: Path, seeds: int, jobs: int) -> dict[str, list[float]]:
    """Train every step on the drawn data with every seed, each run in a process of its own, and return the mIoUs."""
    runs = [(step, seed) for seed in range(seeds) for step in steps()]
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(lambda run: train_step(folder, *run, jobs), runs))
    return read_steps(folder)


def train_step(folder: Path, step: str, seed: int, jobs: int) -> None:
    """Train a step with a seed, or go on where its training was interrupted; do nothing where it has ended."""
    work_dir = folder / step / f'seed_{seed}'
    if read_score(work_dir) is not None:
        return
    work_dir.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, '-m', 'convnext_dense.cli', 'train', f'ladder/upernet_{step}_shapes']
    command += ['--work-dir', str(work_dir), '--resume', '--cfg-options', f'randomness.seed={seed}']
    environment = os.environ | ({'OMP_NUM_THREADS': '1'} if jobs > 1 else {})
    with (work_dir / 'output.txt').open('a') as output:
        done = subprocess.run(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    score = read_score(work_dir)
    if done.returncode or score is None:
        raise UserError(f'The training in {work_dir} failed; {work_dir / "output.txt"} says why. Start again to go on.')
    tell(f'trained: {step}, seed {seed}, mIoU {score:.1f}')


def read_steps(folder: Path) -> dict[str, list[float]]:
    """Return the mIoU of each finished training, by step."""
    scores = {step: map(read_score, sorted((folder / step).glob('seed_*'))) for step in steps()}
    return {step: [score for score in found if score is not None] for step, found in scores.items()}


def read_score(work_dir: Path) -> float | None:
    """Return the mIoU at the end of a run, in percent; None where it has not ended."""
    last = configs.load_config('ladder/upernet_resnet_shapes').train_cfg.max_iters
    rows = read_scalars(sorted(work_dir.glob('*/vis_data/scalars.json')))
    return next((row['mIoU'] for row in rows if row.get('step') == last and 'mIoU' in row), None)


def draw_ladder(rows: Sequence[Mapping[str, object]], file: Path) -> None:
    """Write the picture: the numbers of the paper's Figure 2, and what was counted, measured and trained here."""
    from matplotlib.figure import Figure

    titles = [title for title, series in PANELS.items() if all(set(series.values()) <= row.keys() for row in rows)]
    pairs = [titles[i : i + 2] for i in range(0, len(titles), 2)]
    figure = Figure(figsize=(10, 5.4 * len(pairs)), layout='constrained')
    axes = figure.subplot_mosaic([(pair * 2)[:2] for pair in pairs], sharey=True)
    for title, axis in axes.items():
        shade_stages(axis, named=any(title == pair[-1] for pair in pairs))
        handles = draw_seeds(axis, rows) if 'drawn' in title else draw_bars(axis, rows, title)
        below = dict(loc='upper center', bbox_to_anchor=(0.5, -0.06))
        axis.legend(handles=handles, ncols=len(handles) // 2, frameon=False, **below)
        axis.set_title(title, fontsize=11)
        axis.set(yticks=range(len(rows)), yticklabels=[row['step'] for row in rows], ylim=(len(rows) - 0.5, -0.5))
        axis.tick_params(left=False)
        axis.spines[['left', 'top', 'right']].set_visible(False)
    figure.savefig(file, dpi=110)


def shade_stages(axis: 'Axes', named: bool) -> None:
    """Shade every other stage of the paper, and write their names at the right."""
    first = -0.5
    for i, (stage, num_steps) in enumerate(STAGES.items()):
        axis.axhspan(first, first + num_steps, color='0.93' if i % 2 else 'white', linewidth=0, zorder=0)
        if named:
            middle = first + num_steps / 2
            axis.text(1.02, middle, stage, transform=axis.get_yaxis_transform(), va='center', color='0.35')
        first += num_steps


def draw_bars(axis: 'Axes', rows: Sequence[Mapping[str, object]], title: str) -> list:
    """Draw a bar a step for each series of a panel, with its value at the left; return what the legend shows."""
    bars, lines = [], []
    is_relative, left = 'relative' in title, 77 if 'top-1' in title else 0
    for shift, color, ink, (label, name) in zip((-0.2, 0.2), COLORS, INKS, PANELS[title].items(), strict=True):
        values = [row[name] / (rows[0][name] if is_relative else 1) for row in rows]
        places = [place + shift for place in range(len(rows))]
        bars.append(axis.barh(places, values, height=0.38, color=color, label=label))
        for place, value in zip(places, values, strict=True):
            axis.text(left, place + 0.02, f' {value:.2f}', va='center', color=ink, fontsize=8)
        if name in SWIN:
            swin, value = SWIN[name]
            lines.append(axis.axvline(value, color=color, linestyle='--', zorder=0.5, label=f'{swin}, {value:.2f}'))
    axis.margins(x=0.02)
    axis.set_xlim(left=left, right=85 if 'top-1' in title else None)
    return bars + lines


def draw_seeds(axis: 'Axes', rows: Sequence[Mapping[str, object]]) -> list:
    """Draw the mIoU of each training, a line between the extremes and the mean; return what the legend shows."""
    axis.grid(axis='x', color='0.85')
    for place, row in enumerate(rows):
        scores = [float(score) for score in row['mIoU of the seeds'].split(', ')]
        axis.plot([min(scores), max(scores)], [place] * 2, color=COLORS[1], linewidth=4, solid_capstyle='round')
        dots = axis.plot(scores, [place] * len(scores), 'o', color=COLORS[0], label='a training')
        mean = axis.plot(row['mIoU'], place, '|', color='black', markersize=16, markeredgewidth=2, label='mean')
    return dots + mean
