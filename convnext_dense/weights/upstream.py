"""MMEngine's way of loading a checkpoint into a model, for models with our backbone: through :func:`load_weights`.

``load_from``, ``--resume``, tests and the inferencers of MMDetection and MMSegmentation all end in one function of
MMEngine's, which skips whatever does not fit. In: a model and what a file holds. Out: the model with its weights, and
a report in the log.
"""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

from torch import nn

from convnext_dense.backbone import ConvNeXt
from convnext_dense.console import show_table
from convnext_dense.stack import Patch, add_patch, replace_function
from convnext_dense.weights.loading import load_weights
from convnext_dense.weights.sources import Checkpoint


def load_loudly(module: ModuleType) -> None:
    """Replace ``mmengine.runner.checkpoint._load_checkpoint_to_model`` for models that contain our backbone."""
    upstream_load = module._load_checkpoint_to_model
    read_scheme = module.CheckpointLoader.load_checkpoint.__func__

    def load_checkpoint(cls: type, filename: str, *args: Any, **options: Any) -> Any:
        content = read_scheme(cls, filename, *args, **options)
        is_plain = isinstance(content, dict) and not isinstance(content, Checkpoint)
        return Checkpoint(content, str(filename)) if is_plain else content

    module.CheckpointLoader.load_checkpoint = classmethod(load_checkpoint)

    @functools.wraps(upstream_load)
    def load_checkpoint_to_model(
        model: nn.Module,
        checkpoint: Mapping,
        strict: bool = False,
        logger: Any = None,
        revise_keys: Sequence[tuple[str, str | Callable]] = ((r'^module\.', ''),),
    ) -> Mapping:
        if not any(isinstance(part, ConvNeXt) for part in model.modules()):
            return upstream_load(model, checkpoint, strict, logger, list(revise_keys))
        source = getattr(checkpoint, 'source', 'the checkpoint')
        state_dict = checkpoint.get('state_dict', checkpoint)
        metadata = getattr(state_dict, '_metadata', None)
        for pattern, replacement in revise_keys:
            state_dict = {re.sub(pattern, replacement, str(key)): value for key, value in state_dict.items()}
        revised = Checkpoint(state_dict, source, getattr(checkpoint, 'licence', ''))
        revised._metadata = metadata
        show_table(str(load_weights(model, revised, need='all' if strict else 'backbone')))
        complete_meta(checkpoint)
        return checkpoint

    replace_function(module, '_load_checkpoint_to_model', load_checkpoint_to_model)


def complete_meta(checkpoint: Mapping) -> None:
    """Give a checkpoint the ``dataset_meta`` that MMDetection's and MMSegmentation's ``init_*`` functions read.

    The first versions wrote ``CLASSES`` and ``PALETTE``, and not always both; a bare state dict has neither.
    """
    meta = checkpoint.setdefault('meta', {})
    if 'dataset_meta' not in meta and meta.get('CLASSES'):
        meta['dataset_meta'] = {'classes': tuple(meta['CLASSES'])}
        if meta.get('PALETTE'):
            meta['dataset_meta']['palette'] = meta['PALETTE']


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
