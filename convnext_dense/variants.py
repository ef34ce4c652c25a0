"""The table of ConvNeXt sizes: depths and widths by name.

Sources: ConvNeXt (arXiv 2201.03545, Table 9) for tiny to xlarge, ConvNeXt V2 (arXiv 2301.00808, Table 10) for atto to
nano and huge. V2 publishes atto to nano, tiny, base, large and huge; V1 publishes tiny to xlarge, and timm trained
V1 atto to nano.
"""

from collections.abc import Mapping
from typing import NamedTuple


class Variant(NamedTuple):
    """Blocks and channels of the four stages."""

    depths: tuple[int, int, int, int]
    dims: tuple[int, int, int, int]


VARIANTS: dict[str, Variant] = {
    'atto': Variant((2, 2, 6, 2), (40, 80, 160, 320)),
    'femto': Variant((2, 2, 6, 2), (48, 96, 192, 384)),
    'pico': Variant((2, 2, 6, 2), (64, 128, 256, 512)),
    'nano': Variant((2, 2, 8, 2), (80, 160, 320, 640)),
    'tiny': Variant((3, 3, 9, 3), (96, 192, 384, 768)),
    'small': Variant((3, 3, 27, 3), (96, 192, 384, 768)),
    'base': Variant((3, 3, 27, 3), (128, 256, 512, 1024)),
    'large': Variant((3, 3, 27, 3), (192, 384, 768, 1536)),
    'xlarge': Variant((3, 3, 27, 3), (256, 512, 1024, 2048)),
    'huge': Variant((3, 3, 27, 3), (352, 704, 1408, 2816)),
}


def resolve_variant(arch: str | Mapping) -> Variant:
    """Return the depths and widths that ``arch`` stands for.

    Args:
        arch: A name of :data:`VARIANTS`, or ``dict(depths=..., dims=...)`` with four positive integers each.

    Raises:
        ValueError: The name is unknown, or the mapping does not hold exactly those two sequences.

    >>> resolve_variant('tiny').dims
    (96, 192, 384, 768)
    """
    if isinstance(arch, str):
        if arch not in VARIANTS:
            raise ValueError(
                f'Unknown ConvNeXt arch {arch!r}. Allowed: {", ".join(VARIANTS)}; or dict(depths=(...), dims=(...)) '
                'with four entries each.'
            )
        return VARIANTS[arch]
    if isinstance(arch, Variant):
        return arch
    if not isinstance(arch, Mapping) or set(arch) != {'depths', 'dims'}:
        raise ValueError(f'arch must be one of {", ".join(VARIANTS)}, or dict(depths=(...), dims=(...)); got {arch!r}.')
    for key in ('depths', 'dims'):
        value = arch[key]
        is_four = isinstance(value, (list, tuple)) and len(value) == 4
        if not is_four or not all(isinstance(entry, int) and entry > 0 for entry in value):
            raise ValueError(f'arch[{key!r}] must hold four positive integers, one a stage; got {value!r}.')
    return Variant(tuple(arch['depths']), tuple(arch['dims']))


def channels(arch: str | Mapping) -> list[int]:
    """Return the widths of the four feature maps of an ``arch``, for the ``in_channels`` of the neck behind it.

    >>> channels('tiny')
    [96, 192, 384, 768]
    """
    return list(resolve_variant(arch).dims)
