"""All configs that the libraries are installed with go in; out comes for how many the changes can be computed.

Nothing is proven here, and nothing but the old backbones is built; :mod:`~convnext_dense.swap.pipelines` runs some.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from convnext_dense.compat.errors import UserError
from convnext_dense.configs import model_scope
from convnext_dense.swap.changes import at
from convnext_dense.swap.channels import find_backbone, pair_maps
from convnext_dense.swap.maps import Map, backbone_maps
from convnext_dense.swap.swapping import backbone_config, check_task, model_changes
from convnext_dense.swap.upstream import all_configs, find_config, read_config
from convnext_dense.train.screen import quiet

ARCH = 'tiny'
REASONS = {  # a piece of the message -> what it means
    'is no config of a detector or a segmentor': 'a piece of a config, without a model',
    'cannot be read': 'a base is not where the config looks for it',
    'no `backbone` in its config': 'no backbone of MMDetection or MMSegmentation (Detectron2, CLIP)',
    'has several backbones': 'several backbones (tracking)',
    'The backbone mmpretrain.': 'the old backbone needs mmpretrain',
    'does not run (': 'the old backbone does not run on 256 pixels, or needs more packages (BEiT, MAE, VPD)',
    'gives more than feature maps': 'made for the tokens of a vision transformer (DPT)',
    'one each.': "the old backbone's maps have other strides: ViT, U-Net, real-time networks, P6, recursive FPN",
    'has no neck': 'heads made for one map of a ResNet or an hourglass (C4, TridentNet, CornerNet)',
    'too special': 'channels that no map has',
}


class Survey(NamedTuple):
    """How many configs there are, for how many the changes were found, and why not for the others."""

    num_configs: int
    num_swapped: int
    reasons: dict[str, int]


def survey(names: Sequence[str] | None = None, tell: Callable[[str], None] = print) -> Survey:
    """Compute what each config must change.

    Args:
        names: Of the configs; all that the libraries are installed with by default.
        tell: Is given a line for each config for which that is impossible.
    """
    names = all_configs() if names is None else names
    reasons, known = Counter(), {}
    for name in names:
        try:
            compute_changes(name, known)
        except UserError as error:
            reasons[find_reason(str(error))] += 1
            tell(f'{name}: {error}')
    return Survey(len(names), len(names) - sum(reasons.values()), dict(reasons.most_common()))


def compute_changes(name: str, known: dict[str, list[Map]]) -> None:
    """Find out what the model of a config must change.

    Args:
        name: Of the config.
        known: Backbones that were asked already, and their maps; this one is added.

    Raises:
        UserError: Its backbone cannot be exchanged by rule.
    """
    _, file = find_config(name)
    cfg = read_config(file)
    check_task(cfg, name)
    path = find_backbone(cfg.model)
    owner = at(cfg, path)
    with model_scope(cfg), quiet():
        backbone = f'{cfg.default_scope} {owner.backbone}'
        maps = known[backbone] if backbone in known else known.setdefault(backbone, backbone_maps(owner.backbone))
        pairs = pair_maps(owner, maps)
        model_changes(cfg, path, pairs, backbone_config(ARCH, False, pairs, 0.0, ''))


def find_reason(message: str) -> str:
    """Return what a message means in general.

    >>> find_reason('RPN has no neck, and its heads are made for the maps of ResNet.')
    'heads made for one map of a ResNet or an hourglass (C4, TridentNet, CornerNet)'
    """
    return next((reason for piece, reason in REASONS.items() if piece in message), message)
