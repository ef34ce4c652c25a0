"""Foreign formats in both directions: against the real models of other libraries, and against layouts written here."""

import itertools
import re

import pytest
import timm
import torch
from timm.models._hub import save_for_hf
from torch import nn
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.convnext import ConvNeXt as TorchvisionConvNeXt

from convnext_dense import ConvNeXt, UserError
from convnext_dense.weights import fit, inspect, load, load_weights
from convnext_dense.weights.convert import TARGETS
from convnext_dense.weights.formats import FB, HF, MMPRETRAIN, TIMM, TORCHVISION

SMALL = dict(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32))
HF_SMALL = dict(depths=[1, 1, 2, 1], hidden_sizes=[8, 16, 24, 32])
STAGES = ['stage1', 'stage2', 'stage3', 'stage4']


@pytest.fixture
def image():
    return torch.randn(1, 3, 75, 93)  # no multiple of the strides


@pytest.fixture(scope='module')
def transformers():
    return pytest.importorskip('transformers')


def randomize(model):
    """Give every parameter and statistic a value of its own, so that none can be taken for another."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and name.endswith('running_var'):
            nn.init.uniform_(tensor, 0.5, 2)
        elif tensor.is_floating_point():
            nn.init.normal_(tensor, 0 if tensor.ndim > 1 else 0.5, 0.05 if tensor.ndim > 1 else 0.2)
    return model.eval()


def assert_same_maps(ours, theirs):
    assert len(ours) == len(theirs) == 4
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        assert ((a - b).abs().max() / b.abs().max()).item() < 1e-5


def assert_loads(file, maps, image, arch, grn=False, out_norm=False):
    """Load the file as a user would and compare the maps; return the report."""
    ours = ConvNeXt(arch, grn=grn, out_norm=out_norm, init_cfg=dict(type='Pretrained', checkpoint=str(file)))
    ours.init_weights()
    with torch.no_grad():
        assert_same_maps(ours.eval()(image), maps)
    report = load_weights(ConvNeXt(arch, grn=grn, out_norm=out_norm), file)
    assert (report.missing, report.unexpected, report.from_scratch) == ([], [], [])
    assert len(report.loaded) == len(ours.state_dict())
    return report


@torch.no_grad()
def timm_maps(model, image):
    if isinstance(model, timm.models.FeatureListNet):
        return model(image)
    return model.forward_intermediates(image, intermediates_only=True)[-4:]


@torch.no_grad()
def torchvision_maps(model, image):
    return [model.features[: 2 * stage + 2](image) for stage in range(4)]


@torch.no_grad()
def hf_maps(model, image):
    if hasattr(model, 'out_features'):
        return model(image).feature_maps
    return model(image, output_hidden_states=True).hidden_states[1:]


def small_torchvision():
    dims = SMALL['dims']
    outputs = (*dims[1:], None)
    settings = zip(dims, outputs, SMALL['depths'], strict=True)
    return TorchvisionConvNeXt([CNBlockConfig(*setting) for setting in settings], num_classes=7)


# Theirs -> ours: the models of other libraries, saved as those libraries save them


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
def test_timm(name, arch, suffix, image, tmp_path):
    size = arch if arch is SMALL else {}
    theirs = randomize(timm.create_model(name, num_classes=7, **size))
    save_for_hf(theirs, tmp_path, safe_serialization='both')
    (file,) = tmp_path.glob(f'*{suffix}')
    report = assert_loads(file, timm_maps(theirs, image), image, arch, grn='v2' in name)
    final_norm = ['norm_pre.weight', 'norm_pre.bias'] if 'hnf' in name else ['head.norm.weight', 'head.norm.bias']
    left_out = {key for keys in report.left_out.values() for key in keys}
    assert left_out == {*final_norm, 'head.fc.weight', 'head.fc.bias'}
    assert report.format == 'timm'


@pytest.mark.parametrize('name', ['convnext_atto', 'convnextv2_atto'])
def test_timm_features_only(name, image, tmp_path):
    theirs = randomize(timm.create_model(name, features_only=True))
    torch.save(theirs.state_dict(), tmp_path / 'features.pth')
    assert_loads(tmp_path / 'features.pth', timm_maps(theirs, image), image, 'atto', grn='v2' in name)


def test_the_tower_of_a_clip_model(image, tmp_path):
    theirs = randomize(timm.create_model('convnext_atto', num_classes=0))
    clip = {f'visual.trunk.{key}': value for key, value in theirs.state_dict().items()}
    clip |= {'visual.head.proj.weight': torch.ones(4, 320), 'text.token_embedding.weight': torch.ones(9, 4)}
    clip |= {'logit_scale': torch.ones(())}
    torch.save(clip, tmp_path / 'open_clip_pytorch_model.bin')
    report = assert_loads(tmp_path / 'open_clip_pytorch_model.bin', timm_maps(theirs, image), image, 'atto')
    other_parts = ['visual.head.proj.weight', 'text.token_embedding.weight', 'logit_scale']
    assert report.left_out['other parts'] == other_parts


def test_torchvision(image, tmp_path):
    theirs = randomize(small_torchvision())
    torch.save(theirs.state_dict(), tmp_path / 'convnext.pth')
    report = assert_loads(tmp_path / 'convnext.pth', torchvision_maps(theirs, image), image, SMALL)
    assert report.left_out == {'classifier': [f'classifier.{i}.{part}' for i in (0, 2) for part in ('weight', 'bias')]}
    assert len(report.reshaped) == sum(SMALL['depths'])  # layer scale, (C, 1, 1)
    assert report.licence == "if these are torchvision's own: BSD-3-Clause"


@pytest.mark.parametrize(
    ('version', 'kind'),
    [
        *itertools.product(('ConvNext', 'ConvNextV2'), ('Model', 'ForImageClassification', 'Backbone')),
        ('DINOv3ConvNext', 'Model'),
        ('DINOv3ConvNext', 'Backbone'),
    ],
)
def test_hugging_face(version, kind, image, transformers, tmp_path):
    options = dict(out_features=STAGES) if kind == 'Backbone' else {}
    config = getattr(transformers, f'{version}Config')(**HF_SMALL, **options)
    theirs = randomize(getattr(transformers, version + kind)(config))
    theirs.save_pretrained(tmp_path)
    has_norms = any('hidden_states_norms' in key for key in theirs.state_dict())
    grn = 'V2' in version
    file = tmp_path / 'model.safetensors'
    report = assert_loads(file, hf_maps(theirs, image), image, SMALL, grn=grn, out_norm=has_norms)
    assert report.format == ('Hugging Face DINOv3 ConvNeXt' if 'DINO' in version else 'Hugging Face ConvNeXt')
    assert 'DINOv3' not in version or report.licence == "if these are DINOv3's own: DINOv3 License"


def upernet_config(num_classes):
    return dict(
        type='mmseg.EncoderDecoder',
        backbone=dict(type='ConvNeXt', arch=SMALL),
        decode_head=dict(
            type='mmseg.UPerHead',
            in_channels=list(SMALL['dims']),
            in_index=[0, 1, 2, 3],
            channels=16,
            num_classes=num_classes,
            norm_cfg=dict(type='BN'),
        ),
        auxiliary_head=dict(
            type='mmseg.FCNHead',
            in_channels=SMALL['dims'][2],
            in_index=2,
            channels=8,
            num_convs=1,
            concat_input=False,
            num_classes=num_classes,
            norm_cfg=dict(type='BN'),
        ),
        test_cfg=dict(mode='whole'),
    )


@pytest.mark.parametrize('version', ['ConvNext', 'ConvNextV2'])
def test_hugging_face_upernet(version, image, transformers, tmp_path):
    from mmengine.registry import MODELS, DefaultScope

    backbone = getattr(transformers, f'{version}Config')(**HF_SMALL, out_features=STAGES)
    config = transformers.UperNetConfig(
        backbone_config=backbone, hidden_size=16, num_labels=5, auxiliary_channels=8, auxiliary_in_channels=24
    )
    theirs = randomize(transformers.UperNetForSemanticSegmentation(config))
    theirs.save_pretrained(tmp_path)
    cfg = upernet_config(num_classes=5)
    cfg['backbone']['grn'] = version == 'ConvNextV2'
    with DefaultScope.overwrite_default_scope('mmseg'):
        ours = MODELS.build(cfg).eval()
    report = load_weights(ours, tmp_path / 'model.safetensors', need='all')
    assert (report.missing, report.unexpected, report.from_scratch, report.left_out) == ([], [], [], {})
    with torch.no_grad():
        expected = theirs(image).logits
        assert (
            (ours.encode_decode(image, [dict(img_shape=image.shape[2:])]) - expected).abs().max() / expected.abs().max()
        ).item() < 1e-5
        maps = ours.extract_feat(image)
        torch.testing.assert_close(ours.auxiliary_head(maps), theirs.auxiliary_head(maps), rtol=1e-5, atol=1e-5)


# Every ConvNeXt of timm's, at no cost: as large as it says, with storage for one number


REFUSED = {
    'convnext_atto_ols': 'overlapping stem',
    'convnext_femto_ols': 'overlapping stem',
    'convnext_pico_ols': 'overlapping stem',
    'convnext_nano_ols': 'overlapping stem',
    'convnext_zepto_rms_ols': 'overlapping stem',
    'convnext_atto_rms': 'RMSNorm',
    'convnext_zepto_rms': 'RMSNorm',
    'convnext_xxlarge': r'ConvNeXt xxlarge \(timm\), whose LayerNorm has epsilon 1e-05, where ours has 1e-06 ',
    'test_convnext': 'GELU is approximated by tanh',
    'test_convnext2': 'GELU is approximated by tanh',
    'test_convnext3': 'GELU is approximated by tanh',
}


def weightless(model):
    """Return a state dict of the same shapes that takes no memory."""
    return {
        key: torch.zeros((), dtype=value.dtype, device='cpu').expand(value.shape)
        for key, value in model.state_dict().items()
    }


@pytest.mark.parametrize('name', REFUSED)
def test_what_timm_has_and_we_have_not_is_refused_and_told_by_the_inspector(name, monkeypatch):
    monkeypatch.setattr(inspect, 'is_finite', lambda *_: True)
    with torch.device('meta'):
        given = weightless(timm.create_model(name))
    with pytest.raises(UserError, match=REFUSED[name]) as caught:
        fit(ConvNeXt('atto'), given)
    differs = inspect.inspect_checkpoint(given)["backbones"][0]["differs"]
    assert str(caught.value) == f'the checkpoint is {differs}. Give the weights of a plain ConvNeXt.'


@pytest.mark.parametrize('name', sorted({*timm.list_models('*convnext*')} - {*REFUSED}))
def test_every_other_size_of_timm_fits(name, monkeypatch):
    monkeypatch.setattr(load, 'check_finite', lambda *_: None)  # of as many numbers as the sizes say
    with torch.device('meta'):
        given = weightless(timm.create_model(name))
        ours = ConvNeXt(re.sub('convnext(v2)?_|_hnf|_mlp', '', name), 'v2' in name)
    _, report = fit(ours, given)
    assert (report.missing, report.unexpected) == ([], [])
    assert all(key.startswith(('head.', 'norm_pre.')) for keys in report.left_out.values() for key in keys)


def test_xxlarge_loads_where_the_epsilon_is_its_own(image, monkeypatch):
    monkeypatch.setattr(load, 'check_finite', lambda *_: None)
    with torch.device('meta'):
        given = weightless(timm.create_model('convnext_xxlarge'))
        arch = dict(depths=(3, 4, 30, 3), dims=(384, 768, 1536, 3072))
        _, report = fit(ConvNeXt(arch, norm_eps=1e-5), given)
    assert report.missing == []
    assert report.architecture == 'ConvNeXt xxlarge'
    theirs = randomize(timm.models.convnext.ConvNeXt(**SMALL, norm_eps=1e-5))
    ours = ConvNeXt(SMALL, norm_eps=1e-5, out_norm=False).eval()
    load_weights(ours, theirs.state_dict())
    with torch.no_grad():
        assert_same_maps(ours(image), timm_maps(theirs, image))


# Layouts that exist in files only, written here key by key


def with_head(state_dict, norm='norm', head='head'):
    last, classes = SMALL['dims'][-1], 5
    return state_dict | {
        f'{norm}.weight': torch.full((last,), 2.0),
        f'{norm}.bias': torch.full((last,), 3.0),
        f'{head}.weight': torch.randn(classes, last),
        f'{head}.bias': torch.randn(classes),
    }


def assert_loads_bits(checkpoint, source, **options):
    """Load into a backbone like ``source`` and compare every bit; return the report."""
    ours = ConvNeXt(SMALL, grn=source.grn, out_norm=False)
    report = load_weights(ours, checkpoint, **options)
    for key, value in source.state_dict().items():
        assert torch.equal(ours.state_dict()[key], value), key
    assert (report.missing, report.unexpected) == ([], [])
    return report


@pytest.fixture(params=[False, True], ids=['v1', 'v2'])
def source(request):
    return randomize(ConvNeXt(SMALL, grn=request.param, out_norm=False))


def test_facebook(source):
    report = assert_loads_bits({'model': with_head(source.state_dict())}, source)
    assert report.left_out == {'classifier': ['norm.weight', 'norm.bias', 'head.weight', 'head.bias']}
    version, licence = (' V2', 'CC-BY-NC 4.0') if source.grn else ('', 'MIT')
    assert report.format == f'facebookresearch ConvNeXt{version}'
    assert report.licence == f"if these are facebookresearch's own: {licence}"


@pytest.mark.parametrize('shape', [(-1,), (1, -1), (1, 1, 1, -1)])
def test_grn_of_any_rank(shape):
    source = randomize(ConvNeXt(SMALL, grn=True, out_norm=False))
    given = {key: value.reshape(shape) if '.grn.' in key else value for key, value in source.state_dict().items()}
    assert_loads_bits(given, source)


def sparse_kernel(weight):
    """Store a dense kernel (out, in / groups, k, k) as MinkowskiEngine does: (k * k, in, out), x before y."""
    out, inputs, size, _ = weight.shape
    kernel = torch.empty(size * size, inputs, out)
    for x in range(size):
        for y in range(size):
            kernel[x * size + y] = weight[:, :, y, x].T
    return kernel


def sparse_layout(dense):
    """Return the FCMAE layout of facebookresearch/ConvNeXt-V2: a dense stem, and sparse layers from there on."""
    sparse = {
        'mask_token': torch.zeros(1, 512, 1, 1),
        'proj.weight': torch.ones(4, 32, 1, 1),
        'pred.bias': torch.ones(4),
    }
    sparse |= {'decoder.0.dwconv.weight': torch.ones(4, 1, 7, 7), 'decoder.0.grn.gamma': torch.ones(1, 1, 1, 16)}
    for key, value in dense.items():
        if key.startswith('downsample_layers.0.'):
            sparse[key] = value
        else:
            name, value = sparse_parameter(*key.rsplit('.', 2), value)
            sparse[name] = value
    return sparse


def sparse_parameter(place, layer, kind, value):
    """Return name and value of a parameter ``place.layer.kind`` in the layers of MinkowskiEngine."""
    if (layer, kind) in (('dwconv', 'weight'), ('1', 'weight')):
        kernel = sparse_kernel(value)
        return f'{place}.{layer}.kernel', kernel[:, 0] if layer == 'dwconv' else kernel
    if layer in ('dwconv', '1'):
        return f'{place}.{layer}.{kind}', value[None]
    inner = {'norm': '.ln', '0': '.ln', 'pwconv1': '.linear', 'pwconv2': '.linear'}.get(layer, '')
    return f'{place}.{layer}{inner}.{kind}', value.reshape(1, -1) if layer == 'grn' else value


@pytest.mark.parametrize('encoder', ['', 'encoder.'])
def test_fcmae(encoder, tmp_path):
    source = randomize(ConvNeXt(SMALL, grn=True, out_norm=False))
    sparse = sparse_layout(source.state_dict())
    assert sparse['stages.2.1.dwconv.kernel'].shape == (49, 24)
    assert sparse['downsample_layers.3.1.kernel'].shape == (4, 24, 32)
    assert sparse['stages.0.0.grn.gamma'].shape == (1, 32)
    decoder = ('mask_token', 'proj.weight', 'pred.bias', 'decoder.0.dwconv.weight', 'decoder.0.grn.gamma')
    sparse = {key if key in decoder else encoder + key: value for key, value in sparse.items()}
    torch.save({'model': sparse}, tmp_path / 'fcmae.pt')
    report = assert_loads_bits(tmp_path / 'fcmae.pt', source)
    assert report.format == 'facebookresearch ConvNeXt V2, self-supervised (FCMAE)'
    assert report.licence == "if these are facebookresearch's own: CC-BY-NC 4.0"
    assert {*report.left_out} == {'decoder'}
    assert {*report.left_out['decoder']} == {*decoder}
    assert len(report.reshaped) == 5 * 4 + 3 * 2  # dwconv's kernel and bias, GRN's two; downsampling's kernel and bias


def test_dinov3_and_eupe():
    source = randomize(ConvNeXt(SMALL, out_norm=False))
    weights = with_head(source.state_dict())
    del weights['head.weight'], weights['head.bias']
    weights |= {'norms.3.weight': weights['norm.weight'], 'norms.3.bias': weights['norm.bias']}
    report = assert_loads_bits(weights, source)
    assert (report.format, report.licence) == ('DINOv3 repository', "if these are DINOv3's own: DINOv3 License")
    assert report.left_out['final norm once more'] == ['norms.3.weight', 'norms.3.bias']
    assert assert_loads_bits({'teacher': {f'backbone.{key}': value for key, value in weights.items()}}, source)

    # EUPE: DINOv3's names, and projectors and norms of which a backbone needs none
    weights |= {f'norms.{i}.{part}': torch.ones(SMALL['dims'][i]) for i in range(3) for part in ('weight', 'bias')}
    projectors = ['projectors.0.weight', 'projectors.0.bias']
    for given in (weights, weights | dict.fromkeys(projectors, torch.ones(3))):
        report = assert_loads_bits(given, source)
        licence = "if these are EUPE's own: FAIR Noncommercial Research License"
        assert (report.format, report.licence) == ('EUPE', licence)
        assert sorted(report.left_out['norms of features']) == sorted(key for key in given if key.startswith('norms.'))
    assert report.left_out['projectors'] == projectors


def mmpretrain_names(state_dict, prefix):
    renamed = {}
    for key, value in state_dict.items():
        key = key.replace('dwconv', 'depthwise_conv').replace('pwconv', 'pointwise_conv')
        renamed[prefix + key] = value.flatten() if '.grn.' in key else value
    return renamed


@pytest.mark.parametrize('prefix', ['backbone.', ''])
def test_mmpretrain_classifier(source, prefix, tmp_path):
    weights = with_head(mmpretrain_names(source.state_dict(), prefix), norm=f'{prefix}norm3', head='head.fc')
    torch.save({'meta': {}, 'state_dict': weights}, tmp_path / 'file.pth')
    report = assert_loads_bits(tmp_path / 'file.pth', source)
    assert report.format == 'mmpretrain'
    assert {*report.left_out['classifier']} == {*[*weights][-4:]}
    detector = Detector(grn=source.grn)
    report = load_weights(detector, tmp_path / 'file.pth')
    assert {*report.left_out['classifier']} == {*[*weights][-4:]}
    assert torch.equal(detector.backbone.norm3.bias, torch.zeros(32))


class Detector(nn.Module):
    def __init__(self, grn=False):
        super().__init__()
        self.backbone = ConvNeXt(SMALL, grn=grn)
        self.neck = nn.Linear(2, 2)


def test_mmpretrain_backbone_in_a_detector(source):
    # trained in MMDetection with mmpretrain's backbone: norm3 is the output norm of the last map
    ours = randomize(Detector(grn=source.grn)).state_dict()
    theirs = {key: value for key, value in ours.items() if 'backbone' not in key}
    theirs |= mmpretrain_names({key: value for key, value in ours.items() if 'backbone' in key}, '')
    assert 'backbone.stages.0.0.depthwise_conv.weight' in theirs
    model = Detector(grn=source.grn)
    report = load_weights(model, {'state_dict': theirs}, need='all')
    assert report.left_out == {}
    assert all(torch.equal(value, ours[key]) for key, value in model.state_dict().items())


SUBSETS = [each for number in range(1, 5) for each in itertools.combinations(range(4), number)]


@pytest.mark.parametrize('name', ['fb', 'mmpretrain', 'hf'])
@pytest.mark.parametrize('out_indices', SUBSETS, ids=str)
@pytest.mark.parametrize('is_whole', [False, True])
def test_output_norms_of_any_stages_come_back(name, out_indices, is_whole):
    fmt = TARGETS[name]
    ours = randomize(ConvNeXt(SMALL, out_indices=out_indices)).state_dict()
    theirs = dict(fmt.write(key, value) for key, value in ours.items())
    theirs = {f'backbone.{key}' if is_whole else fmt.prefix + key: value for key, value in theirs.items()}
    theirs |= {'neck.weight': torch.ones(2, 2)} if is_whole else {}
    model = ConvNeXt(SMALL, out_indices=out_indices)
    report = load_weights(model, theirs)
    assert (report.missing, report.from_scratch) == ([], [])
    assert all(torch.equal(value, ours[key]) for key, value in model.state_dict().items())


def test_final_norm(source):
    model = ConvNeXt(SMALL, grn=source.grn)
    report = load_weights(model, with_head(source.state_dict()), final_norm=True)
    assert torch.equal(model.norm3.weight, torch.full((32,), 2.0))
    assert torch.equal(model.norm3.bias, torch.full((32,), 3.0))
    assert report.left_out == {'classifier': ['head.weight', 'head.bias']}
    assert sorted(report.from_scratch) == sorted(f'norm{i}.{part}' for i in range(3) for part in ('weight', 'bias'))
    with pytest.raises(UserError, match='has no final norm to load into norm3. Leave final_norm out of init_cfg'):
        load_weights(model, source.state_dict(), final_norm=True)


def test_the_last_map_with_the_final_norm_is_what_a_classifier_pools(image):
    theirs = randomize(timm.models.convnext.ConvNeXt(**SMALL, num_classes=0))
    ours = ConvNeXt(SMALL, out_indices=(3,)).eval()
    load_weights(ours, theirs.state_dict(), final_norm=True)
    with torch.no_grad():
        expected = theirs.head.norm(theirs.forward_features(image))
        torch.testing.assert_close(ours(image)[0], expected, rtol=1e-5, atol=1e-5)


def test_decoders_of_a_detector_do_not_make_it_self_supervised():
    model = Detector()
    keys = ('bbox_head.transformer.decoder.layers.0.weight', 'bbox_head.norms.3.weight', 'projectors.0.weight')
    given = model.state_dict() | {key: torch.ones(1) for key in keys}
    assert load_weights(model, given).format == 'facebookresearch ConvNeXt'


# Ours -> theirs: what `write` gives is loaded by the other library itself


def written(fmt, model, arch=None):
    items = [fmt.write(key, value, arch) for key, value in model.state_dict().items()]
    return dict(items)


@pytest.mark.parametrize(
    ('name', 'grn'), [*itertools.product(('fb', 'timm', 'mmpretrain', 'hf'), (False, True)), ('torchvision', False)]
)
@pytest.mark.parametrize('out_norm', [False, True])
def test_a_round_trip_changes_no_bit(name, grn, out_norm):
    fmt = TARGETS[name]
    state_dict = randomize(ConvNeXt(SMALL, grn=grn, out_norm=out_norm)).state_dict()
    names = []
    for key, tensor in with_head(state_dict).items():
        theirs = fmt.write(key, tensor, arch='atto')
        if theirs is None:
            assert key.startswith('norm'), key
            assert fmt in (TIMM, TORCHVISION, MMPRETRAIN)
            continue
        name, value = fmt.read(*theirs)
        names.append(theirs[0])
        assert name == key
        assert torch.equal(value, tensor)
    assert len(set(names)) == len(names) >= len(ConvNeXt(SMALL, grn=grn, out_norm=False).state_dict())


@pytest.mark.parametrize(
    ('name', 'arch'), [('convnext_atto', 'atto'), ('convnextv2_atto', 'atto'), ('convnext_tiny', 'tiny')]
)
def test_timm_loads_what_is_written(name, arch, image):
    ours = randomize(ConvNeXt(arch, grn='v2' in name, out_norm=False))
    weights = written(TIMM, ours, arch)
    theirs = timm.create_model(name, num_classes=0)
    missing, unexpected = theirs.load_state_dict(weights, strict=False)
    assert (missing, unexpected) == (['head.norm.weight', 'head.norm.bias'], [])
    features = timm.create_model(name, features_only=True)
    features.load_state_dict({key.replace('.', '_', 1): value for key, value in weights.items()}, strict=True)
    with torch.no_grad():
        assert_same_maps(ours(image), timm_maps(theirs.eval(), image))
        assert_same_maps(ours(image), timm_maps(features.eval(), image))


def test_torchvision_loads_what_is_written(image):
    ours = randomize(ConvNeXt(SMALL, out_norm=False))
    theirs = small_torchvision()
    missing, unexpected = theirs.load_state_dict(written(TORCHVISION, ours), strict=False)
    assert unexpected == []
    assert all(key.startswith('classifier.') for key in missing)
    with torch.no_grad():
        assert_same_maps(ours(image), torchvision_maps(theirs.eval(), image))


@pytest.mark.parametrize('out_norm', [False, True])
def test_hugging_face_loads_what_is_written(source, out_norm, image, transformers):
    version = 'ConvNextV2' if source.grn else 'ConvNext'
    ours = randomize(ConvNeXt(SMALL, grn=source.grn, out_norm=out_norm))
    options = dict(out_features=STAGES) if out_norm else {}
    config = getattr(transformers, f'{version}Config')(**HF_SMALL, **options)
    theirs = getattr(transformers, f'{version}{"Backbone" if out_norm else "Model"}')(config)
    missing, unexpected = theirs.load_state_dict(written(HF, ours), strict=False)
    assert unexpected == []
    assert missing == ([] if out_norm else ['layernorm.weight', 'layernorm.bias'])
    with torch.no_grad():
        assert_same_maps(ours(image), hf_maps(theirs.eval(), image))


def test_names_of_facebook_and_mmpretrain_are_written(source):
    state_dict = source.state_dict()
    assert written(FB, source).keys() == state_dict.keys()
    theirs = written(MMPRETRAIN, source)
    expected = mmpretrain_names(state_dict, '')
    assert theirs.keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in theirs.items())
