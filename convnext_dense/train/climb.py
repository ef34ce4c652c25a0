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

import torch

from convnext_dense import configs
from convnext_dense.compat.errors import UserError
from convnext_dense.ladder import STEPS, ModernizedResNet, steps
from convnext_dense.train.screen import tell
from convnext_dense.train.stats import STRIDE, count_call, count_config, format_markdown, measure_config, num_params
from convnext_dense.train.summary import read_scalars

MEASURED = ('time (ms)', 'peak memory (MB)', 'step time (ms)', 'training memory (MB)')
COLUMNS = {  # column of the table -> format
    'step': '', 'top-1': '.2f', 'top-1 large': '.2f', 'params (M)': '.2f', 'GFLOPs': '.2f', 'GFLOPs large': '.2f',
    'detector params (M)': '.1f', 'detector GFLOPs': '.0f', 'time (ms)': '.0f', 'peak memory (MB)': '.0f',
    'step time (ms)': '.0f', 'training memory (MB)': '.0f', 'mIoU': '.1f', 'mIoU of the seeds': '',
}  # fmt: skip


def climb(
    out: str | os.PathLike = 'work_dirs/ladder',
    size: Sequence[int] = (640, 416),
    rounds: int = 3,
    train: bool = False,
    seeds: int = 3,
    jobs: int = 1,
) -> str:
    """Count, measure and, on request, train every step; return a table.

    The table is also written to ``ladder.json`` and ``ladder.md``, and drawn as ``ladder.png``. What is finished in
    ``out`` is not done again, so that a run that was interrupted goes on.

    Args:
        out: The folder to write to.
        size: Width and height in pixels of the image with which a Mask R-CNN of each step is measured.
        rounds: How often the steps are measured, in turns; medians are reported. 0: not at all.
        train: Train UperNet with each step on the drawn data.
        seeds: How many trainings each step gets.
        jobs: How many trainings run at a time. With several, each has one thread.

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
    rows = [count_step(step) for step in steps()]
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


def count_step(name: str) -> dict[str, object]:
    """Return a step's accuracies in the paper and its counted costs, at 224x224 and as Mask R-CNN at 1280x800."""
    step = next(step for step in STEPS if step.name == name)
    row = {'step': name, 'top-1': step.top1, 'top-1 large': step.top1_large}
    for suffix, large in (('', False), (' large', True)):
        with torch.device('meta'):
            backbone, image = ModernizedResNet(name, large).eval(), torch.empty(1, 3, 224, 224)
        _, macs, _ = count_call(backbone, image)
        row[f'GFLOPs{suffix}'] = macs / 1e9
        row.setdefault('params (M)', num_params(backbone) / 1e6)
    detector = count_config(step_config(f'mask_rcnn_{name}_coco'), (1280, 800)).parts['total']
    return row | {'detector params (M)': detector.params / 1e6, 'detector GFLOPs': detector.macs / 1e9}


def step_config(name: str) -> Path:
    """Return a config of the ladder: ``mask_rcnn_STEP_coco``, or ``upernet_STEP_shapes`` on the drawn data."""
    return configs.config_folder() / f'ladder/{name}.py'


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
                config = step_config(f'mask_rcnn_{step}_coco')
                columns = measure_config(config, size, False, False) | measure_config(config, size, True, False)
                known[key] = {name: columns[name] for name in MEASURED}
                file.write_text(json.dumps(known, indent=1))
                tell(f'measured: {key}')
            found[step].append(known[key])
    return {step: medians(turns) for step, turns in found.items()}


def medians(turns: Sequence[Mapping[str, float | None]]) -> dict[str, float]:
    """Return the median of each column over several measurements, without columns that could not be measured."""
    names = [name for name in MEASURED if turns[0][name] is not None]
    return {name: statistics.median(turn[name] for turn in turns) for name in names}


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
    command = [sys.executable, '-m', 'convnext_dense.cli', 'train', str(step_config(f'upernet_{step}_shapes'))]
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
    last = configs.load_config(step_config('upernet_resnet_shapes')).train_cfg.max_iters
    rows = read_scalars(sorted(work_dir.glob('*/vis_data/scalars.json')))
    return next((row['mIoU'] for row in rows if row.get('step') == last and 'mIoU' in row), None)


def draw_ladder(rows: Sequence[Mapping[str, object]], file: Path) -> None:
    """Write the picture: the numbers of the paper's Figure 2, and what was measured here beside them."""
    from matplotlib.figure import Figure

    panels = [
        ('ImageNet-1k top-1 (%), the paper', {'ResNet-200 / Swin-B': 'top-1 large', 'ResNet-50 / Swin-T': 'top-1'}),
        ('GFLOPs at 224x224, counted', {'large': 'GFLOPs large', 'small': 'GFLOPs'}),
        ('Mask R-CNN here, relative to resnet', {'training step': 'step time (ms)', 'image': 'time (ms)'}),
        ('UperNet on drawn images, mIoU (%)', {'mean of the seeds': 'mIoU'}),
    ]
    panels = [(title, series) for title, series in panels if all(name in rows[-1] for name in series.values())]
    figure = Figure(figsize=(1.5 + 3.6 * len(panels), 5.2), layout='constrained')
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    places = range(len(rows))
    for axis, (title, series) in zip(axes, panels, strict=True):
        is_relative = 'relative' in title
        for label, name in series.items():
            values = [row[name] / (rows[0][name] if is_relative else 1) for row in rows]
            axis.plot(values, places, marker='o', label=label)
        for place, row in enumerate(rows if 'mIoU' in series.values() else ()):
            scores = [float(score) for score in row['mIoU of the seeds'].split(', ')]
            axis.plot(scores, [place] * len(scores), '|', color='grey')
        axis.set(title=title, yticks=list(places), yticklabels=[row['step'] for row in rows])
        axis.grid(axis='x', alpha=0.4)
        axis.legend(loc='lower center', bbox_to_anchor=(0.5, -0.2))
    axes[0].invert_yaxis()
    figure.savefig(file, dpi=110)
