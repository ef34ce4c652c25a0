"""Files of weights and texts, written in one step: whole or not at all."""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from convnext_dense.compat.checkpoints import META_KEY
from convnext_dense.compat.errors import UserError
from convnext_dense.weights.report import dtype_name

SUFFIXES = ('.safetensors', '.pth')


@contextlib.contextmanager
def replaced(file: Path) -> Iterator[Path]:
    """Give a hidden file beside ``file`` to write to; after the block it is flushed and takes the place of ``file``."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f'.{file.name}.', dir=file.parent) as folder:
        draft = Path(folder, file.name)
        yield draft
        with draft.open('rb+') as written:
            os.fsync(written.fileno())
        draft.replace(file)


@contextlib.contextmanager
def explained(file: Path) -> Iterator[None]:
    """Turn what the disk refuses into a :class:`UserError` that names the file."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, 'strerror', None) or str(error)
        raise UserError(f'{file} cannot be written ({reason}). Give another place, or make room.') from error


def write_text(text: str, file: Path) -> None:
    """Write a text in one step.

    Raises:
        UserError: The file cannot be written.
    """
    with explained(file), replaced(file) as draft:
        draft.write_text(text, encoding='utf-8')


def write_weights(
    tensors: Mapping[str, Tensor], file: Path, wrapper: str = '', meta: Mapping[str, Any] | None = None
) -> str:
    """Write a file of weights in one step and return its SHA-256 in hexadecimal digits.

    The same weights give the same bytes.

    Args:
        tensors: Name -> tensor.
        file: The file; its suffix is one of :data:`SUFFIXES`.
        wrapper: The entry of a ``.pth`` file that holds the tensors; without one they are its entries.
        meta: Plain values beside the tensors: the entry ``meta`` of a ``.pth`` file, text in the header of a
            ``.safetensors`` file.

    Raises:
        UserError: The format cannot store the type of a tensor, or the file cannot be written.
    """
    tensors = separate(tensors)
    odd = {dtype_name(tensor) for tensor in tensors.values() if tensor.dtype.is_complex}
    if odd and file.suffix != '.pth':
        raise UserError(f'A .safetensors file cannot hold tensors of type {odd.pop()}. Write a .pth file.')
    with explained(file), replaced(file) as draft:
        if file.suffix == '.pth':
            content = {wrapper: tensors} if wrapper else tensors
            save_archive(content if meta is None else {'meta': dict(meta), **content}, draft)
        else:
            # One entry: the package writes several in a random order, and the hash would change.
            header = {'format': 'pt'} if meta is None else {META_KEY: json.dumps(meta, sort_keys=True)}
            save_file(dict(tensors), draft, header)
        digest = hashlib.sha256()
        with draft.open('rb') as written:
            while chunk := written.read(2**20):
                digest.update(chunk)
    return digest.hexdigest()


def save_archive(content: Mapping, file: Path) -> None:
    """Save with ``torch.save``, through a stream: into a path it would write the path's name into the archive too."""
    with file.open('wb') as stream:
        try:
            torch.save(content, stream)
        except RuntimeError as error:  # PyTorch's, over that of the stream
            raise OSError(getattr(error.__context__, 'strerror', None) or str(error)) from error


def separate(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return the tensors contiguous, each in memory of its own: a view would be saved with all that it is a view of."""
    seen, separated = set(), type(tensors)()
    for key, tensor in tensors.items():
        tensor = tensor.detach().contiguous()
        storage = tensor.untyped_storage()
        if storage.nbytes() != tensor.nbytes or (tensor.nbytes and storage.data_ptr() in seen):
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        separated[key] = tensor
    if hasattr(tensors, '_metadata'):
        separated._metadata = tensors._metadata
    return separated


def check_output(file: Path, source: str | os.PathLike, force: bool = False) -> None:
    """Look at a file that is to be written, before any work is done.

    Args:
        file: The file.
        source: Where its content comes from; it is never overwritten.
        force: An existing file may be replaced.

    Raises:
        UserError: Its suffix is unknown, it is the source, or it exists.
    """
    if file.suffix not in SUFFIXES:
        raise UserError(f'A file to write ends in {" or ".join(SUFFIXES)}; got {file}.')
    if file.exists() and os.path.exists(source) and file.samefile(source):
        raise UserError(f'{file} is the file that is read; it is not overwritten. Give another name.')
    if file.exists() and not force:
        raise UserError(f'{file} exists. Give another name, or replace it with --force.')
