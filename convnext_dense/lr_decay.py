"""Layer-wise and stage-wise learning-rate decay: parameter name -> slot -> learning rate -> optimizer groups.

The rules are those of facebookresearch/ConvNeXt (``layer_decay_optimizer_constructor.py``, the same file for
detection and segmentation). Slot 0 is the stem, the last one holds the neck, the heads and the backbone's output
norms; the learning rate is ``base_lr * decay_rate ** (last slot - slot)``. One-dimensional parameters, biases and GRN
are not decayed.
"""

import difflib
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from mmengine.logging import MMLogger, print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIMIZERS
from torch import nn

from convnext_dense.backbone import ConvNeXt

BACKBONE_NAME = re.compile(
    r'(?:downsample_layers\.(?P<down>\d)|stages\.(?P<stage>\d)\.(?P<block>\d+)|norm(?P<norm>\d))\.'
)


def derive_num_layers(depths: Sequence[int]) -> int:
    """Return ``num_layers`` of the released recipes: three early slots and one for every three blocks of stage 2.

    >>> derive_num_layers((3, 3, 9, 3)), derive_num_layers((3, 3, 27, 3))
    (6, 12)
    """
    return 3 + (depths[2] + 2) // 3


def parse_backbone_name(name: str, depths: Sequence[int]) -> tuple[str, int, int]:
    """Return (part, stage, block) of a backbone parameter; part is 'down', 'stage' or 'norm'.

    Raises:
        ValueError: The name is not one of a ConvNeXt of these depths.
    """
    match = BACKBONE_NAME.match(name)
    if match:
        part = match.lastgroup if match.lastgroup != 'block' else 'stage'
        stage = int(match[part])
        block = int(match['block'] or 0)
        if stage < len(depths) and block < depths[stage]:
            return part, stage, block
    raise ValueError(
        f'No learning-rate rule covers the backbone parameter {name!r} (depths {tuple(depths)}). Rules exist for '
        'downsample_layers.S.*, stages.S.B.* and normS.*; train added parameters outside of the backbone, or freeze '
        'them.'
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
    if part == 'down':
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
    return {'norm': num_layers + 1, 'down': 0, 'stage': stage + 1}[part]


@dataclass(frozen=True)
class Rate:
    """How a parameter is trained; parameters that share it share an optimizer group."""

    slot: int
    lr: float
    weight_decay: float


Groups = dict[Rate, list[tuple[str, nn.Parameter]]]


class LearningRateDecay(DefaultOptimWrapperConstructor):
    """Give each slot of every ConvNeXt in the model its own learning rate; base of the two constructors.

    A ConvNeXt is found by its class, so it may sit under any name and inside any wrapper. Two of them (a teacher and a
    student) are both decayed, each by its own depths.

    Args:
        optim_wrapper_cfg: As in MMEngine; ``optimizer`` needs ``lr``.
        paramwise_cfg: ``decay_rate`` (required, in (0, 1]); ``num_layers`` (derived from the depths by default);
            ``custom_keys`` for parameters outside of the backbone: substrings of the full parameter name, the longest
            match wins, with ``lr_mult`` and ``decay_mult`` factors as in MMEngine's default constructor. Biases and
            one-dimensional parameters are decayed only by an explicit ``decay_mult``.

    Raises:
        ValueError: A key is unknown or out of range, the model has no ConvNeXt, ``num_layers`` is too small for the
            depths, or no rule covers a backbone parameter.
    """

    slot_of: Callable[[str, Sequence[int], int], int]  # a subclass's rule
    allowed = ('decay_rate', 'num_layers', 'custom_keys')

    def _validate_cfg(self) -> None:
        super()._validate_cfg()
        name = type(self).__name__
        unknown = sorted(set(self.paramwise_cfg) - set(self.allowed))
        if unknown:
            raise ValueError(
                f'{name}: unknown paramwise_cfg keys {unknown}. Allowed: {", ".join(self.allowed)}. Factors for other '
                'parameters go into custom_keys.'
            )
        rate = self.paramwise_cfg.get('decay_rate')
        if not isinstance(rate, (int, float)) or not 0 < rate <= 1:
            raise ValueError(f'{name}: paramwise_cfg needs decay_rate in (0, 1]; got {rate!r}.')
        for key, factors in self.custom_keys.items():
            if unknown := sorted(set(factors) - {'lr_mult', 'decay_mult'}):
                raise ValueError(f'{name}: custom_keys[{key!r}] has {unknown}. Allowed: lr_mult, decay_mult.')
        if self.base_lr is None:
            raise ValueError(f'{name}: the optimizer needs an lr; got {self.optimizer_cfg}.')
        optimizer = self.optimizer_cfg.get('type')
        if isinstance(optimizer, str) and OPTIMIZERS.get(optimizer) is None:
            near = difflib.get_close_matches(optimizer, OPTIMIZERS.module_dict)
            hint = f' Did you mean {" or ".join(near)}?' if near else ''
            raise ValueError(f'{name}: there is no optimizer {optimizer!r}.{hint}')

    def add_params(self, params: list[dict], module: nn.Module, **kwargs) -> None:
        """Append the optimizer groups of all trainable parameters of ``module``, the whole model, to ``params``."""
        groups = self.group(module)
        for rate, members in groups.items():
            group = {'params': [param for _, param in members], 'lr': rate.lr}
            if self.base_wd is not None:
                group['weight_decay'] = rate.weight_decay
            params.append(group)
        MMLogger.get_current_instance().info(self.describe(groups))

    def group(self, model: nn.Module) -> Groups:
        """Return the (full name, parameter) pairs that share each rate, in the order of the slots."""
        groups: Groups = {}
        for name, param, rate in self.rates(model):
            groups.setdefault(rate, []).append((name, param))
        return {
            rate: groups[rate] for rate in sorted(groups, key=lambda rate: (rate.slot, rate.lr, -rate.weight_decay))
        }

    def rates(self, model: nn.Module) -> Iterator[tuple[str, nn.Parameter, Rate]]:
        """Yield (full name, parameter, rate) of every trainable parameter, once each."""
        backbones = {
            id(param): (module, name)
            for module in model.modules()
            if isinstance(module, ConvNeXt)
            for name, param in module.named_parameters()
        }
        if not backbones:
            raise ValueError(
                f'{type(self).__name__} decays the rates of a convnext_dense ConvNeXt, and {type(model).__name__} has '
                "none. Set model.backbone.type='ConvNeXt', or remove optim_wrapper.constructor."
            )
        num_layers = {module: self.num_layers(module.depths) for module, _ in backbones.values()}
        last_slot = max(num_layers.values()) + 1
        matched = {True: set(), False: set()}  # custom keys that match parameters inside, outside of the backbone
        for name, param in model.named_parameters():
            backbone, relative = backbones.get(id(param), (None, None))
            key = self.matching_key(name)
            matched[backbone is not None].add(key)
            if not param.requires_grad:
                continue
            if backbone is None:
                yield name, param, self.outer_rate(name, param, key, last_slot)
            else:
                slot = self.slot_of(relative, backbone.depths, num_layers[backbone])
                lr = self.base_lr * self.paramwise_cfg['decay_rate'] ** (num_layers[backbone] + 1 - slot)
                yield name, param, Rate(slot, lr, self.default_weight_decay(name, param))
        self.report_custom_keys(inside=matched[True], outside=matched[False])

    def report_custom_keys(self, inside: set[str | None], outside: set[str | None]) -> None:
        """Refuse keys meant for the backbone, and warn of keys without any parameter."""
        for key in self.custom_keys:
            if key in inside - outside:
                raise ValueError(
                    f'The custom_keys entry {key!r} matches only parameters of the ConvNeXt, whose rates follow '
                    'decay_rate alone. Remove it, or change decay_rate.'
                )
            if key not in outside:
                print_log(f'The custom_keys entry {key!r} matches no parameter.', 'current', logging.WARNING)

    @property
    def custom_keys(self) -> dict[str, dict]:
        """Substring of a name -> factors."""
        return self.paramwise_cfg.get('custom_keys') or {}

    def matching_key(self, name: str) -> str | None:
        """Return the longest custom key that is part of the name; the first in the alphabet among equals."""
        return next((key for key in sorted(self.custom_keys, key=lambda key: (-len(key), key)) if key in name), None)

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

    def outer_rate(self, name: str, param: nn.Parameter, key: str | None, slot: int) -> Rate:
        """Return the rate of a parameter outside of the backbone: the base rate, or what its custom key says."""
        factors = self.custom_keys.get(key, {})
        weight_decay = self.default_weight_decay(name, param)
        if 'decay_mult' in factors:
            weight_decay = self.base_wd * factors['decay_mult']
        return Rate(slot, self.base_lr * factors.get('lr_mult', 1.0), weight_decay)

    def default_weight_decay(self, name: str, param: nn.Parameter) -> float:
        """Return 0 for vectors, biases and GRN (stored as (1, 1, 1, C)), the optimizer's weight decay for the rest."""
        is_exempt = param.ndim == 1 or name.endswith('.bias') or '.grn.' in name
        return 0.0 if is_exempt else self.base_wd or 0.0

    def describe(self, groups: Groups) -> str:
        """Return the groups as a table: slot, tensors, parameters, learning rate, weight decay, first parameter."""
        rates = [rate.lr for rate in groups]
        lines = [
            f'{type(self).__name__}: decay rate {self.paramwise_cfg["decay_rate"]:g}, base lr {self.base_lr:g}, '
            f'lr {min(rates):.3g} to {max(rates):.3g}',
            f'{"slot":>4}  {"tensors":>7}  {"parameters":>11}  {"lr":>9}  {"decay":>6}  first parameter',
        ]
        for rate, members in groups.items():
            count = sum(param.numel() for _, param in members)
            lines.append(
                f'{rate.slot:>4}  {len(members):>7}  {count:>11,}  {rate.lr:>9.3g}  {rate.weight_decay:>6g}  '
                f'{members[0][0]}'
            )
        return '\n'.join(lines)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class ConvNeXtLayerDecay(LearningRateDecay):
    """Layer-wise decay, the detection recipes'; arguments in :class:`LearningRateDecay`."""

    slot_of = staticmethod(layer_index)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class ConvNeXtStageDecay(LearningRateDecay):
    """Stage-wise decay, the segmentation recipes'; arguments in :class:`LearningRateDecay`."""

    slot_of = staticmethod(stage_index)
