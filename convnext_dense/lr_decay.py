"""Layer-wise and stage-wise learning-rate decay as optimizer constructors.

A parameter's name gives its slot, and the slot its learning rate, ``base_lr * decay_rate ** (last slot - slot)``. Slot
0 is the stem. The last slot holds the neck, the heads and the backbone's output norms. One-dimensional parameters,
biases and GRN get no weight decay. The rules are those of facebookresearch/ConvNeXt
(``layer_decay_optimizer_constructor.py``, the same file for detection and segmentation).
"""

import difflib
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from mmengine.logging import MMLogger, print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIMIZERS
from torch import nn

from convnext_dense.backbone import StagedBackbone

BACKBONE_NAME = re.compile(r'(downsample_layers\.|stages\.|norm)(\d)\.(\d*)')


def derive_num_layers(depths: Sequence[int]) -> int:
    """Return ``num_layers`` of the released recipes: three early slots and one for every three blocks of stage 2.

    >>> derive_num_layers((3, 3, 9, 3)), derive_num_layers((3, 3, 27, 3))
    (6, 12)
    """
    return 3 + (depths[2] + 2) // 3


def parse_backbone_name(name: str, depths: Sequence[int]) -> tuple[str, int, int]:
    """Return (part, stage, block) of a backbone parameter; the part is 'downsample_layers', 'stages' or 'norm'.

    Raises:
        ValueError: The name is not one of a ConvNeXt of these depths.
    """
    if match := BACKBONE_NAME.match(name):
        part, stage = match[1].rstrip('.'), int(match[2])
        block = int(match[3] or 0) if part == 'stages' else 0
        if stage < len(depths) and block < depths[stage]:
            return part, stage, block
    raise ValueError(
        f'No learning-rate rule covers the backbone parameter {name!r} (depths {tuple(depths)}). Rules exist for '
        'downsample_layers.S.*, stages.S.B.* and normS.*. Freeze added parameters, or train them outside of the '
        'backbone.'
    )


def layer_index(name: str, depths: Sequence[int], num_layers: int | None = None) -> int:
    """Return the layer-wise slot of a backbone parameter: 0 is the stem, ``num_layers + 1`` that of the heads.

    Args:
        name: Key relative to the backbone, e.g. ``stages.2.8.gamma``.
        depths: Blocks per stage, four entries.
        num_layers: Slots between the stem's and the heads'; derived from the depths by default.

    Raises:
        ValueError: No rule covers the name.

    >>> layer_index('stages.2.8.gamma', depths=(3, 3, 9, 3))
    5
    """
    num_layers = num_layers or derive_num_layers(depths)
    part, stage, block = parse_backbone_name(name, depths)
    if part == 'norm':
        return num_layers + 1
    if stage == 3:
        return num_layers
    if part == 'downsample_layers':
        return (0, 2, 3)[stage]
    return (1, 2, 3 + block // 3)[stage]


def stage_index(name: str, depths: Sequence[int], num_layers: int | None = None) -> int:
    """Return the stage-wise slot: 0 for stem and downsampling, 1 to 4 for the stages, ``num_layers + 1`` for the rest.

    Args and errors as in :func:`layer_index`.

    >>> stage_index('downsample_layers.3.1.weight', depths=(3, 3, 9, 3))
    0
    """
    num_layers = num_layers or derive_num_layers(depths)
    part, stage, _ = parse_backbone_name(name, depths)
    return {'norm': num_layers + 1, 'downsample_layers': 0, 'stages': stage + 1}[part]


class Rate(NamedTuple):
    """How a parameter is trained; parameters that share it share an optimizer group."""

    slot: int
    lr: float
    weight_decay: float


Groups = dict[Rate, list[tuple[str, nn.Parameter]]]


class LearningRateDecay(DefaultOptimWrapperConstructor):
    """Give each slot of every backbone of this package its own learning rate; base of the two constructors.

    A backbone is found by its class, under any name and in any wrapper. Of two (a teacher and a student) each has the
    decay of its own depths.

    Args:
        optim_wrapper_cfg: As in MMEngine; ``optimizer`` needs ``lr``.
        paramwise_cfg: ``decay_rate`` (required, in (0, 1]); ``num_layers`` (derived from the depths by default);
            ``custom_keys`` for parameters outside of the backbone: substrings of the full parameter name, the longest
            match wins, with ``lr_mult`` and ``decay_mult`` factors as in MMEngine's default constructor. Biases and
            one-dimensional parameters are decayed only by an explicit ``decay_mult``.

    Raises:
        ValueError: A key is unknown or out of range, the model has no backbone of this package, ``num_layers`` is too
            small for the depths, or no rule covers a backbone parameter.
    """

    slot_of: Callable[[str, Sequence[int], int], int]  # a subclass's rule

    def _validate_cfg(self) -> None:
        super()._validate_cfg()
        self.custom_keys: dict[str, dict] = self.paramwise_cfg.get('custom_keys') or {}
        refuse_unknown('paramwise_cfg', self.paramwise_cfg, ('decay_rate', 'num_layers', 'custom_keys'))
        for key, factors in self.custom_keys.items():
            refuse_unknown(f'custom_keys[{key!r}]', factors, ('lr_mult', 'decay_mult'))
        rate = self.paramwise_cfg.get('decay_rate')
        if not isinstance(rate, (int, float)) or not 0 < rate <= 1:
            raise ValueError(f'paramwise_cfg needs a decay_rate in (0, 1]; got {rate!r}.')
        if self.base_lr is None:
            raise ValueError(f'The optimizer needs an lr; got {self.optimizer_cfg}.')
        name = self.optimizer_cfg.get('type')
        if isinstance(name, str) and OPTIMIZERS.get(name) is None:  # MMEngine would say that None cannot be called
            near = difflib.get_close_matches(name, OPTIMIZERS.module_dict)
            raise ValueError(f'There is no optimizer {name!r}. Did you mean {" or ".join(near) or "AdamW"}?')

    def add_params(self, params: list[dict], module: nn.Module, **kwargs) -> None:
        """Append the optimizer groups of all trainable parameters of ``module``, the whole model, to ``params``."""
        groups = self.group(module)
        for rate, members in groups.items():
            group = {'params': [param for _, param in members], 'lr': rate.lr}
            if self.base_wd is not None:
                group['weight_decay'] = rate.weight_decay
            params.append(group)
        for part in self.describe(groups).split('\n', 1):  # a line for the screen, and the table
            MMLogger.get_current_instance().info(part)

    def group(self, model: nn.Module) -> Groups:
        """Return the (full name, parameter) pairs that share each rate, in the order of the slots.

        Raises:
            ValueError: As for the class.
        """
        backbones = {
            id(param): (module, name)
            for module in model.modules()
            if isinstance(module, StagedBackbone)
            for name, param in module.named_parameters()
        }
        if not backbones:
            raise ValueError(
                f'{type(self).__name__} decays the rates of a backbone of this package, and {type(model).__name__} has '
                "none. Set model.backbone.type='ConvNeXt', or remove optim_wrapper.constructor."
            )
        named = dict(model.named_parameters())
        self.check_custom_keys(
            inside=[name for name, param in named.items() if id(param) in backbones],
            outside=[name for name, param in named.items() if id(param) not in backbones],
        )
        last_slot = max(self.num_layers(module.depths) for module, _ in backbones.values()) + 1
        groups: Groups = {}
        for name, param in named.items():
            if not param.requires_grad:
                continue
            slot, factors = last_slot, self.custom_keys.get(self.matching_key(name), {})
            if id(param) in backbones:
                backbone, inner_name = backbones[id(param)]
                num_layers = self.num_layers(backbone.depths)
                slot = self.slot_of(inner_name, backbone.depths, num_layers)
                factors = dict(lr_mult=self.paramwise_cfg['decay_rate'] ** (num_layers + 1 - slot))
            groups.setdefault(self.rate_of(name, param, slot, **factors), []).append((name, param))
        return dict(sorted(groups.items(), key=lambda item: (item[0].slot, item[0].lr, -item[0].weight_decay)))

    def rate_of(
        self, name: str, param: nn.Parameter, slot: int, lr_mult: float = 1.0, decay_mult: float | None = None
    ) -> Rate:
        """Return a parameter's rate; without ``decay_mult`` vectors, biases and GRN, (1, 1, 1, C), do not decay."""
        if decay_mult is None:
            is_exempt = param.ndim == 1 or name.endswith('.bias') or '.grn.' in name
            decay_mult = 0.0 if is_exempt else 1.0
        return Rate(slot, self.base_lr * lr_mult, (self.base_wd or 0.0) * decay_mult)

    def num_layers(self, depths: Sequence[int]) -> int:
        """Return the given number of layers, or the one derived from the depths; too small a number is refused."""
        needed = derive_num_layers(depths)
        given = self.paramwise_cfg.get('num_layers')
        if given is None:
            return needed
        if not isinstance(given, int) or given < needed:
            raise ValueError(
                f'num_layers={given!r} is too small for the depths {tuple(depths)}: {needed} are needed, or deep '
                'blocks would train faster than the heads. Leave num_layers out to derive it.'
            )
        return given

    def matching_key(self, name: str) -> str | None:
        """Return the longest custom key that is part of the name; the first in the alphabet among equals."""
        return min((key for key in self.custom_keys if key in name), key=lambda key: (-len(key), key), default=None)

    def check_custom_keys(self, inside: Iterable[str], outside: Iterable[str]) -> None:
        """Refuse custom keys that match parameters of a backbone alone, and warn of those without any parameter."""
        unused = self.custom_keys.keys() - set(map(self.matching_key, outside))
        misplaced = unused & set(map(self.matching_key, inside))
        if misplaced:
            raise ValueError(
                f'The custom_keys entry {min(misplaced)!r} matches only parameters of the backbone, whose rates follow '
                'decay_rate alone. Remove it, or change decay_rate.'
            )
        for key in sorted(unused):
            print_log(f'The custom_keys entry {key!r} matches no parameter.', 'current', logging.WARNING)

    def describe(self, groups: Groups) -> str:
        """Return the groups as a table: slot, tensors, parameters, learning rate, weight decay, first parameter."""
        rates = [rate.lr for rate in groups]
        lines = [
            f'{type(self).__name__}: decay rate {self.paramwise_cfg["decay_rate"]:g}, base lr {self.base_lr:g}, '
            f'lr {min(rates):.3g} to {max(rates):.3g}',
            'slot  tensors   parameters         lr   decay  first parameter',
        ]
        for rate, members in groups.items():
            count = sum(param.numel() for _, param in members)
            row = f'{rate.slot:>4}  {len(members):>7}  {count:>11,}  {rate.lr:>9.3g}  {rate.weight_decay:>6g}'
            lines.append(f'{row}  {members[0][0]}')
        return '\n'.join(lines)


def refuse_unknown(what: str, given: Mapping, allowed: Sequence[str]) -> None:
    """Raise a ValueError where a mapping has other keys than the allowed ones."""
    if unknown := sorted(set(given) - set(allowed)):
        raise ValueError(f'{what} has unknown keys {unknown}. Allowed: {", ".join(allowed)}.')


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class ConvNeXtLayerDecay(LearningRateDecay):
    """Layer-wise decay, the detection recipes'; arguments in :class:`LearningRateDecay`."""

    slot_of = staticmethod(layer_index)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class ConvNeXtStageDecay(LearningRateDecay):
    """Stage-wise decay, the segmentation recipes'; arguments in :class:`LearningRateDecay`."""

    slot_of = staticmethod(stage_index)
