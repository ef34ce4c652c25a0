"""Read the config of a user or of a library, and ask its backbone which feature maps it returns."""

import copy
import difflib
import importlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path as File
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from mmengine.registry import MODELS

from convnext_dense.compat.errors import UserError
from convnext_dense.configs import LIBRARIES, config_folder, require_library
from convnext_dense.swap.changes import Path, dotted, type_name
from convnext_dense.variants import VARIANTS, channels

SIDE = 256  # pixels of the image on which a backbone is run
STRIDES = (4, 8, 16, 32)  # of ConvNeXt's stages
MMPRETRAIN_CONVNEXT = 'mmpretrain.ConvNeXt'
ADVICE = 'Choose the config of the same method with a ResNet or a Swin Transformer.'


class Map(NamedTuple):
    """A feature map: its channels, and its stride in pixels of the image."""

    channels: int
    stride: int


def find_config(name: str) -> tuple[str, File]:
    """Return what another config writes as its ``_base_`` to inherit a config, and the config's file.

    Args:
        name: A file; ``mmdet::FOLDER/NAME.py`` or ``mmseg::FOLDER/NAME.py``; or FOLDER/NAME.py of either library.

    Raises:
        UserError: There is no such file.
    """
    if File(name).is_file():
        return name, File(name)
    package, separator, inner = name.rpartition('::')
    asked = [package] if separator else LIBRARIES
    roots = {each: root for each in LIBRARIES if each in asked and (root := config_folder(each))}
    for each, root in roots.items():
        if (root / inner).is_file():
            return f'{each}::{inner}', root / inner
    known = [file.relative_to(root).as_posix() for root in roots.values() for file in root.glob('*/*.py')]
    near = difflib.get_close_matches(inner, known, cutoff=0.5)
    hint = f' Did you mean {" or ".join(near)}?' if near else ''
    raise UserError(
        f'There is no config {name}. Give a file, or a config that MMDetection or MMSegmentation is installed with, '
        f'such as mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py.{hint}'
    )


def read_config(file: File) -> Config:
    """Read the config of a detector or a segmentor, and import those of its modules that are installed.

    Modules that are not installed are left out, because the config with another backbone may not need them.

    Raises:
        UserError: The config cannot be read, is written in MMEngine's pure Python style, or has no model.
    """
    try:
        is_pure_python = Config._is_lazy_import(str(file))
        cfg = Config.fromfile(file, import_custom_modules=False)
    except Exception as error:  # a config is code: anything may go wrong in it
        raise UserError(f'The config {file} cannot be read: {type(error).__name__}: {error}') from error
    if is_pure_python:
        raise UserError(
            f'{file} is a config of the pure Python style, which other configs cannot inherit by `_base_`. Give the '
            'text config of the same model.'
        )
    for module in imported_modules(cfg):
        try:
            importlib.import_module(module)
        except ImportError:
            pass
        except Exception as error:  # the module may be code of the user's
            raise UserError(
                f'The config {file} imports {module}, which fails: {type(error).__name__}: {error}'
            ) from error
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
    """Return the path of the model that owns the backbone: the whole model, or a detector inside a wrapper.

    Raises:
        UserError: No model has a backbone, or several have one.
    """
    found = list(backbone_owners(model, ('model',)))
    if len(found) == 1:
        return found[0]
    if not found:
        raise UserError(f'{type_name(model)} has no `backbone` in its config: there is nothing to exchange.')
    raise UserError(
        f'{type_name(model)} has several backbones, in {", ".join(map(dotted, found))}: exchange them by hand, as the '
        'README shows.'
    )


def backbone_owners(node: Any, path: Path) -> Iterator[Path]:
    """Yield the paths of all dicts that have a backbone."""
    children: list[tuple] = list(enumerate(node)) if isinstance(node, (list, tuple)) else []
    if isinstance(node, Mapping):
        children = [(key, child) for key, child in node.items() if key != 'backbone']
        if isinstance(node.get('backbone'), Mapping) and 'type' in node['backbone']:
            yield path
    for key, child in children:
        yield from backbone_owners(child, (*path, key))


def backbone_maps(cfg: Mapping) -> list[Map]:
    """Run a backbone on an empty image and return the feature maps that it gives.

    Raises:
        UserError: The backbone cannot be built or run, or returns more than feature maps.
    """
    if type_name(cfg) == MMPRETRAIN_CONVNEXT and cfg.get('arch', 'tiny') in VARIANTS:
        return mmpretrain_maps(cfg)
    try:
        with torch.no_grad():
            backbone = MODELS.build(copy.deepcopy(cfg))
            backbone.eval()  # not chained: some backbones of the libraries return nothing here
            outputs = backbone(torch.zeros(1, 3, SIDE, SIDE))
    except Exception as error:  # the backbone may be code of the user's
        raise UserError(
            f'The backbone {type_name(cfg)} does not run ({type(error).__name__}: {error}), so the maps that the neck '
            'and the heads expect are unknown. Install what it needs, or swap the backbone of another config.'
        ) from error
    outputs = [outputs] if isinstance(outputs, torch.Tensor) else outputs
    if not all(isinstance(output, torch.Tensor) for output in outputs):
        raise UserError(f'{type_name(cfg)} gives more than feature maps, and its heads need it. {ADVICE}')
    return [Map(output.shape[1], SIDE // output.shape[-1]) for output in outputs]


def mmpretrain_maps(cfg: Mapping) -> list[Map]:
    """Return the maps of MMPretrain's ConvNeXt from its config, so that MMPretrain need not be installed."""
    widths, stages = channels(cfg.get('arch', 'tiny')), cfg.get('out_indices', -1)
    return [Map(widths[stage], STRIDES[stage]) for stage in ([stages] if isinstance(stages, int) else stages)]


def stages_for(maps: Sequence[Map], name: str) -> tuple[int, ...]:
    """Return the ConvNeXt stages whose maps can take the place of ``maps``.

    The last maps of a dilated backbone share a stride; ConvNeXt's last stages take their place. ``name`` is the old
    backbone's type, for the message.

    Raises:
        UserError: The maps are not a pyramid like ConvNeXt's.

    >>> stages_for([Map(512, 8), Map(1024, 16), Map(2048, 32)], 'ResNet')
    (1, 2, 3)
    >>> stages_for([Map(256, 4), Map(512, 8), Map(1024, 8), Map(2048, 8)], 'ResNet')
    (0, 1, 2, 3)
    """
    strides = [stride for _, stride in maps]
    if strides == sorted(set(strides)) and set(strides) <= set(STRIDES):
        return tuple(STRIDES.index(stride) for stride in strides)
    widths = [width for width, _ in maps]
    is_dilated = strides == sorted(strides) and strides[-1] <= STRIDES[-1] and strides[0] >= STRIDES[0]
    if is_dilated and len(maps) <= len(STRIDES) and widths == sorted(set(widths)):
        return tuple(range(len(STRIDES) - len(maps), len(STRIDES)))
    raise UserError(
        f'{name} gives maps of {", ".join(map(str, widths))} channels at strides {", ".join(map(str, strides))}; '
        f"ConvNeXt's maps have the strides {', '.join(map(str, STRIDES))}, one each. {ADVICE}"
    )
