"""Published weights: what is kept and left out, and that the tools, the libraries and the downloaders take them."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from torch import nn

from convnext_dense import ConvNeXt, UserError
from convnext_dense import cli as command_line
from convnext_dense.compat import read_checkpoint
from convnext_dense.compat.checkpoints import checkpoints_are_trusted, read_checkpoint_from_url
from convnext_dense.data import write_shapes
from convnext_dense.train import run as runs
from convnext_dense.weights import load_weights
from convnext_dense.weights.inspect import inspect
from convnext_dense.weights.publish import publish

ROOT = Path(__file__).parent.parent
DET_CONFIG = ROOT / 'configs/det/cascade_convnext_atto_shapes.py'
SEG_CONFIG = ROOT / 'configs/seg/upernet_convnext_atto_shapes.py'
DRAWN = dict(num_train=4, num_val=2, size=64)
SHAPES = ('circle', 'square', 'triangle', 'star', 'cross')
pytestmark = [
    # MMEngine warns of the second runner in one process, which only tests have
    pytest.mark.filterwarnings('ignore:.*instance named of .* has been created:UserWarning'),
    pytest.mark.filterwarnings('ignore:__array__ implementation:DeprecationWarning'),  # pycocotools and NumPy 2
]
TINY = dict(depths=(1, 1, 1, 1), dims=(8, 8, 8, 8))


# A detector that was trained, from the checkpoint to the metrics of the published file.


@pytest.fixture(scope='module')
def options(tmp_path_factory):
    shapes = write_shapes(tmp_path_factory.mktemp('data') / 'shapes', **DRAWN)
    ann_file = str(shapes / 'annotations/instances_val.json')
    dataset = {**DRAWN, 'data_root': str(shapes)}
    splits = ('train', 'val', 'test')
    return {
        **{f'{split}_dataloader.dataset.{key}': value for split in splits for key, value in dataset.items()},
        'train_dataloader.batch_size': 2,
        'train_cfg.max_epochs': 1,
        'val_evaluator.ann_file': ann_file,
        'test_evaluator.ann_file': ann_file,
        'model.test_cfg.rcnn.score_thr': 0.0,  # two iterations give no confident prediction
        'model.test_cfg.rcnn.max_per_img': 20,
        'optim_wrapper.optimizer.lr': 0.01,
        'custom_hooks': [],
        'visualizer.name': 'published',  # MMEngine keeps one visualizer of a name; an earlier one logs elsewhere
    }


@pytest.fixture(scope='module')
def trained(options, tmp_path_factory):
    """The checkpoint of a detector after one epoch."""
    work_dir = tmp_path_factory.mktemp('run')
    runs.train(DET_CONFIG, str(work_dir), cfg_options=options)
    return work_dir / 'epoch_1.pth'


def test_a_published_detector_scores_what_its_checkpoint_scores(trained, options, tmp_path):
    published = publish(trained, f'{tmp_path}/zoo/')
    assert published.left_out == ['message_hub', 'optimizer', 'param_schedulers']
    before, after = published.sizes
    assert after < 0.4 * before
    expected = runs.test(DET_CONFIG, str(trained), str(tmp_path / 'one'), cfg_options=options)
    metrics = runs.test(published.config, str(published.file), str(tmp_path / 'other'))
    assert metrics == expected

    numbers = {name: value for name, value in expected.items() if value != -1}
    found = inspect(published.file)
    assert found.metrics == numbers
    assert found.metrics_origin == "validation of this checkpoint, from the run's log"
    assert found.classes == list(SHAPES)
    assert found.training['epoch'] == 1
    assert found.config == 'cascade_convnext_atto_shapes'
    card = published.card.read_text()
    for name, value in numbers.items():
        assert f'| {name} | {value:.4g} |' in card
    assert 'Cascade Mask R-CNN, 3 box heads, ConvNeXt atto, 5 classes, 6.4 M parameters.' in card
    assert ', '.join(SHAPES) in card


@pytest.mark.parametrize('file_format', ['safetensors', 'pth'])
def test_the_code_on_the_card_of_a_detector_runs(trained, tmp_path, monkeypatch, file_format):
    published = publish(trained, tmp_path / 'zoo' / 'shapes', file_format=file_format)
    monkeypatch.chdir(published.file.parent)
    model = run_code_of(published.card)
    original = read_checkpoint(trained)['state_dict']
    assert model.state_dict().keys() == original.keys()
    assert all(torch.equal(value, original[key]) for key, value in model.state_dict().items())
    assert model.dataset_meta['classes'] == (SHAPES if file_format == 'pth' else list(SHAPES))
    # MMDetection takes a list of three numbers for three colours
    palette = read_checkpoint(published.file)['meta']['dataset_meta']['palette']
    assert all(isinstance(colour, tuple) and len(colour) == 3 for colour in palette)
    assert load_weights(model, published.file, need='all').missing == []


def run_code_of(card: Path) -> nn.Module:
    """Run the blocks of a card as a reader would, without a GPU; return the model."""
    names = {}
    blocks = card.read_text().split('```python\n')[1:]
    assert len(blocks) == 2
    for block in blocks:
        exec(block.split('```')[0].replace("'cuda:0'", "'cpu'"), names)
    return names['model']


def test_a_published_segmentor_has_names_and_colours(tmp_path, monkeypatch):
    from mmseg.apis import init_model

    model = init_model(str(SEG_CONFIG), device='cpu')
    data = dict(classes=('sky', 'grass', 'road', *SHAPES), palette=[[i, i, i] for i in range(8)])
    meta = dict(
        cfg=Config.fromfile(SEG_CONFIG).pretty_text, experiment_name='upernet_20260131_093000', dataset_meta=data
    )
    torch.save({'meta': meta, 'state_dict': model.state_dict()}, tmp_path / 'iter_6.pth')
    published = publish(tmp_path / 'iter_6.pth', tmp_path, metrics={'mIoU': 46.7})
    assert published.file.name.startswith('upernet-')
    monkeypatch.chdir(tmp_path)
    again = run_code_of(published.card)
    assert list(again.dataset_meta['classes']) == list(data['classes'])
    assert again.dataset_meta['palette'] == [(i, i, i) for i in range(8)]
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())
    card = published.card.read_text()
    assert '## Metrics: given by whoever published the weights' in card
    assert '| mIoU | 46.7 |' in card


# What is kept.


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = ConvNeXt(TINY)
        self.neck = nn.Conv2d(8, 8, 3)
        self.bbox_head = nn.ModuleDict({'retina_cls': nn.Conv2d(8, 4, 3), 'norm': nn.BatchNorm2d(8)})


CONFIG_TEXT = """\
launcher = 'pytorch'
load_from = '/home/me/runs/iter_100.pth'
model = dict(backbone=dict(init_cfg=dict(checkpoint='convnext://v2_tiny_1k', type='Pretrained')))
resume = True
work_dir = '/home/me/runs/secret'
"""


def checkpoint(tmp_path, **changes) -> Path:
    """Write a checkpoint as MMEngine does."""
    history = {'val/coco/bbox_mAP': HistoryBuffer([0.1, 0.25], [1, 1]), 'val/time': HistoryBuffer([9.0], [1])}
    content = {
        'meta': dict(epoch=2, iter=40, seed=0, cfg=CONFIG_TEXT, experiment_name='retina_20260131_093000'),
        'state_dict': Detector().state_dict(),
        'optimizer': {'state': {}, 'param_groups': []},
        'message_hub': dict(log_scalars=history, runtime_info={}, resumed_keys={}),
        **changes,
    }
    torch.save(content, tmp_path / 'epoch_2.pth')
    return tmp_path / 'epoch_2.pth'


def test_what_belongs_to_the_training_is_left_out(tmp_path):
    published = publish(checkpoint(tmp_path), f'{tmp_path}/zoo/')
    content = read_checkpoint(published.file)
    assert content.keys() == {'meta', 'state_dict'}
    assert content['meta']['initial_weights'] == ['convnext://v2_tiny_1k']
    assert published.config.read_text() == content['meta']['cfg']
    assert content['meta']['cfg'].split('\n') == [
        "launcher = 'none'",
        'load_from = None',
        "model = dict(backbone=dict(init_cfg=dict(checkpoint='convnext://v2_tiny_1k', type='Pretrained')))",
        'resume = False',
        '',
    ]
    card = published.card.read_text()
    assert '| initial weights | `convnext://v2_tiny_1k` (CC-BY-NC 4.0) |' in card
    assert '| licence | trained from convnext://v2_tiny_1k (CC-BY-NC 4.0) |' in card
    # without the log of the run, the checkpoint's own history, which ends before its own validation
    assert (
        '## Metrics: last validation before the checkpoint was saved\n\n| | |\n|---|---|\n| coco/bbox_mAP | 0.25 |\n\n'
        in card
    )
    again = publish(published.file, f'{tmp_path}/again/')
    assert again.file.name == published.file.name
    assert again.file.read_bytes() == published.file.read_bytes()


@pytest.mark.parametrize(
    ('source', 'name'),
    [
        ('convnext://tiny_1k', None),
        ('timm://convnext_tiny.fb_in22k', None),
        ('hf://facebook/convnext-tiny-224', None),
        ('open-mmlab://resnet50', None),
        ('https://dl.fbaipublicfiles.com/convnext/convnext_tiny_1k_224.pth', None),
        ('/home/alice/secret/own.pth', 'a local file'),
        ('work_dirs/secret/epoch_3.pth', 'a local file'),
        ('C:\\Users\\alice\\own.pth', 'a local file'),
        ('file:///home/alice/own.pth', 'a local file'),
        ('s3://secret/own.pth', 'a private address'),
        ('https://alice:password@example.org/own.pth', 'a private address'),
        ('https://example.org/own.pth?Signature=secret', 'a private address'),
        ('http://10.1.2.3/own.pth', 'a private address'),
        ('http://[fd00::1]/own.pth', 'a private address'),
        ('http://[broken/own.pth', 'a private address'),
        ('http://storage.internal:9000/own.pth', 'a private address'),
        ('http://alice-desktop/own.pth', 'a private address'),
    ],
)
def test_sources_that_are_not_for_everyone(source, name):
    assert public_name(source) == (name or source)


def test_what_is_published_tells_no_places_of_the_training(tmp_path):
    """Neither the weights nor config and card; the same place may be written in several ways."""
    text = (
        'checkpoint_file = "/home/alice/secret/ü.pth"\n'
        "load_from = '/home/alice/dinov3_runs/own.pth'\n"
        "names = ('ü', 'ü'); model = dict(backbone=dict(init_cfg={'type': 'Pretrained',\n"
        "    'checkpoint': '/home/alice/secret/' 'ü.pth'}), neck=dict(init_cfg=dict(\n"
        "        type='Pretrained', checkpoint='timm://convnext_tiny.fb_in22k')))\n"
        "work_dir = '/home/alice/secret'\n"
    )
    published = publish(checkpoint(tmp_path, meta=dict(cfg=text)), f'{tmp_path}/zoo/')
    for file in (published.file, published.config, published.card):
        content = file.read_bytes()
        assert not any(word in content for word in (b'alice', b'secret', b'dinov3', b'DINOv3', b'own.pth'))
    config = Config.fromfile(published.config)
    assert config.checkpoint_file == config.model.backbone.init_cfg.checkpoint == 'a local file'
    assert config.names == ('ü', 'ü')
    assert config.model.neck.init_cfg.checkpoint == 'timm://convnext_tiny.fb_in22k'
    started = ['a local file', 'timm://convnext_tiny.fb_in22k']
    assert read_checkpoint(published.file)['meta']['initial_weights'] == started
    card = published.card.read_text()
    assert '| initial weights | a local file, `timm://convnext_tiny.fb_in22k` (apache-2.0) |\n' in card
    assert '| licence | trained from timm://convnext_tiny.fb_in22k (apache-2.0) |\n' in card
    again = publish(published.file, f'{tmp_path}/again/')
    assert again.file.read_bytes() == published.file.read_bytes()


def test_absolute_paths_that_the_config_needs_are_told_to_whoever_publishes(tmp_path):
    text = "data = dict(root='/home/alice/data', val='/home/alice/data', prefix='train/')\nother = 'C:\\\\data'\n"
    published = publish(checkpoint(tmp_path, meta=dict(cfg=text)), f'{tmp_path}/zoo/')
    assert published.paths == ['/home/alice/data', 'C:\\data']
    assert str(published).endswith('\n  still told    /home/alice/data, C:\\data, in the config')
    assert 'alice' not in published.card.read_text()
    assert 'still told' not in str(publish(checkpoint(tmp_path), f'{tmp_path}/zoo/'))


def test_a_config_that_is_no_python(tmp_path):
    meta = dict(config='model = dict(\ndata_root = "/home/alice"\n', initial_weights=['/home/alice/own.pth'])
    published = publish(checkpoint(tmp_path, meta=meta), f'{tmp_path}/zoo/')
    assert read_checkpoint(published.file)['meta'].keys().isdisjoint({'cfg', 'config'})
    assert published.config is None
    assert not any(b'alice' in file.read_bytes() for file in (published.file, published.card))


def test_no_licence_is_claimed_for_the_weights_of_a_user(tmp_path):
    torch.save(ConvNeXt(TINY).state_dict(), tmp_path / 'own.pth')
    card = publish(tmp_path / 'own.pth', f'{tmp_path}/zoo/').card.read_text()
    assert 'licence' not in card
    assert 'MIT' not in card
    card = publish(Path(tmp_path / 'own.pth'), f'{tmp_path}/zoo/', config=DET_CONFIG).card.read_text()
    assert 'licence' not in card


@pytest.mark.parametrize(
    ('source', 'licence'),
    [
        ('convnext://v2_tiny_1k', 'CC-BY-NC 4.0'),
        ('timm://convnext_tiny.dinov3_lvd1689m', 'dinov3-license'),
        ('timm://convnextv2_atto.fcmae', 'cc-by-nc-4.0'),
        ('timm://convnext_tiny.dinov3_of_mine', ''),
        ('hf://timm/convnext_tiny.eupe_lvd1689m', 'fair-noncommercial-research-license'),
        ('hf://facebook/dinov3-convnext-tiny-pretrain-lvd1689m', 'DINOv3 License'),
        ('hf://alice/dinov3-eupe', ''),
        ('torchvision://resnet50', 'BSD-3-Clause'),
        ('https://example.org/dinov3/own.pth', ''),
        ('/home/me/dinov3_runs/own.pth', ''),
    ],
)
def test_licence_of_initial_weights(source, licence):
    assert licence_of(source) == licence


def test_licences_without_timm(monkeypatch):
    monkeypatch.setitem(sys.modules, 'timm.models', None)
    assert licence_of('timm://convnext_tiny.fb_in22k') == ''


def test_averaged_weights_are_what_is_published(tmp_path):
    """EMAHook saves the average as the weights, and those of the optimizer beside it."""
    averaged, raw = Detector().state_dict(), Detector().state_dict()
    ema = {'steps': torch.tensor(7), **{f'module.{key}': value for key, value in raw.items()}}
    published = publish(checkpoint(tmp_path, state_dict=averaged, ema_state_dict=ema), tmp_path / 'averaged')
    weights = read_checkpoint(published.file)['state_dict']
    assert all(torch.equal(weights[key], value) for key, value in averaged.items())
    assert weights.keys() == averaged.keys()
    assert 'ema_state_dict' in published.left_out


@pytest.mark.parametrize('file_format', ['safetensors', 'pth'])
def test_the_name_carries_the_hash_that_downloads_are_checked_against(tmp_path, file_format):
    published = publish(checkpoint(tmp_path), tmp_path / 'retina', file_format=file_format)
    digest = hashlib.sha256(published.file.read_bytes()).hexdigest()
    assert published.file.name == f'retina-{digest[:8]}.{file_format}'
    assert f'| SHA-256 | `{digest}` |' in published.card.read_text()
    content = read_checkpoint_from_url(published.file.as_uri(), str(tmp_path / 'cache'), progress=False)
    assert content['state_dict'].keys() == Detector().state_dict().keys()
    damaged = tmp_path / published.file.name.replace(digest[:8], 'abcdef12')
    damaged.write_bytes(published.file.read_bytes())
    with pytest.raises(UserError, match=r'its SHA-256 does not begin with abcdef12'):
        read_checkpoint_from_url(damaged.as_uri(), str(tmp_path / 'cache'), progress=False)


def test_half_precision(tmp_path):
    source = checkpoint(tmp_path)
    published = publish(source, tmp_path / 'half', half=True)
    weights, original = read_checkpoint(published.file)['state_dict'], read_checkpoint(source)['state_dict']
    assert weights['backbone.stages.0.0.pwconv1.weight'].dtype == torch.float16
    # vectors are small, and a layer scale of 1e-6 has few digits in float16
    assert weights['backbone.stages.0.0.gamma'].dtype == torch.float32
    assert weights['bbox_head.norm.num_batches_tracked'].dtype == torch.int64
    for key, value in original.items():
        torch.testing.assert_close(weights[key].to(value.dtype), value, rtol=2**-11, atol=2**-25)
    report = load_weights(Detector(), published.file, need='all')
    assert report.converted == {'float16': sum(value.dtype == torch.float16 for value in weights.values())}


def test_weights_that_are_not_worth_publishing(tmp_path):
    weights = Detector().state_dict()
    weights['neck.weight'][0, 0, 0, 0] = 1e6
    with pytest.raises(UserError, match=r'float16 ends at 65504, which is exceeded in neck\.weight\. Publish without'):
        publish(checkpoint(tmp_path, state_dict=weights), f'{tmp_path}/zoo/', half=True)
    weights['neck.weight'][0, 0, 0, 0] = torch.nan
    with pytest.raises(UserError, match=r'holds NaN or infinity in 1 of \d+ weights: neck\.weight'):
        publish(checkpoint(tmp_path, state_dict=weights), f'{tmp_path}/zoo/')
    assert not (tmp_path / 'zoo').exists()


def test_a_card_that_was_edited_stays(tmp_path):
    file = checkpoint(tmp_path, state_dict=Detector().state_dict())
    published = publish(file, f'{tmp_path}/zoo/')
    again = publish(file, f'{tmp_path}/zoo/')  # nothing changes
    assert (again.file, again.card) == (published.file, published.card)
    card = published.card.read_text()
    edited = f'{card}\nEntraîné un jour de pluie.\n'.encode('latin-1')  # which is no UTF-8
    published.card.write_bytes(edited)
    with pytest.raises(
        UserError,
        match=rf'^{published.card.name} in .*zoo would change: the same weights were published before\. .*--force',
    ):
        publish(file, f'{tmp_path}/zoo/')
    assert published.card.read_bytes() == edited
    publish(file, f'{tmp_path}/zoo/', force=True)
    assert published.card.read_text() == card


def test_config_and_metrics_of_the_user(tmp_path):
    (tmp_path / 'own.py').write_text('model = dict(type="RetinaNet")\n')
    source = checkpoint(tmp_path, meta={})
    assert publish(source, f'{tmp_path}/zoo/').config is None
    assert 'test.py CONFIG.py epoch_2-' in publish(source, f'{tmp_path}/zoo/').card.read_text()
    published = publish(source, f'{tmp_path}/zoo/', config=tmp_path / 'own.py', metrics={'box AP': 41})
    assert published.file.name.startswith('own-')
    assert Config.fromfile(published.config).model.type == 'RetinaNet'
    assert read_checkpoint(published.file)['meta']['metrics'] == {'box AP': 41.0}
    with pytest.raises(UserError, match='A metric is NAME=NUMBER, e.g. mIoU=46.7; got AP=high'):
        publish(source, f'{tmp_path}/zoo/', metrics={'AP': 'high'})
    with pytest.raises(UserError, match='Weights are published as safetensors or pth; got'):
        publish(source, f'{tmp_path}/zoo/', file_format='onnx')


def test_a_name_in_the_checkpoint_leads_nowhere_else(tmp_path):
    meta = dict(experiment_name='../../outside', dataset_meta=dict(classes=['a | b', 'c\n# d']))
    published = publish(checkpoint(tmp_path, meta=meta), f'{tmp_path}/zoo/')
    assert published.file.parent == tmp_path / 'zoo'
    assert published.file.name.startswith('_.._outside-')
    assert 'a \\| b, c # d.\n' in published.card.read_text()


# The command line.


class NotPlain:
    """A type that no checkpoint needs."""


def test_trust_lasts_for_the_call(tmp_path, capsys):
    words = ['publish', str(checkpoint(tmp_path, args=NotPlain())), str(tmp_path / 'out')]
    with pytest.raises(SystemExit) as leave:
        command_line.main(arguments=words)
    assert leave.value.code == 2
    assert 'NotPlain' in capsys.readouterr().err
    command_line.main(arguments=[*words, '--trust-checkpoint'])
    assert 'args, message_hub, optimizer' in capsys.readouterr().out
    assert not checkpoints_are_trusted()


def test_tool(tmp_path):
    command = [sys.executable, 'tools/publish_model.py', str(checkpoint(tmp_path)), f'{tmp_path}/zoo/']
    command += ['--metrics', 'AP=high', '--half']
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 2
    assert result.stdout == ''
    assert result.stderr == 'error: A metric is NAME=NUMBER, e.g. mIoU=46.7; got AP=high.\n'
