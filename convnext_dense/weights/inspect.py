"""What a checkpoint file is, in about twenty lines, without a config and without running code."""

import json
import os
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from convnext_dense.compat.checksums import is_safetensors
from convnext_dense.compat.errors import printable, shorten
from convnext_dense.weights.identify import (
    Part,
    find_backbones,
    find_tensors,
    keys_beside,
    name_licence,
    name_other_model,
    other_entries,
    what_differs,
    with_head,
)
from convnext_dense.weights.load import COUNTER, STATISTICS, is_finite
from convnext_dense.weights.meta import config_name, read_meta, read_metrics
from convnext_dense.weights.report import dtype_name, format_rows
from convnext_dense.weights.sources import as_checkpoint, fetch

# Entries of meta that have lines of their own.
NOT_SHOWN = ('cfg', 'dataset_meta', 'experiment_name', 'metrics', 'metrics_origin')
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


def inspect(source: str | os.PathLike | Mapping, keys: bool = False) -> dict[str, Any]:
    """Say what a file is.

    Args:
        source: A checkpoint file, whatever else :func:`~convnext_dense.weights.sources.fetch` takes, or a checkpoint
            that was read already.
        keys: List all tensors.

    Returns:
        Plain values, those of the JSON output. ``megabytes`` are units of 1e6 bytes. ``parts`` are the tensors and
        parameters of what stands beside the backbones; the running statistics of norms are no parameters.

    Raises:
        UserError: It cannot be read.
    """
    is_read = isinstance(source, Mapping)
    checkpoint = as_checkpoint(source) if is_read else fetch(source)
    file = Path(source) if not is_read and os.path.isfile(source) else None
    given, meta = find_tensors(checkpoint), read_meta(checkpoint)
    parts = [with_head(part, given) for part in find_backbones(given)]
    parts = [part for part in parts if all(part.architecture.depths)]  # a stem alone is no ConvNeXt
    rest = keys_beside(parts, given)
    model, num_classes = name_model(given, parts, rest)
    metrics, metrics_origin = read_metrics(checkpoint, file)
    training = {key: value for key, value in meta.items() if key not in NOT_SHOWN}
    # facebookresearch's scripts note the epoch beside the weights.
    beside = {key: value for key in ('epoch', 'iter') if isinstance(value := checkpoint.get(key), int)}
    shapes = {key: f'{tuple(tensor.shape)} {dtype_name(tensor)}' for key, tensor in given.items()}
    bad = {key: int((~tensor.double().isfinite()).sum()) for key, tensor in given.items() if not is_finite(tensor)}
    return {
        'source': checkpoint.source,
        'container': name_container(file) if file else '',
        'megabytes': file.stat().st_size / 1e6 if file else None,
        'format': ', '.join(dict.fromkeys(part.format.title for part in parts)),
        'backbones': [describe_backbone(given, part) for part in parts],
        'model': model,
        'num_classes': num_classes,
        'parts': count_parts(given, rest),
        'num_tensors': len(given),
        'num_params': count_params(given, given),
        'dtypes': dict(Counter(map(dtype_name, given.values())).most_common()),
        'not_finite': bad,
        'other_entries': {key: describe_entry(value) for key, value in other_entries(checkpoint).items()},
        'training': training or beside,
        'config': config_name(meta),
        'metrics': metrics,
        'metrics_origin': metrics_origin,
        'classes': list(meta.get('dataset_meta', {}).get('classes', ())),
        'licence': name_licence(checkpoint, parts, rest),
        'keys': shapes if keys else {},
    }


def describe(source: str | os.PathLike, keys: bool = False, as_json: bool = False) -> str:
    """Return what :func:`inspect` finds as text for people or as JSON."""
    found = inspect(source, keys)
    if as_json:
        return json.dumps(found, indent=2)
    size = f'{found["megabytes"]:.1f} MB, ' if found['megabytes'] is not None else ''
    backbones, bad = found['backbones'][:3], found['not_finite']
    parts = [f'{name} {number} ({millions(params)})' for name, (number, params) in found['parts'].items()]
    tensors = (str(found['num_tensors']), millions(found['num_params']), join(found['dtypes']))
    rows = [
        ('file', size + found['container']),
        ('format', found['format']),
        *(('backbone', format_backbone(each)) for each in backbones),
        *(('differs', each['differs']) for each in backbones),
        ('model', found['model'] + (f', {found["num_classes"]} classes' if found['num_classes'] else '')),
        ('other parts', shorten(parts, 6)),
        ('tensors', ', '.join(filter(None, tensors))),
        ('NaN, infinity', f'{sum(bad.values())} values in {shorten(bad)}' if bad else 'none'),
        ('classes', f'{len(found["classes"])}: {shorten(found["classes"], 6)}' if found['classes'] else ''),
        ('training', join(found['training'])),
        ('config', found['config']),
        ('metrics', shorten((f'{name} {value:.4g}' for name, value in found['metrics'].items()), 6)),
        ('measured', found['metrics_origin']),
        ('other entries', shorten((f'{name} ({what})' for name, what in found['other_entries'].items()), 8)),
        ('licence', found['licence']),
    ]
    lines = [f'{key:60} {what}' for key, what in found['keys'].items()]
    return '\n'.join(map(printable, [found['source'], *format_rows(rows), *lines]))


def name_container(file: Path) -> str:
    """Say how a file is packed."""
    if is_safetensors(file):
        return 'safetensors'
    return 'PyTorch archive' if zipfile.is_zipfile(file) else 'PyTorch pickle, as before PyTorch 1.6'


def describe_backbone(given: Mapping[str, Tensor], part: Part) -> dict[str, Any]:
    """Return what a ConvNeXt of a file is; ``differs`` says why this package computes something else with it."""
    own = [entry.origin for entry in part.entries.values()]
    return {
        'prefix': part.prefix,
        'format': part.format.title,
        'architecture': str(part.architecture),
        'num_tensors': len(own),
        'num_params': count_params(given, own),
        'output_norms': [i for i in range(4) if f'norm{i}.weight' in part.entries],
        'differs': what_differs(part),
    }


def format_backbone(backbone: Mapping[str, Any]) -> str:
    """Return a backbone in one line."""
    place = f' at {backbone["prefix"]!r}' if backbone['prefix'] else ''
    norms = f', output norms {", ".join(map(str, backbone["output_norms"]))}' if backbone['output_norms'] else ''
    size = f'{backbone["num_tensors"]} tensors, {millions(backbone["num_params"])}'
    return f'{backbone["architecture"]}{place}: {size}{norms}'


def count_parts(given: Mapping[str, Tensor], rest: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Return tensors and parameters of each part of a model, by the first word of its keys."""
    keys = {}
    for key in rest:
        keys.setdefault(key.split('.')[0], []).append(key)
    return {name: (len(own), count_params(given, own)) for name, own in keys.items()}


def name_model(given: Mapping[str, Tensor], parts: list[Part], rest: list[str]) -> tuple[str, int | None]:
    """Return what the whole is, and its number of classes, where the names tell.

    ``parts`` are the ConvNeXts in the file, ``rest`` the keys that belong to none of them.
    """
    heads = [part.entries['head.weight'].tensor for part in parts if 'head.weight' in part.entries]
    if heads and heads[0].ndim and not rest:
        return 'classifier', heads[0].shape[0]
    name = name_heads(given)
    num_classes = count_classes(given) if name else None
    if not parts and (other := name_other_model(given)):
        name = f'{name} on {other}' if name else other
    return name, num_classes


def name_heads(given: Mapping[str, Tensor]) -> str:
    """Return what a detector or segmentor is by its keys.

    >>> name_heads({'decode_head.fpn_bottleneck.conv.weight': None})
    'UperNet'
    """
    stages = {match[1] for match in map(BOX_HEAD.match, given) if match}
    masks = 'Mask' if any(key.startswith('roi_head.mask_head.') for key in given) else ''
    if stages:
        name = f'Cascade {masks} R-CNN, {len(stages)} box heads'.replace('  ', ' ')
    elif any(key.startswith('roi_head.') for key in given):
        name = f'{masks or "Faster"} R-CNN'
    else:
        name = next((name for start, name in KINDS if any(key.startswith(start) for key in given)), '')
    return f'{name} with an auxiliary head' if any(key.startswith('auxiliary_head.') for key in given) else name


def count_classes(given: Mapping[str, Tensor]) -> int | None:
    """Return the number of classes of a detector or segmentor; None where no layer tells it."""
    for end, others in CLASS_LAYERS:
        for key, tensor in given.items():
            if key.endswith(end) and tensor.ndim:
                return tensor.shape[0] - others
    return None


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
    return sum(given[key].numel() for key in keys if not key.endswith((*STATISTICS, COUNTER)))


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
