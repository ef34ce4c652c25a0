"""The metrics of predictions that were written to a folder, by annotations that no config names."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from convnext_dense.compat.errors import UserError, shorten
from convnext_dense.data import open_wrappers
from convnext_dense.data.annotation import number
from convnext_dense.data.checks.configs import SEGMENTATION_TYPES
from convnext_dense.data.formats.coco import KEYS, class_names, plain
from convnext_dense.data.formats.masks import read_label_map
from convnext_dense.data.records import read_json
from convnext_dense.predict import run
from convnext_dense.predict.exported import ExportedModel
from convnext_dense.predict.inputs import find_sources
from convnext_dense.predict.model import load_model
from convnext_dense.predict.output import read_images, result_name
from convnext_dense.report import maps, objects
from convnext_dense.report.hook import read_case
from convnext_dense.report.page import show
from convnext_dense.results import LABEL_MAPS, Objects
from convnext_dense.speed import keep_memory

LOADING = ('config', 'device', 'tta', 'cfg_options', 'amp')  # options of load_model
# types of datasets in whose label maps 0 is unlabelled, and the classes count from 1
REDUCED = {name for name, kind in SEGMENTATION_TYPES.items() if kind.reduce_zero_label} | {'ShapesLabels'}


def predict(
    model: str | os.PathLike,
    inputs: Sequence[str | os.PathLike],
    out: str | os.PathLike = 'predictions',
    compare: str | os.PathLike | None = None,
    **options: Any,
) -> int:
    """Predict images as :func:`~convnext_dense.predict.predict` does, with its arguments, and compare with the truth.

    That is a COCO JSON for objects, or a folder of label maps with the names of the images. Objects of any score are
    then written, unless ``score`` is given.

    Raises:
        UserError: A mistake of the user.
    """
    if compare is None:
        return run.predict(model, inputs, out, **options)
    keep_memory()
    loaded = load_model(model, **{name: options.pop(name) for name in LOADING if name in options})
    is_of_maps = loaded.kind == LABEL_MAPS
    if not (Path(compare).is_dir() if is_of_maps else Path(compare).is_file()):
        wanted = 'the folder of the label maps' if is_of_maps else 'a COCO JSON'
        problem = 'is of another kind' if Path(compare).exists() else 'does not exist'
        raise UserError(f'--compare {compare} {problem}: {loaded.name} predicts {loaded.kind}, which need {wanted}.')
    right = {} if is_of_maps else read_right(Path(compare), loaded.classes)
    if is_of_maps:
        if isinstance(loaded, ExportedModel):
            raise UserError(
                f'--compare of label maps needs the config, which says whether 0 is a class, and {loaded.name} is an '
                'exported model without it. Give the checkpoint.'
            )
        options['save'] = sorted({*(options.get('save') or ('pictures',)), 'maps'})
    elif options.get('score') is None:
        options['keep_all'] = True
    stems = {each.name: each.stem for each in find_sources(inputs, Path(out))[1]}
    code = run.predict_with(loaded, inputs, out, **options)
    rows = [row for row in read_images(Path(out)) if row['file_name'] in stems]  # the folder may hold others
    if is_of_maps:
        _, dataset = next(open_wrappers(loaded.config.test_dataloader.dataset))
        is_reduced = dataset.get('reduce_zero_label', dataset.get('type') in REDUCED)
        names = [result_name(stems[row['file_name']], row.get('frame'), '.png') for row in rows]
        print(compare_maps(Path(out) / 'labels', Path(compare), names, loaded.classes, is_reduced))
    else:
        print(compare_objects({row['file_name']: row for row in rows}, right, loaded.classes))
    return code


def read_right(annotations: Path, classes: tuple[str, ...]) -> dict[str, list[dict]]:
    """Return the objects on each image of a COCO JSON, as MMDetection's datasets give them.

    Raises:
        UserError: The file is no sound COCO JSON, or has classes that the model does not know.
    """
    content = read_json(annotations, KEYS)
    names = class_names(annotations, content)
    if unknown := [name for name in names.values() if name not in classes]:
        raise UserError(f'{annotations} has the classes {shorten(unknown)}, and the model knows {shorten(classes, 8)}.')
    try:
        of_image: dict[Any, list[dict]] = {plain(image['id']): [] for image in content['images']}
        for entry in content['annotations']:
            x, y, w, h = map(number, entry['bbox'])
            label = classes.index(names[plain(entry['category_id'])])
            instance = dict(bbox=[x, y, x + w, y + h], bbox_label=label, mask=entry.get('segmentation'))
            of_image[plain(entry['image_id'])].append(dict(instance, ignore_flag=int(entry.get('iscrowd') or 0)))
        return {image['file_name']: of_image[plain(image['id'])] for image in content['images']}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f'{annotations} is no sound COCO JSON ({type(error).__name__}: {error}). convnext-dense check-data names '
            'its faults, and --fix writes a copy without them.'
        ) from error


def compare_objects(rows: Mapping[str, Mapping], right: Mapping[str, list[dict]], classes: tuple[str, ...]) -> str:
    """Return the metrics of objects, as a table, from what was written for each file and what is on each image.

    Raises:
        UserError: They have no image in common, or a mask is none of its image.
    """
    found = dict(pairs(rows, right))
    if not found:
        raise UserError(f'No image of the annotations was predicted: they have {shorten(right)}.')
    has_masks = any('segmentation' in each for row in rows.values() for each in row['objects'])
    cases = []
    for name, instances in found.items():
        try:
            cases.append(read_case(name, instances, as_objects(rows[name], classes, has_masks)))
        except (TypeError, ValueError, KeyError) as error:
            raise UserError(f'{name}: a segmentation of the annotations is none ({error}).') from error
    report = objects.judge(cases, classes)
    lines = [f'compared: {len(cases)} of {len(right)} annotated images, {len(rows)} predicted']
    kinds = [kind for kind in ('box', 'mask') if f'{kind}_AP' in next(iter(report['by_class'].values()))]
    columns = {f'{kind} {figure}': f'{kind}_{figure}' for kind in kinds for figure in ('AP', 'AP50')}
    return '\n'.join([*lines, *table_of(report['by_class'], columns)])


def pairs(rows: Mapping[str, Any], images: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the names of predicted images with the entries of the same images: of the same path, or the same name."""
    by_name: dict[str, list] = {}
    for path, image in images.items():
        by_name.setdefault(PurePosixPath(path.replace('\\', '/')).name, []).append(image)
    for name in rows:
        same = by_name.get(PurePosixPath(name).name, [])
        if name in images:
            yield name, images[name]
        elif len(same) == 1:
            yield name, same[0]


def as_objects(row: Mapping, classes: tuple[str, ...], has_masks: bool) -> Objects:
    """Return the objects of a line that was written for an image."""
    found = row['objects']
    boxes = np.array([each['bbox'] for each in found], np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    scores = np.array([each['score'] for each in found], np.float32)
    labels = np.array([each['category_id'] - 1 for each in found], np.int64)
    rles = [dict(e['segmentation'], counts=e['segmentation']['counts'].encode()) for e in found] if has_masks else None
    return Objects(boxes, scores, labels, (row['height'], row['width']), classes, rles)


def compare_maps(
    predicted: Path, right: Path, names: Sequence[str], classes: tuple[str, ...], reduce_zero_label: bool
) -> str:
    """Return the metrics of label maps, as a table, from a folder of predicted ones and one of those that are right.

    With ``reduce_zero_label`` 0 is unlabelled in the right ones, and the classes count from 1.

    Raises:
        UserError: The folders have no name in common, or a map has another size.
    """
    counts = []
    for name in names:
        if (truth := right / name).is_file():
            labels, found = (read_label_map(folder / name)[0] for folder in (right, predicted))
            if labels.shape != found.shape:
                raise UserError(
                    f'{truth} has the shape {labels.shape}, and what was predicted {found.shape}. A label map has the '
                    'size of its image, and one channel with the number of the class in each pixel.'
                )
            if reduce_zero_label:
                labels = np.where(labels == 0, maps.IGNORED, labels - 1)
            counts.append(maps.count(name, labels, found, len(classes)))
    if not counts:
        raise UserError(f'{right} has no label map with the name of an image, such as {shorten(names)}.')
    report = maps.judge(counts, classes)
    lines = [
        f'compared with {right}: {len(counts)} of {len(names)} images',
        *(f'{name:14}{show(value)}' for name, value in report['summary'].items()),
    ]
    return '\n'.join([*lines, *table_of(report['by_class'], {'IoU': 'IoU', 'Acc': 'Acc'})])


def table_of(by_class: Mapping[str, Mapping], columns: Mapping[str, str]) -> list[str]:
    """Return the lines of a table of the classes, with their mean."""
    rows = {name: [row[key] for key in columns.values()] for name, row in by_class.items()}
    means = [[row[i] for row in rows.values() if row[i] is not None] for i in range(len(columns))]
    rows = {'mean': [float(np.mean(column)) if column else None for column in means]} | rows
    width = max(map(len, rows)) + 2
    cells = (f'{name:{width}}' + ''.join(f'{show(value):>12}' for value in row) for name, row in rows.items())
    return [f'{"":{width}}' + ''.join(f'{name:>12}' for name in columns), *cells]
