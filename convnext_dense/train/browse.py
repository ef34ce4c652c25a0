"""What a config trains on, before it is trained: augmented samples as pictures, and the data in numbers."""

import contextlib
import html
import itertools
import math
import os
import random
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from mmengine.registry import DATASETS, VISUALIZERS
from mmengine.structures import BaseDataElement

from convnext_dense import configs
from convnext_dense.compat.errors import UserError
from convnext_dense.compat.files import write_text
from convnext_dense.data import check_run
from convnext_dense.data.records import IMPORTED
from convnext_dense.train.config import fit_classes
from convnext_dense.train.page import image, listed, page_text, table
from convnext_dense.train.pictures import draw_batch
from convnext_dense.train.switches import check_count

STRIDES = (4, 8, 16, 32, 64)  # of the maps that detectors look for objects on
SCALE = 8  # anchors are so many strides wide
MOST_COUNTED = 2000  # samples of the pipeline whose objects are measured


def browse(
    config: str | os.PathLike,
    out: str | os.PathLike | None = None,
    samples: int = 16,
    seed: int = 0,
    cfg_options: Mapping | None = None,
) -> str:
    """Write ``samples.png`` and ``data.html`` with augmented training samples and the data in numbers.

    Args:
        config: Of a detector or a segmentor.
        out: The folder to write to; by default that of a config for imported data, ``work_dirs/<config name>/data`` for
            others.
        samples: How many are drawn.
        seed: Of their choice and of the augmentation.
        cfg_options: Dotted keys to override.

    Returns:
        The numbers, and where the files are.

    Raises:
        UserError: The config or its data cannot be read, or no sample is asked for.
    """
    check_count('--samples', samples)
    cfg = configs.load_config(config, cfg_options)
    if not cfg.get('train_dataloader'):
        raise UserError(f'The config {config} has no train_dataloader, so that there is nothing to look at.')
    configs.require_library(cfg.get('default_scope'))
    fit_classes(cfg)
    notes = check_run(cfg, ('train',))
    random.seed(seed)
    np.random.seed(seed)
    with configs.model_scope(cfg), contextlib.redirect_stdout(None):  # pycocotools prints what it does
        dataset = DATASETS.build(cfg.train_dataloader.dataset)
        visualizer = VISUALIZERS.build({**cfg.visualizer, 'name': f'browse {time.time_ns()}', 'vis_backends': []})
    visualizer.dataset_meta = dataset.metainfo
    if not len(dataset):
        raise UserError(f'The training data of {config} is empty: every image is filtered out or without annotations.')
    chosen = [dataset[i] for i in random.sample(range(len(dataset)), min(samples, len(dataset)))]
    beside = Path(config).parent
    folder = Path(out or (beside if (beside / IMPORTED).is_file() else Path('work_dirs', Path(config).stem, 'data')))
    folder.mkdir(parents=True, exist_ok=True)
    picture = folder / 'samples.png'
    draw_batch(visualizer, [each['inputs'] for each in chosen], [each['data_samples'] for each in chosen], picture)
    tables = describe(dataset, [each['data_samples'] for each in chosen])
    page = folder / 'data.html'
    write_text(page_text(f'Training data of {config}', page_parts(tables, notes, picture)), page)
    lines = [f'{name}: {", ".join(f"{key} {value}" for key, value in table.items())}' for name, table in tables.items()]
    return '\n'.join([*lines, *(f'note: {note}' for note in notes), f'pictures  {picture}', f'page      {page}'])


def describe(dataset, samples: Sequence[BaseDataElement]) -> dict[str, dict[str, object]]:
    """Return tables on a dataset: its images, its classes, and the sizes of the objects that the model gets."""
    names = dataset.metainfo.get('classes') or ()
    shapes = [sample.img_shape for sample in samples]
    tables = {
        'images': {
            'number': len(dataset),
            'shorter side in the samples, in pixels': spread(min(shape) for shape in shapes),
        },
        'classes': count_classes(dataset, names, samples),
    }
    boxes = [sample.gt_instances.bboxes for sample in samples if 'gt_instances' in sample]
    sides = [side for each in boxes for side in getattr(each, 'tensor', each).clone().reshape(-1, 4).numpy()]
    if sides:
        lengths = [float(np.sqrt(max(0.0, (x1 - x0) * (y1 - y0)))) for x0, y0, x1, y1 in sides]
        table = tables['objects in the samples'] = {'side in pixels': spread(lengths)}
        ends = [0, *(SCALE * stride for stride in STRIDES), math.inf]
        for low, high in itertools.pairwise(ends):
            share = sum(low <= length < high for length in lengths) / len(lengths)
            table[f'{low} and more' if high == math.inf else f'{low} to {high}'] = f'{share:.0%}'
    return tables


def count_classes(dataset, names: Sequence[str], samples: Sequence[BaseDataElement]) -> dict[str, int]:
    """Return the objects of each class in the data, or of label maps the share of pixels in the samples."""
    if any('gt_sem_seg' in sample for sample in samples) and not any('gt_instances' in sample for sample in samples):
        pixels = Counter()
        for sample in samples:
            values, counts = np.unique(sample.gt_sem_seg.data.numpy(), return_counts=True)
            pixels.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
        total = sum(pixels.values())
        named = {name: f'{pixels[i] / total:.1%}' for i, name in enumerate(names)}
        return {**named, 'unlabelled': f'{pixels[255] / total:.1%}'}
    found = Counter()
    if hasattr(dataset, 'get_data_info'):
        for i in range(min(len(dataset), MOST_COUNTED)):
            instances = dataset.get_data_info(i).get('instances', ())
            found.update(each['bbox_label'] for each in instances if not each.get('ignore_flag'))
    return {name: found[i] for i, name in enumerate(names)}


def spread(values: Iterable[float]) -> str:
    """Return smallest, middle and largest value, or the one that all are.

    >>> spread([3, 1, 2]), spread([4, 4])
    ('1 to 3, half of them up to 2', '4')
    """
    values = sorted(values)
    if values[0] == values[-1]:
        return f'{values[0]:.0f}'
    return f'{values[0]:.0f} to {values[-1]:.0f}, half of them up to {values[(len(values) - 1) // 2]:.0f}'


def page_parts(tables: Mapping[str, Mapping], notes: Sequence[str], picture: Path) -> Iterator[str]:
    """Yield the parts of a page: samples, tables and notes."""
    yield image(picture.read_bytes(), 'augmented samples')
    for name, values in tables.items():
        yield f'<h2>{html.escape(name)}</h2>{table((), values.items())}'
    yield listed(notes)
