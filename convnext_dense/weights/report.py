"""What became of a checkpoint's entries, in at most a dozen lines."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor

from convnext_dense.compat.errors import shorten


@dataclass
class Account:
    """Weights of a file, and which of them were not used.

    Attributes:
        source: Where the weights came from.
        format: Whose names they have.
        architecture: Which ConvNeXt they are.
        licence: What is known of their licence.
        left_out: Why something was left out on purpose -> the file's keys.
    """

    source: str
    format: str = ''
    architecture: str = ''
    licence: str = ''
    left_out: dict[str, list[str]] = field(default_factory=dict)

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
    """What was loaded and what was not, besides what every :class:`Account` has.

    Attributes:
        loaded: The model's keys that were loaded.
        reshaped: Those of them that had another shape in the file.
        converted: Type in the file, where it is not the model's -> number of tensors.
        from_scratch: The model's keys that keep their initial values: output norms, and heads for other classes.
        missing: The model's keys that should have been in the file.
        unexpected: The file's keys for which the model has no place.
        adapted: What was changed to fit, beside shapes.
    """

    loaded: list[str] = field(default_factory=list)
    reshaped: list[str] = field(default_factory=list)
    converted: dict[str, int] = field(default_factory=dict)
    from_scratch: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    adapted: str = ''

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
