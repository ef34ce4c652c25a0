"""Train our backbone and mmpretrain's in the same heads, in pairs, and compare what comes out.

    make bench-parity                                                           # Cascade Mask R-CNN on drawn data
    make bench-parity ARGS='seg --seeds 4'                                      # UperNet
    make bench-parity ARGS='det --data FOLDER --size 240 --batch 4 --out runs'  # your own data

The runs of a pair have one seed: the same initial weights, ours under the other's names; the same images in the same
order; the same random numbers in each step. With drop path the two draw differently from these. Only the backbone and
the constructor of the optimizer differ, and the latter must give each parameter the same rates. The runs take turns;
one that was interrupted goes on, and one that is there is not repeated. ``parity.json``, ``parity.md`` and
``parity.png`` are written after each.

Rounding alone drives two trainings apart within some steps, and how far they end apart is chance. ``--double`` trains
in double precision, where they stay together if they compute the same.
"""

import argparse
import contextlib
import copy
import functools
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.optim import build_optim_wrapper
from mmengine.registry import HOOKS, MODELS
from mmengine.runner import Runner, set_random_seed
from scipy.stats import t as student

from convnext_dense.cli import Options
from convnext_dense.compat.errors import UserError
from convnext_dense.compat.import_hook import on_import
from convnext_dense.configs import load_config, model_scope
from convnext_dense.lr_decay import derive_num_layers
from convnext_dense.train import train
from convnext_dense.train.own_data import prepare_data
from convnext_dense.train.screen import quiet, tell
from convnext_dense.train.stats import format_markdown
from convnext_dense.train.summary import read_scalars
from convnext_dense.train.switches import apply_switches
from convnext_dense.variants import resolve_variant
from convnext_dense.weights import load_weights
from convnext_dense.weights.convert import convert
from convnext_dense.weights.formats import MMPRETRAIN

# Its multi-modal models cannot be imported beside transformers of today.
on_import('mmpretrain.utils.dependency', lambda module: setattr(module, 'WITH_MULTIMODAL', False))

SIDES = ('ours', 'stock')
CONFIDENCE, POWER = 0.95, 0.8
APART = 0.01  # relative difference of their losses at which two runs have parted
FIRST, LAST_SHARE = 'loss of the first step', 0.1  # losses at the end are means over this share of the steps
COLUMNS = {  # column of the table -> format
    'measure': '', 'ours': '.3f', 'ours SD': '.3f', 'stock': '.3f', 'stock SD': '.3f', 'difference': '+.3f',
    'low': '+.3f', 'high': '+.3f', 'detectable': '.3f',
}  # fmt: skip
COLORS = {'ours': '#1f6fb4', 'stock': '#d9822b'}


class Recipe(NamedTuple):
    """What is trained."""

    config: str  # with our backbone
    curves: tuple[str, ...]  # the metric and the losses that are drawn
    drop_path_rate: float = 0.0  # of both backbones
    decay_rate: float = 1.0  # from layer to layer; 1 gives all layers one rate


CASCADE = 'det/cascade_convnext_atto_shapes', ('bbox_mAP', 'loss', 'loss_rpn_cls', 's0.loss_bbox')
RECIPES = {
    'det': Recipe(*CASCADE),
    'seg': Recipe('seg/upernet_convnext_atto_shapes', ('mIoU', 'loss', 'decode.loss_ce', 'aux.loss_ce')),
    'decay': Recipe(*CASCADE, drop_path_rate=0.2, decay_rate=0.7),
}


class Run(NamedTuple):
    """What a training that has ended says."""

    measures: dict[str, float]  # the metrics, in percent, and the losses at both ends
    losses: dict[str, list[float]]  # part -> its value in each step


@HOOKS.register_module()
class DoubleHook(Hook):
    """Train in double precision; the evaluation, at the end, is in single precision as ever."""

    def before_run(self, runner: Runner) -> None:
        """Convert the model before weights are loaded into it."""
        runner.model.double()

    def before_val(self, runner: Runner) -> None:
        """Convert the model back: masks are pasted in single precision."""
        runner.model.float()


def main() -> None:
    """Run what is missing, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('recipe', nargs='?', choices=RECIPES, default='det')
    parser.add_argument('--data', help='your own data, in any format (default: drawn)')
    parser.add_argument('--keep-schedule', action='store_true', help="the config's schedule and lr for your own data")
    parser.add_argument('--size', type=int, help='longest side of the images in pixels')
    parser.add_argument('--batch', help='images of a step')
    parser.add_argument('--weights', help='checkpoint with the backbone from which all begin (default: random)')
    parser.add_argument('--double', action='store_true', help='train in double precision')
    parser.add_argument('--seeds', type=int, default=12)
    parser.add_argument('--sides', nargs='+', choices=SIDES, default=SIDES)
    parser.add_argument('--out', type=Path, default=Path('work_dirs/parity'))
    parser.add_argument('--cfg-options', nargs='+', action=Options, default={}, metavar='KEY=VALUE', help='of both')
    parser.add_argument('--run', nargs=2, metavar=('SIDE', 'SEED'), help=argparse.SUPPRESS)  # one run alone
    options = parser.parse_args()
    if options.run:
        run(options.out, *options.run)
        return
    try:
        compare(options)
    except UserError as error:
        sys.exit(f'error: {error}')


def compare(options: argparse.Namespace) -> None:
    """Make all runs, one after the other, and report after each."""
    write_configs(options)
    if 'stock' in options.sides:
        check_rates(options.out)
    for seed in range(options.seeds):
        write_initial(options.out, seed, options.weights)
        for side in options.sides:
            start(options.out, side, seed)
            print(report(options.out, RECIPES[options.recipe], options.sides), flush=True)


def write_configs(options: argparse.Namespace) -> None:
    """Write ``ours.py`` and ``stock.py``, the whole configs of both sides.

    Raises:
        UserError: The folder has runs of other options.
    """
    cfg = base_config(options)
    for side in SIDES:
        file, text = options.out / f'{side}.py', (cfg if side == 'ours' else with_stock(cfg)).pretty_text
        if file.is_file() and file.read_text() != text:
            raise UserError(f'{options.out} has runs of other options. Choose another --out, or remove it.')
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def base_config(options: argparse.Namespace) -> Config:
    """Return the config with our backbone: each step is logged, and evaluated is the end."""
    recipe = RECIPES[options.recipe]
    cfg = load_config(recipe.config)
    schedule = cfg.train_cfg, cfg.param_scheduler
    if options.data:
        cfg = load_config(prepare_data(recipe.config, options.data, options.out / 'data', options.batch))
    if options.keep_schedule:
        cfg.train_cfg, cfg.param_scheduler = schedule
        cfg.auto_scale_lr.enable = False
    apply_switches(cfg, size=options.size, batch=options.batch)
    cfg.model.backbone.drop_path_rate = recipe.drop_path_rate
    cfg.optim_wrapper.paramwise_cfg.decay_rate = recipe.decay_rate
    cfg.merge_from_dict(options.cfg_options)
    cfg.train_cfg.val_interval = last_step(cfg)
    cfg.default_hooks.logger.interval, cfg.log_processor.window_size = 1, 1
    cfg.default_hooks.checkpoint.max_keep_ckpts = 1
    if options.double:
        cfg.custom_hooks = [*cfg.custom_hooks, dict(type='DoubleHook')]
    if cfg.val_evaluator.type == 'CocoMetric':
        cfg.val_evaluator.update(classwise=True)
        if 'segm' in cfg.val_evaluator.metric:
            cfg.val_evaluator.metric = ['segm', 'bbox']  # by class, the last one is kept
    return cfg


def last_step(cfg: Config) -> int:
    """Return the epoch or the iteration with which a training ends."""
    return cfg.train_cfg.get('max_epochs') or cfg.train_cfg.max_iters


def with_stock(cfg: Config) -> Config:
    """Return the config with mmpretrain's backbone and the library's own constructor of the optimizer."""
    cfg = copy.deepcopy(cfg)
    backbone, wrapper = cfg.model.backbone, cfg.optim_wrapper
    cfg.custom_imports.imports = [*cfg.custom_imports.imports, 'mmpretrain.models']
    wrapper.paramwise_cfg = dict(
        decay_rate=wrapper.paramwise_cfg.decay_rate,
        num_layers=derive_num_layers(resolve_variant(backbone.arch).depths),
        decay_type='stage_wise' if wrapper.constructor == 'ConvNeXtStageDecay' else 'layer_wise',
    )
    wrapper.constructor = 'LearningRateDecayOptimizerConstructor'
    cfg.model.backbone = dict(
        type='mmpretrain.ConvNeXt',
        arch=backbone.arch,
        out_indices=[0, 1, 2, 3],
        drop_path_rate=backbone.drop_path_rate,
        layer_scale_init_value=1.0,
        gap_before_final_norm=False,
    )
    return cfg


def check_rates(folder: Path) -> None:
    """Raise a UserError unless each parameter has the same learning rate and weight decay on both sides."""
    ours, stock = (read_rates(folder / f'{side}.py') for side in SIDES)
    ours = {stock_name(name): rates for name, rates in ours.items()}
    if different := sorted(name for name in ours.keys() | stock.keys() if ours.get(name) != stock.get(name)):
        name = different[0]
        raise UserError(
            f'{len(different)} parameters are trained with other rates on both sides, {name} among them: (lr, weight '
            f'decay) is {ours.get(name)} for ours and {stock.get(name)} for stock.'
        )


def read_rates(config: Path) -> dict[str, tuple[float, float]]:
    """Return the learning rate and the weight decay of each parameter."""
    cfg = load_config(config)
    with model_scope(cfg), quiet(), contextlib.redirect_stdout(None):  # MMSegmentation's prints all groups
        model = MODELS.build(cfg.model)
        groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    names = {id(param): name for name, param in model.named_parameters()}
    return {
        names[id(param)]: (float(f'{group["lr"]:.9g}'), group['weight_decay'])
        for group in groups
        for param in group['params']
    }


def stock_name(name: str) -> str:
    """Return mmpretrain's name of a parameter of ours."""
    prefix, _, inner = name.partition('.')
    return f'{prefix}.{MMPRETRAIN.write(inner, torch.empty(0))[0]}' if prefix == 'backbone' else name


def write_initial(folder: Path, seed: int, weights: str | None = None) -> None:
    """Write the weights with which both runs of a pair begin, unless they are there."""
    ours, stock = (initial(folder, side, seed) for side in SIDES)
    if stock.is_file():
        return
    cfg = load_config(folder / 'ours.py')
    set_random_seed(seed)
    with model_scope(cfg), quiet():
        model = MODELS.build(cfg.model)
        model.init_weights()
    if weights:
        load_weights(model.backbone, weights)
    ours.parent.mkdir(exist_ok=True)
    torch.save(dict(state_dict=model.state_dict()), ours)
    convert(ours, stock, 'mmpretrain')


def initial(folder: Path, side: str, seed: int) -> Path:
    """Return the file with the initial weights of a run."""
    return folder / f'initial/{side}_{seed}.pth'


def run_folder(folder: Path, side: str, seed: int) -> Path:
    """Return the folder of a run."""
    return folder / f'runs/{side}_{seed}'


def start(folder: Path, side: str, seed: int) -> None:
    """Make a run in a process of its own, or let it go on; do nothing where it has ended."""
    work_dir = run_folder(folder, side, seed)
    if read_run(folder, side, seed) is not None:
        return
    work_dir.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, '--out', str(folder), '--run', side, str(seed)]
    with (work_dir / 'output.txt').open('a') as output:
        done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT)
    if done.returncode or read_run(folder, side, seed) is None:
        raise UserError(f'The training in {work_dir} failed; its output.txt says why. Start again to go on.')
    tell(f'trained: {work_dir}')


def run(folder: Path, side: str, seed: str) -> None:
    """Train one side with a seed."""
    changes = {'randomness.seed': int(seed), 'load_from': str(initial(folder, side, int(seed)))}
    train(folder / f'{side}.py', str(run_folder(folder, side, int(seed))), resume='auto', cfg_options=changes)


def read_run(folder: Path, side: str, seed: int) -> Run | None:
    """Return what a run says at its end; None before it."""
    rows = read_scalars(sorted(run_folder(folder, side, seed).glob('*/vis_data/scalars.json')))
    steps = [row for row in rows if 'loss' in row]
    ends = [row for row in rows if 'loss' not in row and row.get('step') == last_step(side_config(folder, side))]
    if not ends or not steps:
        return None
    losses = {name: [row[name] for row in steps] for name in steps[0] if 'loss' in name}
    measures = {
        name.rpartition('/')[-1]: 100 * value if '/' in name else value  # COCO's are shares
        for name, value in ends[-1].items()
        if value >= 0 and name != 'step' and 'time' not in name  # -1: there are none of that size
    }
    num_last = max(1, round(LAST_SHARE * len(steps)))
    at_end = {name: float(np.mean(values[-num_last:])) for name, values in losses.items()}
    return Run({**measures, FIRST: losses['loss'][0], **at_end}, losses)


@functools.cache
def side_config(folder: Path, side: str) -> Config:
    """Return the config of a side."""
    return load_config(folder / f'{side}.py', import_modules=False)


def report(folder: Path, recipe: Recipe, sides: Sequence[str] = SIDES) -> str:
    """Write the table and the picture of the seeds that all sides have, and return the table."""
    seeds = range(len(list((folder / 'initial').glob('ours_*'))))
    runs = {side: {seed: each for seed in seeds if (each := read_run(folder, side, seed))} for side in sides}
    common = sorted(set.intersection(*map(set, runs.values())))
    if not common:
        return ''
    rows = tabulate({side: [runs[side][seed].measures for seed in common] for side in sides})
    table = f'{len(common)} seeds: {", ".join(map(str, common))}\n\n{format_markdown(rows, COLUMNS)}'
    if len(sides) > 1:
        pairs = (apart(*(runs[side][seed].losses['loss'] for side in sides)) for seed in common)
        table += f'\nHow far the losses of a pair are apart: {"; ".join(pairs)}\n'
    measures = {side: {seed: each.measures for seed, each in found.items()} for side, found in runs.items()}
    (folder / 'parity.json').write_text(json.dumps(dict(rows=rows, runs=measures), indent=1))
    (folder / 'parity.md').write_text(table)
    draw({side: [runs[side][seed] for seed in common] for side in sides}, recipe, folder / 'parity.png')
    return table


def tabulate(measures: Mapping[str, Sequence[Mapping[str, float]]]) -> list[dict[str, object]]:
    """Return a row for each measure that all runs have, from those of each side, in the same order of the seeds."""
    runs = [each for side in measures.values() for each in side]
    rows = []
    for name in (name for name in runs[0] if all(name in each for each in runs)):
        values = {side: np.array([each[name] for each in found]) for side, found in measures.items()}
        row: dict[str, object] = {'measure': name, **{side: float(found.mean()) for side, found in values.items()}}
        if len(next(iter(values.values()))) > 1:
            row.update({f'{side} SD': float(found.std(ddof=1)) for side, found in values.items()})
            row.update(paired(values['ours'] - values['stock']) if len(values) > 1 else {})
        rows.append(row)
    return rows


def paired(differences: np.ndarray) -> dict[str, float]:
    """Return the mean of paired differences, its confidence interval, and how large a difference would be noticed.

    The interval is Student's. A true difference of ``detectable`` makes the interval leave out 0 with the probability
    :data:`POWER`, to a good approximation.
    """
    mean, num = differences.mean(), len(differences)
    error = differences.std(ddof=1) / num**0.5
    reach, more = student.ppf([(1 + CONFIDENCE) / 2, POWER], num - 1) * error
    names = ('difference', 'low', 'high', 'detectable')
    return dict(zip(names, map(float, (mean, mean - reach, mean + reach, reach + more)), strict=True))


def apart(ours: Sequence[float], stock: Sequence[float]) -> str:
    """Say by how much the losses of two runs differ at most, and from which step on they have parted.

    >>> apart([4.0, 3.0, 2.0], [4.0, 3.0, 2.5])
    'up to 2e-01, 1% from step 3'
    """
    differences = abs(np.subtract(ours, stock) / stock)
    steps = np.flatnonzero(differences > APART)
    return f'up to {differences.max():.0e}' + (f', {APART:.0%} from step {steps[0] + 1}' if len(steps) else '')


def draw(runs: Mapping[str, Sequence[Run]], recipe: Recipe, file: Path) -> None:
    """Write the picture: the metric of each pair, and the losses of both sides over the steps."""
    from matplotlib.figure import Figure

    metric, *losses = recipe.curves
    figure = Figure(figsize=(3.6 * len(recipe.curves), 3.6), layout='constrained')
    first, *others = figure.subplots(1, len(recipe.curves))
    scores = [[run.measures[metric] for run in found] for found in runs.values()]
    first.plot(scores, color='0.7', linewidth=1)
    for place, (side, found) in enumerate(zip(runs, scores, strict=True)):
        first.plot([place] * len(found), found, 'o', color=COLORS[side])
        first.plot(place, np.mean(found), '_', color='black', markersize=24)
    first.set(xticks=range(len(runs)), xticklabels=list(runs), xlim=(-0.5, len(runs) - 0.5), title=metric)
    for name, axis in zip(losses, others, strict=True):
        for side, found in runs.items():
            curves = [smooth(run.losses[name]) for run in found]
            axis.plot(np.transpose(curves), color=COLORS[side], linewidth=0.6, alpha=0.4)
            axis.plot(np.mean(curves, axis=0), color=COLORS[side], linewidth=2, label=f'{side}, mean')
        axis.set(xlabel='step', title=name, ylim=(0, None))
    others[0].legend(frameon=False)
    for axis in (first, *others):
        axis.spines[['top', 'right']].set_visible(False)
    figure.savefig(file, dpi=110)


def smooth(values: Sequence[float]) -> np.ndarray:
    """Return the means over a moving window of a 25th of the values."""
    width = max(1, len(values) // 25)
    return np.convolve(values, np.full(width, 1 / width), 'valid')


if __name__ == '__main__':
    main()
