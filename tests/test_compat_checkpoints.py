"""Checkpoints are read without running code, MMEngine's own are read, and others are refused with a reason."""

import argparse
import io
import os
import pickle
import tarfile
import traceback
import warnings
from pathlib import Path

import mmengine.runner.checkpoint as upstream
import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import Runner
from mmengine.testing.runner_test_case import ToyDataset, ToyMetric, ToyModel
from mutated_files import Trap
from safetensors.torch import save_file

from convnext_dense.compat import TRUST_VARIABLE, read_checkpoint, trust_checkpoints
from convnext_dense.compat.errors import UserError


class OfTheUser:
    """A type that MMEngine's checkpoints do not have."""


def toy_runner(work_dir, max_epochs, **options):
    dataset = ToyDataset()
    dataset.METAINFO = {'classes': ('a', 'b'), 'palette': [(1, 2, 3), (4, 5, 6)]}
    loader = {'batch_size': 3, 'num_workers': 0, 'dataset': dataset, 'sampler': {'type': 'DefaultSampler'}}
    with warnings.catch_warnings():  # torch's and numpy's own, which are not the subject here
        warnings.simplefilter('ignore')
        runner = Runner(
            ToyModel(),
            str(work_dir),
            train_dataloader=loader,
            val_dataloader=loader,
            train_cfg={'by_epoch': True, 'max_epochs': max_epochs, 'val_interval': 1},
            val_cfg={},
            val_evaluator=[ToyMetric()],
            optim_wrapper={'optimizer': {'type': 'AdamW', 'lr': 0.1}},
            param_scheduler=[
                {'type': 'LinearLR', 'start_factor': 0.1, 'end': 2, 'by_epoch': False},
                {'type': 'MultiStepLR', 'milestones': [2]},
                {'type': 'OneCycleLR', 'eta_max': 0.2, 'total_steps': 9},
            ],
            default_hooks={'checkpoint': {'type': 'CheckpointHook', 'save_best': 'acc', 'rule': 'greater'}},
            custom_hooks=[{'type': 'EMAHook'}],
            log_level='ERROR',
            experiment_name=f'toy_{work_dir.name}_{max_epochs}',
            **options,
        )
        runner.message_hub.update_info('score', np.float64(0.5))
        runner.message_hub.update_info('mean', np.ones(3, np.float32))
        runner.train()
    return runner


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """The folder of a real run of two epochs, with EMA, a best checkpoint, and NumPy numbers among its messages."""
    return Path(toy_runner(tmp_path_factory.mktemp('toy'), max_epochs=2).work_dir)


def test_mmengine_without_the_patch_fails_on_its_own_checkpoint(run):
    with pytest.raises(pickle.UnpicklingError, match='Unsupported global'):
        torch.load(run / 'epoch_2.pth', weights_only=True)  # the default of PyTorch >= 2.6


def test_a_checkpoint_of_mmengine_is_read_whole(run):
    checkpoint = upstream._load_checkpoint(str(run / 'epoch_2.pth'), map_location='cpu')
    with trust_checkpoints():
        expected = read_checkpoint(run / 'epoch_2.pth')
    assert set(checkpoint) == set(expected) >= {'ema_state_dict', 'optimizer', 'param_schedulers', 'message_hub'}
    assert checkpoint['meta'] == expected['meta']
    assert checkpoint['meta']['dataset_meta']['classes'] == ('a', 'b')
    history = checkpoint['message_hub']['log_scalars']['train/loss']
    assert history.statistics('mean') == expected['message_hub']['log_scalars']['train/loss'].mean()
    messages = checkpoint['message_hub']['runtime_info']
    assert messages['score'] == 0.5
    assert messages['mean'].dtype == np.float32
    assert checkpoint['param_schedulers'][2]['anneal_func'] is expected['param_schedulers'][2]['anneal_func']
    (best,) = run.glob('best_*.pth')
    assert read_checkpoint(best)['message_hub']['runtime_info']['best_score'] is not None


def test_a_run_resumes(run, tmp_path):
    resumed = toy_runner(tmp_path, max_epochs=3, load_from=str(run / 'epoch_2.pth'), resume=True)
    assert (resumed.epoch, resumed.iter) == (3, 12)
    assert len(resumed.message_hub.get_scalar('train/loss').data[0]) == 12


@pytest.mark.parametrize('numpy_module', [b'numpy.core.multiarray', b'numpy._core.multiarray'])
def test_both_names_of_numpy_are_read(numpy_module, tmp_path):
    values = {
        'array': np.arange(3),
        'empty': np.array([]),
        'scalar': np.float32(2),
        'flag': np.bool_(True),
        'text': np.array(['a', 'b']),
    }
    buffer = io.BytesIO()
    torch.save(values, buffer, _use_new_zipfile_serialization=False)
    other = {b'numpy.core.multiarray', b'numpy._core.multiarray'} - {numpy_module}
    (tmp_path / 'file.pth').write_bytes(buffer.getvalue().replace(other.pop(), numpy_module))
    assert numpy_module in (tmp_path / 'file.pth').read_bytes()
    read = read_checkpoint(tmp_path / 'file.pth')
    assert all(type(read[name]) is type(value) and read[name].dtype == value.dtype for name, value in values.items())
    assert all(np.array_equal(read[name], value) for name, value in values.items())


def test_a_checkpoint_of_the_first_versions_is_read(tmp_path):
    # MMDetection 2 with PyTorch 1.4: no messages, no zip archive
    old = {'meta': {'CLASSES': ('a',), 'epoch': 12, 'mmdet_version': '2.0.0'}, 'state_dict': {'w': torch.ones(2)}}
    torch.save(old, tmp_path / 'old.pth', _use_new_zipfile_serialization=False)
    assert upstream._load_checkpoint(str(tmp_path / 'old.pth'))['meta'] == old['meta']


# Code


def load_local(path, monkeypatch):
    return upstream._load_checkpoint(str(path))


def load_url(path, monkeypatch):
    torch.hub.set_dir(str(path.parent / 'hub'))
    monkeypatch.setitem(upstream.__dict__, 'get_torchvision_models', lambda: {'resnet': path.as_uri()})
    return upstream._load_checkpoint('torchvision://resnet')


def load_s3(path, monkeypatch):
    class Backend:
        def get(self, name):
            return path.read_bytes()

    monkeypatch.setitem(upstream.__dict__, 'get_file_backend', lambda *args, **kwargs: Backend())
    return upstream._load_checkpoint('s3://bucket/file.pth')


def load_open_mmlab(path, monkeypatch):
    monkeypatch.setenv('MMENGINE_HOME', str(path.parent))
    (path.parent / 'open_mmlab.json').write_text(f'{{"trapped": "{path.name}"}}')
    return upstream._load_checkpoint('open-mmlab://trapped')


def load_with_weights_only_false(path, monkeypatch):
    # as MMEngine 0.11.0rc3 does
    return upstream.torch.load(path, map_location='cpu', weights_only=False)


@pytest.mark.parametrize('load', [load_local, load_url, load_s3, load_open_mmlab, load_with_weights_only_false])
def test_no_loader_runs_code(load, tmp_path, monkeypatch):
    path = tmp_path / 'trap.pth'
    torch.save({'state_dict': {'w': torch.ones(1)}, 'meta': Trap(os.mkdir, str(tmp_path / 'trapped'))}, path)
    with pytest.raises(UserError, match=r'is not read: besides tensors .* it needs (posix|nt)\.mkdir, '):
        load(path, monkeypatch)
    assert not (tmp_path / 'trapped').exists()
    with trust_checkpoints():
        load(path, monkeypatch)
    assert (tmp_path / 'trapped').exists()


@pytest.fixture
def foreign(tmp_path):
    """A checkpoint that needs a type of the user's."""
    torch.save({'args': OfTheUser()}, tmp_path / 'foreign.pth')
    return tmp_path / 'foreign.pth'


def test_a_refusal_names_the_file_the_type_and_the_way(foreign):
    with pytest.raises(UserError) as caught:
        read_checkpoint(foreign)
    for named in (str(foreign), 'OfTheUser', f'{TRUST_VARIABLE}=1', '--trust-checkpoint', 'compat.trust_checkpoints()'):
        assert named in str(caught.value)
    assert 'weights_only' not in ''.join(traceback.format_exception(caught.value)), 'advice to switch safety off'


class Reach:
    """Asks for more of a history than its statistics."""

    def __init__(self, name):
        self.name = name

    def __reduce__(self):
        return getattr, (HistoryBuffer, self.name)


@pytest.mark.parametrize(
    ('value', 'named'),
    [
        (np.array([OfTheUser], dtype=object), ''),
        (np.array([1], dtype=object), ''),
        (argparse.Namespace(lr=1), r'argparse\.Namespace'),
        (print, r'print'),
        (torch.nn.Linear(1, 1), r'Linear'),
        (Reach('__init__'), r"getattr\(.*HistoryBuffer'>, '__init__'\)"),
        (Reach('__class__'), r"getattr\(.*HistoryBuffer'>, '__class__'\)"),
        (Reach('_set_default_statistics'), r"getattr\(.*HistoryBuffer'>, '_set_default_statistics'\)"),
    ],
)
def test_other_types_are_refused(value, named, tmp_path):
    torch.save({'value': value}, tmp_path / 'file.pth')
    with pytest.raises(UserError, match=f'is not read: besides tensors and plain data it needs .*{named}'):
        read_checkpoint(tmp_path / 'file.pth')


def test_the_types_that_the_process_allows_stay_as_they_are(foreign, tmp_path):
    def allowed():
        return set(torch.serialization.get_safe_globals()), dict(torch._weights_only_unpickler._get_allowed_globals())

    content = {'log': bytearray(b'abc\xff'), 'empty': bytearray(), 'mean': np.float64(1)}
    if 'builtins.bytearray' not in allowed()[1]:  # PyTorch 2.4
        content = {'mean': np.float64(1)}
    torch.save(content, tmp_path / 'file.pth')
    torch.serialization.add_safe_globals([argparse.Namespace])
    before = allowed()
    try:
        assert read_checkpoint(tmp_path / 'file.pth') == content
        with pytest.raises(UserError):
            read_checkpoint(foreign)
        assert allowed() == before
    finally:
        torch.serialization.clear_safe_globals()


def test_trust_ends_with_its_block_and_may_come_from_the_environment(foreign, monkeypatch):
    with pytest.raises(KeyError), trust_checkpoints():
        raise KeyError
    for value in ('', '0', 'no'):
        monkeypatch.setenv(TRUST_VARIABLE, value)
        with pytest.raises(UserError):
            read_checkpoint(foreign)
    monkeypatch.setenv(TRUST_VARIABLE, '1')
    assert isinstance(read_checkpoint(foreign)['args'], OfTheUser)


def test_a_trusted_file_may_miss_its_type(foreign, monkeypatch):
    monkeypatch.delattr(f'{__name__}.OfTheUser')
    with trust_checkpoints(), pytest.raises(AttributeError, match='OfTheUser'):
        read_checkpoint(foreign)


def legacy_tar(path):
    """Write the layout of PyTorch's first versions: three pickles in a tar archive, here with code to run."""
    with tarfile.open(path, 'w') as archive:
        for name in ('storages', 'tensors', 'pickle'):
            content = pickle.dumps(Trap(os.mkdir, str(path.parent / 'trapped')), protocol=2)
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def test_a_tar_archive_is_refused_before_torch_sees_it(tmp_path, monkeypatch):
    path = legacy_tar(tmp_path / 'old.pth')
    loaded = []
    # as in PyTorch < 2.6, which unpickles such a file without its safe mode
    monkeypatch.setattr(torch, 'load', lambda file, **_: loaded.append(file))
    with pytest.raises(UserError, match=rf'{path} is not read: it is a tar archive\. .*--trust-checkpoint'):
        upstream._load_checkpoint(str(path))
    with open(path, 'rb') as opened, pytest.raises(UserError, match=rf'{path} is not read: it is a tar'):
        read_checkpoint(opened)
    with pytest.raises(UserError, match='the downloaded data is not read: it is a tar'):
        read_checkpoint(io.BytesIO(path.read_bytes()))
    assert loaded == []
    with trust_checkpoints():
        read_checkpoint(path)
    assert loaded == [path]


# Files that cannot be read


def saved_bytes(zipped=True):
    buffer = io.BytesIO()
    torch.save({'w': torch.ones(100)}, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


DAMAGED = 'it begins like a checkpoint but is cut short or damaged'
UNREADABLE = [
    (b'', 'the file is empty'),
    (b'\n<!DOCTYPE html><html>Sign in</html>', 'it is a web page'),
    (b'<HTML>404</HTML>', 'it is a web page'),
    (b'version https://git-lfs.github.com/spec/v1\noid sha256:1', 'it is a Git LFS pointer'),
    (b'\x1f\x8b\x08 gzip', 'it is an archive of other files'),
    (saved_bytes()[:-40], DAMAGED),
    (saved_bytes(zipped=False)[:-40], DAMAGED),
    (pickle.dumps({'w': 1}, protocol=4), 'it is a Python pickle that torch.save did not write'),
    (b'These are no weights.', "it begins with b'These are no wei', which no PyTorch checkpoint does"),
]


@pytest.mark.parametrize(('content', 'expected'), UNREADABLE, ids=range(len(UNREADABLE)))
@pytest.mark.filterwarnings('ignore:Detected pickle protocol')
def test_an_unreadable_file_is_described(content, expected, tmp_path):
    path = tmp_path / 'file.pth'
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf'Cannot read the checkpoint {path}: {expected}.*PyTorch says: \S'):
        upstream._load_checkpoint(str(path))
    with pytest.raises(UserError, match=f'Cannot read the checkpoint the downloaded data: {expected}'):
        read_checkpoint(io.BytesIO(content))


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('mmap', [True, False])
def test_a_file_cut_anywhere_is_described(zipped, mmap, tmp_path):
    """PyTorch ends with OSError: [Errno 22] for some lengths."""
    path = tmp_path / 'file.pth'
    torch.save({f'weight{i}': torch.ones(300) for i in range(60)}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for length in [*range(1, 100, 7), *range(100, len(whole), 1499), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=rf'Cannot read the checkpoint {path}: '):
            read_checkpoint(path, mmap=mmap)


@pytest.fixture
def torch_says(tmp_path, monkeypatch):
    """Let PyTorch end with an error, and return what the reader raises."""
    torch.save({'w': 1}, tmp_path / 'file.pth')

    def read(error):
        def load(*args, weights_only, **options):
            assert weights_only is True
            raise error

        monkeypatch.setattr(torch, 'load', load)
        with pytest.raises(Exception) as caught:
            read_checkpoint(tmp_path / 'file.pth')
        return caught.value

    return read


@pytest.mark.parametrize(
    ('said', 'relayed'),
    [
        ('Cannot use ``weights_only=True`` with x. In PyTorch 2.6, we changed it. Set it to False.', 'ValueError'),
        ('Broken at 5. Re-running `torch.load` with `weights_only` set to `False` will succeed.', 'Broken at 5.'),
        ('Advice on `weights_only`: WeightsUnpickler error: Unsupported operand 9\nmore', 'Unsupported operand 9'),
        ('Odd. File. All of it', 'Odd. File. All of it'),
    ],
)
def test_advice_of_torch_to_switch_safety_off_is_not_relayed(said, relayed, torch_says):
    error = torch_says(ValueError(said))
    assert isinstance(error, UserError)
    assert str(error).endswith(f'(PyTorch says: {relayed})')


def test_advice_of_torch_on_a_sound_file_is_left_alone(torch_says):
    error = RuntimeError('Attempting to deserialize object on a CUDA device but torch.cuda.is_available() is False.')
    assert torch_says(error) is error


# Where files come from


def test_a_broken_download_names_the_url_and_the_cached_file(tmp_path):
    (tmp_path / 'page.pth').write_text('<html>')
    url = (tmp_path / 'page.pth').as_uri()
    with pytest.raises(UserError, match=rf'{tmp_path}/cache/\w+/page.pth: it is a web page.* {url}; delete it'):
        upstream.load_url(url, model_dir=str(tmp_path / 'cache'), progress=False)


def test_old_versions_of_torch_are_noted_for_what_comes_from_elsewhere(tmp_path, monkeypatch):
    torch.save({'w': 1}, tmp_path / 'file.pth')
    save_file({'w': torch.ones(1)}, tmp_path / 'file.safetensors')
    options = dict(model_dir=str(tmp_path / 'cache'), progress=False)
    monkeypatch.setattr(torch, '__version__', '2.9.1+cu130')
    with pytest.warns(UserWarning, match=r'^PyTorch 2\.9\.1\+cu130 can be attacked by .* torch >= 2\.10'):
        upstream.load_url((tmp_path / 'file.pth').as_uri(), **options)
    upstream.load_url((tmp_path / 'file.safetensors').as_uri(), **options)  # warnings are errors here
    read_checkpoint(tmp_path / 'file.pth')
    monkeypatch.setattr(torch, '__version__', '2.10.0')
    upstream.load_url((tmp_path / 'file.pth').as_uri(), **options)


def test_a_missing_file_names_those_that_are_there(tmp_path):
    for name in ('epoch_2.pth', 'epoch_1.safetensors', 'log.txt'):
        (tmp_path / name).touch()
    found = rf'The checkpoints in {tmp_path} are: epoch_1\.safetensors, epoch_2\.pth\.'
    with pytest.raises(UserError, match=rf'Checkpoint {tmp_path}/epoch_3\.pth does not exist\. {found}'):
        upstream._load_checkpoint(f'{tmp_path}/epoch_3.pth')
    with pytest.raises(UserError, match=rf'Checkpoint {tmp_path} is a folder, not a checkpoint file\. {found}'):
        upstream._load_checkpoint(str(tmp_path))
    with pytest.raises(UserError, match=f'does not exist, and neither does the folder {tmp_path}/none'):
        read_checkpoint(tmp_path / 'none/x.pth')
    for i in range(12):
        (tmp_path / f'a{i}.pth').touch()
    with pytest.raises(UserError, match='and 4 more'):
        read_checkpoint(tmp_path / 'x.pth')


def test_a_path_in_the_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    torch.save({'w': 1}, tmp_path / 'file.pth')
    assert upstream._load_checkpoint('~/file.pth') == {'w': 1}
