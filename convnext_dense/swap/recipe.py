"""Choose a backbone and a recipe of this package's own configs for it, and fit the run of a config to them."""

import contextlib
from collections.abc import Mapping
from importlib.util import find_spec
from itertools import product

from mmengine.config import Config
from mmengine.registry import MODELS

from convnext_dense import ladder
from convnext_dense.compat.errors import UserError
from convnext_dense.configs import PACKAGE, Changes, Path, config_folder, dotted, load_config
from convnext_dense.swap.read import explain_failure, imported_modules, type_name
from convnext_dense.variants import VARIANTS
from convnext_dense.weights.sources import check_source

LEAVES = {  # in the order in which they are asked for a size
    'mmdet': ('det/cascade_convnext{}_coco.py', 'det/mask_rcnn_convnext{}_coco.py'),
    'mmseg': ('seg/upernet_convnext{}_ade20k.py',),
}
LADDER = 'ladder:'
LADDER_LEAVES = {'mmdet': 'ladder/mask_rcnn_{}_coco.py', 'mmseg': 'ladder/upernet_{}_ade20k.py'}
FROM_SCRATCH = ('type', 'step', 'drop_path_rate')  # other settings of a ladder's leaf suit its weights
LETTERS = {'t': 'tiny', 's': 'small', 'b': 'base', 'l': 'large', 'xl': 'xlarge', 'h': 'huge'}
TIMM = {  # timm alone trained V1 in these sizes
    'atto': 'timm://convnext_atto.d2_in1k',
    'femto': 'timm://convnext_femto.d1_in1k',
    'pico': 'timm://convnext_pico.d1_in1k',
    'nano': 'timm://convnext_nano.in12k_ft_in1k',
}
KEPT = ('clip_grad', 'accumulative_counts', 'loss_scale', 'dtype')  # settings of the optimizer wrapper
FACTORS = ('lr_mult', 'decay_mult')
CHECK = dict(type='CheckWeightsHook')  # raises an error where a checkpoint does not fit


def find_backbone(scope: str, arch: str, in22k: bool, v2: bool, weights: str | None) -> tuple[dict, Config]:
    """Return the config of a new backbone with all maps, and the config of this package whose recipe it follows.

    ``scope`` is 'mmdet' or 'mmseg'; the other arguments are those of :func:`convnext_dense.swap.swap_backbone`.
    """
    if arch.startswith(LADDER):
        recipe = find_step_recipe(scope, arch.removeprefix(LADDER), in22k, v2)
        leaf = recipe.model.backbone.to_dict()
        backbone = {key: leaf.pop(key) for key in FROM_SCRATCH}
        if weights != '':
            backbone.update(leaf)
    else:
        size = find_size(arch)
        recipe = find_recipe(scope, size, in22k, v2)
        backbone = dict(type='ConvNeXt', arch=size, **(dict(grn=True) if v2 else {}))
        backbone['drop_path_rate'] = recipe.model.backbone.drop_path_rate
        weights = find_weights(size, in22k, v2) if weights is None else weights
    if weights:
        check_source(weights)
        backbone['init_cfg'] = dict(type='Pretrained', checkpoint=weights)
    return backbone, recipe


def find_step_recipe(scope: str, step: str, in22k: bool, v2: bool) -> Config:
    """Return the config of this package for a step of the ladder; all steps share the recipe of ConvNeXt-T."""
    if step not in ladder.steps():
        raise UserError(f'--arch {LADDER}{step}: there is no such step. Allowed: {", ".join(ladder.steps())}.')
    if in22k or v2:
        raise UserError(f'--arch {LADDER}{step} takes neither --in22k nor --v2, which choose sizes of ConvNeXt.')
    return load_config(config_folder() / LADDER_LEAVES[scope].format(step))


def find_size(name: str) -> str:
    """Return the size that ``t`` or ``tiny`` stands for."""
    size = LETTERS.get(name, name)
    if size not in VARIANTS:
        names = [*VARIANTS, *(f'{letters} ({size})' for letters, size in LETTERS.items()), f'{LADDER}STEP']
        raise UserError(f'--arch {name!r} is no size of ConvNeXt. Allowed: {", ".join(names)}.')
    return size


def find_recipe(scope: str, size: str, in22k: bool, v2: bool) -> Config:
    """Return the config of this package whose recipe fits a size best: its own, or that of the nearest size.

    With ``in22k``, a recipe for ImageNet-22k weights is preferred, which is another one for some sizes.
    """
    order = list(VARIANTS)
    nearest = sorted(LETTERS, key=lambda letters: abs(order.index(LETTERS[letters]) - order.index(size)))
    suffixes = ('_in22k', '') if in22k else ('', '_in22k')
    files = (
        config_folder() / leaf.format(f'{"v2" if v2 else ""}_{letters}{suffix}')
        for letters, suffix, leaf in product(nearest, suffixes, LEAVES[scope])
    )
    return load_config(next(file for file in files if file.is_file()))


def find_weights(size: str, in22k: bool, v2: bool) -> str:
    """Return the address of the published weights of a size."""
    if size in TIMM and not in22k and not v2:
        return TIMM[size]
    name = f'convnext://{"v2_" if v2 else ""}{size}_{"22k" if in22k else "1k"}'
    # V2's of ImageNet-22k were trained on ImageNet-1k afterwards, the largest with images of 384 pixels alone
    for source in (name, f'{name}_1k', f'{name}_1k_384'):
        with contextlib.suppress(UserError):
            check_source(source)
            return source
    raise UserError(
        f'No ImageNet-{"22k" if in22k else "1k"} weights of ConvNeXt {"V2 " if v2 else ""}{size} were published. '
        f"{'Leave --in22k out' if in22k else 'Try --in22k'}, or choose other weights with --weights; '' starts from "
        'random ones.'
    )


def fit_optimizer(cfg: Config, recipe: Config, model: Mapping, path: Path) -> Changes:
    """Return an optimizer whose learning rates decay from the heads down to the stem.

    An optimizer of the recipe's type keeps its options, and the recipe gives those that it leaves out. Otherwise the
    rate is the recipe's, and the batch size for which it is. ``path`` is that of the model's part with the backbone.
    """
    old = cfg.get('optim_wrapper')
    if old is None:
        return {}
    new, given, changes = recipe.optim_wrapper, old.get('optimizer') or {}, {}
    optimizer = {'type': new.optimizer.type, 'lr': new.optimizer.lr, **new.optimizer}
    if given.get('type') == optimizer['type']:
        optimizer.update(given)
    else:
        changes['auto_scale_lr',] = dict(
            **(dict(_delete_=True) if 'auto_scale_lr' in cfg else {}),  # MMEngine knows the key only in this case
            enable=bool((cfg.get('auto_scale_lr') or {}).get('enable')),
            base_batch_size=recipe.auto_scale_lr.base_batch_size,
        )
    changes['optim_wrapper',] = dict(
        _delete_=True,
        type=old.get('type', 'OptimWrapper'),
        constructor=new.constructor,
        paramwise_cfg=dict(decay_rate=new.paramwise_cfg.decay_rate, **keep_factors(old, model, path)),
        optimizer=optimizer,
        **{key: old[key] for key in KEPT if old.get(key) is not None},
    )
    return changes


def keep_factors(wrapper: Mapping, model: Mapping, path: Path) -> dict:
    """Return the factors of parameters outside the backbone; the decay replaces those of the backbone."""
    given = (wrapper.get('paramwise_cfg') or {}).get('custom_keys')
    names = names_outside(model, path) if given else []
    kept = {
        piece: {name: factors[name] for name in FACTORS if name in factors}
        for piece, factors in (given or {}).items()
        if any(piece in name for name in names)
    }
    return dict(custom_keys=kept) if kept else {}


def names_outside(model_cfg: Mapping, path: Path) -> list[str]:
    """Build a model and return the names of its parameters outside the backbone."""
    with explain_failure(f'{type_name(model_cfg)} cannot be built with this backbone'):
        model = MODELS.build(model_cfg)
    backbone = dotted((*path[1:], 'backbone', ''))
    return [name for name, _ in model.named_parameters() if not name.startswith(backbone)]


def fit_schedules(cfg: Config) -> Changes:
    """Return schedules whose lowest learning rate is a share of the highest one.

    An absolute one would lift the small rates of early layers.
    """
    given = cfg.get('param_scheduler') or []
    rate = ((cfg.get('optim_wrapper') or {}).get('optimizer') or {}).get('lr')
    old = [given] if isinstance(given, dict) else list(given)
    new = [fit_schedule(schedule, rate) for schedule in old]
    if new == old:
        return {}
    return {('param_scheduler',): dict(_delete_=True, **new[0]) if isinstance(given, dict) else new}


def fit_schedule(schedule: Mapping, rate: float | None) -> Mapping:
    """Return a schedule with a relative lowest rate, if it has a lowest rate."""
    lowest = schedule.get('eta_min')
    if not lowest or not schedule['type'].endswith('LR'):
        return schedule
    others = {key: value for key, value in schedule.items() if key != 'eta_min'}
    if rate and schedule['type'].startswith('Cosine'):
        return dict(others, eta_min_ratio=round(lowest / rate, 6))
    return dict(others, eta_min=0.0)


def fit_run(cfg: Config, recipe: Config, old_type: str) -> Changes:
    """Return the modules to import, the hook that checks checkpoints, and no checkpoint with the old backbone."""
    package = old_type.rpartition('.')[0].partition('.')[0]
    missing = package if package and find_spec(package) is None else None
    kept = [name for name in imported_modules(cfg) if name != PACKAGE and name.partition('.')[0] != missing]
    # this package comes first, because it serves the ops that the others import from mmcv
    changes: Changes = {('custom_imports',): dict(imports=[PACKAGE, *kept], allow_failed_imports=False)}
    hooks = cfg.get('custom_hooks') or []
    if CHECK not in hooks:
        changes['custom_hooks',] = [*hooks, CHECK]
    if cfg.get('load_from'):
        changes['load_from',] = None
    if 'sync_bn' in recipe:
        changes['sync_bn',] = recipe.sync_bn
    return changes
