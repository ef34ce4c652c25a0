"""The table of pipelines goes in, ``docs/pipelines.md`` comes out."""

from pathlib import Path

from convnext_dense.swap.pipelines import DETECTION, GAPS, ROWS, SEGMENTATION, SURVEY, Row

FILE = Path(__file__).parents[2] / 'docs/pipelines.md'
PIP_NAMES = {'sklearn': 'scikit-learn', 'skimage': 'scikit-image'}
SECTIONS = {'Detection': DETECTION, 'Segmentation': SEGMENTATION}
HEAD = """# Pipelines: the backbone in configs of MMDetection and MMSegmentation

Made from `convnext_dense/swap/pipelines.py` by `python tools/pipelines_table.py`; `--check` tells whether it is up to
date, `--run` tries the rows (minutes), and the slow tests compare them.

A row **runs** where `tools/swap_backbone.py` exchanges the backbone of the config for ConvNeXt-atto and, on drawn data
and without compiled ops, the model

- is built and takes a training step of the config's optimizer, with a finite loss and a gradient for every parameter
  of the backbone,
- predicts, with every threshold of scores at 0, so that masks and boxes are there,
- and predicts the same, bit by bit, in a second model that loads its saved weights strictly.

Weights are random. Two-stage detectors look at 64 proposals, for speed. Strides are those of the maps that are taken;
maps at which neither neck nor heads look are left out. Parameters are millions.
"""


def write_page() -> Path:
    """Write the page and return its file."""
    FILE.write_text(describe_pipelines())
    return FILE


def is_current() -> bool:
    """Tell whether the page says what the tables say."""
    return FILE.is_file() and FILE.read_text() == describe_pipelines()


def describe_pipelines() -> str:
    """Return the text of the page."""
    return '\n'.join(
        [
            HEAD,
            describe_counts(),
            *(f'## {title}\n\n{describe_rows(rows)}' for title, rows in SECTIONS.items()),
            f'## What does not run\n\n{describe_gaps()}',
            f'## All configs\n\n{describe_survey()}',
        ]
    )


def describe_counts() -> str:
    """Return how many rows run."""
    needing = [row for row in ROWS if row.needs]
    names = ', '.join(f'{row.method} ({PIP_NAMES[row.needs]})' for row in needing)
    unused = ', '.join(row.method for row in ROWS if row.unused)
    without_gradient = f'Parameters of the backbone get no gradient in: {unused}.\n' if unused else ''
    return (
        f'**{len(ROWS) - len(needing)} of {len(ROWS) + len(GAPS)} run**, and {len(needing)} more where a package is '
        f'installed that upstream asks for:\n{names}. {len(GAPS)} do not, for the reasons that stand below.\n'
        f'{without_gradient}'
    )


def describe_rows(rows: tuple[Row, ...]) -> str:
    """Return a table of configs that run."""
    return format_rows(
        ['method', 'config', 'strides', 'fitted', 'parameters', 'training step, prediction, save and load'],
        [
            [
                row.method,
                f'`{row.config}`',
                ' '.join(map(str, row.strides)),
                row.fitted,
                f'{row.params:.2f}',
                describe_outcome(row),
            ]
            for row in rows
        ],
    )


def describe_outcome(row: Row) -> str:
    """Return what became of a row."""
    if row.needs:
        return f'run, with {PIP_NAMES[row.needs]} installed'
    unused = ', '.join(row.unused)
    return f'run; no gradient reaches {unused}: `find_unused_parameters = True`' if unused else 'run'


def describe_gaps() -> str:
    """Return the table of configs that do not run."""
    return format_rows(['method', 'config', 'why'], [[gap.method, f'`{gap.config}`', gap.why] for gap in GAPS])


def describe_survey() -> str:
    """Return for how many of all configs the changes can be computed."""
    share = 100 * SURVEY.num_swapped / max(SURVEY.num_configs, 1)
    reasons = [[str(count), reason] for reason, count in SURVEY.reasons.items()]
    return (
        f'`python tools/pipelines_table.py --survey` computes what to change in every config that MMDetection 3.3.0 '
        f'and\nMMSegmentation 1.2.2 are installed with, without running it: **{SURVEY.num_swapped} of '
        f'{SURVEY.num_configs}** ({share:.0f} %). The others:\n\n{format_rows(["configs", "why not"], reasons)}'
    )


def format_rows(titles: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    lines = [titles, ['---'] * len(titles), *rows]
    return ''.join(f'| {" | ".join(cells)} |\n' for cells in lines)
