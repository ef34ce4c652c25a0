"""The doors of MMEngine, MMDetection and MMSegmentation all lead through the one loader."""

import copy
import json
import logging
import os
import socket
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path
from unittest import mock

import mmengine.runner.checkpoint as upstream
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.model import BaseModel, MMDistributedDataParallel, PretrainedInit
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from torch import nn

from convnext_dense import ConvNeXt, UserError
from convnext_dense.train import run as runs
from convnext_dense.weights import fetch, fit, load_weights
from convnext_dense.weights.formats import HF, TORCHVISION

ROOT = Path(__file__).parent.parent
SMALL = dict(depths=(1, 1, 1, 1), dims=(4, 8, 12, 16))
# MMEngine warns of the second runner in one process, which only tests have
SEVERAL_RUNNERS = pytest.mark.filterwarnings('ignore:.*instance named of .* has been created:UserWarning')


@pytest.fixture
def log(caplog):
    """What MMEngine logs during a test."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)
    logger.setLevel(level)


# What facebookresearch published: MMDetection 2 and MMSegmentation 0, key by key

DIMS = dict(
    tiny=(96, 192, 384, 768),
    small=(96, 192, 384, 768),
    base=(128, 256, 512, 1024),
    large=(192, 384, 768, 1536),
    xlarge=(256, 512, 1024, 2048),
)
DETECTORS = {
    'mask_rcnn_convnext_t_coco': 'tiny',
    'cascade_convnext_t_coco': 'tiny',
    'cascade_convnext_s_coco': 'small',
    'cascade_convnext_b_coco': 'base',
    'cascade_convnext_b_in22k_coco': 'base',
    'cascade_convnext_l_in22k_coco': 'large',
    'cascade_convnext_xl_in22k_coco': 'xlarge',
}
SEGMENTORS = {
    'upernet_convnext_t_ade20k': 'tiny',
    'upernet_convnext_s_ade20k': 'small',
    'upernet_convnext_b_ade20k': 'base',
    'upernet_convnext_b_in22k_ade20k': 'base',
    'upernet_convnext_l_in22k_ade20k': 'large',
    'upernet_convnext_xl_in22k_ade20k': 'xlarge',
}


def layer(name, *weight, bias=True):
    shapes = {f'{name}.weight': weight}
    return shapes | {f'{name}.bias': weight[:1]} if bias else shapes


def conv_bn(name, *weight):
    vectors = ('weight', 'bias', 'running_mean', 'running_var')
    bn = {f'{name}.bn.{part}': weight[:1] for part in vectors} | {f'{name}.bn.num_batches_tracked': ()}
    return layer(f'{name}.conv', *weight, bias=False) | bn


def backbone(size):
    depths = (3, 3, 9 if size == 'tiny' else 27, 3)
    shapes = {}
    for s, (depth, dim) in enumerate(zip(depths, DIMS[size], strict=True)):
        before = DIMS[size][s - 1]
        stem = layer('downsample_layers.0.0', dim, 3, 4, 4) | layer('downsample_layers.0.1', dim)
        down = layer(f'downsample_layers.{s}.0', before) | layer(f'downsample_layers.{s}.1', dim, before, 2, 2)
        shapes |= (down if s else stem) | layer(f'norm{s}', dim)
        for b in range(depth):
            block = f'stages.{s}.{b}'
            shapes |= {f'{block}.gamma': (dim,)}
            shapes |= layer(f'{block}.dwconv', dim, 1, 7, 7) | layer(f'{block}.norm', dim)
            shapes |= layer(f'{block}.pwconv1', 4 * dim, dim) | layer(f'{block}.pwconv2', dim, 4 * dim)
    return {f'backbone.{key}': shape for key, shape in shapes.items()}


def detector(name):
    size = DETECTORS[name]
    shapes = backbone(size)
    for i, dim in enumerate(DIMS[size]):
        shapes |= layer(f'neck.lateral_convs.{i}.conv', 256, dim, 1, 1)
        shapes |= layer(f'neck.fpn_convs.{i}.conv', 256, 256, 3, 3)
    shapes |= layer('rpn_head.rpn_conv', 256, 256, 3, 3)
    shapes |= layer('rpn_head.rpn_cls', 3, 256, 1, 1) | layer('rpn_head.rpn_reg', 3 * 4, 256, 1, 1)
    for stage in ('.0', '.1', '.2') if name.startswith('cascade') else ('',):
        box, mask = f'roi_head.bbox_head{stage}', f'roi_head.mask_head{stage}'
        shapes |= layer(f'{box}.shared_fcs.0', 1024, 256 * 7 * 7)
        if stage:
            for i in range(4):
                shapes |= conv_bn(f'{box}.shared_convs.{i}', 256, 256, 3, 3)
        else:
            shapes |= layer(f'{box}.shared_fcs.1', 1024, 1024)
        shapes |= layer(f'{box}.fc_cls', 81, 1024) | layer(f'{box}.fc_reg', 80 * 4, 1024)
        for i in range(4):
            shapes |= layer(f'{mask}.convs.{i}.conv', 256, 256, 3, 3)
        shapes |= layer(f'{mask}.upsample', 256, 256, 2, 2) | layer(f'{mask}.conv_logits', 80, 256, 1, 1)
    return shapes


def segmentor(name):
    size = SEGMENTORS[name]
    dims = DIMS[size]
    shapes = backbone(size) | layer('decode_head.conv_seg', 150, 512, 1, 1)
    for i in range(4):
        shapes |= conv_bn(f'decode_head.psp_modules.{i}.1', 512, dims[3], 1, 1)
    shapes |= conv_bn('decode_head.bottleneck', 512, dims[3] + 4 * 512, 3, 3)
    for i in range(3):
        shapes |= conv_bn(f'decode_head.lateral_convs.{i}', 512, dims[i], 1, 1)
        shapes |= conv_bn(f'decode_head.fpn_convs.{i}', 512, 512, 3, 3)
    shapes |= conv_bn('decode_head.fpn_bottleneck', 512, 4 * 512, 3, 3)
    shapes |= layer('auxiliary_head.conv_seg', 150, 256, 1, 1)
    return shapes | conv_bn('auxiliary_head.convs.0', 256, dims[2], 3, 3)


def fill(shapes):
    """Return tensors of these shapes with a value of their own each, which take no memory."""
    return {
        key: torch.tensor(i if key.endswith('tracked') else i / 1000).expand(shape)
        for i, (key, shape) in enumerate(shapes.items(), 1)
    }


@pytest.mark.parametrize('name', [*DETECTORS, *SEGMENTORS])
def test_published_detectors_and_segmentors_have_our_keys(name):
    kind, shapes = ('det', detector(name)) if name in DETECTORS else ('seg', segmentor(name))
    cfg = Config.fromfile(ROOT / f'configs/{kind}/{name}.py')
    with torch.device('meta'), DefaultScope.overwrite_default_scope(f'mm{kind}'):
        model = MODELS.build(cfg.model)
    assert {key: tuple(value.shape) for key, value in model.state_dict().items()} == shapes


LEGACY_META = dict(
    env_info='sys.platform: linux\nPython: 3.8.3\nPyTorch: 1.7.0\nMMCV: 1.3.9\nMMDetection: 2.11.0',
    config='model = dict(type="CascadeRCNN", pretrained=None)',
    seed=0,
    epoch=36,
    iter=263880,
    time='Mon Jan  3 05:12:45 2022',
    mmdet_version='2.11.0+',
    lr=[np.float64(1e-6)],
    hook_msgs=dict(best_score=np.float32(0.437), last_ckpt='work_dirs/epoch_36.pth'),
)


def legacy_file(path, shapes, **meta):
    torch.save({'meta': LEGACY_META | meta, 'state_dict': fill(shapes), 'optimizer': {'state': {}}}, path)
    return str(path)


def assert_holds(model, shapes):
    state_dict = model.state_dict()
    assert state_dict.keys() == shapes.keys()
    for key, value in fill(shapes).items():
        assert torch.equal(state_dict[key], value), key


def test_a_published_detector_through_init_detector(tmp_path, log):
    from mmdet.apis import init_detector
    from mmdet.evaluation import get_classes

    shapes = detector('cascade_convnext_t_coco')
    file = legacy_file(tmp_path / 'cascade.pth', shapes, CLASSES=tuple(get_classes('coco')))
    model = init_detector(str(ROOT / 'configs/det/cascade_convnext_t_coco.py'), file, device='cpu')
    assert_holds(model, shapes)
    assert model.dataset_meta['classes'][:2] == ('person', 'bicycle')
    assert len(model.dataset_meta['palette']) == 80
    assert f'weights from {file}\n  format        facebookresearch ConvNeXt, ConvNeXt tiny\n' in log.text
    assert '  licence       not told by the file;' in log.text
    assert f'  loaded        {len(shapes)} weights' in log.text
    assert not any(word in log.text for word in ('missing', 'unexpected', 'scratch', 'left out'))


@pytest.mark.parametrize('has_palette', [True, False])
def test_a_published_segmentor_through_init_model(has_palette, tmp_path):
    from mmseg.apis import init_model
    from mmseg.utils import get_classes, get_palette

    shapes = segmentor('upernet_convnext_t_ade20k')
    palette = dict(PALETTE=get_palette('ade20k')) if has_palette else {}
    file = legacy_file(tmp_path / 'upernet.pth', shapes, CLASSES=get_classes('ade20k'), **palette)
    model = init_model(str(ROOT / 'configs/seg/upernet_convnext_t_ade20k.py'), file, device='cpu')
    assert_holds(model, shapes)
    assert model.dataset_meta['classes'][:2] == ('wall', 'building')
    assert np.array(model.dataset_meta['palette']).shape == (150, 3)
    assert not has_palette or model.dataset_meta['palette'] == get_palette('ade20k')


def test_a_segmentor_of_hugging_face_through_init_model(tmp_path):
    from mmseg.apis import init_model

    shapes = segmentor('upernet_convnext_t_ade20k')
    renamed = {}
    for key, value in fill(shapes).items():
        if key.startswith('backbone.'):
            name, value = HF.write(key.removeprefix('backbone.'), value)
            renamed[f'backbone.{name}'] = value
        else:
            renamed[key.replace('.bn.', '.batch_norm.').replace('conv_seg', 'classifier')] = value
    torch.save(renamed, tmp_path / 'upernet.pth')
    config = ROOT / 'configs/seg/upernet_convnext_t_ade20k.py'
    with warnings.catch_warnings(record=True):  # that the file names no classes
        model = init_model(str(config), str(tmp_path / 'upernet.pth'), device='cpu')
    assert_holds(model, shapes)
    assert len(model.dataset_meta['classes']) == 150


@SEVERAL_RUNNERS
@pytest.mark.filterwarnings('ignore:__array__ implementation:DeprecationWarning')  # of pycocotools
def test_a_legacy_checkpoint_through_the_test_command(tmp_path):
    from convnext_dense.data import write_shapes

    data = write_shapes(tmp_path / 'shapes', num_train=1, num_val=2, size=64)
    config = ROOT / 'configs/det/cascade_convnext_atto_shapes.py'
    cfg = Config.fromfile(config)
    with torch.device('meta'), DefaultScope.overwrite_default_scope('mmdet'):
        shapes = {key: tuple(value.shape) for key, value in MODELS.build(cfg.model).state_dict().items()}
    file = legacy_file(tmp_path / 'legacy.pth', shapes, CLASSES=('a',))
    options = {f'test_dataloader.dataset.{key}': value for key, value in dict(num_train=1, num_val=2, size=64).items()}
    options |= {'test_dataloader.dataset.data_root': str(data), 'test_dataloader.num_workers': 0}
    options |= {'test_dataloader.persistent_workers': False}
    options |= {'test_evaluator.ann_file': str(data / 'annotations/instances_val.json')}
    loaded = {}

    def keep(model, *args, **options):
        report = load_weights(model, *args, **options)
        loaded.update(model=model, report=report)
        return report

    with mock.patch('convnext_dense.weights.upstream.load_weights', keep):
        runs.test(config, file, str(tmp_path / 'run'), cfg_options=options)
    assert_holds(loaded['model'], shapes)
    report = loaded['report']
    assert (report.missing, report.unexpected, report.from_scratch, report.left_out) == ([], [], [], {})
    with pytest.raises(UserError, match=r'does not fit the model.* Missing from the file \(\d+\): .*\bneck\.'):
        runs.test(config, backbone_file(file, tmp_path), str(tmp_path / 'run'), cfg_options=options)


def backbone_file(file, folder):
    state_dict = torch.load(file, weights_only=False)['state_dict']
    torch.save(
        {key: value for key, value in state_dict.items() if key.startswith('backbone.')}, folder / 'backbone.pth'
    )
    return str(folder / 'backbone.pth')


# MMEngine's runner


class Toy(BaseModel):
    def __init__(self, num_classes=2, init_cfg=None, backbone_init=None):
        super().__init__(init_cfg=init_cfg)
        self.backbone = ConvNeXt(SMALL, init_cfg=backbone_init)
        self.head = nn.Linear(16, num_classes)

    def forward(self, inputs, mode='tensor'):
        scores = self.head(self.backbone(torch.stack(inputs))[-1].mean((2, 3)))
        return {'loss': scores.square().mean()} if mode == 'loss' else scores


class Look(Hook):
    """Keeps what the model and its average hold when training starts, and does a thing then."""

    priority = 'LOWEST'

    def __init__(self, then=lambda: None):
        self.then = then

    def before_train(self, runner):
        self.model = copy.deepcopy(runner.model.state_dict())
        ema = [hook for hook in runner.hooks if hasattr(hook, 'ema_model')]
        self.ema = copy.deepcopy(ema[0].ema_model.module.state_dict()) if ema else None
        self.optimizer = copy.deepcopy(runner.optim_wrapper.state_dict())
        self.then()


LOADER = dict(
    batch_size=2,
    num_workers=0,
    dataset=[dict(inputs=torch.randn(3, 32, 32)) for _ in range(4)],
    sampler=dict(type='DefaultSampler', shuffle=False),
)


def make_runner(work_dir, model, max_epochs=1, hooks=(), **options):
    return Runner(
        model,
        str(work_dir),
        train_dataloader=LOADER,
        train_cfg=dict(by_epoch=True, max_epochs=max_epochs),
        test_dataloader=LOADER,
        test_cfg=dict(),
        test_evaluator=[],
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.01)),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1)),
        custom_hooks=[*hooks],
        experiment_name=work_dir.name,
        log_level='WARNING',
        **options,
    )


def train(work_dir, model, ema=False, then=lambda: None, hooks=(), **options):
    look = Look(then)
    hooks = [look, *hooks, *([dict(type='EMAHook', momentum=0.1)] if ema else [])]
    runner = make_runner(work_dir, model, hooks=hooks, **options)
    runner.train()
    return runner, look


def randomize(model):
    for tensor in model.state_dict().values():
        nn.init.normal_(tensor)
    return model


def torchvision_file(folder):
    """Return a backbone and a file of torchvision's with its weights, for a classifier without our names."""
    source = randomize(ConvNeXt(SMALL, out_norm=False)).state_dict()
    torch.save(dict(TORCHVISION.write(key, value) for key, value in source.items()), folder / 'convnext.pth')
    return source, str(folder / 'convnext.pth')


@SEVERAL_RUNNERS
@pytest.mark.parametrize('ema', [False, True])
def test_load_from_takes_any_format_and_the_average_starts_there(ema, tmp_path):
    source, file = torchvision_file(tmp_path)
    _, look = train(tmp_path / f'load_{ema}', Toy(), ema=ema, load_from=file)
    for key, value in source.items():
        assert torch.equal(look.model[f'backbone.{key}'], value)
        assert not ema or torch.equal(look.ema[f'backbone.{key}'], value)


@SEVERAL_RUNNERS
@pytest.mark.filterwarnings('ignore:The `.*` method is being overridden')
def test_a_run_with_an_average_resumes_from_a_file_that_then_goes_away(tmp_path):
    train(tmp_path / 'first', Toy(), ema=True)
    file = tmp_path / 'first/epoch_1.pth'
    saved = torch.load(file, weights_only=False)

    def replace():
        other = tmp_path / 'other.pth'
        torch.save({'state_dict': {key: value * 0 for key, value in saved['state_dict'].items()}}, other)
        os.replace(other, file)  # as MMEngine writes a checkpoint here
        file.unlink()  # as max_keep_ckpts does

    second, look = train(
        tmp_path / 'second', Toy(), max_epochs=2, ema=True, load_from=str(file), resume=True, then=replace
    )
    assert second.epoch == 2
    moments = saved['optimizer']['state']
    assert all(torch.equal(look.optimizer['state'][i]['exp_avg'], moments[i]['exp_avg']) for i in moments)
    # MMEngine saves the average as the model, and the model as the average
    assert all(torch.equal(look.ema[key], value) for key, value in saved['state_dict'].items())
    for key, value in look.model.items():
        assert torch.equal(value, saved['ema_state_dict'][f'module.{key}'])
    after = torch.load(tmp_path / 'second/epoch_2.pth', weights_only=False)['optimizer']['state']
    assert {int(state['step']) for state in after.values()} == {4}


@SEVERAL_RUNNERS
def test_the_runner_refuses_a_backbone_that_does_not_fit(tmp_path):
    torch.save(ConvNeXt('atto').state_dict(), tmp_path / 'atto.pth')
    with pytest.raises(
        UserError, match=r'atto\.pth does not fit the backbone. It is ConvNeXt atto, the model is a Conv'
    ):
        train(tmp_path / 'refused', Toy(), load_from=str(tmp_path / 'atto.pth'))


@SEVERAL_RUNNERS
@pytest.mark.parametrize('legacy', [{}, dict(meta=LEGACY_META)])
def test_weights_alone_are_not_resumed(legacy, tmp_path):
    file = str(tmp_path / 'weights.pth')
    torch.save({'state_dict': Toy().state_dict(), **legacy}, file)
    with pytest.raises(
        UserError,
        match=r'weights\.pth holds weights alone, not the state of a run .*load_from=.*weights\.pth instead of',
    ):
        train(tmp_path / 'resumed', Toy(), hooks=[dict(type='CheckWeightsHook')], load_from=file, resume=True)


@pytest.fixture
def shown(monkeypatch):
    """The reports that are logged, each with its level."""
    reports, call_handlers = [], MMLogger.callHandlers

    def keep(self, record):
        if record.getMessage().startswith('weights from'):
            reports.append((record.levelno, record.getMessage()))
        call_handlers(self, record)

    monkeypatch.setattr(MMLogger, 'callHandlers', keep)
    return reports


RANDOM_HEADS = '\n  heads         2 weights are random, for training only: what they predict means nothing'


def test_random_heads_are_a_warning_where_nothing_is_trained(shown, tmp_path):
    _, file = torchvision_file(tmp_path)
    upstream.load_checkpoint(Toy(), file)
    ((level, text),) = shown
    assert level == logging.WARNING
    assert text.endswith(RANDOM_HEADS)
    torch.save(Toy().state_dict(), tmp_path / 'toy.pth')
    upstream.load_checkpoint(Toy(), str(tmp_path / 'toy.pth'))
    assert shown[1][0] == logging.INFO
    assert RANDOM_HEADS not in shown[1][1]


@SEVERAL_RUNNERS
def test_random_heads_are_a_warning_where_a_runner_tests(shown, tmp_path):
    _, file = torchvision_file(tmp_path)
    train(tmp_path / 'train', Toy(), load_from=file)
    runner = make_runner(tmp_path / 'test', Toy(), load_from=file)  # which could train as well
    runner.test()
    assert [level for level, _ in shown] == [logging.INFO, logging.WARNING]
    assert [text.endswith(RANDOM_HEADS) for _, text in shown] == [False, True]
    runner = make_runner(tmp_path / 'checked', Toy(), load_from=file, hooks=[dict(type='CheckWeightsHook')])
    with pytest.raises(UserError, match=r'does not fit the model\. Missing from the file \(10\): .*norm0\.weight'):
        runner.test()


@pytest.mark.parametrize(
    'form',
    [
        lambda checkpoint: dict(type='Pretrained', checkpoint=checkpoint),
        lambda checkpoint: dict(type='mmengine.Pretrained', checkpoint=checkpoint),
        lambda checkpoint: dict(type=PretrainedInit, checkpoint=checkpoint),
        lambda checkpoint: [dict(type='Pretrained', checkpoint=checkpoint)],
        lambda checkpoint: [dict(type='Pretrained', checkpoint=checkpoint, prefix='')],
    ],
    ids=['name', 'name with scope', 'class', 'list', 'list with prefix'],
)
@pytest.mark.parametrize('build', [Toy, partial(ConvNeXt, SMALL)], ids=['parent', 'backbone'])
def test_every_form_of_init_cfg(form, build, shown, tmp_path):
    source, file = torchvision_file(tmp_path)  # of whose names upstream's loader knows none
    model = build(init_cfg=form(file))
    model.init_weights()
    backbone = getattr(model, 'backbone', model)
    assert all(torch.equal(backbone.state_dict()[key], value) for key, value in source.items())
    assert [level for level, _ in shown] == [logging.INFO]


def test_init_cfg_of_a_whole_model(tmp_path):
    source = randomize(Toy())
    torch.save({'state_dict': source.state_dict()}, tmp_path / 'toy.pth')
    model = Toy(init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'toy.pth')))
    model.init_weights()
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in model.state_dict().items())


def test_revise_keys(tmp_path):
    source = randomize(Toy())
    renamed = {f'student.{key}'.replace('.head.', '.cls_head.'): value for key, value in source.state_dict().items()}
    torch.save({'model': renamed}, tmp_path / 'student.pth')
    model = Toy()
    patterns = [(r'^student\.', ''), (r'^cls_(?=head)', '')]
    upstream.load_checkpoint(model, str(tmp_path / 'student.pth'), strict=True, revise_keys=patterns)
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in model.state_dict().items())


def test_strict_loading(tmp_path):
    torch.save(Toy(num_classes=5).state_dict(), tmp_path / 'toy.pth')
    model = Toy()
    upstream.load_checkpoint(model, str(tmp_path / 'toy.pth'))
    with pytest.raises(
        UserError, match=r'Of another shape or type \(2\): head\.weight, head\.bias; head\.weight is \(5'
    ):
        upstream.load_checkpoint(model, str(tmp_path / 'toy.pth'), strict=True)


def test_wrapped_models(tmp_path):
    from mmdet.models import DetTTAModel

    source = randomize(Toy())
    torch.save(source.state_dict(), tmp_path / 'toy.pth')
    store = torch.distributed.FileStore(str(tmp_path / 'store'), 1)
    torch.distributed.init_process_group('gloo', store=store, rank=0, world_size=1)
    try:
        for wrap in (MMDistributedDataParallel, partial(DetTTAModel, tta_cfg={})):
            model = Toy()
            wrapped = wrap(module=model)
            upstream.load_checkpoint(wrapped, str(tmp_path / 'toy.pth'), strict=True)
            assert all(torch.equal(value, source.state_dict()[key]) for key, value in model.state_dict().items())
            assert fit(wrapped, source.state_dict(), need='all')[1].missing == []
    finally:
        torch.distributed.destroy_process_group()


class Doubling(nn.Module):
    """Version 2 holds half of what version 1 held."""

    _version = 2

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
        if (local_metadata.get('version') or 1) < 2:
            state_dict[f'{prefix}weight'] = state_dict[f'{prefix}weight'] / 2
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


@pytest.mark.parametrize(
    ('wrapper', 'has_backbone'),
    # MMEngine, which loads models without our backbone, does not know 'model'
    [(None, True), ('state_dict', True), ('model', True), (None, False), ('state_dict', False)],
)
def test_versions_of_modules_are_kept(wrapper, has_backbone, tmp_path):
    parts = dict(plugin=Doubling(), **(dict(backbone=ConvNeXt(SMALL)) if has_backbone else {}))
    model = nn.ModuleDict(parts)
    state_dict = model.state_dict()
    torch.save({wrapper: state_dict} if wrapper else state_dict, tmp_path / 'new.pth')
    upstream.load_checkpoint(model, str(tmp_path / 'new.pth'))
    assert model['plugin'].weight.tolist() == [1, 1]
    del state_dict._metadata
    torch.save({wrapper: state_dict} if wrapper else state_dict, tmp_path / 'old.pth')
    upstream.load_checkpoint(model, str(tmp_path / 'old.pth'))
    assert model['plugin'].weight.tolist() == [0.5, 0.5]


def test_models_without_our_backbone_are_loaded_as_ever(tmp_path, log):
    with DefaultScope.overwrite_default_scope('mmdet'):
        cfg = dict(type='mmdet.ResNet', depth=18, norm_eval=False)
        ours, theirs = (nn.ModuleDict(dict(backbone=MODELS.build(cfg))) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    given = {f'module.{key}': value + 1 for key, value in ours.state_dict().items() if 'layer2' not in key}
    given |= {'module.backbone.conv1.weight': torch.ones(1), 'head.weight': torch.ones(1)}
    torch.save({'state_dict': given}, tmp_path / 'resnet.pth')
    checkpoint = upstream._load_checkpoint(str(tmp_path / 'resnet.pth'))
    assert upstream._load_checkpoint_to_model(ours, checkpoint, logger='current') is checkpoint
    warned = log.text
    log.clear()
    upstream._load_checkpoint_to_model.__wrapped__(theirs, checkpoint, logger='current')
    assert 'size mismatch for backbone.conv1.weight' in warned
    assert 'unexpected key in source state_dict: head.weight' in warned
    assert 'missing keys in source state_dict: backbone.layer2.0.conv1.weight' in warned
    assert [line.split(' - ')[-1] for line in warned.splitlines()[1:]] == [
        line.split(' - ')[-1] for line in log.text.splitlines()[1:]
    ]
    for key, value in theirs.state_dict().items():
        assert torch.equal(value, ours.state_dict()[key])
    with pytest.raises(RuntimeError, match='do not match exactly'):
        upstream._load_checkpoint_to_model(ours, checkpoint, strict=True)


def test_a_state_dict_of_the_caller_is_left_as_it_is():
    state_dict = Toy().state_dict()
    assert upstream._load_checkpoint_to_model(Toy(), state_dict) is state_dict
    assert state_dict.keys() == Toy().state_dict().keys()


def test_what_was_fetched_is_saved_without_a_class_of_this_package(tmp_path):
    torch.save(Toy().state_dict(), tmp_path / 'toy.pth')
    torch.save(fetch(tmp_path / 'toy.pth'), tmp_path / 'again.pth')
    again = torch.load(tmp_path / 'again.pth', weights_only=True)
    assert again.keys() == Toy().state_dict().keys()
    assert again._metadata == Toy().state_dict()._metadata


# Two processes

TWO = """
import json, os, sys
from pathlib import Path
import torch
from convnext_dense import ConvNeXt, UserError
from convnext_dense.weights import load_weights
sys.path.insert(0, 'tests')
from test_weights_upstream import Toy, train
from mmengine.runner import runner

runner.collect_env = dict  # which asks compilers for their versions
rank, folder, url = int(os.environ['RANK']), *sys.argv[1:]
torch.set_num_threads(1)
torch.hub.set_dir(folder)
torch.distributed.init_process_group('gloo')


def differing(state_dict):
    both = [None, None]
    torch.distributed.all_gather_object(both, state_dict)
    return [key for key in both[0] if not torch.equal(both[0][key], both[1][key])]


seen = {}
torch.manual_seed(rank)
model = Toy()
seen['before'] = differing(model.state_dict())
load_weights(model, f'{url}/convnext.pth')
seen['load_weights'] = differing(model.state_dict())
try:
    load_weights(model, f'{url}/missing.pth')
except UserError as error:
    seen['failed'] = str(error)
for name, backbone_init, load_from in (
    ('init_weights', dict(type='Pretrained', checkpoint=f'{url}/convnext.pth'), None),
    ('load_from', None, f'{url}/convnext.pth'),
):
    look = train(
        Path(folder) / f'{name}_{rank}',
        Toy(backbone_init=backbone_init),
        load_from=load_from,
        launcher='pytorch',
        cfg=dict(model_wrapper_cfg=dict(type='MMDistributedDataParallel', device_ids=None)),
        randomness=dict(seed=rank),
    )[1]
    seen[name] = differing(look.model)
    torch.save(look.model, f'{folder}/{name}.pth')
Path(folder, f'seen_{rank}.json').write_text(json.dumps(seen))
torch.distributed.barrier()
"""


def test_every_process_gets_the_same_weights(tmp_path, serve):
    served = tmp_path / 'served'
    served.mkdir()
    source, _ = torchvision_file(served)
    url, requests = serve(served)
    environment = os.environ | dict(
        WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(free_port()), PYTHONWARNINGS='ignore'
    )
    processes = [
        subprocess.Popen(
            [sys.executable, '-c', TWO, str(tmp_path), url],
            cwd=ROOT,
            env=environment | dict(RANK=str(rank), LOCAL_RANK=str(rank)),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], errors
    for rank in range(2):
        seen = json.loads((tmp_path / f'seen_{rank}.json').read_text())
        assert len(seen['before']) > 10
        assert seen['load_weights'] == ['head.weight', 'head.bias']  # which are not in the file
        assert 'missing.pth cannot be fetched (File not found)' in seen['failed']  # and nobody waits for ever
        assert seen['init_weights'] == seen['load_from'] == []
    for name in ('init_weights', 'load_from'):
        loaded = torch.load(tmp_path / f'{name}.pth', weights_only=True)
        assert all(torch.equal(loaded[f'module.backbone.{key}'], value) for key, value in source.items())
    assert requests.count('/convnext.pth') == 1


def free_port():
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]
