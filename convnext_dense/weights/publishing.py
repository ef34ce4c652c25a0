"""A checkpoint of a training goes in; a small file for others, its config and a card come out.

    published/NAME-1a2b3c4d.safetensors   the weights, and ``meta``: classes, colours, config, metrics, versions
    published/NAME-1a2b3c4d.py            the config, on its own
    published/NAME-1a2b3c4d.md            the card: what it is, metrics, classes, licence, how to load it

The number is the beginning of the file's SHA-256, which ``torch.hub`` and this package compare when they download it.
"""

import ast
import itertools
import math
import os
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convnext_dense import __version__
from convnext_dense.compat.errors import UserError
from convnext_dense.configs import load_config
from convnext_dense.weights.inspection import Inspection, inspect_checkpoint, millions
from convnext_dense.weights.loading import check_finite, module_versions
from convnext_dense.weights.provenance import (
    inherited_licence,
    is_public,
    licence_of,
    other_entries,
    parse_config,
    public_name,
    read_meta,
)
from convnext_dense.weights.reading import unwrap
from convnext_dense.weights.report import shorten
from convnext_dense.weights.sources import fetch
from convnext_dense.weights.writing import SUFFIXES, Written, write_text, write_weights

FORMATS = tuple(suffix[1:] for suffix in SUFFIXES)
# lines of a config's text that belong to the machine and the moment of the training
OF_THE_RUN = {
    r'^load_from = .*$': 'load_from = None',
    r'^resume = .*$': 'resume = False',
    r'^launcher = .*$': "launcher = 'none'",
    r'^work_dir = .*\n': '',
}
ABSOLUTE_PATH = re.compile(r'/\w|~/|[A-Za-z]:[\\/]')
DETECTOR = 'from mmdet.apis import init_detector\n\nmodel = init_detector({config!r}, {file!r}, device={device!r})'
SEGMENTOR = 'from mmseg.apis import init_model\n\nmodel = init_model({config!r}, {file!r}, device={device!r})'
# how to load a model that has one of these parts
WHOLE = {DETECTOR: {'roi_head', 'bbox_head', 'rpn_head', 'panoptic_head'}, SEGMENTOR: {'decode_head'}}
OWN_MODEL = 'from convnext_dense.weights import load_weights\n\nload_weights(model, {file!r})  # a model or a backbone'


@dataclass
class Publication:
    """What was published.

    Attributes:
        file: The weights.
        card: The text for people.
        config: The config; None where it is not known.
        left_out: Entries of the checkpoint that others do not need.
        paths: Absolute paths of the machine that the config still names, such as a ``data_root``.
        sizes: Of the checkpoint, where it is a file, and of what was published, in units of 1e6 bytes.
    """

    file: Path
    card: Path
    config: Path | None
    left_out: list[str]
    paths: list[str]
    sizes: tuple[float | None, float]

    def __str__(self) -> str:
        before, after = self.sizes
        rows = {
            'size': f'{after:.1f} MB' + (f' of {before:.1f} MB' if before else ''),
            'left out': ', '.join(self.left_out),
            'config': str(self.config or 'not in the checkpoint; name it with --config'),
            'card': str(self.card),
            'still told': f'{shorten(self.paths)}, in the config' if self.paths else '',
        }
        lines = [f'  {name:14}{text}' for name, text in rows.items() if text]
        return '\n'.join([f'published {self.file}', *lines])


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

    Where an average of the weights was kept (``EMAHook``), it is what is published: MMEngine saves it as the weights,
    and those of the optimizer beside it.

    Args:
        checkpoint: The checkpoint of a training.
        out: A folder, which exists or ends in a slash; or a folder and the name to publish under.
        config: The config file, where the checkpoint does not hold it, or another one shall stand in the card.
        file_format: One of :data:`FORMATS`.
        half: Store matrices and kernels in float16. Vectors stay as they are: they are small, and layer scale can be
            smaller than float16 resolves.
        metrics: Name -> value, in place of what the checkpoint and the log beside it say.
        force: Replace a card or a config that was edited since the same weights were published.

    Raises:
        UserError: The checkpoint cannot be read or had diverged, or the files cannot be written.
    """
    if file_format not in FORMATS:
        raise UserError(f'Weights are published as {" or ".join(FORMATS)}; got {file_format!r}.')
    content = fetch(checkpoint)
    file = Path(checkpoint) if os.path.isfile(checkpoint) else None
    given = unwrap(content, content.source)
    check_finite(given, content.source)
    noted = dict(content['meta']) if isinstance(content.get('meta'), Mapping) else {}
    if config is not None:
        noted.update(cfg=load_config(config).pretty_text, experiment_name=Path(config).stem)
    if metrics is not None:
        noted.update(metrics=check_metrics(metrics), metrics_origin='given by whoever published the weights')
    content['meta'] = noted = without_secrets(noted)
    found, meta = inspect_checkpoint(content, file), read_meta(content)
    meta.update(metrics=found.metrics, metrics_origin=found.metrics_origin, convnext_dense_version=__version__)

    tensors = OrderedDict(halve(given) if half else given)
    tensors._metadata = module_versions(content) or OrderedDict()
    folder, name = split_output(out, found.config or Path(content.source).stem)
    written = write_weights(tensors, folder / f'{name}.{file_format}', 'state_dict', meta, hash_in_name=True)
    stem = written.file.name.removesuffix(f'.{file_format}')
    card, config_file = folder / f'{stem}.md', folder / f'{stem}.py' if 'cfg' in meta else None
    # that of a format is its makers' and says nothing of these weights
    licence = content.licence or inherited_licence(found.initial_weights)
    texts = {card: write_card(found, licence, tensors, written, config_file)}
    if config_file:
        texts[config_file] = meta['cfg']
    edited = [file.name for file, text in texts.items() if file.is_file() and file.read_bytes() != text.encode()]
    if edited and not force:
        raise UserError(
            f'{" and ".join(edited)} in {folder} would change: the same weights were published before. Give another '
            'name, or replace what is there with --force.'
        )
    for target, text in texts.items():
        write_text(text, target)
    sizes = (found.megabytes, written.size / 1e6)
    paths = absolute_paths(meta.get('cfg', ''))
    return Publication(written.file, card, config_file, sorted(other_entries(content)), paths, sizes)


def without_secrets(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Return a checkpoint's ``meta`` without the places on the machine of the training.

    A config that is no Python is left out: what it tells cannot be seen.
    """
    known = read_meta({'meta': meta})
    names = {source: public_name(source) for source in known.get('initial_weights', ())}
    kept = {key: value for key, value in meta.items() if key not in ('cfg', 'config')}  # mmcv's name is the latter
    if names:
        kept['initial_weights'] = [*dict.fromkeys(names.values())]
    if parse_config(known.get('cfg', '')).body:
        private = {source: name for source, name in names.items() if source != name}
        kept['cfg'] = replace_strings(without_the_run(known['cfg']), private)
    return kept


def without_the_run(config: str) -> str:
    """Return a config's text without the lines that belong to one training.

    >>> without_the_run("resume = True\\nwork_dir = '/home/me/runs'\\n")
    'resume = False\\n'
    """
    for pattern, replacement in OF_THE_RUN.items():
        config = re.sub(pattern, replacement, config, flags=re.MULTILINE)
    return config


def replace_strings(config: str, replacements: Mapping[str, str]) -> str:
    """Return a config's text with other strings in it, however they are written.

    >>> replace_strings("a = dict(checkpoint='/home/x.pth')", {'/home/x.pth': 'a local file'})
    "a = dict(checkpoint='a local file')"
    """
    lines = config.encode().splitlines(keepends=True)  # ast counts bytes
    starts = [0, *itertools.accumulate(map(len, lines))]
    text = b''.join(lines)
    found = [node for node in strings_in(config) if node.value in replacements]
    for node in sorted(found, key=lambda node: (node.lineno, node.col_offset), reverse=True):
        start, end = starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset
        text = text[:start] + repr(replacements[node.value]).encode() + text[end:]
    return text.decode()


def strings_in(config: str) -> list[ast.Constant]:
    """Return the strings in a config's text."""
    constants = (node for node in ast.walk(parse_config(config)) if isinstance(node, ast.Constant))
    return [node for node in constants if isinstance(node.value, str)]


def absolute_paths(config: str) -> list[str]:
    """Return the absolute paths that a config's text names.

    >>> absolute_paths("data = dict(root='/home/me/data', prefix='train/', url='https://example.org/a')")
    ['/home/me/data']
    """
    return sorted({node.value for node in strings_in(config) if ABSOLUTE_PATH.match(node.value)})


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
    # the default comes out of the checkpoint, whoever wrote it
    return path if is_folder else path.parent, re.sub(r'[^\w.-]+', '_', name).strip('.') or 'model'


def write_card(
    found: Inspection, licence: str, tensors: Mapping[str, Tensor], written: Written, config: Path | None
) -> str:
    """Return the card's text, in Markdown."""
    size = sum(tensor.nbytes for tensor in tensors.values()) / 1e6
    started = [
        f'`{source}`' + f' ({licence_of(source)})' * bool(licence_of(source)) if is_public(source) else source
        for source in found.initial_weights
    ]
    facts = {
        'config': f'`{found.config}`' * bool(found.config),
        'training': ', '.join(f'{name} {value}' for name, value in found.training.items()),
        'initial weights': ', '.join(started) or ('none' if config else 'not known'),
        'licence': licence,
        'file': f'{size:.1f} MB, {", ".join(sorted({str(each.dtype)[6:] for each in tensors.values()}))}',
        'SHA-256': f'`{written.sha256}`',
    }
    backbone = ', '.join(each.architecture for each in found.backbones)
    classes = f'{found.num_classes} classes' if found.num_classes else ''
    what = ', '.join(filter(None, (found.model, backbone, classes, f'{millions(found.num_params)} parameters')))
    files = dict(config=config.name if config else 'CONFIG.py', file=written.file.name, device='cuda:0')
    whole = [code.format(**files) for code, parts in WHOLE.items() if found.parts.keys() & parts]
    lines = [f'# {written.file.stem}', '', f'{what}.', '', '| | |', '|---|---|']
    lines += [f'| {name} | {in_one_line(text)} |' for name, text in facts.items() if text]
    if found.metrics:
        lines += ['', f'## Metrics: {found.metrics_origin}', '', '| | |', '|---|---|']
        lines += [f'| {in_one_line(name)} | {value:.4g} |' for name, value in found.metrics.items()]
    if found.classes:
        lines += ['', '## Classes', '', in_one_line(', '.join(found.classes)) + '.']
    lines += ['', '## Use', '']
    if whole:
        lines += [f'    python tools/test.py {files["config"]} {files["file"]}', '']
    for code in (*whole, OWN_MODEL.format(**files)):
        lines += ['```python', *code.split('\n'), '```', '']
    lines += ['All of this needs convnext_dense: `import convnext_dense` comes first, unless the config does it.']
    return '\n'.join(lines) + '\n'


def in_one_line(text: str) -> str:
    """Return a text as it can stand in a cell of a table.

    >>> in_one_line('a | b')
    'a \\\\| b'
    """
    return ' '.join(text.split()).replace('|', '\\|')
