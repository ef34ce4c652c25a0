"""Whether the parts of a checkpoint fit a run that is to continue from it.

MMEngine compares nothing: what has another shape, or is of another kind, would end in an error of Python's in the first
steps, or be left out in silence.
"""

import itertools
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import Runner

from convnext_dense.compat.errors import UserError, shorten
from convnext_dense.train.resume import STATE_KEY, is_count, parameters, tensors_of, training_memories
from convnext_dense.weights.load import unwrap_model
from convnext_dense.weights.mmengine import has_our_backbone

KIND_OPTIONS = {'lr', 'weight_decay', 'betas', 'momentum'}  # by which kinds of optimizers differ in all versions
LOG_PARTS = ('log_scalars', 'runtime_info', 'resumed_keys')
LARGE = 1e300  # no setting has such a number, but for infinity
# What hooks keep in the log of a run -> an example.
NOTED = {'last_ckpt': '', 'best_ckpt': '', 'best_score': 0.0, 'loop_stage': '', 'skipped_steps': 0, 'eta': 0.0}


def check_fits(checkpoint: Mapping, runner: Runner, file: str) -> None:
    """Raise a :class:`UserError` where a part of a checkpoint has another shape or kind than that of the run."""
    optimizer, schedulers = getattr(runner.optim_wrapper, 'optimizer', None), runner.param_schedulers
    problems = [
        weights_problem(checkpoint['state_dict'], runner.model),
        log_problem(checkpoint.get('message_hub'), runner.message_hub.runtime_info),
        state_problem(checkpoint.get(STATE_KEY), runner),
    ]
    if isinstance(optimizer, torch.optim.Optimizer):  # several optimizers are left to MMEngine
        problems.append(optimizer_problem(checkpoint.get('optimizer'), optimizer))
    if isinstance(schedulers, list):
        problems.append(schedules_problem(checkpoint.get('param_schedulers'), schedulers))
    if found := list(filter(None, problems)):
        raise UserError(
            f'{file} does not fit this run: {"; ".join(found)}. Resume with the config of its training, of which a '
            f'copy lies in its work dir, or start from its weights with --cfg-options load_from={file}.'
        )


def weights_problem(saved: Any, model: torch.nn.Module) -> str:
    """Say which weights are missing or have another shape; empty if none.

    Those of a model with a backbone of this package are compared when they are loaded.
    """
    if not isinstance(saved, Mapping) or not all(isinstance(name, str) for name in saved):
        return 'its state_dict must hold weights by their names'
    if has_our_backbone(model):
        return ''
    own = unwrap_model(model).state_dict()
    shapes = {name.removeprefix('module.'): getattr(value, 'shape', None) for name, value in saved.items()}
    odd = [name for name, value in own.items() if shapes.get(name) != value.shape]
    return f'its weights lack {shorten(odd)}, or have another shape there' if odd else ''


def log_problem(hub: Any, own: Mapping[str, Any]) -> str:
    """Say what is wrong with the log of a checkpoint; empty if nothing is. ``own`` is what the run has noted in its."""
    if not (isinstance(hub, Mapping) and all(isinstance(hub.get(part), Mapping) for part in LOG_PARTS)):
        return f'its message_hub must hold {", ".join(LOG_PARTS)}'
    scalars, infos, resumed = (hub[part] for part in LOG_PARTS)
    names = [*scalars, *infos, *resumed]
    if not all(isinstance(name, str) for name in names):
        return 'its message_hub has names that are no text'
    odd = [name for name in resumed if not isinstance(resumed[name], bool)]
    odd += [name for name in (*scalars, *infos) if resumed.get(name) is not True]
    odd += [name for name in scalars if not is_history(scalars[name])]
    odd += misfits(infos, NOTED | dict(own))
    return f'its message_hub has something else than a run notes for {shorten(dict.fromkeys(odd))}' if odd else ''


def is_history(value: Any) -> bool:
    """Tell whether a log has numbers with as many counts; what is no history at all is left to MMEngine."""
    if not isinstance(value, HistoryBuffer):
        return True
    parts = [getattr(value, name, None) for name in ('_log_history', '_count_history')]
    if not all(isinstance(part, np.ndarray) and part.ndim == 1 and part.dtype.kind in 'fiu' for part in parts):
        return False
    return len(parts[0]) == len(parts[1]) and is_count(getattr(value, 'max_length', None))


def optimizer_problem(saved: Any, optimizer: torch.optim.Optimizer) -> str:
    """Say in what the groups or the state of an optimizer differ from the saved ones; empty if in nothing."""
    try:
        groups, numbers = saved['param_groups'], [list(group['params']) for group in saved['param_groups']]
        states = [saved['state'].get(number, {}) for group in numbers for number in group]
        _ = [state.items() for state in states]
        options = [set(group) for group in groups]
    except (KeyError, TypeError, ValueError, AttributeError):
        return 'its optimizer has no groups of parameters with their states'
    sizes, built = [len(group) for group in numbers], [len(group['params']) for group in optimizer.param_groups]
    if sizes != built:
        return f'its optimizer has {sum(sizes)} parameters in groups of {sizes}, this run has {sum(built)} in {built}'
    if any(KIND_OPTIONS & set(optimizer.defaults) - group for group in options):
        return 'its optimizer is of another type than that of this run'
    if odd := [key for group, own in zip(groups, optimizer.param_groups, strict=True) for key in misfits(group, own)]:
        return f'its optimizer has something else for {shorten(dict.fromkeys(odd))}'
    if not all(map(is_count, itertools.chain(*numbers))) or not set(saved['state']) <= set(itertools.chain(*numbers)):
        return 'its optimizer has states of no parameter'
    return states_problem(states, [parameter for group in optimizer.param_groups for parameter in group['params']])


def states_problem(states: Iterable[Mapping], parameters: Iterable[torch.nn.Parameter]) -> str:
    """Say which parameter does not fit what an optimizer keeps for it; empty if all do."""
    kinds = {}  # what is kept for vectors, and for others
    for state, parameter in zip(states, parameters, strict=True):
        shape = tuple(parameter.shape)
        if other := [value.shape for _, value in tensors_of(state, '') if not is_part(value.shape, shape)]:
            return f'its optimizer knows a parameter of {tuple(other[0])}, which is {shape} in this run'
        kind = {name: (type(value), getattr(value, 'is_floating_point', bool)()) for name, value in state.items()}
        if state and kinds.setdefault(len(shape) > 1, kind) != kind:
            return f'its optimizer knows something else for the parameter of {shape} than for others'
    return ''


def is_part(shape: Iterable[int], whole: Iterable[int]) -> bool:
    """Tell whether a shape is that of a parameter, or of numbers for some of its dimensions.

    >>> is_part((8, 3), (8, 3)), is_part((8, 1), (8, 3)), is_part((), (8, 3)), is_part((3, 8), (8, 3))
    (True, True, True, False)
    """
    left = iter(whole)
    return all(size in left for size in shape if size != 1)


def schedules_problem(saved: Any, schedulers: list) -> str:
    """Say in what schedules differ from the saved ones; empty if in nothing."""
    try:
        given = [dict(state) for state in saved]
    except (TypeError, ValueError):
        return 'its schedules are no list of states'
    built = [scheduler.state_dict() for scheduler in schedulers]
    if len(given) != len(built):
        return f'it has {len(given)} schedules, this run has {len(built)}'
    pairs = list(zip(given, built, strict=True))
    if any(one.keys() - other.keys() and other.keys() - one.keys() for one, other in pairs):  # versions add entries
        return 'its schedules are of other types than those of this run'
    odd = [key for one, other in pairs for key in misfits(one, other)]
    return f'its schedules have something else for {shorten(odd)}' if odd else ''


def state_problem(saved: Any, runner: Runner) -> str:
    """Say what is wrong with the training state of a checkpoint; empty if nothing is, or if it has none."""
    if not isinstance(saved, Mapping):
        return ''
    memories, gradients = saved.get('memories', {}), saved.get('gradients') or []
    shapes = {name: parameter.shape for name, parameter in parameters(runner)}
    try:
        odd = misfits(memories, training_memories(runner))
        odd += [name for part in gradients for name, value in part.items() if value.shape != shapes.get(name)]
    except (TypeError, AttributeError):
        odd = ['memories, gradients']
    return f'its {STATE_KEY} has something else for {shorten(odd)}' if odd else ''


def misfits(saved: Mapping, own: Mapping) -> list[str]:
    """Return the names under which something of another kind is saved than the run has there."""
    return [name for name in own if name in saved and name != 'params' and not is_alike(saved[name], own[name])]


def is_alike(saved: Any, own: Any) -> bool:
    """Tell whether a saved setting is of the kind of the run's own.

    >>> is_alike(0.1, 1), is_alike('x', 1), is_alike((0.9, 0.99), [0, 0]), is_alike(float('nan'), 0.1)
    (True, False, True, False)
    """
    if own is None:  # not given here
        return saved is None or isinstance(saved, Real | tuple | list)
    if isinstance(own, bool):
        return isinstance(saved, bool)
    if isinstance(own, Real):
        return isinstance(saved, Real) and not isinstance(saved, bool) and (abs(own) > LARGE or abs(saved) < LARGE)
    if isinstance(own, list | tuple):
        is_list = isinstance(saved, list | tuple) and len(saved) == len(own)
        return is_list and all(map(is_alike, saved, own))
    if isinstance(own, Mapping):
        return isinstance(saved, Mapping) and not misfits(saved, own)
    return isinstance(saved, type(own))
