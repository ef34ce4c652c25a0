"""Tensors and a few plain values go in, a ``.safetensors`` or ``.pth`` file comes out, whole or not at all."""

import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convnext_dense.errors import UserError
from convnext_dense.stack.atomic_files import write_atomically
from convnext_dense.stack.checkpoint_loading import META_KEY

SUFFIXES = ('.safetensors', '.pth')


def encode(
    tensors: Mapping[str, Tensor], suffix: str, wrapper: str = '', meta: Mapping[str, Any] | None = None
) -> bytes:
    """Return the bytes of a file.

    Args:
        tensors: Name -> tensor.
        suffix: One of :data:`SUFFIXES`.
        wrapper: The entry of a ``.pth`` file that holds the tensors; none: they are its entries.
        meta: Plain values beside the tensors, as the entry ``meta`` or in the header; none where it is None.

    Raises:
        UserError: The package safetensors is missing, or cannot store the type of a tensor.
    """
    tensors = compact(tensors)
    if suffix == '.pth':
        content = {wrapper: tensors} if wrapper else tensors
        buffer = io.BytesIO()  # an open file: into a path torch.save would also write the path's name
        torch.save(content if meta is None else {'meta': dict(meta), **content}, buffer)
        return buffer.getvalue()
    try:
        from safetensors.torch import save
    except ImportError as error:
        raise UserError('A .safetensors file needs the package safetensors: pip install safetensors.') from error
    metadata = {'format': 'pt'} if meta is None else {'format': 'pt', META_KEY: json.dumps(meta, sort_keys=True)}
    try:
        return in_order(save(dict(tensors), metadata))
    except KeyError as error:  # a dtype that the format does not have
        raise UserError(f'A .safetensors file cannot hold tensors of type {error}. Write a .pth file.') from error


def in_order(content: bytes) -> bytes:
    """Return a safetensors file with a sorted header: the library writes ``__metadata__`` in a random order.

    The same weights shall give the same bytes, and with them the same hash in the name.
    """
    end = 8 + int.from_bytes(content[:8], 'little')
    header = json.dumps(json.loads(content[8:end]), sort_keys=True, separators=(',', ':')).encode()
    header += b' ' * (-len(header) % 8)  # the tensors stay aligned
    return b''.join((len(header).to_bytes(8, 'little'), header, memoryview(content)[end:]))


def compact(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return the tensors contiguous, each in memory of its own: a view would be saved with all that it is a view of."""
    seen, compacted = set(), type(tensors)()
    for key, tensor in tensors.items():
        tensor = tensor.detach().contiguous()
        storage = tensor.untyped_storage()
        if storage.nbytes() != tensor.nbytes or (tensor.nbytes and storage.data_ptr() in seen):
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        compacted[key] = tensor
    if hasattr(tensors, '_metadata'):
        compacted._metadata = tensors._metadata
    return compacted


def write_file(content: bytes, file: Path) -> None:
    """Write a file in one step.

    Raises:
        UserError: The folder cannot be written, or the disk is full.
    """
    try:
        write_atomically(content, file)
    except OSError as error:
        raise UserError(f'{file} cannot be written ({error.strerror}). Give another place, or make room.') from error


def check_output(file: Path, source: str | os.PathLike, force: bool = False) -> None:
    """Look at a file that is to be written, before any work is done.

    Args:
        file: The file.
        source: Where its content comes from; never overwritten.
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
