"""A config inside of a checkpoint is read as data by every door of MMEngine, and is run for trusted files alone."""

import pytest
import torch
from mmdet.apis import DetInferencer
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import FlexibleRunner, Runner
from mmseg.apis import MMSegInferencer

from convnext_dense import UserError
from convnext_dense.compat import trust_checkpoints
from convnext_dense.compat.checkpoint_configs import read_config

INFERENCERS = (DetInferencer, MMSegInferencer)
CONFIGS = [
    (DetInferencer, 'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py'),
    (MMSegInferencer, 'mmseg::fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py'),
    (DetInferencer, 'convnext_dense::det/cascade_convnext_atto_shapes.py'),
    (MMSegInferencer, 'convnext_dense::seg/upernet_convnext_atto_shapes.py'),
]


@pytest.mark.parametrize(
    ('inferencer', 'base', 'place'), [*((*each, 'meta') for each in CONFIGS), (*CONFIGS[2], 'message_hub')]
)
@pytest.mark.filterwarnings('ignore')  # of the stock libraries, of which the user is told at most once
def test_an_inferencer_takes_the_config_from_the_checkpoint(inferencer, base, place, tmp_path):
    (tmp_path / 'config.py').write_text(f'_base_ = {base!r}\n')
    config = Config.fromfile(tmp_path / 'config.py')
    config.model.backbone.pop('init_cfg', None)
    config.model.pop('pretrained', None)
    text = config.pretty_text
    assert read_config(text) == config.to_dict()

    init_default_scope(config.default_scope)
    model = MODELS.build(config.model)
    meta = dict(dataset_meta=dict(classes=('a', 'b'), palette=[(1, 2, 3), (4, 5, 6)]))
    checkpoint = dict(meta=meta, state_dict=model.state_dict())
    if place == 'meta':
        meta['cfg'] = text
    else:
        checkpoint['message_hub'] = dict(runtime_info=dict(cfg=text))
    torch.save(checkpoint, tmp_path / 'model.pth')
    built = inferencer(model=None, weights=str(tmp_path / 'model.pth'), device='cpu')
    assert built.cfg.model.to_dict() == config.model.to_dict()
    assert built.cfg.test_dataloader.batch_size == config.test_dataloader.batch_size
    assert torch.equal(next(built.model.parameters()), next(model.parameters()))


@pytest.mark.parametrize(
    ('text', 'settings'),
    [
        ("m = dict(type='A', n=dict({'x.y': (1, ), 3: [True]}))", {'m': {'type': 'A', 'n': {'x.y': (1,), 3: [True]}}}),
        ("t = 'a' 'b'\ns = {1, 2}\nb = -1.5e3\nn = None", {'t': 'ab', 's': {1, 2}, 'b': -1500.0, 'n': None}),
        ('x = [inf, -inf]', {'x': [float('inf'), -float('inf')]}),
        ('', {}),
    ],
)
def test_what_mmengine_writes_is_read(text, settings):
    assert read_config(text) == settings


@pytest.mark.parametrize(
    ('text', 'named'),
    [
        ("__import__('os').mkdir('x')", '__import__'),
        ('import os', 'import os'),
        ("y = 1\nx = dict(a=[dict(b=print('x'))])", 'line 2'),
        ('x = [i for i in range(3)]', 'line 1'),
        ('x = 2 ** 9999999', 'line 1'),
        ('x = 1\ny = x', 'line 2'),
        ("x = f'{1}'", 'line 1'),
        ('x = dict(**{})', 'line 1'),
        ('x = {**{}}', ''),
        ('x = dict([(1, 2)])', 'line 1'),
        ('x.y = 1', 'line 1'),
        ("_base_ = 'other.py'", '_base_'),
        ('x = (', 'never closed'),
        ('x = ' + '-' * 100_000 + '1', ''),
        ('x = ' + '[' * 5_000, ''),
    ],
)
@pytest.mark.filterwarnings('ignore::SyntaxWarning')
def test_what_needs_code_is_refused(text, named):
    with pytest.raises(UserError, match=rf'The config inside of file\.pth is not read: .*{named}.*model=CONFIG'):
        read_config(text, 'file.pth')


@pytest.fixture
def trap(tmp_path):
    """A folder that exists when the config of the checkpoint was run, and the checkpoint."""
    text = f"__import__('os').mkdir({str(tmp_path / 'trapped')!r})\nmodel = dict(type='NoSuchModel')\n"
    meta = dict(cfg=text, config=text, epoch=1, iter=1)
    torch.save({'meta': meta, 'message_hub': dict(runtime_info=dict(cfg=text))}, tmp_path / 'trap.pth')
    return tmp_path / 'trapped', str(tmp_path / 'trap.pth')


@pytest.mark.parametrize('inferencer', INFERENCERS)
@pytest.mark.parametrize('model', [None, {}])
def test_no_inferencer_runs_a_config(inferencer, model, trap):
    trapped, file = trap
    with pytest.raises(UserError, match=r'trap\.pth is not read: .*__import__.*trust_checkpoints'):
        inferencer(model=model, weights=file, device='cpu')
    assert not trapped.exists()
    with trust_checkpoints(), pytest.raises(KeyError, match='NoSuchModel'):
        inferencer(model=model, weights=file, device='cpu')
    assert trapped.exists()


@pytest.mark.parametrize('content', [{'state_dict': {}}, {'meta': {'cfg': '# empty'}}])
def test_a_checkpoint_without_a_config(content, tmp_path):
    torch.save(content, tmp_path / 'file.pth')
    with pytest.raises(UserError, match=r'file\.pth holds no config\. .*DetInferencer\(model=CONFIG, weights='):
        DetInferencer(weights=str(tmp_path / 'file.pth'), device='cpu')


class Loop:
    """What a resuming runner asks its loop and its strategy for."""


@pytest.fixture(params=[Runner, FlexibleRunner])
def resume(request):
    """Resume from a file with a runner that has no model."""

    class Resuming(request.param):
        train_loop = Loop()
        strategy = Loop()
        _world_size = world_size = 1
        auto_scale_lr = None

        def __init__(self, file):
            self.strategy.resume = self.load_checkpoint = lambda *_, **__: torch.load(file, weights_only=True)

    return lambda file: Resuming(file).resume(file)


def test_no_runner_runs_a_config_to_resume(resume, trap):
    trapped, file = trap
    with pytest.raises(UserError, match=r'is not read: .*__import__'):
        resume(file)
    assert not trapped.exists()
    with trust_checkpoints(), pytest.raises(AttributeError):  # what this runner lacks, after the config
        resume(file)
    assert trapped.exists()


def test_a_runner_reads_the_number_of_gpus(resume, tmp_path):
    meta = dict(config='gpu_ids = [0, 1]\n', epoch=1, iter=1)
    torch.save(dict(meta=meta), tmp_path / 'old.pth')
    with pytest.raises((RuntimeError, AttributeError), match='Number of GPU|logger'):  # the flexible one logs it
        resume(str(tmp_path / 'old.pth'))


def test_a_config_of_the_users_own_is_run():
    assert Config.fromstring('a = 1 + 1', '.py').a == 2
