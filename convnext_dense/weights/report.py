"""What became of a checkpoint's entries, in at most a dozen lines."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor

from convnext_dense.compat.errors import shorten


@dataclass
class Account:
    """Weights of a file, and which of them were not used."""

    source: str  # where the weights came from
    format: str = ''  # whose names they have
    architecture: str = ''  # which ConvNeXt they are
    licence: str = ''  # what is known of their licence
    left_out: dict[str, list[str]] = field(default_factory=dict)  # why something was left out -> the file's keys

    def leave_out(self, why: str, *keys: str) -> None:
        """Note keys of the file that are left out on purpose."""
        if keys:
            self.left_out.setdefault(why, []).extend(keys)

    def rows(self) -> list[tuple[str, str]]:
        """Return what is shown, as names and texts."""
        reasons = (f'{why}: {shorten(keys, 2)}' for why, keys in self.left_out.items())
        return [
            ('format', ', '.join(filter(None, (self.format, self.architecture)))),
            ('licence', self.licence),
            ('left out', '; '.join(reasons)),
        ]

    def __str__(self) -> str:
        return '\n'.join([f'weights from {self.source}', *format_rows(self.rows())])


@dataclass
class Report(Account):
    """What was loaded and what was not, besides what every :class:`Account` has."""

    loaded: list[str] = field(default_factory=list)  # the model's keys that were loaded
    reshaped: list[str] = field(default_factory=list)  # those of them that had another shape in the file
    converted: dict[str, int] = field(default_factory=dict)  # type in the file, where it is another -> tensors
    from_scratch: list[str] = field(default_factory=list)  # with initial values: output norms, heads for other classes
    missing: list[str] = field(default_factory=list)  # the model's keys that should have been in the file
    unexpected: list[str] = field(default_factory=list)  # the file's keys for which the model has no place
    adapted: str = ''  # what was changed to fit, beside shapes

    def rows(self) -> list[tuple[str, str]]:
        """Return what is shown, as names and texts."""
        *known, left_out = super().rows()
        return [
            *known,
            ('loaded', f'{len(self.loaded)} weights'),
            ('reshaped', shorten(self.reshaped)),
            ('adapted', self.adapted),
            ('converted', ', '.join(f'{number} from {dtype}' for dtype, number in self.converted.items())),
            left_out,
            ('from scratch', shorten(self.from_scratch)),
            ('missing', shorten(self.missing)),
            ('unexpected', shorten(self.unexpected)),
        ]


def format_rows(rows: Iterable[tuple[str, str]]) -> list[str]:
    """Return lines of names and texts below each other; a row without a text is left out."""
    return [f'  {name:14}{text}' for name, text in rows if text]


def dtype_name(tensor: Tensor) -> str:
    """Return the name of a tensor's type.

    >>> dtype_name(Tensor())
    'float32'
    """
    return str(tensor.dtype).removeprefix('torch.')
