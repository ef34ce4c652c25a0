"""A task and initial weights go in; drop path, decay rate and optimizer of the published recipe come out.

The rows are those of the configs in ``configs/`` (``tests/test_swap.py`` compares them). Sizes without a row get the
one of the nearest published size.
"""

from typing import NamedTuple

from convnext_dense.errors import UserError
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


class Recipe(NamedTuple):
    """How a size is trained.

    Attributes:
        drop_path_rate: Stochastic depth of the last block.
        decay_rate: Factor from a layer's learning rate to that of the one below.
        lr: Learning rate of the heads, for :data:`BATCH` images.
    """

    drop_path_rate: float
    decay_rate: float
    lr: float


class Task(NamedTuple):
    """What the recipes of detection or segmentation share."""

    constructor: str
    recipes: dict[str, Recipe]  # size and data of the initial weights -> recipe


OPTIMIZER = 'AdamW'
OPTIMIZER_OPTIONS = dict(betas=(0.9, 0.999), weight_decay=0.05)
BATCH = 16  # images for which the lr is

TASKS = {
    'mmdet': Task(
        'ConvNeXtLayerDecay',
        {
            'tiny_1k': Recipe(0.4, 0.7, 2e-4),
            'small_1k': Recipe(0.6, 0.7, 2e-4),
            'base_1k': Recipe(0.7, 0.8, 2e-4),
            'base_22k': Recipe(0.6, 0.8, 1e-4),
            'large_22k': Recipe(0.7, 0.7, 1e-4),
            'xlarge_22k': Recipe(0.8, 0.7, 1e-4),
            'v2_tiny_1k': Recipe(0.2, 0.95, 1e-4),
            'v2_base_1k': Recipe(0.4, 0.95, 1e-4),
            'v2_large_1k': Recipe(0.5, 0.95, 1e-4),
            'v2_huge_1k': Recipe(0.5, 0.95, 1e-4),
        },
    ),
    'mmseg': Task(
        'ConvNeXtStageDecay',
        {
            'tiny_1k': Recipe(0.4, 0.9, 1e-4),
            'small_1k': Recipe(0.3, 0.9, 1e-4),
            'base_1k': Recipe(0.4, 0.9, 1e-4),
            'base_22k': Recipe(0.4, 0.9, 1e-4),
            'large_22k': Recipe(0.4, 0.9, 1e-4),
            'xlarge_22k': Recipe(0.4, 0.9, 8e-5),
            'v2_tiny_1k': Recipe(0.2, 0.9, 1e-4),
            'v2_base_1k': Recipe(0.3, 0.9, 1e-4),
            'v2_large_1k': Recipe(0.4, 0.9, 1e-4),
            'v2_huge_1k': Recipe(0.4, 0.9, 1e-4),
        },
    ),
}


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
    Recipe(drop_path_rate=0.6, decay_rate=0.8, lr=0.0001)
    >>> find_recipe('mmdet', 'atto', in22k=False, v2=False) == find_recipe('mmdet', 'tiny', in22k=False, v2=False)
    True
    """
    recipes = TASKS[scope].recipes
    family = {name: recipe for name, recipe in recipes.items() if name.startswith('v2_') == v2}
    sizes = list(VARIANTS)

    def distance(name: str) -> tuple[int, bool]:
        size, data = name.removeprefix('v2_').split('_')
        return abs(sizes.index(size) - sizes.index(arch)), (data == '22k') != in22k

    return family[min(family, key=distance)]
