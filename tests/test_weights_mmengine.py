"""MMEngine's, MMDetection's and MMSegmentation's ways to load lead through our loader, for models with our backbone."""

import logging
import os
import socket
import warnings
from functools import partial
from pathlib import Path

import mmengine.runner.checkpoint as upstream
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.model import BaseModel, MMDistributedDataParallel, PretrainedInit, Sequential
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from small_models import assert_holds, randomize
from torch import nn

from convnext_dense import ConvNeXt, UserError
from convnext_dense.variants import VARIANTS
from convnext_dense.weights import fetch, fit, load_weights
from convnext_dense.weights.formats import TORCHVISION

ROOT = Path(__file__).parent.parent
TINY = dict(depths=(1, 1, 1, 1), dims=(4, 8, 12, 16))


# What facebookresearch published: MMDetection 2 and MMSegmentation 0, key by key

DETECTORS = [
    'mask_rcnn_convnext_t',
    *(f'cascade_convnext_{size}' for size in ('t', 's', 'b', 'b_in22k', 'l_in22k', 'xl_in22k')),
]
SEGMENTORS = [f'upernet_convnext_{size}' for size in ('t', 's', 'b', 'b_in22k', 'l_in22k', 'xl_in22k')]


def layer(name, *weight):
    return {f'{name}.weight': weight, f'{name}.bias': weight[:1]}


def conv_bn(name, *weight):
    vectors = ('weight', 'bias', 'running_mean', 'running_var')
    bn = {f'{name}.bn.{part}': weight[:1] for part in vectors}
    return {f'{name}.conv.weight': weight, **bn, f'{name}.bn.num_batches_tracked': ()}


def backbone(depths, dims):
    shapes = {}
    for s, (depth, dim) in enumerate(zip(depths, dims, strict=True)):
        before = dims[s - 1]
        stem = layer('downsample_layers.0.0', dim, 3, 4, 4) | layer('downsample_layers.0.1', dim)
        down = layer(f'downsample_layers.{s}.0', before) | layer(f'downsample_layers.{s}.1', dim, before, 2, 2)
        shapes |= (down if s else stem) | layer(f'norm{s}', dim)
        for b in range(depth):
            block = f'stages.{s}.{b}'
            shapes |= {f'{block}.gamma': (dim,)}
            shapes |= layer(f'{block}.dwconv', dim, 1, 7, 7) | layer(f'{block}.norm', dim)
            shapes |= layer(f'{block}.pwconv1', 4 * dim, dim) | layer(f'{block}.pwconv2', dim, 4 * dim)
    return {f'backbone.{key}': shape for key, shape in shapes.items()}


def detector(name, depths, dims):
    shapes = backbone(depths, dims)
    for i, dim in enumerate(dims):
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


def segmentor(name, depths, dims):
    shapes = backbone(depths, dims) | layer('decode_head.conv_seg', 150, 512, 1, 1)
    for i in range(4):
        shapes |= conv_bn(f'decode_head.psp_modules.{i}.1', 512, dims[3], 1, 1)
    shapes |= conv_bn('decode_head.bottleneck', 512, dims[3] + 4 * 512, 3, 3)
    for i in range(3):
        shapes |= conv_bn(f'decode_head.lateral_convs.{i}', 512, dims[i], 1, 1)
        shapes |= conv_bn(f'decode_head.fpn_convs.{i}', 512, 512, 3, 3)
    shapes |= conv_bn('decode_head.fpn_bottleneck', 512, 4 * 512, 3, 3)
    shapes |= layer('auxiliary_head.conv_seg', 150, 256, 1, 1)
    return shapes | conv_bn('auxiliary_head.convs.0', 256, dims[2], 3, 3)


@pytest.mark.parametrize(
    ('leaf', 'layout'),
    [(f'det/{name}_coco', detector) for name in DETECTORS] + [(f'seg/{name}_ade20k', segmentor) for name in SEGMENTORS],
)
def test_published_detectors_and_segmentors_have_our_keys(leaf, layout):
    cfg = Config.fromfile(ROOT / f'configs/{leaf}.py')
    with torch.device('meta'), DefaultScope.overwrite_default_scope(f'mm{leaf[:3]}'):
        shapes = {key: tuple(value.shape) for key, value in MODELS.build(cfg.model).state_dict().items()}
    assert shapes == layout(leaf[4:], *VARIANTS[cfg.model.backbone.arch])


LEGACY_META = dict(
    env_info='sys.platform: linux\nPython: 3.8.3\nPyTorch: 1.7.0\nMMCV: 1.3.9\nMMDetection: 2.11.0',
    config='model = dict(type="CascadeRCNN", pretrained=None)',
    epoch=36,
    iter=263880,
    time='Mon Jan  3 05:12:45 2022',
    lr=[np.float64(1e-6)],
    hook_msgs=dict(best_score=np.float32(0.437), last_ckpt='work_dirs/epoch_36.pth'),
)


def legacy_file(folder, shapes, **meta):
    """Save tensors with a value of their own each, which take no memory, as MMDetection 2 did; return them as well."""
    weights = {
        key: torch.tensor(i if key.endswith('tracked') else i / 1000).expand(shape)
        for i, (key, shape) in enumerate(shapes.items(), 1)
    }
    content = {'meta': LEGACY_META | meta, 'state_dict': weights, 'optimizer': {'state': {}}}
    torch.save(content, folder / 'legacy.pth')
    return weights, str(folder / 'legacy.pth')


def test_a_published_detector_through_init_detector(tmp_path, shown):
    from mmdet.apis import init_detector
    from mmdet.evaluation import get_classes

    shapes = detector('cascade', *VARIANTS['tiny'])
    weights, file = legacy_file(tmp_path, shapes, CLASSES=tuple(get_classes('coco')))
    model = init_detector(str(ROOT / 'configs/det/cascade_convnext_t_coco.py'), file, device='cpu')
    assert_holds(model, weights)
    assert model.dataset_meta['classes'][:2] == ('person', 'bicycle')
    assert len(model.dataset_meta['palette']) == 80
    ((_, text),) = shown
    assert [line.split()[0] for line in text.splitlines()] == ['weights', 'format', 'loaded']
    assert f'{len(shapes)} weights' in text


@pytest.mark.parametrize('has_palette', [True, False])
def test_a_published_segmentor_through_init_model(has_palette, tmp_path):
    from mmseg.apis import init_model
    from mmseg.utils import get_classes, get_palette

    palette = dict(PALETTE=get_palette('ade20k')) if has_palette else {}
    shapes = segmentor('upernet', *VARIANTS['tiny'])
    weights, file = legacy_file(tmp_path, shapes, CLASSES=get_classes('ade20k'), **palette)
    model = init_model(str(ROOT / 'configs/seg/upernet_convnext_t_ade20k.py'), file, device='cpu')
    assert_holds(model, weights)
    assert model.dataset_meta['classes'][:2] == ('wall', 'building')
    assert np.array(model.dataset_meta['palette']).shape == (150, 3)
    assert not has_palette or [*map(list, model.dataset_meta['palette'])] == get_palette('ade20k')


# MMEngine's runner


class Toy(BaseModel):
    def __init__(self, num_classes=2, init_cfg=None):
        super().__init__(init_cfg=init_cfg)
        self.backbone = ConvNeXt(TINY)
        self.head = nn.Linear(16, num_classes)

    def forward(self, inputs, mode='tensor'):
        scores = self.head(self.backbone(torch.stack(inputs))[-1].mean((2, 3)))
        return {'loss': scores.square().mean()} if mode == 'loss' else scores


class Look(Hook):
    """Does a thing when training starts."""

    priority = 'LOWEST'

    def __init__(self, act):
        self.act = act

    def before_train(self, runner):
        self.act(runner)


LOADER = dict(
    batch_size=2,
    num_workers=0,
    dataset=[dict(inputs=torch.randn(3, 32, 32)) for _ in range(4)],
    sampler=dict(type='DefaultSampler', shuffle=False),
)


def make_runner(work_dir, look=lambda runner: None, max_epochs=1, hooks=(), **options):
    return Runner(
        Toy(),
        str(work_dir),
        train_dataloader=LOADER,
        train_cfg=dict(by_epoch=True, max_epochs=max_epochs),
        test_dataloader=LOADER,
        test_cfg=dict(),
        test_evaluator=[],
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.01)),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1)),
        custom_hooks=[Look(look), *hooks],
        experiment_name=str(work_dir),
        log_level='WARNING',
        **options,
    )


EMA = dict(type='EMAHook', momentum=0.1)


def averages(runner):
    return [hook.ema_model.module for hook in runner.hooks if hasattr(hook, 'ema_model')]


def torchvision_file(folder):
    """Return a backbone's weights and a file with them under torchvision's names, of which MMEngine knows none."""
    source = randomize(ConvNeXt(TINY, out_norm=False)).state_dict()
    torch.save(dict(TORCHVISION.write(key, value) for key, value in source.items()), folder / 'convnext.pth')
    return source, str(folder / 'convnext.pth')


@pytest.fixture
def toy(tmp_path):
    """Random weights of the toy model, and a file with them."""
    weights = randomize(Toy()).state_dict()
    torch.save(weights, tmp_path / 'toy.pth')
    return weights, str(tmp_path / 'toy.pth')


@pytest.mark.parametrize('hooks', [[], [EMA]], ids=['', 'EMA'])
def test_load_from_takes_any_format_and_the_average_starts_there(hooks, tmp_path):
    source, file = torchvision_file(tmp_path)

    def look(runner):
        for model in (runner.model, *averages(runner)):
            loaded = model.backbone.state_dict()
            assert all(torch.equal(loaded[key], value) for key, value in source.items())

    runner = make_runner(tmp_path / f'load_{len(hooks)}', look, hooks=hooks, load_from=file)
    runner.train()
    assert len(averages(runner)) == len(hooks)


@pytest.mark.filterwarnings('ignore:The `.*` method is being overridden')
def test_a_run_with_an_average_resumes_from_a_file_that_is_then_replaced(tmp_path):
    make_runner(tmp_path / 'first', hooks=[EMA]).train()
    file = tmp_path / 'first/epoch_1.pth'
    saved = torch.load(file, weights_only=False)

    def look(runner):
        torch.save({}, tmp_path / 'other.pth')
        os.replace(tmp_path / 'other.pth', file)  # as MMEngine writes a checkpoint here
        # MMEngine saves the average as the model, and the model as the average
        assert_holds(averages(runner)[0], saved['state_dict'])
        assert_holds(runner.model, {key[7:]: value for key, value in saved['ema_state_dict'].items()})
        moments = runner.optim_wrapper.state_dict()['state']
        expected = saved['optimizer']['state']
        assert all(torch.equal(moments[i]['exp_avg'], expected[i]['exp_avg']) for i in expected)

    runner = make_runner(tmp_path / 'second', look, max_epochs=2, hooks=[EMA], load_from=str(file), resume=True)
    runner.train()
    assert runner.epoch == 2


def test_weights_alone_are_not_resumed(tmp_path):
    _, file = legacy_file(tmp_path, {key: value.shape for key, value in Toy().state_dict().items()})
    runner = make_runner(tmp_path / 'resumed', hooks=[dict(type='CheckWeightsHook')], load_from=file, resume=True)
    with pytest.raises(UserError, match=r'legacy\.pth holds weights alone, .*load_from=.*legacy\.pth instead of'):
        runner.train()


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


def test_random_heads_are_a_warning_where_nothing_is_trained(shown, toy, tmp_path):
    _, file = torchvision_file(tmp_path)
    upstream.load_checkpoint(Toy(), file)
    upstream.load_checkpoint(Toy(), toy[1])
    make_runner(tmp_path / 'train', load_from=file).train()
    make_runner(tmp_path / 'test', load_from=file).test()  # which could train as well
    assert [level for level, _ in shown] == [logging.WARNING, logging.INFO, logging.INFO, logging.WARNING]
    assert ['2 weights are random' in text for _, text in shown] == [True, False, False, True]
    runner = make_runner(tmp_path / 'checked', load_from=file, hooks=[dict(type='CheckWeightsHook')])
    with pytest.raises(UserError, match=r'does not fit the model\. Missing from the file \(10\): .*norm0\.weight'):
        runner.test()


@pytest.mark.parametrize('kind', ['Pretrained', 'mmengine.Pretrained', PretrainedInit])
@pytest.mark.parametrize('is_list', [False, True])
@pytest.mark.parametrize('build', [Toy, partial(ConvNeXt, TINY)], ids=['parent', 'backbone'])
def test_every_form_of_init_cfg(kind, is_list, build, shown, tmp_path):
    source, file = torchvision_file(tmp_path)
    init_cfg = dict(type=kind, checkpoint=file)
    model = build(init_cfg=[init_cfg | dict(prefix='')] if is_list else init_cfg)
    model.init_weights()
    backbone = getattr(model, 'backbone', model).state_dict()
    assert all(torch.equal(backbone[key], value) for key, value in source.items())
    assert [level for level, _ in shown] == [logging.INFO]


def test_a_whole_model_by_init_cfg_strictly_and_under_other_names(toy, tmp_path):
    weights, file = toy
    model = Toy(init_cfg=dict(type='Pretrained', checkpoint=file))
    model.init_weights()
    assert_holds(model, weights)
    upstream.load_checkpoint(Toy(num_classes=5), file)
    with pytest.raises(UserError, match=r'type \(2\): head\.weight, head\.bias; head\.weight is \(2'):
        upstream.load_checkpoint(Toy(num_classes=5), file, strict=True)
    renamed = {f'student.{key}'.replace('.head.', '.cls_head.'): value for key, value in weights.items()}
    torch.save({'model': renamed}, tmp_path / 'student.pth')
    model, patterns = Toy(), [(r'^student\.', ''), (r'^cls_(?=head)', '')]
    upstream.load_checkpoint(model, str(tmp_path / 'student.pth'), strict=True, revise_keys=patterns)
    assert_holds(model, weights)


@pytest.mark.usefixtures('one_process')
def test_wrapped_models(toy):
    from mmdet.models import DetTTAModel

    weights, file = toy
    for wrap in (MMDistributedDataParallel, partial(DetTTAModel, tta_cfg={})):
        model = Toy()
        wrapped = wrap(module=model)
        upstream.load_checkpoint(wrapped, file, strict=True)
        assert_holds(model, weights)
        assert fit(wrapped, weights, need='all')[1].missing == []


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


# MMEngine, which loads models without our backbone, does not know 'model'
@pytest.mark.parametrize(('wrapper', 'has_backbone'), [(None, True), ('model', True), ('state_dict', False)])
def test_versions_of_modules_are_kept(wrapper, has_backbone, tmp_path):
    model = nn.ModuleDict(dict(plugin=Doubling(), **(dict(backbone=ConvNeXt(TINY)) if has_backbone else {})))
    state_dict = model.state_dict()
    for expected in (1.0, 0.5):
        torch.save({wrapper: state_dict} if wrapper else state_dict, tmp_path / 'plugin.pth')
        upstream.load_checkpoint(model, str(tmp_path / 'plugin.pth'))
        assert model['plugin'].weight.tolist() == [expected, expected]
        state_dict._metadata = {}


# Models without our backbone


def test_they_are_loaded_as_ever(tmp_path):
    given = {'module.weight': torch.ones(2, 2), 'module.bias': torch.ones(3), 'other': torch.ones(1)}
    torch.save({'state_dict': given}, tmp_path / 'line.pth')
    model = nn.Linear(2, 2)
    checkpoint = upstream.load_checkpoint(model, str(tmp_path / 'line.pth'), logger='silent')
    assert checkpoint['state_dict'].keys() == given.keys()
    assert torch.equal(model.weight, torch.ones(2, 2))  # what fits; of the rest MMEngine warns
    with pytest.raises(RuntimeError, match='do not match exactly'):
        upstream.load_checkpoint(model, str(tmp_path / 'line.pth'), strict=True)


@pytest.mark.parametrize('source', ['open-mmlab://nope', 'pavi://a/b', 'http://127.0.0.1:1/x.pth', 'torchvision://x'])
def test_errors_of_a_source_are_explained_for_our_backbone_alone(source, tmp_path):
    with pytest.raises(UserError, match=source):
        upstream.load_checkpoint(Toy(), source)
    with pytest.raises(UserError, match=source):
        make_runner(tmp_path / 'ours').load_checkpoint(source)
    with pytest.raises((KeyError, ImportError, OSError)) as caught:
        upstream.load_checkpoint(nn.Linear(2, 2), source)
    assert not isinstance(caught.value, UserError)


@pytest.mark.parametrize('init_cfg', [dict(checkpoint='x.pth', prefx='a.'), dict(), dict(checkpoint='')])
def test_keys_of_init_cfg(init_cfg, tmp_path):
    model = ConvNeXt(TINY, init_cfg=dict(type='Pretrained', **init_cfg))
    with pytest.raises(UserError, match=r'takes checkpoint, prefix, strict, final_norm; got (nothing|\w)'):
        model.init_weights()
    source = nn.Sequential(nn.Linear(2, 2)).state_dict()
    torch.save(source, tmp_path / 'plain.pth')
    plain = dict(type='Pretrained', checkpoint=str(tmp_path / 'plain.pth'))
    model = Sequential(nn.Linear(2, 2), init_cfg=plain)
    model.init_weights()
    assert_holds(model, source)
    with pytest.raises(UserError, match='takes checkpoint, prefix; got checkpoint, strict'):
        Sequential(nn.Linear(2, 2), init_cfg=plain | dict(strict=False)).init_weights()


# What is read


@pytest.mark.parametrize('wrap', [lambda weights: weights, lambda weights: {'state_dict': weights}])
def test_a_checkpoint_of_the_caller_is_left_as_it_is(wrap):
    weights = {f'student.{key}': value for key, value in Toy().state_dict().items()}
    given, names = wrap(weights), [*weights]
    assert upstream._load_checkpoint_to_model(Toy(), given, revise_keys=[(r'^student\.', '')]) is given
    assert [*weights] == names
    assert given.keys() == wrap(weights).keys()


def test_what_was_fetched_is_saved_without_a_class_of_this_package(toy, tmp_path):
    weights, file = toy
    torch.save(fetch(file), tmp_path / 'again.pth')
    again = torch.load(tmp_path / 'again.pth', weights_only=True)
    assert again.keys() == weights.keys()
    assert again._metadata == weights._metadata


# Two processes


def load_in_one_of_two(rank, port, url, folder):
    """Load in every way in one process, and save what is then in the models."""
    warnings.simplefilter('ignore')
    os.environ['LOCAL_RANK'] = str(rank)
    torch.hub.set_dir(folder)
    torch.distributed.init_process_group('gloo', f'tcp://127.0.0.1:{port}', rank=rank, world_size=2)
    torch.manual_seed(rank)
    file = f'{url}/convnext.pth'
    models = [Toy(init_cfg=dict(type='Pretrained', checkpoint=file)), Toy(), Toy(), Toy()]
    models[0].init_weights()
    upstream.load_checkpoint(models[1], file)
    load_weights(models[2], file)
    with pytest.raises(UserError, match='missing.pth cannot be fetched'):  # and nobody waits for ever
        load_weights(models[3], f'{url}/missing.pth')
    torch.save([model.state_dict() for model in models], f'{folder}/{rank}.pth')
    torch.distributed.barrier()


@pytest.mark.slow
def test_every_process_gets_the_same_weights(tmp_path, serve):
    (tmp_path / 'served').mkdir()
    source, _ = torchvision_file(tmp_path / 'served')
    url, requests = serve(tmp_path / 'served')
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(load_in_one_of_two, (port, url, str(tmp_path)), nprocs=2)
    loaded = [torch.load(tmp_path / f'{rank}.pth', weights_only=True) for rank in range(2)]
    for state_dict in loaded[0][:3] + loaded[1][:3]:
        assert all(torch.equal(state_dict[f'backbone.{key}'], value) for key, value in source.items())
    assert not torch.equal(*(models[3]['backbone.stages.0.0.dwconv.weight'] for models in loaded))  # of the seeds
    assert requests.count('/convnext.pth') == 1
