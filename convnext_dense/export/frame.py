"""What all kinds of graphs share: the sizes of an image, and whether a part of a model does what a graph repeats.

While a graph is recorded the sizes are tensors, so that it takes images of any.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

Length = int | Tensor  # a number of pixels


def as_tensor(lengths: Iterable[Length]) -> Tensor:
    """Return lengths as one tensor of int64, which a graph computes anew for each image."""
    return torch.stack(
        [each if torch.is_tensor(each) else torch.scalar_tensor(each, dtype=torch.long) for each in lengths]
    )


def larger(one: Length, other: Length) -> Length:
    """Return the larger of two lengths; a comparison would bind a graph to images like the recorded one."""
    if torch.is_tensor(one) or torch.is_tensor(other):
        return as_tensor((one, other)).max()
    return torch.sym_max(one, other)


class Frame(NamedTuple):
    """The sizes of an image on its way through a model, each as (height, width) in pixels."""

    original: Tensor  # (2,) int64, of the picture before the test pipeline, to which results are scaled
    resized: tuple[Length, Length]  # of the image that the graph takes
    shape: tuple[Length, Length]  # of the image with what the pipeline pads; boxes end there
    padded: tuple[Length, Length]  # of the image with what the data preprocessor pads too

    @property
    def scale(self) -> Tensor:
        """How much larger the resized image is than the original, (height, width) float64."""
        return as_tensor(self.resized).double() / self.original.double()

    def to_original(self, boxes: Tensor) -> Tensor:
        """Scale boxes (N, 4) of the resized image."""
        return boxes * (1 / self.scale).flip(0).repeat(2).to(boxes)

    def crop(self, maps: Tensor) -> Tensor:
        """Return maps (N, C, H, W) without what the data preprocessor padded.

        A slice would be a view, on whose strides ``torch.export`` makes the graph depend.
        """
        for axis, length in enumerate(self.shape if self.padded is not self.shape else (), start=2):
            maps = maps.index_select(axis, torch.arange(length, device=maps.device))
        return maps

    def clip(self, boxes: Tensor) -> Tensor:
        """Move the corners of boxes (N, 4) into the image."""
        return boxes.clamp(min=0).minimum(self.corner(boxes))

    def corner(self, boxes: Tensor) -> Tensor:
        """Return width, height, width and height of the image, in the type of boxes."""
        return as_tensor(self.shape).flip(0).repeat(2).to(boxes)


def deviations(part: Any, bases: Sequence[type], *methods: str) -> list[str]:
    """Return why a part, such as a head, cannot be exported: methods that it has from none of the known classes.

    A class may inherit from a known one, and do something else.

    >>> deviations(True, [int], '__add__')
    []
    >>> deviations(True, [int], '__add__', '__or__')
    ['bool has a way of its own to its results (__or__)']
    """
    known = [getattr(base, name) for base in bases for name in methods if hasattr(base, name)]
    own = [name for name in methods if hasattr(type(part), name) and getattr(type(part), name) not in known]
    return [f'{type(part).__name__} has a way of its own to its results ({", ".join(own)})'] if own else []
