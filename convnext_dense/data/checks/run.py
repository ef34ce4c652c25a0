"""Checks of a whole run: its data sets against each other, and against pipelines, heads and metrics."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence

from mmengine.config import Config

from convnext_dense.compat.errors import UserError
from convnext_dense.configs import CLASS_AGNOSTIC, walk
from convnext_dense.data.checks.configs import (
    SEGMENTATION_TYPES,
    _join,
    _type_name,
    annotation_steps,
    check_dataset,
    open_wrappers,
    read_classes,
)
from convnext_dense.data.checks.files import listed
from convnext_dense.data.checks.segmentation import IGNORED

POOLED_TO_ONE = ('UPerHead', 'PSPHead', 'ASPPHead', 'DepthwiseSeparableASPPHead', 'UPerHeadWithMask', 'EncHead')


def check_run(cfg: Config, splits: Sequence[str], num_processes: int = 1) -> list[str]:
    """Check the data of a run and whether its parts fit together.

    Args:
        cfg: The config of the run.
        splits: Those that the run reads: of 'train', 'val' and 'test'.
        num_processes: Over which a batch norm of several processes takes its statistics.

    Returns:
        Notes: what is allowed but worth a look.

    Raises:
        UserError: Something would stop the run, or spoil it in silence; the message has all that was found.
    """
    notes = [note for split in splits for note in check_split(cfg, split)]
    if errors := find_misfits(cfg, splits, num_processes):
        raise UserError('\n'.join(errors))
    return notes


def check_split(cfg: Config, split: str) -> list[str]:
    """Check the data of a split, and return notes on it.

    Raises:
        UserError: The data has errors.
    """
    loader = cfg.get(f'{split}_dataloader')
    return check_dataset(loader['dataset'], f'{split}_dataloader.dataset') if loader else []


def find_misfits(cfg: Config, splits: Sequence[str], num_processes: int = 1) -> list[str]:
    """Return what in a run does not fit together; the arguments are those of :func:`check_run`."""
    loaders = {split: cfg[f'{split}_dataloader'] for split in splits if cfg.get(f'{split}_dataloader')}
    return [error for rule in RULES for error in rule(cfg, loaders, num_processes)]


def _plain(loaders: Mapping[str, Mapping]) -> Iterator[tuple[str, Mapping]]:
    """Yield place and config of each dataset that reads files."""
    for split, loader in loaders.items():
        yield from open_wrappers(loader['dataset'], f'{split}_dataloader.dataset')


def _evaluator_files(cfg: Config, loaders: Mapping[str, Mapping], num_processes: int) -> Iterator[str]:
    """An evaluator compares with the annotations of the images that are predicted on."""
    for split in loaders:
        if split == 'train':
            continue
        given = cfg.get(f'{split}_evaluator')
        own = [_join(each, each['ann_file']) for _, each in _plain({split: loaders[split]}) if each.get('ann_file')]
        for evaluator in given if isinstance(given, list) else [given]:
            file = (evaluator or {}).get('ann_file')
            if not file or not own or '://' in file:  # the drawn data is written when it is first built
                continue
            key = f'{split}_evaluator.ann_file'
            if not os.path.isfile(file):
                yield f'{key} names {file}, which does not exist. Give the file of {split}_dataloader: {listed(own)}.'
            elif len(own) > 1:
                yield (
                    f'{split}_dataloader joins {len(own)} annotation files, whose image ids are not one numbering, and '
                    f'{key} is one file. Join them: `convnext-dense import-data FOLDER OUT` reads all of a folder.'
                )
            elif os.path.isfile(own[0]) and not os.path.samefile(file, own[0]):
                yield f'{key} names {file}, and {split}_dataloader reads {own[0]}. Give both the same file.'


def _same_classes(cfg: Config, loaders: Mapping[str, Mapping], num_processes: int) -> Iterator[str]:
    """The number of a class is its place in the list: all lists must agree in names and order."""
    lists = [(key, list(classes)) for key, each in _plain(loaders) if (classes := read_classes(each, key))]
    for key, classes in lists[1:]:
        first, expected = lists[0]
        if classes != expected:
            what = 'order' if sorted(classes) == sorted(expected) else 'names'
            yield (
                f'{key} and {first} have classes of other {what}: {listed(classes[:8])} and {listed(expected[:8])}. '
                'Labels would be exchanged: give all loaders one list. `convnext-dense import-data` writes annotation '
                'files whose categories stand in one order.'
            )


def _masks_for_heads(cfg: Config, loaders: Mapping[str, Mapping], num_processes: int) -> Iterator[str]:
    """A mask head learns from masks, which the pipeline must load."""
    head = (cfg.model.get('roi_head') or {}).get('mask_head')
    for key, dataset in _plain({'train': loaders['train']} if 'train' in loaders else {}):
        steps = annotation_steps(dataset)
        if head and steps and not any(step.get('with_mask') for step in steps):
            yield (
                f'The model has a mask head, and {key}.pipeline loads no masks. Write LoadAnnotations with '
                'with_mask=True, or set model.roi_head.mask_head=None (and mask_roi_extractor=None) for boxes alone.'
            )


def _zero_label(cfg: Config, loaders: Mapping[str, Mapping], num_processes: int) -> Iterator[str]:
    """Dataset and pipeline must agree whether 0 is a class."""
    for key, dataset in _plain(loaders):
        kind = SEGMENTATION_TYPES.get(_type_name(dataset))
        own = dataset.get('reduce_zero_label', kind.reduce_zero_label if kind else False)
        for step in annotation_steps(dataset):
            if kind and step.get('reduce_zero_label') not in (None, own):
                yield (
                    f'{key} has reduce_zero_label={own}, and LoadAnnotations in its pipeline '
                    f'{step["reduce_zero_label"]}. Set it in the dataset alone: True where 0 means unlabelled.'
                )


def _ignored_value(cfg: Config, loaders: Mapping[str, Mapping], num_processes: int) -> Iterator[str]:
    """The value for unlabelled pixels is that of the dataset, of the losses and of the metric."""
    wanted = {
        each.get('ignore_index', IGNORED) for key, each in _plain(loaders) if _type_name(each) in SEGMENTATION_TYPES
    }
    if wanted in (set(), {IGNORED}):
        return
    parts = {f'model.{name}': head for name, head in cfg.model.items() if name.endswith('head') and head}
    parts |= {f'{split}_evaluator': cfg.get(f'{split}_evaluator') for split in loaders if split != 'train'}
    others = [
        key
        for key, part in parts.items()
        if isinstance(part, Mapping) and part.get('ignore_index', IGNORED) not in wanted
    ]
    if others:
        values = listed(sorted(wanted))
        yield (
            f'The datasets have ignore_index={values}, and {listed(others)} another. Set ignore_index={values} there.'
        )


def _labels_for_the_pipeline(cfg: Config, loaders: Mapping[str, Mapping], num_processes: int) -> Iterator[str]:
    """A pipeline that loads label maps needs their folder."""
    for key, dataset in _plain(loaders):
        prefixes = dataset.get('data_prefix', {'seg_map_path': ''})
        is_labelled = prefixes.get('seg_map_path') is not None
        if _type_name(dataset) in SEGMENTATION_TYPES and annotation_steps(dataset) and not is_labelled:
            evaluator = key.replace('dataloader.dataset', 'evaluator')
            yield (
                f'{key}.data_prefix names no seg_map_path, and its pipeline loads label maps. Name their folder; to '
                f'predict without labels, take LoadAnnotations out of the pipeline and set {evaluator}='
                'dict(type="IoUMetric", format_only=True, output_dir="predictions").'
            )


def _class_weights(cfg: Config, loaders: Mapping[str, Mapping], num_processes: int) -> Iterator[str]:
    """A loss has a weight for each class, and detectors' may have one more for the background."""
    for head in walk(cfg.model, CLASS_AGNOSTIC):
        losses = {key: loss for key, loss in head.items() if isinstance(loss, Mapping) and 'class_weight' in loss}
        for key, loss in losses.items():
            weights, count = loss['class_weight'], head.get('num_classes')
            if isinstance(weights, (list, tuple)) and count and len(weights) - count not in (0, 1):
                yield (
                    f'{_type_name(head)}.{key}.class_weight has {len(weights)} weights, and the head {count} classes. '
                    'Give a weight for each class.'
                )


def _one_class(cfg: Config, loaders: Mapping[str, Mapping], num_processes: int) -> Iterator[str]:
    """A softmax over one class is always 1, and its loss 0."""
    for name, head in cfg.model.items():
        if name not in ('decode_head', 'auxiliary_head') or not isinstance(head, Mapping):
            continue
        is_softmax = not (head.get('loss_decode') or {}).get('use_sigmoid') and head.get('out_channels') != 1
        if head.get('num_classes') == 1 and is_softmax:
            yield (
                f'model.{name} has one class: a softmax over it is always 1, and nothing is learned. Name the '
                "background too: classes=('background', ...), with 0 for it in the label maps and "
                'reduce_zero_label=False.'
            )


def _batch_of_one(cfg: Config, loaders: Mapping[str, Mapping], num_processes: int) -> Iterator[str]:
    """Batch norm needs several values, and a map that is pooled to 1x1 has one for each image."""
    if 'train' not in loaders or loaders['train'].get('batch_size', 1) > 1:
        return
    for head in walk(cfg.model, CLASS_AGNOSTIC):
        norm = (head.get('norm_cfg') or {}).get('type')
        if _type_name(head) in POOLED_TO_ONE and (norm == 'BN' or (norm == 'SyncBN' and num_processes == 1)):
            yield (
                f'train_dataloader.batch_size is 1, and {_type_name(head)} pools to 1x1 pixels before a batch norm, '
                "which needs several images. Set batch_size=2 or more, or norm_cfg=dict(type='GN', num_groups=32)."
            )
            return


RULES: tuple[Callable[..., Iterator[str]], ...] = (
    _evaluator_files,
    _same_classes,
    _masks_for_heads,
    _zero_label,
    _ignored_value,
    _labels_for_the_pipeline,
    _class_weights,
    _one_class,
    _batch_of_one,
)
