"""What a test pipeline does to an image before the model takes it, as far as a graph and its runner can do it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from convnext_dense.compat.errors import UserError
from convnext_dense.predict.model import READS_LABELS

READS = ('LoadImageFromFile', 'LoadAnyImage')
PACKS = ('PackDetInputs', 'PackSegInputs')


class Steps(NamedTuple):
    """The steps between an image file and the model."""

    scale: tuple[int, int] | None = None  # (long side, short side) in pixels with keep_ratio, else (width, height)
    factor: tuple[float, float] = (1.0, 1.0)  # by which width and height grow, where there is no scale
    keep_ratio: bool = False  # the image keeps its proportions
    pad: tuple[int, int] | None = None  # (height, width) to which the image is padded at the right and below
    square: bool = False  # it is padded to a square
    pad_value: float = 0  # what is put there


def read_steps(pipeline: Sequence[Mapping[str, Any]]) -> Steps:
    """Return the steps of a test pipeline.

    Raises:
        UserError: There is a step that a graph and its runner cannot do.
    """
    steps = Steps()
    for given in pipeline:
        step = {key: value for key, value in given.items() if key != '_scope_'}
        name = step.pop('type').split('.')[-1]
        if name == 'Resize' and steps == Steps():
            steps = read_resize(step)
        elif name == 'Pad' and not (steps.pad or steps.square):
            steps = read_pad(step, steps)
        elif name not in (*READS, *PACKS, *READS_LABELS):
            raise refused(name, step)
    return steps


def read_resize(step: dict[str, Any]) -> Steps:
    """Return what ``Resize`` does."""
    scale, factor = step.pop('scale', None), step.pop('scale_factor', 1.0)
    keep_ratio = step.pop('keep_ratio', False)
    step.pop('clip_object_border', None)  # of annotations
    if step not in ({}, {'interpolation': 'bilinear'}, {'backend': 'cv2'}):
        raise refused('Resize', step)
    if scale is None:
        return Steps(factor=tuple(factor) if isinstance(factor, Sequence) else (factor, factor))
    return Steps(scale=(scale, scale) if isinstance(scale, int) else tuple(scale), keep_ratio=keep_ratio)


def read_pad(step: dict[str, Any], steps: Steps) -> Steps:
    """Return the steps with what ``Pad`` does."""
    size, value = step.pop('size', None), step.pop('pad_val', 0)
    values = value.get('img', 0) if isinstance(value, Mapping) else value
    values = set(values) if isinstance(values, Sequence) else {values}
    square = step.pop('pad_to_square', False)
    if step or (size is None) != square or len(values) > 1:
        raise refused('Pad', step | {'size': size, 'pad_val': value})
    return steps._replace(pad=tuple(size[::-1]) if size else None, square=square, pad_value=values.pop())


def refused(name: str, settings: Mapping[str, Any]) -> UserError:
    """Return the error for a step that a graph and its runner cannot do."""
    return UserError(
        f'The test pipeline has the step {name}({", ".join(f"{key}={value!r}" for key, value in settings.items())}), '
        'which an exported model cannot do. It can Resize (bilinear) and Pad to a fixed size or a square, in this '
        'order; give a config with such a test_pipeline with --config.'
    )
