"""Files of weights: what others read from them, what their names and bytes are, and a disk that is full."""

import hashlib
import io
import json
import resource
from collections import OrderedDict

import pytest
import safetensors.torch
import torch

from convnext_dense import UserError
from convnext_dense.weights.write import write_text, write_weights

SUFFIXES = pytest.mark.parametrize('suffix', ['.safetensors', '.pth'])


def weights() -> OrderedDict:
    return OrderedDict(
        kernel=torch.randn(4, 3, 2, 2).permute(1, 0, 3, 2),  # not contiguous
        scalar=torch.tensor(7),
        empty=torch.ones(0, 5),
        mask=torch.tensor([True, False, True]),
        half=torch.randn(5).half(),
    )


def split(content: bytes) -> tuple[dict, bytes]:
    """Return the header of a safetensors file, and what follows it."""
    end = 8 + int.from_bytes(content[:8], 'little')
    return json.loads(content[8:end]), content[end:]


def test_safetensors_are_what_the_package_writes(tmp_path):
    tensors = weights()
    written = write_weights(tensors, tmp_path / 'file.safetensors').file.read_bytes()
    contiguous = {key: value.contiguous() for key, value in tensors.items()}
    assert split(written) == split(safetensors.torch.save(contiguous, {'format': 'pt'}))
    assert int.from_bytes(written[:8], 'little') % 8 == 0
    assert list(split(written)[0]) == ['__metadata__', *sorted(tensors)]


@pytest.mark.parametrize('name', SAFETENSORS_TYPES)
def test_every_type_comes_back(tmp_path, name):
    dtype = getattr(torch, name)
    value = torch.arange(24).reshape(2, 3, 4).to(dtype)
    write_weights({'value': value, 'other': torch.ones(3)}, tmp_path / 'file.safetensors')
    back = safetensors.torch.load_file(tmp_path / 'file.safetensors')['value']
    assert back.dtype == dtype
    assert torch.equal(back.view(torch.uint8), value.view(torch.uint8))


def test_a_type_that_safetensors_lacks(tmp_path):
    with pytest.raises(UserError, match=r'A \.safetensors file cannot hold odd, of type complex128\. Write a \.pth'):
        write_weights({'odd': torch.ones(2, dtype=torch.complex128)}, tmp_path / 'file.safetensors')
    assert list(tmp_path.iterdir()) == []


def test_an_archive_is_what_torch_saves(tmp_path):
    tensors = OrderedDict((key, value.contiguous()) for key, value in weights().items())
    write_weights(tensors, tmp_path / 'file.pth', 'state_dict', {'epoch': 3})
    buffer = io.BytesIO()
    torch.save({'meta': {'epoch': 3}, 'state_dict': tensors}, buffer)
    assert (tmp_path / 'file.pth').read_bytes() == buffer.getvalue()


@SUFFIXES
def test_size_and_hash(tmp_path, suffix):
    tensors = weights()
    written = write_weights(tensors, tmp_path / f'a.b{suffix}', 'state_dict', {'epoch': 3}, hash_in_name=True)
    content = written.file.read_bytes()
    assert written.sha256 == hashlib.sha256(content).hexdigest()
    assert written.size == len(content)
    assert written.file == tmp_path / f'a.b-{written.sha256[:8]}{suffix}'
    assert list(tmp_path.iterdir()) == [written.file]
    assert write_weights(tensors, tmp_path / f'c{suffix}', 'state_dict', {'epoch': 3}).sha256 == written.sha256


@SUFFIXES
@pytest.mark.parametrize('room', [10, 1000, 400_300, 401_000])
def test_a_full_disk(tmp_path, suffix, room):
    file = tmp_path / f'file{suffix}'
    file.write_text('precious')
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        with pytest.raises(UserError, match=r'cannot be written \(File too large\)\. Give another place, or make room'):
            write_weights({'weight': torch.randn(1000, 100), 'bias': torch.randn(1000)}, file)
        with pytest.raises(UserError, match=r'cannot be written \(File too large\)'):
            write_text('x' * 500_000, file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert file.read_text() == 'precious'
    assert list(tmp_path.iterdir()) == [file]
