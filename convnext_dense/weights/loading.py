"""Weights -> backbone or whole model: a checkpoint goes in, a report or an error that says why it cannot fit comes out.

Nothing is loaded in part in silence: upstream's loaders skip what does not fit and leave the backbone random.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.error import URLError

import torch
from mmengine.logging import print_log
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor, nn

from convnext_dense.errors import UserError
from convnext_dense.variants import VARIANTS
from convnext_dense.weights.formats import detect_format, to_backbone


@dataclass(frozen=True)
class Report:
    """What became of a checkpoint's entries."""

    source: str
    format: str
    loaded: tuple[str, ...]
    left_out: tuple[str, ...]
    from_scratch: tuple[str, ...]

    def __str__(self) -> str:
        text = f'Loaded {len(self.loaded)} backbone weights ({self.format}) from {self.source}'
        if self.left_out:
            text += f'; left out: {shorten(self.left_out)}'
        if self.from_scratch:
            text += f'; trained from scratch: {shorten(self.from_scratch)}'
        return text


def load_backbone(backbone: nn.Module, source: str, prefix: str | None = None) -> Report:
    """Load a checkpoint of any known format into a :class:`~convnext_dense.backbone.ConvNeXt`.

    Args:
        backbone: The ConvNeXt; its output norms may be absent from the file, all else must be there.
        source: Anything that MMEngine's loader reads: a path, a URL, ``torchvision://...``.
        prefix: Where the backbone sits in the file, e.g. ``'backbone.'``; found by itself where not given.

    Raises:
        UserError: The file is not a ConvNeXt, or one of another size or version.
    """
    state_dict = unwrap(read(source))
    if prefix:
        state_dict = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
    found = detect_format(state_dict)
    if found is None:
        raise UserError(
            f'{source} holds no ConvNeXt weights in a known format; its first keys are {shorten(state_dict)}. '
            'Give a ConvNeXt checkpoint of facebookresearch or timm, or one trained here.'
        )
    fmt, found_prefix = found
    ours, left_out, unknown = to_backbone(state_dict, fmt, found_prefix)
    target = backbone.state_dict()
    ours = {key: match_shape(value, target.get(key)) for key, value in ours.items()}
    built_stages = len(backbone.stages)
    not_built = [key for key in ours if key not in target and stage_of(key) >= built_stages]
    norms = [key for key in ours if key not in target and key.startswith('norm')]
    for key in (*not_built, *norms):
        left_out.append(key)
        del ours[key]
    from_scratch = [key for key in target if key not in ours and key.startswith('norm')]
    needed = {key: value for key, value in target.items() if key not in from_scratch}
    if misfit := describe_misfit(ours, needed, unknown):
        raise UserError(f'{source} does not fit the backbone. {likely_cause(ours, target)} {misfit}')
    backbone.load_state_dict(ours, strict=False)
    return Report(source, fmt.name, tuple(ours), tuple(left_out), tuple(from_scratch))


def check_fit(model: nn.Module, state_dict: Mapping, source: str, only: str = '') -> None:
    """Raise unless the entries of ``state_dict`` are the model's own, key by key and shape by shape.

    Args:
        model: The whole detector or segmentor.
        state_dict: The checkpoint's weights.
        source: Where they came from, for the message.
        only: Check just the keys that begin so, e.g. ``'backbone.'``.

    Raises:
        UserError: Keys are missing, unexpected, or of another shape.
    """
    target = {key: value for key, value in model.state_dict().items() if key.startswith(only)}
    given = {key.removeprefix('module.'): value for key, value in state_dict.items()}
    given = {key: value for key, value in given.items() if key.startswith(only)}
    if misfit := describe_misfit(given, target):
        part = f'the {only.rstrip(".")} of the model' if only else 'the model'
        backbones = ({k.removeprefix('backbone.'): v for k, v in side.items()} for side in (given, target))
        raise UserError(
            f'The checkpoint {source} does not fit {part} in the config. {likely_cause(*backbones)} {misfit}'
        )


def read(source: str) -> Mapping:
    """Return what a checkpoint file or URL holds.

    Raises:
        UserError: It cannot be fetched.
    """
    try:
        return CheckpointLoader.load_checkpoint(source, map_location='cpu', logger='silent')
    except URLError as error:
        raise UserError(
            f'{source} cannot be downloaded ({error.reason}). Download it elsewhere and give its path with '
            '--cfg-options model.backbone.init_cfg.checkpoint=FILE, or start from scratch with '
            'model.backbone.init_cfg=None.'
        ) from error


def unwrap(checkpoint: Mapping) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint, out of the ``state_dict`` or ``model`` entry that may hold them."""
    for key in ('state_dict', 'model'):
        if isinstance(checkpoint.get(key), Mapping):
            checkpoint = checkpoint[key]
    return {key: value for key, value in checkpoint.items() if isinstance(value, Tensor)}


def match_shape(value: Tensor, target: Tensor | None) -> Tensor:
    """Reshape weights that differ from the target in dimensions of size 1 alone (GRN, 1x1 convolutions)."""
    if target is None or value.shape == target.shape:
        return value
    squeezed = [size for size in value.shape if size != 1]
    return value.reshape(target.shape) if squeezed == [size for size in target.shape if size != 1] else value


def stage_of(key: str) -> int:
    """Return the stage that a ``downsample_layers.S.*`` or ``stages.S.*`` key belongs to; -1 for other keys."""
    parts = key.split('.')
    return int(parts[1]) if parts[0] in ('downsample_layers', 'stages') else -1


def likely_cause(given: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> str:
    """Say which ConvNeXt the two sides are, where that tells them apart."""
    ours, theirs = describe_architecture(target), describe_architecture(given)
    if theirs is None:
        return 'It holds no ConvNeXt.'
    if ours is None:
        return f'It is {theirs}, and the model has no ConvNeXt.'
    return f'It is {theirs}, the model is {ours}.' if ours != theirs else ''


def describe_architecture(state_dict: Mapping[str, Tensor]) -> str | None:
    """Name the ConvNeXt with these weights, e.g. 'ConvNeXt tiny'; None where there is none."""
    if 'downsample_layers.0.0.weight' not in state_dict:
        return None
    stages = range(4)
    blocks = {(stage_of(key), int(key.split('.')[2])) for key in state_dict if key.startswith('stages.')}
    depths = tuple(sum(stage == s for stage, _ in blocks) for s in stages)
    stems = [state_dict.get(f'stages.{s}.0.dwconv.weight') for s in stages]
    dims = tuple(0 if stem is None else stem.shape[0] for stem in stems)
    version = 'ConvNeXt V2' if any('.grn.' in key for key in state_dict) else 'ConvNeXt'
    names = [name for name, variant in VARIANTS.items() if variant == (depths, dims)]
    return f'{version} {names[0]}' if names else f'a {version} with depths {depths} and dims {dims}'


def describe_misfit(given: Mapping, target: Mapping, unknown: Iterable[str] = ()) -> str:
    """List the first few keys that are of another shape, missing, or unexpected; empty where all fit.

    Args:
        given: The file's weights under our names.
        target: The weights that the model needs.
        unknown: Further keys of the file, for which we have no name.
    """
    missing = [key for key in target if key not in given]
    misfits = [key for key in target if key in given and given[key].shape != target[key].shape]
    unknown = [*unknown, *(key for key in given if key not in target)]
    parts = []
    if misfits:
        first = misfits[0]
        parts.append(
            f'Of another shape ({len(misfits)}): {shorten(misfits)}; {first} is {tuple(given[first].shape)} in the '
            f'file and {tuple(target[first].shape)} in the model.'
        )
    if missing:
        parts.append(f'Missing from the file ({len(missing)}): {shorten(missing)}.')
    if unknown:
        parts.append(f'Only in the file ({len(unknown)}): {shorten(unknown)}.')
    return ' '.join(parts)


def shorten(keys, most: int = 4) -> str:
    """Join the first few keys.

    >>> shorten(['a', 'b', 'c'], most=2)
    'a, b, ... (3)'
    """
    keys = list(keys)
    return ', '.join(keys[:most]) + (f', ... ({len(keys)})' if len(keys) > most else '')


def load_pretrained(backbone: nn.Module, init_cfg: Mapping) -> None:
    """Carry out an ``init_cfg`` of type 'Pretrained' for a backbone and log the report."""
    with torch.no_grad():
        report = load_backbone(backbone, init_cfg['checkpoint'], init_cfg.get('prefix'))
    print_log(str(report), logger='current')
