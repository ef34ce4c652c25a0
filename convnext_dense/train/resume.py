"""From which checkpoint a training continues, and whether that holds all that a training needs.

``training_state`` is what a checkpoint holds besides MMEngine's entries: the number of processes, the batches of an
epoch, what some parts remember, and gradients that were summed up for a step of the optimizer to come. Random numbers
need no state, because :mod:`.steps` makes them from the number of the step.
"""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import all_gather_object, get_rank, get_world_size
from mmengine.runner import Runner

from convnext_dense.compat import check_exists, read_checkpoint
from convnext_dense.compat.errors import UserError, shorten
from convnext_dense.weights.identify import holds_its_numbers
from convnext_dense.weights.load import is_finite, unwrap_model

STATE_KEY = 'training_state'
NEEDED = {  # entry of a checkpoint -> what it is
    'state_dict': 'weights',
    'meta': 'number of the step',
    'message_hub': 'log',
    'optimizer': 'state of the optimizer',
    'param_schedulers': 'schedules',  # where the config has some
}
MEMORIES = {  # of the libraries' parts, which save none: type -> attributes
    'EarlyStoppingHook': ('wait_count', 'best_score'),
    'BatchSyncRandomResize': ('_input_size',),
}
RESTARTS = ('TORCHELASTIC_RESTART_COUNT', 'SLURM_RESTART_COUNT')  # above 0 where a launcher starts a run again
INEXACT = 'the training continues, but not exactly as one without a break'


def resume_training(cfg: Config, resume: str | None) -> list[str]:
    """Let a training continue where the option or the config asks for it; return notes on what was found.

    Raises:
        UserError: There are checkpoints, but none is sound and complete.
    """
    if resume is None and cfg.get('resume'):
        resume = cfg.get('load_from') or 'auto'
    if resume is None and any(int(os.environ.get(name, 0)) for name in RESTARTS):
        resume = 'auto'
    cfg.resume = False
    if resume is None:
        return []
    if '://' in str(resume):  # which MMEngine fetches
        cfg.resume, cfg.load_from = True, resume
        return []
    if resume == 'auto':
        file, checkpoint, notes = newest_sound(cfg)
        if file is None:
            return [f'nothing to resume in {cfg.work_dir}: training starts from the beginning']
    else:
        check_exists(Path(resume))
        file, checkpoint, notes = resume, read_state(resume, cfg), []
    cfg.resume, cfg.load_from = True, str(file)
    return notes + use_seed(cfg, checkpoint) + describe_place(cfg, checkpoint, file)


def use_seed(cfg: Config, checkpoint: Mapping) -> list[str]:
    """Let data and model be built from the seed of the checkpoint's training; note where the config has another."""
    seed, given = checkpoint['meta'].get('seed'), (cfg.get('randomness') or {}).get('seed')
    if not is_count(seed):
        return []
    cfg.randomness = {**(cfg.get('randomness') or {}), 'seed': seed}
    return [] if given in (None, seed) else [f'the seed is {seed}, that of the checkpoint, instead of {given}']


def describe_place(cfg: Config, checkpoint: Mapping, file: str | Path) -> list[str]:
    """Note where the training has reached its end, and where it cannot continue exactly."""
    most = {key: (cfg.get('train_cfg') or {}).get(f'max_{key}s') for key in ('epoch', 'iter')}
    done = [f'{most[key]} {key}s' for key in most if is_count(most[key]) and checkpoint['meta'][key] >= most[key]]
    notes = [f'{file} has done all {done[0]} of the training: nothing is left to train'] if done else []
    return notes + ([] if STATE_KEY in checkpoint else [f'{file} was not written by this version: {INEXACT}'])


def newest_sound(cfg: Config) -> tuple[Path | None, dict, list[str]]:
    """Return the newest checkpoint of a run that is sound and complete, its content, and notes on those passed over.

    Raises:
        UserError: None is.
    """
    notes = []
    for file in checkpoints_of(cfg):
        try:
            return file, read_state(file, cfg), notes
        except UserError as error:
            notes.append(f'passed over: {error}')
    if notes:
        raise UserError(
            f'No checkpoint in {cfg.work_dir} is sound, and a training that starts from the beginning would replace '
            f'them. Give another --work-dir, or copy a sound one here. {" ".join(notes)}'
        )
    return None, {}, notes


def how_to_continue(cfg: Config) -> str:
    """Return a sentence on the checkpoint with which a training that has ended early goes on."""
    file = next(iter(checkpoints_of(cfg)), None)
    return f'It continues from {file} with --resume.' if file else 'No checkpoint was written yet.'


def checkpoints_of(cfg: Config) -> list[Path]:
    """Return the checkpoints of the run of a config, as :func:`candidates` does."""
    return candidates(Path(cfg.work_dir), (cfg.get('default_hooks') or {}).get('checkpoint') or {})


def candidates(work_dir: Path, hook: Mapping = MappingProxyType({})) -> list[Path]:
    """Return the checkpoints of a run: the one that MMEngine noted, wherever the folder is now, then the newest.

    ``hook`` is the config of the run's checkpoint hook, which may give other names or another place.
    """
    templates = dict.fromkeys(filter(None, (hook.get('filename_tmpl'), 'epoch_{}.pth', 'iter_{}.pth')))
    folders = [work_dir] + ([Path(hook['out_dir'], work_dir.name)] if hook.get('out_dir') else [])
    noted = noted_name(work_dir)
    found = {}  # file -> what it is sorted by
    for template in templates:
        before, _, after = template.partition('{}')
        pattern = re.compile(rf'{re.escape(before)}(\d+){re.escape(after)}')
        files = [(file, pattern.fullmatch(file.name)) for folder in folders for file in folder.glob('*')]
        files = {file: int(match[1]) for file, match in files if match and file.is_file()}
        newest = max((file.stat().st_mtime for file in files), default=0)
        found.update({file: (file.name == noted, newest, number) for file, number in files.items()})
    return sorted(found, key=found.get, reverse=True)


def noted_name(work_dir: Path) -> str:
    """Return the name of the checkpoint that MMEngine noted last; empty where there is no readable note."""
    try:
        return Path((work_dir / 'last_checkpoint').read_text(encoding='utf-8').strip()).name
    except (OSError, ValueError):
        return ''


def read_state(file: str | Path, cfg: Config) -> dict:
    """Return the content of a checkpoint from which a training with this config can continue.

    Raises:
        UserError: It is damaged, lacks something, or has diverged.
    """
    checkpoint = read_checkpoint(file, map_location='cpu', mmap=True)
    given = set(checkpoint) if isinstance(checkpoint, Mapping) else set()
    given |= set() if cfg.get('param_scheduler') else {'param_schedulers'}
    missing = [what for key, what in NEEDED.items() if key not in given]
    if missing:
        raise UserError(
            f'{file} has no {", no ".join(missing)}: no training can continue from it. Resume from a checkpoint such '
            f'as epoch_1.pth or iter_1000.pth, or start from its weights with --cfg-options load_from={file}.'
        )
    meta = checkpoint['meta']
    if not all(isinstance(meta, Mapping) and is_count(meta.get(key)) for key in ('epoch', 'iter')):
        raise UserError(f'{file} does not say how far its training was: meta.epoch and meta.iter must be counts.')
    if not (meta.get('seed') is None or (is_count(meta['seed']) and meta['seed'] < 2**32)):
        raise UserError(f'{file} has a meta.seed that is no seed: it must be a whole number from 0 to 2**32 - 1.')
    tensors = dict(tensors_of(checkpoint['optimizer'], 'optimizer'))
    if odd := [name for name, tensor in tensors.items() if not holds_its_numbers(tensor)]:
        raise UserError(f'{file} has tensors without plain numbers in the state of the optimizer: {shorten(odd)}.')
    if bad := [name for name, tensor in tensors.items() if not is_finite(tensor)]:
        raise UserError(
            f'{file} holds NaN or infinity in the state of the optimizer: {shorten(bad)}. The training had diverged; '
            'resume from an earlier checkpoint.'
        )
    return checkpoint


def is_count(value: Any) -> bool:
    """Tell whether a value is a whole number of 0 or more."""
    return isinstance(value, int) and value >= 0


def tensors_of(tree: Any, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors in nested containers with their places, such as ``optimizer.state.0.exp_avg``."""
    if isinstance(tree, torch.Tensor):
        yield name, tree
    parts = tree.items() if isinstance(tree, Mapping) else enumerate(tree) if isinstance(tree, (list, tuple)) else ()
    for key, part in parts:
        yield from tensors_of(part, f'{name}.{key}')


def training_state(runner: Runner) -> dict:
    """Return what a checkpoint holds of a training besides MMEngine's entries; all processes call it together."""
    state = dict(num_processes=get_world_size(), batches_per_epoch=num_batches(runner), gradients=None)
    state['memories'] = training_memories(runner)
    if getattr(runner.optim_wrapper, '_accumulative_counts', 1) > 1:
        gradients = {name: parameter.grad.cpu() for name, parameter in parameters(runner) if parameter.grad is not None}
        state['gradients'] = all_gather_object(gradients)
    return state


def training_memories(runner: Runner) -> dict[str, dict[str, Any]]:
    """Return what the parts of a run remember, by the names of their types."""
    return {name: {key: getattr(part, key) for key in MEMORIES[name]} for name, part in parts(runner)}


def restore(runner: Runner, state: Mapping | None) -> str:
    """Give a run what :func:`training_state` returned; return why it cannot continue exactly, empty if it can."""
    loop = runner.train_loop
    if not isinstance(state, Mapping):
        return ''  # of another version, as a note has said
    batches = num_batches(runner)
    if state.get('num_processes') != get_world_size():
        return f'it ran on {state.get("num_processes")} processes, this run has {get_world_size()}'
    if state.get('batches_per_epoch') != batches:
        return f'an epoch had {state.get("batches_per_epoch")} batches, now it has {batches}'
    if hasattr(loop, 'num_seen'):
        loop.num_seen = min(max(loop.iter - loop.epoch * batches, 0), batches)
    for name, part in parts(runner):
        vars(part).update(state.get('memories', {}).get(name, {}))
    gradients = (state.get('gradients') or [{}] * get_world_size())[get_rank()]
    for name, parameter in parameters(runner):
        if name in gradients:
            parameter.grad = gradients[name].to(parameter)
    return ''


def parts(runner: Runner) -> Iterator[tuple[str, Any]]:
    """Yield the hooks and modules that keep :data:`MEMORIES`, with the names of their types."""
    for part in [*runner.hooks, *runner.model.modules()]:
        if type(part).__name__ in MEMORIES:
            yield type(part).__name__, part


def num_batches(runner: Runner) -> int | None:
    """Return the batches of an epoch; None of a stream of data."""
    try:
        return len(runner.train_dataloader)
    except TypeError:
        return None


def parameters(runner: Runner) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Return the named parameters of a run's model."""
    return unwrap_model(runner.model).named_parameters()
