"""Converted checkpoints load into the real models of other libraries, compute the same, and come back bit-equal."""

import itertools
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import timm.models
import torch
import torchvision
from torch import nn
from torchvision.models.convnext import CNBlockConfig

from convnext_dense import ConvNeXt, UserError
from convnext_dense.compat import read_checkpoint
from convnext_dense.variants import VARIANTS
from convnext_dense.weights import Checkpoint, load_weights
from convnext_dense.weights.convert import convert, translate
from convnext_dense.weights.convert import TARGETS

ROOT = Path(__file__).parent.parent
DEPTHS, DIMS, NUM_CLASSES = (1, 1, 2, 1), (8, 16, 24, 32), 7
SMALL = dict(depths=DEPTHS, dims=DIMS)
SUBSETS = [each for number in range(1, 5) for each in itertools.combinations(range(4), number)]
V1_AND_V2 = pytest.mark.parametrize('grn', [False, True], ids=['V1', 'V2'])


def randomize(model: nn.Module) -> nn.Module:
    """Give every weight a value of its own, in a precision that leaves no doubt."""
    model = model.double().eval()
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            nn.init.normal_(tensor, mean=float(name.endswith(('norm.weight', 'running_var'))), std=0.3)
            if name.endswith('running_var'):
                tensor.abs_().add_(0.1)
    return model


def timm_model(grn: bool) -> nn.Module:
    return randomize(
        timm.models.ConvNeXt(depths=DEPTHS, dims=DIMS, use_grn=grn, ls_init_value=None if grn else 1, num_classes=7)
    )


def torchvision_model() -> nn.Module:
    following = [*DIMS[1:], None]
    stages = [CNBlockConfig(dim, after, depth) for dim, after, depth in zip(DIMS, following, DEPTHS, strict=True)]
    return torchvision.models.ConvNeXt(stages, num_classes=NUM_CLASSES)


def zeros(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return weights that take no memory, for a model that has none."""
    return {key: torch.zeros((), device='cpu').expand(value.shape) for key, value in model.state_dict().items()}


def picture() -> torch.Tensor:
    return torch.randn(2, 3, 75, 101, dtype=torch.double)


def hf_config(grn: bool, **options):
    transformers = pytest.importorskip('transformers')
    name = 'ConvNextV2Config' if grn else 'ConvNextConfig'
    # the default of the final norm's epsilon is 1e-12 there
    sizes = dict(depths=list(DEPTHS), hidden_sizes=list(DIMS), num_labels=NUM_CLASSES, layer_norm_eps=1e-6)
    return transformers, getattr(transformers, name)(**sizes, **options)


def load(model: nn.Module, file: Path, **options) -> nn.Module:
    state_dict = read_checkpoint(file)
    model.double().eval().load_state_dict(state_dict, **options)
    return model


def assert_same(one: dict, other: dict) -> None:
    assert set(one) == set(other)
    for key, tensor in one.items():
        assert tensor.dtype == other[key].dtype
        assert torch.equal(tensor, other[key]), key


def compare(actual, expected) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max()))


# The classifier: what timm computes is what the others compute with the converted weights.


@pytest.fixture(params=['.pth', '.safetensors'])
def suffix(request):
    return request.param


@pytest.fixture
def classifier(tmp_path, request):
    """Convert timm's classifier to a target; return timm's model and the file."""

    def make(grn, to, suffix='.safetensors'):
        theirs = timm_model(grn)
        torch.save(theirs.state_dict(), tmp_path / 'timm.pth')
        file = tmp_path / f'out{suffix}'
        return theirs, file, convert(tmp_path / 'timm.pth', file, to)

    return make


@V1_AND_V2
@torch.no_grad()
def test_hugging_face_classifier(classifier, grn, suffix):
    transformers, config = hf_config(grn)
    theirs, file, report = classifier(grn, 'hf', suffix)
    name = f'ConvNext{"V2" if grn else ""}ForImageClassification'
    model = load(getattr(transformers, name)(config), file)
    x = picture()
    compare(model(x).logits, theirs(x))
    assert f'  loads into    transformers {name}\n' in str(report)
    assert report.left_out == {}


@torch.no_grad()
def test_torchvision_classifier(classifier, suffix):
    theirs, file, report = classifier(False, 'torchvision', suffix)
    model = load(torchvision_model(), file)
    x = picture()
    compare(model(x), theirs(x))
    assert report.reshaped == [f'features.{2 * s + 1}.{b}.layer_scale' for s in range(4) for b in range(DEPTHS[s])]


@V1_AND_V2
@torch.no_grad()
def test_facebook_classifier(classifier, grn, suffix):
    """Facebook's own classifier is our backbone, the mean, the final norm and the head."""
    theirs, file, _ = classifier(grn, 'fb', suffix)
    weights = read_checkpoint(file)
    weights = weights if suffix == '.safetensors' else weights.pop('model')
    head = {key: weights.pop(key) for key in ('norm.weight', 'norm.bias', 'head.weight', 'head.bias')}
    ours = ConvNeXt(SMALL, grn=grn, out_norm=False, out_indices=(3,)).double().eval()
    ours.load_state_dict(weights)
    x = picture()
    pooled = nn.functional.layer_norm(
        ours(x)[0].mean((2, 3)), DIMS[-1:], head['norm.weight'], head['norm.bias'], eps=1e-6
    )
    compare(nn.functional.linear(pooled, head['head.weight'], head['head.bias']), theirs(x))


@V1_AND_V2
def test_mmpretrain_classifier(classifier, from_timm, grn):
    """The names and shapes are those of mmpretrain 1.2, whose ConvNeXt has the classifier's norm as ``norm3``."""
    theirs, file, _ = classifier(grn, 'mmpretrain', '.pth')
    expected = {}
    for key, value in from_timm(theirs.state_dict()).items():
        if key.startswith('head.'):
            key = key.replace('head.norm', 'backbone.norm3')
        else:
            key = 'backbone.' + key.replace('dwconv', 'depthwise_conv').replace('pwconv', 'pointwise_conv')
        expected[key] = value.flatten() if '.grn.' in key else value
    content = read_checkpoint(file)
    assert content.keys() == {'meta', 'state_dict'}
    assert_same(content['state_dict'], expected)


@pytest.mark.parametrize('name', ['convnext_atto', 'convnextv2_atto'])
@torch.no_grad()
def test_small_sizes_of_timm_have_convolutions(tmp_path, name):
    theirs = timm.create_model(name, num_classes=NUM_CLASSES).double().eval()
    torch.save(theirs.state_dict(), tmp_path / 'timm.pth')
    convert(tmp_path / 'timm.pth', tmp_path / 'hf.safetensors', 'hf')
    report = convert(tmp_path / 'hf.safetensors', tmp_path / 'back.pth', 'timm')
    assert_same(read_checkpoint(tmp_path / 'back.pth'), theirs.state_dict())
    assert report.reshaped[0].startswith('stages.0.blocks.0.')
    assert f'  loads into    timm {name}\n' in str(report)


# The backbone: its feature maps.


@V1_AND_V2
@torch.no_grad()
def test_hugging_face_backbone(grn, tmp_path):
    transformers, config = hf_config(grn, out_features=['stage1', 'stage2', 'stage3', 'stage4'])
    ours = randomize(ConvNeXt(SMALL, grn=grn))
    torch.save(ours.state_dict(), tmp_path / 'ours.pth')
    report = convert(tmp_path / 'ours.pth', tmp_path / 'hf.safetensors', 'hf')
    name = f'ConvNext{"V2" if grn else ""}Backbone'
    assert report.loads_into == f'transformers {name}'
    model = load(getattr(transformers, name)(config), tmp_path / 'hf.safetensors')
    x = picture()
    for actual, expected in zip(model(x).feature_maps, ours(x), strict=True):
        compare(actual, expected)


@V1_AND_V2
@torch.no_grad()
def test_hugging_face_model_without_head(grn, tmp_path):
    transformers, config = hf_config(grn)
    theirs = timm_model(grn)
    theirs.reset_classifier(0)  # which keeps the final norm
    torch.save(theirs.state_dict(), tmp_path / 'timm.pth')
    report = convert(tmp_path / 'timm.pth', tmp_path / 'hf.safetensors', 'hf')
    name = f'ConvNext{"V2" if grn else ""}Model'
    assert report.loads_into == f'transformers {name}'
    model = load(getattr(transformers, name)(config), tmp_path / 'hf.safetensors')
    x = picture()
    output = model(x)
    compare(output.last_hidden_state, theirs.stages(theirs.stem(x)))
    compare(output.pooler_output, theirs(x))


@torch.no_grad()
def test_backbone_in_classifiers_without_their_heads():
    ours = randomize(ConvNeXt(SMALL, out_norm=False))
    x = picture()
    expected = ours(x)
    theirs = timm.models.ConvNeXt(depths=DEPTHS, dims=DIMS, ls_init_value=1).double().eval()
    lacks = theirs.load_state_dict(translate(ours.state_dict(), 'timm').tensors, strict=False)
    assert lacks.unexpected_keys == []
    assert all(key.startswith('head.') for key in lacks.missing_keys)
    for actual, wanted in zip(theirs.forward_intermediates(x, intermediates_only=True)[-4:], expected, strict=True):
        compare(actual, wanted)
    theirs = torchvision_model().double().eval()
    lacks = theirs.load_state_dict(translate(ours.state_dict(), 'torchvision').tensors, strict=False)
    assert lacks.unexpected_keys == []
    assert all(key.startswith('classifier.') for key in lacks.missing_keys)
    for i, stage in enumerate(theirs.features):
        x = stage(x)
        if i % 2:
            compare(x, expected[i // 2])


def test_output_norms_are_left_out_where_there_is_no_place_for_them():
    norms = [f'norm{i}.{part}' for i in range(4) for part in ('weight', 'bias')]
    backbone = ConvNeXt(SMALL).state_dict()
    for to in ('timm', 'torchvision'):
        result = translate(backbone, to)
        assert result.left_out == {'output norms': norms}
        assert result.loads_into.endswith('with strict=False: it lacks final norm, head')
    for to in ('fb', 'mmpretrain', 'hf'):
        assert translate(backbone, to).left_out == {}
    head = {'norm.weight': torch.ones(32), 'norm.bias': torch.ones(32), 'head.weight': torch.ones(5, 32)}
    assert translate({**backbone, **head}, 'hf').left_out == {'output norms': norms}


@pytest.mark.parametrize('arch', [*VARIANTS, SMALL])
@V1_AND_V2
def test_the_model_of_timm_is_named(arch, grn):
    with torch.device('meta'):
        result = translate(zeros(ConvNeXt(arch, grn=grn, out_norm=False)), 'timm')
        name = result.loads_into.removeprefix('timm ').split(', with strict')[0]
        theirs = eval(f'timm.models.{name}') if '(' in name else timm.create_model(name)
    assert ('(' in name) == (arch is SMALL or (arch, grn) in {('huge', False), ('xlarge', True)})
    shapes = {key: value.shape for key, value in theirs.state_dict().items() if not key.startswith('head.')}
    assert {key: value.shape for key, value in result.tensors.items()} == shapes


def test_stages_that_were_not_built():
    weights = ConvNeXt(SMALL, out_indices=(0, 1), out_norm=False).state_dict()
    loaders = {to: translate(weights, to).loads_into for to in TARGETS}
    stages = 'ConvNeXt whose first 2 stages have depths (1, 1) and dims (8, 16)'
    assert loaders == {
        'fb': 'this package, with out_indices below 2',
        'timm': f'timm {stages}, with strict=False: it lacks stage 2, stage 3, final norm, head',
        'mmpretrain': 'mmpretrain ConvNeXt of 2 stages',
        'hf': 'transformers ConvNextModel of 2 stages, with strict=False: it lacks final norm',
        'torchvision': 'torchvision ConvNeXt of 2 stages, with strict=False: it lacks final norm, head',
    }
    theirs = timm.models.ConvNeXt(depths=DEPTHS, dims=DIMS)
    lacks = theirs.load_state_dict(translate(weights, 'timm').tensors, strict=False)
    assert lacks.unexpected_keys == []
    assert {key.split('.')[0] + key.split('.')[1] for key in lacks.missing_keys} == {
        'stages2', 'stages3', 'headnorm', 'headfc',
    }  # fmt: skip


# Whole models.


def upernet(**options) -> nn.Module:
    """MMSegmentation's UperNet with our backbone."""
    from mmengine.registry import MODELS, init_default_scope

    init_default_scope('mmseg')
    norm = dict(norm_cfg=dict(type='BN'), num_classes=5, align_corners=False)
    return MODELS.build(
        dict(
            type='EncoderDecoder',
            backbone=dict(type='ConvNeXt', arch=SMALL, **options),
            decode_head=dict(
                type='UPerHead', in_channels=list(DIMS), in_index=[0, 1, 2, 3], channels=16, pool_scales=(1, 2, 3, 6),
                **norm,
            ),
            auxiliary_head=dict(
                type='FCNHead', in_channels=DIMS[2], in_index=2, channels=8, num_convs=1, concat_input=False, **norm
            ),
            test_cfg=dict(mode='whole'),
        )
    )  # fmt: skip


@torch.no_grad()
def test_hugging_face_upernet(tmp_path):
    transformers, config = hf_config(False, out_features=['stage1', 'stage2', 'stage3', 'stage4'])
    ours = randomize(upernet())
    torch.save({'meta': {}, 'state_dict': ours.state_dict(), 'optimizer': {}}, tmp_path / 'ours.pth')
    report = convert(tmp_path / 'ours.pth', tmp_path / 'hf.safetensors', 'hf')
    assert report.loads_into == 'transformers UperNetForSemanticSegmentation'
    assert report.left_out == {'training state': ['optimizer']}
    config = transformers.UperNetConfig(
        backbone_config=config, hidden_size=16, auxiliary_in_channels=DIMS[2], auxiliary_channels=8, num_labels=5
    )
    theirs = load(transformers.UperNetForSemanticSegmentation(config), tmp_path / 'hf.safetensors')
    x = picture()
    compare(theirs(x).logits, ours.encode_decode(x, [dict(img_shape=x.shape[2:])] * 2))
    maps = ours.backbone(x)
    compare(theirs.auxiliary_head(maps), ours.auxiliary_head(maps))
    convert(tmp_path / 'hf.safetensors', tmp_path / 'back.pth', 'fb')
    assert_same(read_checkpoint(tmp_path / 'back.pth')['state_dict'], ours.state_dict())
    report = translate(upernet(out_norm=False).state_dict(), 'hf')
    assert report.loads_into == (
        'transformers UperNetForSemanticSegmentation, with strict=False: it lacks output norms, which are computed '
        'there all the same'
    )
    lacks = theirs.load_state_dict(report.tensors, strict=False)
    assert all(key.startswith('backbone.hidden_states_norms.') for key in lacks.missing_keys)
    assert lacks.unexpected_keys == []


class Detector(nn.Module):
    """A detector's names, and weights in two precisions."""

    def __init__(self):
        super().__init__()
        self.backbone = ConvNeXt(SMALL).half()
        self.neck = nn.Conv2d(8, 8, 1)
        self.roi_head = nn.ModuleDict({'bbox_head': nn.Linear(8, 4)})


@pytest.mark.parametrize('to', ['fb', 'mmpretrain'])
def test_whole_detector_there_and_back(tmp_path, to, suffix):
    model = Detector()
    meta = dict(epoch=3, iter=40, dataset_meta=dict(classes=('fig', 'date'), palette=[(1, 2, 3), (4, 5, 6)]))
    torch.save({'meta': meta, 'state_dict': model.state_dict(), 'message_hub': {}}, tmp_path / 'epoch_3.pth')
    report = convert(tmp_path / 'epoch_3.pth', tmp_path / f'there{suffix}', to)
    there = read_checkpoint(tmp_path / f'there{suffix}')
    assert there.keys() == {'meta', 'state_dict'}
    assert there['meta']['dataset_meta']['palette'] == [(1, 2, 3), (4, 5, 6)]
    assert (there['meta']['epoch'], there['meta']['iter']) == (3, 40)
    assert ('backbone.stages.0.0.depthwise_conv.weight' in there['state_dict']) == (to == 'mmpretrain')
    assert report.left_out == {'training state': ['message_hub']}
    convert(tmp_path / f'there{suffix}', tmp_path / 'back.pth', 'fb')
    assert_same(read_checkpoint(tmp_path / 'back.pth')['state_dict'], model.state_dict())
    report = load_weights(Detector(), tmp_path / 'back.pth', need='all')
    assert len(report.loaded) == len(model.state_dict())


@pytest.mark.parametrize('prefix', ['backbone.', ''])
def test_the_final_norm_of_mmpretrain_is_no_output_norm(prefix):
    given = translate(timm_model(False).state_dict(), 'mmpretrain').tensors
    given = {key.replace('backbone.', prefix): value for key, value in given.items()}
    for options in (dict(backbone_only=True), dict(prefix=prefix)):
        result = translate(given, 'fb', **options)
        assert {*result.tensors} == {*ConvNeXt(SMALL, out_norm=False).state_dict()}
        head = ['head.fc.weight', 'head.fc.bias']
        assert sorted(result.left_out['classifier']) == sorted([*head, f'{prefix}norm3.weight', f'{prefix}norm3.bias'])


@pytest.mark.parametrize('out_indices', SUBSETS, ids=str)
@pytest.mark.parametrize('to', ['fb', 'mmpretrain', 'hf'])
def test_output_norms_of_any_stages_come_back(to, out_indices):
    ours = randomize(ConvNeXt(SMALL, out_indices=out_indices)).state_dict()
    assert_same(translate(translate(ours, to).tensors, 'fb').tensors, ours)
    whole = {f'backbone.{key}': value for key, value in ours.items()} | {'neck.weight': torch.ones(2)}
    if to != 'hf':  # which has no detectors
        assert_same(translate(translate(whole, to).tensors, 'fb').tensors, whole)


class BackboneWithHead(nn.Module):
    """A model of the user's whose names are those of a classifier, but for the norm."""

    def __init__(self, **options):
        super().__init__()
        self.backbone = ConvNeXt(SMALL, **options)
        self.head = nn.Linear(32, 5)


@pytest.mark.parametrize('out_norm', [True, False])
@pytest.mark.parametrize('to', ['fb', 'mmpretrain'])
def test_a_head_beside_a_backbone_is_kept(to, out_norm):
    weights = BackboneWithHead(out_norm=out_norm).state_dict()
    there = translate(weights, to)
    assert there.left_out == {}
    back = translate(there.tensors, 'fb')
    assert_same(back.tensors, weights)
    assert back.loads_into == 'a model with the ConvNeXt of this package'
    assert load_weights(BackboneWithHead(out_norm=out_norm), back.tensors, need='all').missing == []
    with pytest.raises(UserError, match=r'is a whole model, with head\.weight, head\.bias; timm has no detectors'):
        translate(weights, 'timm')


@pytest.mark.parametrize(
    ('to', 'grn'), [(to, grn) for to in TARGETS for grn in (False, True) if (to, grn) != ('torchvision', True)]
)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
def test_round_trip_is_bit_equal(to, grn, dtype):
    ours = randomize(ConvNeXt('atto', grn=grn, out_norm=False)).to(dtype).state_dict()
    head = {'norm.weight': torch.randn(320), 'norm.bias': torch.randn(320), 'head.weight': torch.randn(5, 320)}
    ours.update({key: value.to(dtype) for key, value in head.items()}, **{'head.bias': torch.randn(5).to(dtype)})
    there = translate(ours, to).tensors
    assert_same(translate(there, 'fb').tensors, ours)


def test_backbone_alone(tmp_path):
    model = Detector()
    result = translate(model.state_dict(), 'fb', backbone_only=True)
    assert_same(result.tensors, model.backbone.state_dict())
    assert result.left_out == {'other parts': [key for key in model.state_dict() if not key.startswith('backbone.')]}
    assert result.licence.startswith('not told by the file')  # of whoever trained it
    meta = dict(cfg="init_cfg = dict(type='Pretrained', checkpoint='convnext://v2_tiny_1k')")
    result = translate(dict(meta=meta, state_dict=model.state_dict()), 'timm', backbone_only=True)
    assert result.licence == 'trained from convnext://v2_tiny_1k (CC-BY-NC 4.0)'
    own = translate(ConvNeXt(SMALL).state_dict(), 'timm')
    assert own.licence == "if these are facebookresearch's own: MIT"
    two = {f'{name}.{key}': value for name in ('student', 'ema') for key, value in model.state_dict().items()}
    with pytest.raises(UserError, match=r"2 backbones, at 'student\.backbone\.', 'ema\.backbone\.'\. Choose with"):
        translate(two, 'timm', backbone_only=True)
    result = translate(two, 'fb', prefix='ema.backbone')
    assert_same(result.tensors, model.backbone.state_dict())
    both = translate(two, 'mmpretrain').tensors
    assert both.keys() >= {'ema.backbone.stages.0.0.depthwise_conv.bias', 'ema.neck.bias'}


@pytest.mark.parametrize(
    ('to', 'reason'),
    [
        ('timm', 'timm has no detectors and segmentors'),
        ('torchvision', 'torchvision has no detectors and segmentors'),
        ('hf', 'of whole models Hugging Face has UperNet alone'),
    ],
)
def test_whole_model_that_the_target_does_not_have(to, reason):
    checkpoint = Checkpoint({'state_dict': Detector().state_dict()}, 'x.pth')
    with pytest.raises(UserError, match=rf'x\.pth is a whole model, with neck\.weight.*; {reason}\. .*--backbone-only'):
        translate(checkpoint, to)
    assert not translate(checkpoint, to, backbone_only=True).is_whole


def test_v2_for_torchvision_is_refused():
    with pytest.raises(
        UserError, match='torchvision has no ConvNeXt V2, and .* is ConvNeXt V2 atto. Convert it to fb, timm, '
    ):
        translate(ConvNeXt('atto', grn=True).state_dict(), 'torchvision')


def test_another_epsilon_is_refused():
    with torch.device('meta'):
        weights = zeros(timm.create_model('convnext_xxlarge'))
    with pytest.raises(UserError, match=r'LayerNorm has epsilon 1e-05, where all targets have 1e-06\. It is not conv'):
        translate(weights, 'fb')


def test_incomplete_backbone_is_refused():
    weights = ConvNeXt(SMALL).state_dict()
    del weights['stages.2.1.dwconv.weight']
    with pytest.raises(UserError, match=r'is not complete: .* lacks stages\.2\.1\.dwconv\.weight\. Give the whole'):
        translate(weights, 'timm')


def test_head_with_a_hidden_layer_is_left_out(tmp_path):
    theirs = timm.models.ConvNeXt(depths=DEPTHS, dims=DIMS, head_hidden_size=40, num_classes=NUM_CLASSES)
    result = translate(theirs.state_dict(), 'torchvision')
    assert not any(key.startswith('classifier.2') for key in result.tensors)
    assert 'classifier.0.weight' in result.tensors
    assert result.left_out['head that is not one layer after a norm'] == ['head.fc.weight', 'head.fc.bias']


def test_views_are_written_without_what_they_are_views_of(tmp_path, suffix):
    large = torch.randn(100_000, 40)
    weights = ConvNeXt('atto', out_norm=False).state_dict()
    weights['downsample_layers.0.1.weight'] = large[3]
    weights['downsample_layers.0.1.bias'] = large[3]
    weights['stages.0.0.pwconv1.weight'] = weights['stages.0.0.pwconv1.weight'].T.contiguous().T
    torch.save(weights, tmp_path / 'in.pth')
    convert(tmp_path / 'in.pth', tmp_path / f'out{suffix}', 'fb')
    file = read_checkpoint(tmp_path / f'out{suffix}')
    assert_same(file if suffix == '.safetensors' else file['model'], weights)
    assert (
        (tmp_path / f'out{suffix}').stat().st_size < 1.1 * sum(each.nbytes for each in weights.values()) < large.nbytes
    )


# Files.


@pytest.fixture
def atto(tmp_path):
    torch.save(ConvNeXt('atto').state_dict(), tmp_path / 'atto.pth')
    return tmp_path / 'atto.pth'


def test_the_source_is_never_overwritten(atto):
    before = atto.read_bytes()
    atto.with_name('link.pth').symlink_to(atto)
    for out in (atto, atto.with_name('link.pth')):
        with pytest.raises(UserError, match='is the file that is read; it is not overwritten. Give another name'):
            convert(atto, out, 'timm', force=True)
    assert atto.read_bytes() == before


def test_an_existing_file_needs_force(atto, tmp_path):
    (tmp_path / 'out.pth').write_text('precious')
    with pytest.raises(UserError, match=r'out\.pth exists\. Give another name, or replace it with --force'):
        convert(atto, tmp_path / 'out.pth', 'timm')
    assert (tmp_path / 'out.pth').read_text() == 'precious'
    convert(atto, tmp_path / 'out.pth', 'timm', force=True)
    assert 'stem.0.weight' in read_checkpoint(tmp_path / 'out.pth')


def test_outputs_that_cannot_be(atto, tmp_path):
    with pytest.raises(UserError, match=r'A file to write ends in \.safetensors or \.pth; got .*out\.onnx'):
        convert(atto, tmp_path / 'out.onnx', 'timm')
    with pytest.raises(UserError, match=r'Checkpoints are converted to fb, timm, mmpretrain, hf, torchvision; got'):
        convert(atto, tmp_path / 'out.pth', 'onnx')
    with pytest.raises(UserError, match=r'cannot be written \(.*\)\. Give another place'):
        convert(atto, atto / 'out.pth', 'timm')
    assert [file.name for file in tmp_path.iterdir()] == ['atto.pth']


def run_tool(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, 'tools/convert_checkpoint.py', *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


class NotPlain:
    """A type that no checkpoint needs."""


def test_tool(atto, tmp_path):
    content = OrderedDict(model=read_checkpoint(atto), args=NotPlain())
    torch.save(content, tmp_path / 'with_args.pth')
    refused = run_tool(tmp_path / 'with_args.pth', tmp_path / 'out.safetensors', '--to', 'hf')
    assert refused.returncode == 2
    assert refused.stdout == ''
    assert 'NotPlain, and a file that may name such types can run any code' in refused.stderr
    assert '--trust-checkpoint' in refused.stderr
    assert not (tmp_path / 'out.safetensors').exists()
