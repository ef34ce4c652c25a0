"""Local files are replaced in one step: a full disk or a kill leaves the old file or the new one, never half of one.

In: the bytes of a checkpoint and its path. Out: the file, on the disk before the old one goes.
"""

import os
import tempfile
from pathlib import Path
from types import ModuleType


def write_atomically(obj: bytes, filepath: str | os.PathLike) -> None:
    """Write bytes to a file beside the target, flush it to the disk, and put it in the target's place.

    Raises:
        OSError: The disk is full or the folder cannot be written; the target is as it was.
    """
    target = Path(filepath)
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f'.{target.name}.', dir=target.parent)
    try:
        with open(descriptor, 'wb') as stream:
            stream.write(obj)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(name, 0o666 & ~_umask())  # mkstemp makes files that only the owner reads
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def replace_put(module: ModuleType) -> None:
    """Let ``LocalBackend.put`` of ``mmengine.fileio.backends.local_backend`` write atomically."""

    def put(self: object, obj: bytes, filepath: str | os.PathLike) -> None:
        write_atomically(obj, filepath)

    module.LocalBackend.put = put
