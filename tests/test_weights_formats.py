"""Foreign formats are read: the models of other libraries as these save them, and layouts written here key by key."""

import itertools
import re

import pytest
import timm
import torch
from small_models import (
    DIMS,
    SMALL,
    Detector,
    assert_close,
    assert_holds,
    hf_model,
    maps_of,
    mmpretrain_names,
    picture,
    randomize,
    timm_model,
    torchvision_model,
    weightless,
    with_head,
)
from timm.models._hub import save_for_hf

from convnext_dense import ConvNeXt, UserError
from convnext_dense.weights import fit, inspect, load, load_weights
from convnext_dense.weights.identify import find_backbones, what_differs


def assert_loads(file, theirs, arch=SMALL, grn=False, out_norm=False):
    """Load the file as a user would and compare the maps; return the report."""
    init_cfg = dict(type='Pretrained', checkpoint=str(file))
    ours, image = ConvNeXt(arch, grn=grn, out_norm=out_norm, init_cfg=init_cfg), picture()
    ours.init_weights()
    assert_close(maps_of(ours.eval(), image), maps_of(theirs, image))
    report = load_weights(ConvNeXt(arch, grn=grn, out_norm=out_norm), file)
    assert (report.missing, report.unexpected, report.from_scratch) == ([], [], [])
    assert len(report.loaded) == len(ours.state_dict())
    return report


# The models of other libraries


@pytest.mark.parametrize(
    ('name', 'arch'),
    [
        ('convnext_atto', 'atto'),  # pointwise layers as 1x1 convolutions
        ('convnextv2_atto', 'atto'),
        ('convnext_tiny', SMALL),  # linear pointwise layers
        ('convnext_tiny_hnf', SMALL),  # a final norm before the pooling
    ],
)
@pytest.mark.parametrize('suffix', ['.safetensors', '.bin'])
def test_timm(name, arch, suffix, tmp_path):
    theirs = randomize(timm.create_model(name, num_classes=7, **(arch if arch is SMALL else {})))
    save_for_hf(theirs, tmp_path, safe_serialization='both')
    (file,) = tmp_path.glob(f'*{suffix}')
    report = assert_loads(file, theirs, arch, grn='v2' in name)
    left_out = {key.rpartition('.')[0] for keys in report.left_out.values() for key in keys}
    assert left_out == {'norm_pre' if 'hnf' in name else 'head.norm', 'head.fc'}
    assert report.format == 'timm'
    assert report.licence.startswith("if these are timm's own: the model card's")


@pytest.mark.parametrize('name', ['convnext_atto', 'convnextv2_atto'])
def test_timm_features_only(name, tmp_path):
    theirs = randomize(timm.create_model(name, features_only=True))
    torch.save(theirs.state_dict(), tmp_path / 'features.pth')
    assert_loads(tmp_path / 'features.pth', theirs, 'atto', grn='v2' in name)


def test_the_tower_of_a_clip_model(tmp_path):
    theirs = timm_model(num_classes=0)
    other_parts = ['visual.head.proj.weight', 'text.token_embedding.weight', 'logit_scale']
    clip = {f'visual.trunk.{key}': value for key, value in theirs.state_dict().items()}
    torch.save(clip | dict.fromkeys(other_parts, torch.ones(4, 3)), tmp_path / 'clip.bin')
    report = assert_loads(tmp_path / 'clip.bin', theirs)
    assert report.left_out['other parts'] == other_parts


def test_torchvision(tmp_path):
    theirs = torchvision_model()
    torch.save(theirs.state_dict(), tmp_path / 'convnext.pth')
    report = assert_loads(tmp_path / 'convnext.pth', theirs)
    assert report.left_out == {'classifier': [f'classifier.{i}.{part}' for i in (0, 2) for part in ('weight', 'bias')]}
    assert len(report.reshaped) == sum(SMALL['depths'])  # layer scale, (C, 1, 1)
    assert report.licence == "if these are torchvision's own: BSD-3-Clause"


@pytest.mark.parametrize(
    'name',
    [
        *map(''.join, itertools.product(('ConvNext', 'ConvNextV2'), ('Model', 'ForImageClassification', 'Backbone'))),
        'DINOv3ConvNextModel',
        'DINOv3ConvNextBackbone',
    ],
)
def test_hugging_face(name, tmp_path):
    theirs = hf_model(name)
    theirs.save_pretrained(tmp_path)
    has_norms = any('hidden_states_norms' in key for key in theirs.state_dict())
    report = assert_loads(tmp_path / 'model.safetensors', theirs, grn='V2' in name, out_norm=has_norms)
    assert report.format == f'Hugging Face {"DINOv3 " * ("DINO" in name)}ConvNeXt'
    assert 'DINO' not in name or report.licence == "if these are DINOv3's own: DINOv3 License"


# Every ConvNeXt of timm's, at no cost: as large as it says, with storage for one number


REFUSED = {  # part of a name -> why
    '_ols': 'overlapping stem',
    '_rms': 'RMSNorm',
    'xxlarge': 'ConvNeXt xxlarge .* epsilon 1e-05, where ours has 1e-06',
    'test_': 'GELU is approximated by tanh',
}


@pytest.mark.parametrize('name', timm.list_models('*convnext*'))
def test_every_convnext_of_timm_fits_or_is_refused_and_told_by_the_inspector(name, monkeypatch):
    # check no numbers: there are as many as the sizes say
    monkeypatch.setattr(inspect, 'is_finite', lambda *_: True)
    monkeypatch.setattr(load, 'is_finite', lambda *_: True)
    with torch.device('meta'):
        given = weightless(timm.create_model(name))
    if reason := next((why for part, why in REFUSED.items() if part in name), None):
        with pytest.raises(UserError, match=reason) as caught:
            fit(ConvNeXt('atto'), given)
        assert inspect.inspect(given)['backbones'][0]['differs'] in str(caught.value)
        return
    with torch.device('meta'):
        ours = ConvNeXt(re.sub('convnext(v2)?_|_hnf|_mlp', '', name), 'v2' in name)
    _, report = fit(ours, given)
    assert (report.missing, report.unexpected) == ([], [])
    assert all(key.startswith(('head.', 'norm_pre.')) for keys in report.left_out.values() for key in keys)


def test_xxlarge_loads_where_the_epsilon_is_its_own():
    theirs, image = timm_model(norm_eps=1e-5), picture()
    ours = ConvNeXt(SMALL, norm_eps=1e-5, out_norm=False).eval()
    load_weights(ours, theirs.state_dict())
    assert_close(maps_of(ours, image), maps_of(theirs, image))
    with torch.device('meta'):
        given = weightless(timm.create_model('convnext_xxlarge'))
    assert what_differs(*find_backbones(given), norm_eps=1e-5) == ''


# Layouts of files without a library at hand


@pytest.fixture(params=[False, True], ids=['V1', 'V2'])
def source(request):
    return randomize(ConvNeXt(SMALL, grn=request.param, out_norm=False))


def assert_loads_bits(given, source):
    """Load into a backbone like ``source`` and compare every bit; return the report."""
    ours = ConvNeXt(SMALL, grn=source.grn, out_norm=False)
    report = load_weights(ours, given)
    assert_holds(ours, source.state_dict())
    assert (report.missing, report.unexpected) == ([], [])
    return report


@pytest.mark.parametrize('shape', [(-1,), (1, -1), (1, 1, 1, -1)])
def test_facebook(source, shape):
    weights = {key: value.reshape(shape) if 'grn' in key else value for key, value in source.state_dict().items()}
    report = assert_loads_bits({'model': with_head(weights)}, source)
    assert report.left_out == {'classifier': ['norm.weight', 'norm.bias', 'head.weight', 'head.bias']}
    assert report.format == f'facebookresearch ConvNeXt{" V2" * source.grn}'


def test_decoders_of_a_detector_do_not_make_it_self_supervised():
    keys = ('bbox_head.transformer.decoder.layers.0.weight', 'bbox_head.norms.3.weight', 'projectors.0.weight')
    given = Detector().state_dict() | dict.fromkeys(keys, torch.ones(1))
    assert load_weights(Detector(), given).format == 'facebookresearch ConvNeXt'


def sparse_kernel(weight):
    """Store a dense kernel (out, in / groups, k, k) as MinkowskiEngine does: (k * k, in, out), x before y."""
    out, inputs, size, _ = weight.shape
    kernel = torch.empty(size * size, inputs, out)
    for x in range(size):
        for y in range(size):
            kernel[x * size + y] = weight[:, :, y, x].T
    return kernel


def sparse_parameter(key, value):
    """Return name and value in the layers of MinkowskiEngine, of which facebookresearch/ConvNeXt-V2 has all but two."""
    place, layer, kind = key.rsplit('.', 2)
    if key.startswith('downsample_layers.0.'):
        return key, value
    if (layer, kind) in (('dwconv', 'weight'), ('1', 'weight')):
        kernel = sparse_kernel(value)
        return f'{place}.{layer}.kernel', kernel[:, 0] if layer == 'dwconv' else kernel
    if layer in ('dwconv', '1'):
        return key, value[None]
    inner = {'norm': '.ln', '0': '.ln', 'pwconv1': '.linear', 'pwconv2': '.linear'}.get(layer, '')
    return f'{place}.{layer}{inner}.{kind}', value.reshape(1, -1) if layer == 'grn' else value


@pytest.mark.parametrize('encoder', ['', 'encoder.'])
def test_fcmae(encoder, tmp_path):
    source = randomize(ConvNeXt(SMALL, grn=True, out_norm=False))
    sparse = dict(sparse_parameter(key, value) for key, value in source.state_dict().items())
    assert sparse['stages.2.1.dwconv.kernel'].shape == (49, 24)
    assert sparse['downsample_layers.3.1.kernel'].shape == (4, 24, 32)
    assert sparse['stages.0.0.grn.gamma'].shape == (1, 32)
    decoder = {'mask_token': (1, 512, 1, 1), 'proj.weight': (4, 32, 1, 1), 'pred.bias': (4,)}
    decoder |= {'decoder.0.dwconv.weight': (4, 1, 7, 7), 'decoder.0.grn.gamma': (1, 1, 1, 16)}
    sparse = {encoder + key: value for key, value in sparse.items()}
    sparse |= {key: torch.ones(shape) for key, shape in decoder.items()}
    torch.save({'model': sparse}, tmp_path / 'fcmae.pt')
    report = assert_loads_bits(tmp_path / 'fcmae.pt', source)
    assert report.format == 'facebookresearch ConvNeXt V2, self-supervised (FCMAE)'
    assert report.licence == "if these are facebookresearch's own: CC-BY-NC 4.0"
    assert {why: {*keys} for why, keys in report.left_out.items()} == {'decoder': {*decoder}}
    assert len(report.reshaped) == 5 * 4 + 3 * 2  # dwconv's kernel and bias, GRN's two; downsampling's kernel and bias


def test_dinov3_and_eupe():
    source = randomize(ConvNeXt(SMALL, out_norm=False))
    weights = with_head(source.state_dict())
    weights |= {f'norms.3.{part}': weights.pop(f'head.{part}') for part in ('weight', 'bias')}
    report = assert_loads_bits(weights, source)
    assert (report.format, report.licence) == ('DINOv3 repository', "if these are DINOv3's own: DINOv3 License")
    assert report.left_out['final norm once more'] == ['norms.3.weight', 'norms.3.bias']
    assert_loads_bits({'teacher': {f'backbone.{key}': value for key, value in weights.items()}}, source)

    # EUPE: DINOv3's names, and projectors and norms of which a backbone needs none
    weights |= {f'norms.{i}.{part}': torch.ones(DIMS[i]) for i in range(3) for part in ('weight', 'bias')}
    projectors = ['projectors.0.weight', 'projectors.0.bias']
    for given in (weights, weights | dict.fromkeys(projectors, torch.ones(3))):
        report = assert_loads_bits(given, source)
        licence = "if these are EUPE's own: FAIR Noncommercial Research License"
        assert (report.format, report.licence) == ('EUPE', licence)
        assert len(report.left_out['norms of features']) == 8
    assert report.left_out['projectors'] == projectors


@pytest.mark.parametrize('prefix', ['backbone.', ''])
def test_mmpretrain_classifier(source, prefix):
    weights = mmpretrain_names(source.state_dict(), prefix)
    weights = with_head(weights, norm=f'{prefix}norm3', head='head.fc')
    given = {'meta': {}, 'state_dict': weights}
    report = assert_loads_bits(given, source)
    assert report.format == 'mmpretrain'
    detector = Detector(grn=source.grn)
    for each in (report, load_weights(detector, given)):
        assert {*each.left_out['classifier']} == {*[*weights][-4:]}
    assert torch.equal(detector.backbone.norm3.bias, torch.zeros(32))
    # beside other output norms it is one itself
    source = randomize(ConvNeXt(SMALL, grn=source.grn)).state_dict()
    load_weights(detector, mmpretrain_names(source, prefix) | {'head.fc.weight': torch.ones(5, 32)})
    assert_holds(detector.backbone, source)


def test_final_norm():
    """The last map is then what a classifier pools."""
    theirs, image = timm_model(num_classes=0), picture()
    ours = ConvNeXt(SMALL).eval()
    report = load_weights(ours, theirs.state_dict(), final_norm=True)
    assert sorted(report.from_scratch) == sorted(f'norm{i}.{part}' for i in range(3) for part in ('weight', 'bias'))
    with torch.no_grad():
        assert_close(ours(image)[3], theirs.head.norm(theirs.forward_features(image)))
    with pytest.raises(UserError, match='no final norm to load into norm3.*final_norm'):
        load_weights(ours, ConvNeXt(SMALL, out_norm=False).state_dict(), final_norm=True)
