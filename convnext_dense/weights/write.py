"""Files of weights, written in one step: whole or not at all."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from convnext_dense.compat.checkpoints import META_KEY, sha256
from convnext_dense.compat.checksums import DIGEST_KEY, NO_DIGEST, seal_archive, seal_safetensors
from convnext_dense.compat.errors import UserError
from convnext_dense.compat.files import explained, replaced
from convnext_dense.weights.report import dtype_name

SUFFIXES = ('.safetensors', '.pth')


def write_weights(
    tensors: Mapping[str, Tensor], file: Path, wrapper: str = '', meta: Mapping[str, Any] | None = None
) -> str:
    """Write a file of weights with its digest in one step; return its SHA-256; the same weights give the same bytes.

    In a ``.pth`` file the tensors are the entry ``wrapper``, or the entries, and ``meta``, plain values, stands beside
    them; in a ``.safetensors`` file ``meta`` is text in the header.

    Raises:
        UserError: The format cannot store the type of a tensor, or the file cannot be written.
    """
    tensors = separate(tensors)
    odd = {dtype_name(tensor) for tensor in tensors.values() if tensor.dtype.is_complex}
    if odd and file.suffix != '.pth':
        raise UserError(f'{file} cannot hold tensors of type {odd.pop()}. Give it the suffix .pth.')
    with explained(file), replaced(file) as draft:
        try:
            if file.suffix == '.pth':
                content = {wrapper: tensors} if wrapper else tensors
                with draft.open('wb') as stream:  # into a path PyTorch would write the path's name too
                    torch.save(content if meta is None else {'meta': dict(meta), **content}, stream)
                seal_archive(draft)
            else:
                header = {'format': 'pt'} if meta is None else {META_KEY: json.dumps(meta, sort_keys=True)}
                save_file(dict(tensors), draft, {DIGEST_KEY: NO_DIGEST, **header})
                seal_safetensors(draft)
        except (RuntimeError, SafetensorError) as error:  # theirs, over that of the disk
            raise OSError(getattr(error.__context__, 'strerror', None) or str(error)) from error
        return sha256(draft)


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
    """Raise a :class:`UserError` if a file to write has another suffix, is the source, or exists and is not forced."""
    if file.suffix not in SUFFIXES:
        raise UserError(f'A file to write ends in {" or ".join(SUFFIXES)}; got {file}.')
    if file.exists() and os.path.exists(source) and file.samefile(source):
        raise UserError(f'{file} is the file that is read; it is not overwritten. Give another name.')
    if file.exists() and not force:
        raise UserError(f'{file} exists. Give another name, or replace it with --force.')
