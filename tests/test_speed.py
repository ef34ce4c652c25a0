"""What ``speed_up`` exchanges computes the same as what it stands for."""

import copy

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS
from mmengine.structures import InstanceData, PixelData
from small_models import mmseg_upernet, randomize

from convnext_dense.compat.ops import roi_samples
from convnext_dense.configs import load_config, model_scope
from convnext_dense.speed import FASTER, speed_up

DETECTORS = ['det/cascade_convnext_atto_shapes', 'det/mask_rcnn_convnext_t_coco']


def kinds(model):
    return {f'{type(module).__module__}.{type(module).__qualname__}' for module in model.modules()}


def detector(name=DETECTORS[0], **changes):
    """Return a small detector in double precision, with random weights, and its input."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    cfg = load_config(name)
    cfg.model.backbone.update(arch=dict(depths=(1, 1, 1, 1), dims=(8, 16, 24, 32)), drop_path_rate=0, init_cfg=None)
    cfg.model.neck.in_channels = [8, 16, 24, 32]
    cfg.model.test_cfg.rcnn.update(score_thr=0.0, max_per_img=20)
    cfg.merge_from_dict(changes)
    with model_scope(cfg):
        model = MODELS.build(cfg.model)
    boxes = torch.tensor([[5.0, 8, 60, 70], [30, 20, 90, 64], [1, 2, 20, 90]], dtype=torch.float64)
    masks = np.zeros((3, 96, 128), np.uint8)
    for mask, box in zip(masks, boxes.int().tolist(), strict=True):
        mask[box[1] : box[3], box[0] : box[2]] = 1
    sample = DetDataSample(
        metainfo=dict(img_shape=(96, 128), ori_shape=(96, 128), pad_shape=(96, 128), scale_factor=(1.0, 1.0)),
        gt_instances=InstanceData(bboxes=boxes, labels=torch.tensor([0, 1, 2]), masks=BitmapMasks(masks, 96, 128)),
    )
    return randomize(model).double(), [sample, copy.deepcopy(sample)]


def outputs_of(model, images, samples):
    """Return the losses, the gradients and the predictions of a model."""
    torch.manual_seed(0)  # for the samplers
    model.train()
    losses, _ = model.parse_losses(model(images, copy.deepcopy(samples), mode='loss'))
    losses.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    model.eval().float()  # masks are pasted in single precision
    with torch.no_grad():
        return losses.detach(), gradients, model(images.float(), copy.deepcopy(samples), mode='predict')


def assert_same(one, other):
    """Compare two results of :func:`outputs_of` to the rounding of double precision."""
    torch.testing.assert_close(one[0], other[0], rtol=1e-10, atol=0)
    assert one[1].keys() == other[1].keys()
    for name, gradient in one[1].items():
        assert (gradient - other[1][name]).norm() <= 1e-8 * max(1e-6, other[1][name].norm()), name


@pytest.mark.parametrize('name', DETECTORS)
def test_a_detector_computes_the_same(name, monkeypatch):
    monkeypatch.setattr(roi_samples, 'MOST_TAPS', 10_000)  # several parts
    model, samples = detector(name)
    faster = speed_up(copy.deepcopy(model))
    assert kinds(faster) - kinds(model) == {'convnext_dense.speed.rois.ChannelsLastExtractor'}
    images = torch.randn(2, 3, 96, 128, dtype=torch.float64)
    plain, fast = outputs_of(model, images, samples), outputs_of(faster, images, samples)
    assert_same(fast, plain)
    for one, other in zip(fast[2], plain[2], strict=True):
        assert len(one.pred_instances) == len(other.pred_instances) > 0
        for key in ('bboxes', 'scores', 'labels', 'masks'):
            torch.testing.assert_close(one.pred_instances[key], other.pred_instances[key], rtol=1e-3, atol=1e-3)


def test_features_of_regions_are_channels_last_and_those_of_none_are_empty():
    model, _ = detector()
    extractor = speed_up(model).roi_head.bbox_roi_extractor[0]
    maps = [torch.randn(1, 64, 64 // s, 64 // s).to(memory_format=torch.channels_last) for s in (1, 2, 4, 8)]
    found = extractor(maps, torch.tensor([[0, 3.0, 4, 50, 60], [0, 0, 0, 200, 230]]))
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert extractor(maps, torch.zeros(0, 5)).shape == (0, 64, 7, 7)


def test_corners_of_regions_are_not_rounded_in_mixed_precision():
    model, _ = detector()
    extractor = speed_up(model).roi_head.bbox_roi_extractor[0]
    ramp = torch.arange(256.0).expand(1, 64, 256, 256).contiguous(memory_format=torch.channels_last)
    maps = [ramp.bfloat16(), *(ramp[:, :, ::s, ::s].bfloat16() for s in (2, 4, 8))]
    found = extractor(maps, torch.tensor([[0, 801.0, 100, 829, 128]]))
    assert found.dtype == torch.bfloat16
    expected = torch.linspace(801, 829, 15)[1::2] / 4 - 0.5  # the middles of seven cells
    torch.testing.assert_close(found[0, 0, 3].float(), expected, rtol=2**-8, atol=0)


@pytest.mark.parametrize(
    'changes',
    [{'type': 'RoIPool'}, {'pool_mode': 'max'}, {'use_torchvision': True}],
    ids=['other layer', 'maximum', 'torchvision'],
)
def test_other_layers_of_regions_stay_as_they_are(changes):
    layer = {'type': 'RoIAlign', 'output_size': 7, **({} if 'type' in changes else {'sampling_ratio': 0}), **changes}
    model, _ = detector(**{'model.roi_head.bbox_roi_extractor.roi_layer': dict(layer, _delete_=True)})
    extractor = model.roi_head.bbox_roi_extractor[0]
    maps = [torch.randn(1, 64, 64 // s, 64 // s) for s in (1, 2, 4, 8)]
    rois = torch.tensor([[0, 3.0, 4, 50, 60], [0, 0, 0, 200, 230]])
    expected = extractor(maps, rois)
    torch.testing.assert_close(speed_up(model).roi_head.bbox_roi_extractor[0](maps, rois), expected)


@pytest.mark.filterwarnings('ignore:When align_corners=True')
@pytest.mark.parametrize('align_corners', [False, True])
@pytest.mark.parametrize('size', [(64, 96), (75, 301)], ids=['even', 'odd'])
def test_upernet_computes_the_same(align_corners, size):
    from mmseg.structures import SegDataSample

    model = mmseg_upernet().double()
    model.test_cfg = ConfigDict(mode='whole')
    head = model.decode_head
    model.align_corners = head.align_corners = head.psp_modules.align_corners = align_corners
    faster = speed_up(copy.deepcopy(model))
    assert 'convnext_dense.speed.upernet.FactoredUPerHead' in kinds(faster)
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    labels = torch.randint(0, 5, (1, *size))
    samples = []
    for _ in range(2):
        samples.append(SegDataSample(metainfo=dict(img_shape=size, ori_shape=size, pad_shape=size)))
        samples[-1].gt_sem_seg = PixelData(data=labels)
    plain, fast = outputs_of(model, images, samples), outputs_of(faster, images, samples)
    assert_same(fast, plain)
    for one, other in zip(fast[2], plain[2], strict=True):
        torch.testing.assert_close(one.seg_logits.data, other.seg_logits.data, rtol=1e-4, atol=1e-5)


def test_a_second_call_changes_nothing_and_names_stay():
    model, _ = detector()
    before = dict(model.named_parameters())
    once = speed_up(model)
    assert once is model
    assert {name: id(each) for name, each in once.named_parameters()} == {n: id(p) for n, p in before.items()}
    found = kinds(once)
    assert kinds(speed_up(once)) == found
    assert not found & FASTER.keys()


def test_models_without_our_backbone_are_left_alone():
    from mmdet.models import SingleRoIExtractor

    layer = dict(type='RoIAlign', output_size=7, sampling_ratio=0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), SingleRoIExtractor(layer, 256, [4, 8]))
    strides, before = model[0].weight.stride(), kinds(model)
    assert kinds(speed_up(model)) == before
    assert model[0].weight.stride() == strides


def test_freed_memory_is_kept(run_python):
    code = """
import resource, torch
from convnext_dense.speed import keep_memory
def faults():
    torch.ones(2**24)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
given_back = faults()
keep_memory()
print(given_back, faults())
"""
    given_back, kept = map(int, run_python(code).stdout.split()[-2:])
    if given_back < 1000:
        pytest.skip('this C library keeps memory by itself')
    assert kept < given_back / 3  # the first block may be new
