"""Published weights: what is kept and left out, and that the tools, the libraries and the downloaders take them."""

import hashlib
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from small_models import assert_holds
from torch import nn

from convnext_dense import ConvNeXt, UserError
from convnext_dense.compat import read_checkpoint
from convnext_dense.train import run as runs
from convnext_dense.weights.inspect import inspect
from convnext_dense.weights.publish import FORMATS, publish

ROOT = Path(__file__).parent.parent
DET_CONFIG = ROOT / 'configs/det/cascade_convnext_atto_shapes.py'
SEG_CONFIG = ROOT / 'configs/seg/upernet_convnext_atto_shapes.py'
SHAPES = ['circle', 'square', 'triangle', 'star', 'cross']


@pytest.fixture
def options(drawn_boxes):
    return {
        **drawn_boxes,
        'train_cfg.max_epochs': 1,
        'model.test_cfg.rcnn.score_thr': 0.0,  # two iterations give no confident prediction
        'model.test_cfg.rcnn.max_per_img': 20,
        'optim_wrapper.optimizer.lr': 0.01,
        'custom_hooks': [],
    }


def test_a_trained_detector(options, tmp_path):
    from mmdet.apis import init_detector

    runs.train(DET_CONFIG, str(tmp_path), cfg_options=options)
    trained = tmp_path / 'epoch_1.pth'
    expected = runs.test(DET_CONFIG, str(trained), str(tmp_path / 'one'), cfg_options=options)
    for file_format in FORMATS:
        published = publish(trained, tmp_path / 'zoo/shapes', file_format=file_format)
        assert published.left_out == ['message_hub', 'optimizer', 'param_schedulers', 'training_state']
        assert published.file.stat().st_size < 0.4 * trained.stat().st_size
        shown = str(published)
        assert all(text in shown for text in (str(published.file), str(published.config), 'optimizer', '5 classes'))
        found = inspect(published.file)
        assert found['metrics'] == {name: value for name, value in expected.items() if value != -1}
        assert found['metrics_origin'] == "validation of this checkpoint, from the run's log"
        assert (found['classes'], found['training']['epoch']) == (SHAPES, 1)
        assert found['config'] == 'cascade_convnext_atto_shapes'
        model = init_detector(str(published.config), str(published.file), device='cpu')
        assert_holds(model, read_checkpoint(trained)['state_dict'])
        assert list(model.dataset_meta['classes']) == SHAPES
        # MMDetection takes a list of three numbers for three colours
        palette = read_checkpoint(published.file)['meta']['dataset_meta']['palette']
        assert all(isinstance(colour, tuple) and len(colour) == 3 for colour in palette)
    assert runs.test(published.config, str(published.file), str(tmp_path / 'other')) == expected


def test_a_published_segmentor_has_names_and_colours(tmp_path):
    from mmseg.apis import init_model

    model = init_model(str(SEG_CONFIG), device='cpu')
    data = dict(classes=['sky', 'grass', 'road', *SHAPES], palette=[[i, i, i] for i in range(8)])
    name = 'upernet_20260131_093000'
    meta = dict(cfg=Config.fromfile(SEG_CONFIG).pretty_text, experiment_name=name, dataset_meta=data)
    torch.save({'meta': meta, 'state_dict': model.state_dict()}, tmp_path / 'iter_6.pth')
    published = publish(tmp_path / 'iter_6.pth', tmp_path, metrics={'mIoU': 46.7})
    assert published.file.name.startswith('upernet-')
    again = init_model(str(published.config), str(published.file), device='cpu')
    assert list(again.dataset_meta['classes']) == data['classes']
    assert again.dataset_meta['palette'] == [(i, i, i) for i in range(8)]
    assert_holds(model, again.state_dict())
    assert inspect(published.file)['metrics'] == {'mIoU': 46.7}
    assert inspect(published.file)['metrics_origin'] == 'given by whoever published the weights'


# What is kept.


def weights_of_a_detector():
    backbone = ConvNeXt(dict(depths=(1, 1, 1, 1), dims=(8, 8, 8, 8)))
    return nn.ModuleDict(dict(backbone=backbone, neck=nn.Conv2d(8, 8, 3), norm=nn.BatchNorm2d(8))).state_dict()


CONFIG_TEXT = """\
data_root = '/data/coco'
launcher = 'pytorch'
load_from = '/home/me/runs/iter_100.pth'
resume = True
work_dir = '/home/me/runs/secret'
"""


def checkpoint(tmp_path, **changes) -> Path:
    """Write a checkpoint as MMEngine does."""
    history = {'val/coco/bbox_mAP': HistoryBuffer([0.1, 0.25], [1, 1]), 'val/time': HistoryBuffer([9.0], [1])}
    history['val/coco/bbox_mAP_s'] = HistoryBuffer([-1.0], [1])  # there are no small objects
    content = {
        'meta': dict(epoch=2, iter=40, seed=0, cfg=CONFIG_TEXT, experiment_name='retina_20260131_093000'),
        'state_dict': weights_of_a_detector(),
        'optimizer': {'state': {}, 'param_groups': []},
        'message_hub': dict(log_scalars=history, runtime_info={}, resumed_keys={}),
        **changes,
    }
    torch.save(content, tmp_path / 'epoch_2.pth')
    return tmp_path / 'epoch_2.pth'


@pytest.mark.parametrize('file_format', FORMATS)
def test_what_belongs_to_the_training_is_left_out(file_format, tmp_path):
    # EMAHook saves the average as the weights, and those of the optimizer beside it
    averaged, raw = weights_of_a_detector(), weights_of_a_detector()
    ema = {'steps': torch.tensor(7), **{f'module.{key}': value for key, value in raw.items()}}
    source = checkpoint(tmp_path, state_dict=averaged, ema_state_dict=ema)
    published = publish(source, f'{tmp_path}/zoo/', file_format=file_format)
    assert published.left_out == ['ema_state_dict', 'message_hub', 'optimizer']
    digest = hashlib.sha256(published.file.read_bytes()).hexdigest()
    assert published.file.name == f'retina-{digest[:8]}.{file_format}'
    content = read_checkpoint(published.file)
    assert content.keys() == {'meta', 'state_dict'}
    assert all(torch.equal(content['state_dict'][key], value) for key, value in averaged.items())
    assert published.config.read_text() == content['meta']['cfg']
    text = "data_root = '/data/coco'\nlauncher = 'none'\nload_from = None\nresume = False\n"
    assert content['meta']['cfg'] == text
    # without the log of the run, the checkpoint's own history, which ends before its own validation
    assert content['meta']['metrics'] == {'coco/bbox_mAP': 0.25}
    assert content['meta']['metrics_origin'] == 'last validation before the checkpoint was saved'
    once, twice = publish(source, f'{tmp_path}/once/'), publish(published.file, f'{tmp_path}/twice/')
    assert once.file.read_bytes() == twice.file.read_bytes()


def test_half_precision(tmp_path):
    source = checkpoint(tmp_path)
    published = publish(source, tmp_path / 'half', half=True)
    weights, original = read_checkpoint(published.file)['state_dict'], read_checkpoint(source)['state_dict']
    assert weights['backbone.stages.0.0.pwconv1.weight'].dtype == torch.float16
    # vectors are small, and a layer scale of 1e-6 has few digits in float16
    assert weights['backbone.stages.0.0.gamma'].dtype == torch.float32
    assert weights['norm.num_batches_tracked'].dtype == torch.int64
    for key, value in original.items():
        torch.testing.assert_close(weights[key].to(value.dtype), value, rtol=2**-11, atol=2**-25)


@pytest.mark.parametrize(
    ('number', 'half', 'words'),
    [
        (1e6, True, r'65504, .* in neck\.weight.*--half'),
        (torch.nan, False, r'NaN .* in 1 of \d+ weights: neck\.weight'),
    ],
)
def test_weights_that_are_not_worth_publishing(number, half, words, tmp_path):
    weights = weights_of_a_detector()
    weights['neck.weight'][0, 0, 0, 0] = number
    with pytest.raises(UserError, match=words):
        publish(checkpoint(tmp_path, state_dict=weights), f'{tmp_path}/zoo/', half=half)
    assert not (tmp_path / 'zoo').exists()


def test_what_was_published_stays_unless_it_is_forced(tmp_path):
    file = checkpoint(tmp_path)
    published = publish(file, f'{tmp_path}/zoo/')
    published.config.write_text('# edited')
    with pytest.raises(UserError, match=rf'{published.file} exists.*--force'):
        publish(file, f'{tmp_path}/zoo/')
    assert published.config.read_text() == '# edited'
    assert sorted((tmp_path / 'zoo').iterdir()) == sorted(published[:2])
    assert publish(file, f'{tmp_path}/zoo/', force=True) == published
    assert published.config.read_text() != '# edited'


def test_config_and_metrics_of_the_user(tmp_path):
    (tmp_path / 'own.py').write_text('model = dict(type="RetinaNet")\n')
    source = checkpoint(tmp_path, meta={})
    published = publish(source, f'{tmp_path}/zoo/')
    assert published.config is None
    assert '--config' in str(published)
    published = publish(source, f'{tmp_path}/zoo/', config=tmp_path / 'own.py', metrics={'box AP': 41})
    assert published.file.name.startswith('own-')
    assert Config.fromfile(published.config).model.type == 'RetinaNet'
    assert read_checkpoint(published.file)['meta']['metrics'] == {'box AP': 41.0}
    with pytest.raises(UserError, match='NAME=NUMBER.* got AP=high'):
        publish(source, f'{tmp_path}/zoo/', metrics={'AP': 'high'})
    with pytest.raises(UserError, match="as safetensors or pth; got 'onnx'"):
        publish(source, f'{tmp_path}/zoo/', file_format='onnx')


def test_a_name_in_the_checkpoint_leads_nowhere_else(tmp_path):
    published = publish(checkpoint(tmp_path, meta=dict(experiment_name='../../outside')), f'{tmp_path}/zoo/')
    assert published.file.parent == tmp_path / 'zoo'
    assert published.file.name.startswith('_.._outside-')
