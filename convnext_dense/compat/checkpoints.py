"""Read checkpoints without running code that hides in them.

A checkpoint is a pickle, and a pickle can call any function when it is read. PyTorch's ``weights_only`` mode builds
tensors and plain data alone. This module adds the few types that MMEngine's own checkpoints hold, and nothing else.
"""

import contextlib
import functools
import hashlib
import itertools
import json
import os
import pickle
import re
import tarfile
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType
from typing import IO, Any
from urllib.parse import urlparse

from packaging.version import Version

from .errors import UserError
from .module_view import ModuleView

TRUST_VARIABLE = 'CONVNEXT_DENSE_TRUST_CHECKPOINT'
TRUST_ADVICE = (
    'If, and only if, you trust whoever made the file, allow it with --trust-checkpoint, with the environment variable '
    f'{TRUST_VARIABLE}=1, or in Python with `with convnext_dense.compat.trust_checkpoints():`.'
)
_trusted = ContextVar('trust checkpoints', default=False)

META_KEY = 'convnext_dense'  # where a safetensors file carries what a checkpoint holds besides tensors
CHECKPOINT_SUFFIXES = ('.pth', '.pt', '.bin', '.safetensors')
# A date, as in NAME-20240115.pth, is no hash
HASH_IN_NAME = re.compile(r'-(?!(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\.)([0-9a-f]{8,64})\.[a-z]+$')
# The first version whose weights_only reading no crafted file is known to break: CVE-2026-24747
# (https://github.com/pytorch/pytorch/security/advisories/GHSA-63cw-57p8-fm3p)
SAFE_TORCH = '2.10'

# The largest model's checkpoint, with its optimizer, its config and the log of a million steps, stays below these.
# torch.save compresses nothing, and one byte of a pickle can take a hundred bytes of memory, so that less is read of a
# pickle that somebody compressed.
MOST_PICKLE_BYTES = 2**31
MOST_COMPRESSED_PICKLE_BYTES = 2**24
MOST_EXPANSION = 10
MOST_ENTRIES = 100_000

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
ARCHIVE = 'it is an archive of other files. Unpack it and name the checkpoint inside'
DAMAGED = 'it begins like a checkpoint but is cut short or damaged. Copy or download it again'
# The first bytes of a file, in lower case -> what the file is and what to do
BEGINNINGS = {
    (b'<!doctype', b'<html', b'<?xml'): 'it is a web page, so the download was answered by a login or error page. '
    'Download it again in a browser',
    (b'version https://git-lfs',): 'it is a Git LFS pointer, not the file itself. Fetch it with `git lfs pull`',
    (b'\x1f\x8b',): ARCHIVE,
    # a zip archive, and what torch.save wrote before PyTorch 1.6
    (b'pk\3\4', b'\x80\2\x8a\nl\xfc\x9cf\xf9 j\xa8p\x19'): DAMAGED,
    (b'\x80',): 'it is a Python pickle that torch.save did not write. Convert it to a file that torch.save writes',
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


def read_checkpoint(
    file: str | os.PathLike | IO[bytes], map_location: Any = None, mmap: bool = False, **torch_options: Any
) -> Any:
    """Return what is saved in the file, as ``torch.load`` does, but safely; a safetensors file too.

    Args:
        file: Path, or a file opened for reading bytes.
        map_location: As for ``torch.load``.
        mmap: Map the tensors of a local file into memory where its format allows; a safetensors file always is. The
            file may then be replaced or deleted, but not written in place while a tensor of it is in use.
        **torch_options: Further options of ``torch.load``. ``weights_only`` has no effect.

    Raises:
        UserError: The file is missing, damaged, no checkpoint, or not safe to read.
    """
    import torch

    if isinstance(file, str | os.PathLike):
        check_exists(Path(file))
        if is_safetensors(file):
            return read_safetensors(file, map_location)
        mmap = can_be_mapped(file) and mmap
    if not checkpoints_are_trusted():
        refuse_tar(file)
    torch_options['weights_only'] = not checkpoints_are_trusted()
    with explained_errors(file), _allowed_types():
        return torch.load(file, map_location=map_location, mmap=mmap, **torch_options)


def read_safely_in(module: ModuleType) -> None:
    """Make the loaders of ``mmengine.runner.checkpoint`` read safely, whatever they pass to ``torch.load``."""

    def load_from_local(filename: str, map_location: Any = None) -> Any:
        return read_checkpoint(os.path.expanduser(filename), map_location, mmap=True)

    def load_from_http(filename: str, map_location: Any = None, **options: Any) -> Any:
        with first_on_this_machine():
            return module.load_url(filename, map_location=map_location, **options)

    # Loaders that fetch the file themselves (s3, pavi, open-mmlab) call torch.load.
    module.torch = ModuleView(module.torch, load=read_checkpoint)
    module.load_url = read_checkpoint_from_url
    module.load_from_local = load_from_local
    module.load_from_http = load_from_http
    module.CheckpointLoader.register_scheme('', load_from_local, force=True)
    module.CheckpointLoader.register_scheme(('http://', 'https://'), load_from_http, force=True)


def check_exists(path: Path) -> None:
    """Raise a ``UserError`` that names the checkpoints nearby unless the file is there."""
    if path.is_file():
        return
    folder = path if path.is_dir() else path.parent
    problem = 'is a folder, not a checkpoint file' if path.is_dir() else 'does not exist'
    if not folder.is_dir():
        raise UserError(f'Checkpoint {path} {problem}, and neither does the folder {folder}. Correct the path.')
    names = sorted(file.name for file in folder.iterdir() if file.suffix in CHECKPOINT_SUFFIXES)
    if not names:
        kinds = ' or '.join((', '.join(CHECKPOINT_SUFFIXES[:-1]), CHECKPOINT_SUFFIXES[-1]))
        raise UserError(f'Checkpoint {path} {problem}, and there is no {kinds} file in {folder}. Correct the path.')
    shown = ', '.join(names[:10]) + (f' and {len(names) - 10} more' if len(names) > 10 else '')
    raise UserError(f'Checkpoint {path} {problem}. The checkpoints in {folder} are: {shown}. Name one of them.')


# Safetensors files hold nothing but tensors and text.


def is_safetensors(file: str | os.PathLike) -> bool:
    """Tell whether a file begins like a safetensors file: the length of a JSON header, then the header."""
    with open(file, 'rb') as opened:
        return opened.read(9)[6:] == b'\0\0{'


def read_safetensors(file: str | os.PathLike, map_location: Any = None) -> dict:
    """Return the tensors of a safetensors file; with ``meta``, as a checkpoint, where this package wrote it.

    Raises:
        UserError: The file is cut short or damaged, or holds more tensors than any model.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework='pt') as opened:
            keys = opened.keys()
            if len(keys) > MOST_ENTRIES:
                raise UserError(_refusal(file, f'it holds {len(keys):,} tensors'))
            tensors = {key: opened.get_tensor(key) for key in keys}
            meta = json.loads((opened.metadata() or {}).get(META_KEY, 'null'), object_hook=_with_colours)
    except (SafetensorError, json.JSONDecodeError, RecursionError) as error:
        raise UserError(
            f'Cannot read the checkpoint {file}: it begins like a safetensors file but is cut short or damaged. Copy '
            f'or download it again. (safetensors says: {_first_line(error)})'
        ) from error
    if map_location is not None and not callable(map_location):
        tensors = {key: tensor.to(map_location) for key, tensor in tensors.items()}
    return tensors if meta is None else {'meta': meta, 'state_dict': tensors}


def _with_colours(entry: dict) -> dict:
    """Make the colours of a palette tuples again, as which MMDetection tells a colour from a list of colours."""
    if isinstance(entry.get('palette'), list):
        entry['palette'] = [tuple(colour) if isinstance(colour, list) else colour for colour in entry['palette']]
    return entry


# What is refused before PyTorch reads it


def refuse_tar(file: str | os.PathLike | IO[bytes]) -> None:
    """Raise a :class:`UserError` for a tar archive: PyTorch < 2.6 runs code from one whatever it is told.

    That is CVE-2025-32434.
    """
    with contextlib.nullcontext(file) if hasattr(file, 'read') else open(file, 'rb') as opened:
        start = opened.tell()
        try:
            with tarfile.open(fileobj=opened, mode='r:') as archive:  # as PyTorch opens it
                is_tar = archive.next() is not None
        except Exception:  # PyTorch meets the same one, and reads the file in another way or gives up
            is_tar = False
        opened.seek(start)
    if is_tar:
        raise UserError(
            f'The checkpoint {_name(file)} is not read: it is a tar archive. PyTorch wrote such checkpoints in its '
            'first versions, and to read one can run code. If it holds other files, unpack it and name the checkpoint '
            f'among them. {TRUST_ADVICE}'
        )


def can_be_mapped(file: str | os.PathLike) -> bool:
    """Tell whether a file's tensors can be mapped into memory: an archive as torch.save writes it, uncompressed.

    Raises:
        UserError: It would fill the memory: its entries expand manifold, or it holds far more than any checkpoint.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            parts = archive.infolist()
    except Exception:  # a damaged archive can fail in many ways; PyTorch meets the damage too
        return False
    excess = _excess(parts, os.path.getsize(file))
    if excess and not checkpoints_are_trusted():
        raise UserError(_refusal(file, excess))
    return all(part.compress_type == zipfile.ZIP_STORED for part in parts)


def _excess(parts: list[zipfile.ZipInfo], size: int) -> str:
    """Say what an archive of this size in bytes holds too much of; nothing if it is in order."""
    packed = min(size, sum(part.compress_size for part in parts))  # entries may overlap
    unpacked = sum(part.file_size for part in parts)
    pickles = [part for part in parts if part.filename.endswith('.pkl')]
    settings = sum(part.file_size for part in pickles)
    compressed = any(part.compress_type != zipfile.ZIP_STORED for part in pickles)
    if unpacked > MOST_EXPANSION * max(packed, 2**20):
        return f'its {packed:,} bytes expand to {unpacked:,}'
    if settings > (MOST_COMPRESSED_PICKLE_BYTES if compressed else MOST_PICKLE_BYTES):
        return f'it holds {settings:,} bytes of names and settings' + (', compressed' if compressed else '')
    return f'it holds {len(parts):,} entries' if len(parts) > MOST_ENTRIES else ''


def _refusal(file: str | os.PathLike, excess: str) -> str:
    return (
        f'The checkpoint {file} is not read: {excess}. No checkpoint of a model does, and it could fill the memory. '
        f'{TRUST_ADVICE}'
    )


# The types in MMEngine's checkpoints

_types_lock = threading.RLock()


@contextlib.contextmanager
def _allowed_types() -> Iterator[None]:
    """Let ``weights_only`` build MMEngine's types in this block; ``safe_globals`` of PyTorch >= 2.5 does the same."""
    from torch.serialization import add_safe_globals, clear_safe_globals, get_safe_globals

    with _types_lock:
        before = get_safe_globals()
        add_safe_globals(_mmengine_types())
        try:
            yield
        finally:
            clear_safe_globals()
            add_safe_globals(before)


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

    # Protocol 2, which torch.save uses, refers to these two functions, by the name that NumPy 1 or NumPy 2 gives them.
    scalar, reconstruct = np.float64(0).__reduce__()[0], np.zeros(0).__reduce__()[0]
    return [
        HistoryBuffer,
        OneCycleParamScheduler,
        np.ndarray,
        np.dtype,
        *{type(np.dtype(code)) for code in NUMPY_TYPE_CODES},
        _named(get_listed_attribute, 'builtins', 'getattr'),
        # The bytes of an array, in protocol 2; PyTorch 2.4 allows no bytes, and later versions not the empty ones.
        _named(encode_latin1, '_codecs', 'encode'),
        _named(lambda: b'', 'builtins', 'bytes'),
        _named(scalar, 'numpy.core.multiarray', 'scalar'),
        _named(scalar, 'numpy._core.multiarray', 'scalar'),
        _named(reconstruct, 'numpy.core.multiarray', '_reconstruct'),
        _named(reconstruct, 'numpy._core.multiarray', '_reconstruct'),
    ]


def _named(function: Callable, module: str, name: str) -> Callable:
    """Return the function under the name by which a pickle asks for it; torch compares names."""

    def renamed(*args: Any) -> Any:
        return function(*args)

    renamed.__module__, renamed.__name__, renamed.__qualname__ = module, name, name
    return renamed


# Errors


@contextlib.contextmanager
def explained_errors(file: str | os.PathLike | IO[bytes]) -> Iterator[None]:
    """Turn the many errors of unreadable files into a ``UserError`` that says what the file is."""
    try:
        yield
    except ImportError:  # it names the missing module
        raise
    except MemoryError:
        raise UserError(
            f'Cannot read the checkpoint {_name(file)}: it asks for more memory than there is. A damaged file, or one '
            'made to do harm, does that too.'
        ) from None
    except Exception as error:  # broken bytes can fail at any point of the unpickler, in a dozen ways
        # A sound file, whose device is not here or too small: torch says what to do.
        if any(hint in str(error) for hint in ('deserialize object on', 'out of memory')):
            raise
        if isinstance(error, AttributeError) and checkpoints_are_trusted():  # a type that its module no longer has
            raise
        raise UserError(_explain(file, error)) from None  # torch's text says how to switch safety off


def _explain(file: str | os.PathLike | IO[bytes], error: Exception) -> str:
    refused = REFUSED.search(str(error))
    if not refused:
        return f'Cannot read the checkpoint {_name(file)}: {_appearance(file)}. (PyTorch says: {_first_line(error)})'
    return (
        f'The checkpoint {_name(file)} is not read: besides tensors and plain data it needs '
        f'{refused[refused.lastgroup]}, and a file that may name such types can run any code on your machine. The '
        'checkpoints of this package, MMEngine, MMDetection and MMSegmentation need none. ' + TRUST_ADVICE
    )


def _name(file: str | os.PathLike | IO[bytes]) -> str:
    return getattr(file, 'name', 'the downloaded data') if hasattr(file, 'read') else str(file)


def _appearance(file: str | os.PathLike | IO[bytes]) -> str:
    """Say what a file that is no sound checkpoint is, by its first bytes, and what to do."""
    if not hasattr(file, 'read'):
        with open(file, 'rb') as opened:
            return _appearance(opened)
    file.seek(0)
    head = file.read(512)
    parts = _zip_parts(file)
    if not head:
        return 'the file is empty. Copy or download it again, and check that the disk is not full'
    if head[6:9] == b'\0\0{':
        return 'it is a safetensors file, which is read by its path only'
    if 'constants.pkl' in parts:
        return 'it is a TorchScript program, not a checkpoint. Save the state_dict() of its model with torch.save'
    if parts and 'data.pkl' not in parts:
        return ARCHIVE
    unknown = f'it begins with {head[:16]!r}, which no PyTorch checkpoint does. Name a file that torch.save wrote'
    text = head.lstrip().lower()
    return next((kind for beginnings, kind in BEGINNINGS.items() if text.startswith(beginnings)), unknown)


def _zip_parts(file: IO[bytes]) -> set[str]:
    """Return the names in the archive without their folder; none if it is no sound archive."""
    try:
        return {Path(name).name for name in zipfile.ZipFile(file).namelist()}
    except Exception:  # as in can_be_mapped
        return set()


def _first_line(error: Exception) -> str:
    """Return what a library says of an error, without torch's advice to switch ``weights_only`` off."""
    # torch puts general advice first and the cause behind this mark
    text = str(error).split('WeightsUnpickler error:')[-1].strip()
    sentences = re.split(r'(?<=\.) ', text.split('\n')[0])
    return ' '.join(itertools.takewhile(lambda each: 'weights_only' not in each, sentences)) or type(error).__name__


# Downloads


def read_checkpoint_from_url(
    url: str,
    model_dir: str | None = None,
    map_location: Any = None,
    file_name: str | None = None,
    progress: bool = True,
) -> Any:
    """Download the checkpoint unless it is in the cache, and read it safely.

    Args:
        url: Where the file is. A name that ends in a hash, as in ``NAME-1a2b3c4d.pth``, is checked: the file's SHA-256
            must begin so.
        model_dir: Folder of the cache; torch's own, ``~/.cache/torch/hub/checkpoints``, if None.
        map_location: As for ``torch.load``.
        file_name: Name in the cache; the URL's last part if None, in a folder of its own where that has no hash.
        progress: Show a progress bar.

    Raises:
        UserError: What was downloaded is damaged, no checkpoint, or not safe to read.
        OSError: It cannot be downloaded.
    """
    import torch

    folder = Path(model_dir or os.path.join(torch.hub.get_dir(), 'checkpoints'))
    name = file_name or os.path.basename(urlparse(url).path)
    found = HASH_IN_NAME.search(name)
    if not found and not file_name:  # the same name at two addresses may be two files
        folder /= hashlib.sha256(url.encode()).hexdigest()[:8]
    cached = folder / name
    if cached.is_file():
        _check_hash(cached, found and found[1], url)
    else:
        _download(url, cached, found and found[1], progress)
    warn_of_old_torch(cached)
    try:
        return read_checkpoint(cached, map_location, mmap=True)
    except UserError as error:
        raise UserError(f'{error} The file was downloaded from {url}; delete it to download it again.') from error


def _download(url: str, file: Path, digest: str | None, progress: bool) -> None:
    import torch

    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(file), digest, progress)
    except RuntimeError as error:
        if 'invalid hash value' not in str(error):
            raise
        raise UserError(
            f'What {url} sent is not the file of that name: its SHA-256 does not begin with {digest}. Nothing was '
            'kept; try again, or get the file from its makers.'
        ) from error


def _check_hash(file: Path, digest: str | None, url: str) -> None:
    if digest and not _sha256(file, file.stat().st_mtime_ns).startswith(digest):
        raise UserError(
            f'The file {file} is not the one of that name: its SHA-256 does not begin with {digest}. Delete it to '
            f'download it again from {url}.'
        )


@functools.cache
def _sha256(file: Path, changed: int) -> str:
    """Return a file's SHA-256, computed once in a process for each time it ``changed``: a gigabyte takes seconds."""
    digest = hashlib.sha256()
    with open(file, 'rb') as opened:
        while chunk := opened.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def warn_of_old_torch(file: str | os.PathLike) -> None:
    """Warn where a file that was downloaded could attack the installed PyTorch; no .safetensors file can."""
    import torch

    if not is_safetensors(file) and Version(torch.__version__) < Version(SAFE_TORCH):
        warnings.warn(
            f'PyTorch {torch.__version__} can be attacked by a .pth file, however it is read. For files of strangers '
            f'update to torch >= {SAFE_TORCH}, or use .safetensors files.',
            stacklevel=3,
        )


@contextlib.contextmanager
def first_on_this_machine() -> Iterator[None]:
    """Let one process of each machine download first; the others then find the file in the cache.

    Where it fails the others try and fail too; MMEngine's own loader leaves them waiting for ever.
    """
    import torch

    is_distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    is_first = int(os.environ.get('LOCAL_RANK', 0)) == 0
    if is_distributed and not is_first:
        torch.distributed.barrier()
    try:
        yield
    finally:
        if is_distributed and is_first:
            torch.distributed.barrier()
