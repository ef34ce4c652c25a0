"""Read checkpoints without running code that hides in them.

In: a checkpoint file, a URL or an open file, and where its tensors shall go. Out: what was saved, or a ``UserError``.

A checkpoint is a pickle, and a pickle can call any function when it is read. PyTorch's ``weights_only`` mode builds
tensors and plain data alone; to these come here the few types in MMEngine's own checkpoints, and nothing else. A file
that needs more is refused unless the user trusts it by name:
``CONVNEXT_DENSE_TRUST_CHECKPOINT=1`` or ``with trust_checkpoints(): ...``.
"""

import contextlib
import functools
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlparse

from ..errors import UserError

TRUST_VARIABLE = 'CONVNEXT_DENSE_TRUST_CHECKPOINT'
_trusted = ContextVar('trust checkpoints', default=False)

# MMEngine saves these by reference, which a pickle writes as getattr(owner, name). The real getattr would lead from
# any function to everything in its module, so the pickle gets one that knows only these.
HISTORY_STATISTICS = ('min', 'max', 'current', 'mean')
ONE_CYCLE_SHAPES = ('_annealing_cos', '_annealing_linear')

# Text, bool, integers, floats and complex numbers. Not objects: an array of objects can hold anything.
NUMPY_TYPE_CODES = '?bhilqpBHILQPefdgFDGSU'

# The number at the start of torch.save's files before PyTorch 1.6; newer ones are zip archives
TORCH_MAGIC = 0x1950A86A20F9469CFC6C.to_bytes(10, 'little')


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


def read_checkpoint(file: str | os.PathLike | IO[bytes], map_location: Any = None, **torch_options: Any) -> Any:
    """Return what is saved in the file, as ``torch.load`` does, but safely.

    Args:
        file: Path, or a file opened for reading bytes.
        map_location: As for ``torch.load``.
        **torch_options: Further options of ``torch.load``. ``weights_only`` has no effect.

    Raises:
        UserError: The file is missing, damaged, no checkpoint, or not safe to read.
    """
    import torch

    if isinstance(file, str | os.PathLike):
        check_exists(Path(file))
    torch_options['weights_only'] = not checkpoints_are_trusted()
    _allow_mmengine_types()
    with _explained_errors(file):
        return torch.load(file, map_location=map_location, **torch_options)


def read_checkpoint_from_url(
    url: str, model_dir: str | None = None, map_location: Any = None, file_name: str | None = None, **hub_options: Any
) -> Any:
    """Download the checkpoint unless it is in the cache, and read it safely.

    Args:
        url: Where the file is.
        model_dir: Folder of the cache; torch's own, ``~/.cache/torch/hub/checkpoints``, if None.
        map_location: As for ``torch.load``.
        file_name: Name in the cache; the URL's last part if None.
        **hub_options: Further options of ``torch.hub.load_state_dict_from_url``.

    Raises:
        UserError: What was downloaded is damaged, no checkpoint, or not safe to read.
    """
    import torch

    folder = model_dir or os.path.join(torch.hub.get_dir(), 'checkpoints')
    cached = os.path.join(folder, file_name or os.path.basename(urlparse(url).path))
    hub_options['weights_only'] = not checkpoints_are_trusted()
    _allow_mmengine_types()
    with _explained_errors(cached, origin=f', downloaded from {url},'):
        return torch.hub.load_state_dict_from_url(url, folder, map_location, file_name=file_name, **hub_options)


def read_safely_in(module: Any) -> None:
    """Make the loaders of ``mmengine.runner.checkpoint`` read safely, whatever they pass to ``torch.load``."""

    def load_from_local(filename: str, map_location: Any = None) -> Any:
        return read_checkpoint(os.path.expanduser(filename), map_location)

    # Loaders that fetch the file themselves (s3, pavi, open-mmlab) call torch.load.
    module.torch = _TorchThatReadsSafely()
    module.load_url = read_checkpoint_from_url
    module.load_from_local = load_from_local
    module.CheckpointLoader.register_scheme('', load_from_local, force=True)


class _TorchThatReadsSafely:
    """The module ``torch`` as one other module sees it, with ``load`` replaced."""

    load = staticmethod(read_checkpoint)

    def __getattr__(self, name: str) -> Any:
        import torch

        return getattr(torch, name)


def _allow_mmengine_types() -> None:
    import torch

    known = set(torch.serialization.get_safe_globals())
    torch.serialization.add_safe_globals([each for each in _mmengine_types() if each not in known])


@functools.cache
def _mmengine_types() -> list[Callable]:
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

    dtypes = {type(np.dtype(code)) for code in NUMPY_TYPE_CODES}
    allowed = [HistoryBuffer, OneCycleParamScheduler, np.ndarray, np.dtype, *dtypes]
    allowed.append(_named(get_listed_attribute, 'builtins', 'getattr'))
    # The bytes of an array, in protocol 2; PyTorch 2.4 allows no bytes, and later versions not the empty ones.
    allowed.append(_named(encode_latin1, '_codecs', 'encode'))
    allowed.append(_named(lambda: b'', 'builtins', 'bytes'))
    # Protocol 2, which torch.save uses, refers to these two functions, by the name that NumPy 1 or NumPy 2 gives them.
    scalar, reconstruct = np.float64(0).__reduce__()[0], np.zeros(0).__reduce__()[0]
    for numpy_module in ('numpy.core.multiarray', 'numpy._core.multiarray'):
        allowed.append(_named(scalar, numpy_module, 'scalar'))
        allowed.append(_named(reconstruct, numpy_module, '_reconstruct'))
    return allowed


def _named(function: Callable, module: str, name: str) -> Callable:
    """Return the function under the name by which a pickle asks for it; torch compares names."""

    def renamed(*args: Any) -> Any:
        return function(*args)

    renamed.__module__, renamed.__name__, renamed.__qualname__ = module, name, name
    return renamed


def check_exists(path: Path) -> None:
    """Raise a ``UserError`` that names the checkpoints nearby unless the file is there."""
    if path.is_file():
        return
    folder = path if path.is_dir() else path.parent
    problem = 'is a folder, not a checkpoint file' if path.is_dir() else 'does not exist'
    if not folder.is_dir():
        raise UserError(f'Checkpoint {path} {problem}, and neither does the folder {folder}. Correct the path.')
    names = sorted(file.name for file in folder.glob('*.pth'))
    if not names:
        raise UserError(f'Checkpoint {path} {problem}, and there is no .pth file in {folder}. Correct the path.')
    shown = ', '.join(names[:10]) + (f' and {len(names) - 10} more' if len(names) > 10 else '')
    raise UserError(f'Checkpoint {path} {problem}. The .pth files in {folder} are: {shown}. Name one of them.')


@contextlib.contextmanager
def _explained_errors(file: str | os.PathLike | IO[bytes], origin: str = '') -> Iterator[None]:
    """Turn the many errors of unreadable files into a ``UserError`` that says what the file is."""
    try:
        yield
    except (OSError, ImportError, MemoryError):  # they name their cause: no permission, no network, a missing module
        raise
    except Exception as error:  # broken bytes can fail at any point of the unpickler, in a dozen ways
        # A sound file, whose device is not here or too small: torch says what to do.
        if any(hint in str(error) for hint in ('deserialize object on', 'out of memory')):
            raise
        if isinstance(error, AttributeError) and checkpoints_are_trusted():  # a type that its module no longer has
            raise
        name = f'{getattr(file, "name", "the downloaded data") if hasattr(file, "read") else file}{origin}'
        refused = _refused_type(error)
        if refused:
            raise UserError(_refusal(name, refused)) from error
        raise UserError(
            f'Cannot read the checkpoint {name}: {_appearance(file)}. (PyTorch says: {_first_line(error)})'
        ) from error


def _refused_type(error: Exception) -> str | None:
    """Return the type or function that the pickle asks for and ``weights_only`` refuses."""
    message = str(error)
    for pattern in (
        r'Unsupported global: GLOBAL (getattr\(.*\)|\S+)',
        r'unsupported GLOBAL (\S+)',
        r"but got <class '([^']+)'>",
        r'unrecognized function (.+)',
    ):
        found = re.search(pattern, message)
        if found:
            return found[1]
    return None


def _refusal(name: str, refused: str) -> str:
    return (
        f'The checkpoint {name} is not read: besides tensors and plain data it needs {refused}, and a file that may '
        'name such types can run any code on your machine. The checkpoints of this package, MMEngine, MMDetection and '
        'MMSegmentation need none. If, and only if, you trust whoever made the file, allow it with the environment '
        f'variable {TRUST_VARIABLE}=1, or in Python with `with convnext_dense.stack.trust_checkpoints():`.'
    )


def _appearance(file: str | os.PathLike | IO[bytes]) -> str:
    """Say what a file that is no sound checkpoint is, by its first bytes, and what to do."""
    if not hasattr(file, 'read'):
        if not os.path.isfile(file):
            return 'the download was broken off. Try again'
        with open(file, 'rb') as opened:
            return _appearance(opened)
    file.seek(0)
    head = file.read(512)
    text = head.lstrip().lower()
    if not head:
        return 'the file is empty. Copy or download it again, and check that the disk is not full'
    if text.startswith((b'<!doctype', b'<html', b'<?xml')):
        return 'it is a web page, so the download was answered by a login or error page. Download it again in a browser'
    if text.startswith(b'version https://git-lfs'):
        return 'it is a Git LFS pointer, not the file itself. Fetch it with `git lfs pull`'
    if head[6:9] == b'\0\0{':
        return 'it is a safetensors file. Read it with the safetensors package'
    parts = _zip_parts(file)
    if 'constants.pkl' in parts:
        return 'it is a TorchScript program, not a checkpoint. Save the state_dict() of its model with torch.save'
    if head.startswith(b'\x1f\x8b') or (parts and 'data.pkl' not in parts):
        return 'it is an archive of other files. Unpack it and name the checkpoint inside'
    if head.startswith(b'PK\3\4') or TORCH_MAGIC in head:
        return 'it begins like a checkpoint but is cut short or damaged. Copy or download it again'
    if head.startswith(b'\x80'):
        return 'it is a Python pickle that torch.save did not write. Convert it to a file that torch.save writes'
    return f'it begins with {head[:16]!r}, which no PyTorch checkpoint does. Name a file that torch.save wrote'


def _zip_parts(file: IO[bytes]) -> set[str]:
    """Return the names in the archive without their folder; none if it is no sound archive."""
    try:
        return {Path(name).name for name in zipfile.ZipFile(file).namelist()}
    except zipfile.BadZipFile:
        return set()


def _first_line(error: Exception) -> str:
    # torch puts general advice first and the cause behind this mark
    text = str(error).split('WeightsUnpickler error:')[-1].strip() or type(error).__name__
    return text.splitlines()[0]
