"""MMEngine's ways to load a checkpoint, for models with a backbone of this package: through :func:`load_weights`.

``load_from``, ``--resume``, tests and the inferencers of MMDetection and MMSegmentation end in one function of
MMEngine's and ``init_cfg`` in another; both skip what does not fit. Models without our backbone are loaded as ever.
"""

import contextlib
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from types import ModuleType
from typing import Any

import numpy as np
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop, Runner
from torch import nn

from convnext_dense.compat import MMENGINE_CODE, Patch, add_patch, replace_function
from convnext_dense.compat.errors import UserError, shorten
from convnext_dense.weights.identify import check_single, find_state_dict, other_weights
from convnext_dense.weights.load import find_places, fit, load_weights
from convnext_dense.weights.meta import read_dataset
from convnext_dense.weights.report import Report
from convnext_dense.weights.sources import Checkpoint, as_checkpoint, fetch

INIT_OPTIONS = ('strict', 'final_norm')  # of init_cfg, besides MMEngine's own
_purpose = ContextVar('purpose', default='')  # of loading a model with our backbone, 'use' or 'training'; '' for others


def load_loudly(module: ModuleType) -> None:
    """Mend ``mmengine.runner.checkpoint``: a model with our backbone is loaded by us, and its source is explained."""
    read, load, fill = module._load_checkpoint, module.load_checkpoint, module._load_checkpoint_to_model

    @functools.wraps(read)
    def read_source(filename: str, map_location: Any = None, logger: Any = None) -> Any:
        if _purpose.get():
            return fetch(filename, map_location)
        content = read(filename, map_location, logger)
        # The inferencers read a file before they have a model, which may be one of ours.
        return as_checkpoint(content, str(filename)) if isinstance(content, Mapping) else content

    @functools.wraps(load)
    def load_checkpoint(model: nn.Module, *args: Any, **options: Any) -> Any:
        with noted('use' if has_our_backbone(model) else ''):
            return load(model, *args, **options)

    @functools.wraps(fill)
    def load_checkpoint_to_model(
        model: nn.Module,
        checkpoint: Mapping,
        strict: bool = False,
        logger: Any = None,
        revise_keys: Sequence[tuple[str, str | Callable]] = ((r'^module\.', ''),),
    ) -> Mapping:
        if not has_our_backbone(model):
            return fill(model, checkpoint, strict, logger, list(revise_keys))
        revised = revise(checkpoint, revise_keys)
        show_report(load_weights(model, revised, need='all' if strict else 'backbone'), model)
        if isinstance(checkpoint, Checkpoint):  # and not a caller's own state dict
            complete_meta(checkpoint)
        return checkpoint

    replace_function(module, '_load_checkpoint', read_source)
    replace_function(module, 'load_checkpoint', load_checkpoint)
    replace_function(module, '_load_checkpoint_to_model', load_checkpoint_to_model)


def note_training(module: ModuleType) -> None:
    """Mend ``mmengine.runner.runner``: while a runner loads weights to train them, heads may start from scratch."""
    load = module.Runner.load_checkpoint

    @functools.wraps(load)
    def load_checkpoint(self: Runner, *args: Any, **options: Any) -> Any:
        purpose = 'training' if is_to_train(self) else 'use'
        with noted(purpose if has_our_backbone(self.model) else ''):
            return load(self, *args, **options)

    module.Runner.load_checkpoint = load_checkpoint


def initialize_loudly(module: ModuleType) -> None:
    """Mend ``mmengine.model.weight_init``: ``init_cfg`` of type 'Pretrained' loads a model with our backbone by us.

    There it also takes ``strict`` and ``final_norm``, as :func:`load_weights` does.
    """
    initialize, call = module.PretrainedInit.__init__, module.PretrainedInit.__call__

    @functools.wraps(initialize)
    def note_options(
        self: Any, checkpoint: str = '', prefix: str | None = None, map_location: Any = 'cpu', **options: Any
    ) -> None:
        initialize(self, checkpoint, prefix, map_location)
        self.options = options

    @functools.wraps(call)
    def load_part(self: Any, part: nn.Module) -> None:
        is_ours = has_our_backbone(part)
        allowed = ('prefix', *(INIT_OPTIONS if is_ours else ()))
        if not self.checkpoint or self.options.keys() - set(allowed):
            given = [name for name in ('checkpoint', 'prefix') if getattr(self, name)]
            raise UserError(
                f'init_cfg of type Pretrained takes checkpoint, {", ".join(allowed)}; got '
                f'{", ".join([*given, *self.options]) or "nothing"}.'
            )
        if not is_ours:
            call(self, part)
            return
        report = load_weights(part, self.checkpoint, prefix=self.prefix, **self.options)
        MMLogger.get_current_instance().info(str(report))
        if hasattr(part, '_params_init_info'):
            module.update_init_info(part, init_info=self._get_init_info())

    module.PretrainedInit.__init__, module.PretrainedInit.__call__ = note_options, load_part


def load_ema_too(module: ModuleType) -> None:
    """Mend ``mmengine.hooks.ema_hook``: the average of a model with our backbone starts from the same weights."""
    load = module.EMAHook.after_load_checkpoint

    @functools.wraps(load)
    def after_load_checkpoint(self: Any, runner: Runner, checkpoint: Mapping) -> None:
        if runner._resume or not has_our_backbone(self.ema_model):
            load(self, runner, checkpoint)
        else:
            load_weights(self.ema_model.module, checkpoint)

    module.EMAHook.after_load_checkpoint = after_load_checkpoint


@HOOKS.register_module()
class CheckWeightsHook(Hook):
    """Refuse a checkpoint that does not fit the whole model to test it, or the whole run to resume it.

    To fine-tune from ``load_from`` it is enough that the backbone fits, which every loading checks.
    """

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Raise a UserError where keys or shapes differ; ``checkpoint`` is what the file holds."""
        meta = checkpoint.get('meta')
        is_run = 'message_hub' in checkpoint and isinstance(meta, dict) and {'epoch', 'iter'} <= meta.keys()
        if runner._resume and not is_run:  # which lacks what Runner.resume reads besides the weights
            source = as_checkpoint(checkpoint).source
            raise UserError(
                f'{source} holds weights alone, not the state of a run that could be resumed. Start from these weights '
                f'with --cfg-options load_from={source} instead of --resume.'
            )
        is_new = is_to_train(runner)
        if not is_new:
            fit(runner.model, checkpoint, need='all')
        check_classes(checkpoint, runner, is_new)


def check_classes(checkpoint: Mapping, runner: Runner, is_new: bool = False) -> None:
    """Raise a :class:`UserError` where the data has the checkpoint's number of classes, but others or another order.

    A class is its number in the model; labels would be exchanged in silence. A training that starts from the weights
    may be on other classes, but not on the same in another order.
    """
    trained = read_dataset(checkpoint.get('meta')).get('classes')
    for loop in (runner._train_loop, runner._val_loop, runner._test_loop):
        dataset = getattr(getattr(loop, 'dataloader', None), 'dataset', None)
        own = (getattr(dataset, 'metainfo', None) or {}).get('classes')
        if not trained or not own or len(own) != len(trained) or tuple(own) == tuple(trained):
            continue
        if not is_new or sorted(own) == sorted(trained):
            source = as_checkpoint(checkpoint).source
            raise UserError(
                f'{source} was trained on the classes {shorten(trained, 8)}, and the data has {shorten(own, 8)}. '
                f'Import the data with --classes {",".join(trained[:8])}{",..." * (len(trained) > 8)}, or give '
                "metainfo=dict(classes=...), in the checkpoint's names and order."
            )


@contextlib.contextmanager
def noted(purpose: str) -> Iterator[None]:
    """Note in a block what a model is loaded for."""
    token = _purpose.set(purpose)
    try:
        yield
    finally:
        _purpose.reset(token)


def has_our_backbone(model: nn.Module) -> bool:
    """Tell whether a model contains a backbone of this package."""
    return bool(find_places(model))


def is_to_train(runner: Runner) -> bool:
    """Tell whether a runner loads weights to start a training from them, which MMEngine builds its loop for first."""
    return isinstance(runner._train_loop, BaseLoop) and not runner._resume


def show_report(report: Report, model: nn.Module) -> None:
    """Log what was loaded; as a warning where heads start from scratch and no training follows."""
    heads = [key for key in report.from_scratch if not key.startswith(tuple(find_places(model)))]
    if heads and _purpose.get() != 'training':
        warning = f'  heads         {len(heads)} weights are random, for training only: what they predict means nothing'
        MMLogger.get_current_instance().warning(f'{report}\n{warning}')
    else:
        MMLogger.get_current_instance().info(str(report))


def revise(checkpoint: Mapping, patterns: Sequence[tuple[str, str | Callable]]) -> Checkpoint:
    """Return a checkpoint with its weights under the names that MMEngine's ``revise_keys`` gives them."""
    checkpoint = as_checkpoint(checkpoint)
    weights = Checkpoint(find_state_dict(checkpoint), checkpoint.source)  # a copy: the caller keeps the names
    for pattern, replacement in patterns:
        items = [(re.sub(pattern, replacement, str(key)), weights.pop(key)) for key in [*weights]]
        check_single([key for key, _ in items], checkpoint.source)
        weights.update(items)
    return Checkpoint({**other_weights(checkpoint), 'state_dict': weights}, checkpoint.source, checkpoint.licence)


def complete_meta(checkpoint: Checkpoint) -> None:
    """Give a checkpoint the ``dataset_meta`` that MMDetection's and MMSegmentation's ``init_*`` functions read.

    The first versions wrote ``CLASSES`` and ``PALETTE``, and not always both; a bare state dict has neither.
    """
    if not isinstance(checkpoint.get('meta'), dict):
        checkpoint['meta'] = {}
    meta = checkpoint['meta']
    dataset = read_dataset(meta)
    if 'dataset_meta' in meta or not dataset:
        return
    # MMSegmentation gives classes without colours the same random ones.
    dataset.setdefault('palette', np.random.RandomState(42).randint(0, 255, (len(dataset['classes']), 3)).tolist())
    meta['dataset_meta'] = dataset


for name, module, link, why, mend in (
    (
        'weights that do not fit',
        'mmengine.runner.checkpoint',
        'https://github.com/open-mmlab/mmdetection/issues/7799',
        'what does not fit is skipped with a warning, and a backbone with other names stays random',
        load_loudly,
    ),
    (
        'initial weights that do not fit',
        'mmengine.model.weight_init',
        MMENGINE_CODE + 'model/weight_init.py',
        'init_cfg skips what does not fit as well: a backbone with other names, or below a prefix, stays random',
        initialize_loudly,
    ),
    (
        'heads that stay random',
        'mmengine.runner.runner',
        MMENGINE_CODE + 'runner/runner.py',
        'a file with a backbone alone is loaded in the same way to train, where that is meant, and to predict',
        note_training,
    ),
    (
        'average of weights that do not fit',
        'mmengine.hooks.ema_hook',
        MMENGINE_CODE + 'hooks/ema_hook.py',
        'the average of load_from with other names stays random, and without a state_dict it is a KeyError',
        load_ema_too,
    ),
):
    add_patch(Patch(name, module, why, mend, link=link))
