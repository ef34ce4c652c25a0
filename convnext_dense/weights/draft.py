"""Local files are replaced in one step: a full disk or a kill leaves the old file or the new one, never half of one.

In: what is written to a hidden file beside the target. Out: the target, on the disk before the old one goes.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO


@dataclass
class Draft:
    """A file that is being written.

    Attributes:
        stream: Where to write.
        target: The file's place when it is complete; until then another one in the same folder may be chosen.
    """

    stream: IO[bytes]
    target: Path


@contextlib.contextmanager
def open_draft(filepath: str | os.PathLike) -> Iterator[Draft]:
    """Open a hidden file beside the target; after the block, flush it to the disk and put it in the target's place.

    Raises:
        OSError: The disk is full or the folder cannot be written; the target is as it was.
    """
    target = Path(filepath)
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f'.{target.name}.', dir=target.parent)
    try:
        with open(descriptor, 'wb') as stream:
            draft = Draft(stream, target)
            yield draft
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(name, 0o666 & ~_umask())  # mkstemp makes files that only the owner reads
        os.replace(name, draft.target)
    except BaseException:
        os.unlink(name)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
