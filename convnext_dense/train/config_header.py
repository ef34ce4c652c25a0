"""A leaf config goes in, what its header promises comes out: command, published figures, initial weights.

The header is the docstring of the file: a title, then entries that may run over several lines::

    Cascade Mask R-CNN, ConvNeXt-S, ImageNet-1k, COCO, 36 epochs (arXiv 2201.03545, Table 3).

    Command: torchrun --nproc_per_node 8 tools/train.py configs/det/cascade_convnext_s_coco.py
    Expected: box AP 51.9, mask AP 45.0; 108 M parameters, 827 GFLOPs at 1280x800.
    Initial weights: convnext://small_1k, MIT.
    Note: anything else.

A metric of ``Expected`` with ``>=`` is what a run of this package must reach; one without is published. What a run did
reach follows ``Expected`` as ``Measured: mIoU 85.7.`` ``Expected: not published.`` and ``Initial weights: none.`` are
allowed; ``Measured``, ``Initial weights`` and ``Note`` may be missing.
"""

import ast
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from convnext_dense.compat.errors import UserError

ENTRIES = ('Command', 'Expected', 'Measured', 'Initial weights', 'Note')
REQUIRED = ('Command', 'Expected')
NUMBER = r'\d+(?:\.\d+)?'
METRIC = re.compile(rf'(?P<name>[A-Za-z].*?) (?P<relation>>= )?(?P<value>{NUMBER})(?P<where> (?:on|after|in) .+)?')
PARAMS = re.compile(rf'({NUMBER}) M parameters')
GFLOPS = re.compile(rf'({NUMBER}) GFLOPs at (\d+)x(\d+)')
ENTRY = re.compile(rf'^({"|".join(ENTRIES)}):', re.MULTILINE)
NOT_PUBLISHED = 'not published'
NO_WEIGHTS = 'none'


@dataclass(frozen=True)
class Metric:
    """A figure of merit, e.g. ``box AP 51.9`` or ``mIoU >= 60``.

    Attributes:
        name: What was measured.
        value: The number, with the digits that are printed.
        is_bound: It is a lower bound for a run of this package; otherwise it was measured, there or by the publishers.
        where: What follows the number, e.g. ``on held-out drawings``; often empty.
    """

    name: str
    value: Decimal
    is_bound: bool
    where: str

    def __str__(self) -> str:
        return ' '.join(filter(None, (self.name, '>=' * self.is_bound, str(self.value), self.where)))


@dataclass(frozen=True)
class Header:
    """What the header of a config says.

    Attributes:
        title: The lines before the first entry, as one.
        command: What trains it.
        metrics: The expected results.
        measured: The results of a run of this package.
        params: Published millions of parameters, with the digits that are printed.
        gflops: Published GFLOPs (multiply-adds), likewise.
        size: Width and height in pixels of the image to which ``gflops`` belongs.
        weights: Where training starts; empty for random weights.
        licence: That of ``weights``.
        note: Anything else.
    """

    title: str
    command: str
    metrics: tuple[Metric, ...] = ()
    measured: tuple[Metric, ...] = ()
    params: Decimal | None = None
    gflops: Decimal | None = None
    size: tuple[int, int] | None = None
    weights: str = ''
    licence: str = ''
    note: str = ''


def find_header(file: str | os.PathLike) -> Header | None:
    """Return the header of a config file, or None where nothing is expected of it; see :func:`read_header`."""
    docstring, _ = read_docstring(Path(file))
    is_there = any(match[1] == 'Expected' for match in ENTRY.finditer(docstring))
    return read_header(file) if is_there else None


def read_header(file: str | os.PathLike) -> Header:
    """Return what the header of a config file says.

    Raises:
        UserError: An entry is missing or does not parse; the message names file, line and what is allowed.
    """
    docstring, first_line = read_docstring(Path(file))
    starts = list(ENTRY.finditer(docstring))
    ends = [*(match.start() for match in starts[1:]), len(docstring)]
    texts = {match[1]: docstring[match.end() : end] for match, end in zip(starts, ends, strict=False)}
    lines = {match[1]: first_line + docstring.count('\n', 0, match.end()) for match in starts}
    for name in REQUIRED:
        if not texts.get(name, '').strip():
            raise UserError(
                f'{file}, line {first_line}: the header has no "{name}:". A header is a title and the entries '
                f'{", ".join(f"{entry}:" for entry in ENTRIES)} of which {" and ".join(REQUIRED)} must be there.'
            )
    return Header(
        title=one_line(docstring[: starts[0].start()]).removesuffix('.'),
        command=one_line(texts['Command']),
        **parse_expected(texts['Expected'], file, lines['Expected']),
        measured=parse_measured(texts.get('Measured', ''), file, lines.get('Measured', first_line)),
        **parse_weights(texts.get('Initial weights', ''), file, lines.get('Initial weights', first_line)),
        note=one_line(texts.get('Note', '')),
    )


def read_docstring(path: Path) -> tuple[str, int]:
    """Return the docstring of a Python file as it stands there, and the number of its first line."""
    tree = ast.parse(path.read_text()) if path.suffix == '.py' else ast.Module([], [])
    return ast.get_docstring(tree, clean=False) or '', tree.body[0].lineno if tree.body else 1


def one_line(text: str) -> str:
    """Join lines into one, with single spaces."""
    return ' '.join(text.split())


def parse_expected(text: str, file: str | os.PathLike, line: int) -> dict:
    """Return the fields of :class:`Header` that the text after ``Expected:`` sets; it begins in ``line``."""
    fields = {'metrics': ()}
    for offset, item in split_items(text):
        parsed = parse_item(item)
        if parsed is None:
            line += text.count('\n', 0, offset)
            raise UserError(
                f'{file}, line {line}: "Expected:" has {item!r}. Allowed, separated by commas and semicolons: a metric '
                '("box AP 51.9", or "mIoU >= 60" for one measured here), "108 M parameters", "827 GFLOPs at 1280x800", '
                f'or "{NOT_PUBLISHED}".'
            )
        fields |= {**parsed, 'metrics': fields['metrics'] + parsed.get('metrics', ())}
    return fields


def parse_measured(text: str, file: str | os.PathLike, line: int) -> tuple[Metric, ...]:
    """Return the metrics of the text after ``Measured:``, which begins in ``line``."""
    metrics = []
    for offset, item in split_items(text):
        metric = METRIC.fullmatch(item)
        if metric is None or metric['relation']:
            line += text.count('\n', 0, offset)
            raise UserError(
                f'{file}, line {line}: "Measured:" has {item!r}. Allowed, separated by commas: a metric as a run of '
                'this package reached it ("box AP50 0.85").'
            )
        metrics += parse_item(item)['metrics']
    return tuple(metrics)


def parse_weights(text: str, file: str | os.PathLike, line: int) -> dict:
    """Return the fields of :class:`Header` that the text after ``Initial weights:`` sets; it begins in ``line``."""
    text = one_line(text).removesuffix('.')
    if text in ('', NO_WEIGHTS):
        return {}
    weights, _, licence = text.rpartition(', ')
    if not weights:
        raise UserError(
            f'{file}, line {line}: "Initial weights:" has {text!r}. Allowed: where the weights are and their licence, '
            f'e.g. "convnext://small_1k, MIT", or "{NO_WEIGHTS}".'
        )
    return {'weights': weights, 'licence': licence}


def split_items(text: str) -> Iterator[tuple[int, str]]:
    """Yield place and text of each item of an enumeration.

    >>> list(split_items('box AP 1.5, mask AP 2; 3 M parameters.'))
    [(0, 'box AP 1.5'), (12, 'mask AP 2'), (23, '3 M parameters')]
    """
    text, start = text.rstrip().removesuffix('.'), 0
    for separator in re.finditer(r'\s*(?:[;,]|\band\b)\s*|\Z', text):
        item = text[start : separator.start()]
        if item.strip():
            yield start + len(item) - len(item.lstrip()), one_line(item)
        start = separator.end()


def parse_item(item: str) -> dict | None:
    """Return the fields of :class:`Header` that an item of ``Expected:`` sets; None where it is no such item.

    >>> parse_item('827 GFLOPs at 1280x800')
    {'gflops': Decimal('827'), 'size': (1280, 800)}
    """
    if item == NOT_PUBLISHED:
        return {}
    if match := PARAMS.fullmatch(item):
        return {'params': Decimal(match[1])}
    if match := GFLOPS.fullmatch(item):
        return {'gflops': Decimal(match[1]), 'size': (int(match[2]), int(match[3]))}
    if match := METRIC.fullmatch(item):
        where = (match['where'] or '').strip()
        return {'metrics': (Metric(match['name'], Decimal(match['value']), bool(match['relation']), where),)}
    return None
