"""An upstream config goes in; what its run must change for a ConvNeXt comes out: rates, imports, hooks."""

import importlib.util
from collections.abc import Callable, Iterable

from mmengine.config import Config

from convnext_dense.recipes import Recipe
from convnext_dense.swap.changes import Changes
from convnext_dense.swap.recipes import BATCH, OPTIMIZER, OPTIMIZER_OPTIONS

KEPT = ('clip_grad', 'accumulative_counts', 'loss_scale', 'dtype')  # of upstream's optimizer wrapper
FACTORS = ('lr_mult', 'decay_mult')
IMPORT = 'convnext_dense'
CHECK = dict(type='CheckWeightsHook')  # that a checkpoint fits


def optimizer_changes(cfg: Config, constructor: str, recipe: Recipe, other_names: Callable[[], Iterable]) -> Changes:
    """Return an AdamW with decayed rates; it is upstream's where that has one, whose gaps the recipe fills.

    Factors of single parameters are kept, those of the backbone aside, which the decay replaces.

    Args:
        cfg: The upstream config.
        constructor: The rule of the decay.
        recipe: Its rate, and the lr.
        other_names: Gives the names of the parameters outside of the backbone; asked for where they matter.
    """
    old = cfg.get('optim_wrapper')
    if old is None:
        return {}
    optimizer, changes = dict(type=OPTIMIZER, lr=recipe.lr, **OPTIMIZER_OPTIONS), {}
    given = old.get('optimizer') or {}
    if given.get('type') == OPTIMIZER:
        optimizer.update(given)
    else:
        scaling = dict(enable=(cfg.get('auto_scale_lr') or {}).get('enable', False), base_batch_size=BATCH)
        # MMEngine deletes what is there, and takes the word for a setting where nothing is
        changes['auto_scale_lr',] = dict(_delete_=True, **scaling) if 'auto_scale_lr' in cfg else scaling
    paramwise = dict(decay_rate=recipe.decay_rate)
    if keys := (old.get('paramwise_cfg') or {}).get('custom_keys'):
        names = list(other_names())
        kept = {key: factors for key, factors in keys.items() if any(key in name for name in names)}
        if kept:
            paramwise['custom_keys'] = {
                key: {name: factor for name, factor in factors.items() if name in FACTORS}
                for key, factors in kept.items()
            }
    changes['optim_wrapper',] = dict(
        _delete_=True,
        type=old.get('type', 'OptimWrapper'),
        constructor=constructor,
        paramwise_cfg=paramwise,
        optimizer=optimizer,
        **{key: old[key] for key in KEPT if old.get(key) is not None},
    )
    return changes


def schedule_changes(cfg: Config) -> Changes:
    """Return schedules whose lowest rate is a share of the highest one.

    Upstream's is absolute: it would lift the small rates of early layers, and level those of a smaller lr.
    """
    changes = {}
    schedules = cfg.get('param_scheduler')
    several = isinstance(schedules, (list, tuple))
    for index, schedule in enumerate(schedules if several else [schedules]):
        if not schedule or not schedule.get('eta_min') or not schedule['type'].endswith('LR'):
            continue
        new = {key: value for key, value in schedule.items() if key != 'eta_min'}
        lr = ((cfg.get('optim_wrapper') or {}).get('optimizer') or {}).get('lr')
        if schedule['type'].startswith('Cosine') and lr:
            new['eta_min_ratio'] = round(schedule['eta_min'] / lr, 6)
        else:
            new['eta_min'] = 0.0
        changes['param_scheduler', index] = new
        if not several:
            changes = {('param_scheduler',): dict(_delete_=True, **new)}
    return changes


def import_changes(cfg: Config, backbone: str) -> Changes:
    """Return the imports that the config needs: this package, and those of upstream.

    Args:
        cfg: The upstream config.
        backbone: The old backbone's type; where the package that it came from is not installed, it is not imported.
    """
    dropped = backbone.partition('.')[0] if '.' in backbone else ''
    kept = [
        name
        for name in imported_modules(cfg)
        if name != IMPORT and (name.partition('.')[0] != dropped or importlib.util.find_spec(dropped) is not None)
    ]
    # this package first: the others ask for mmcv's ops
    return {('custom_imports',): dict(imports=[IMPORT, *kept], allow_failed_imports=False)}


def imported_modules(cfg: Config) -> list[str]:
    """Return the modules that a config imports."""
    given = (cfg.get('custom_imports') or {}).get('imports') or []
    return [given] if isinstance(given, str) else list(given)


def checkpoint_changes(cfg: Config) -> Changes:
    """Return the check that checkpoints fit, and leave out one with the old backbone."""
    hooks = cfg.get('custom_hooks') or []
    changes = {} if CHECK in hooks else {('custom_hooks',): [*hooks, CHECK]}
    if cfg.get('load_from'):
        changes['load_from',] = None
    return changes
