"""Read checkpoints without running code that hides in them.

A checkpoint is a pickle, and a pickle can call any function when it is read; :mod:`.unpickling` says what it may build.
A safetensors file holds nothing but tensors and text. It is known by its first bytes, whatever its name.
"""

import contextlib
import hashlib
import json
import os
import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import IO, Any
from urllib.parse import urlparse

from packaging.version import Version

from .checksums import check_records, is_safetensors
from .errors import UserError
from .module_view import ModuleView
from .unpickling import TRUST_ADVICE, allowed_types, checkpoints_are_trusted, explained_errors, first_line, refuse_tar

META_KEY = 'convnext_dense'  # where a safetensors file carries what a checkpoint holds besides tensors
CHECKPOINT_SUFFIXES = ('.pth', '.pt', '.bin', '.safetensors')
# A date, as in NAME-20240115.pth, is no hash
HASH_IN_NAME = re.compile(r'-(?!(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\.)([0-9a-f]{8,64})\.[a-z]+$')
# The first version whose weights_only reading no crafted file is known to break: CVE-2026-24747
# (https://github.com/pytorch/pytorch/security/advisories/GHSA-63cw-57p8-fm3p)
SAFE_TORCH = '2.10'

# The largest model's checkpoint, with its optimizer, its config and the log of a million steps, stays below these.
# torch.save compresses nothing, and one byte of a pickle can take a hundred bytes of memory, so that less is read of an
# archive that somebody compressed.
MOST_PICKLE_BYTES = 2**31
MOST_COMPRESSED_PICKLE_BYTES = 2**24
MOST_EXPANSION = 10
MOST_ENTRIES = 100_000


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
        mmap = can_be_mapped(file) and mmap
        check_records(file)
        if is_safetensors(file):
            return read_safetensors(file, map_location)
    torch_options['weights_only'] = not checkpoints_are_trusted()
    if torch_options['weights_only']:
        refuse_tar(file)
    with explained_errors(file), allowed_types():
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
    shown = ', '.join(names[:10]) + (f' and {len(names) - 10} more' if len(names) > 10 else '')
    raise UserError(f'Checkpoint {path} {problem}. The checkpoints in {folder} are: {shown or "none"}.')


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
                raise excess(file, f'it holds {len(keys):,} tensors')
            tensors = {key: opened.get_tensor(key) for key in keys}
            meta = json.loads((opened.metadata() or {}).get(META_KEY, 'null'), object_hook=_with_colours)
    except (SafetensorError, json.JSONDecodeError, RecursionError) as error:
        raise UserError(
            f'Cannot read the checkpoint {file}: it begins like a safetensors file but is cut short or damaged. Copy '
            f'or download it again. (safetensors says: {first_line(error)})'
        ) from error
    if map_location is not None and not callable(map_location):
        tensors = {key: tensor.to(map_location) for key, tensor in tensors.items()}
    return tensors if meta is None else {'meta': meta, 'state_dict': tensors}


def _with_colours(entry: dict) -> dict:
    """Make the colours of a palette tuples again: JSON knows lists only, which MMDetection takes for many colours."""
    if isinstance(entry.get('palette'), list):
        entry['palette'] = [tuple(colour) if isinstance(colour, list) else colour for colour in entry['palette']]
    return entry


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
    is_plain = all(part.compress_type == zipfile.ZIP_STORED for part in parts)
    if not checkpoints_are_trusted():
        refuse_excess(file, parts, is_plain)
    return is_plain


def refuse_excess(file: str | os.PathLike, parts: list[zipfile.ZipInfo], is_plain: bool) -> None:
    """Raise a ``UserError`` if the entries of an archive would fill the memory."""
    packed, unpacked = os.path.getsize(file), sum(part.file_size for part in parts)
    pickled = sum(part.file_size for part in parts if part.filename.endswith('.pkl'))
    most, how = (MOST_PICKLE_BYTES, '') if is_plain else (MOST_COMPRESSED_PICKLE_BYTES, ', compressed')
    if unpacked > MOST_EXPANSION * max(packed, 2**20):
        raise excess(file, f'its {packed:,} bytes expand to {unpacked:,}')
    if pickled > most:
        raise excess(file, f'it holds {pickled:,} bytes of names and settings{how}')
    if len(parts) > MOST_ENTRIES:
        raise excess(file, f'it holds {len(parts):,} entries')


def excess(file: str | os.PathLike, problem: str) -> UserError:
    """Return the error for a file that holds too much."""
    return UserError(
        f'The checkpoint {file} is not read: {problem}. No checkpoint of a model does, and it could fill the memory. '
        f'{TRUST_ADVICE}'
    )


def read_checkpoint_from_url(
    url: str,
    model_dir: str | None = None,
    map_location: Any = None,
    file_name: str | None = None,
    progress: bool = True,
) -> Any:
    """Download the checkpoint unless it is in the cache, and read it safely.

    Args:
        url: Where the file is. If its name ends in a hash, as in ``NAME-1a2b3c4d.pth``, its SHA-256 must begin so.
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
    digest, cached = found and found[1], folder / name
    if not cached.is_file():
        download(url, cached, digest, progress)
    elif digest and not sha256(cached).startswith(digest):
        raise UserError(
            f'The file {cached} is not the one of that name: its SHA-256 does not begin with {digest}. Delete it to '
            f'download it again from {url}.'
        )
    warn_of_old_torch(cached)
    try:
        return read_checkpoint(cached, map_location, mmap=True)
    except UserError as error:
        raise UserError(f'{error} The file was downloaded from {url}; delete it to download it again.') from error


def download(url: str, file: Path, digest: str | None, progress: bool) -> None:
    """Download a file, whose SHA-256 must begin with ``digest``."""
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


def sha256(file: Path) -> str:
    """Return a file's SHA-256."""
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
    from mmengine.dist import barrier  # which does nothing outside of a process group

    is_first = int(os.environ.get('LOCAL_RANK', 0)) == 0
    if not is_first:
        barrier()
    try:
        yield
    finally:
        if is_first:
            barrier()
