"""A config for a user's own data: another config with its classes, files and a schedule for its size."""

import copy
import itertools
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from convnext_dense import configs
from convnext_dense.compat.errors import UserError
from convnext_dense.compat.files import write_text
from convnext_dense.configs import (
    CLASS_AGNOSTIC,
    SPLITS,
    Changes,
    Source,
    config_text,
    dotted,
    nest,
    package_name,
    walk,
)
from convnext_dense.data import open_wrappers
from convnext_dense.data.importing import Imported, import_data
from convnext_dense.data.pictures import ImageKind
from convnext_dense.train.config import set_classes
from convnext_dense.train.launch import process_rank
from convnext_dense.train.switches import set_batch

SCOPES = {'mmdet': 'det', 'mmseg': 'seg'}
FEW_ITERATIONS = 1000  # that the smallest data set is trained for
FEW_EPOCHS = {'det': 12, 'seg': 40}  # of a small data set
MANY_IMAGES = 50_000  # from where on the config's own schedule is kept
EVALUATIONS = 12  # of a training
CROPS = ('RandomCrop', 'CenterCrop')
CROP_SIZE = (512, 512)  # height and width in pixels, for a segmentor whose config has none


def prepare_data(
    config: str | os.PathLike, source: str | os.PathLike, out: Path, batch: str | None = None, **options: Any
) -> Path:
    """Import data for a config, and return the config file for it: ``OUT/data.py``.

    A file that is there already, for the same data, is taken as it is: the user may have edited it. ``source`` and the
    options are those of :func:`~convnext_dense.data.importing.import_data`. The schedule follows ``batch``, the images
    of a step; 'auto' and None leave the config's.

    Raises:
        UserError: The data cannot be read, or does not suit the config.
    """
    file = out / 'data.py'
    if process_rank() > 0:  # the first process writes
        while not file.is_file():
            time.sleep(0.1)
        return file
    heading = f'{Path(config).stem} for the data in {Path(source).absolute()}.'
    if file.is_file():
        if not file.read_text(encoding='utf-8').startswith(f'"""{heading}'):
            raise UserError(
                f'{file} exists, for other data or another config. Choose another --work-dir, or remove it.'
            )
        print(f'config      {file}, as it is; remove it to read the data again', file=sys.stderr)
        return file
    cfg = configs.load_config(config)
    task = SCOPES.get(cfg.get('default_scope'))
    if task is None:
        raise UserError(
            f'{config} is no config of a detector or a segmentor: its default_scope is neither mmdet nor mmseg.'
        )
    if batch not in (None, 'auto'):
        set_batch(cfg, batch)
    with_masks = any(step.get('with_mask') for step in walk(cfg.get('train_dataloader')))
    found = import_data(source, out, task=task, with_masks=with_masks, **options)
    with_masks = with_masks and learns_masks(cfg, found)
    changes = {
        ('experiment_name',): out.absolute().parent.name,
        **data_changes(cfg, found, task, with_masks),
        **schedule_changes(cfg, found.num_images['train'], task),
    }
    if batch not in (None, 'auto'):
        changes['train_dataloader', 'batch_size'] = cfg.train_dataloader.batch_size
    advice = 'Edit it as you like; it is a config like any other.'
    print(f'{found.describe()}\nschedule    {describe_schedule(changes)}\nconfig      {file}', file=sys.stderr)
    text = config_text(
        f'{heading}\n\n{advice}\n', package_name(configs.find_config(config).absolute()), nest(cfg, changes)
    )
    write_text(text, file)
    return file


def learns_masks(cfg: Config, found: Imported) -> bool:
    """Tell whether a model with mask heads gets them; without masks in the data it gets none, and that is noted.

    Raises:
        UserError: The data has no masks, and the model is nothing without them.
    """
    if not found.has_masks and not (cfg.model.get('roi_head') or {}).get('mask_head'):
        raise UserError(
            f'{found.root}: the objects have boxes and no masks, without which this model cannot learn. Choose another '
            'config, such as det/cascade_convnext_t_coco.'
        )
    if not found.has_masks:
        found.notes.append('the objects have boxes and no masks: the model gets no mask heads')
    return found.has_masks


def data_changes(cfg: Config, found: Imported, task: str, with_masks: bool) -> Changes:
    """Return what loads the data in place of a config's own, and heads for its classes."""
    changes: Changes = {
        ('classes',): tuple(found.classes),
        ('palette',): [tuple(colour) for colour in found.palette],
        ('data_root',): f'{found.root.as_posix()}/',
    }
    metainfo = dict(classes=Source('classes'), palette=Source('palette'))
    for split in SPLITS:
        loader = cfg.get(f'{split}_dataloader')
        if not loader:
            continue
        key, inner = next(open_wrappers(loader.dataset))  # the first of joined ones, all of which are replaced
        place = itertools.takewhile(lambda part: part != 'datasets', key.split('.'))
        part = split if split in found.files else 'val' if 'val' in found.files else 'train'
        dataset = dict(
            _delete_=True,
            data_root=Source('data_root'),
            ann_file=found.files[part].as_posix(),
            metainfo=metainfo,
            pipeline=pipeline_of(cfg, inner, found, split, with_masks, is_cropped=task == 'seg'),
        )
        if task == 'det':
            filters = dict(filter_cfg=dict(filter_empty_gt=True)) if split == 'train' else dict(test_mode=True)
            dataset.update(type='CocoDataset', data_prefix=dict(img=''), **filters)
        else:
            dataset.update(type='ListedLabels', reduce_zero_label=found.reduce_zero_label)
            dataset.update({} if split == 'train' else dict(test_mode=True))
        changes[(f'{split}_dataloader', *place)] = dataset
        if task == 'det' and split != 'train' and cfg.get(f'{split}_evaluator'):
            metric = ['bbox', 'segm'] if with_masks else 'bbox'
            evaluator = dict(_delete_=True, type='CocoMetric', ann_file=dataset['ann_file'], metric=metric)
            changes[f'{split}_evaluator',] = evaluator
    heads = head_changes(cfg, len(found.classes), with_masks)
    return {**changes, **heads, **preprocessor_changes(cfg, found.images, task)}


def preprocessor_changes(cfg: Config, images: ImageKind, task: str) -> Changes:
    """Return what a model needs for images smaller than a segmentor's crop, and of other channels than three."""
    given = cfg.model.get('data_preprocessor') or {}
    padded = {} if task == 'det' or given.get('size') or given.get('size_divisor') else {'size': crop_size(cfg)}
    if images.mean is None:
        return {('model', 'data_preprocessor', key): value for key, value in padded.items()}
    preprocessor = {**given, **padded, 'type': 'BandsPreprocessor', 'base': given.get('type'), '_delete_': True}
    preprocessor.update(mean=images.mean, std=images.std)
    return {
        ('model', 'data_preprocessor'): preprocessor,
        ('model', 'backbone', 'in_channels'): images.channels,
    }


def crop_size(cfg: Config) -> tuple[int, int]:
    """Return height and width of a segmentor's crops, to which smaller images are padded."""
    crops = [step['crop_size'] for step in walk(cfg.get('train_dataloader')) if step.get('type') in CROPS]
    size = (crops or [(cfg.model.get('data_preprocessor') or {}).get('size') or CROP_SIZE])[0]
    return (size, size) if isinstance(size, int) else tuple(size)


def cropped(pipeline: Sequence[dict], size: tuple[int, int], split: str) -> list[dict]:
    """Return a pipeline with the sizes of ADE20K's: crops of random scales to train on, whole images to test on."""
    scale = (4 * min(size), min(size))  # longest and shortest side
    if split != 'train':
        first, *others = (step for step in pipeline if step.get('type') != 'Resize')
        return [first, dict(type='Resize', scale=scale, keep_ratio=True), *others]
    start = next((i for i, step in enumerate(pipeline, 1) if step.get('type') == 'LoadAnnotations'), len(pipeline))
    resize = dict(type='RandomResize', scale=scale, ratio_range=(0.5, 2.0), keep_ratio=True)
    return [*pipeline[:start], resize, dict(type='RandomCrop', crop_size=size, cat_max_ratio=0.75), *pipeline[start:]]


def pipeline_of(
    cfg: Config, dataset: Mapping, found: Imported, split: str, with_masks: bool, is_cropped: bool = False
) -> Source | list:
    """Return the pipeline of a dataset that reads files, by the name of its variable where it needs no change.

    With ``is_cropped``, images of all sizes become batches, also where the config is for images of one size.
    """
    pipeline = copy.deepcopy(list(dataset.get('pipeline') or []))
    if is_cropped and not any(step.get('type') in CROPS for step in walk(cfg.get('train_dataloader'))):
        pipeline = cropped(pipeline, crop_size(cfg), split)
    kind = found.images
    for i, step in enumerate(pipeline):
        if step.get('type') == 'LoadAnnotations' and step.get('reduce_zero_label') is not None:
            step['reduce_zero_label'] = found.reduce_zero_label
        if step.get('with_mask') and not with_masks:
            step['with_mask'] = False
        if step.get('type') == 'LoadImageFromFile' and not kind.is_plain:
            pipeline[i] = dict(type='LoadAnyImage', channels=kind.channels, stretch=kind.stretch)
    for name in (f'{split}_pipeline', 'test_pipeline'):
        if pipeline == list(cfg.get(name) or ()):
            return Source(f'_base_.{name}')
    return pipeline


def head_changes(cfg: Config, num_classes: int, with_masks: bool) -> Changes:
    """Return the number of classes for every head, and what follows from it; without masks, no heads for them."""
    model = copy.deepcopy(cfg.model)
    for head in walk(model, CLASS_AGNOSTIC):
        set_classes(head, num_classes)
    roi_head = model.get('roi_head') or {}
    if roi_head.get('mask_head') and not with_masks:
        roi_head.update(mask_head=None, mask_roi_extractor=None)
    return dict(differences(cfg.model, model, ('model',)))


def differences(old: Any, new: Any, path: tuple) -> Iterator[tuple[tuple, Any]]:
    """Yield path and new value of each place in which two nodes of the same keys differ."""
    if isinstance(new, Mapping):
        for key in new:
            yield from differences(old[key], new[key], (*path, key))
    elif old != new:
        yield path, new_list(old, new, path) if isinstance(new, list) else new


def new_list(old: list, new: list, path: tuple) -> Source | list:
    """Return a list of heads as the inherited one with another number of classes, where that is all that differs."""
    counts = {each.get('num_classes') for each in new if isinstance(each, Mapping)}
    if len(counts) != 1 or [{**each, 'num_classes': None} for each in old] != [
        {**each, 'num_classes': None} for each in new
    ]:
        return new
    return Source(f'[dict(head, num_classes={counts.pop()}) for head in _base_.{dotted(path)}]')


def schedule_changes(cfg: Config, num_images: int, task: str) -> Changes:
    """Return a schedule for the size of the data, with the lr for the batch.

    A small data set is trained for :data:`FEW_EPOCHS`, and for :data:`FEW_ITERATIONS` at least; phases and warm-up
    keep their shares.
    """
    batch = cfg.train_dataloader.get('batch_size', 1)
    steps = math.ceil(num_images / batch)  # in an epoch
    loop = cfg.get('train_cfg') or {}
    by_epoch = loop.get('max_epochs') is not None
    old = loop.get('max_epochs' if by_epoch else 'max_iters')
    if not old or num_images >= MANY_IMAGES:
        return {}
    iterations = max(FEW_ITERATIONS, FEW_EPOCHS[task] * steps)
    new = math.ceil(iterations / steps) if by_epoch else iterations
    total = new * steps if by_epoch else new
    every = math.ceil(new / EVALUATIONS)
    changes: Changes = {
        ('train_cfg', 'max_epochs' if by_epoch else 'max_iters'): new,
        ('train_cfg', 'val_interval'): every,
        ('param_scheduler',): [scaled(dict(s), new / old, total, by_epoch) for s in walk(cfg.get('param_scheduler'))],
    }
    if 'checkpoint' in (cfg.get('default_hooks') or {}):
        changes['default_hooks', 'checkpoint', 'interval'] = every
    if (cfg.get('auto_scale_lr') or {}).get('base_batch_size'):
        changes['auto_scale_lr', 'enable'] = True
    return changes


def scaled(schedule: dict, factor: float, total: int, by_epoch: bool) -> dict:
    """Return a phase of the lr, an entry of ``param_scheduler``, for a training that is ``factor`` times as long.

    The new one has ``total`` iterations; with ``by_epoch`` it counts epochs.
    """
    if by_epoch and not schedule.get('by_epoch', True):  # the warm-up, in iterations
        end = schedule.get('end')
        return {**schedule, 'end': min(end, max(2, total // 20))} if isinstance(end, int) else schedule
    for key in ('begin', 'end', 'T_max'):
        if isinstance(schedule.get(key), int) and schedule[key] > 0:
            schedule[key] = max(1, round(schedule[key] * factor))
    if 'milestones' in schedule:
        schedule['milestones'] = [max(1, round(milestone * factor)) for milestone in schedule['milestones']]
    return schedule


def describe_schedule(changes: Changes) -> str:
    """Say how long the training is, and how often it is evaluated."""
    for key, word in (('max_epochs', 'epochs'), ('max_iters', 'iterations')):
        if ('train_cfg', key) in changes:
            every = changes['train_cfg', 'val_interval']
            return f'{changes["train_cfg", key]} {word}, with an evaluation every {every}'
    return "the config's own"
