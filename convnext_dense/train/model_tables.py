"""Configs go in, a table of what their models cost comes out, as text, Markdown, CSV or JSON."""

import contextlib
import csv
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from convnext_dense.compat.errors import UserError
from convnext_dense.train import screen
from convnext_dense.train.measurement import Measurement, measure_config
from convnext_dense.train.stats import CONFIGS, ModelStats, check_size, count_config, leaf_configs

# the columns of a table and how their numbers are written
COLUMNS = {
    'config': '',
    'input': '',
    'part': '',
    'params (M)': '.2f',
    'published params (M)': 'g',
    'GFLOPs': '.2f',
    'published GFLOPs': 'g',
    'difference (%)': '+.2f',
    'activations (M)': '.2f',
    'peak memory (MB)': '.0f',
    'time (ms)': '.1f',
    'training memory (MB)': '.0f',
    'step time (ms)': '.1f',
    'step images': '',
    'device': '',
}

TITLE = """# Model statistics

Made by `python tools/model_stats.py`, for one image in inference; `docs/model_zoo.md` tells how it counts. GFLOPs are
10^9 multiply-adds, activations the outputs of convolutions and linear layers. The difference is that of the GFLOPs.
Heads that cannot run without values have parameters alone.
"""


def describe_models(
    configs: Sequence[str | os.PathLike] = (),
    size: Sequence[int] | None = None,
    measure: bool = False,
    train: bool = False,
    amp: bool = False,
    out: str | None = None,
) -> tuple[str, list[str]]:
    """Return the table of configs beside their published figures, and write it to ``out`` as well.

    Args:
        configs: Config files; the package's own where there is none.
        size: Width and height of the image in pixels; by default those of the published count, or of the test.
        measure: Time them and take their memory too.
        train: And so for a training step.
        amp: Both in mixed precision.
        out: File for the table; its suffix is one of ``WRITERS``.

    Returns:
        The table, and what was wrong with the configs that it lacks; empty where all are there.

    Raises:
        UserError: No config can be counted, an option is wrong, or the file cannot be written.
    """
    if out is not None and Path(out).suffix not in WRITERS:
        raise UserError(f'--out takes a file that ends in {", ".join(WRITERS)}; got {out}.')
    if amp and not (measure or train):
        raise UserError('--amp is for measuring: give --measure or --train with it.')
    size = check_size(size) if size else None
    works = [training for training, is_asked in ((False, measure), (True, train)) if is_asked]
    rows, failures = [], []
    for config in configs or leaf_configs():
        with noting(failures, config):
            stats = count_config(config, size)
            if stats.uncounted:
                screen.tell(f'{short_name(stats.config)}: {stats.uncounted}')
            measured = {}
            for training in works:
                with noting(failures, config):
                    measured[training] = measure_config(config, stats.size, training, amp)
            rows += table_rows(stats, measured)
    if not rows:
        raise UserError(' '.join(failures))
    if out is not None:
        try:
            Path(out).write_text(WRITERS[Path(out).suffix](rows))
        except OSError as error:
            raise UserError(f'{out} cannot be written ({error.strerror}). Give another file with --out.') from error
    return format_text(rows), failures


@contextlib.contextmanager
def noting(failures: list[str], config: str | os.PathLike) -> Iterator[None]:
    """Go on after a user's mistake, and note what it was and in which config."""
    try:
        yield
    except UserError as error:
        failures.append(str(error) if str(config) in str(error) else f'{config}: {error}')


def table_rows(stats: ModelStats, measured: Mapping[bool, Measurement] | None = None) -> list[dict[str, object]]:
    """Return a row for each part and one for the total, which has the published figures beside it.

    Args:
        stats: What was counted.
        measured: Whether it trained -> what was measured.
    """
    rows = []
    for part, counts in {**stats.parts, 'total': stats.total}.items():
        row = dict.fromkeys(COLUMNS)
        row |= {'config': short_name(stats.config), 'input': '{}x{}'.format(*stats.size), 'part': part}
        row['params (M)'] = round(counts.params / 1e6, 2)
        if counts.macs is not None:
            row['GFLOPs'] = round(counts.macs / 1e9, 2)
        if counts.activations is not None:
            row['activations (M)'] = round(counts.activations / 1e6, 2)
        rows.append(row)
    total = rows[-1]
    if stats.header and stats.header.params is not None:
        total['published params (M)'] = float(stats.header.params)
    total['published GFLOPs'] = stats.published_gflops
    if stats.difference is not None:
        total['difference (%)'] = round(stats.difference, 2)
    for training, measurement in (measured or {}).items():
        memory, time = ('training memory (MB)', 'step time (ms)') if training else ('peak memory (MB)', 'time (ms)')
        total[memory] = None if measurement.num_bytes is None else round(measurement.num_bytes / 1e6)
        total[time] = round(1000 * measurement.seconds, 1)
        if training:
            total['step images'] = measurement.images
        total['device'] = measurement.device
    return rows


def short_name(config: Path) -> str:
    """Return folder and name of one of the package's configs, the path as it came of any other."""
    path = config.resolve()
    return path.relative_to(CONFIGS).as_posix() if path.is_relative_to(CONFIGS) else str(config)


def format_cells(rows: Sequence[Mapping[str, object]]) -> list[list[str]]:
    """Return head and rows of a table as text, cell by cell, without columns in which nothing stands."""
    names = [name for name in COLUMNS if any(row[name] is not None for row in rows)]
    cells = [['' if row[name] is None else format(row[name], COLUMNS[name]) for name in names] for row in rows]
    return [names, *cells]


def format_text(rows: Sequence[Mapping[str, object]]) -> str:
    """Return a table for a terminal; what a row shares with the one above is left out in the first two columns."""
    table = format_cells(rows)
    shown = [
        ['' if i < 2 and row[:2] == above[:2] else cell for i, cell in enumerate(row)]
        for above, row in zip([[], *table], table, strict=False)
    ]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    is_text = [not COLUMNS[name] for name in table[0]]
    lines = [
        '  '.join(
            cell.ljust(width) if left else cell.rjust(width)
            for cell, width, left in zip(row, widths, is_text, strict=True)
        ).rstrip()
        for row in shown
    ]
    return '\n'.join(lines)


def format_markdown(rows: Sequence[Mapping[str, object]]) -> str:
    """Return a page in Markdown: what the numbers are, and a table of them."""
    head, *cells = format_cells(rows)
    rule = ['---' if not COLUMNS[name] else '---:' for name in head]
    return f'{TITLE}\n' + ''.join(f'| {" | ".join(row)} |\n' for row in (head, rule, *cells))


def format_csv(rows: Sequence[Mapping[str, object]]) -> str:
    """Return comma-separated values with a head."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, fieldnames=list(COLUMNS), lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def format_json(rows: Sequence[Mapping[str, object]]) -> str:
    """Return a JSON list of the rows."""
    return json.dumps(list(rows), indent=1) + '\n'


WRITERS = {'.md': format_markdown, '.csv': format_csv, '.json': format_json}
