"""MMEngine's way of loading a checkpoint into a model, for models with our backbone: through :func:`load_weights`.

``load_from``, ``--resume``, tests and the inferencers of MMDetection and MMSegmentation all end in one function of
MMEngine's, and ``init_cfg`` in another; both skip whatever does not fit. In: a model and what a file holds. Out: the
model with its weights, and a report in the log. Models without our backbone are loaded as ever.
"""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from types import ModuleType
from typing import Any

import numpy as np
from mmengine.logging import MMLogger
from mmengine.runner import BaseLoop, Runner
from torch import nn

from convnext_dense.backbone import ConvNeXt
from convnext_dense.compat import Patch, add_patch, replace_function
from convnext_dense.compat.errors import UserError
from convnext_dense.weights.loading import find_places, load_weights
from convnext_dense.weights.reading import find_state_dict, other_weights
from convnext_dense.weights.report import Report
from convnext_dense.weights.sources import Checkpoint, load_with_source

INIT_OPTIONS = ('strict', 'final_norm')  # of init_cfg, besides MMEngine's own
_to_train = ContextVar('a runner loads weights to train them', default=False)


def load_loudly(module: ModuleType) -> None:
    """Mend ``mmengine.runner.checkpoint``: sources are explained, and a model with our backbone is loaded by us."""
    upstream_load = module._load_checkpoint_to_model
    module.CheckpointLoader.load_checkpoint = classmethod(load_with_source)

    @functools.wraps(upstream_load)
    def load_checkpoint_to_model(
        model: nn.Module,
        checkpoint: Mapping,
        strict: bool = False,
        logger: Any = None,
        revise_keys: Sequence[tuple[str, str | Callable]] = ((r'^module\.', ''),),
    ) -> Mapping:
        if not has_our_backbone(model):
            return upstream_load(model, checkpoint, strict, logger, list(revise_keys))
        revised = revise(checkpoint, revise_keys)
        show_report(load_weights(model, revised, need='all' if strict else 'backbone'), model)
        if isinstance(checkpoint, Checkpoint):  # and not a caller's own state dict
            complete_meta(checkpoint)
        return checkpoint

    replace_function(module, '_load_checkpoint_to_model', load_checkpoint_to_model)


def show_report(report: Report, model: nn.Module) -> None:
    """Log what was loaded; as a warning where heads start from scratch and no training follows."""
    heads = [key for key in report.from_scratch if not key.startswith(tuple(find_places(model)))]
    if heads and not _to_train.get():
        warning = f'  heads         {len(heads)} weights are random, for training only: what they predict means nothing'
        MMLogger.get_current_instance().warning(f'{report}\n{warning}')
    else:
        MMLogger.get_current_instance().info(str(report))


def is_to_train(runner: Runner) -> bool:
    """Tell whether a runner loads weights to start a training from them, which MMEngine builds its loop for first."""
    return isinstance(runner._train_loop, BaseLoop) and not runner._resume


def note_training(module: ModuleType) -> None:
    """Mend ``mmengine.runner.runner``: while a runner loads weights to train them, heads may start from scratch."""
    upstream_load = module.Runner.load_checkpoint

    @functools.wraps(upstream_load)
    def load_checkpoint(self: Any, *args: Any, **options: Any) -> Any:
        token = _to_train.set(is_to_train(self))
        try:
            return upstream_load(self, *args, **options)
        finally:
            _to_train.reset(token)

    module.Runner.load_checkpoint = load_checkpoint


def initialize_loudly(module: ModuleType) -> None:
    """Mend ``mmengine.model.weight_init``: ``init_cfg`` of type 'Pretrained' loads a model with our backbone by us.

    There it also takes ``strict`` and ``final_norm``, as :func:`load_weights` does.
    """
    upstream_init, upstream_call = module.PretrainedInit.__init__, module.PretrainedInit.__call__

    @functools.wraps(upstream_init)
    def init(
        self: Any, checkpoint: str = '', prefix: str | None = None, map_location: Any = 'cpu', **options: Any
    ) -> None:
        upstream_init(self, checkpoint, prefix, map_location)
        self.options = options

    @functools.wraps(upstream_call)
    def call(self: Any, part: nn.Module) -> None:
        is_ours = has_our_backbone(part)
        allowed = ('prefix', *(INIT_OPTIONS if is_ours else ()))
        if not self.checkpoint or self.options.keys() - set(allowed):
            given = [name for name in ('checkpoint', 'prefix') if getattr(self, name)]
            raise UserError(
                f'init_cfg of type Pretrained takes checkpoint, {", ".join(allowed)}; got '
                f'{", ".join([*given, *self.options]) or "nothing"}.'
            )
        if not is_ours:
            upstream_call(self, part)
            return
        MMLogger.get_current_instance().info(
            str(load_weights(part, self.checkpoint, prefix=self.prefix, **self.options))
        )
        if hasattr(part, '_params_init_info'):
            module.update_init_info(part, init_info=self._get_init_info())

    module.PretrainedInit.__init__, module.PretrainedInit.__call__ = init, call


def load_ema_too(module: ModuleType) -> None:
    """Mend ``mmengine.hooks.ema_hook``: the average of a model with our backbone starts from the same weights."""
    upstream_load = module.EMAHook.after_load_checkpoint

    @functools.wraps(upstream_load)
    def after_load_checkpoint(self: Any, runner: Any, checkpoint: Mapping) -> None:
        if runner._resume or not has_our_backbone(self.ema_model):
            upstream_load(self, runner, checkpoint)
        else:
            load_weights(self.ema_model.module, checkpoint)

    module.EMAHook.after_load_checkpoint = after_load_checkpoint


def has_our_backbone(model: nn.Module) -> bool:
    """Tell whether a model contains a backbone of this package."""
    return any(isinstance(part, ConvNeXt) for part in model.modules())


def revise(checkpoint: Mapping, patterns: Sequence[tuple[str, str | Callable]]) -> Checkpoint:
    """Return a checkpoint with its weights under the names that MMEngine's ``revise_keys`` gives them."""
    source, licence = getattr(checkpoint, 'source', 'the checkpoint'), getattr(checkpoint, 'licence', '')
    weights = Checkpoint(find_state_dict(checkpoint), source, licence)
    for pattern, replacement in patterns:
        items = [(re.sub(pattern, replacement, str(key)), weights.pop(key)) for key in [*weights]]
        weights.update(items)
    others = {key: checkpoint[key] for key in other_weights(checkpoint)}
    return Checkpoint({**others, 'state_dict': weights}, source, licence)


def complete_meta(checkpoint: Checkpoint) -> None:
    """Give a checkpoint the ``dataset_meta`` that MMDetection's and MMSegmentation's ``init_*`` functions read.

    The first versions wrote ``CLASSES`` and ``PALETTE``, and not always both; a bare state dict has neither.
    """
    if not isinstance(checkpoint.get('meta'), dict):
        checkpoint['meta'] = {}
    meta = checkpoint['meta']
    classes, palette = meta.get('CLASSES'), meta.get('PALETTE')
    if 'dataset_meta' in meta or classes is None:
        return
    if palette is None:  # MMSegmentation gives classes without colours the same random ones
        palette = np.random.RandomState(42).randint(0, 255, (len(classes), 3)).tolist()
    meta['dataset_meta'] = {'classes': tuple(classes), 'palette': palette}


add_patch(
    Patch(
        name='weights that do not fit',
        packages=('mmengine', 'mmengine-lite'),
        versions='',
        module='mmengine.runner.checkpoint',
        link='https://github.com/open-mmlab/mmdetection/issues/7799',
        why='what does not fit is skipped with a warning, and a backbone with other names stays random',
        apply=load_loudly,
    )
)
add_patch(
    Patch(
        name='initial weights that do not fit',
        packages=('mmengine', 'mmengine-lite'),
        versions='',
        module='mmengine.model.weight_init',
        link='https://github.com/open-mmlab/mmengine/blob/v0.10.7/mmengine/model/weight_init.py',
        why='init_cfg skips what does not fit as well: a backbone with other names, or below a prefix, stays random',
        apply=initialize_loudly,
    )
)
add_patch(
    Patch(
        name='heads that stay random',
        packages=('mmengine', 'mmengine-lite'),
        versions='',
        module='mmengine.runner.runner',
        link='https://github.com/open-mmlab/mmengine/blob/v0.10.7/mmengine/runner/runner.py',
        why='a file with a backbone alone is loaded in the same way to train, where that is meant, and to predict',
        apply=note_training,
    )
)
add_patch(
    Patch(
        name='average of weights that do not fit',
        packages=('mmengine', 'mmengine-lite'),
        versions='',
        module='mmengine.hooks.ema_hook',
        link='https://github.com/open-mmlab/mmengine/blob/v0.10.7/mmengine/hooks/ema_hook.py',
        why='the average of load_from with other names stays random, and without a state_dict it is a KeyError',
        apply=load_ema_too,
    )
)
