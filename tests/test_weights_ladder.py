"""The networks of the ladder load a ResNet's, a ConvNeXt's and their own weights."""

import pytest
import timm
import torch
import torchvision
from mmengine.registry import MODELS
from mmengine.runner import load_checkpoint
from small_models import assert_close, assert_holds, picture, randomize, resnet_maps
from torch import nn

from convnext_dense import ConvNeXt, UserError
from convnext_dense.ladder import ModernizedResNet, steps
from convnext_dense.weights import load_weights
from convnext_dense.weights.convert import translate
from convnext_dense.weights.formats import FB_V2, FCMAE, FORMATS, LADDER
from convnext_dense.weights.inspect import inspect

DESIGN = dict(depths=(1, 1, 2, 1), width=8)
SIZE = dict(depths=(1, 1, 2, 1), dims=(8, 16, 32, 64))


def small(step, layer_scale=1.0, **options):
    """Build a step as one builds it for published ConvNeXt weights: with a layer scale."""
    return ModernizedResNet(step, design=DESIGN, layer_scale_init_value=layer_scale, **options)


@pytest.mark.parametrize(
    'build', [torchvision.models.resnet50, lambda: timm.create_model('resnet50')], ids=['torchvision', 'timm']
)
@torch.no_grad()
def test_resnet_50_computes_the_same_bits(build, tmp_path):
    theirs = randomize(build())
    torch.save(theirs.state_dict(), tmp_path / 'resnet50.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'resnet50.pth'))
    ours = ModernizedResNet('resnet', init_cfg=init_cfg).eval()
    ours.init_weights()
    image = picture()
    assert all(map(torch.equal, ours(image), resnet_maps(theirs, image)))
    report = load_weights(ours, tmp_path / 'resnet50.pth')
    assert report.left_out == {'classifier': ['fc.weight', 'fc.bias']}
    assert (report.missing, report.unexpected, report.from_scratch) == ([], [], [])
    assert report.format.startswith('ResNet')


def test_backbone_of_a_stock_detector():
    stock = nn.ModuleDict(dict(backbone=MODELS.build(dict(type='mmdet.ResNet', depth=50)), neck=nn.Linear(2, 2)))
    given, image = randomize(stock).state_dict(), picture()
    model = nn.ModuleDict(dict(backbone=ModernizedResNet('resnet'), neck=nn.Linear(2, 2)))
    assert load_weights(model, given, need='all').unexpected == []
    assert all(map(torch.equal, model['backbone'].eval()(image), stock['backbone'](image)))
    assert torch.equal(model['neck'].weight, given['neck.weight'])


MARKS = {'dinov3': 'norms.3.weight', 'eupe': 'projectors.0.weight'}


@pytest.mark.parametrize('fmt', [fmt for fmt in FORMATS if fmt not in (FB_V2, FCMAE)], ids=lambda fmt: fmt.title)
@torch.no_grad()
def test_last_step_takes_every_format_of_a_convnext(fmt, tmp_path):
    source = randomize(ConvNeXt(SIZE, out_norm=False))
    given = dict(fmt.write(key, value) for key, value in source.state_dict().items())
    given |= {MARKS[fmt.name]: torch.ones(1)} if fmt.name in MARKS else {}
    torch.save(given, tmp_path / 'convnext.pth')
    model = small(
        'convnext', out_norm=False, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'convnext.pth'))
    )
    model.init_weights()
    image = picture()
    assert_close(model.eval()(image), source(image))
    report = load_weights(model, given)
    # the ladder's own names are those of the step itself
    assert report.format == fmt.title or fmt is LADDER
    assert (report.missing, report.unexpected, report.from_scratch) == ([], [], [])


@pytest.mark.parametrize('layer_scale', [None, 1.0])
@pytest.mark.parametrize('step', steps())
def test_own_checkpoints(step, layer_scale, tmp_path):
    source = randomize(small(step, layer_scale)).state_dict()
    backbone = small(step, layer_scale)
    assert len(load_weights(backbone, source).loaded) == len(source)
    assert_holds(backbone, source)
    detector = nn.ModuleDict(dict(backbone=small(step, layer_scale), neck=nn.Linear(2, 2)))
    whole = {f'backbone.{key}': value for key, value in source.items()} | {'neck.weight': torch.ones(2, 2)}
    torch.save({'state_dict': whole}, tmp_path / 'epoch_1.pth')
    load_checkpoint(detector, str(tmp_path / 'epoch_1.pth'))
    assert_holds(detector, source, prefix='backbone.')
    assert torch.equal(detector['neck'].weight, torch.ones(2, 2))


@pytest.mark.parametrize('step', steps()[1:-1])
def test_steps_between_say_that_nothing_is_published(step):
    for given in (torchvision.models.resnet18().state_dict(), ConvNeXt(SIZE).state_dict()):
        with pytest.raises(UserError, match='between resnet and convnext nothing is published.*init_cfg'):
            load_weights(small(step), given)


def test_the_last_step_is_a_convnext_for_everyone():
    source, model, image = randomize(small('convnext')), ConvNeXt(SIZE), picture()
    load_weights(model, source.state_dict())
    assert_close(model.eval()(image), source(image))
    assert_holds(model, translate(source.state_dict(), 'fb').tensors)
    found = inspect(source.state_dict())['backbones']
    assert [each['architecture'] for each in found] == ['a ConvNeXt with depths (1, 1, 2, 1) and dims (8, 16, 32, 64)']
    assert not any(inspect(small(step).state_dict())['backbones'] for step in steps()[:-1])


@pytest.mark.parametrize(
    ('step', 'given', 'words'),
    [
        ('kernel', small('depthwise'), r'does not fit the backbone.*stages\.\d\.0'),
        ('convnext', ConvNeXt(SIZE), r'Only in the file \(5\): stages\.0\.0\.gamma'),
        ('convnext', ConvNeXt(SIZE, grn=True), r'Only in the file \(10\): stages\.0\.0\.grn\.gamma'),
    ],
    ids=['another step', 'layer scale', 'GRN'],
)
def test_what_a_step_lacks_is_refused_and_changes_nothing(step, given, words):
    model = small(step, layer_scale=None)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(UserError, match=words):
        load_weights(model, given.state_dict())
    assert_holds(model, before)
