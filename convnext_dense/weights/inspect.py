"""What a checkpoint file is, in about twenty lines, without a config and without running code."""

import json
import os
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from convnext_dense.compat.checkpoints import is_safetensors
from convnext_dense.weights.identify import (
    Part,
    find_backbones,
    find_tensors,
    keys_of,
    name_licence,
    name_other_model,
    other_entries,
    read_part,
    what_differs,
)
from convnext_dense.weights.load import COUNTER, is_finite
from convnext_dense.weights.meta import config_name, read_meta, read_metrics
from convnext_dense.weights.report import dtype_name, format_rows, printable, shorten
from convnext_dense.weights.sources import fetch

# Entries of meta that have lines of their own.
NOT_SHOWN = ('cfg', 'dataset_meta', 'experiment_name', 'initial_weights', 'metrics', 'metrics_origin')
BUFFERS = ('running_mean', 'running_var', COUNTER)
BOX_HEAD = re.compile(r'roi_head\.bbox_head\.(\d+)\.')
KINDS = (  # (beginning of a key, what the model then is); the first that matches
    ('decode_head.fpn_bottleneck.', 'UperNet'),
    ('decode_head.psp_modules.', 'PSPNet'),
    ('decode_head.query_embed', 'Mask2Former'),
    ('decode_head.', 'segmentor'),
    ('panoptic_head.query_embed', 'Mask2Former or MaskFormer'),
    ('bbox_head.cls_branches.', 'DETR or a relative'),
    ('bbox_head.retina_cls.', 'RetinaNet'),
    ('bbox_head.atss_cls.', 'ATSS'),
    ('bbox_head.gfl_cls.', 'GFL'),
    ('bbox_head.rtm_cls.', 'RTMDet'),
    ('bbox_head.', 'one-stage detector'),
    ('rpn_head.', 'RPN'),
)
CLASS_LAYERS = (  # (end of a key, entries of the weight that are no class)
    ('bbox_head.fc_cls.weight', 1),  # the last entry is the background
    ('bbox_head.0.fc_cls.weight', 1),
    ('decode_head.conv_seg.weight', 0),
    ('decode_head.classifier.weight', 0),
)


@dataclass
class Backbone:
    """A ConvNeXt in a file.

    Attributes:
        prefix: What stands before its keys.
        format: Whose names it has.
        architecture: Its version and size.
        num_tensors: Its tensors in the file.
        num_params: Its parameters in the file.
        output_norms: Stages that have one.
        differs: Why this package computes something else with the weights; empty where it does not.
    """

    prefix: str
    format: str
    architecture: str
    num_tensors: int
    num_params: int
    output_norms: list[int]
    differs: str

    def __str__(self) -> str:
        place = f' at {self.prefix!r}' if self.prefix else ''
        norms = f', output norms {", ".join(map(str, self.output_norms))}' if self.output_norms else ''
        return f'{self.architecture}{place}: {self.num_tensors} tensors, {millions(self.num_params)}{norms}'


@dataclass
class Inspection:
    """What a file is.

    Attributes:
        source: Its path or address.
        container: How it is packed.
        megabytes: Its size on the disk, in units of 1e6 bytes.
        format: Whose names the backbones have.
        backbones: The ConvNeXts in it.
        model: What the whole is, where the names tell.
        num_classes: Of the whole, where the names tell.
        parts: Name of a part of a whole model -> (tensors, parameters), without the backbones.
        num_tensors: All tensors.
        num_params: All parameters, without the running statistics of norms.
        dtypes: Name of a type -> tensors.
        not_finite: Tensors that hold NaN or infinity -> how many of them.
        other_entries: What lies beside the weights -> in a few words.
        training: Epoch, iteration, time, seed and versions, as MMEngine notes them.
        config: Name of the config.
        initial_weights: Where the training started.
        metrics: Results of a validation.
        metrics_origin: When they were measured.
        classes: Names.
        licence: That of the weights, as far as it is known.
        keys: Name -> shape and type of every tensor, where they are asked for.
    """

    source: str
    container: str = ''
    megabytes: float | None = None
    format: str = ''
    backbones: list[Backbone] = field(default_factory=list)
    model: str = ''
    num_classes: int | None = None
    parts: dict[str, tuple[int, int]] = field(default_factory=dict)
    num_tensors: int = 0
    num_params: int = 0
    dtypes: dict[str, int] = field(default_factory=dict)
    not_finite: dict[str, int] = field(default_factory=dict)
    other_entries: dict[str, str] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    config: str = ''
    initial_weights: list[str] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    metrics_origin: str = ''
    classes: list[str] = field(default_factory=list)
    licence: str = ''
    keys: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        size = f'{self.megabytes:.1f} MB, ' if self.megabytes is not None else ''
        parts = [f'{name} {number} ({millions(params)})' for name, (number, params) in self.parts.items()]
        bad = f'{sum(self.not_finite.values())} values in {shorten(self.not_finite)}' if self.not_finite else 'none'
        rows = [
            ('file', f'{size}{self.container}'),
            ('format', self.format),
            *(('backbone', str(backbone)) for backbone in self.backbones[:3]),
            *(('differs', backbone.differs) for backbone in self.backbones[:3]),
            ('model', f'{self.model}{f", {self.num_classes} classes" if self.num_classes else ""}'),
            ('other parts', shorten(parts, 6)),
            ('tensors', f'{self.num_tensors}, {millions(self.num_params)}, {join(self.dtypes)}'),
            ('NaN, infinity', bad),
            ('classes', f'{len(self.classes)}: {shorten(self.classes, 6)}' if self.classes else ''),
            ('training', join(self.training)),
            ('config', self.config),
            ('started from', shorten(self.initial_weights)),
            ('metrics', shorten((f'{name} {value:.4g}' for name, value in self.metrics.items()), 6)),
            ('measured', self.metrics_origin),
            ('other entries', shorten((f'{name} ({what})' for name, what in self.other_entries.items()), 8)),
            ('licence', self.licence),
        ]
        keys = [f'{key:60} {what}' for key, what in self.keys.items()]
        return '\n'.join(map(printable, [self.source, *format_rows(rows), *keys]))


def inspect(source: str | os.PathLike, keys: bool = False) -> Inspection:
    """Say what a file is.

    Args:
        source: A checkpoint file, or whatever else :func:`~convnext_dense.weights.sources.fetch` takes.
        keys: List all tensors.

    Raises:
        UserError: It cannot be read.
    """
    file = Path(source) if os.path.isfile(source) else None
    return inspect_checkpoint(fetch(source), file, keys)


def inspect_checkpoint(checkpoint: Mapping, file: Path | None = None, keys: bool = False) -> Inspection:
    """Say what a checkpoint is that was read already, from ``file`` if that is known."""
    result = Inspection(getattr(checkpoint, 'source', 'the checkpoint'))
    if file:
        result.container, result.megabytes = name_container(file), file.stat().st_size / 1e6
    given = find_tensors(checkpoint)
    count_tensors(given, result)
    parts = [read_part(given, found) for found in find_backbones(given)]
    parts = [part for part in parts if all(part.architecture.depths)]  # a stem alone is no ConvNeXt
    result.backbones = [describe_backbone(given, part) for part in parts]
    result.format = ', '.join(dict.fromkeys(backbone.format for backbone in result.backbones))
    describe_model(given, parts, result)
    describe_training(checkpoint, file, result)
    result.licence = name_licence(checkpoint, parts, bool(result.parts))
    result.other_entries = {key: describe_entry(value) for key, value in other_entries(checkpoint).items()}
    if keys:
        result.keys = {key: f'{tuple(tensor.shape)} {dtype_name(tensor)}' for key, tensor in given.items()}
    return result


def describe(source: str | os.PathLike, keys: bool = False, as_json: bool = False) -> str:
    """Return what :func:`inspect` finds as text for people or as JSON.

    Raises:
        UserError: The file cannot be read.
    """
    result = inspect(source, keys)
    return json.dumps(asdict(result), indent=2) if as_json else str(result)


def name_container(file: Path) -> str:
    """Say how a file is packed."""
    if is_safetensors(file):
        return 'safetensors'
    return 'PyTorch archive' if zipfile.is_zipfile(file) else 'PyTorch pickle, as before PyTorch 1.6'


def count_tensors(given: Mapping[str, Tensor], result: Inspection) -> None:
    """Count tensors, parameters, types, and values that are no numbers."""
    result.num_tensors, result.num_params = len(given), count_params(given, given)
    result.dtypes = dict(Counter(map(dtype_name, given.values())).most_common())
    for key, tensor in given.items():
        if not is_finite(tensor):
            result.not_finite[key] = int((~tensor.double().isfinite()).sum())


def describe_backbone(given: Mapping[str, Tensor], part: Part) -> Backbone:
    """Return what a ConvNeXt of a file is."""
    own = [entry.origin for entry in part.entries.values()]
    return Backbone(
        part.found.prefix,
        part.found.format.title,
        str(part.architecture),
        len(own),
        count_params(given, own),
        [i for i in range(4) if f'norm{i}.weight' in part.entries],
        what_differs(part),
    )


def describe_model(given: Mapping[str, Tensor], parts: list[Part], result: Inspection) -> None:
    """Note what stands beside the backbones, and what the whole is."""
    used = keys_of(parts)
    rest = [key for key in given if key not in used]
    for name in dict.fromkeys(key.split('.')[0] for key in rest):
        keys = [key for key in rest if key.split('.')[0] == name]
        result.parts[name] = (len(keys), count_params(given, keys))
    heads = [part.entries['head.weight'].tensor for part in parts if 'head.weight' in part.entries]
    if heads and heads[0].ndim and not rest:
        result.model, result.num_classes = 'classifier', heads[0].shape[0]
        return
    result.model, result.num_classes = name_model(given)
    if not parts and (other := name_other_model(given)):
        result.model = f'{result.model} on {other}' if result.model else other


def name_model(given: Mapping[str, Tensor]) -> tuple[str, int | None]:
    """Return what a detector or segmentor is by its keys, and its number of classes.

    >>> name_model({'decode_head.fpn_bottleneck.conv.weight': None})
    ('UperNet', None)
    """
    stages = {match[1] for match in map(BOX_HEAD.match, given) if match}
    masks = 'Mask' if any(key.startswith('roi_head.mask_head.') for key in given) else ''
    if stages:
        name = f'Cascade {masks} R-CNN, {len(stages)} box heads'.replace('  ', ' ')
    elif any(key.startswith('roi_head.') for key in given):
        name = f'{masks or "Faster"} R-CNN'
    else:
        name = next((name for start, name in KINDS if any(key.startswith(start) for key in given)), '')
    if any(key.startswith('auxiliary_head.') for key in given):
        name += ' with an auxiliary head'
    return name, count_classes(given) if name else None


def count_classes(given: Mapping[str, Tensor]) -> int | None:
    """Return the number of classes of a detector or segmentor; None where no layer tells it."""
    for end, others in CLASS_LAYERS:
        for key, tensor in given.items():
            if key.endswith(end) and tensor.ndim:
                return tensor.shape[0] - others
    return None


def describe_training(checkpoint: Mapping, file: Path | None, result: Inspection) -> None:
    """Note what the checkpoint says of its training."""
    meta = read_meta(checkpoint)
    result.classes = list(meta.get('dataset_meta', {}).get('classes', ()))
    shown = {key: value for key, value in meta.items() if key not in NOT_SHOWN}
    # facebookresearch's scripts note the epoch beside the weights.
    result.training = shown or {key: v for key in ('epoch', 'iter') if isinstance(v := checkpoint.get(key), int)}
    result.config = config_name(meta)
    result.initial_weights = meta.get('initial_weights', [])
    result.metrics, result.metrics_origin = read_metrics(checkpoint, file)


def describe_entry(value: Any) -> str:
    """Describe what lies beside the weights in a few words.

    >>> describe_entry({'state': {}, 'param_groups': []})
    '2 entries'
    """
    if isinstance(value, Mapping | list | tuple):
        return f'{len(value)} entries'
    text = str(value) if isinstance(value, str | int | float | None) else type(value).__name__
    return text if len(text) <= 30 else f'{text[:27]}...'


def count_params(given: Mapping[str, Tensor], keys: Iterable[str]) -> int:
    """Return the number of parameters under these keys; the running statistics of norms are none."""
    return sum(given[key].numel() for key in keys if not key.endswith(BUFFERS))


def millions(number: int) -> str:
    """Return a number of parameters for people.

    >>> millions(28_589_128)
    '28.6 M'
    """
    return f'{number / 1e6:.1f} M' if number >= 1e5 else f'{number:,}'


def join(entries: Mapping[str, Any]) -> str:
    """Join names and values.

    >>> join({'epoch': 36, 'seed': 0})
    'epoch 36, seed 0'
    """
    return ', '.join(f'{name} {value}' for name, value in entries.items())
