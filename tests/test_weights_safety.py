"""Files that are hostile, damaged or odd: none runs code, none fills the memory, each has a clear outcome."""

import contextlib
import json
import os
import re
import shutil
import threading
import time
import warnings
import zipfile
from pathlib import Path

import huggingface_hub
import mmengine.runner.checkpoint as upstream
import numpy as np
import pytest
import torch
from mutated_files import Trap
from safetensors.torch import save_file
from small_models import SMALL, Detector, assert_holds, randomize
from torch import nn

from convnext_dense import ConvNeXt, UserError
from convnext_dense.compat import checkpoints
from convnext_dense.weights import load_weights
from convnext_dense.weights.convert import convert
from convnext_dense.weights.inspect import describe
from convnext_dense.weights.publish import publish


@pytest.fixture
def weights():
    return randomize(ConvNeXt(SMALL, out_norm=False)).state_dict()


def load(source, **options):
    model = ConvNeXt(SMALL, out_norm=False)
    return model, load_weights(model, source, **options)


def message(source):
    with pytest.raises(UserError) as caught:
        load(source)
    return str(caught.value)


def save(content, file):
    (save_file if file.suffix == '.safetensors' else torch.save)(content, file)
    return file


# Code


def from_hub(file, monkeypatch):
    monkeypatch.setattr(huggingface_hub, 'hf_hub_download', lambda *_, **__: str(file))
    load('hf://a/b')


def from_facebook(file, monkeypatch):
    monkeypatch.setattr(torch.hub, '_hub_dir', str(file.parent / 'torch'))
    monkeypatch.setattr(torch.hub, 'download_url_to_file', lambda url, path, *_: shutil.copy(file, path))
    load('convnext://tiny_1k')


DOORS = {
    'load_weights': lambda file, _: load(file),
    'init_cfg': lambda file, _: ConvNeXt(SMALL, init_cfg=dict(type='Pretrained', checkpoint=str(file))).init_weights(),
    'mmengine': lambda file, _: upstream.load_checkpoint(Detector(), str(file)),
    'mmengine without our backbone': lambda file, _: upstream.load_checkpoint(nn.Linear(1, 1), str(file)),
    'inspect': lambda file, _: describe(file),
    'convert': lambda file, _: convert(file, file.with_name('out.pth'), 'timm'),
    'publish': lambda file, _: publish(file, file.with_name('out')),
    'hub': from_hub,
    'facebook': from_facebook,
}


@pytest.mark.parametrize('door', DOORS)
@pytest.mark.parametrize('is_zip', [True, False])
def test_no_door_runs_code(door, is_zip, weights, tmp_path, monkeypatch):
    content = {'state_dict': weights, 'meta': Trap(os.mkdir, str(tmp_path / 'trapped'))}
    torch.save(content, tmp_path / 'trap.pth', _use_new_zipfile_serialization=is_zip)
    with pytest.raises(UserError, match=r'is not read: .* it needs (posix|nt)\.mkdir, .*--trust-checkpoint'):
        DOORS[door](tmp_path / 'trap.pth', monkeypatch)
    assert not (tmp_path / 'trapped').exists()
    assert not [*tmp_path.glob('out*')]


# Bombs


def repack(file, out, **entry):
    """Write the archive anew: compressed, and with another entry."""
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(out, 'w', zipfile.ZIP_DEFLATED) as new:
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
        for name, size in entry.items():
            new.writestr(f'archive/data/{name}', bytes(size))
    return out


def test_weights_that_are_there_twice_are_refused(weights, tmp_path):
    """With and without ``module.``: MMEngine takes the later one in silence."""
    name = next(iter(weights))
    torch.save({'state_dict': {**weights, f'module.{name}': weights[name] + 1}}, tmp_path / 'twice.pth')
    for door in (load, describe):
        with pytest.raises(UserError, match=rf'twice\.pth holds 1 weights twice, .*: {name}'):
            door(str(tmp_path / 'twice.pth'))
    with pytest.raises(UserError, match='holds 1 weights twice'):
        upstream.load_checkpoint(ConvNeXt(SMALL, out_norm=False), str(tmp_path / 'twice.pth'))


def test_a_compressed_checkpoint_is_read_and_a_bomb_is_not(weights, tmp_path):
    file = save({'state_dict': weights}, tmp_path / 'plain.pth')
    model, _ = load(repack(file, tmp_path / 'packed.pth'))
    assert_holds(model, weights)
    bomb = repack(file, tmp_path / 'bomb.pth', bomb=64 * 2**20)
    assert re.search(r'bomb\.pth is not read: its [\d,]+ bytes expand to 67,', message(bomb))


def test_entries_that_overlap_are_counted_by_the_file(weights, tmp_path):
    file = save({'state_dict': weights}, tmp_path / 'plain.pth')
    with zipfile.ZipFile(file, 'a') as archive:
        archive.writestr('archive/data/zeros', bytes(2**20))
        entry = archive.getinfo('archive/data/zeros')
        for i in range(40):  # one megabyte of the file under forty more names
            other = zipfile.ZipInfo(f'archive/data/{i}')
            other.header_offset, other.CRC = entry.header_offset, entry.CRC
            other.compress_size = other.file_size = entry.file_size
            archive.filelist.append(other)
    assert re.search(r'its 1,\d{3},\d{3} bytes expand to 4\d,', message(file))


@pytest.mark.parametrize(
    ('limit', 'most', 'name', 'found'),
    [
        ('MOST_PICKLE_BYTES', 5_000, 'plain.pth', r'holds [\d,]+ bytes of names and settings\.'),
        ('MOST_COMPRESSED_PICKLE_BYTES', 1000, 'packed.pth', r'holds [\d,]+ bytes of names and settings, compressed'),
        ('MOST_ENTRIES', 50, 'plain.pth', r'holds \d\d entries'),
        ('MOST_ENTRIES', 50, 'plain.safetensors', 'holds 61 tensors'),
    ],
)
def test_more_than_any_checkpoint_has_is_not_read(limit, most, name, found, weights, tmp_path, monkeypatch):
    save(weights, tmp_path / 'plain.safetensors')
    repack(save(weights, tmp_path / 'plain.pth'), tmp_path / 'packed.pth')
    load(tmp_path / name)
    monkeypatch.setattr(checkpoints, limit, most)
    assert re.search(rf'{name} is not read: it {found}', message(tmp_path / name))


def test_tensors_and_arrays_that_no_memory_holds(weights, tmp_path):
    class Array:
        def __reduce__(self):
            return np.zeros(0).__reduce__()[0], (np.ndarray, (10**14,), b'b')

    assert 'it asks for more memory' in message(save(weights | {'log': Array()}, tmp_path / 'array.pth'))
    key = 'stages.0.0.dwconv.bias'
    file = save(weights | {key: torch.zeros(1).expand(10**9)}, tmp_path / 'file.pth')
    assert file.stat().st_size < 200_000
    for door in ('load_weights', 'convert'):  # as if it were not there
        with pytest.raises(UserError, match=rf'(Missing from the file \(1\):|lacks) {re.escape(key)}'):
            DOORS[door](file, None)
    describe(file)
    publish(file, tmp_path / 'out')


def test_too_many_backbones(tmp_path):
    # looking for each one's keys among all keys would take hours
    one = torch.ones(1)
    given = {f'x{i}.downsample_layers.0.0.weight': one for i in range(10_000)}
    given |= {f'x{i}.stages.0.0.dwconv.weight': one.expand(1, 1, 7, 7) for i in range(10_000)}
    assert 'holds 16 backbones, at ' in message(save(given, tmp_path / 'stems.pth'))


@pytest.mark.parametrize('key', [f'stages.{10**9}.0.gamma', f'stages.{"9" * 5000}.0.gamma', 'stages.x.gamma', 'stages'])
def test_names_that_no_model_has(key, weights):
    assert re.search(rf'Only in the file \(1\): {re.escape(key)}', message(weights | {key: torch.ones(1)}))


# Numbers


@pytest.mark.parametrize('bad', [float('nan'), float('inf'), -float('inf')])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize('strict', [True, False])
def test_numbers_that_are_none(bad, dtype, strict, weights):
    weights = {key: value.to(dtype) for key, value in weights.items()}
    weights['stages.2.1.gamma'][7] = bad
    with pytest.raises(UserError, match=r'NaN or infinity in 1 of 61 weights: stages\.2\.1\.gamma\.'):
        load(weights, strict=strict)


@pytest.mark.parametrize(
    ('stored', 'own', 'number'),
    [(torch.float64, torch.float32, 1e300), (torch.float32, torch.float16, -1e6), (torch.bfloat16, torch.float16, 1e6)],
)
def test_numbers_that_the_type_of_the_model_does_not_reach(stored, own, number, weights):
    model = ConvNeXt(SMALL, out_norm=False).to(own)
    weights = {key: value.to(stored) for key, value in weights.items()}
    weights['stages.2.1.gamma'][7] = number
    before = model.stages[2][1].gamma.clone()
    with pytest.raises(UserError, match=rf'too large for the {str(own)[6:]} of the model: stages\.2\.1\.gamma\.'):
        load_weights(model, weights)
    assert torch.equal(model.stages[2][1].gamma, before)


def test_infinity_in_a_buffer_is_meant_and_in_statistics_is_not():
    model = nn.ModuleDict(dict(backbone=ConvNeXt(SMALL), norm=nn.BatchNorm2d(2)))
    model.register_buffer('mask', torch.full((3, 3), float('-inf')).triu(1))
    given = dict(model.state_dict())
    assert 'mask' in load_weights(model, given, need='all').loaded
    given['norm.running_var'] = torch.full((2,), float('inf'))
    with pytest.raises(UserError, match=r'NaN or infinity in 1 of \d+ weights: norm\.running_var\.'):
        load_weights(model, given, need='all')


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_other_precisions(dtype, suffix, weights, tmp_path):
    stored = {key: value.to(dtype) for key, value in weights.items()}
    model, report = load(save(stored, tmp_path / f'file{suffix}'))
    assert_holds(model, {key: value.float() for key, value in stored.items()})
    assert report.converted == {str(dtype).removeprefix('torch.'): len(weights)}


@pytest.mark.parametrize('dtype', [torch.int8, torch.bool, torch.complex64])
def test_numbers_of_another_kind(dtype, weights):
    key, kind = 'stages.0.0.pwconv1.weight', str(dtype).removeprefix('torch.')
    text = message(weights | {key: weights[key].to(dtype)})
    assert f'{key} is (32, 8) {kind} in the file and (32, 8) float32 in the model' in text


@pytest.mark.filterwarnings('ignore:.*(Sparse|[qQ]uantiz):UserWarning')
def test_entries_that_are_no_plain_tensors(weights, tmp_path):
    key = 'stages.0.0.dwconv.bias'
    value = weights.pop(key)
    for odd in (value.numpy(), value.tolist(), 'text', None, value.to_sparse(), value.to('meta')):
        file = save({'state_dict': {**weights, key: odd, 'epoch': 3, 5: value}}, tmp_path / 'odd.pth')
        assert message(file).endswith(f'Missing from the file (1): {key}.')
    assert load({**weights, key: value, 'epoch': 3, 'args': 'text', 5: value})[1].unexpected == []


# Damage


def test_damaged_safetensors(weights, tmp_path):
    file = save(weights, tmp_path / 'file.safetensors')
    whole = file.read_bytes()
    for length in (1, 8, 9, 100, 2000, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        assert re.search(r'Cannot read the checkpoint .*file\.safetensors: .*\w', message(file))
    assert 'cut short or damaged. Copy or download it again' in message(file)
    meta = json.dumps({'__metadata__': {checkpoints.META_KEY: '{'}}).encode()
    for length, header in ((30, b'{"a": "b"' + b' ' * 40), (len(meta), meta)):
        (tmp_path / 'model.safetensors').write_bytes(length.to_bytes(8, 'little') + header)
        assert 'safetensors file but is cut short or damaged' in message(tmp_path / 'model.safetensors')


@pytest.mark.parametrize(
    ('content', 'words'),
    [
        ({'state_dict': {}}, 'holds no weights; its entries are none'),
        ({'epoch': 3, 'meta': {}}, 'holds no weights; its entries are epoch, meta'),
        ([1, 2], 'holds list, not a checkpoint'),
    ],
)
def test_checkpoints_without_weights(content, words, tmp_path):
    assert f'file.pth {words}' in message(save(content, tmp_path / 'file.pth'))


@pytest.mark.parametrize(
    'damage',
    [
        lambda key, value: {},
        lambda key, value: {key.replace('.', '', 1): value},
        lambda key, value: {f'{key}.more': value},
        lambda key, value: {key: value[..., :1]},
        lambda key, value: {key: value[None]},
        lambda key, value: {key: torch.tensor(1.0)},
        lambda key, value: {key: value.short()},
        lambda key, value: {key.replace('weight', 'kernel'): value},
    ],
)
def test_whatever_is_wrong_is_a_message(damage, weights):
    for key, value in weights.items():
        given = {other: weights[other] for other in weights if other != key} | damage(key, value)
        with contextlib.suppress(UserError):  # the rank of a vector does no harm
            model, _ = load(given)
            assert_holds(model, weights)


# Memory


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors', '.legacy'])
def test_a_file_may_change_once_it_is_loaded(suffix, weights, tmp_path):
    """Files are mapped into memory, but for those that PyTorch wrote before 1.6."""
    file = tmp_path / f'file{suffix}'
    if suffix == '.legacy':
        torch.save(weights, file, _use_new_zipfile_serialization=False)
    else:
        save(weights, file)
    model, _ = load(file)
    file.write_bytes(bytes(file.stat().st_size))
    assert_holds(model, weights)


def anonymous_memory():
    return 1024 * int(re.search(r'RssAnon:\s*(\d+)', Path('/proc/self/status').read_text())[1])


def peak(function, *arguments):
    """Return by how many bytes the memory of the process grows at most during a call."""
    before, most, done = anonymous_memory(), [0], threading.Event()

    def watch():
        while not done.is_set():
            most.append(anonymous_memory() - before)
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    function(*arguments)
    done.set()
    watcher.join()
    return max(most)


def load_convert_and_publish(_, arch, files):
    """Run in a process of its own, which did not free memory before that it could take again."""
    warnings.simplefilter('ignore')
    model = ConvNeXt(arch)
    size = sum(value.nbytes for value in model.state_dict().values())
    for file in files:
        calls = [(load_weights, model, file), (upstream.load_checkpoint, model, str(file))]
        calls += [(convert, file, f'{file}{suffix}', 'timm') for suffix in ('.pth', '.safetensors')]
        for call in [*calls, (publish, file, f'{file}.published')]:
            assert peak(*call) < 0.2 * size, call[0]  # the model aside, which was there


@pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='needs Linux')
@pytest.mark.parametrize('arch', ['nano', pytest.param('xlarge', marks=pytest.mark.slow)])
def test_no_copy_of_the_weights_is_held(arch, tmp_path):
    weights = ConvNeXt(arch).state_dict()
    moments = {i: {'exp_avg': value, 'exp_avg_sq': value + 1} for i, value in enumerate(weights.values())}
    training = {'state_dict': weights, 'optimizer': {'state': moments}}
    files = [save(training, tmp_path / 'training.pth'), save(weights, tmp_path / 'plain.safetensors')]
    torch.multiprocessing.spawn(load_convert_and_publish, (arch, files))
