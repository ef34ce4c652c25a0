"""Measure what a training step needs by batch, size, depth and recomputation, and what a second process brings.

    make bench-scale

Each row is a process of its own, or two, and the median of some turns. Memory is what the model and its step add to the
process; images a second are those of the first command's training, as its log has them, without the first steps.
"""

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from tables import write_results

from convnext_dense.train.stats import measure_config
from convnext_dense.train.summary import read_scalars

FIRST_STEPS = 5  # which are slower
MEMORY = [  # UperNet's size, images of a step, side of their crops, recomputation
    ('t', 2, 256, False),
    ('t', 2, 512, False),
    ('t', 4, 512, False),
    ('t', 2, 512, 'cheap'),
    ('t', 2, 512, True),
    ('s', 2, 512, False),
    ('b', 2, 512, False),
]
ROUNDS = 3  # turns of each row
PROCESSES = [(1, 1), (1, 2), (2, 1)]  # processes, threads of each


def main() -> None:
    """Measure both tables and write them."""
    columns = {'model': '', 'images': 'd', 'crops': 'd', 'with_cp': '', 'memory (MB)': '.0f'}
    title = 'UperNet: a training step by batch, size, depth and recomputation'
    write_results('memory', title, columns, take_turns(step_of, MEMORY, 'memory (MB)'))
    columns = {'processes': 'd', 'threads of each': 'd', 'images/s': '.2f', 'speed-up': '.2f'}
    rows = take_turns(samples_of, PROCESSES, 'images/s')
    for row in rows:
        row['speed-up'] = row['images/s'] / rows[0]['images/s']
    title = 'Cascade Mask R-CNN, ConvNeXt-atto, drawn images: training by processes'
    write_results('processes', title, columns, rows)


def take_turns(measure: Callable[..., dict], cases: Sequence[tuple], value: str) -> list[dict]:
    """Return a row for each case, with the median of its value over some turns."""
    turns = [[measure(*case) for case in cases] for _ in range(ROUNDS)]
    return [{**rows[0], value: statistics.median(row[value] for row in rows)} for rows in zip(*turns, strict=True)]


def step_of(arch: str, batch: int, side: int, with_cp: bool | str) -> dict[str, object]:
    """Return the row of a training step."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, 'config.py')
        config.write_text(
            f"_base_ = 'convnext_dense::seg/upernet_convnext_{arch}_ade20k.py'\n"
            f'model = dict(backbone=dict(with_cp={with_cp!r}), data_preprocessor=dict(size=({side}, {side})))\n'
            f'train_dataloader = dict(batch_size={batch})\n'
        )
        found = measure_config(config, (side, side), training=True, amp=False)
    row = {'model': f'ConvNeXt-{arch.upper()}', 'images': batch, 'crops': side, 'with_cp': str(with_cp)}
    return row | {'memory (MB)': found['training memory (MB)']}


def samples_of(processes: int, threads: int) -> dict[str, object]:
    """Return the row of a training with so many processes."""
    root = Path(__file__).parent.parent
    with tempfile.TemporaryDirectory() as folder:
        script = [str(root / 'tools/train.py'), 'det/cascade_convnext_atto_shapes', '--work-dir', f'{folder}/run']
        options = [
            f'train_cfg.max_epochs={processes}', 'train_cfg.val_interval=9', 'default_hooks.logger.interval=1',
            'train_dataloader.batch_size=4', 'log_processor.window_size=1',
            *(f'{split}_evaluator.ann_file={folder}/data/annotations/instances_val.json' for split in ('val', 'test')),
            *(
                f'{split}_dataloader.dataset.{option}'
                for split in ('train', 'val', 'test')
                for option in (f'data_root={folder}/data', 'num_train=96')
            ),
        ]  # fmt: skip
        start = [str(root / 'tools/torchrun.py'), f'--nproc_per_node={processes}'] if processes > 1 else []
        launcher = ['--launcher', 'pytorch'] if processes > 1 else []
        environment = {**os.environ, 'OMP_NUM_THREADS': str(threads)}
        command = [sys.executable, *start, *script, *launcher, '--cfg-options', *options]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            sys.exit(f'error: the training of {processes} processes failed:\n{done.stdout[-3000:]}')
        rows = read_scalars(sorted(Path(folder, 'run').glob('*/vis_data/scalars.json')))
    times = [row['time'] for row in rows if 'loss' in row][FIRST_STEPS:]
    return {'processes': processes, 'threads of each': threads, 'images/s': 4 * processes / statistics.median(times)}


if __name__ == '__main__':
    main()
