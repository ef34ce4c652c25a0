"""The digest in the files that this package writes: other programs read them, and what was changed is told."""

import time

import pytest
import torch
from mutated_files import mutated
from safetensors import safe_open
from safetensors.torch import load_file

from convnext_dense import UserError
from convnext_dense.compat import read_checkpoint
from convnext_dense.compat.checksums import DIGEST_KEY, NOTED, check_records, seal_archive
from convnext_dense.weights.write import write_weights

META = {
    'cfg': 'a = "é\x1b\\\t\x7f"',
    'dataset_meta': {'classes': ['\u2028', '"convnext_dense_sha256":"' + '0' * 64 + '"']},
}


def weights(size=50):
    return {f'layer{i}.weight': torch.randn(size, size) for i in range(4)}


@pytest.mark.parametrize('meta', [None, META])
@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_the_same_weights_give_the_same_file_which_others_read(suffix, meta, tmp_path):
    given = weights()
    files = [tmp_path / f'{i}{suffix}' for i in range(9)]
    assert len({write_weights(given, file, meta=meta) for file in files}) == 1
    read = load_file(files[0]) if suffix == '.safetensors' else torch.load(files[0], weights_only=True, mmap=True)
    assert all(torch.equal(read[name], value) for name, value in given.items())
    found = read_checkpoint(files[0])
    assert found.get('meta') == meta
    if suffix == '.safetensors':
        with safe_open(files[0], 'pt') as opened:
            assert len(opened.metadata()[DIGEST_KEY]) == 64


def test_the_bytes_of_a_safetensors_file_count(tmp_path):
    file = tmp_path / 'model.safetensors'
    write_weights(weights(4), file, meta=META)
    content = file.read_bytes()
    begin, end = NOTED.search(content).span()
    for place in range(0, len(content), 3):
        changed = bytearray(content)
        changed[place] ^= 1
        file.write_bytes(changed)
        if begin <= place < end:  # then there is no digest, or another
            continue
        with pytest.raises(UserError, match=r'model\.safetensors'):
            read_checkpoint(file)


def test_exchanged_records_are_told_where_there_is_a_digest(tmp_path):
    file, other = tmp_path / 'model.pth', tmp_path / 'other.pth'
    torch.save(weights(), file)
    read_checkpoint(mutated(file, 'records with exchanged contents', 0, other))
    seal_archive(file)
    with pytest.raises(UserError, match=r'other\.pth is damaged: the list of its records'):
        read_checkpoint(mutated(file, 'records with exchanged contents', 0, other))


def test_the_digest_of_an_archive_costs_next_to_nothing(tmp_path):
    plain, sealed = tmp_path / 'plain.pth', tmp_path / 'sealed.pth'
    for file in (plain, sealed):
        torch.save({str(i): torch.randn(62_500) for i in range(200)}, file)
    seal_archive(sealed)
    seconds = []
    for file in (plain, sealed):
        begin = time.perf_counter()
        check_records(file)
        seconds.append(time.perf_counter() - begin)
    assert seconds[1] < 2 * seconds[0]
