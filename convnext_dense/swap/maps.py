"""A backbone's config goes in, the maps that it gives come out, and the ConvNeXt stages that can take their place."""

import copy
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from mmengine.registry import MODELS

from convnext_dense.compat.errors import UserError
from convnext_dense.swap.changes import kind
from convnext_dense.variants import VARIANTS, channels

SIDE = 256  # pixels of the image that a backbone is tried on
STRIDES = (4, 8, 16, 32)
ADVICE = 'Choose the config of the same method with a ResNet or a Swin Transformer.'
MMPRETRAIN_CONVNEXT = 'mmpretrain.ConvNeXt'


class Map(NamedTuple):
    """A feature map: its channels, and the pixels of the image that one of its pixels stands for."""

    channels: int
    stride: int


def backbone_maps(cfg: Mapping) -> list[Map]:
    """Return the maps that a backbone gives, by running it.

    Args:
        cfg: The backbone's config, in the current default scope.

    Raises:
        UserError: It cannot be built or run.
    """
    if kind(cfg) == MMPRETRAIN_CONVNEXT and cfg.get('arch', 'tiny') in VARIANTS:  # mmpretrain need not be there
        indices = cfg.get('out_indices', -1)
        places = [place % len(STRIDES) for place in ([indices] if isinstance(indices, int) else indices)]
        return [Map(channels(cfg.get('arch', 'tiny'))[place], STRIDES[place]) for place in places]
    try:
        with torch.no_grad():
            backbone = MODELS.build(copy.deepcopy(cfg))
            backbone.eval()  # which returns nothing in some of upstream's
            outputs = backbone(torch.zeros(1, 3, SIDE, SIDE))
    except Exception as error:  # of any backbone that there is
        raise UserError(
            f'The backbone {kind(cfg)} does not run ({type(error).__name__}: {error}), and what the neck and the '
            'heads expect of it is unknown. Install what it needs, or swap the backbone of another config.'
        ) from error
    outputs = [outputs] if isinstance(outputs, torch.Tensor) else outputs
    if not all(isinstance(output, torch.Tensor) for output in outputs):
        raise UserError(f'{kind(cfg)} gives more than feature maps, and its heads need it. {ADVICE}')
    return [Map(output.shape[1], SIDE // output.shape[-1]) for output in outputs]


def stages_for(maps: Sequence[Map], name: str) -> tuple[int, ...]:
    """Return the ConvNeXt stages whose maps can take the place of ``maps``.

    Maps of a dilated backbone, whose last ones share a stride, are taken for the last stages.

    Args:
        maps: What the old backbone gives.
        name: The old backbone's, for the message.

    Raises:
        UserError: They are no pyramid like ConvNeXt's.

    >>> stages_for([Map(512, 8), Map(1024, 16), Map(2048, 32)], 'ResNet')
    (1, 2, 3)
    >>> stages_for([Map(256, 4), Map(512, 8), Map(1024, 8), Map(2048, 8)], 'ResNet')
    (0, 1, 2, 3)
    """
    strides = [stride for _, stride in maps]
    if strides == sorted(set(strides)) and set(strides) <= set(STRIDES):
        return tuple(STRIDES.index(stride) for stride in strides)
    widths = [width for width, _ in maps]
    is_dilated = strides == sorted(strides) and strides[-1] <= STRIDES[-1] and strides[0] >= STRIDES[0]
    if is_dilated and len(maps) <= len(STRIDES) and widths == sorted(set(widths)):
        return tuple(range(len(STRIDES) - len(maps), len(STRIDES)))
    raise UserError(
        f'{name} gives maps of {", ".join(map(str, widths))} channels at strides {", ".join(map(str, strides))}; '
        f"ConvNeXt's have the strides {', '.join(map(str, STRIDES))}, one each. {ADVICE}"
    )
