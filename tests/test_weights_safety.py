"""Files that are hostile, damaged or odd: none runs code, none fills the memory, each has a clear outcome."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import mmengine.runner.checkpoint as upstream
import numpy as np
import pytest
import torch
from huggingface_hub import constants
from mmengine.logging import HistoryBuffer
from safetensors.torch import save_file
from torch import nn

from convnext_dense import ConvNeXt, UserError
from convnext_dense.compat import checkpoints, read_checkpoint, trust_checkpoints
from convnext_dense.weights import fetch, load_weights
from convnext_dense.weights.inspect import inspect

ROOT = Path(__file__).parent.parent
SMALL = dict(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32))


@pytest.fixture
def weights():
    model = ConvNeXt(SMALL, out_norm=False)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model.state_dict()


def load(source, **options):
    model = ConvNeXt(SMALL, out_norm=False)
    return model, load_weights(model, source, **options)


# Code


class Trap:
    """Creates a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def from_path(file, monkeypatch):
    load_weights(ConvNeXt(SMALL), file)


def from_init_cfg(file, monkeypatch):
    ConvNeXt(SMALL, init_cfg=dict(type='Pretrained', checkpoint=str(file))).init_weights()


def from_mmengine(file, monkeypatch):
    upstream.load_checkpoint(nn.ModuleDict(dict(backbone=ConvNeXt(SMALL))), str(file))


def from_hub(file, monkeypatch):
    snapshot = file.parent / 'hub/models--a--b/snapshots/0'
    shutil.copytree(file.parent, snapshot, ignore=lambda *_: ['hub'])
    (snapshot.parent.parent / 'refs').mkdir()
    (snapshot.parent.parent / 'refs/main').write_text('0')
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(file.parent / 'hub'))
    load_weights(ConvNeXt(SMALL), f'hf://a/b/{file.name}')


def from_facebook(file, monkeypatch):
    monkeypatch.setattr(torch.hub, '_hub_dir', str(file.parent / 'torch'))
    monkeypatch.setattr(torch.hub, 'download_url_to_file', lambda url, path, *_: shutil.copy(file, path))
    load_weights(ConvNeXt(SMALL), 'convnext://tiny_1k')


@pytest.mark.parametrize('door', [from_path, from_init_cfg, from_mmengine, from_hub, from_facebook])
@pytest.mark.parametrize('is_zip', [True, False])
def test_no_door_runs_code(door, is_zip, weights, tmp_path, monkeypatch):
    content = {'state_dict': weights, 'meta': Trap(tmp_path / 'trapped')}
    torch.save(content, tmp_path / 'trap.pth', _use_new_zipfile_serialization=is_zip)
    with pytest.raises(UserError, match=r'is not read: .* it needs (posix|nt)\.mkdir, .*--trust-checkpoint'):
        door(tmp_path / 'trap.pth', monkeypatch)
    assert not (tmp_path / 'trapped').exists()


def test_trust_is_what_lets_it_run(weights, tmp_path):
    torch.save({'state_dict': weights, 'meta': Trap(tmp_path / 'trapped')}, tmp_path / 'trap.pth')
    with trust_checkpoints():
        load(tmp_path / 'trap.pth')
    assert (tmp_path / 'trapped').exists()


# Bombs


def repack(file, out, **entry):
    """Write the archive anew: compressed, and with another entry."""
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(out, 'w', zipfile.ZIP_DEFLATED) as new:
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
        for name, size in entry.items():
            new.writestr(f'archive/data/{name}', bytes(size))
    return out


def test_a_compressed_checkpoint_is_read_and_a_bomb_is_not(weights, tmp_path):
    torch.save({'state_dict': weights}, tmp_path / 'plain.pth')
    model, _ = load(repack(tmp_path / 'plain.pth', tmp_path / 'packed.pth'))
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    bomb = repack(tmp_path / 'plain.pth', tmp_path / 'bomb.pth', bomb=64 * 2**20)
    with pytest.raises(
        UserError, match=r'bomb\.pth is not read: its [\d,]+ bytes expand to 67,[\d,]+\. No checkpoint of a model does'
    ):
        load(bomb)


def test_entries_that_overlap_are_counted_by_the_file(weights, tmp_path):
    torch.save({'state_dict': weights}, tmp_path / 'plain.pth')
    with zipfile.ZipFile(tmp_path / 'plain.pth', 'a') as archive:
        archive.writestr('archive/data/zeros', bytes(2**20))
        entry = archive.getinfo('archive/data/zeros')
        for i in range(40):  # one megabyte of the file under forty more names
            other = zipfile.ZipInfo(f'archive/data/{i}')
            other.header_offset, other.CRC = entry.header_offset, entry.CRC
            other.compress_size = other.file_size = entry.file_size
            archive.filelist.append(other)
    with pytest.raises(UserError, match=r'its 1,\d{3},\d{3} bytes expand to 4\d,'):
        load(tmp_path / 'plain.pth')


def test_a_giant_pickle_is_not_read(weights, tmp_path, monkeypatch):
    torch.save({'state_dict': weights, 'log': list(range(100_000))}, tmp_path / 'file.pth')
    load(tmp_path / 'file.pth')
    monkeypatch.setattr(checkpoints, 'MOST_PICKLE_BYTES', 200_000)
    with pytest.raises(UserError, match=r'is not read: it holds [34]\d\d,\d{3} bytes of names and settings\.'):
        load(tmp_path / 'file.pth')


def test_a_compressed_pickle_is_read_where_it_is_small(weights, tmp_path, monkeypatch):
    torch.save({'state_dict': weights}, tmp_path / 'plain.pth')
    packed = repack(tmp_path / 'plain.pth', tmp_path / 'packed.pth')
    monkeypatch.setattr(checkpoints, 'MOST_COMPRESSED_PICKLE_BYTES', 1000)
    load(tmp_path / 'plain.pth')
    with pytest.raises(UserError, match=r'packed\.pth is not read: it holds [\d,]+ bytes of names and settings, compr'):
        load(packed)


def test_a_tensor_that_repeats_its_numbers_a_billion_times(weights, tmp_path):
    torch.save(weights | {'head.weight': torch.zeros(1).expand(10**12)}, tmp_path / 'file.pth')
    assert (tmp_path / 'file.pth').stat().st_size < 200_000
    with pytest.raises(UserError, match=r'file\.pth is not used: head\.weight repeats 4 bytes to 4,0'):
        load(tmp_path / 'file.pth')
    with pytest.raises(UserError, match='and it could fill the memory'):
        inspect(tmp_path / 'file.pth')


def test_an_array_that_no_memory_holds(weights, tmp_path):
    class Array:
        def __reduce__(self):
            return np.zeros(0).__reduce__()[0], (np.ndarray, (10**14,), b'b')

    torch.save(weights | {'log': Array()}, tmp_path / 'file.pth')
    with pytest.raises(UserError, match=r'Cannot read the checkpoint .*file\.pth: it asks for more memory'):
        load(tmp_path / 'file.pth')


def test_the_log_of_the_longest_run_is_below_the_limit(tmp_path):
    # MMEngine keeps at most a million steps of a value
    log = HistoryBuffer(np.random.default_rng(0).random(100_000), np.ones(100_000))
    torch.save({'message_hub': log}, tmp_path / 'log.pth')
    a_value = 10 * (tmp_path / 'log.pth').stat().st_size
    assert 100 * a_value < checkpoints.MOST_PICKLE_BYTES


def test_too_many_keys(weights, tmp_path):
    one = torch.ones(1)
    torch.save(weights | {f'x{i}': one for i in range(100_001)}, tmp_path / 'keys.pth')
    with pytest.raises(UserError, match=r'keys\.pth holds 100,\d{3} tensors; a model has a few thousand\.'):
        load(tmp_path / 'keys.pth')


def test_too_many_entries_of_a_file(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, 'MOST_ENTRIES', 50)
    torch.save(weights, tmp_path / 'file.pth')
    with pytest.raises(UserError, match=r'file\.pth is not read: it holds \d\d entries'):
        load(tmp_path / 'file.pth')
    save_file(weights, tmp_path / 'file.safetensors')
    with pytest.raises(UserError, match=r'file\.safetensors is not read: it holds 61 tensors'):
        load(tmp_path / 'file.safetensors')


def test_too_many_backbones(tmp_path):
    # looking for each one's keys among all keys would take hours
    one = torch.ones(1)
    given = {f'x{i}.downsample_layers.0.0.weight': one for i in range(30_000)}
    given |= {f'x{i}.stages.0.0.dwconv.weight': one.expand(1, 1, 7, 7) for i in range(30_000)}
    torch.save(given, tmp_path / 'stems.pth')
    with pytest.raises(UserError, match=r'holds 16 backbones, at '):
        load(tmp_path / 'stems.pth')


def test_numbers_that_no_model_has(weights):
    keys = {f'stages.{10**9}.0.gamma': torch.ones(1), f'stages.0.{"9" * 5000}.gamma': torch.ones(1)}
    with pytest.raises(UserError, match=r'Only in the file \(2\): stages\.1000000000\.0\.gamma'):
        load(weights | keys)


# Numbers


@pytest.mark.parametrize('bad', [float('nan'), float('inf'), -float('inf')])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize('strict', [True, False])
def test_numbers_that_are_none(bad, dtype, strict, weights):
    weights = {key: value.to(dtype) for key, value in weights.items()}
    weights['stages.2.1.gamma'][7] = bad
    with pytest.raises(UserError, match=r'NaN or infinity in 1 of 61 weights: stages\.2\.1\.gamma\. .* had diverged'):
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
    with pytest.raises(
        UserError,
        match=rf'too large for the {str(own)[6:]} of the model: stages\.2\.1\.gamma\. Load it',
    ):
        load_weights(model, weights)
    assert torch.equal(model.stages[2][1].gamma, before)


def test_infinity_in_a_buffer_is_meant_and_in_statistics_is_not(weights):
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = ConvNeXt(SMALL, out_norm=False)
            self.norm = nn.BatchNorm2d(2)
            self.register_buffer('mask', torch.full((3, 3), float('-inf')).triu(1))

    model = Masked()
    assert 'mask' in load_weights(model, Masked().state_dict(), need='all').loaded
    given = Masked().state_dict()
    given['norm.running_var'][1] = float('inf')
    with pytest.raises(UserError, match=r'NaN or infinity in 1 of \d+ weights: norm\.running_var\.'):
        load_weights(model, given, need='all')


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_other_precisions(dtype, suffix, weights, tmp_path):
    stored = {key: value.to(dtype) for key, value in weights.items()}
    file = tmp_path / f'file{suffix}'
    (save_file if suffix == '.safetensors' else torch.save)(stored, file)
    model, report = load(file)
    assert all(value.dtype == torch.float32 for value in model.state_dict().values())
    assert all(torch.equal(value, stored[key].float()) for key, value in model.state_dict().items())
    assert report.converted == {str(dtype).removeprefix('torch.'): len(weights)}
    assert f'  converted     61 from {str(dtype).removeprefix("torch.")}' in str(report)


@pytest.mark.parametrize('dtype', [torch.int8, torch.bool, torch.complex64])
def test_numbers_of_another_kind(dtype, weights):
    weights['stages.0.0.pwconv1.weight'] = weights['stages.0.0.pwconv1.weight'].to(dtype)
    kind = str(dtype).removeprefix('torch.')
    with pytest.raises(
        UserError,
        match=rf'stages\.0\.0\.pwconv1\.weight is \(32, 8\) {kind} in the file and \(32, 8\) float32 in the model',
    ):
        load(weights)


@pytest.mark.filterwarnings('ignore:.*(Sparse|[qQ]uantiz):UserWarning')
def test_entries_that_are_no_plain_tensors(weights, tmp_path):
    key = 'stages.0.0.dwconv.bias'
    value = weights.pop(key)
    for odd in (value.numpy(), value.tolist(), 'text', None, value.to_sparse(), value.to('meta')):
        torch.save({'state_dict': {**weights, key: odd, 'epoch': 3, 5: value}}, tmp_path / 'odd.pth')
        with pytest.raises(UserError, match=rf'Missing from the file \(1\): {re.escape(key)}\.$'):
            load(tmp_path / 'odd.pth')
    assert load({**weights, key: value, 'epoch': 3, 'args': 'text', 5: value})[1].unexpected == []


# Damage


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_files_that_are_cut_short(suffix, weights, tmp_path):
    file = tmp_path / f'file{suffix}'
    (save_file if suffix == '.safetensors' else torch.save)(weights, file)
    whole = file.read_bytes()
    for length in (1, 8, 9, 100, 2000, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(UserError, match=rf'Cannot read the checkpoint .*file{suffix}: .*\w'):
            load(file)
    assert 'cut short or damaged. Copy or download it again' in message(file)


def message(file):
    with pytest.raises(UserError) as caught:
        load(file)
    return str(caught.value)


def test_files_that_are_something_else(tmp_path):
    file = tmp_path / 'model.safetensors'
    file.write_text('<!doctype html><title>404</title>')
    assert 'it is a web page' in message(file)
    file.write_bytes(b'')
    assert 'the file is empty' in message(file)
    file.write_bytes((30).to_bytes(8, 'little') + b'{"a": "b"' + b' ' * 40)
    assert 'it begins like a safetensors file but is cut short or damaged' in message(file)
    header = json.dumps({'__metadata__': {checkpoints.META_KEY: '{'}}).encode()
    file.write_bytes(len(header).to_bytes(8, 'little') + header)
    assert 'it begins like a safetensors file but is cut short or damaged' in message(file)


def test_checkpoints_without_weights(tmp_path):
    for content, found in (({}, 'none'), ({'state_dict': {}}, 'none'), ({'epoch': 3, 'meta': {}}, 'epoch, meta')):
        torch.save(content, tmp_path / 'file.pth')
        assert f'file.pth holds no weights; its entries are {found}. Save the state_dict()' in message(
            tmp_path / 'file.pth'
        )
    torch.save([1, 2], tmp_path / 'file.pth')
    assert 'file.pth holds list, not a checkpoint' in message(tmp_path / 'file.pth')
    with pytest.raises(UserError, match=r'nothing\.pth does not exist'):
        load(tmp_path / 'nothing.pth')


def damage(state_dict, chance):
    """Change one thing in a state dict: a key, a shape or a type."""
    key = chance.choice([*state_dict])
    value = state_dict.pop(key)
    change = chance.randrange(7)
    if change == 0:
        state_dict[key.replace('.', '', 1)] = value
    elif change == 1:
        state_dict[f'{key}.more'] = value
    elif change == 2:
        state_dict[key] = value[..., :1]
    elif change == 3:
        state_dict[key] = value[None]
    elif change == 4:
        state_dict[key] = torch.tensor(1.0)
    elif change == 5:
        state_dict[key] = value.to(chance.choice([torch.int16, torch.bool, torch.float64]))


def test_whatever_is_wrong_is_a_message(weights):
    kernels = {key.replace('dwconv.weight', 'dwconv.kernel'): value for key, value in weights.items()}
    chance = random.Random(0)
    texts = []
    for _ in range(150):
        given = dict(chance.choice([weights, kernels]))
        for _ in range(chance.randint(1, 3)):
            damage(given, chance)
        try:
            model, _ = load(given)
        except UserError as error:
            texts.append(str(error))
        else:  # what was changed does no harm: the precision, or the rank of a vector
            assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    assert 100 < len(texts) < 150
    assert all(re.search('does not fit the backbone|holds no ConvNeXt', text) for text in texts)


# Memory


def is_mapped(file):
    return str(file) in Path('/proc/self/maps').read_text()


@pytest.mark.skipif(not Path('/proc/self/maps').exists(), reason='needs Linux')
def test_local_files_are_mapped_where_weights_are_loaded(weights, tmp_path):
    file = tmp_path / 'file.pth'
    torch.save({'state_dict': weights, 'optimizer': {'state': {0: {'exp_avg': torch.ones(3)}}}}, file)
    for door in (fetch, upstream._load_checkpoint):
        fetched = door(str(file))
        assert is_mapped(file)
        assert torch.equal(fetched['state_dict']['stages.0.0.gamma'], weights['stages.0.0.gamma'])
        del fetched
        assert not is_mapped(file)
    kept = read_checkpoint(file)
    assert not is_mapped(file)
    torch.save(kept, file)  # in place, which would end the process if it were mapped
    model, _ = load(file)
    assert not is_mapped(file)
    file.unlink()
    assert torch.equal(model.stages[0][0].gamma, weights['stages.0.0.gamma'])
    save_file(weights, tmp_path / 'file.safetensors')
    fetched = fetch(tmp_path / 'file.safetensors')
    assert is_mapped(tmp_path / 'file.safetensors')
    del fetched


@pytest.mark.parametrize('how', ['legacy', 'packed'])
def test_files_that_cannot_be_mapped_are_read(how, weights, tmp_path):
    file = tmp_path / 'file.pth'
    torch.save(weights, file, _use_new_zipfile_serialization=how != 'legacy')
    if how == 'packed':
        file = repack(file, tmp_path / 'packed.pth')
    model, _ = load(file)
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


# in a process of its own: what it frees it may keep, and a copy that is made there later would not be seen
WRITE = """
import sys
import torch
from convnext_dense import ConvNeXt
from safetensors.torch import save_file

arch, folder = sys.argv[1:]
weights = ConvNeXt(arch).state_dict()
moments = {i: {name: value.clone() for name in ('exp_avg', 'exp_avg_sq')} for i, value in enumerate(weights.values())}
torch.save({'model': weights}, f'{folder}/plain.pth')
torch.save({'state_dict': weights, 'optimizer': {'state': moments}}, f'{folder}/training.pth')
save_file(weights, f'{folder}/plain.safetensors')
"""
MEASURE = """
import json, os, sys, threading, time
from convnext_dense import ConvNeXt
from convnext_dense.weights import load_weights
from convnext_dense.weights.convert import convert
from convnext_dense.weights.publish import publish
from mmengine.runner import load_checkpoint


def used():
    lines = (line.split() for line in open('/proc/self/status'))
    return {line[0][:-1]: int(line[1]) * 1024 for line in lines if line[0] in ('RssAnon:', 'VmRSS:')}


def peak(function):
    before, most, done = used(), {}, threading.Event()

    def watch():
        while not done.is_set():
            for key, value in used().items():
                most[key] = max(most.get(key, 0), value - before[key])
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    function()
    done.set()
    watcher.join()
    return most


arch, folder = sys.argv[1:]
model = ConvNeXt(arch)
found = {'size': sum(value.nbytes for value in model.state_dict().values()), 'files': {}}
for name in ('plain.pth', 'training.pth', 'plain.safetensors'):
    file = f'{folder}/{name}'
    found['files'][name] = os.path.getsize(file)
    found[name] = peak(lambda: load_weights(model, file))
    found[f'{name} by mmengine'] = peak(lambda: load_checkpoint(model, file, map_location='cpu', logger='silent'))
    for suffix in ('pth', 'safetensors'):
        out = f'{folder}/out.{suffix}'
        found[f'{name} converted to {suffix}'] = peak(lambda: convert(file, out, 'timm', force=True))
        os.unlink(out)
    written = []
    found[f'{name} published'] = peak(lambda: written.append(publish(file, f'{folder}/out')))
    os.unlink(written[0].file)
print(json.dumps(found))
"""


def measure(arch, folder):
    for script in (WRITE, MEASURE):
        command = [sys.executable, '-W', 'ignore', '-c', script, arch, str(folder)]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=500)
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='needs Linux')
@pytest.mark.parametrize('arch', ['tiny', pytest.param('xlarge', marks=pytest.mark.slow)])
def test_no_copy_of_the_weights_is_held(arch, tmp_path):
    found = measure(arch, tmp_path)
    size, files = found.pop('size'), found.pop('files')
    assert files['training.pth'] > 2.9 * size
    assert len(found) == 15
    for name, peak in found.items():
        print(name, {key: round(value / size, 2) for key, value in peak.items()}, 'of', size)
        assert peak['RssAnon'] < 0.2 * size, name  # the model aside, which was there
        assert peak['VmRSS'] < 1.3 * size, name  # pages of the file, which the system can take back
