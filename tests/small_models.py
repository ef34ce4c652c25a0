"""Small models of this package and of the libraries whose weights it reads and writes, with random weights."""

import pytest
import timm.models
import torch
from torch import nn
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.convnext import ConvNeXt as TorchvisionConvNeXt

from convnext_dense import ConvNeXt

DEPTHS, DIMS, NUM_CLASSES = (1, 1, 2, 1), (8, 16, 24, 32), 7
SMALL = dict(depths=DEPTHS, dims=DIMS)
STAGES = ['stage1', 'stage2', 'stage3', 'stage4']
V1_AND_V2 = pytest.mark.parametrize('grn', [False, True], ids=['V1', 'V2'])


def randomize(model):
    """Give every parameter and statistic a value of its own, so that none can be taken for another."""
    for name, tensor in model.state_dict().items():
        if name.endswith('running_var'):
            nn.init.uniform_(tensor, 0.5, 2)
        elif tensor.is_floating_point():
            nn.init.normal_(tensor, 0 if tensor.ndim > 1 else 0.5, 0.05 if tensor.ndim > 1 else 0.2)
    return model.eval()


def picture():
    return torch.randn(1, 3, 75, 93)  # no multiple of the strides


def assert_close(ours, theirs):
    """Compare tensors, or lists of as many maps, relative to the largest number."""
    ours, theirs = ([each] if isinstance(each, torch.Tensor) else each for each in (ours, theirs))
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == other.shape
        assert ((one - other).abs().max() / other.abs().max()).item() < 1e-5


def assert_holds(model, weights, prefix=''):
    """Compare every bit of a model, or of the part below a prefix, with weights, of which there may be more."""
    state_dict = model.state_dict()
    keys = [key for key in state_dict if key.startswith(prefix)]
    assert keys
    for key in keys:
        assert torch.equal(state_dict[key], weights[key.removeprefix(prefix)]), key


def weightless(model):
    """Return a state dict of the same shapes that takes no memory."""
    return {
        key: torch.zeros((), dtype=value.dtype, device='cpu').expand(value.shape)
        for key, value in model.state_dict().items()
    }


class Detector(nn.Module):
    def __init__(self, arch=SMALL, num_classes=3, **options):
        super().__init__()
        self.backbone = ConvNeXt(arch, **options)
        self.neck = nn.Linear(2, 2)
        self.bbox_head = nn.Linear(4, num_classes)


def with_head(weights, norm='norm', head='head'):
    """Add the final norm and the head of a classifier."""
    names = {f'{norm}.weight': (32,), f'{norm}.bias': (32,), f'{head}.weight': (5, 32), f'{head}.bias': (5,)}
    return weights | {name: torch.randn(shape) for name, shape in names.items()}


def mmpretrain_names(weights, prefix='backbone.'):
    renamed = {}
    for key, value in weights.items():
        key = key.replace('dwconv', 'depthwise_conv').replace('pwconv', 'pointwise_conv')
        renamed[prefix + key] = value.flatten() if '.grn.' in key else value
    return renamed


def timm_model(grn=False, **options):
    options = dict(num_classes=NUM_CLASSES) | options
    return randomize(timm.models.ConvNeXt(**SMALL, use_grn=grn, ls_init_value=None if grn else 1, **options))


def resnet_maps(model, image):
    """Return the four maps of a ResNet of torchvision or timm."""
    x = model.maxpool(torch.relu(model.bn1(model.conv1(image))))
    return [x := layer(x) for layer in (model.layer1, model.layer2, model.layer3, model.layer4)]


def torchvision_model():
    settings = zip(DIMS, [*DIMS[1:], None], DEPTHS, strict=True)
    stages = [CNBlockConfig(*setting) for setting in settings]
    return randomize(TorchvisionConvNeXt(stages, num_classes=NUM_CLASSES))


def hf_model(name, **options):
    """Return a model of the class that stands in transformers for a name such as 'ConvNextV2Backbone'."""
    transformers = pytest.importorskip('transformers')
    version = name.partition('ConvNext')[0] + 'ConvNext' + 'V2' * ('V2' in name)
    options |= dict(out_features=STAGES) if name.endswith('Backbone') else {}
    # the default of the final norm's epsilon is 1e-12 there
    sizes = dict(depths=[*DEPTHS], hidden_sizes=[*DIMS], num_labels=NUM_CLASSES, layer_norm_eps=1e-6)
    return randomize(getattr(transformers, name)(getattr(transformers, f'{version}Config')(**sizes, **options)))


def hf_upernet(grn=False):
    transformers = pytest.importorskip('transformers')
    config = transformers.UperNetConfig(
        backbone_config=hf_model(f'ConvNext{"V2" * grn}Backbone').config,
        hidden_size=16,
        num_labels=5,
        auxiliary_channels=8,
        auxiliary_in_channels=DIMS[2],
    )
    return randomize(transformers.UperNetForSemanticSegmentation(config))


def mmseg_upernet(**options):
    """Return MMSegmentation's UperNet with our backbone."""
    from mmengine.registry import MODELS, DefaultScope

    both = dict(norm_cfg=dict(type='BN'), num_classes=5, align_corners=False)
    head = dict(type='UPerHead', in_channels=[*DIMS], in_index=[0, 1, 2, 3], channels=16, **both)
    auxiliary = dict(type='FCNHead', in_channels=DIMS[2], in_index=2, channels=8, num_convs=1, concat_input=False)
    cfg = dict(
        type='EncoderDecoder',
        backbone=dict(type='ConvNeXt', arch=SMALL, **options),
        decode_head=head,
        auxiliary_head=auxiliary | both,
        test_cfg=dict(mode='whole'),
    )
    with DefaultScope.overwrite_default_scope('mmseg'):
        return randomize(MODELS.build(cfg))


@torch.no_grad()
def maps_of(model, image):
    """Return the four maps of a model of timm, torchvision or transformers, or of ours."""
    if isinstance(model, TorchvisionConvNeXt):
        return [model.features[: 2 * stage + 2](image) for stage in range(4)]
    if hasattr(model, 'forward_intermediates'):
        return model.forward_intermediates(image, intermediates_only=True)[-4:]
    if not hasattr(model, 'base_model'):
        return model(image)
    if hasattr(model, 'out_features'):
        return model(image).feature_maps
    return model(image, output_hidden_states=True).hidden_states[1:]
