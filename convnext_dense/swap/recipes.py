"""A task and initial weights go in; drop path, decay rate and optimizer of the published recipe come out.

The rows are those of :mod:`convnext_dense.recipes`; sizes without a row get the one of the nearest published size.
"""

from collections.abc import Mapping
from typing import NamedTuple

from convnext_dense.compat.errors import UserError
from convnext_dense.recipes import CASCADE_MASK_RCNN, UPERNET, Recipe, is_v2
from convnext_dense.variants import VARIANTS
from convnext_dense.weights.published import PUBLISHED

SHORT = {'t': 'tiny', 's': 'small', 'b': 'base', 'l': 'large', 'xl': 'xlarge', 'h': 'huge'}
TIMM = {  # V1 in sizes that only timm trained
    'atto': 'timm://convnext_atto.d2_in1k',
    'femto': 'timm://convnext_femto.d1_in1k',
    'pico': 'timm://convnext_pico.d1_in1k',
    'nano': 'timm://convnext_nano.in12k_ft_in1k',
}
SIDES = (384, 512)  # pixels, of weights that were not trained at 224


class Task(NamedTuple):
    """What the recipes of detection or segmentation share."""

    constructor: str
    recipes: Mapping[str, Recipe]


OPTIMIZER = 'AdamW'
OPTIMIZER_OPTIONS = dict(betas=(0.9, 0.999), weight_decay=0.05)
BATCH = 16  # images for which the lr is

TASKS = {'mmdet': Task('ConvNeXtLayerDecay', CASCADE_MASK_RCNN), 'mmseg': Task('ConvNeXtStageDecay', UPERNET)}


def find_arch(name: str) -> str:
    """Return the size that ``t`` or ``tiny`` stands for.

    Raises:
        UserError: There is no such size.
    """
    arch = SHORT.get(name, name)
    if arch not in VARIANTS:
        names = [*VARIANTS, *(f'{short} ({size})' for short, size in SHORT.items())]
        raise UserError(f'--arch {name!r} is no size of ConvNeXt. Allowed: {", ".join(names)}.')
    return arch


def find_weights(arch: str, in22k: bool, v2: bool) -> str:
    """Return where the initial weights of a size are, as the loader of this package takes it.

    Raises:
        UserError: None were published; the message names those that were.
    """
    if arch in TIMM and not v2 and not in22k:
        return TIMM[arch]
    family = 'v2_' if v2 else ''
    data = ('22k_1k' if v2 else '22k') if in22k else '1k'
    name = f'{family}{arch}_{data}'
    sizes = (name, *(f'{name}_{side}' for side in SIDES))
    if found := next((each for each in sizes if each in PUBLISHED), None):
        return f'convnext://{found}'
    others = [
        f'convnext://{known}'
        for known, file in PUBLISHED.items()
        if file.size == arch and known.startswith('v2_') == v2 and file.num_classes is not None
    ]
    others += [TIMM[arch]] if arch in TIMM and not v2 else []
    raise UserError(
        f'No {"ImageNet-22k" if in22k else "ImageNet-1k"} weights of ConvNeXt {"V2 " * v2}{arch} were published. '
        f"Choose others with --weights: {', '.join(others) or 'a file of yours'}; or '' for random ones."
    )


def find_recipe(scope: str, arch: str, in22k: bool, v2: bool) -> Recipe:
    """Return the recipe of a size, or that of the nearest size with one.

    >>> find_recipe('mmdet', 'base', in22k=True, v2=False)
    Recipe(arch='base', drop_path_rate=0.6, lr=0.0001, decay_rate=0.8, amp=True)
    >>> find_recipe('mmdet', 'atto', in22k=False, v2=False) == find_recipe('mmdet', 'tiny', in22k=False, v2=False)
    True
    """
    recipes = TASKS[scope].recipes
    sizes = list(VARIANTS)

    def distance(name: str) -> tuple[bool, int, bool]:
        size = sizes.index(recipes[name].arch)
        return is_v2(name) != v2, abs(size - sizes.index(arch)), ('22k' in name) != in22k

    return recipes[min(recipes, key=distance)]
