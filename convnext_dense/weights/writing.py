"""Tensors and a few plain values go in, a ``.safetensors`` or ``.pth`` file comes out, whole or not at all.

Nothing is put together in memory: the tensors go one after the other from the file they are mapped from, or the model
they are part of, into a hidden file, which is hashed on the way and takes the target's place when it is complete.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from torch import Tensor

from convnext_dense.compat.checkpoints import META_KEY
from convnext_dense.compat.errors import UserError
from convnext_dense.weights.draft import open_draft
from convnext_dense.weights.report import printable

SUFFIXES = ('.safetensors', '.pth')
# PyTorch's names of types -> those in the header of a safetensors file
SAFETENSORS_TYPES = {
    'float64': 'F64', 'float32': 'F32', 'float16': 'F16', 'bfloat16': 'BF16', 'complex64': 'C64', 'bool': 'BOOL',
    'int64': 'I64', 'int32': 'I32', 'int16': 'I16', 'int8': 'I8',
    'uint64': 'U64', 'uint32': 'U32', 'uint16': 'U16', 'uint8': 'U8',
    'float8_e4m3fn': 'F8_E4M3', 'float8_e4m3fnuz': 'F8_E4M3FNUZ',
    'float8_e5m2': 'F8_E5M2', 'float8_e5m2fnuz': 'F8_E5M2FNUZ',
}  # fmt: skip
ALIGNMENT = 8  # bytes, of what follows the header


class Written(NamedTuple):
    """A file that was written.

    Attributes:
        file: Where.
        size: In bytes.
        sha256: Its hash, in hexadecimal digits.
    """

    file: Path
    size: int
    sha256: str


class HashedStream:
    """Passes on what is written to it, counts it and hashes it.

    ``torch.save`` answers an error in the middle of an archive with one of its own, so the first one is kept.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream
        self.size = 0
        self.sha256 = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write bytes, or an array of them."""
        if self.error is None:
            try:
                self.stream.write(data)
            except OSError as error:
                self.error = error
        self.sha256.update(data)
        self.size += len(data)
        return len(data)

    def flush(self) -> None:
        """Do nothing: ``torch.save`` asks for it, and the file is flushed when it is complete."""


def write_weights(
    tensors: Mapping[str, Tensor],
    file: Path,
    wrapper: str = '',
    meta: Mapping[str, Any] | None = None,
    *,
    hash_in_name: bool = False,
) -> Written:
    """Write a file of weights in one step.

    The same weights give the same bytes, and with them the same hash.

    Args:
        tensors: Name -> tensor.
        file: The file; its suffix is one of :data:`SUFFIXES`.
        wrapper: The entry of a ``.pth`` file that holds the tensors; none: they are its entries.
        meta: Plain values beside the tensors, as the entry ``meta`` or in the header; none where it is None.
        hash_in_name: Append the first eight digits of the file's SHA-256 to its name.

    Raises:
        UserError: The format cannot store the type of a tensor, or the file cannot be written.
    """
    try:
        with open_draft(file) as draft:
            stream = HashedStream(draft.stream)
            if file.suffix == '.pth':
                write_archive(stream, tensors, wrapper, meta)
            else:
                write_safetensors(stream, tensors, meta)
            if stream.error:
                raise stream.error
            digest = stream.sha256.hexdigest()
            if hash_in_name:
                draft.target = file.with_name(f'{file.name.removesuffix(file.suffix)}-{digest[:8]}{file.suffix}')
    except OSError as error:
        raise cannot_write(file, error) from error
    return Written(draft.target, stream.size, digest)


def write_text(text: str, file: Path) -> None:
    """Write a text in one step.

    Raises:
        UserError: The file cannot be written.
    """
    try:
        with open_draft(file) as draft:
            draft.stream.write(text.encode())
    except OSError as error:
        raise cannot_write(file, error) from error


def write_archive(
    stream: HashedStream, tensors: Mapping[str, Tensor], wrapper: str, meta: Mapping[str, Any] | None
) -> None:
    """Write what ``torch.save`` writes; into a path it would also write the path's name."""
    tensors = compact(tensors)
    content = {wrapper: tensors} if wrapper else tensors
    try:
        torch.save(content if meta is None else {'meta': dict(meta), **content}, stream)
    except RuntimeError:
        if stream.error is None:
            raise


def write_safetensors(stream: HashedStream, tensors: Mapping[str, Tensor], meta: Mapping[str, Any] | None) -> None:
    """Write a safetensors file: the length of a header, the header, and the tensors' bytes.

    The package safetensors makes all of that in memory, or writes it with ``__metadata__`` in a random place.

    Raises:
        UserError: The format does not know the type of a tensor.
    """
    metadata = {'format': 'pt'} if meta is None else {'format': 'pt', META_KEY: json.dumps(meta, sort_keys=True)}
    header, end = {'__metadata__': metadata}, 0
    ordered = sorted(tensors, key=lambda key: (-tensors[key].element_size(), key))  # each is then aligned
    for key in ordered:
        dtype = str(tensors[key].dtype).removeprefix('torch.')
        if dtype not in SAFETENSORS_TYPES:
            raise UserError(f'A .safetensors file cannot hold {printable(key)}, of type {dtype}. Write a .pth file.')
        start, end = end, end + tensors[key].nbytes
        shape = list(tensors[key].shape)
        header[key] = {'dtype': SAFETENSORS_TYPES[dtype], 'shape': shape, 'data_offsets': [start, end]}
    text = json.dumps(header, sort_keys=True, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % ALIGNMENT)
    stream.write(len(text).to_bytes(8, 'little') + text)
    for key in ordered:
        stream.write(tensors[key].detach().contiguous().reshape(-1).view(torch.uint8).numpy())


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


def cannot_write(file: Path, error: OSError) -> UserError:
    """Return what to tell the user where a file cannot be written."""
    return UserError(f'{file} cannot be written ({error.strerror}). Give another place, or make room.')


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
