"""MMEngine's way of loading a checkpoint into a model, for models with our backbone: through :func:`load_weights`.

``load_from``, ``--resume``, tests and the inferencers of MMDetection and MMSegmentation all end in one function of
MMEngine's, which skips whatever does not fit. In: a model and what a file holds. Out: the model with its weights, and
a report in the log. Models without our backbone are loaded as ever.
"""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
from torch import nn

from convnext_dense.backbone import ConvNeXt
from convnext_dense.console import show_table
from convnext_dense.stack import Patch, add_patch, replace_function
from convnext_dense.weights.loading import load_weights
from convnext_dense.weights.reading import find_state_dict
from convnext_dense.weights.sources import Checkpoint, load_with_source


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
        show_table(str(load_weights(model, revised, need='all' if strict else 'backbone')))
        if isinstance(checkpoint, Checkpoint):  # and not a caller's own state dict
            complete_meta(checkpoint)
        return checkpoint

    replace_function(module, '_load_checkpoint_to_model', load_checkpoint_to_model)


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
    """Return a checkpoint's weights under the names that MMEngine's ``revise_keys`` gives them."""
    state_dict = find_state_dict(checkpoint)
    revised = Checkpoint(
        state_dict, getattr(checkpoint, 'source', 'the checkpoint'), getattr(checkpoint, 'licence', '')
    )
    for pattern, replacement in patterns:
        items = [(re.sub(pattern, replacement, str(key)), revised.pop(key)) for key in [*revised]]
        revised.update(items)
    return revised


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
        name='average of weights that do not fit',
        packages=('mmengine', 'mmengine-lite'),
        versions='',
        module='mmengine.hooks.ema_hook',
        link='https://github.com/open-mmlab/mmengine/blob/v0.10.7/mmengine/hooks/ema_hook.py',
        why='the average of load_from with other names stays random, and without a state_dict it is a KeyError',
        apply=load_ema_too,
    )
)
