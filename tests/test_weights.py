"""Loading weights into a backbone and into whole models: what is loaded, reported and refused."""

import copy

import pytest
import timm
import torch
import torchvision
from small_models import SMALL, Detector, assert_holds, randomize
from timm.models._manipulate import adapt_input_conv
from torch import nn

from convnext_dense import ConvNeXt, UserError
from convnext_dense.weights import Checkpoint, Report, fit, load_weights


def save(state_dict, tmp_path, name='weights.pth'):
    torch.save(state_dict, tmp_path / name)
    return str(tmp_path / name)


def norms(stages):
    return [f'norm{i}.{part}' for i in stages for part in ('weight', 'bias')]


class Branches(nn.Module):
    """Two detectors, as MMDetection has them for semi-supervised training."""

    def __init__(self):
        super().__init__()
        self.student = Detector()
        self.teacher = Detector()


# A backbone


def test_stages_that_were_not_built_are_left_out():
    report = load_weights(ConvNeXt(SMALL, out_indices=(0, 1)), ConvNeXt(SMALL).state_dict())
    assert all(key.split('.')[1] in '23' for key in report.left_out['stages that are not built'])
    assert report.left_out['output norms'] == norms((2, 3))
    assert (report.missing, report.unexpected, report.from_scratch) == ([], [], [])


DEEPER = dict(depths=(1, 1, 5, 1), dims=SMALL['dims'])


@pytest.mark.parametrize(
    ('given', 'own', 'words'),
    [
        (
            dict(arch='femto'),
            dict(arch='atto'),
            ['It is ConvNeXt femto, the model is ConvNeXt atto', 'weight is (48, 3, 4, 4) float32', '(40, 3, 4, 4)'],
        ),
        (dict(arch='atto', grn=True), dict(arch='atto'), ['It is ConvNeXt V2 atto, the model is ConvNeXt atto']),
        # every weight of the model is there, in its shape: without a word the file's other blocks would be lost
        (dict(arch=DEEPER), dict(arch=SMALL), ['(1, 1, 5, 1)', '(1, 1, 2, 1)', 'Only in the file (27): stages.2.2']),
        (dict(arch=DEEPER), dict(arch=SMALL, out_indices=(2,)), ['Only in the file (27): stages.2.2']),
        (dict(arch=SMALL), dict(arch=SMALL, layer_scale_init_value=0), ['Only in the file (5): stages.0.0.gamma']),
    ],
    ids=['size', 'version', 'depth', 'depth of a stage', 'layer scale'],
)
def test_what_does_not_fit_is_named_and_the_model_stays_as_it_was(given, own, words):
    model = ConvNeXt(**own)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UserError) as caught:
        load_weights(model, Checkpoint(ConvNeXt(**given).state_dict(), 'x.pth'))
    assert all(word in str(caught.value) for word in ['x.pth does not fit the backbone', *words])
    assert_holds(model, before)


def facebook_isotropic():
    """The names of facebookresearch's isotropic ConvNeXt."""
    model = nn.Module()
    model.stem = nn.Conv2d(3, 8, 16)
    model.blocks = nn.ModuleList(ConvNeXt(SMALL).stages[0][0] for _ in range(2))
    return model


@pytest.mark.parametrize(
    ('model', 'what'),
    [
        ('resnet18', 'a ResNet'),
        ('swin_tiny_patch4_window7_224', 'a Swin Transformer'),
        ('vit_tiny_patch16_224', 'a Vision Transformer'),
        ('edgenext_xx_small', 'an EdgeNeXt'),
        ('efficientnet_b0', 'an EfficientNet or a MobileNet of timm'),
        ('swiftformer_xs', 'a SwiftFormer'),
        (torchvision.models.swin_t, 'a Swin Transformer of torchvision'),
        (torchvision.models.efficientnet_b0, 'an EfficientNet of torchvision'),
        (torchvision.models.mobilenet_v3_small, 'a MobileNetV3 of torchvision'),
        (torchvision.models.mobilenet_v2, 'a MobileNetV2 of torchvision'),
        (facebook_isotropic, 'an isotropic ConvNeXt'),
        ('inception_next_atto', ''),
        ('visformer_tiny', ''),
        (lambda: nn.Linear(2, 2), ''),
    ],
)
def test_other_models_are_refused_by_name(model, what):
    with torch.device('meta'):
        weights = (timm.create_model(model) if isinstance(model, str) else model()).state_dict()
    given = {f'backbone.{key}': torch.zeros(()).expand(value.shape) for key, value in weights.items()}
    with pytest.raises(UserError, match=rf'holds no ConvNeXt:? {f"it is {what}" if what else "in a known format"}.*;'):
        load_weights(ConvNeXt(SMALL), given)


@pytest.mark.parametrize('is_sparse', [False, True])
def test_other_depthwise_kernels_are_named(is_sparse):
    weights = ConvNeXt(SMALL, grn=is_sparse).state_dict()
    for key in [key for key in weights if 'dwconv.weight' in key]:
        channels = len(weights.pop(key))
        other = (25, channels) if is_sparse else (channels, 1, 5, 5)
        weights[key.replace('weight', 'kernel') if is_sparse else key] = torch.ones(other)
    with pytest.raises(UserError, match='no ConvNeXt: .* depthwise kernels of 5x5, where ours are 7x7'):
        load_weights(ConvNeXt(SMALL, grn=is_sparse), weights)


def test_loading_in_part_where_it_is_asked_for(tmp_path):
    source = randomize(ConvNeXt(SMALL))
    weights = source.state_dict()
    del weights['stages.2.0.dwconv.weight']
    weights['stages.2.1.dwconv.weight'] = torch.ones(24, 1, 5, 5)
    weights['stages.2.2.gamma'] = torch.ones(24)
    weights['stages.2.1.attention'] = torch.ones(24)
    init_cfg = dict(type='Pretrained', checkpoint=save(weights, tmp_path))
    with pytest.raises(UserError, match=r'Missing from the file \(1\): stages\.2\.0\.dwconv\.weight\.'):
        ConvNeXt(SMALL, init_cfg=init_cfg).init_weights()
    model = ConvNeXt(SMALL, init_cfg=init_cfg | dict(strict=False))
    model.init_weights()
    assert torch.equal(model.stages[2][0].dwconv.bias, source.stages[2][0].dwconv.bias)
    report = load_weights(model, weights, strict=False)
    assert report.missing == ['stages.2.0.dwconv.weight', 'stages.2.1.dwconv.weight']
    assert report.left_out == {'of another shape': ['stages.2.1.dwconv.weight']}
    assert report.unexpected == ['stages.2.2.gamma', 'stages.2.1.attention']
    assert len(report.loaded) == len(source.state_dict()) - 2
    other = ConvNeXt(dict(depths=(1, 1, 1, 1), dims=(5, 7, 9, 11)))
    for need in ('backbone', 'all'):  # nothing fits at all
        with pytest.raises(UserError, match='does not fit the'):
            load_weights(other, weights, strict=False, need=need)


@pytest.mark.parametrize('given', [None, 3, ConvNeXt(SMALL)])
def test_what_is_neither_a_source_nor_weights(given):
    with pytest.raises(UserError, match=rf'a file, an address or a state dict; got {type(given).__name__}\. '):
        load_weights(ConvNeXt(SMALL), given)


def test_a_model_without_memory_is_refused():
    with torch.device('meta'):
        model = Detector()
    given = randomize(Detector()).state_dict()
    with pytest.raises(UserError, match=r"on the device 'meta', .*model\.to_empty\("):
        load_weights(model, given)
    model.to_empty(device='cpu')
    load_weights(model, given)
    assert_holds(model, given)


@pytest.mark.parametrize('channels', [1, 2, 4, 12])
def test_another_number_of_channels_is_adapted_as_timm_does(channels):
    weights, model = randomize(ConvNeXt(SMALL)).state_dict(), ConvNeXt(SMALL, in_channels=channels)
    assert f'3 to {channels} channels' in str(load_weights(model, weights))
    stem = 'downsample_layers.0.0.weight'
    assert_holds(model, weights | {stem: adapt_input_conv(channels, weights[stem])})


# Several backbones in a file or in a model


def test_one_of_several_backbones_is_chosen(tmp_path):
    source, model = randomize(Branches()), ConvNeXt(SMALL)
    given = source.state_dict()
    places = r"2 backbones, at 'student\.backbone\.', 'teacher\.backbone\.'"
    with pytest.raises(
        UserError, match=rf"{places}\. Choose with prefix=.*load_weights\(.*prefix='teacher\.backbone\.'"
    ):
        load_weights(model, given)
    with pytest.raises(UserError, match=rf"{places}, none at 'backbone\.'\. Choose"):
        load_weights(model, given, prefix='backbone')
    with pytest.raises(UserError, match=r"a backbone, at 'backbone\.', none at 'model\.'\. Choose"):
        load_weights(model, Detector().state_dict(), prefix='model.')
    for prefix in ('teacher.backbone', 'teacher.backbone.'):
        load_weights(model, given, prefix=prefix)
        assert_holds(model, source.teacher.backbone.state_dict())
    init_cfg = dict(type='Pretrained', checkpoint=save(given, tmp_path), prefix='student.backbone.')
    model = ConvNeXt(SMALL, init_cfg=init_cfg)
    model.init_weights()
    assert_holds(model, source.student.backbone.state_dict())


def test_each_backbone_of_a_model_gets_its_own():
    source, model = randomize(Branches()), Branches()
    assert load_weights(model, source.state_dict(), need='all').unexpected == []
    assert_holds(model, source.state_dict())
    detector = randomize(Detector()).state_dict()
    load_weights(model, detector, need='all')
    assert_holds(model, detector, prefix='student.')
    assert_holds(model, detector, prefix='teacher.')


@pytest.mark.parametrize('prefix', ['teacher', 'teacher.backbone'])
def test_one_branch_goes_into_a_detector(prefix):
    source, model = randomize(Branches()), Detector()
    report = load_weights(model, source.state_dict(), prefix=prefix, need='all')
    assert_holds(model, source.teacher.state_dict())
    assert report.unexpected == []
    assert report.left_out == {'other models': [f'student.{key}' for key in source.student.state_dict()]}


def test_the_one_of_two_models_without_a_prefix_is_loaded():
    source, model = randomize(Detector()).state_dict(), Detector()
    teacher = {f'teacher.{key}': value + 1 for key, value in source.items()}
    report = load_weights(model, source | teacher, prefix='backbone', need='all')
    assert_holds(model, source)
    assert report.left_out == {'other models': [*teacher]}


# Whole models


def test_a_backbone_and_a_detector_take_each_others_weights():
    source, model = randomize(Detector()), ConvNeXt(SMALL)
    report = load_weights(model, {'state_dict': source.state_dict()})
    heads = ['neck.weight', 'neck.bias', 'bbox_head.weight', 'bbox_head.bias']
    assert (report.from_scratch, report.left_out) == ([], {'other parts': heads})
    assert_holds(model, source.backbone.state_dict())
    weights, detector = randomize(ConvNeXt(SMALL, out_norm=False)).state_dict(), Detector()
    report = load_weights(detector, weights)
    assert all(torch.equal(value, detector.state_dict()[f'backbone.{key}']) for key, value in weights.items())
    assert report.from_scratch == [f'backbone.{key}' for key in norms(range(4))] + heads
    with pytest.raises(UserError, match=r'Missing from the file \(12\): backbone\.norm0\.weight'):
        load_weights(detector, weights, need='all')


def test_heads_for_other_classes_and_other_parts():
    given = Detector(num_classes=9).state_dict() | {'mask_head.weight': torch.ones(1)}
    _, report = fit(Detector(), given)
    assert report.from_scratch == ['bbox_head.weight', 'bbox_head.bias']
    assert report.left_out == {'of another shape': ['bbox_head.weight', 'bbox_head.bias']}
    assert report.unexpected == ['mask_head.weight']
    with pytest.raises(UserError) as caught:
        fit(Detector(), given, need='all')
    words = ('does not fit the model.', 'bbox_head.weight is (9, 4) float32', 'Only in the file (1): mask_head.weight.')
    assert all(word in str(caught.value) for word in words)
    with pytest.raises(UserError, match=r'does not fit the model\. Only in the file \(1\): mask_head\.weight\.$'):
        fit(Detector(num_classes=9), given, need='all')


class WithParts(ConvNeXt):
    """A backbone with a classifier's head, and with parameters whose names no format has."""

    def __init__(self, num_classes=5):
        super().__init__(SMALL, out_norm=False)
        self.norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, num_classes)
        self.adapter = nn.Linear(32, 32)


@pytest.mark.parametrize('place', ['', 'backbone.'])
def test_a_backbone_with_parts_of_its_own(place):
    def build(backbone):
        return nn.ModuleDict(dict(backbone=backbone, neck=nn.Linear(2, 2))) if place else backbone

    source, model = randomize(build(WithParts())), build(WithParts())
    report = load_weights(model, source.state_dict(), need='all')
    assert_holds(model, source.state_dict())
    assert (report.left_out, report.unexpected) == ({}, [])
    plain = randomize(ConvNeXt(SMALL, out_norm=False)).state_dict()
    report = load_weights(model, plain)
    assert all(torch.equal(model.state_dict()[place + key], value) for key, value in plain.items())
    assert report.from_scratch == [key for key in model.state_dict() if key.removeprefix(place) not in plain]
    report = load_weights(build(WithParts(num_classes=3)), source.state_dict())
    assert report.left_out == {'of another shape': [f'{place}head.weight', f'{place}head.bias']}
    with pytest.raises(UserError, match=r'Only in the file \(2\): (backbone\.)?adapter\.weight'):
        load_weights(build(ConvNeXt(SMALL)), source.state_dict())


def test_counters_of_batch_norm_may_be_missing_or_left_over():
    model = nn.ModuleDict(dict(backbone=ConvNeXt(SMALL), norm=nn.BatchNorm2d(4)))
    given = {key: value for key, value in model.state_dict().items() if 'tracked' not in key}
    assert 'norm.running_mean' in load_weights(model, given, need='all').loaded
    given['old.num_batches_tracked'] = torch.tensor(3)
    assert load_weights(model, given, need='all').unexpected == []


def test_a_model_without_our_backbone():
    source, model = randomize(nn.Linear(2, 2)), nn.Linear(2, 2)
    load_weights(model, source.state_dict(), need='all')
    assert_holds(model, source.state_dict())
    with pytest.raises(UserError, match=r'type \(2\): weight, bias; weight is \(2, 2\)'):
        load_weights(nn.Linear(3, 3), source.state_dict(), need='all')
    weights = Checkpoint(ConvNeXt('atto').state_dict(), 'atto.pth')
    for strict in (True, False):
        with pytest.raises(UserError, match=r"Linear, has no backbone .* atto\.pth .*need='all'"):
            load_weights(model, weights, strict=strict)


# Where the weights lie in a file


def test_weights_beside_the_weights_are_named():
    weights, average = ConvNeXt(SMALL).state_dict(), ConvNeXt(SMALL).state_dict()
    others = dict(optimizer=dict(state={0: dict(exp_avg=torch.ones(1))}, param_groups=[]), epoch=3, args={'lr': 1})
    given = {'model': weights, 'model_ema': average, 'ema': {'state_dict': average}, **others}
    assert load_weights(ConvNeXt(SMALL), given).left_out == {'other weights': ['model_ema', 'ema']}
    given = {'student': average, 'teacher': weights}
    assert load_weights(ConvNeXt(SMALL), given).left_out == {'other weights': ['student']}
    given = {'state_dict': weights, 'ema_state_dict': {f'module.{key}': value for key, value in average.items()}}
    assert load_weights(ConvNeXt(SMALL), given).left_out == {}  # which EMAHook loads


@pytest.mark.parametrize(
    'wrap',
    [
        lambda weights: {'model': weights},
        lambda weights: {'module': weights, 'epoch': 3},
        lambda weights: {f'module.{key}': value for key, value in weights.items()},
        lambda weights: {'model': {'state_dict': weights}},
        lambda weights: {'net': {'module': weights}, 'optimizer': {'state': {0: {'exp_avg': torch.ones(1)}}}},
        lambda weights: {'model_ema': weights, 'args': {'lr': 1}},
        lambda weights: {'state_dict': {'model': weights}},
        lambda weights: {'net': weights, 'best_acc': torch.tensor(3.0)},
        lambda weights: {'model': {'arch': 'tiny'}, 'weights': weights},
    ],
)
def test_wrappers_around_the_weights(wrap):
    source, model = randomize(ConvNeXt(SMALL)).state_dict(), ConvNeXt(SMALL)
    assert load_weights(model, wrap(source)).left_out == {}
    assert_holds(model, source)


def test_wrappers_between_which_nothing_decides():
    weights = ConvNeXt(SMALL).state_dict()
    with pytest.raises(UserError, match=r'several sets of weights, in student, ema\. Save the one'):
        load_weights(ConvNeXt(SMALL), {'student': weights, 'ema': weights, 'epoch': 3})
    with pytest.raises(UserError, match=r'several sets of weights, in 0, \(1, 2\)\. Save the one'):
        load_weights(ConvNeXt(SMALL), {0: weights, (1, 2): weights})
    endless = {}
    endless['model'] = endless
    with pytest.raises(UserError, match='holds no weights; its entries are model'):
        load_weights(ConvNeXt(SMALL), endless)


# The report


@pytest.mark.parametrize(('grn', 'licence'), [(False, 'MIT'), (True, 'CC-BY-NC 4.0')])
def test_a_licence_is_that_of_the_makers_own_weights_alone(grn, licence):
    own, whole = ConvNeXt(SMALL, grn=grn), Detector(grn=grn)
    assert load_weights(own, own.state_dict()).licence == f"if these are facebookresearch's own: {licence}"
    assert load_weights(own, Checkpoint(own.state_dict(), 'x.pth', 'Beerware')).licence == 'Beerware'
    for model in (whole, own):  # a model of the user's own
        assert load_weights(model, whole.state_dict()).licence == ''


def test_a_size_of_timm_under_other_names_is_no_certain_refusal(monkeypatch):
    """They may be timm's, converted, which were trained with another epsilon; or from a training with ours."""
    monkeypatch.setattr('convnext_dense.weights.identify.OTHER_SIZES', {tuple(SMALL.values()): ('odd', 'exact')})
    own = ConvNeXt(SMALL).state_dict()
    line = str(load_weights(ConvNeXt(SMALL), own)).splitlines()[1]
    assert 'if it is that of timm' in line
    assert 'norm_eps=1e-05' in line
    assert 'epsilon' not in str(load_weights(ConvNeXt(SMALL, norm_eps=1e-5), own))


def test_the_report_is_short_and_names_cannot_steer_the_terminal():
    keys = ['key0', 'key1', *(f'\x1b[31mred\nline{i}' for i in range(998))]
    report = Report('x.pth', 'a', 'b', 'c', {}, keys, keys, {'float16': 1, 'float64': 2}, keys, keys, keys)
    report.leave_out('one reason', *keys)
    report.leave_out('another', *keys)
    lines = str(report).splitlines()
    assert len(lines) == 10
    assert all(line.isprintable() and len(line) <= 120 for line in lines)
    assert lines[4] == '  reshaped      key0, key1, ?[31mred?line0, ?[31mred?line1, ... (1000)'
    assert lines[5] == '  converted     1 from float16, 2 from float64'
    assert lines[6] == '  left out      one reason: key0, key1, ... (1000); another: key0, key1, ... (1000)'
