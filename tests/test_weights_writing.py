"""Files of weights: what others read from them, that the same weights give the same bytes, and a disk that is full."""

import hashlib
import resource
from collections import OrderedDict

import pytest
import torch

from convnext_dense import UserError
from convnext_dense.compat import read_checkpoint
from convnext_dense.compat.files import write_text
from convnext_dense.weights.write import write_weights

SUFFIXES = pytest.mark.parametrize('suffix', ['.safetensors', '.pth'])


def weights() -> OrderedDict:
    large = torch.randn(100_000, 40)
    return OrderedDict(
        kernel=torch.randn(4, 3, 2, 2).permute(1, 0, 3, 2),  # not contiguous
        view=large[3],
        same_view=large[3],
        scalar=torch.tensor(7),
        empty=torch.ones(0, 5),
        mask=torch.tensor([True, False, True]),
        half=torch.randn(5).half(),
        brain=torch.randn(5).bfloat16(),
        byte=torch.randn(5).to(torch.float8_e4m3fn),
    )


@SUFFIXES
def test_what_is_written_comes_back_and_gives_the_same_bytes(suffix, tmp_path):
    tensors, file = weights(), tmp_path / f'a.b{suffix}'
    digest = write_weights(tensors, file, 'state_dict', {'epoch': 3})
    assert digest == hashlib.sha256(file.read_bytes()).hexdigest()
    assert file.stat().st_size < 10_000  # without what the views are views of
    assert list(tmp_path.iterdir()) == [file]
    assert write_weights(tensors, tmp_path / f'c{suffix}', 'state_dict', {'epoch': 3}) == digest
    content = read_checkpoint(file)
    assert content['meta'] == {'epoch': 3}
    assert content['state_dict'].keys() == tensors.keys()
    for key, value in content['state_dict'].items():
        assert value.dtype == tensors[key].dtype
        assert torch.equal(value.float(), tensors[key].float())


def test_a_type_that_safetensors_lacks(tmp_path):
    with pytest.raises(UserError, match=r'complex128\. Write a \.pth'):
        write_weights({'odd': torch.ones(2, dtype=torch.complex128)}, tmp_path / 'file.safetensors')
    assert list(tmp_path.iterdir()) == []


@SUFFIXES
@pytest.mark.parametrize('room', [10, 1000, 400_300, 401_000])
def test_a_full_disk(tmp_path, suffix, room):
    file = tmp_path / f'file{suffix}'
    file.write_text('precious')
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        with pytest.raises(UserError, match=r'cannot be written \(.*File too large'):
            write_weights({'weight': torch.randn(1000, 100), 'bias': torch.randn(1000)}, file)
        with pytest.raises(UserError, match=r'cannot be written \(File too large'):
            write_text('x' * 500_000, file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert file.read_text() == 'precious'
    assert list(tmp_path.iterdir()) == [file]
