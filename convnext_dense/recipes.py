"""The published recipes: the only table of what differs between the rows of the papers.

The name of a row goes in, the parts of a leaf config come out; what all rows share stands in ``configs/*/_base_/``. A
row is called like its initial weights: ``tiny_1k`` starts from ``convnext://tiny_1k``.

Sources: facebookresearch/ConvNeXt (``object_detection/configs``, ``semantic_segmentation/configs``; arXiv 2201.03545,
Tables 3 and 4). For V2 arXiv 2301.00808, Sections A.3 and A.4, where what was swept is published and not what won.
"""

from collections.abc import Mapping
from typing import NamedTuple

from convnext_dense.variants import channels


class Recipe(NamedTuple):
    """One row.

    Attributes:
        arch: Size, of :data:`convnext_dense.variants.VARIANTS`.
        drop_path_rate: Stochastic depth of the last block.
        lr: Learning rate of the heads, for the images of a step in the paper.
        decay_rate: Factor from the learning rate of a layer, or stage, to that of the one below.
        amp: Mixed precision.
    """

    arch: str
    drop_path_rate: float
    lr: float
    decay_rate: float
    amp: bool = True


V2_ON_COCO = {
    'v2_tiny_fcmae': Recipe('tiny', 0.2, 1e-4, 0.95),
    'v2_base_fcmae': Recipe('base', 0.4, 1e-4, 0.95),
    'v2_large_fcmae': Recipe('large', 0.5, 1e-4, 0.95, amp=False),
    'v2_huge_fcmae': Recipe('huge', 0.5, 1e-4, 0.95, amp=False),
}
MASK_RCNN = {'tiny_1k': Recipe('tiny', 0.4, 1e-4, 0.95), **V2_ON_COCO}
CASCADE_MASK_RCNN = {
    'tiny_1k': Recipe('tiny', 0.4, 2e-4, 0.7),
    'small_1k': Recipe('small', 0.6, 2e-4, 0.7),
    'base_1k': Recipe('base', 0.7, 2e-4, 0.8),
    'base_22k': Recipe('base', 0.6, 1e-4, 0.8),
    'large_22k': Recipe('large', 0.7, 1e-4, 0.7, amp=False),
    'xlarge_22k': Recipe('xlarge', 0.8, 1e-4, 0.7, amp=False),
    **V2_ON_COCO,
}
UPERNET = {
    'tiny_1k': Recipe('tiny', 0.4, 1e-4, 0.9),
    'small_1k': Recipe('small', 0.3, 1e-4, 0.9),
    'base_1k': Recipe('base', 0.4, 1e-4, 0.9),
    'base_22k': Recipe('base', 0.4, 1e-4, 0.9),
    'large_22k': Recipe('large', 0.4, 1e-4, 0.9, amp=False),
    'xlarge_22k': Recipe('xlarge', 0.4, 8e-5, 0.9, amp=False),
    'v2_tiny_1k': Recipe('tiny', 0.2, 1e-4, 0.9),
    'v2_base_1k': Recipe('base', 0.3, 1e-4, 0.9),
    'v2_large_1k': Recipe('large', 0.4, 1e-4, 0.9, amp=False),
    'v2_huge_1k': Recipe('huge', 0.4, 1e-4, 0.9, amp=False),
    'v2_huge_22k_1k_512': Recipe('huge', 0.4, 1e-4, 0.9, amp=False),
}

Parts = tuple[dict, list[int], dict]  # the backbone, the channels of its maps, the optimizer's wrapper


def mask_rcnn(name: str) -> Parts:
    """Return the parts of a config of Mask R-CNN on COCO that are a row's own."""
    return leaf_parts(MASK_RCNN, name)


def cascade_mask_rcnn(name: str) -> Parts:
    """Return the parts of a config of Cascade Mask R-CNN on COCO that are a row's own."""
    return leaf_parts(CASCADE_MASK_RCNN, name)


def upernet(name: str) -> Parts:
    """Return the parts of a config of UperNet on ADE20K that are a row's own."""
    return leaf_parts(UPERNET, name)


def dinov3(arch: str) -> str:
    """Return where timm has DINOv3's weights of a size, which were distilled on LVD-1689M (arXiv 2508.10104)."""
    return f'timm://convnext_{arch}.dinov3_lvd1689m'


def leaf_parts(recipes: Mapping[str, Recipe], name: str) -> Parts:
    """Return what a leaf config says of its backbone and its optimizer, and the channels of the maps.

    Raises:
        ValueError: There is no such row.

    >>> backbone, channels, optim_wrapper = upernet('large_22k')
    >>> backbone['drop_path_rate'], channels, optim_wrapper['type']
    (0.4, [192, 384, 768, 1536], 'OptimWrapper')
    """
    if name not in recipes:
        raise ValueError(f'No recipe is called {name!r}. Allowed: {", ".join(recipes)}.')
    recipe = recipes[name]
    backbone = dict(
        arch=recipe.arch,
        **(dict(grn=True) if is_v2(name) else {}),
        drop_path_rate=recipe.drop_path_rate,
        init_cfg=dict(type='Pretrained', checkpoint=f'convnext://{name}'),
    )
    optim_wrapper = dict(
        type='AmpOptimWrapper' if recipe.amp else 'OptimWrapper',
        optimizer=dict(lr=recipe.lr),
        paramwise_cfg=dict(decay_rate=recipe.decay_rate),
    )
    return backbone, channels(recipe.arch), optim_wrapper


def is_v2(name: str) -> bool:
    """Tell whether a row is of ConvNeXt V2."""
    return name.startswith('v2_')
