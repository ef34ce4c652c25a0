"""Where weights come from: every scheme without a network, and what is said where it fails."""

import hashlib
import importlib.util
import re
import shutil
import sys

import huggingface_hub
import mmengine.runner.checkpoint as upstream
import pytest
import timm
import torch
from huggingface_hub import constants, errors
from safetensors.torch import save_file
from small_models import SMALL, assert_holds, randomize
from timm.models import get_pretrained_cfg
from torch import nn

from convnext_dense import ConvNeXt, UserError
from convnext_dense.compat.checkpoints import HASH_IN_NAME
from convnext_dense.weights import fetch, load_weights
from convnext_dense.weights.sources import HOST, PUBLISHED, find_published


@pytest.fixture(autouse=True)
def _own_caches(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'hub'))
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'torch'))


@pytest.fixture
def cache(tmp_path):
    """Put tensors into the Hugging Face cache, as a download does."""

    def put(tensors, repository, file, revision='main', sha='0123456789' * 4):
        folder = tmp_path / 'hub' / f'models--{repository.replace("/", "--")}'
        reference, snapshot = folder / 'refs' / revision, folder / 'snapshots' / sha
        for parent in (reference.parent, (snapshot / file).parent):
            parent.mkdir(parents=True, exist_ok=True)
        reference.write_text(sha)
        (save_file if file.endswith('safetensors') else torch.save)(tensors, snapshot / file)

    return put


@pytest.fixture
def weights():
    return randomize(ConvNeXt(SMALL, out_norm=False)).state_dict()


def assert_loads(source, weights):
    """Load through init_cfg and through MMEngine's loader; return the report."""
    model = ConvNeXt(SMALL, out_norm=False, init_cfg=dict(type='Pretrained', checkpoint=source))
    model.init_weights()
    assert_holds(model, weights)
    assert upstream.CheckpointLoader.load_checkpoint(source, map_location='cpu')
    return load_weights(ConvNeXt(SMALL), source)


# timm and the Hugging Face Hub


@pytest.mark.parametrize('file', ['model.safetensors', 'pytorch_model.bin'])
def test_timm_weights_come_from_its_cache(file, cache):
    theirs = timm.create_model('convnext_atto').state_dict()
    cache(theirs, 'timm/convnext_atto.d2_in1k', file)
    ours = ConvNeXt('atto', init_cfg=dict(type='Pretrained', checkpoint='timm://convnext_atto.d2_in1k'))
    ours.init_weights()
    assert torch.equal(ours.stages[3][1].dwconv.weight, theirs['stages.3.blocks.1.conv_dw.weight'])
    report = load_weights(ours, 'timm://convnext_atto')  # the first tag
    assert report.source == 'timm://convnext_atto'
    assert report.licence == get_pretrained_cfg('convnext_atto').license != ''


@pytest.mark.parametrize(('package', 'source'), [('timm', 'timm://convnext_atto'), ('huggingface_hub', 'hf://a/b')])
def test_packages_that_are_not_installed(package, source, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=f'{source} needs {package}.*pip install {package}'):
        fetch(source)


def test_a_repository_of_the_hub(cache, weights, monkeypatch):
    cache({'wrong': torch.ones(1)}, 'me/mine', 'pytorch_model.bin')
    cache(weights, 'me/mine', 'model.safetensors')
    report = assert_loads('hf://me/mine', weights)
    assert report.source == 'hf://me/mine'
    assert report.licence == "if these are facebookresearch's own: MIT"
    cache(weights, 'me/pickles', 'pytorch_model.bin')
    assert_loads('hf://me/pickles', weights)
    monkeypatch.setattr(torch, '__version__', '2.9.1')
    fetch('hf://me/mine')  # warnings are errors here
    with pytest.warns(UserWarning, match=r'^PyTorch 2\.9\.1 can be attacked by a \.pth file'):
        fetch('hf://me/pickles')


def test_a_revision_and_a_file_of_the_hub(cache, weights):
    cache({key: value + 1 for key, value in weights.items()}, 'me/mine', 'model.safetensors')
    cache(weights, 'me/mine', 'model.safetensors', revision='v2', sha='abcdef0123' * 4)
    assert_loads('hf://me/mine@v2', weights)
    assert_loads(f'hf://me/mine@{"abcdef0123" * 4}', weights)
    cache({'model': weights}, 'me/mine', 'best.pth')
    assert_loads('hf://me/mine/best.pth', weights)
    assert_loads('hf://me/mine@main/best.pth', weights)
    cache(weights, 'me/mine', 'x/y.bin', revision='refs/pr/3', sha='0' * 40)
    assert_loads('hf://me/mine@refs/pr/3/x/y.bin', weights)


def test_any_model_may_take_what_the_hub_has(cache):
    theirs, ours = nn.Linear(2, 2), nn.Linear(2, 2)
    cache(theirs.state_dict(), 'me/linear', 'pytorch_model.bin')
    upstream.load_checkpoint(ours, 'hf://me/linear', strict=True)
    assert_holds(ours, theirs.state_dict())


@pytest.mark.parametrize(
    ('source', 'error', 'words'),
    [
        ('hf://me/mine', None, r'hf://me/mine is not in the cache .*`hf download me/mine`'),
        ('timm://convnext_atto.d2_in1k', None, r'`hf download timm/convnext_atto\.d2_in1k`'),
        ('hf://mine', None, r"hf://ORG/REPO, .* got 'hf://mine'\."),
        ('hf://me/mi--ne', None, r'hf://me/mi--ne cannot be fetched \(Cannot have -- or \.\. in repo_id'),
        ('hf://a/b', errors.EntryNotFoundError, r'a/b has none of model\.safetensors, .*hf://a/b/FILE\.'),
        ('hf://a/b/x.pth', errors.EntryNotFoundError, r'a/b has no file x\.pth\. Name its file'),
        ('hf://a/b', errors.GatedRepoError, r'hf://a/b .* licence\. .*https://huggingface\.co/a/b .*`hf auth login`'),
        ('hf://a/b', errors.RepositoryNotFoundError, r'no repository a/b, or it is private\. .*`hf auth login`'),
        ('hf://a/b@v1', errors.RevisionNotFoundError, r"a/b has no branch, tag or commit 'v1'\."),
    ],
)
def test_what_the_hub_does_not_have_or_refuses(source, error, words, monkeypatch):
    def download(*args, **kwargs):
        raise error.__new__(error)  # the versions of the package make them of different things

    if error:
        monkeypatch.setattr(huggingface_hub, 'hf_hub_download', download)
    with pytest.raises(UserError, match=words):
        fetch(source)


def test_a_hub_that_cannot_be_reached_is_asked_for_one_file(monkeypatch):
    asked = []

    def download(repository, name, revision, local_files_only):
        asked.append(local_files_only)
        raise errors.LocalEntryNotFoundError('no network')

    monkeypatch.setattr(huggingface_hub, 'hf_hub_download', download)
    with pytest.raises(UserError, match=r'hf://me/mine is not in the cache'):
        fetch('hf://me/mine')
    assert asked == [False, True, True, True, True]


# facebookresearch's files


def test_published_files_by_short_names(tmp_path, weights, monkeypatch):
    torch.save({'model': weights}, tmp_path / 'file.pth')
    asked = []

    def download(url, file, hash_prefix, progress):
        asked.append(url)
        shutil.copy(tmp_path / 'file.pth', file)

    monkeypatch.setattr(torch.hub, 'download_url_to_file', download)
    report = assert_loads('convnext://tiny_1k', weights)
    assert asked == [f'{HOST}convnext_tiny_1k_224.pth']
    # where torch.hub and facebookresearch's own code put it
    assert (tmp_path / 'torch/checkpoints/convnext_tiny_1k_224.pth').is_file()
    assert report.source == f'convnext://tiny_1k ({HOST}convnext_tiny_1k_224.pth, 114 MB)'
    assert report.licence == 'MIT'
    assert fetch('convnext://v2_tiny_fcmae').licence == 'CC-BY-NC 4.0'


def test_a_published_file_that_cannot_be_reached_is_told_with_its_address(monkeypatch):
    def download(*_):
        raise OSError('no network')

    monkeypatch.setattr(torch.hub, 'download_url_to_file', download)
    address = re.escape(f'convnext://tiny_1k ({HOST}convnext_tiny_1k_224.pth, 114 MB)')
    with pytest.raises(UserError, match=rf'^{address} cannot be fetched \(no network\)\. .*give its path'):
        fetch('convnext://tiny_1k')


def test_timm_knows_the_published_classifiers():
    theirs = {get_pretrained_cfg(name).url: name for name in timm.list_pretrained('*convnext*')}
    theirs = {url: name for url, name in theirs.items() if url and url.startswith(HOST)}
    ours = {find_published(f'convnext://{name}')[0]: name for name in PUBLISHED}
    assert len(theirs) > 40
    assert theirs.keys() <= ours.keys()
    for url, name in theirs.items():
        version, size = re.match('convnext(v2)?_([a-z]+)', name).groups()
        assert ours[url].startswith(f'v2_{size}_' if version else f'{size}_')


# Addresses


@pytest.fixture
def site(tmp_path, serve):
    folder = tmp_path / 'site'
    folder.mkdir()
    return folder, *serve(folder)


def test_an_address_is_fetched_once_and_the_same_name_at_two_addresses_twice(site, weights):
    folder, url, requests = site
    for name, number in (('a', 1.0), ('b', 2.0)):
        (folder / name).mkdir()
        given = {key: torch.full_like(value, number) for key, value in weights.items()}
        torch.save({'model': given}, folder / name / 'model.pth')
        assert assert_loads(f'{url}/{name}/model.pth', given).source == f'{url}/{name}/model.pth'
    assert requests == ['/a/model.pth', '/b/model.pth']


def test_a_hash_in_the_name_is_checked(site, weights, tmp_path):
    folder, url, _ = site
    torch.save({'model': weights}, folder / 'weights.pth')
    right = hashlib.sha256((folder / 'weights.pth').read_bytes()).hexdigest()[:8]
    wrong = f'{int(right, 16) ^ 1:08x}'
    for digest in (right, wrong, '20240115'):  # a date is no hash
        shutil.copy(folder / 'weights.pth', folder / f'weights-{digest}.pth')
    assert_loads(f'{url}/weights-{right}.pth', weights)
    with pytest.raises(UserError, match=rf'its SHA-256 does not begin with {wrong}\. Nothing was kept'):
        fetch(f'{url}/weights-{wrong}.pth')
    cached = tmp_path / f'torch/checkpoints/weights-{right}.pth'
    assert [*cached.parent.iterdir()] == [cached]
    torch.save({key: value + 1 for key, value in weights.items()}, cached)
    with pytest.raises(UserError, match=rf'{cached} is not the one of that name: .* Delete it .* from {url}'):
        fetch(f'{url}/weights-{right}.pth')
    assert_loads(f'{url}/weights-20240115.pth', weights)
    found = [HASH_IN_NAME.search(f'x-{end}.pth') for end in ('20240115', '20241315', '12345678', '0676ba61', '1234567')]
    assert [bool(each) for each in found] == [False, True, True, True, False]


def test_addresses_that_fail(site):
    folder, url, _ = site
    (folder / 'login.pth').write_text('<!DOCTYPE html><title>Sign in</title>')
    with pytest.raises(UserError, match=r'it is a web page, .* downloaded from .*/login\.pth; delete it'):
        fetch(f'{url}/login.pth')
    with pytest.raises(UserError, match=rf'{url}/none\.pth cannot be fetched \(File not found\)\..*init_cfg'):
        fetch(f'{url}/none.pth')
    with pytest.raises(UserError, match=r'http://127\.0\.0\.1:1/x\.pth cannot be fetched \(.*refused'):
        fetch('http://127.0.0.1:1/x.pth')


@pytest.mark.parametrize(
    ('source', 'words'),
    [
        ('torchvision://convnext_tiny', r'^MMEngine knows no weights torchvision://convnext_tiny\.'),
        ('open-mmlab://nope', r'^MMEngine knows no weights open-mmlab://nope\.'),
        ('mmcls://nope', r'^MMEngine knows no weights mmcls://nope\.'),
        ('pavi://a/b', r'^pavi://a/b cannot be fetched \(Please install pavi .*Download it elsewhere'),
        ('ftp://a.org/b.pth', r'not fetched from ftp://a\.org/b\.pth\. .*convnext://, hf://, http://, https://'),
        ('file:///tmp/x.pth', r'not fetched from file:///tmp/x\.pth\.'),
        ('Timm://convnext_tiny', r'not fetched from Timm://convnext_tiny\.'),
        ('nothing.pth', r'nothing\.pth does not exist'),
        ('convnext://tiny_2k', r"'tiny_2k'\. Known: tiny_1k, tiny_1k_ema, tiny_22k, .*v2_tiny_1k"),
        ('convnext://medium', r"'medium'\. Known: .*upernet_xlarge_22k"),
        ('timm://convnext_atto.fb', r"'convnext_atto\.fb'\. Known: convnext_atto\.d2_in1k, convnext_atto_ols"),
        ('timm://nonesuch', r"'nonesuch'\. Known: convnext_"),
    ],
)
def test_sources_that_do_not_exist(source, words):
    with pytest.raises(UserError, match=words):
        fetch(source)


def test_a_module_that_is_run_again_still_loads(tmp_path, monkeypatch):
    monkeypatch.setattr(upstream.CheckpointLoader, '_schemes', {**upstream.CheckpointLoader._schemes})
    spec = importlib.util.find_spec('convnext_dense.weights.sources')
    again = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(again)
    torch.save({'weight': torch.ones(1)}, tmp_path / 'x.pth')
    assert again.fetch(tmp_path / 'x.pth') == {'weight': torch.ones(1)}
