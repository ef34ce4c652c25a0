"""Converted checkpoints load into the real models of other libraries, compute the same, and come back bit-equal.

The same weights give the same bytes of a file, which is whole or not there.
"""

import hashlib
import itertools
import resource
from collections import OrderedDict
from functools import partial

import pytest
import timm.models
import torch
from small_models import (
    SMALL,
    V1_AND_V2,
    Detector,
    assert_close,
    assert_holds,
    hf_model,
    hf_upernet,
    mmpretrain_names,
    mmseg_upernet,
    picture,
    randomize,
    timm_model,
    torchvision_model,
    weightless,
    with_head,
)
from torch import nn

from convnext_dense import ConvNeXt, UserError
from convnext_dense.compat import read_checkpoint
from convnext_dense.compat.files import write_text
from convnext_dense.variants import VARIANTS
from convnext_dense.weights import Checkpoint, load_weights
from convnext_dense.weights.convert import convert, translate
from convnext_dense.weights.write import write_weights

SUFFIXES = pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
SUBSETS = [each for number in range(1, 5) for each in itertools.combinations(range(4), number)]


def assert_same(one, other):
    assert set(one) == set(other)
    for key, tensor in one.items():
        assert tensor.dtype == other[key].dtype
        assert torch.equal(tensor, other[key]), key


def written(model, folder, to, suffix='.safetensors'):
    """Convert a model's weights through files, as a user does; return what the file holds."""
    torch.save(model.state_dict(), folder / 'source.pth')
    report = convert(folder / 'source.pth', folder / f'out{suffix}', to)
    assert report.left_out == {}
    return read_checkpoint(folder / f'out{suffix}')


# The classifier: what timm computes is what the others compute with the converted weights.


@SUFFIXES
@pytest.mark.parametrize(
    ('to', 'build', 'grn'),
    [
        ('hf', lambda: hf_model('ConvNextForImageClassification'), False),
        ('hf', lambda: hf_model('ConvNextV2ForImageClassification'), True),
        ('torchvision', torchvision_model, False),
    ],
    ids=['hf V1', 'hf V2', 'torchvision'],
)
@torch.no_grad()
def test_classifier(to, build, grn, suffix, tmp_path):
    theirs, model, image = timm_model(grn), build(), picture()
    model.load_state_dict(written(theirs, tmp_path, to, suffix))
    logits = model(image)
    assert_close(getattr(logits, 'logits', logits), theirs(image))


@V1_AND_V2
@torch.no_grad()
def test_facebook_classifier(grn, tmp_path):
    """Facebook's own classifier is our backbone, the mean, the final norm and the head."""
    theirs, image = timm_model(grn), picture()
    weights = written(theirs, tmp_path, 'fb', '.pth')['model']
    head = {key: weights.pop(key) for key in ('norm.weight', 'norm.bias', 'head.weight', 'head.bias')}
    ours = ConvNeXt(SMALL, grn=grn, out_norm=False, out_indices=(3,)).eval()
    ours.load_state_dict(weights)
    norm = nn.functional.layer_norm(ours(image)[0].mean((2, 3)), (32,), head['norm.weight'], head['norm.bias'], 1e-6)
    assert_close(nn.functional.linear(norm, head['head.weight'], head['head.bias']), theirs(image))


@V1_AND_V2
def test_mmpretrain_classifier(from_timm, grn, tmp_path):
    """The names and shapes are those of mmpretrain 1.2, whose ConvNeXt has the classifier's norm as ``norm3``."""
    theirs, expected = timm_model(grn), {}
    for key, value in mmpretrain_names(from_timm(theirs.state_dict())).items():
        expected[key.replace('head.norm', 'norm3').replace('backbone.head', 'head')] = value
    content = written(theirs, tmp_path, 'mmpretrain', '.pth')
    assert content.keys() == {'meta', 'state_dict'}
    assert_same(content['state_dict'], expected)


@pytest.mark.parametrize(
    ('arch', 'grn'),
    [
        (arch, grn)
        for arch in VARIANTS
        for grn in (False, True)
        if (arch, grn) not in {('huge', False), ('xlarge', True)}
    ],
)
def test_timm_gets_the_shapes_of_its_models(arch, grn):
    with torch.device('meta'):
        result = translate(weightless(ConvNeXt(arch, grn=grn, out_norm=False)), 'timm')
        theirs = timm.create_model(f'convnext{"v2" * grn}_{arch}').state_dict()
    shapes = {key: value.shape for key, value in theirs.items() if not key.startswith('head.')}
    assert {key: value.shape for key, value in result.tensors.items()} == shapes


# The backbone


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ('to', 'build'),
    [
        *(('timm', partial(timm.create_model, name, num_classes=7)) for name in ('convnext_atto', 'convnextv2_atto')),
        *(('timm', partial(timm_model, grn)) for grn in (False, True)),
        ('torchvision', torchvision_model),
        *(('hf', partial(hf_model, f'ConvNext{kind}')) for kind in ('Backbone', 'Model', 'ForImageClassification')),
        *(('hf', partial(hf_model, f'ConvNextV2{kind}')) for kind in ('Backbone', 'Model', 'ForImageClassification')),
        *(('mmpretrain', partial(ConvNeXt, SMALL, grn, out_norm=norm)) for grn in (False, True) for norm in (0, 1)),
    ],
)
def test_what_a_library_has_comes_back_bit_by_bit(to, build, dtype):
    theirs = randomize(build()).to(dtype).state_dict()
    if to == 'mmpretrain':
        theirs = mmpretrain_names(theirs)
        if 'backbone.norm3.weight' not in theirs:  # a classifier's has this name too
            theirs = with_head(theirs, norm='backbone.norm3', head='head.fc')
    ours = translate(theirs, 'fb')
    assert ours.left_out == {}
    assert_same(translate(ours.tensors, to).tensors, theirs)


def test_output_norms_are_left_out_where_there_is_no_place_for_them():
    norms = [f'norm{i}.{part}' for i in range(4) for part in ('weight', 'bias')]
    backbone = ConvNeXt(SMALL).state_dict()
    for to in ('timm', 'torchvision'):
        assert translate(backbone, to).left_out == {'output norms': norms}
    assert translate(with_head(backbone), 'hf').left_out == {'output norms': norms}


@pytest.mark.parametrize('out_indices', SUBSETS, ids=str)
@pytest.mark.parametrize('to', ['fb', 'mmpretrain', 'hf'])
def test_output_norms_of_any_stages_come_back(to, out_indices):
    ours = randomize(ConvNeXt(SMALL, out_indices=out_indices)).state_dict()
    there = translate(ours, to)
    assert there.left_out == {}
    assert_same(translate(there.tensors, 'fb').tensors, ours)
    model = ConvNeXt(SMALL, out_indices=out_indices)
    assert load_weights(model, there.tensors).from_scratch == []
    assert_holds(model, ours)
    whole = {f'backbone.{key}': value for key, value in ours.items()} | {'neck.weight': torch.ones(2)}
    if to != 'hf':  # which has no detectors
        assert_same(translate(translate(whole, to).tensors, 'fb').tensors, whole)


def test_stages_that_were_not_built():
    weights = ConvNeXt(SMALL, out_indices=(0, 1), out_norm=False).state_dict()
    lacks = timm_model().load_state_dict(translate(weights, 'timm').tensors, strict=False)
    assert lacks.unexpected_keys == []
    assert {key[:8] for key in lacks.missing_keys} == {'stages.2', 'stages.3', 'head.nor', 'head.fc.'}


# Whole models.


@pytest.mark.parametrize(('grn', 'suffix'), [(False, '.safetensors'), (True, '.pth')])
@torch.no_grad()
def test_hugging_face_upernet(grn, suffix, tmp_path):
    theirs, ours, image = hf_upernet(grn), mmseg_upernet(grn=grn), picture()
    report = load_weights(ours, theirs.state_dict(), need='all')
    assert (report.missing, report.unexpected, report.from_scratch, report.left_out) == ([], [], [], {})
    assert_close(ours.encode_decode(image, [dict(img_shape=image.shape[2:])]), theirs(image).logits)
    maps = ours.extract_feat(image)
    assert_close(ours.auxiliary_head(maps), theirs.auxiliary_head(maps))
    torch.save({'meta': {}, 'state_dict': ours.state_dict(), 'optimizer': {}}, tmp_path / 'ours.pth')
    file = tmp_path / f'hf{suffix}'
    report = convert(tmp_path / 'ours.pth', file, 'hf')
    assert report.left_out == {'training state': ['optimizer']}
    back = read_checkpoint(file)
    theirs.load_state_dict(back)
    assert_holds(theirs, back)
    convert(file, tmp_path / 'back.pth', 'fb')
    assert_same(read_checkpoint(tmp_path / 'back.pth')['state_dict'], ours.state_dict())


@SUFFIXES
@pytest.mark.parametrize('to', ['fb', 'mmpretrain'])
def test_whole_detector_there_and_back(to, suffix, tmp_path):
    model = randomize(Detector())
    model.backbone.half()
    meta = dict(epoch=3, iter=40, dataset_meta=dict(classes=('fig', 'date'), palette=[(1, 2, 3), (4, 5, 6)]))
    torch.save({'meta': meta, 'state_dict': model.state_dict(), 'message_hub': {}}, tmp_path / 'epoch_3.pth')
    report = convert(tmp_path / 'epoch_3.pth', tmp_path / f'there{suffix}', to)
    assert report.left_out == {'training state': ['message_hub']}
    there = read_checkpoint(tmp_path / f'there{suffix}')
    assert there.keys() == {'meta', 'state_dict'}
    assert there['meta']['dataset_meta']['palette'] == [(1, 2, 3), (4, 5, 6)]
    assert (there['meta']['epoch'], there['meta']['iter']) == (3, 40)
    assert ('backbone.stages.0.0.depthwise_conv.weight' in there['state_dict']) == (to == 'mmpretrain')
    convert(tmp_path / f'there{suffix}', tmp_path / 'back.pth', 'fb')
    assert_same(read_checkpoint(tmp_path / 'back.pth')['state_dict'], model.state_dict())
    assert len(load_weights(Detector(), tmp_path / 'back.pth', need='all').loaded) == len(model.state_dict())


@pytest.mark.parametrize('prefix', ['backbone.', ''])
def test_the_final_norm_of_mmpretrain_is_no_output_norm(prefix):
    given = translate(timm_model().state_dict(), 'mmpretrain').tensors
    given = {key.replace('backbone.', prefix): value for key, value in given.items()}
    for options in (dict(backbone_only=True), dict(prefix=prefix)):
        result = translate(given, 'fb', **options)
        assert {*result.tensors} == {*ConvNeXt(SMALL, out_norm=False).state_dict()}
        head = ['head.fc.weight', 'head.fc.bias']
        assert sorted(result.left_out['classifier']) == sorted([*head, f'{prefix}norm3.weight', f'{prefix}norm3.bias'])


@pytest.mark.parametrize('out_norm', [True, False])
@pytest.mark.parametrize('to', ['fb', 'mmpretrain'])
def test_a_head_beside_a_backbone_is_kept(to, out_norm):
    # a model of the user's whose names are those of a classifier, but for the norm
    model = nn.ModuleDict(dict(backbone=ConvNeXt(SMALL, out_norm=out_norm), head=nn.Linear(32, 5)))
    weights = model.state_dict()
    there = translate(weights, to)
    assert there.left_out == {}
    assert_same(translate(there.tensors, 'fb').tensors, weights)
    assert load_weights(model, there.tensors, need='all').missing == []
    with pytest.raises(UserError, match=r'is a whole model, with head\.weight, head\.bias; timm has no detectors'):
        translate(weights, 'timm')


def test_backbone_alone():
    model = Detector()
    result = translate(model.state_dict(), 'fb', backbone_only=True)
    assert_same(result.tensors, model.backbone.state_dict())
    assert result.left_out == {'other parts': [key for key in model.state_dict() if not key.startswith('backbone.')]}
    assert result.licence == ''  # of whoever trained it
    assert translate(ConvNeXt(SMALL).state_dict(), 'timm').licence == "if these are facebookresearch's own: MIT"
    two = {f'{name}.{key}': value for name in ('student', 'ema') for key, value in model.state_dict().items()}
    with pytest.raises(UserError, match=r"2 backbones, at 'student\.backbone\.', 'ema\.backbone\.'\. Choose with"):
        translate(two, 'timm', backbone_only=True)
    assert_same(translate(two, 'fb', prefix='ema.backbone').tensors, model.backbone.state_dict())
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
    with pytest.raises(UserError, match=rf'x\.pth is a whole model, with neck\.weight.*{reason}.*--backbone-only'):
        translate(checkpoint, to)
    assert not translate(checkpoint, to, backbone_only=True).is_whole


def incomplete():
    weights = ConvNeXt(SMALL).state_dict()
    del weights['stages.2.1.dwconv.weight']
    return weights


def larger_than_ours():
    with torch.device('meta'):
        return weightless(timm.create_model('convnext_xxlarge'))


@pytest.mark.parametrize(
    ('weights', 'to', 'words'),
    [
        (ConvNeXt('atto', grn=True).state_dict, 'torchvision', r'no ConvNeXt V2, .* ConvNeXt V2 atto|fb, timm'),
        (larger_than_ours, 'fb', r'LayerNorm has epsilon 1e-05.* It is not converted'),
        (
            lambda: ConvNeXt(SMALL).state_dict() | {'adapter.weight': torch.ones(1)},
            'timm',
            r'holds 1 weights that no model of .* has: adapter\.weight\. .*--backbone-only',
        ),
        (incomplete, 'timm', r'is not complete: .* lacks stages\.2\.1\.dwconv\.weight\.'),
        (ConvNeXt(SMALL).state_dict, 'onnx', r"to fb, timm, mmpretrain, hf, torchvision; got 'onnx'"),
    ],
)
def test_what_is_not_converted(weights, to, words):
    with pytest.raises(UserError, match=words):
        translate(weights(), to)


def test_head_with_a_hidden_layer_is_left_out():
    result = translate(timm_model(head_hidden_size=40).state_dict(), 'torchvision')
    assert 'classifier.0.weight' in result.tensors
    assert not any(key.startswith('classifier.2') for key in result.tensors)
    assert result.left_out['head that is not one layer after a norm'] == ['head.fc.weight', 'head.fc.bias']


# Files.


def test_files_that_are_not_overwritten_or_cannot_be_written(tmp_path):
    source, other, link = (tmp_path / name for name in ('source.pth', 'other.pth', 'link.pth'))
    torch.save(ConvNeXt(SMALL).state_dict(), source)
    before = source.read_bytes()
    other.write_text('precious')
    link.symlink_to(source)
    for out, force, words in (
        (source, True, 'is the file that is read'),
        (link, True, 'is the file that is read'),
        (other, False, r'other\.pth exists\. .*--force'),
        (tmp_path / 'out.onnx', False, r'ends in \.safetensors or \.pth; got .*out\.onnx'),
        (source / 'out.pth', False, r'cannot be written \(.*\)\. Give another place'),
    ):
        with pytest.raises(UserError, match=words):
            convert(source, out, 'timm', force=force)
    assert (source.read_bytes(), other.read_text()) == (before, 'precious')
    assert len([*tmp_path.iterdir()]) == 3
    convert(source, other, 'timm', force=True)
    assert 'stem.0.weight' in read_checkpoint(other)


def odd_weights():
    large = torch.randn(100_000, 40)
    return OrderedDict(
        kernel=torch.randn(4, 3, 2, 2).permute(1, 0, 3, 2),  # not contiguous
        view=large[3],
        same_view=large[3],
        scalar=torch.tensor(7),
        empty=torch.ones(0, 5),
        mask=torch.tensor([True, False, True]),
        half=torch.randn(5).half(),
        brain=torch.randn(5).bfloat16(),
        byte=torch.randn(5).to(torch.float8_e4m3fn),
    )


@SUFFIXES
def test_what_is_written_comes_back_and_gives_the_same_bytes(suffix, tmp_path):
    tensors, file = odd_weights(), tmp_path / f'a.b{suffix}'
    digest = write_weights(tensors, file, 'state_dict', {'epoch': 3})
    assert digest == hashlib.sha256(file.read_bytes()).hexdigest()
    assert file.stat().st_size < 10_000  # without what the views are views of
    assert list(tmp_path.iterdir()) == [file]
    assert write_weights(tensors, tmp_path / f'c{suffix}', 'state_dict', {'epoch': 3}) == digest
    content = read_checkpoint(file)
    assert content['meta'] == {'epoch': 3}
    assert content['state_dict'].keys() == tensors.keys()
    for key, value in content['state_dict'].items():
        assert value.dtype == tensors[key].dtype
        assert torch.equal(value.float(), tensors[key].float())


def test_a_type_that_safetensors_lacks(tmp_path):
    with pytest.raises(UserError, match=r'complex128\. Give it the suffix \.pth'):
        write_weights({'odd': torch.ones(2, dtype=torch.complex128)}, tmp_path / 'file.safetensors')
    assert list(tmp_path.iterdir()) == []


@SUFFIXES
@pytest.mark.parametrize('room', [10, 1000, 400_300, 401_000])
def test_a_full_disk(tmp_path, suffix, room):
    file = tmp_path / f'file{suffix}'
    file.write_text('precious')
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        with pytest.raises(UserError, match=r'cannot be written \(.*File too large'):
            write_weights({'weight': torch.randn(1000, 100), 'bias': torch.randn(1000)}, file)
        with pytest.raises(UserError, match=r'cannot be written \(File too large'):
            write_text('x' * 500_000, file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert file.read_text() == 'precious'
    assert list(tmp_path.iterdir()) == [file]
