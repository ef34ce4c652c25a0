"""The exceptions that end a command with one message and an exit code, and how messages name many things."""

from collections.abc import Iterable


class UserError(ValueError):
    """What came, what is allowed and what to do next, in one readable message.

    The tools print it as ``error: ...`` without a traceback and leave with its exit code.
    """

    code = 2


class NotFiniteError(UserError):
    """A training whose losses, gradients or weights are NaN or infinite."""

    code = 3


class RunStopped(SystemExit):
    """A training that a signal has ended; where nobody catches it, the process ends with its code, without a traceback.

    Args:
        code: Exit code of the process.
        text: What happened and how to continue.
    """

    def __init__(self, code: int, text: str) -> None:
        super().__init__(code)
        self.text = text

    def __str__(self) -> str:
        """Return the text."""
        return self.text


def shorten(items: Iterable[object], most: int = 4) -> str:
    """Join the first few, as :func:`printable` text.

    >>> shorten('abc', most=2)
    'a, b, ... (3)'
    """
    items = list(map(str, items))
    return ', '.join(map(printable, items[:most])) + (f', ... ({len(items)})' if len(items) > most else '')


def printable(text: str) -> str:
    """Return a text as it can be shown: a name in a file must not steer the terminal.

    >>> printable('stages.0\\x1b[31m')
    'stages.0?[31m'
    """
    return ''.join(character if character.isprintable() else '?' for character in text)
