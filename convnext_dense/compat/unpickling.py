"""What a checkpoint's pickle may build, which files PyTorch must not see, and what unreadable files are.

PyTorch's ``weights_only`` mode builds tensors and plain data alone. This module adds the few types that MMEngine's own
checkpoints hold, and turns PyTorch's many errors into one readable message.
"""

import contextlib
import functools
import itertools
import os
import pickle
import re
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import IO, Any

from .errors import UserError

File = str | os.PathLike | IO[bytes]

TRUST_VARIABLE = 'CONVNEXT_DENSE_TRUST_CHECKPOINT'
TRUST_ADVICE = (
    'If, and only if, you trust whoever made the file, allow it with --trust-checkpoint, with the environment variable '
    f'{TRUST_VARIABLE}=1, or in Python with `with convnext_dense.compat.trust_checkpoints():`.'
)
_trusted = ContextVar('trust checkpoints', default=False)

# MMEngine saves these by reference, which a pickle writes as getattr(owner, name). The real getattr would lead from
# any function to everything in its module, so the pickle gets one that knows only these.
HISTORY_STATISTICS = ('min', 'max', 'current', 'mean')
ONE_CYCLE_SHAPES = ('_annealing_cos', '_annealing_linear')
# Text, bool, integers, floats and complex numbers. Not objects: an array of objects can hold anything.
NUMPY_TYPE_CODES = '?bhilqpBHILQPefdgFDGSU'

# How PyTorch names what a pickle asks for and weights_only refuses
REFUSED = re.compile(
    r"(?i:unsupported (?:global: )?GLOBAL) (?P<a>getattr\(.*\)|\S+)|but got <class '(?P<b>[^']+)'>"
    r'|unrecognized function (?P<c>.+)'
)
WEB_PAGE = 'it is a web page, so the download was answered by a login or error page. Download it again in a browser'
DAMAGED = 'it begins like a checkpoint but is cut short or damaged. Copy or download it again'
# The first bytes of a file, in lower case -> what the file is and what to do
BEGINNINGS = {
    b'<!doctype': WEB_PAGE,
    b'<html': WEB_PAGE,
    b'<?xml': WEB_PAGE,
    b'version https://git-lfs': 'it is a Git LFS pointer, not the file itself. Fetch it with `git lfs pull`',
    b'\x1f\x8b': 'it is an archive of other files. Unpack it and name the checkpoint inside',
    b'pk\3\4': DAMAGED + '; if it is a TorchScript program or an archive of other files, name what torch.save wrote',
    b'\x80\2\x8a\nl\xfc\x9cf\xf9 j\xa8p\x19': DAMAGED,  # what torch.save wrote before PyTorch 1.6
    b'\x80': 'it is a Python pickle that torch.save did not write. Convert it to a file that torch.save writes',
}


@contextlib.contextmanager
def trust_checkpoints() -> Iterator[None]:
    """Read checkpoints in this block as ordinary pickles, which may run any code. For files from people you trust."""
    token = _trusted.set(True)
    try:
        yield
    finally:
        _trusted.reset(token)


def checkpoints_are_trusted() -> bool:
    """Tell whether the user opted in, by ``trust_checkpoints`` or by the environment variable."""
    return _trusted.get() or os.environ.get(TRUST_VARIABLE) == '1'


def opened(file: File) -> contextlib.AbstractContextManager[IO[bytes]]:
    """Return the file, opened for reading bytes; one that was open stays open."""
    return contextlib.nullcontext(file) if hasattr(file, 'read') else open(file, 'rb')


def refuse_tar(file: File) -> None:
    """Raise a :class:`UserError` for a tar archive: PyTorch < 2.6 runs code from one whatever it is told.

    That is CVE-2025-32434.
    """
    with opened(file) as stream:
        start = stream.tell()
        try:
            with tarfile.open(fileobj=stream, mode='r:') as archive:  # as PyTorch opens it
                is_tar = archive.next() is not None
        except Exception:  # PyTorch meets the same one, and reads the file in another way or gives up
            is_tar = False
        stream.seek(start)
    if is_tar:
        raise UserError(
            f'The checkpoint {name_of(file)} is not read: it is a tar archive. PyTorch wrote such checkpoints in its '
            'first versions, and to read one can run code. If it holds other files, unpack it and name the checkpoint '
            f'among them. {TRUST_ADVICE}'
        )


_types_lock = threading.RLock()


@contextlib.contextmanager
def allowed_types() -> Iterator[None]:
    """Let ``weights_only`` build MMEngine's types in this block; ``safe_globals`` of PyTorch >= 2.5 does the same."""
    from torch.serialization import add_safe_globals, clear_safe_globals, get_safe_globals

    with _types_lock:
        before = list(get_safe_globals())
        add_safe_globals(mmengine_types())
        try:
            yield
        finally:
            clear_safe_globals()
            add_safe_globals(before)


@functools.cache
def mmengine_types() -> list[Callable]:
    """Return the types and functions in MMEngine's checkpoints, functions under the name that a pickle has for them."""
    import numpy as np
    from mmengine.logging import HistoryBuffer
    from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler

    def get_listed_attribute(owner: type, name: str) -> Callable:
        listed = {HistoryBuffer: HISTORY_STATISTICS, OneCycleParamScheduler: ONE_CYCLE_SHAPES}
        if name not in listed.get(owner, ()):
            raise pickle.UnpicklingError(f'Unsupported global: GLOBAL getattr({owner!r}, {name!r})')
        return getattr(owner, name)

    def encode_latin1(text: str, encoding: str) -> bytes:
        if encoding != 'latin1':
            raise pickle.UnpicklingError(f'Unsupported global: GLOBAL _codecs.encode({encoding!r})')
        return text.encode('latin1')

    # Protocol 2, which torch.save uses, refers to these two functions, by the name that NumPy 1 or NumPy 2 gives them.
    scalar, reconstruct = np.float64(0).__reduce__()[0], np.zeros(0).__reduce__()[0]
    functions = {
        'builtins.getattr': get_listed_attribute,
        # The bytes of an array, in protocol 2; PyTorch 2.4 allows no bytes, and later versions not the empty ones.
        '_codecs.encode': encode_latin1,
        'builtins.bytes': lambda: b'',
        'numpy.core.multiarray.scalar': scalar,
        'numpy._core.multiarray.scalar': scalar,
        'numpy.core.multiarray._reconstruct': reconstruct,
        'numpy._core.multiarray._reconstruct': reconstruct,
    }
    number_types = {type(np.dtype(code)) for code in NUMPY_TYPE_CODES}
    renamed = itertools.starmap(rename, functions.items())
    return [HistoryBuffer, OneCycleParamScheduler, np.ndarray, np.dtype, *number_types, *renamed]


def rename(path: str, function: Callable) -> Callable:
    """Return the function under the name by which a pickle asks for it; torch compares names."""

    def renamed(*args: Any) -> Any:
        return function(*args)

    renamed.__module__, _, renamed.__qualname__ = path.rpartition('.')
    renamed.__name__ = renamed.__qualname__
    return renamed


@contextlib.contextmanager
def explained_errors(file: File) -> Iterator[None]:
    """Turn the many errors of unreadable files into a ``UserError`` that says what the file is."""
    try:
        yield
    except ImportError:  # it names the missing module
        raise
    except Exception as error:  # broken bytes can fail at any point of the unpickler, in a dozen ways
        # A sound file, whose device is not here or too small: torch says what to do.
        is_sound = any(hint in str(error) for hint in ('deserialize object on', 'out of memory'))
        # A trusted one may need a type that its module no longer has.
        if is_sound or (isinstance(error, AttributeError) and checkpoints_are_trusted()):
            raise
        raise UserError(explain(file, error)) from None  # torch's text says how to switch safety off


def explain(file: File, error: Exception) -> str:
    """Say why a file is not read."""
    refused = REFUSED.search(str(error))
    if refused:
        return (
            f'The checkpoint {name_of(file)} is not read: besides tensors and plain data it needs '
            f'{refused[refused.lastgroup]}, and a file that may name such types can run any code on your machine. The '
            'checkpoints of this package, MMEngine, MMDetection and MMSegmentation need none. ' + TRUST_ADVICE
        )
    return f'Cannot read the checkpoint {name_of(file)}: {describe(file, error)}. (PyTorch says: {first_line(error)})'


def describe(file: File, error: Exception) -> str:
    """Say what a file that is no sound checkpoint is, by its first bytes, and what to do."""
    if isinstance(error, MemoryError):
        return 'it asks for more memory than there is, as a damaged file does, or one made to do harm'
    with opened(file) as stream:
        stream.seek(0)
        head = stream.read(512)
    if not head:
        return 'the file is empty. Copy or download it again, and check that the disk is not full'
    for beginning, kind in BEGINNINGS.items():
        if head.lstrip().lower().startswith(beginning):
            return kind
    return f'it begins with {head[:16]!r}, which no PyTorch checkpoint does. Name a file that torch.save wrote'


def name_of(file: File) -> str:
    """Return what a message calls a file."""
    return getattr(file, 'name', 'the downloaded data') if hasattr(file, 'read') else str(file)


def first_line(error: Exception) -> str:
    """Return what a library says of an error, without torch's advice to switch ``weights_only`` off."""
    # torch puts general advice first and the cause behind this mark
    text = str(error).split('WeightsUnpickler error:')[-1].strip()
    sentences = re.split(r'(?<=\.) ', text.split('\n')[0])
    return ' '.join(itertools.takewhile(lambda each: 'weights_only' not in each, sentences)) or type(error).__name__
