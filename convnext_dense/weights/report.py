"""What became of a checkpoint's entries, in at most a dozen lines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from convnext_dense.compat.errors import shorten

if TYPE_CHECKING:
    from convnext_dense.weights.identify import Part
    from convnext_dense.weights.load import Plan


@dataclass
class Report:
    """What was loaded and what was not.

    Attributes:
        source: Where the weights came from.
        format: Whose names they have.
        architecture: Which ConvNeXt they are.
        licence: Their licence, where it is known.
        loaded: The model's keys that were loaded.
        reshaped: Those of them that had another shape in the file.
        converted: Type in the file, where it is not the model's -> number of tensors.
        left_out: Why something was left out on purpose -> the file's keys.
        from_scratch: The model's keys that keep their initial values: output norms, and heads for other classes.
        missing: The model's keys that should have been in the file.
        unexpected: The file's keys for which the model has no place.
        adapted: What was changed to fit, beside shapes.
    """

    source: str
    format: str = ''
    architecture: str = ''
    licence: str = ''
    loaded: list[str] = field(default_factory=list)
    reshaped: list[str] = field(default_factory=list)
    converted: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    from_scratch: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    adapted: str = ''

    def leave_out(self, why: str, *keys: str) -> None:
        """Note keys of the file that are left out on purpose."""
        if keys:
            self.left_out.setdefault(why, []).extend(keys)

    def describe(self, part: Part, eps: str) -> None:
        """Note which ConvNeXt a part of the file is; ``eps`` says if another epsilon may be meant."""
        self.format = part.found.format.title
        self.architecture = (
            f'{part.architecture} (if it is that of timm, {eps})' if eps else str(part.architecture or '')
        )
        for why, keys in part.left_out.items():
            self.leave_out(why, *keys)

    def note(self, plan: Plan, given: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
        """Note what a plan loads from the file's tensors into the model's, and what it does not."""
        for key, (origin, tensor) in plan.fitting.items():
            self.loaded.append(key)
            if given[origin].shape != tensor.shape or given[origin].stride() != tensor.stride():
                self.reshaped.append(key)
            if tensor.dtype != target[key].dtype:
                dtype = dtype_name(tensor)
                self.converted[dtype] = self.converted.get(dtype, 0) + 1
        self.leave_out('of another shape', *(entry.origin for entry in plan.misfits.values()))
        self.from_scratch, self.missing = [*plan.from_scratch], [*plan.missing]
        self.unexpected = [*plan.surplus, *plan.others]

    def __str__(self) -> str:
        rows = [
            ('format', ', '.join(filter(None, (self.format, self.architecture)))),
            ('licence', self.licence),
            ('loaded', f'{len(self.loaded)} weights'),
            ('reshaped', shorten(self.reshaped)),
            ('adapted', self.adapted),
            ('converted', ', '.join(f'{number} from {dtype}' for dtype, number in self.converted.items())),
            ('left out', format_reasons(self.left_out)),
            ('from scratch', shorten(self.from_scratch)),
            ('missing', shorten(self.missing)),
            ('unexpected', shorten(self.unexpected)),
        ]
        return '\n'.join([f'weights from {self.source}', *format_rows(rows)])


def format_rows(rows: Iterable[tuple[str, str]]) -> list[str]:
    """Return lines of names and texts below each other; a row without a text is left out."""
    return [f'  {name:14}{text}' for name, text in rows if text]


def format_reasons(left_out: Mapping[str, list[str]]) -> str:
    """Return reasons with the first keys that each holds for."""
    return '; '.join(f'{why}: {shorten(keys, 2)}' for why, keys in left_out.items())


def dtype_name(tensor: Tensor) -> str:
    """Return the name of a tensor's type.

    >>> dtype_name(Tensor())
    'float32'
    """
    return str(tensor.dtype).removeprefix('torch.')
