"""Publish the weights of a training: a small file for others, with its config and a card.

    published/NAME-1a2b3c4d.safetensors   the weights, and their classes, colours, config, metrics and versions
    published/NAME-1a2b3c4d.py            the config
    published/NAME-1a2b3c4d.md            the card: what the model is, metrics, classes, licence, how to load it

The digits are the beginning of the file's SHA-256. ``torch.hub`` and this package compare them after a download.
"""

import math
import os
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from pathlib import Path

import torch
from torch import Tensor

from convnext_dense import __version__
from convnext_dense.compat.errors import UserError
from convnext_dense.configs import load_config
from convnext_dense.weights.identify import other_entries, unwrap
from convnext_dense.weights.inspect import Inspection, inspect_checkpoint, millions
from convnext_dense.weights.load import check_finite, module_versions
from convnext_dense.weights.meta import read_meta
from convnext_dense.weights.report import shorten
from convnext_dense.weights.sources import fetch
from convnext_dense.weights.write import SUFFIXES, write_text, write_weights

FORMATS = tuple(suffix[1:] for suffix in SUFFIXES)
# Lines of a config that belong to the machine and the moment of the training.
OF_THE_RUN = {
    r'^load_from = .*$': 'load_from = None',
    r'^resume = .*$': 'resume = False',
    r'^launcher = .*$': "launcher = 'none'",
    r'^work_dir = .*\n': '',
}
# Part of a model that tells its library -> how a user loads the model.
LOADERS = {
    'decode_head': 'from mmseg.apis import init_model\n\nmodel = init_model({config!r}, {file!r}, device="cuda:0")',
    **dict.fromkeys(
        ('roi_head', 'bbox_head', 'rpn_head', 'panoptic_head'),
        'from mmdet.apis import init_detector\n\nmodel = init_detector({config!r}, {file!r}, device="cuda:0")',
    ),
}
OWN_MODEL = 'from convnext_dense.weights import load_weights\n\nload_weights(model, {file!r})  # a model or a backbone'


@dataclass
class Publication:
    """What was published.

    Attributes:
        file: The weights.
        card: The text for people.
        config: The config; None where the checkpoint has none.
        left_out: Entries of the checkpoint that others do not need.
        megabytes: Size of the checkpoint, where it is a file, and of ``file``, in units of 1e6 bytes.
    """

    file: Path
    card: Path
    config: Path | None
    left_out: list[str]
    megabytes: tuple[float | None, float]

    def __str__(self) -> str:
        before, after = self.megabytes
        rows = {
            'size': f'{after:.1f} MB' + (f' of {before:.1f} MB' if before else ''),
            'left out': ', '.join(self.left_out),
            'config': str(self.config or 'not in the checkpoint; name it with --config'),
            'card': str(self.card),
        }
        return '\n'.join([f'published {self.file}', *(f'  {name:14}{text}' for name, text in rows.items() if text)])


def publish(
    checkpoint: str | os.PathLike,
    out: str | os.PathLike,
    *,
    config: str | os.PathLike | None = None,
    file_format: str = FORMATS[0],
    half: bool = False,
    metrics: Mapping[str, float] | None = None,
    force: bool = False,
) -> Publication:
    """Write the weights of a checkpoint for others, with its config and a card.

    Where a run kept an average of the weights (``EMAHook``), the average is published: MMEngine saves it as the weights.

    Args:
        checkpoint: The checkpoint of a training.
        out: A folder, which exists or ends in a slash; or a folder and the name to publish under.
        config: The config file, where the checkpoint does not hold it, or another one shall be published.
        file_format: One of :data:`FORMATS`.
        half: Store matrices and kernels in float16. Vectors stay as they are: they are small, and layer scale can be
            smaller than float16 resolves.
        metrics: Name -> value, in place of what the checkpoint and the log beside it say.
        force: Replace files of the same weights that were published before.

    Raises:
        UserError: The checkpoint cannot be read or had diverged, or the files cannot be written.
    """
    if file_format not in FORMATS:
        raise UserError(f'Weights are published as {" or ".join(FORMATS)}; got {file_format!r}.')
    content = fetch(checkpoint)
    given = unwrap(content, content.source)
    check_finite(given, content.source)
    noted = dict(content['meta']) if isinstance(content.get('meta'), Mapping) else {}
    if config is not None:
        noted.update(cfg=load_config(config).pretty_text, experiment_name=Path(config).stem)
    if metrics is not None:
        noted.update(metrics=check_metrics(metrics), metrics_origin='given by whoever published the weights')
    content['meta'] = noted
    source = Path(checkpoint) if os.path.isfile(checkpoint) else None
    found, meta = inspect_checkpoint(content, source), read_meta(content)
    meta.update(metrics=found.metrics, metrics_origin=found.metrics_origin, convnext_dense_version=__version__)
    if 'cfg' in meta:
        meta['cfg'] = without_the_run(meta['cfg'])

    tensors = OrderedDict(halve(given) if half else given)
    tensors._metadata = module_versions(content) or OrderedDict()
    folder, name = split_output(out, found.config or Path(content.source).stem)
    unnamed = folder / f'.{name}.{file_format}'
    sha256 = write_weights(tensors, unnamed, 'state_dict', meta)
    stem = f'{name}-{sha256[:8]}'
    file, card, config_file = (folder / f'{stem}.{suffix}' for suffix in (file_format, 'md', 'py'))
    if card.exists() and not force:
        unnamed.unlink()
        raise UserError(f'{card} exists: these weights were published before. Replace the files with --force.')
    unnamed.replace(file)
    if 'cfg' in meta:
        write_text(meta['cfg'], config_file)
    else:
        config_file = None
    write_text(write_card(found, file, sha256, config_file), card)
    return Publication(file, card, config_file, sorted(other_entries(content)), (found.megabytes, megabytes(file)))


def megabytes(file: Path) -> float:
    """Return a file's size in units of 1e6 bytes."""
    return file.stat().st_size / 1e6


def without_the_run(config: str) -> str:
    """Return a config's text without the lines that belong to one training.

    >>> without_the_run("resume = True\\nwork_dir = '/data/runs'\\n")
    'resume = False\\n'
    """
    for pattern, replacement in OF_THE_RUN.items():
        config = re.sub(pattern, replacement, config, flags=re.MULTILINE)
    return config


def check_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """Raise a :class:`UserError` unless all metrics are numbers."""
    for name, value in metrics.items():
        if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
            raise UserError(f'A metric is NAME=NUMBER, e.g. mIoU=46.7; got {name}={value}.')
    return {str(name): float(value) for name, value in metrics.items()}


def halve(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with matrices and kernels in float16.

    Raises:
        UserError: A weight is too large for float16.
    """
    halved = dict(tensors)
    for key, tensor in tensors.items():
        is_vector = tensor.numel() == max(tensor.shape, default=1)
        if tensor.dtype in (torch.float32, torch.float64) and not is_vector:
            halved[key] = tensor.half()
    if large := [key for key, tensor in halved.items() if tensor.dtype == torch.float16 and tensor.isinf().any()]:
        most = torch.finfo(torch.float16).max
        raise UserError(f'float16 ends at {most:g}, which is exceeded in {shorten(large)}. Publish without --half.')
    return halved


def split_output(out: str | os.PathLike, default: str) -> tuple[Path, str]:
    """Return the folder to write to and the name to publish under.

    >>> split_output('published/', 'upernet')[1], split_output('published/seg', 'upernet')[1]
    ('upernet', 'seg')
    """
    path = Path(out)
    is_folder = path.is_dir() or os.fspath(out).endswith(('/', os.sep))
    name = default if is_folder else path.name
    for suffix in (*SUFFIXES, '.py'):
        name = name.removesuffix(suffix)
    # The default comes out of the checkpoint, whoever wrote it.
    return path if is_folder else path.parent, re.sub(r'[^\w.-]+', '_', name).strip('.') or 'model'


def write_card(found: Inspection, file: Path, sha256: str, config: Path | None) -> str:
    """Return the card's text, in Markdown."""
    backbone = ', '.join(each.architecture for each in found.backbones)
    classes = f'{found.num_classes} classes' if found.num_classes else ''
    what = ', '.join(filter(None, (found.model, backbone, classes, f'{millions(found.num_params)} parameters')))
    facts = {
        'config': found.config,
        'training': ', '.join(f'{name} {value}' for name, value in found.training.items()),
        'initial weights': ', '.join(found.initial_weights),
        'licence': found.licence,
        'file': f'{megabytes(file):.1f} MB, SHA-256 {sha256}',
        **{name: f'{value:.4g}' for name, value in found.metrics.items()},
        'metrics': found.metrics_origin,
        'classes': ', '.join(found.classes),
    }
    lines = [f'# {file.stem}', '', f'{what}.', '', '| | |', '|---|---|']
    lines += [f'| {in_one_line(name)} | {in_one_line(text)} |' for name, text in facts.items() if text]
    names = dict(config=config.name if config else 'CONFIG.py', file=file.name)
    loaders = [LOADERS[part] for part in found.parts if part in LOADERS][:1]
    lines += ['', '## Use', '', '`import convnext_dense` comes first, unless the config does it.', '']
    for code in (*loaders, OWN_MODEL):
        lines += ['```python', *code.format(**names).split('\n'), '```', '']
    return '\n'.join(lines)


def in_one_line(text: str) -> str:
    """Return a text as it can stand in a cell of a table.

    >>> in_one_line('a | b')
    'a \\\\| b'
    """
    return ' '.join(text.split()).replace('|', '\\|')
