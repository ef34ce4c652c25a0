"""Read the config of a user or of a library, and ask its backbone which feature maps it returns.

A path in a config is a tuple of keys, and of indices into lists.
"""

import contextlib
import copy
import importlib
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path as File
from typing import NamedTuple

import torch
from mmengine.config import Config
from mmengine.registry import MODELS

from convnext_dense.compat.errors import UserError
from convnext_dense.configs import LIBRARIES, Path, dicts, dotted, load_config, require_library
from convnext_dense.variants import channels

SIDE = 256  # pixels of the image on which a backbone is run
STRIDES = (4, 8, 16, 32)  # of ConvNeXt's stages
MMPRETRAIN_CONVNEXT = 'mmpretrain.ConvNeXt'
ADVICE = 'Choose the config of the same method with a ResNet or a Swin Transformer.'


class Map(NamedTuple):
    """A map of the old backbone: its channels, its stride in pixels, and the new stage in its place, if it is used."""

    channels: int
    stride: int
    stage: int | None = None


def type_name(cfg: Mapping) -> str:
    """Return the name of a module's type, for which a config may hold the name or the class."""
    named = cfg.get('type')
    return named.__name__ if isinstance(named, type) else str(named)


@contextlib.contextmanager
def explain_failure(failure: str, advice: str = '') -> Iterator[None]:
    """Turn any error into a :class:`UserError` that begins with ``failure`` and ends with ``advice``."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # a model may be any, and code of the user's
        frame = traceback.extract_tb(error.__traceback__)[-1]
        what = str(error).rstrip('.') or f'{frame.line} ({File(frame.filename).name}, line {frame.lineno})'
        raise UserError(f'{failure}: {type(error).__name__}: {what}. {advice}'.rstrip()) from error


def read_config(file: File) -> Config:
    """Read the config of a detector or a segmentor, and import those of its modules that are installed.

    Modules that are not installed are left out, because the config with another backbone may not need them.
    """
    cfg = load_config(file, import_modules=False)
    if Config._is_lazy_import(str(file)):
        raise UserError(
            f'{file} is a config of the pure Python style, which other configs cannot inherit by `_base_`. Give the '
            'text config of the same model.'
        )
    for module in imported_modules(cfg):
        with explain_failure(f'The config {file} imports {module}, which fails'), contextlib.suppress(ImportError):
            importlib.import_module(module)
    require_library(cfg.get('default_scope'))
    if cfg.get('default_scope') not in LIBRARIES or not isinstance(cfg.get('model'), dict):
        raise UserError(
            f'{file} is not a config of a detector or a segmentor: it needs a model, and default_scope mmdet or mmseg.'
        )
    return cfg


def imported_modules(cfg: Config) -> list[str]:
    """Return the modules that a config imports."""
    given = (cfg.get('custom_imports') or {}).get('imports') or []
    return [given] if isinstance(given, str) else list(given)


def find_owner(model: Mapping) -> Path:
    """Return the path of the model that owns the backbone: the whole model, or a detector inside a wrapper."""
    found = [
        path
        for path, node in dicts(model, ('model',))
        if isinstance(node.get('backbone'), Mapping) and 'type' in node['backbone'] and 'backbone' not in path
    ]
    if len(found) == 1:
        return found[0]
    places = f'several backbones, in {", ".join(map(dotted, found))}' if found else 'no `backbone`'
    raise UserError(
        f'The config of {type_name(model)} has {places}. One can be exchanged; write other configs by hand, as the '
        'README shows.'
    )


def backbone_maps(cfg: Mapping) -> list[Map]:
    """Run a backbone on an empty image and return the feature maps that it gives."""
    name = type_name(cfg)
    with explain_failure(
        f'The backbone {name} does not run, so the maps that neck and heads expect are unknown',
        'Install what it needs, or swap the backbone of another config.',
    ):
        if name == MMPRETRAIN_CONVNEXT and isinstance(cfg.get('arch', ''), str):  # MMPretrain need not be installed
            widths, stages = channels(cfg.get('arch', 'tiny')), cfg.get('out_indices', -1)
            return [Map(widths[stage], STRIDES[stage]) for stage in ([stages] if isinstance(stages, int) else stages)]
        with torch.no_grad():
            backbone = MODELS.build(copy.deepcopy(cfg))
            backbone.eval()  # not chained: some backbones of the libraries return nothing here
            outputs = backbone(torch.zeros(1, 3, SIDE, SIDE))
    outputs = [outputs] if isinstance(outputs, torch.Tensor) else outputs
    if not all(isinstance(output, torch.Tensor) for output in outputs):
        raise UserError(f'{name} gives more than feature maps, and its heads need it. {ADVICE}')
    return [Map(output.shape[1], SIDE // output.shape[-1]) for output in outputs]


def stages_for(maps: Sequence[Map], name: str) -> tuple[int, ...]:
    """Return the ConvNeXt stages whose maps can take the place of those of the backbone ``name``.

    The last maps of a dilated backbone share a stride; ConvNeXt's last stages take their place.
    """
    widths, strides = [each.channels for each in maps], [each.stride for each in maps]
    if strides == sorted(set(strides)) and set(strides) <= set(STRIDES):
        return tuple(map(STRIDES.index, strides))
    is_dilated = strides == sorted(strides) and STRIDES[0] <= strides[0] and strides[-1] <= STRIDES[-1]
    if is_dilated and len(maps) <= len(STRIDES) and widths == sorted(set(widths)):
        return tuple(range(len(STRIDES)))[-len(maps) :]
    raise UserError(
        f'{name} gives maps of {", ".join(map(str, widths))} channels at strides {", ".join(map(str, strides))}; '
        f"ConvNeXt's maps have the strides {', '.join(map(str, STRIDES))}, one each. {ADVICE}"
    )
