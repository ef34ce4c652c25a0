"""Where weights come from: every scheme without a network, and what is said where it fails."""

import hashlib
import http.server
import re
import shutil
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import huggingface_hub
import mmengine.runner.checkpoint as upstream
import pytest
import timm
import torch
from huggingface_hub import constants
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors.torch import save_file
from timm.models import get_pretrained_cfg
from torch import nn

from convnext_dense import ConvNeXt, UserError
from convnext_dense.compat import trust_checkpoints
from convnext_dense.compat.checkpoints import HASH_IN_NAME
from convnext_dense.weights import fetch, load_weights
from convnext_dense.weights.sources import PUBLISHED, find_published
from convnext_dense.weights.sources import split_hub_source

ROOT = Path(__file__).parent.parent
SMALL = dict(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32))


@pytest.fixture(autouse=True)
def _own_caches(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'hub'))
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'torch'))


def cache(tmp_path, repository, file, revision='main', sha='0123456789' * 4):
    """Put a file into the Hugging Face cache, as a download does; return its path."""
    folder = tmp_path / 'hub' / f'models--{repository.replace("/", "--")}'
    reference, snapshot = folder / 'refs' / revision, folder / 'snapshots' / sha
    for parent in (reference.parent, snapshot):
        parent.mkdir(parents=True, exist_ok=True)
    reference.write_text(sha)
    return snapshot / file


def assert_loads(source, weights):
    """Load through init_cfg and through MMEngine's loader; return the report."""
    model = ConvNeXt(SMALL, out_norm=False, init_cfg=dict(type='Pretrained', checkpoint=source))
    model.init_weights()
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    assert upstream.CheckpointLoader.load_checkpoint(source, map_location='cpu').source.startswith(source)
    return load_weights(ConvNeXt(SMALL), source)


@pytest.fixture
def weights():
    model = ConvNeXt(SMALL, out_norm=False)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model.state_dict()


# timm


@pytest.mark.parametrize('file', ['model.safetensors', 'pytorch_model.bin'])
def test_timm_weights_come_from_its_cache(file, tmp_path):
    theirs = timm.create_model('convnext_atto')
    save = save_file if file.endswith('safetensors') else torch.save
    save(theirs.state_dict(), cache(tmp_path, 'timm/convnext_atto.d2_in1k', file))
    ours = ConvNeXt('atto', init_cfg=dict(type='Pretrained', checkpoint='timm://convnext_atto.d2_in1k'))
    ours.init_weights()
    assert torch.equal(ours.stages[3][1].dwconv.weight, theirs.stages[3].blocks[1].conv_dw.weight)
    report = load_weights(ours, 'timm://convnext_atto')  # the first tag
    assert report.source == 'timm://convnext_atto'
    assert report.licence == get_pretrained_cfg('convnext_atto').license != ''


def test_timm_weights_that_are_not_in_the_cache():
    with pytest.raises(
        UserError,
        match=r'timm://convnext_atto\.d2_in1k is not in the cache and .* `hf download timm/convnext_atto\.d2_in1k`, or',
    ):
        fetch('timm://convnext_atto.d2_in1k')


def test_timm_weights_that_do_not_exist():
    with pytest.raises(
        UserError,
        match=r"has no pretrained weights 'convnext_atto\.fb'\. Known: convnext_atto\.d2_in1k, convnext_atto_ols",
    ):
        fetch('timm://convnext_atto.fb')
    with pytest.raises(UserError, match=r"'nonesuch'\. Known: convnext_"):
        fetch('timm://nonesuch')


class OfTheUser:
    """A type that no checkpoint needs."""


def test_timm_weights_are_looked_at_before_they_are_read(tmp_path):
    file = cache(tmp_path, 'timm/convnext_atto.d2_in1k', 'pytorch_model.bin')
    with tarfile.open(file, 'w') as archive:
        archive.addfile(tarfile.TarInfo('storages'))
    with pytest.raises(UserError, match=r'pytorch_model\.bin is not read: it is a tar archive\.'):
        fetch('timm://convnext_atto.d2_in1k')


def test_timm_weights_that_are_not_safe(tmp_path):
    content = ConvNeXt('atto').state_dict() | {'args': OfTheUser()}
    torch.save(content, cache(tmp_path, 'timm/convnext_atto.d2_in1k', 'pytorch_model.bin'))
    with pytest.raises(UserError, match=r'it needs test_weights_sources\.OfTheUser, .*--trust-checkpoint'):
        fetch('timm://convnext_atto.d2_in1k')
    with trust_checkpoints():
        assert isinstance(fetch('timm://convnext_atto.d2_in1k')['args'], OfTheUser)


@pytest.mark.parametrize(('package', 'source'), [('timm', 'timm://convnext_atto'), ('huggingface_hub', 'hf://a/b')])
def test_packages_that_are_not_installed(package, source, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=f'{source} needs {package}, which is not installed: pip install {package}'):
        fetch(source)


# The Hugging Face Hub


def test_an_old_torch_is_noted_for_pickles_of_the_hub(tmp_path, weights, monkeypatch):
    monkeypatch.setattr(torch, '__version__', '2.9.1')
    torch.save(weights, cache(tmp_path, 'me/mine', 'pytorch_model.bin'))
    with pytest.warns(UserWarning, match=r'^PyTorch 2\.9\.1 can be attacked by a \.pth file'):
        fetch('hf://me/mine')
    save_file(weights, cache(tmp_path, 'me/mine', 'model.safetensors'))
    fetch('hf://me/mine')  # warnings are errors here


def test_a_repository_of_the_hub(tmp_path, weights):
    save_file(weights, cache(tmp_path, 'facebook/convnext', 'model.safetensors'))
    torch.save({'wrong': torch.ones(1)}, cache(tmp_path, 'facebook/convnext', 'pytorch_model.bin'))
    report = assert_loads('hf://facebook/convnext', weights)
    assert report.source == 'hf://facebook/convnext'
    assert report.licence == "if these are facebookresearch's own: MIT"


def test_a_revision_of_the_hub(tmp_path, weights):
    save_file({key: value + 1 for key, value in weights.items()}, cache(tmp_path, 'me/mine', 'model.safetensors'))
    save_file(weights, cache(tmp_path, 'me/mine', 'model.safetensors', revision='v2', sha='abcdef0123' * 4))
    assert_loads('hf://me/mine@v2', weights)
    assert_loads(f'hf://me/mine@{"abcdef0123" * 4}', weights)


def test_a_file_of_the_hub(tmp_path, weights):
    torch.save({'model': weights}, cache(tmp_path, 'me/mine', 'best.pth'))
    assert_loads('hf://me/mine/best.pth', weights)
    assert_loads('hf://me/mine@main/best.pth', weights)


def test_any_model_may_take_what_the_hub_has(tmp_path):
    theirs, ours = nn.Linear(2, 2), nn.Linear(2, 2)
    torch.save(theirs.state_dict(), cache(tmp_path, 'me/linear', 'pytorch_model.bin'))
    upstream.load_checkpoint(ours, 'hf://me/linear', strict=True)
    assert torch.equal(ours.weight, theirs.weight)


def test_what_the_hub_does_not_have(tmp_path, monkeypatch):
    with pytest.raises(
        UserError, match=r'hf://me/mine is not in the cache and the Hub cannot be reached\. .*`hf download me/mine`'
    ):
        fetch('hf://me/mine')
    with pytest.raises(UserError, match=r"A Hub source is hf://ORG/REPO, .* got 'hf://mine'\."):
        fetch('hf://mine')
    with pytest.raises(UserError, match=r'hf://me/mi--ne cannot be fetched \(Cannot have -- or \.\. in repo_id'):
        fetch('hf://me/mi--ne')

    def answer(error):
        def download(*args, **kwargs):
            raise error

        monkeypatch.setattr(huggingface_hub, 'hf_hub_download', download)

    answer(EntryNotFoundError('404'))
    with pytest.raises(
        UserError,
        match=r'The repository me/mine has none of model\.safetensors, .*\. Name its file: hf://me/mine/FILE\.',
    ):
        fetch('hf://me/mine')
    with pytest.raises(UserError, match=r'The repository me/mine has no file x\.pth\. Name its file'):
        fetch('hf://me/mine/x.pth')


HUB_ANSWERS = {
    'GatedRepo': (
        403,
        r'hf://a/b@v1 is for those who accepted its licence\. Accept it at https://huggingface\.co/a/b and',
    ),
    'RepoNotFound': (
        404,
        r'The Hub has no repository a/b, or it is private\. Correct the name, or log in with `hf auth',
    ),
    'RevisionNotFound': (404, r"The repository a/b has no branch, tag or commit 'v1'\. Correct it, or leave @REV out"),
    'EntryNotFound': (404, r'The repository a/b has none of model\.safetensors, .*\. Name its file: hf://a/b/FILE\.'),
}


def reach_hub_at(address, monkeypatch):
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    monkeypatch.setattr(constants, 'ENDPOINT', address)
    monkeypatch.setattr(constants, 'HUGGINGFACE_CO_URL_TEMPLATE', address + '/{repo_id}/resolve/{revision}/{filename}')


@pytest.mark.parametrize('code', HUB_ANSWERS)
def test_what_the_hub_refuses(code, monkeypatch):
    status, text = HUB_ANSWERS[code]

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(status)
            self.send_header('X-Error-Code', code)
            self.end_headers()

        do_GET = do_HEAD

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Hub) as server:
        threading.Thread(target=server.serve_forever, args=[0.02], daemon=True).start()
        reach_hub_at(f'http://127.0.0.1:{server.server_port}', monkeypatch)
        with pytest.raises(UserError, match=text):
            fetch('hf://a/b@v1')
        server.shutdown()


def test_a_hub_that_cannot_be_reached_is_asked_for_one_file(monkeypatch):
    asked = []

    def download(repository, name, revision, local_files_only):
        asked.append((name, local_files_only))
        raise LocalEntryNotFoundError('no network')

    monkeypatch.setattr(huggingface_hub, 'hf_hub_download', download)
    with pytest.raises(UserError, match=r'hf://me/mine is not in the cache and the Hub cannot be reached\.'):
        fetch('hf://me/mine')
    assert [only_local for _, only_local in asked] == [False, True, True, True, True]


def test_a_cached_file_of_another_name_is_found_without_the_hub(tmp_path, weights, monkeypatch):
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    torch.save(weights, cache(tmp_path, 'me/mine', 'pytorch_model.bin'))
    assert_loads('hf://me/mine', weights)


@pytest.mark.parametrize(
    ('source', 'parts'),
    [
        ('hf://a/b', ('a/b', None, None)),
        ('hf://a/b@refs/pr/3', ('a/b', 'refs/pr/3', None)),
        ('hf://a/b@refs/pr/3/x/y.bin', ('a/b', 'refs/pr/3', 'x/y.bin')),
        ('hf://a/b@v1/x/y.bin', ('a/b', 'v1', 'x/y.bin')),
    ],
)
def test_parts_of_a_hub_source(source, parts):
    assert split_hub_source(source) == parts


def test_the_licence_of_a_hub_source(tmp_path, weights):
    save_file(weights, cache(tmp_path, 'timm/convnext_tiny.dinov3_lvd1689m', 'model.safetensors'))
    assert fetch('hf://timm/convnext_tiny.dinov3_lvd1689m').licence == 'dinov3-license'
    save_file(weights, cache(tmp_path, 'facebook/dinov3-convnext-tiny', 'model.safetensors'))
    assert fetch('hf://facebook/dinov3-convnext-tiny').licence == 'DINOv3 License'


# facebookresearch's files


def test_published_files_by_short_names(tmp_path, weights, monkeypatch):
    torch.save({'model': weights}, tmp_path / 'file.pth')
    asked = []

    def download(url, file, hash_prefix, progress):
        asked.append((url, hash_prefix))
        shutil.copy(tmp_path / 'file.pth', file)

    monkeypatch.setattr(torch.hub, 'download_url_to_file', download)
    report = assert_loads('convnext://tiny_1k', weights)
    assert asked == [('https://dl.fbaipublicfiles.com/convnext/convnext_tiny_1k_224.pth', None)]
    url = 'https://dl.fbaipublicfiles.com/convnext'
    assert report.source == f'convnext://tiny_1k ({url}/convnext_tiny_1k_224.pth, 114 MB)'
    source = fetch('convnext://upernet_tiny_1k').source
    assert source == f'convnext://upernet_tiny_1k ({url}/ade20k/upernet_convnext_tiny_1k_512x512.pth, 241 MB)'
    assert report.licence == 'MIT'
    assert fetch('convnext://v2_tiny_fcmae').licence == 'CC-BY-NC 4.0'


def test_a_published_file_that_lies_in_the_cache_of_torch(tmp_path, weights):
    file = tmp_path / 'torch/checkpoints/convnext_tiny_1k_224.pth'
    file.parent.mkdir(parents=True)
    torch.save({'model': weights}, file)
    assert_loads('convnext://tiny_1k', weights)


def test_a_published_file_that_cannot_be_reached_is_told_with_its_address(monkeypatch):
    def download(*_):
        raise OSError('no network')

    monkeypatch.setattr(torch.hub, 'download_url_to_file', download)
    with pytest.raises(
        UserError,
        match=r'^convnext://tiny_1k \(https://dl\.fbaipublicfiles\.com/convnext/convnext_tiny_1k_224\.pth, 114 MB\) '
        r'cannot be fetched \(no network\)\. Download it elsewhere and give its path\.',
    ):
        fetch('convnext://tiny_1k')


def test_short_names_that_do_not_exist():
    with pytest.raises(
        UserError,
        match=r"No published weights are called 'tiny_2k'\. Known: tiny_1k, tiny_1k_ema, tiny_22k, .*v2_tiny_1k",
    ):
        fetch('convnext://tiny_2k')
    with pytest.raises(UserError, match=r"'medium'\. Known: .*upernet_xlarge_22k"):
        find_published('medium')


def test_the_published_files_are_those_that_timm_knows():
    theirs = {get_pretrained_cfg(name).url: name for name in timm.list_pretrained('*convnext*')}
    theirs = {url: name for url, name in theirs.items() if 'dl.fbaipublicfiles.com' in (url or '')}
    ours = {file.url: file for file in PUBLISHED.values()}
    assert len(theirs) > 40
    assert theirs.keys() <= ours.keys()
    for url, name in theirs.items():
        assert ours[url].size == re.match('convnext(?:v2)?_([a-z]+)', name)[1]
        assert ('NC' in ours[url].licence) == name.startswith('convnextv2')
    # What timm does not list: detectors, segmentors, and classifiers without an average of the weights
    others = {file.path for url, file in ours.items() if url not in theirs}
    rest = {path for path in others if not path.startswith(('coco/', 'ade20k/'))}
    sizes = ('tiny', 'small', 'base', 'large')
    expected = {f'convnext_{size}_1k_224.pth' for size in sizes}
    assert rest == expected | {'convnext_base_1k_384.pth', 'convnext_large_1k_384.pth'}
    coco, ade20k = 'coco/{}_rcnn_convnext_{}_3x.pth', 'ade20k/upernet_convnext_{}.pth'
    assert others - rest == {
        coco.format('mask', 'tiny_1k'),
        *(coco.format('cascade_mask', name) for name in ('tiny_1k', 'small_1k', 'base_1k')),
        *(coco.format('cascade_mask', name) for name in ('base_22k', 'large_22k', 'xlarge_22k')),
        *(ade20k.format(name) for name in ('tiny_1k_512x512', 'small_1k_512x512', 'base_1k_512x512')),
        *(ade20k.format(name) for name in ('base_22k_640x640', 'large_22k_640x640', 'xlarge_22k_640x640')),
    }


@pytest.mark.parametrize('name', [name for name, file in PUBLISHED.items() if file.num_classes is not None])
def test_sizes_of_published_files(name):
    file = PUBLISHED[name]
    with torch.device('meta'):
        model = ConvNeXt(file.size, grn=name.startswith('v2_'), out_norm=False)
    count = sum(parameter.numel() for parameter in model.parameters())
    if file.num_classes:
        last = model.dims[-1]
        count += 2 * last + last * file.num_classes + file.num_classes
    assert file.megabytes == round(4 * count / 1e6)


LEAVES = dict(
    mask_rcnn='det/mask_rcnn_{}_coco', cascade_mask_rcnn='det/cascade_{}_coco', upernet='seg/upernet_{}_ade20k'
)
SHORT = dict(tiny='t', small='s', base='b', large='l', xlarge='xl')


@pytest.mark.parametrize('name', [name for name, file in PUBLISHED.items() if file.num_classes is None])
def test_sizes_of_published_models(name, leaf_stats):
    kind, size, data = name.rsplit('_', 2)
    leaf = LEAVES[kind].format(f'convnext_{SHORT[size]}' + ('_in22k' if data == '22k' else ''))
    total = leaf_stats(ROOT / f'configs/{leaf}.py').parts['total'].params
    assert PUBLISHED[name].megabytes == pytest.approx(4 * total / 1e6, abs=1)


def test_sizes_of_papers():
    # arXiv 2201.03545, Table 9, and 2301.00808, Table 10, in millions of parameters
    published = dict(tiny_1k=29, small_1k=50, base_1k=89, large_1k=198, v2_atto_1k=3.7, v2_huge_1k=659)
    assert {name: PUBLISHED[name].megabytes / 4 for name in published} == pytest.approx(published, rel=0.02)


# Addresses


@pytest.fixture
def site(tmp_path, serve):
    folder = tmp_path / 'site'
    folder.mkdir()
    url, requests = serve(folder)
    return folder, url, requests


def test_an_address_is_fetched_once(site, weights):
    folder, url, requests = site
    torch.save({'model': weights}, folder / 'weights.pth')
    report = assert_loads(f'{url}/weights.pth', weights)
    assert report.source == f'{url}/weights.pth'
    assert requests == ['/weights.pth']


def test_a_hash_in_the_name_is_checked(site, weights, tmp_path):
    folder, url, _ = site
    torch.save({'model': weights}, folder / 'weights.pth')
    right = hashlib.sha256((folder / 'weights.pth').read_bytes()).hexdigest()[:8]
    wrong = f'{int(right, 16) ^ 1:08x}'
    shutil.copy(folder / 'weights.pth', folder / f'weights-{right}.pth')
    shutil.copy(folder / 'weights.pth', folder / f'weights-{wrong}.pth')
    assert_loads(f'{url}/weights-{right}.pth', weights)
    with pytest.raises(UserError, match=rf'its SHA-256 does not begin with {wrong}\. Nothing was kept; try again'):
        fetch(f'{url}/weights-{wrong}.pth')
    assert [file.name for file in (tmp_path / 'torch/checkpoints').iterdir()] == [f'weights-{right}.pth']


def test_the_same_name_at_two_addresses(site, weights):
    folder, url, requests = site
    for name, number in (('a', 1.0), ('b', 2.0)):
        (folder / name).mkdir()
        given = {key: torch.full_like(value, number) for key, value in weights.items()}
        torch.save(given, folder / name / 'model.pth')
        assert_loads(f'{url}/{name}/model.pth', given)
    assert requests == ['/a/model.pth', '/b/model.pth']


def test_a_date_is_no_hash(site, weights):
    folder, url, _ = site
    torch.save(weights, folder / 'convnext-20240115.pth')
    assert_loads(f'{url}/convnext-20240115.pth', weights)
    found = [HASH_IN_NAME.search(f'x-{end}.pth') for end in ('20240115', '20241315', '12345678', '0676ba61', '1234567')]
    assert [bool(each) for each in found] == [False, True, True, True, False]


def test_a_hash_in_the_name_is_checked_in_the_cache_too(site, weights, tmp_path):
    folder, url, requests = site
    torch.save(weights, folder / 'weights.pth')
    name = f'weights-{hashlib.sha256((folder / "weights.pth").read_bytes()).hexdigest()[:8]}.pth'
    (folder / 'weights.pth').rename(folder / name)
    cached = tmp_path / 'torch/checkpoints' / name
    cached.parent.mkdir(parents=True)
    torch.save({key: value + 1 for key, value in weights.items()}, cached)
    with pytest.raises(
        UserError, match=rf'{cached} is not the one of that name: .* Delete it .* again from {url}/{name}'
    ):
        fetch(f'{url}/{name}')
    cached.unlink()
    assert_loads(f'{url}/{name}', weights)
    assert requests == [f'/{name}']


def test_addresses_that_fail(site):
    folder, url, _ = site
    with pytest.raises(
        UserError,
        match=rf'{url}/none\.pth cannot be fetched \(File not found\)\. Download it elsewhere and give its path\. For '
        r'initial weights that is --cfg-options model\.backbone\.init_cfg\.checkpoint=FILE;',
    ):
        fetch(f'{url}/none.pth')
    (folder / 'login.pth').write_text('<!DOCTYPE html><title>Sign in</title>')
    with pytest.raises(
        UserError, match=r'it is a web page, .* downloaded from .*/login\.pth; delete it to download it'
    ):
        fetch(f'{url}/login.pth')
    with pytest.raises(UserError, match=r'http://127\.0\.0\.1:1/x\.pth cannot be fetched \(.*refused'):
        upstream.CheckpointLoader.load_checkpoint('http://127.0.0.1:1/x.pth')


@pytest.mark.parametrize('source', ['torchvision://convnext_tiny', 'open-mmlab://nope', 'mmcls://nope'])
def test_names_that_mmengine_does_not_know(source):
    with pytest.raises(
        UserError, match=rf'^MMEngine knows no weights {source}\. Correct the name, or give the path of a'
    ):
        fetch(source)


def test_a_scheme_whose_package_is_not_installed():
    with pytest.raises(UserError, match=r'^pavi://a/b cannot be fetched \(Please install pavi .*Download it elsewhere'):
        fetch('pavi://a/b')


@pytest.mark.parametrize('source', ['ftp://a.org/b.pth', 'file:///tmp/x.pth', 'Timm://convnext_tiny'])
def test_schemes_that_do_not_exist(source):
    with pytest.raises(
        UserError,
        match=rf'^Weights are not fetched from {source}\. Give a path, or one of convnext://, hf://, http://, h',
    ):
        fetch(source)


def test_a_file_that_holds_no_checkpoint(tmp_path):
    torch.save([torch.ones(1)], tmp_path / 'list.pth')
    with pytest.raises(
        UserError, match=r'list\.pth holds list, not a checkpoint\. Save the state_dict\(\) of the model'
    ):
        fetch(tmp_path / 'list.pth')


def test_a_module_that_is_imported_again_still_loads(tmp_path):
    """A new process, because the second import replaces the classes that other tests hold."""
    torch.save({'weight': torch.ones(1)}, tmp_path / 'x.pth')
    code = (
        'import importlib, sys, convnext_dense.weights as weights\n'
        'from convnext_dense.weights import sources\n'
        'print(dict(importlib.reload(sources).fetch(sys.argv[1])))'
    )
    ran = subprocess.run([sys.executable, '-c', code, str(tmp_path / 'x.pth')], capture_output=True, text=True)
    assert 'tensor([1.])' in ran.stdout, ran.stderr[-500:]
