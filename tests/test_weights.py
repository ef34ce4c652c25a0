"""Loading weights into a backbone and into whole models: what is loaded, reported, and refused with which words."""

import mmengine.runner.checkpoint as upstream
import pytest
import timm
import torch
import torchvision
from torch import nn

from convnext_dense import ConvNeXt, UserError
from convnext_dense.weights import Checkpoint, Report, fit, load_weights
from convnext_dense.weights.identify import find_state_dict

SMALL = dict(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32))


def save(state_dict, tmp_path, name='weights.pth'):
    torch.save(state_dict, tmp_path / name)
    return str(tmp_path / name)


def randomize(model):
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model


class Detector(nn.Module):
    def __init__(self, arch='atto', num_classes=3):
        super().__init__()
        self.backbone = ConvNeXt(arch)
        self.head = nn.Linear(4, num_classes)


class MeanTeacher(nn.Module):
    def __init__(self):
        super().__init__()
        self.student = Detector(SMALL)
        self.teacher = Detector(SMALL)


def assert_equal(model, state_dict):
    for key, value in model.state_dict().items():
        assert torch.equal(value, state_dict[key]), key


# A backbone


@pytest.mark.parametrize('wrapper', [None, 'model', 'state_dict'])
def test_facebook_classifier(tmp_path, wrapper):
    source = randomize(ConvNeXt(SMALL, out_norm=False))
    state_dict = {**source.state_dict(), 'norm.weight': torch.ones(32), 'head.weight': torch.ones(5, 32)}
    file = save({wrapper: state_dict} if wrapper else state_dict, tmp_path)
    model = ConvNeXt(SMALL, init_cfg=dict(type='Pretrained', checkpoint=file))
    model.init_weights()
    for key, value in source.state_dict().items():
        assert torch.equal(model.state_dict()[key], value)
    report = load_weights(model, file)
    assert report.left_out == {'classifier': ['norm.weight', 'head.weight']}
    assert sorted(report.from_scratch) == sorted(f'norm{i}.{part}' for i in range(4) for part in ('weight', 'bias'))
    assert len(report.loaded) == len(source.state_dict())


def test_stages_that_were_not_built_are_left_out(tmp_path):
    file = save(ConvNeXt(SMALL).state_dict(), tmp_path)
    report = load_weights(ConvNeXt(SMALL, out_indices=(0, 1)), file)
    assert all(key.split('.')[1] in '23' for key in report.left_out['stages that are not built'])
    assert report.left_out['output norms'] == ['norm2.weight', 'norm2.bias', 'norm3.weight', 'norm3.bias']
    assert (report.missing, report.unexpected, report.from_scratch) == ([], [], [])


def test_wrong_size_is_refused_by_name(tmp_path):
    file = save({'model': ConvNeXt('femto').state_dict()}, tmp_path)
    with pytest.raises(
        UserError,
        match=r'weights\.pth does not fit the backbone\. It is ConvNeXt femto, the model is ConvNeXt atto\. Of another '
        r'shape or type \(\d+\): downsample_layers\.0\.0\.weight, .*; downsample_layers\.0\.0\.weight is '
        r'\(48, 3, 4, 4\) float32 in the file and \(40, 3, 4, 4\) float32 in the model\.$',
    ):
        load_weights(ConvNeXt('atto'), file)


@pytest.mark.parametrize('model', [ConvNeXt(SMALL), ConvNeXt(SMALL, out_indices=(2,))])
def test_a_deeper_file_is_refused(model):
    # every weight of the model is there, in its shape: without a word the file's other blocks would be lost
    given = ConvNeXt(dict(depths=(1, 1, 5, 1), dims=SMALL['dims'])).state_dict()
    with pytest.raises(
        UserError,
        match=r'depths \(1, 1, 5, 1\) .*, the model is .* depths \(1, 1, 2, 1\).*Only in the file \(27\): stages\.2\.2',
    ):
        load_weights(model, given)


def test_wrong_version_is_refused_by_name(tmp_path):
    file = save(ConvNeXt('atto', grn=True).state_dict(), tmp_path)
    with pytest.raises(UserError, match=r'It is ConvNeXt V2 atto, the model is ConvNeXt atto\. Missing from the file'):
        load_weights(ConvNeXt('atto'), file)


def test_layer_scale_that_the_model_lacks_is_refused():
    with pytest.raises(UserError, match=r'Only in the file \(5\): stages\.0\.0\.gamma'):
        load_weights(ConvNeXt(SMALL, layer_scale_init_value=0), ConvNeXt(SMALL).state_dict())


def test_images_of_other_channels_are_refused():
    with pytest.raises(
        UserError, match=r'backbone\. Of another shape or type \(1\): .*weight is \(8, 3, 4, 4\) .* and \(8, 1, 4, 4\)'
    ):
        load_weights(ConvNeXt(SMALL, in_channels=1), ConvNeXt(SMALL).state_dict())


def test_incomplete_file_is_refused(tmp_path):
    state_dict = ConvNeXt(SMALL).state_dict()
    del state_dict['stages.2.0.dwconv.weight']
    with pytest.raises(UserError, match=r'Missing from the file \(1\): stages\.2\.0\.dwconv\.weight\.$'):
        load_weights(ConvNeXt(SMALL), save(state_dict, tmp_path))


def test_refused_weights_leave_the_model_as_it_was(tmp_path):
    model = ConvNeXt('atto')
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(UserError):
        load_weights(model, save(ConvNeXt('femto').state_dict(), tmp_path))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def facebook_isotropic():
    """The names of facebookresearch's isotropic ConvNeXt, which has one stage and one resolution."""
    block = dict.fromkeys(('gamma', 'norm.weight', 'pwconv1.weight', 'pwconv2.weight'), torch.ones(8))
    blocks = {f'blocks.{b}.{key}': value for b in range(2) for key, value in block.items()}
    kernels = {f'blocks.{b}.dwconv.weight': torch.ones(8, 1, 7, 7) for b in range(2)}
    return {'stem.weight': torch.ones(8, 3, 16, 16), 'stem.bias': torch.ones(8), **blocks, **kernels}


@pytest.mark.parametrize(
    ('model', 'what'),
    [
        ('resnet18', 'it is a ResNet;'),
        ('swin_tiny_patch4_window7_224', 'it is a Swin Transformer;'),
        ('vit_tiny_patch16_224', 'it is a Vision Transformer;'),
        ('edgenext_xx_small', 'it is an EdgeNeXt;'),
        ('edgenext_base', 'it is an EdgeNeXt;'),
        ('efficientnet_b0', 'it is an EfficientNet or a MobileNet of timm;'),
        ('mobilenetv3_small_100', 'it is an EfficientNet or a MobileNet of timm;'),
        ('swiftformer_xs', 'it is a SwiftFormer;'),
        ('convmixer_768_32', 'in a known format;'),
        ('inception_next_atto', 'in a known format;'),
        ('rdnet_tiny', 'in a known format;'),
        ('visformer_tiny', 'in a known format;'),
        (torchvision.models.swin_t, 'it is a Swin Transformer of torchvision;'),
        (torchvision.models.efficientnet_b0, 'it is an EfficientNet of torchvision;'),
        (torchvision.models.mobilenet_v3_small, 'it is a MobileNetV3 of torchvision;'),
        (torchvision.models.mobilenet_v2, 'it is a MobileNetV2 of torchvision;'),
        (facebook_isotropic, 'it is an isotropic ConvNeXt, which has one resolution and no stages;'),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_other_models_are_refused_by_name(model, what):
    if model is facebook_isotropic:
        weights = model()
    else:
        with torch.device('meta'):
            weights = (timm.create_model(model) if isinstance(model, str) else model(weights=None)).state_dict()
    given = {f'backbone.{key}': torch.zeros(()).expand(value.shape) for key, value in weights.items()}
    with pytest.raises(UserError, match=rf'the checkpoint holds no ConvNeXt:? {what} its first keys are backbone\.'):
        load_weights(ConvNeXt(SMALL), given)


@pytest.mark.parametrize('is_sparse', [False, True])
def test_other_depthwise_kernels_are_named(is_sparse):
    weights = ConvNeXt(SMALL, grn=is_sparse).state_dict()
    for key, value in [*weights.items()]:
        if 'dwconv.weight' in key:
            channels = len(weights.pop(key))
            other = (25, channels) if is_sparse else (channels, 1, 5, 5)
            weights[key.replace('weight', 'kernel') if is_sparse else key] = value.new_ones(other)
    with pytest.raises(
        UserError, match=r'no ConvNeXt: it is a network like ConvNeXt with depthwise kernels of 5x5, where ours are'
    ):
        load_weights(ConvNeXt(SMALL, grn=is_sparse), weights)


def test_unknown_models_are_refused(tmp_path):
    file = save(nn.Linear(2, 2).state_dict(), tmp_path)
    with pytest.raises(UserError, match=r'holds no ConvNeXt in a known format; its first keys are weight, bias\. Give'):
        load_weights(ConvNeXt(SMALL), file)


def test_loading_in_part_where_it_is_asked_for(tmp_path):
    source = randomize(ConvNeXt(SMALL))
    state_dict = source.state_dict()
    del state_dict['stages.2.0.dwconv.weight']
    state_dict['stages.2.1.dwconv.weight'] = torch.ones(24, 1, 5, 5)
    state_dict['stages.2.2.gamma'] = torch.ones(24)
    state_dict['stages.2.1.attention'] = torch.ones(24)
    file = save(state_dict, tmp_path)
    with pytest.raises(UserError, match='does not fit the backbone'):
        ConvNeXt(SMALL, init_cfg=dict(type='Pretrained', checkpoint=file)).init_weights()
    model = ConvNeXt(SMALL, init_cfg=dict(type='Pretrained', checkpoint=file, strict=False))
    model.init_weights()
    assert torch.equal(model.stages[2][0].dwconv.bias, source.stages[2][0].dwconv.bias)
    report = load_weights(model, file, strict=False)
    assert report.missing == ['stages.2.0.dwconv.weight', 'stages.2.1.dwconv.weight']
    assert report.left_out == {'of another shape': ['stages.2.1.dwconv.weight']}
    assert report.unexpected == ['stages.2.1.attention', 'stages.2.2.gamma']
    assert len(report.loaded) == len(source.state_dict()) - 2


@pytest.mark.parametrize(
    'init_cfg',
    [dict(checkpoint='x.pth', prefx='a.'), dict(), dict(checkpoint='x.pth', init_cfg=1), dict(checkpoint='')],
)
def test_init_cfg_with_other_keys(init_cfg):
    model = ConvNeXt(SMALL, init_cfg=dict(type='Pretrained', **init_cfg))
    with pytest.raises(
        UserError, match=r'init_cfg of type Pretrained takes checkpoint, prefix, strict, final_norm; got (nothing|\w)'
    ):
        model.init_weights()


# Several backbones in a file or in a model


def test_one_of_several_backbones_is_chosen(tmp_path):
    source = randomize(MeanTeacher())
    file = save(source.state_dict(), tmp_path)
    model = ConvNeXt(SMALL)
    with pytest.raises(
        UserError,
        match=r"holds 2 backbones, at 'student\.backbone\.', 'teacher\.backbone\.'\. Choose with prefix=\.\.\. in",
    ):
        load_weights(model, file)
    with pytest.raises(UserError, match=r"2 backbones, at .*, none at 'backbone\.'\. Choose"):
        load_weights(model, file, prefix='backbone')
    for prefix in ('teacher.backbone', 'teacher.backbone.'):
        load_weights(model, file, prefix=prefix)
        assert_equal(model, source.teacher.backbone.state_dict())
    model = ConvNeXt(SMALL, init_cfg=dict(type='Pretrained', checkpoint=file, prefix='student.backbone.'))
    model.init_weights()
    assert_equal(model, source.student.backbone.state_dict())


def test_a_wrong_prefix_names_the_right_one():
    with pytest.raises(UserError, match=r"holds a backbone, at 'backbone\.', none at 'model\.'\. Choose with prefix"):
        load_weights(ConvNeXt(SMALL), Detector(SMALL).state_dict(), prefix='model.')


def test_each_backbone_of_a_model_gets_its_own():
    source, model = randomize(MeanTeacher()), MeanTeacher()
    report = load_weights(model, source.state_dict(), need='all')
    assert_equal(model, source.state_dict())
    assert report.unexpected == []


def test_a_detector_goes_into_student_and_teacher():
    # as MMDetection does it for a semi-supervised detector
    source, model = randomize(Detector(SMALL)), MeanTeacher()
    load_weights(model, source.state_dict(), need='all')
    assert_equal(model.student, source.state_dict())
    assert_equal(model.teacher, source.state_dict())


def test_a_teacher_goes_into_a_detector():
    source, model = randomize(MeanTeacher()), Detector(SMALL)
    report = load_weights(model, source.state_dict(), prefix='teacher.backbone')
    assert_equal(model, source.teacher.state_dict())
    assert report.unexpected == []
    assert {key.split('.')[0] for key in report.left_out['other models']} == {'student'}
    assert len(report.left_out['other models']) == len(source.student.state_dict())


def test_what_the_message_on_several_backbones_says_makes_a_file_for_load_from(tmp_path):
    source, model = randomize(MeanTeacher()), Detector(SMALL)
    file = save(source.state_dict(), tmp_path)
    with pytest.raises(UserError) as caught:
        upstream.load_checkpoint(model, file)
    text = str(caught.value)
    cure = f"load_weights(model, {file!r}, prefix='teacher.backbone.'), then torch.save(model.state_dict(), FILE)"
    assert cure in text
    load_weights(model, file, prefix='teacher.backbone.', need='all')
    new_file = save(model.state_dict(), tmp_path, 'teacher.pth')
    model = Detector(SMALL)
    upstream.load_checkpoint(model, new_file, strict=True)
    assert_equal(model, source.teacher.state_dict())


class TwoEyes(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = ConvNeXt(SMALL)
        self.depth_backbone = ConvNeXt(SMALL)
        self.neck = nn.Linear(2, 2)


class OneEye(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = ConvNeXt(SMALL)
        self.neck = nn.Linear(2, 2)


def test_a_name_that_ends_like_another_is_another():
    source, model = randomize(OneEye()), TwoEyes()
    report = load_weights(model, source.state_dict(), need='all')
    assert report.unexpected == []
    for part in (model.backbone, model.depth_backbone):
        assert_equal(part, source.backbone.state_dict())
    assert_equal(model.neck, source.neck.state_dict())
    model, given = OneEye(), randomize(TwoEyes()).state_dict()
    report = load_weights(model, given, need='all', prefix='backbone')
    assert_equal(model, given)
    assert all(key.startswith('depth_backbone.') for key in report.left_out['other models'])


def test_a_prefix_may_stand_before_the_whole_model():
    source, model = randomize(MeanTeacher()), Detector(SMALL)
    load_weights(model, source.state_dict(), prefix='student', need='all')
    assert_equal(model, source.student.state_dict())


# Whole models


def test_a_whole_model_fits_its_own_weights():
    own = Detector().state_dict()
    tensors, report = fit(Detector(), own, need='all')
    assert tensors.keys() == own.keys()
    assert (report.missing, report.unexpected, report.from_scratch, report.left_out) == ([], [], [], {})
    assert report.licence.startswith('not told by the file')  # a model of the user's own
    tensors, _ = fit(Detector(), {f'module.{key}': value for key, value in own.items()}, need='all')
    assert tensors.keys() == own.keys()


def test_backbone_of_a_detector(tmp_path):
    source = randomize(Detector(SMALL))
    file = save({'state_dict': source.state_dict()}, tmp_path)
    model = ConvNeXt(SMALL)
    report = load_weights(model, file)
    assert report.from_scratch == []
    assert report.left_out == {'classifier': ['head.weight', 'head.bias']}
    assert_equal(model, source.backbone.state_dict())


def test_a_bare_backbone_goes_into_a_detector():
    weights = randomize(ConvNeXt('atto', out_norm=False)).state_dict()
    detector = Detector()
    report = load_weights(detector, weights)
    assert all(torch.equal(value, detector.state_dict()[f'backbone.{key}']) for key, value in weights.items())
    assert report.from_scratch[-2:] == ['head.weight', 'head.bias']
    with pytest.raises(UserError, match=r'Missing from the file \(10\): backbone\.norm0\.weight'):
        load_weights(detector, weights, need='all')


def test_heads_for_other_classes_start_from_scratch():
    _, report = fit(Detector(), Detector(num_classes=9).state_dict())
    assert report.from_scratch == ['head.weight', 'head.bias']
    assert report.left_out == {'of another shape': ['head.weight', 'head.bias']}
    with pytest.raises(
        UserError,
        match=r'the model\. Of another shape or type \(2\): head\.weight, head\.bias; head\.weight is \(9, 4\)',
    ):
        fit(Detector(), Detector(num_classes=9).state_dict(), need='all')


def test_a_backbone_with_a_head_of_its_own():
    class Classifier(ConvNeXt):
        def __init__(self, num_classes=5):
            super().__init__(SMALL, out_norm=False)
            self.norm = nn.LayerNorm(32)
            self.head = nn.Linear(32, num_classes)

    source, model = randomize(Classifier()), Classifier()
    report = load_weights(model, source.state_dict(), need='all')
    assert_equal(model, source.state_dict())
    assert report.left_out == {}
    report = load_weights(Classifier(num_classes=3), source.state_dict())
    assert report.left_out == {'of another shape': ['head.weight', 'head.bias']}
    report = load_weights(Classifier(), ConvNeXt(SMALL, out_norm=False).state_dict())
    assert report.from_scratch == ['norm.weight', 'norm.bias', 'head.weight', 'head.bias']


class WithParts(ConvNeXt):
    """A backbone with parameters of its own, whose names no format has."""

    def __init__(self):
        super().__init__(SMALL)
        self.extra_norm = nn.LayerNorm(32)
        self.adapter = nn.Linear(32, 32)


@pytest.mark.parametrize('is_whole', [False, True])
def test_a_backbone_with_parts_of_its_own(is_whole):
    def build(backbone):
        return nn.ModuleDict(dict(backbone=backbone, neck=nn.Linear(2, 2))) if is_whole else backbone

    source, model = randomize(build(WithParts())), build(WithParts())
    report = load_weights(model, source.state_dict(), need='all')
    assert_equal(model, source.state_dict())
    assert (report.left_out, report.unexpected) == ({}, [])
    plain = randomize(ConvNeXt(SMALL)).state_dict()
    report = load_weights(model, plain)
    assert all(torch.equal(model.state_dict()[f'{"backbone." * is_whole}{key}'], value) for key, value in plain.items())
    own = [key for key in model.state_dict() if 'extra_norm' in key or 'adapter' in key]
    assert report.from_scratch == own + ['neck.weight', 'neck.bias'] * is_whole
    with pytest.raises(UserError, match=r'Only in the file \(4\): (backbone\.)?extra_norm\.weight'):
        load_weights(build(ConvNeXt(SMALL)), source.state_dict())


def test_parts_that_the_model_lacks_are_named():
    given = Detector(SMALL).state_dict() | {'mask_head.weight': torch.ones(1)}
    _, report = fit(Detector(SMALL), given)
    assert report.unexpected == ['mask_head.weight']
    with pytest.raises(UserError, match=r'does not fit the model\. Only in the file \(1\): mask_head\.weight\.$'):
        fit(Detector(SMALL), given, need='all')


def test_the_architectures_are_named():
    checkpoint = Checkpoint(Detector('femto').state_dict(), 'x.pth')
    with pytest.raises(
        UserError, match=r'x\.pth does not fit the model\. It is ConvNeXt femto, the model is ConvNeXt atto'
    ):
        fit(Detector(), checkpoint, need='all')


def test_counters_of_batch_norm_may_be_missing_or_left_over():
    model = nn.ModuleDict(dict(backbone=ConvNeXt(SMALL), norm=nn.BatchNorm2d(4)))
    given = {key: value for key, value in model.state_dict().items() if 'tracked' not in key}
    report = load_weights(model, given, need='all')
    assert 'norm.running_mean' in report.loaded
    given['old.num_batches_tracked'] = torch.tensor(3)
    assert load_weights(model, given, need='all').unexpected == []


@pytest.mark.parametrize('strict', [True, False])
def test_a_model_without_our_backbone_has_no_place_for_a_backbone(strict):
    weights = Checkpoint(ConvNeXt('atto').state_dict(), 'atto.pth')
    for model in (timm.create_model('convnext_atto'), nn.Linear(2, 2)):
        with pytest.raises(
            UserError,
            match=rf'The model, {type(model).__name__}, has no ConvNeXt of this package, into which atto\.pth could be '
            r"loaded\. Build its backbone with convnext_dense\.ConvNeXt; .* need='all'\.",
        ):
            load_weights(model, weights, strict=strict)


def test_weights_of_which_nothing_fits_are_refused_however_lenient():
    other = dict(depths=(1, 1, 1, 1), dims=(5, 7, 9, 11))
    for need in ('backbone', 'all'):
        with pytest.raises(UserError, match='does not fit the'):
            load_weights(ConvNeXt(other), ConvNeXt(SMALL).state_dict(), strict=False, need=need)


def test_a_model_without_memory_is_refused():
    with torch.device('meta'):
        model = nn.ModuleDict(dict(backbone=ConvNeXt(SMALL)))
    given = randomize(nn.ModuleDict(dict(backbone=ConvNeXt(SMALL)))).state_dict()
    with pytest.raises(UserError, match=r"on the device 'meta', .* Give it some first, with model\.to_empty\("):
        load_weights(model, given)
    model.to_empty(device='cpu')
    load_weights(model, given)
    assert_equal(model, given)


def test_a_model_without_our_backbone():
    source, model = randomize(nn.Linear(2, 2)), nn.Linear(2, 2)
    load_weights(model, source.state_dict(), need='all')
    assert_equal(model, source.state_dict())
    with pytest.raises(UserError, match=r'Of another shape or type \(2\): weight, bias; weight is \(2, 2\)'):
        load_weights(nn.Linear(3, 3), source.state_dict(), need='all')


# The report


@pytest.mark.parametrize('grn', [False, True])
def test_a_licence_is_that_of_the_makers_own_weights_alone(grn):
    own = ConvNeXt(SMALL, grn=grn)
    licence = 'CC-BY-NC 4.0' if grn else 'MIT'
    assert load_weights(own, own.state_dict()).licence == f"if these are facebookresearch's own: {licence}"
    assert load_weights(own, Checkpoint(own.state_dict(), 'x.pth', 'Beerware')).licence == 'Beerware'
    whole = nn.ModuleDict(dict(backbone=own, neck=nn.Linear(2, 2)))
    for model in (whole, own):
        assert load_weights(model, whole.state_dict()).licence.startswith('not told by the file')
    config = "model = dict(pretrained='convnext://v2_base_1k')"
    given = {'meta': {'config': config}, 'state_dict': whole.state_dict()}  # as mmcv wrote it
    assert load_weights(whole, given).licence == 'trained from convnext://v2_base_1k (CC-BY-NC 4.0)'


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
        lambda weights: {'module': weights, 'epoch': 3},
        lambda weights: {'model': {'state_dict': weights}},
        lambda weights: {'net': {'module': weights}, 'optimizer': {'state': {0: {'exp_avg': torch.ones(1)}}}},
        lambda weights: {'model_ema': weights, 'args': {'lr': 1}},
        lambda weights: {'state_dict': {'model': weights}},
        lambda weights: {'net': weights, 'best_acc': torch.tensor(3.0)},
        lambda weights: {'model': {'arch': 'tiny'}, 'weights': weights},
    ],
)
def test_wrappers_around_the_weights(wrap):
    source = randomize(ConvNeXt(SMALL))
    model = ConvNeXt(SMALL)
    assert load_weights(model, wrap(source.state_dict())).left_out == {}
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in model.state_dict().items())


def test_wrappers_between_which_nothing_decides():
    weights = ConvNeXt(SMALL).state_dict()
    with pytest.raises(UserError, match=r'holds several sets of weights, in student, ema\. Save the one'):
        load_weights(ConvNeXt(SMALL), {'student': weights, 'ema': weights, 'epoch': 3})
    with pytest.raises(UserError, match=r'holds several sets of weights, in 0, \(1, 2\)\. Save the one'):
        load_weights(ConvNeXt(SMALL), {0: weights, (1, 2): weights})
    endless = {}
    endless['model'] = endless
    assert find_state_dict(endless) is endless
    with pytest.raises(UserError, match='holds no weights; its entries are model'):
        load_weights(ConvNeXt(SMALL), endless)


@pytest.mark.parametrize('given', [None, 3, ConvNeXt(SMALL)])
def test_what_is_neither_a_source_nor_weights(given):
    with pytest.raises(
        UserError, match=rf'from a file, an address or a state dict; got {type(given).__name__}\. Of a model give its'
    ):
        load_weights(ConvNeXt(SMALL), given)


def test_a_size_of_timm_under_other_names_is_no_certain_refusal(monkeypatch):
    """They may be timm's, converted, which were trained with another epsilon; or from a training with ours."""
    monkeypatch.setattr(
        'convnext_dense.weights.architecture.OTHER_SIZES', {tuple(SMALL.values()): OtherSize('odd', 1e-5, 'exact')}
    )
    own = ConvNeXt(SMALL).state_dict()
    line = str(load_weights(ConvNeXt(SMALL), own)).splitlines()[1]
    eps = 'whose LayerNorm has epsilon 1e-05, where ours has 1e-06 (build it with norm_eps=1e-05)'
    assert line.endswith(f'(if it is that of timm, {eps})')
    assert 'epsilon' not in str(load_weights(ConvNeXt(SMALL, norm_eps=1e-5), own))


def test_the_report():
    given = {
        key.replace('dwconv', 'depthwise_conv').replace('pwconv', 'pointwise_conv'): value.half()
        for key, value in ConvNeXt('atto', out_norm=False).state_dict().items()
    }
    given = {f'backbone.{key}': value for key, value in given.items()}
    given |= {f'backbone.norm3.{part}': torch.ones(320) for part in ('weight', 'bias')}
    given |= {f'head.fc.{part}': torch.ones(5) for part in ('weight', 'bias')}
    report = load_weights(ConvNeXt('atto'), Checkpoint({'state_dict': given}, 'convnext.pth'))
    assert str(report) == (
        'weights from convnext.pth\n'
        '  format        mmpretrain, ConvNeXt atto\n'
        "  licence       if these are mmpretrain's own: Apache-2.0; converted weights keep their makers' licence\n"
        '  loaded        124 weights\n'
        '  converted     124 from float16\n'
        '  left out      classifier: head.fc.weight, head.fc.bias, ... (4)\n'
        '  from scratch  norm0.weight, norm0.bias, norm1.weight, norm1.bias, ... (8)'
    )


def test_the_report_has_a_dozen_lines_at_most():
    keys = ['key0', 'key1', *(f'\x1b[31mred\nline{i}' for i in range(998))]  # which must not steer the terminal
    report = Report('x.pth', 'a', 'b', 'c', keys, keys, {'float16': 1, 'float64': 2}, {}, keys, keys, keys)
    report.leave_out('one reason', *keys)
    report.leave_out('another', *keys)
    lines = str(report).splitlines()
    assert len(lines) == 10
    assert str(report).replace('\n', '').isprintable()
    assert lines[4] == '  reshaped      key0, key1, ?[31mred?line0, ?[31mred?line1, ... (1000)'
    assert max(map(len, lines)) <= 120
    assert lines[6] == '  left out      one reason: key0, key1, ... (1000); another: key0, key1, ... (1000)'
