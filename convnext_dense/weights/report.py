"""What became of a checkpoint's entries, in at most a dozen lines."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Report:
    """What was loaded and what was not.

    Attributes:
        source: Where the weights came from.
        format: Whose names they have.
        architecture: Which ConvNeXt they are.
        licence: Theirs, where known.
        loaded: The model's keys that were loaded.
        reshaped: Those of them that had another shape in the file.
        converted: dtype in the file, where it is not the model's -> number of tensors.
        left_out: Why something was left out on purpose -> the file's keys.
        from_scratch: The model's keys that keep their initial values: output norms, and heads for other classes.
        missing: The model's keys that should have been in the file.
        unexpected: The file's keys for which the model has no place.
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

    def leave_out(self, why: str, *keys: str) -> None:
        """Note keys of the file that are left out on purpose."""
        if keys:
            self.left_out.setdefault(why, []).extend(keys)

    def note_loaded(self, key: str, in_file: Tensor, tensor: Tensor, target: Tensor) -> None:
        """Note that the model's ``key`` is loaded, and what had to change: ``in_file`` -> ``tensor`` -> ``target``."""
        self.loaded.append(key)
        if in_file.shape != tensor.shape or in_file.stride() != tensor.stride():
            self.reshaped.append(key)
        if tensor.dtype != target.dtype:
            dtype = str(tensor.dtype).removeprefix('torch.')
            self.converted[dtype] = self.converted.get(dtype, 0) + 1

    def __str__(self) -> str:
        rows = {
            'format': ', '.join(filter(None, (self.format, self.architecture))),
            'licence': self.licence,
            'loaded': f'{len(self.loaded)} weights',
            'reshaped': shorten(self.reshaped),
            'converted': ', '.join(f'{number} from {dtype}' for dtype, number in self.converted.items()),
            'left out': '; '.join(f'{why}: {shorten(keys, 2)}' for why, keys in self.left_out.items()),
            'from scratch': shorten(self.from_scratch),
            'missing': shorten(self.missing),
            'unexpected': shorten(self.unexpected),
        }
        lines = [f'  {name:14}{text}' for name, text in rows.items() if text]
        return '\n'.join([f'weights from {self.source}', *lines])


def shorten(keys: Iterable[str], most: int = 4) -> str:
    """Join the first few keys.

    >>> shorten(['a', 'b', 'c'], most=2)
    'a, b, ... (3)'
    """
    keys = list(keys)
    return ', '.join(map(printable, keys[:most])) + (f', ... ({len(keys)})' if len(keys) > most else '')


def printable(text: str) -> str:
    """Return a text as it can be shown: a name in a file must not steer the terminal.

    >>> printable('stages.0\\x1b[31m')
    'stages.0?[31m'
    """
    return ''.join(character if character.isprintable() else '?' for character in text)
