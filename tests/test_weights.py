"""Foreign checkpoints: what loads, what is reported, and what is refused with which words."""

import pytest
import timm
import torch
from torch import nn

from convnext_dense import ConvNeXt, UserError
from convnext_dense.weights import Checkpoint, fit, load_weights
from convnext_dense.weights.formats import TARGETS, TORCHVISION

SMALL = dict(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32))


def save(state_dict, tmp_path, name='weights.pth'):
    torch.save(state_dict, tmp_path / name)
    return str(tmp_path / name)


def randomize(model):
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model


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
    assert f'  loaded        {len(report.loaded)} weights\n' in str(report)
    assert '  format        facebookresearch ConvNeXt, a ConvNeXt with depths (1, 1, 2, 1)' in str(report)
    assert '  licence       MIT' in str(report)
    assert len(str(report).splitlines()) <= 12


@pytest.mark.parametrize(('name', 'grn'), [('convnext_atto', False), ('convnextv2_atto', True)])
@pytest.mark.parametrize('features_only', [False, True])
def test_timm_model(tmp_path, name, grn, features_only):
    theirs = randomize(timm.create_model(name, features_only=features_only))
    file = save(theirs.state_dict(), tmp_path)
    ours = ConvNeXt('atto', grn=grn, out_norm=False, init_cfg=dict(type='Pretrained', checkpoint=file)).eval()
    ours.init_weights()
    x = torch.randn(1, 3, 70, 90)
    theirs = theirs.eval()
    with torch.no_grad():
        expected = theirs(x) if features_only else theirs.forward_intermediates(x, intermediates_only=True)[-4:]
        for a, b in zip(ours(x), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(b.std()))


def test_backbone_of_a_detector(tmp_path):
    source = randomize(ConvNeXt(SMALL))
    state_dict = {f'backbone.{key}': value for key, value in source.state_dict().items()}
    file = save({'state_dict': {**state_dict, 'neck.conv.weight': torch.ones(1)}}, tmp_path)
    model = ConvNeXt(SMALL)
    report = load_weights(model, file)
    assert report.from_scratch == []
    for key, value in source.state_dict().items():
        assert torch.equal(model.state_dict()[key], value)
    other = ConvNeXt(SMALL)
    load_weights(other, file, prefix='backbone.')
    assert torch.equal(other.norm0.weight, source.norm0.weight)


def test_stages_that_were_not_built_are_left_out(tmp_path):
    file = save(ConvNeXt(SMALL).state_dict(), tmp_path)
    report = load_weights(ConvNeXt(SMALL, out_indices=(0, 1)), file)
    assert all(key.split('.')[1] in '23' for key in report.left_out['stages that are not built'])


@pytest.mark.parametrize('fmt', TARGETS.values(), ids=lambda fmt: fmt.name)
@pytest.mark.parametrize('grn', [False, True])
def test_names_and_tensors_survive_a_round_trip(fmt, grn):
    if grn and fmt is TORCHVISION:
        pytest.skip('torchvision has no ConvNeXt V2')
    for key, tensor in randomize(ConvNeXt('atto', grn=grn, out_norm=False)).state_dict().items():
        theirs = fmt.write(key, tensor, arch='atto')
        assert theirs is not None
        ours = fmt.read(*theirs)
        assert ours[0] == key
        assert torch.equal(ours[1], tensor)


def test_wrong_size_is_refused_by_name(tmp_path):
    file = save({'model': ConvNeXt('femto').state_dict()}, tmp_path)
    with pytest.raises(
        UserError, match=r'does not fit the backbone. It is ConvNeXt femto, the model is ConvNeXt atto.'
    ):
        load_weights(ConvNeXt('atto'), file)


def test_wrong_version_is_refused_by_name(tmp_path):
    file = save(ConvNeXt('atto', grn=True).state_dict(), tmp_path)
    with pytest.raises(UserError, match=r'It is ConvNeXt V2 atto, the model is ConvNeXt atto\. Missing from the file'):
        load_weights(ConvNeXt('atto'), file)


def test_incomplete_file_is_refused(tmp_path):
    state_dict = ConvNeXt(SMALL).state_dict()
    del state_dict['stages.2.0.dwconv.weight']
    with pytest.raises(UserError, match=r'Missing from the file \(1\): stages\.2\.0\.dwconv\.weight\.'):
        load_weights(ConvNeXt(SMALL), save(state_dict, tmp_path))


def test_refused_weights_leave_the_model_as_it_was(tmp_path):
    model = ConvNeXt('atto')
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(UserError):
        load_weights(model, save(ConvNeXt('femto').state_dict(), tmp_path))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_other_model_is_refused(tmp_path):
    file = save(nn.Linear(2, 2).state_dict(), tmp_path)
    with pytest.raises(UserError, match='holds no ConvNeXt in a known format; its first keys are weight, bias'):
        load_weights(ConvNeXt(SMALL), file)


def test_url_that_cannot_be_reached(monkeypatch):
    from urllib.error import URLError

    def fail(*args, **kwargs):
        raise URLError('no route')

    monkeypatch.setattr('mmengine.runner.checkpoint.load_url', fail)
    with pytest.raises(UserError, match=r'cannot be fetched \(no route\).*init_cfg\.checkpoint=FILE'):
        load_weights(ConvNeXt(SMALL), 'https://example.invalid/weights.pth')


class Detector(nn.Module):
    def __init__(self, arch='atto', num_classes=3):
        super().__init__()
        self.backbone = ConvNeXt(arch)
        self.head = nn.Linear(4, num_classes)


def test_a_whole_model_fits_its_own_weights():
    own = Detector().state_dict()
    tensors, report = fit(Detector(), own, need='all')
    assert tensors.keys() == own.keys()
    assert (report.missing, report.unexpected, report.from_scratch, report.left_out) == ([], [], [], {})
    tensors, _ = fit(Detector(), {f'module.{key}': value for key, value in own.items()}, need='all')
    assert tensors.keys() == own.keys()


def test_heads_for_other_classes_start_from_scratch():
    _, report = fit(Detector(), Detector(num_classes=9).state_dict())
    assert report.from_scratch == ['head.weight', 'head.bias']
    assert report.left_out == {'of another shape': ['head.weight', 'head.bias']}
    with pytest.raises(
        UserError, match=r'the model\. Of another shape \(2\): head\.weight, head\.bias; head\.weight is \(9, 4\)'
    ):
        fit(Detector(), Detector(num_classes=9).state_dict(), need='all')


def test_the_architectures_are_named():
    checkpoint = Checkpoint(Detector('femto').state_dict(), 'x.pth')
    with pytest.raises(
        UserError, match=r'x\.pth does not fit the model\. It is ConvNeXt femto, the model is ConvNeXt atto'
    ):
        fit(Detector(), checkpoint, need='all')


def test_a_bare_backbone_goes_into_a_detector():
    weights = randomize(ConvNeXt('atto', out_norm=False)).state_dict()
    detector = Detector()
    report = load_weights(detector, weights)
    assert all(torch.equal(value, detector.state_dict()[f'backbone.{key}']) for key, value in weights.items())
    assert report.from_scratch[-2:] == ['head.weight', 'head.bias']
    with pytest.raises(UserError, match=r'Missing from the file \(10\): backbone\.norm0\.weight'):
        load_weights(detector, weights, need='all')
