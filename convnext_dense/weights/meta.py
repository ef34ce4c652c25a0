"""What a checkpoint says of its training: the plain values that MMEngine and mmcv keep beside the weights."""

import contextlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from mmengine.logging import HistoryBuffer

RUN_STAMP = re.compile(r'_\d{8}_\d{6}$')  # MMEngine's experiment_name is that of the config with the start of the run
COMMIT = re.compile(r'([0-9a-f]{40}|unknown)$')  # of the folder of the run, which MMEngine appends to its version
COUNTERS = ('epoch', 'iter', 'seed')


def read_meta(checkpoint: Mapping) -> dict[str, Any]:
    """Return what a checkpoint says of its training, in types that JSON has too; colours are tuples.

    The keys are MMEngine's: ``epoch``, ``iter``, ``seed``, ``time``, ``experiment_name``, ``cfg``, ``dataset_meta``
    and the versions of libraries. What mmcv wrote before MMEngine is found under the same keys. ``metrics`` are those
    that this package published.
    """
    given = checkpoint.get('meta')
    given = given if isinstance(given, Mapping) else {}
    meta = {key: int(given[key]) for key in COUNTERS if isinstance(given.get(key), Integral)}
    texts = ['time', *(key for key in given if isinstance(key, str) and key.endswith('_version'))]
    meta.update({key: COMMIT.sub('', given[key]) for key in texts if isinstance(given.get(key), str)})
    for key, older in (('experiment_name', 'exp_name'), ('cfg', 'config')):
        texts = [text for text in (given.get(key), given.get(older)) if isinstance(text, str) and text]
        if texts:
            meta[key] = texts[0]
    if dataset := read_dataset(given):
        meta['dataset_meta'] = dataset
    if isinstance(given.get('metrics'), Mapping):
        meta['metrics'] = numbers(given['metrics'])
        meta['metrics_origin'] = str(given.get('metrics_origin', 'published with the weights'))
    return meta


def read_dataset(meta: Any) -> dict[str, Any]:
    """Return ``classes`` and ``palette`` of a checkpoint's ``meta``; nothing where it has no classes."""
    meta = meta if isinstance(meta, Mapping) else {}
    dataset = meta.get('dataset_meta')
    dataset = dataset if isinstance(dataset, Mapping) else meta
    dataset = {str(key).lower(): value for key, value in dataset.items()}  # mmcv wrote CLASSES and PALETTE
    classes, palette = dataset.get('classes'), dataset.get('palette')
    if not isinstance(classes, list | tuple) or not classes:
        return {}
    found = {'classes': tuple(map(str, classes))}
    if isinstance(palette, list | tuple):
        with contextlib.suppress(TypeError, ValueError):  # a palette may be a name
            found['palette'] = [tuple(map(int, colour)) for colour in palette]
    return found


def config_name(meta: Mapping[str, Any]) -> str:
    """Return the name of the config that a model was trained with; empty where the checkpoint does not say.

    >>> config_name({'experiment_name': 'cascade_convnext_t_coco_20260131_093000'})
    'cascade_convnext_t_coco'
    """
    return RUN_STAMP.sub('', meta.get('experiment_name', '')).removesuffix('.py')


def read_metrics(checkpoint: Mapping, file: Path | None = None) -> tuple[dict[str, float], str]:
    """Return the latest known metrics of a checkpoint, and when they were measured.

    MMEngine saves a checkpoint before it validates it, so that the history in the checkpoint ends one validation
    earlier, unless it was the best so far. The log of the run, which lies beside the file, has the right one.
    """
    meta = read_meta(checkpoint)
    if 'metrics' in meta:
        return meta['metrics'], meta['metrics_origin']
    if file and (logged := numbers(logged_row(file, meta))):
        return logged, "validation of this checkpoint, from the run's log"
    hub = checkpoint.get('message_hub')
    scalars = hub.get('log_scalars') if isinstance(hub, Mapping) else None
    latest = {}
    for name, buffer in (scalars if isinstance(scalars, Mapping) else {}).items():
        if str(name).startswith('val/') and isinstance(buffer, HistoryBuffer):
            with contextlib.suppress(TypeError, ValueError, IndexError):  # empty, or no numbers
                latest[name.removeprefix('val/')] = float(buffer.data[0][-1])
    return numbers(latest), 'last validation before the checkpoint was saved' if latest else ''


def numbers(values: Mapping) -> dict[str, float]:
    """Keep the finite numbers of a row of metrics, without times, counters and COCO's -1 for 'no such object'."""
    kept = {}
    for name, value in values.items():
        is_number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
        if is_number and value != -1 and name not in ('step', *COUNTERS) and not str(name).endswith('time'):
            kept[str(name)] = float(value)
    return kept


def logged_row(file: Path, meta: Mapping[str, Any]) -> dict:
    """Return the validation row of a checkpoint in the JSON lines that its run left in the same folder."""
    latest = {}
    for log in sorted(file.parent.glob('*/vis_data/scalars.json')):
        rows = read_scalars([log])
        by_epoch = any('epoch' in row for row in rows if 'loss' in row)
        now = meta.get('epoch' if by_epoch else 'iter')
        latest = next((row for row in rows if 'loss' not in row and now and row.get('step') == now), latest)
    return latest


def read_scalars(files: Iterable[Path]) -> list[dict]:
    """Return the rows of JSON-lines files in the order of their training step; later files win over repeated steps."""
    rows = {}
    for file in files:
        for line in file.read_text(errors='replace').splitlines():
            with contextlib.suppress(json.JSONDecodeError):  # the last line of a run that was killed
                row = json.loads(line)
                rows[row.get('step', 0), 'loss' in row] = row
    return [rows[key] for key in sorted(rows)]
