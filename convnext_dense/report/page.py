"""The page of a report: tables, curves and the worst images, in one file."""

import html
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from convnext_dense.compat.errors import UserError, shorten
from convnext_dense.compat.files import write_text
from convnext_dense.report.objects import ERRORS, RECALLS
from convnext_dense.train.page import image, page_text, table

MOST_CURVES = 10  # in one plot
MOST_CELLS = 40  # classes in a plot of the confusion
HIDDEN = ('curve',)  # of the figures of a class


def write_page(
    report: Mapping[str, Any],
    pictures: Sequence[tuple[Mapping[str, Any], bytes]],
    curves: bytes | None,
    against: Mapping[str, Any] | None,
    file: Path,
) -> None:
    """Write what :func:`~convnext_dense.report.objects.judge` or :func:`~convnext_dense.report.maps.judge` says.

    The pictures are JPEGs of the worst images, each with its row of the report; the curves of the training are a PNG;
    the figures of ``against``, another report, are subtracted.

    Raises:
        UserError: The other report is on another kind of prediction.
    """
    if against is not None and against['kind'] != report['kind']:
        raise UserError(f'The report to compare with is on {against["kind"]}, and this one on {report["kind"]}.')
    if against is not None and against['classes'] != report['classes']:
        raise UserError(
            f'The report to compare with has the classes {shorten(against["classes"])}, and this one '
            f'{shorten(report["classes"])}.'
        )
    parts = [*summary(report, against), *class_table(report, against), *sections(report)]
    parts.append(f'<h2>The {len(pictures)} worst images</h2><p>On the left what is right, on the right the prediction.')
    for row, picture in pictures:
        figures = ', '.join(f'{name} {show(value)}' for name, value in row.items() if name != 'path')
        text = html.escape(f'{row["path"]}: {figures}')
        parts.append(f'<figure>{image(picture, row["path"], "jpeg")}<figcaption>{text}</figcaption></figure>')
    if curves is not None:
        parts.append(f'<h2>Training</h2>{image(curves, "curves of the training")}')
    write_text(page_text(f'Report on {Path(report["checkpoint"]).name}', parts), file)


def summary(report: Mapping[str, Any], against: Mapping[str, Any] | None) -> Iterator[str]:
    """Yield the metrics of the whole."""
    yield f'<p>{html.escape(report["checkpoint"])}, {report["num_images"]} images.'
    figures = {**report['metrics'], **report.get('summary', {})}
    other = {**(against or {}).get('metrics', {}), **(against or {}).get('summary', {})}
    head, rows = ['', 'value', *(['difference'] if against else [])], []
    for name, value in figures.items():
        if 'time' not in name:
            row = [name.split('/')[-1], show(value), difference(value, other.get(name))]
            rows.append(row[: len(head)])
    yield table(head, rows)


def class_table(report: Mapping[str, Any], against: Mapping[str, Any] | None) -> Iterator[str]:
    """Yield the table of the classes; the main figure is compared with the other report's."""
    by_class = report['by_class']
    columns = [name for name in next(iter(by_class.values())) if name not in HIDDEN]
    main = next(name for name in ('box_AP', 'IoU') if name in columns)
    other = (against or {}).get('by_class', {})
    head = ['class', *(column.replace('_', ' ') for column in columns)]
    if against:
        head.append(f'{main.replace("_", " ")}, difference')
    rows = []
    for name, row in by_class.items():
        cells = [name, *(show(row[column]) for column in columns)]
        cells.append(difference(row[main], other.get(name, {}).get(main)))
        rows.append(cells[: len(head)])
    yield f'<h2>Classes</h2>{table(head, rows)}'
    if report['kind'] == 'objects':
        yield (
            '<p>Precision, recall and F1 are at the threshold of the score where the F1 of the class is largest, for '
            'boxes with an intersection over union of 0.5.'
        )


def sections(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield the sections that only one kind of report has, and the confusion."""
    if report['kind'] == 'objects':
        yield f'<h2>Precision and recall at 0.5</h2>{image(draw_precision(report), "precision over recall")}'
        rows = [
            [kind, ERRORS[kind], str(row['count']), f'{100 * row["ap50"]:+.1f}']
            for kind, row in report['errors'].items()
        ]
        yield f'<h2>Errors</h2>{table(["kind", "", "number", "AP50 without them"], rows)}'
        error = report['calibration']['error']
        yield f'<h2>Scores and what they are worth</h2><p>Mean difference: {100 * error:.1f} points.'
        yield image(draw_calibration(report), 'share of right detections over the score')
        at = f', detections with a score of {report["threshold"]:.2f} or more, where F1 is largest'
    else:
        at = ', shares of the pixels of the true class'
    yield f'<h2>Confusion</h2><p>Rows: what is right; columns: what was predicted{at}.'
    yield image(draw_confusion(report), 'confusion of the classes')


def show(value: float | None) -> str:
    """Return a figure as text; COCO says -1 where there is no object of a size."""
    if value is None or value == -1:
        return '-'
    return str(value) if isinstance(value, int) else f'{value:.3f}'


def difference(value: float | None, other: float | None) -> str:
    """Return by how much a figure is larger than another one."""
    return '-' if None in (value, other) else f'{value - other:+.3f}'


def as_png(figure: Figure) -> bytes:
    """Return a figure as the bytes of a PNG file."""
    stream = io.BytesIO()
    figure.savefig(stream, format='png', dpi=110)
    return stream.getvalue()


def draw_precision(report: Mapping[str, Any]) -> bytes:
    """Return the precision over the recall: the mean, and the classes with most objects."""
    figure = Figure(figsize=(7, 4), layout='constrained')
    axes = figure.subplots()
    present = {name: row for name, row in report['by_class'].items() if row['objects']}
    for name in sorted(present, key=lambda name: -present[name]['objects'])[:MOST_CURVES]:
        axes.plot(RECALLS, present[name]['curve'], linewidth=1, label=name)
    if present:
        axes.plot(RECALLS, np.mean([row['curve'] for row in present.values()], axis=0), 'k', linewidth=2, label='mean')
        axes.legend(loc='center left', bbox_to_anchor=(1, 0.5))
    axes.set(xlabel='recall', ylabel='precision', xlim=(0, 1), ylim=(0, 1.02))
    return as_png(figure)


def draw_calibration(report: Mapping[str, Any]) -> bytes:
    """Return the share of right detections over their score."""
    figure = Figure(figsize=(5, 4), layout='constrained')
    axes = figure.subplots()
    bins = [row for row in report['calibration']['bins'] if row['count']]
    axes.bar([row['low'] for row in bins], [row['right'] for row in bins], width=0.1, align='edge', edgecolor='white')
    axes.plot([0, 1], [0, 1], 'k--', linewidth=1)
    axes.set(xlabel='score', ylabel='share that is right', xlim=(0, 1), ylim=(0, 1))
    return as_png(figure)


def draw_confusion(report: Mapping[str, Any]) -> bytes:
    """Return the confusion of the classes that are confused most, a row for each true class."""
    counts = np.array(report['confusion'], float)
    names = [*report['classes'], 'background'][: len(counts)]
    if len(names) > MOST_CELLS:
        wrong = counts.sum(0) + counts.sum(1) - 2 * np.diag(counts)
        chosen = np.sort(np.argsort(-wrong)[:MOST_CELLS])
        counts, names = counts[np.ix_(chosen, chosen)], [names[i] for i in chosen]
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = 2.5 + 0.42 * len(names)
    figure = Figure(figsize=(side + 1, side), layout='constrained')
    axes = figure.subplots()
    axes.imshow(shares, cmap='Blues', vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel='predicted', ylabel='right')
    is_objects = report['kind'] == 'objects'
    for row, column in zip(*np.nonzero(counts), strict=True):
        text = f'{counts[row, column]:.0f}' if is_objects else f'{shares[row, column]:.2f}'.removeprefix('0')
        if is_objects or shares[row, column] >= 0.005:
            colour = 'white' if shares[row, column] > 0.5 else 'black'
            axes.text(column, row, text, ha='center', va='center', fontsize=7, color=colour)
    return as_png(figure)
