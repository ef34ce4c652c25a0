"""Publish the weights of a training: a small file for others, and its config.

    published/NAME-1a2b3c4d.safetensors   the weights, and their classes, colours, config, metrics and versions
    published/NAME-1a2b3c4d.py            the config

The digits are the beginning of the file's SHA-256. ``torch.hub`` and this package compare them after a download.
"""

import math
import os
import re
from collections import OrderedDict
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from convnext_dense import __version__
from convnext_dense.compat.errors import UserError, shorten
from convnext_dense.compat.files import write_text
from convnext_dense.configs import load_config
from convnext_dense.weights.identify import other_entries, unwrap
from convnext_dense.weights.inspect import describe
from convnext_dense.weights.load import check_finite, is_finite, module_versions
from convnext_dense.weights.meta import config_name, read_meta, read_metrics
from convnext_dense.weights.sources import fetch
from convnext_dense.weights.write import SUFFIXES, write_weights

FORMATS = tuple(suffix[1:] for suffix in SUFFIXES)
# Lines of a config that belong to the machine and the moment of the training.
OF_THE_RUN = {
    r'^load_from = .*$': 'load_from = None',
    r'^resume = .*$': 'resume = False',
    r'^launcher = .*$': "launcher = 'none'",
    r'^work_dir = .*\n': '',
}


class Publication(NamedTuple):
    """What was published."""

    file: Path  # the weights
    config: Path | None  # the config file, where the checkpoint has a config
    left_out: list[str]  # entries of the checkpoint that others do not need

    def __str__(self) -> str:
        return (
            f'published {describe(self.file)}\n'
            f'  left out      {", ".join(self.left_out) or "nothing"}\n'
            f'  config file   {self.config or "not in the checkpoint; name it with --config"}'
        )


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
    """Write the weights of a checkpoint for others, with its config.

    Where a run kept an average of the weights (``EMAHook``), it is published: MMEngine saves it as the weights.

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
    given = unwrap(content)
    check_finite(given, content.source)
    meta = read_meta(content)
    if config is not None:
        meta.update(cfg=load_config(config).pretty_text, experiment_name=Path(config).stem)
    if metrics is None:
        values, origin = read_metrics(content, Path(checkpoint) if os.path.isfile(checkpoint) else None)
    else:
        values, origin = check_metrics(metrics), 'given by whoever published the weights'
    meta.update(metrics=values, metrics_origin=origin, convnext_dense_version=__version__)
    if 'cfg' in meta:
        meta['cfg'] = without_the_run(meta['cfg'])

    tensors = OrderedDict(halve(given) if half else given)
    tensors._metadata = module_versions(content) or OrderedDict()
    folder, name = split_output(out, config_name(meta) or Path(content.source).stem)
    draft = folder / f'.{name}.{file_format}'
    stem = f'{name}-{write_weights(tensors, draft, "state_dict", meta)[:8]}'
    file, config_file = folder / f'{stem}.{file_format}', folder / f'{stem}.py'
    if file.exists() and not force:
        draft.unlink()
        raise UserError(f'{file} exists: these weights were published before. Replace them with --force.')
    draft.replace(file)
    if 'cfg' in meta:
        write_text(meta['cfg'], config_file)
    return Publication(file, config_file if 'cfg' in meta else None, sorted(other_entries(content)))


def without_the_run(config: str) -> str:
    """Return a config's text without the lines that belong to one training.

    >>> without_the_run("resume = True\\nwork_dir = '/data/runs'\\n")
    'resume = False\\n'
    """
    for pattern, replacement in OF_THE_RUN.items():
        config = re.sub(pattern, replacement, config, flags=re.MULTILINE)
    return config


def check_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return metrics as floats, or raise a :class:`UserError` where one is no number."""
    for name, value in metrics.items():
        if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
            raise UserError(f'A metric is NAME=NUMBER, e.g. mIoU=46.7; got {name}={value}.')
    return {str(name): float(value) for name, value in metrics.items()}


def halve(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with matrices and kernels in float16, or raise a :class:`UserError` if one is too large."""
    halved = dict(tensors)
    for key, tensor in tensors.items():
        is_vector = tensor.numel() == max(tensor.shape, default=1)
        if tensor.dtype in (torch.float32, torch.float64) and not is_vector:
            halved[key] = tensor.half()
    if large := [key for key, tensor in halved.items() if not is_finite(tensor)]:
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
