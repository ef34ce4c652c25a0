"""Choose initial weights and drop path for a ConvNeXt, and fit the rest of a config's run to it.

The recipes are those of this package's own configs: Cascade Mask R-CNN or Mask R-CNN for detectors, UPerNet for
segmentors.
"""

import contextlib
from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from itertools import product
from typing import NamedTuple

from mmengine.config import Config

from convnext_dense import configs
from convnext_dense.compat.errors import UserError
from convnext_dense.swap.changes import Changes
from convnext_dense.swap.read import imported_modules
from convnext_dense.variants import VARIANTS
from convnext_dense.weights.sources import check_source

LEAVES = {  # in the order in which they are asked for a size
    'mmdet': ('det/cascade_convnext{}_coco.py', 'det/mask_rcnn_convnext{}_coco.py'),
    'mmseg': ('seg/upernet_convnext{}_ade20k.py',),
}
LETTERS = {'tiny': 't', 'small': 's', 'base': 'b', 'large': 'l', 'xlarge': 'xl', 'huge': 'h'}
TIMM = {  # timm alone trained V1 in these sizes
    'atto': 'timm://convnext_atto.d2_in1k',
    'femto': 'timm://convnext_femto.d1_in1k',
    'pico': 'timm://convnext_pico.d1_in1k',
    'nano': 'timm://convnext_nano.in12k_ft_in1k',
}
WEIGHTS = {  # by --in22k and --v2
    (False, False): '{}_1k',
    (True, False): '{}_22k',
    (False, True): 'v2_{}_1k',
    (True, True): 'v2_{}_22k_1k',
}
KEPT = ('clip_grad', 'accumulative_counts', 'loss_scale', 'dtype')  # settings of the optimizer wrapper
FACTORS = ('lr_mult', 'decay_mult')
PACKAGE = 'convnext_dense'
CHECK = dict(type='CheckWeightsHook')  # raises an error where a checkpoint does not fit


class Recipe(NamedTuple):
    """How a published model was trained.

    Attributes:
        leaf: The config in this package that says so.
        arch: The size of its backbone.
        drop_path_rate: Stochastic depth of the last block.
        optim_wrapper: The optimizer and the decay of its learning rate.
        batch_size: The number of images of a step, for which the learning rate is.
    """

    leaf: str
    arch: str
    drop_path_rate: float
    optim_wrapper: Mapping
    batch_size: int


def find_arch(name: str) -> str:
    """Return the size that ``t`` or ``tiny`` stands for.

    Raises:
        UserError: There is no such size.
    """
    arch = next((size for size, letters in LETTERS.items() if letters == name), name)
    if arch not in VARIANTS:
        names = [*VARIANTS, *(f'{letters} ({size})' for size, letters in LETTERS.items())]
        raise UserError(f'--arch {name!r} is no size of ConvNeXt. Allowed: {", ".join(names)}.')
    return arch


def find_weights(arch: str, in22k: bool, v2: bool) -> str:
    """Return the address of the initial weights of a size.

    Raises:
        UserError: No such weights were published.
    """
    if arch in TIMM and not in22k and not v2:
        return TIMM[arch]
    name = f'convnext://{WEIGHTS[in22k, v2].format(arch)}'
    for source in (name, f'{name}_384'):  # pixels of the images, where no weights of 224 were published
        with contextlib.suppress(UserError):
            check_source(source)
            return source
    raise UserError(
        f'No ImageNet-{"22k" if in22k else "1k"} weights of ConvNeXt {"V2 " if v2 else ""}{arch} were published. '
        f"{'Leave --in22k out' if in22k else 'Try --in22k'}, or choose other weights with --weights; '' starts from "
        'random ones.'
    )


def find_recipe(scope: str, arch: str, in22k: bool, v2: bool) -> Recipe:
    """Return the recipe of a size, or of the nearest size that has one.

    Args:
        scope: 'mmdet' or 'mmseg'.
        arch: The size.
        in22k: Prefer the recipe for ImageNet-22k weights, which is another one for some sizes.
        v2: ConvNeXt V2.

    >>> find_recipe('mmdet', 'base', in22k=True, v2=False)[:3]
    ('det/cascade_convnext_b_in22k_coco.py', 'base', 0.6)
    >>> find_recipe('mmseg', 'atto', in22k=False, v2=False).leaf
    'seg/upernet_convnext_t_ade20k.py'
    """
    order = list(VARIANTS)
    sizes = sorted(LETTERS, key=lambda size: abs(order.index(size) - order.index(arch)))
    suffixes = ('_in22k', '') if in22k else ('', '_in22k')
    names = (
        leaf.format(f'{"v2" if v2 else ""}_{LETTERS[size]}{suffix}')
        for size, suffix, leaf in product(sizes, suffixes, LEAVES[scope])
    )
    leaf = next(name for name in names if (configs.config_folder() / name).is_file())
    cfg = configs.load_config(configs.config_folder() / leaf)
    backbone = cfg.model.backbone
    return Recipe(leaf, backbone.arch, backbone.drop_path_rate, cfg.optim_wrapper, cfg.auto_scale_lr.base_batch_size)


def fit_optimizer(cfg: Config, recipe: Recipe, other_names: Callable[[], Iterable[str]]) -> Changes:
    """Return an optimizer whose learning rates decay from the heads down to the stem.

    An optimizer of the recipe's type keeps its options, and the recipe gives those that it leaves out.
    ``other_names`` builds the model to return the names of its parameters outside the backbone; it is called only if
    the config has factors for some parameters.
    """
    old = cfg.get('optim_wrapper')
    if old is None:
        return {}
    new, given, changes = recipe.optim_wrapper, old.get('optimizer') or {}, {}
    optimizer = {'type': new['optimizer']['type'], 'lr': new['optimizer']['lr'], **new['optimizer']}
    if given.get('type') == optimizer['type']:
        optimizer.update(given)
    else:
        changes = fit_batch_size(cfg, recipe)
    changes['optim_wrapper',] = dict(
        _delete_=True,
        type=old.get('type', 'OptimWrapper'),
        constructor=new['constructor'],
        paramwise_cfg=dict(decay_rate=new['paramwise_cfg']['decay_rate'], **keep_factors(old, other_names)),
        optimizer=optimizer,
        **{key: old[key] for key in KEPT if old.get(key) is not None},
    )
    return changes


def keep_factors(wrapper: Mapping, other_names: Callable[[], Iterable[str]]) -> dict:
    """Return the factors of parameters outside the backbone; the decay replaces those of the backbone."""
    keys = (wrapper.get('paramwise_cfg') or {}).get('custom_keys')
    if not keys:
        return {}
    names = list(other_names())
    kept = {
        piece: {name: factors[name] for name in FACTORS if name in factors}
        for piece, factors in keys.items()
        if any(piece in name for name in names)
    }
    return dict(custom_keys=kept) if kept else {}


def fit_batch_size(cfg: Config, recipe: Recipe) -> Changes:
    """Return the batch size for which the recipe's learning rate is; scaling to others stays on where it was on."""
    old = cfg.get('auto_scale_lr')
    scaling = dict(enable=bool(old and old.get('enable')), base_batch_size=recipe.batch_size)
    # MMEngine knows the key _delete_ only where there is something to delete
    return {('auto_scale_lr',): scaling if old is None else dict(_delete_=True, **scaling)}


def fit_schedules(cfg: Config) -> Changes:
    """Return schedules whose lowest learning rate is a share of the highest one.

    An absolute one would lift the small rates of early layers.
    """
    schedules = cfg.get('param_scheduler')
    rate = ((cfg.get('optim_wrapper') or {}).get('optimizer') or {}).get('lr')
    if isinstance(schedules, dict):
        new = fit_schedule(schedules, rate)
        return {('param_scheduler',): dict(_delete_=True, **new)} if new else {}
    fitted = ((index, fit_schedule(schedule, rate)) for index, schedule in enumerate(schedules or ()))
    return {('param_scheduler', index): new for index, new in fitted if new}


def fit_schedule(schedule: Mapping, rate: float | None) -> dict:
    """Return a schedule with a relative lowest rate, or nothing where it has no lowest rate."""
    lowest = schedule.get('eta_min')
    if not lowest or not schedule['type'].endswith('LR'):
        return {}
    others = {key: value for key, value in schedule.items() if key != 'eta_min'}
    if rate and schedule['type'].startswith('Cosine'):
        return dict(others, eta_min_ratio=round(lowest / rate, 6))
    return dict(others, eta_min=0.0)


def fit_imports(cfg: Config, backbone: str) -> Changes:
    """Return the modules to import: this package, and those of the config but for a missing one of the old backbone."""
    package = backbone.partition('.')[0] if '.' in backbone else ''
    unneeded = {package} if package and find_spec(package) is None else set()
    kept = [name for name in imported_modules(cfg) if name != PACKAGE and name.partition('.')[0] not in unneeded]
    # this package comes first, because it serves the ops that the others import from mmcv
    return {('custom_imports',): dict(imports=[PACKAGE, *kept], allow_failed_imports=False)}


def fit_checkpoints(cfg: Config) -> Changes:
    """Return the hook that checks checkpoints; a checkpoint of the whole model with the old backbone is left out."""
    hooks = cfg.get('custom_hooks') or []
    changes: Changes = {} if CHECK in hooks else {('custom_hooks',): [*hooks, CHECK]}
    if cfg.get('load_from'):
        changes['load_from',] = None
    return changes
