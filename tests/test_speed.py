"""What ``speed_up`` exchanges computes the same as what it stands for."""

import contextlib
import copy
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.dataset import Compose
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData, PixelData
from small_models import mmseg_upernet, randomize

from convnext_dense import ConvNeXt, UserError
from convnext_dense.compat.ops import roi_samples
from convnext_dense.configs import load_config, model_scope
from convnext_dense.speed import (
    FASTER,
    BFloat16OptimWrapper,
    compile_maps,
    keep_boxes_precise,
    memory,
    speed_up,
    speed_up_data,
)
from convnext_dense.train import config as run_config

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


def segmented(size):
    """Return a sample with random labels."""
    from mmseg.structures import SegDataSample

    sample = SegDataSample(metainfo=dict(img_shape=size, ori_shape=size, pad_shape=size))
    sample.gt_sem_seg = PixelData(data=torch.randint(0, 5, (1, *size)))
    return sample


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
    once = {'cascade.OncePooledRoIHead'} if 'cascade' in name else set()
    expected = {'rois.ChannelsLastExtractor', 'masks.ProductMaskHead', *once}
    assert kinds(faster) - kinds(model) == {f'convnext_dense.speed.{each}' for each in expected}
    images = torch.randn(2, 3, 96, 128, dtype=torch.float64)
    plain, fast = outputs_of(model, images, samples), outputs_of(faster, images, samples)
    assert_same(fast, plain)
    for one, other in zip(fast[2], plain[2], strict=True):
        assert len(one.pred_instances) == len(other.pred_instances) > 0
        for key in ('bboxes', 'scores', 'labels', 'masks'):
            torch.testing.assert_close(one.pred_instances[key], other.pred_instances[key], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('amp', [False, True])
@pytest.mark.parametrize('threshold', [0.5, -1])
@pytest.mark.parametrize('rescale', [True, False])
def test_pasted_masks_are_the_same(rescale, threshold, amp):
    from mmdet.models.roi_heads.mask_heads import FCNMaskHead

    from convnext_dense.speed.masks import ProductMaskHead

    with DefaultScope.overwrite_default_scope('mmdet'):
        head = FCNMaskHead(num_convs=0, num_classes=3)
    draw = torch.rand(40, 4) * torch.tensor([200, 120, 150, 150]) - 20
    boxes = torch.cat([draw[:, :2], draw[:, :2] + draw[:, 2:].clamp(min=0)], dim=1)  # some leave the image
    boxes[0, 2] = boxes[0, 0]
    boxes[1] = torch.tensor([300.0, 10, 320, 40])
    given = torch.randn(40, 3, 28, 28), boxes, torch.randint(0, 3, (40,))
    meta, cfg = dict(scale_factor=(1.5, 1.3), ori_shape=(101, 157)), ConfigDict(mask_thr_binary=threshold)
    pasted = []
    for kind in (FCNMaskHead, ProductMaskHead):
        head.__class__ = kind
        with torch.autocast('cpu', torch.bfloat16, enabled=amp):
            pasted.append(head._predict_by_feat_single(*(each.clone() for each in given), meta, cfg, rescale))
    plain, fast = pasted
    assert (plain.shape, plain.dtype) == (fast.shape, fast.dtype)
    assert plain.any()
    # rounding decides about few pixels, and about the last grey level of more
    assert (plain.int() - fast.int()).abs().max() <= 1
    assert (plain != fast).float().mean() < (1e-4, 1e-2)[threshold < 0]


def test_masks_are_pasted_many_at_once_on_a_gpu():
    from convnext_dense.speed.masks import pieces

    for size in ((100, 100), (20_000, 20_000)):
        found = list(pieces(torch.empty(7, 4, device='meta'), *size))
        assert [i for some, _, _ in found for i in range(7)[some]] == list(range(7))
        assert all(ys == xs == slice(None) for _, ys, xs in found)
    assert len(found) == 7


def test_a_cascade_pools_the_features_of_masks_once_where_its_stages_pool_the_same(monkeypatch):
    from convnext_dense.speed.rois import Pooling

    calls, apply = [], Pooling.apply
    monkeypatch.setattr(
        Pooling, 'apply', lambda count, levels, *maps: calls.append(count) or apply(count, levels, *maps)
    )
    model, samples = detector()
    speed_up(model).eval().float()
    images = torch.randn(1, 3, 96, 128)
    with torch.no_grad():
        model(images, samples[:1], mode='predict')
        assert len(calls) == 3 + 1  # boxes in three stages, masks
        model.roi_head.mask_roi_extractor[1].finest_scale = 20
        model(images, samples[:1], mode='predict')
    assert len(calls) == 2 * 4 + 1


def test_boxes_that_are_no_numbers_are_named():
    model, _ = detector()
    pool = speed_up(model).roi_head.bbox_roi_extractor[0]
    maps = [torch.randn(1, 64, 64 // stride, 64 // stride) for stride in (1, 2, 4, 8)]
    with pytest.raises(UserError, match='1 of 2 RoIs.* nan'):
        pool(maps, torch.tensor([[0, 1.0, 2, 30, 40], [0, float('nan'), 4, 50, 60]]))


@pytest.mark.parametrize('at_once', [1, 2**30])
@pytest.mark.parametrize('size', [(48, 48), (75, 101), (40, 130)], ids=['one', 'many', 'lower than a window'])
def test_windows_give_the_same(size, at_once, monkeypatch):
    from convnext_dense.speed import windows

    monkeypatch.setattr(windows, 'PIXELS', at_once)
    model = mmseg_upernet().double()
    model.test_cfg = ConfigDict(mode='slide', crop_size=(48, 48), stride=(32, 20))
    faster = speed_up(copy.deepcopy(model))
    assert type(faster) is windows.WindowedEncoderDecoder
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        plain, fast = (each.inference(images, [dict(ori_shape=size)] * 2) for each in (model, faster))
    torch.testing.assert_close(fast, plain, rtol=1e-10, atol=1e-10)


def test_windows_that_leave_pixels_out_are_refused():
    model = speed_up(mmseg_upernet())
    model.test_cfg = ConfigDict(mode='slide', crop_size=(48, 48), stride=(32, 64))
    with pytest.raises(UserError, match=r'stride \(32, 64\) .* crop_size \(48, 48\)'):
        model.slide_inference(torch.zeros(1, 3, 64, 128), [{}])


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
    model = mmseg_upernet().double()
    model.test_cfg = ConfigDict(mode='whole')
    head = model.decode_head
    model.align_corners = head.align_corners = head.psp_modules.align_corners = align_corners
    faster = speed_up(copy.deepcopy(model))
    assert 'convnext_dense.speed.upernet.FactoredUPerHead' in kinds(faster)
    images, samples = torch.randn(2, 3, *size, dtype=torch.float64), [segmented(size), segmented(size)]
    plain, fast = outputs_of(model, images, samples), outputs_of(faster, images, samples)
    assert_same(fast, plain)
    for one, other in zip(fast[2], plain[2], strict=True):
        torch.testing.assert_close(one.seg_logits.data, other.seg_logits.data, rtol=1e-4, atol=1e-5)


def test_a_map_narrower_than_the_stride_gives_sound_gradients_in_bf16():
    neck = torch.nn.Sequential(torch.nn.Conv2d(16, 16, 3, stride=2, padding=1), ConvNeXt('atto', in_channels=16))
    conv = speed_up(neck)[0]
    x = torch.randn(2, 16, 7, 1)
    for _ in range(5):
        for size in range(8, 20):
            torch.full((2**size,), float('nan'))  # what the memory holds
        with torch.autocast('cpu', torch.bfloat16):
            found = conv(x)
        (gradient,) = torch.autograd.grad(found, conv.weight, torch.ones_like(found))
        expected = torch.nn.grad.conv2d_weight(x, conv.weight.shape, torch.ones(2, 16, 4, 1), 2, 1)
        torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize('shape', [(40, 30, 3), (33, 17, 3)])
def test_distorted_images_are_the_same_to_the_last_bit(shape):
    from mmseg.datasets.transforms import PhotoMetricDistortion, RandomFlip

    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    step = PhotoMetricDistortion()
    faster = PhotoMetricDistortion()
    data = SimpleNamespace(
        dataset=SimpleNamespace(pipeline=SimpleNamespace(transforms=[RandomFlip(prob=0.5), [faster]]))
    )
    speed_up_data(data)
    assert type(faster).__name__ == 'TablePhotoMetricDistortion'
    seen = set()
    for seed in range(50):
        found = []
        for each in (step, faster):
            np.random.seed(seed)
            found.append(each.transform(dict(img=image.copy()))['img'])
        assert np.array_equal(*found)
        seen.add(found[0].tobytes())
    assert len(seen) > 20


@pytest.mark.parametrize('library', ['mmdet', 'mmseg'])
@pytest.mark.parametrize('direction', ['horizontal', 'vertical', 'diagonal'])
def test_flipped_images_are_the_same_as_copies(library, direction):
    transforms = pytest.importorskip(f'{library}.datasets.transforms')
    step, faster = (transforms.RandomFlip(prob=1.0, direction=direction) for _ in range(2))
    speed_up_data(faster)
    rng = np.random.default_rng(0)
    for shape, dtype in (((8, 6, 3), np.uint8), ((8, 6, 1), np.uint8), ((8, 6), np.uint8), ((8, 6, 5), np.float32)):
        image = rng.integers(0, 256, shape).astype(dtype)
        labels = image[..., 0] if image.ndim == 3 else image
        sample = dict(img=image, gt_seg_map=labels, seg_fields=['gt_seg_map'], img_shape=(8, 6), swap_seg_labels=None)
        expected, found = (each.transform(dict(sample)) for each in (step, faster))
        for key in ('img', 'gt_seg_map'):
            assert np.array_equal(found[key], expected[key])
        assert found['img'].shape == shape
        assert found['img'].flags.c_contiguous == (dtype == np.uint8)
        assert found.keys() == expected.keys()


@pytest.mark.parametrize('library', ['mmdet', 'mmseg'])
@pytest.mark.parametrize('shape', [(8, 6, 3), (8, 6)], ids=['colours', 'grey'])
def test_packed_images_are_the_same_without_a_copy(library, shape):
    transforms = pytest.importorskip(f'{library}.datasets.transforms')
    step, faster = (getattr(transforms, f'Pack{library[2:].title()}Inputs')(meta_keys=()) for _ in range(2))
    speed_up_data(faster)
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    for given in (image, image[::-1]):
        sample = dict(img=given, gt_seg_map=np.zeros((8, 6), np.uint8))
        expected, found = (each.transform(dict(sample)) for each in (step, faster))
        assert torch.equal(found['inputs'], expected['inputs'])
        assert found.keys() == expected.keys()
    assert faster.transform(dict(img=image))['inputs'].data_ptr() == image.ctypes.data


@pytest.mark.parametrize(
    ('library', 'resize', 'size'),
    [
        ('mmdet', dict(type='Resize', scale=(210, 210), keep_ratio=True), (158, 210)),
        ('mmseg', dict(type='RandomResize', scale=(90, 80), ratio_range=(1, 1), keep_ratio=True), (68, 90)),
        ('mmdet', dict(type='RandomChoiceResize', scales=[(300, 150)], keep_ratio=False), (150, 300)),
        ('mmseg', dict(type='Resize', scale=(900, 900), keep_ratio=True), (675, 900)),  # larger than the photo
    ],
)
@pytest.mark.parametrize('name', ['photo.jpg', 'turned.jpg', 'xmp.jpg', 'photo.png'])
def test_reduced_photos_have_the_same_sizes_and_nearly_the_same_pixels(library, resize, size, name, tmp_path):
    """A photo of 640x480 pixels; turned by EXIF, 480x640."""
    from PIL import Image

    coarse = np.random.default_rng(0).integers(0, 256, (15, 20, 3), np.uint8)
    photo = Image.fromarray(cv2.resize(coarse, (640, 480), interpolation=cv2.INTER_CUBIC))
    exif = Image.Exif()
    if name == 'turned.jpg':
        exif[0x0112] = 6
    xmp = b'<rdf:Description tiff:Orientation="6"/>' if name == 'xmp.jpg' else b''  # OpenCV does not turn by it
    photo.save(tmp_path / name, quality=95, exif=exif, xmp=xmp)
    load, sample = dict(type='LoadImageFromFile'), dict(img_path=str(tmp_path / name), seg_fields=[])
    results = []
    __import__(f'{library}.datasets')
    with DefaultScope.overwrite_default_scope(library):
        for steps in (
            [load, resize],
            [dict(type='LoadDeferredImage', load=load), dict(type='LoadResizedImage', resize=resize)],
        ):
            results.append(Compose(steps)(dict(sample)))
    plain, fast = results
    assert plain.keys() == fast.keys()
    assert plain['img'].shape == fast['img'].shape
    if name != 'turned.jpg':
        assert fast['img'].shape[:2] == size
    for key in ('img_shape', 'ori_shape', 'scale', 'scale_factor', 'keep_ratio'):
        assert plain[key] == fast[key], key
    apart = np.abs(plain['img'].astype(int) - fast['img']).mean()
    assert apart == 0 if name == 'photo.png' or max(size) > 640 else apart < 2


@pytest.mark.parametrize('share', [0.3, 0.75, 1.0])
def test_crops_are_the_same(share):
    from mmseg.datasets.transforms import RandomCrop

    rng = np.random.default_rng(0)
    labels = np.kron(rng.choice([0, 1, 2, 255], (6, 8), p=[0.5, 0.2, 0.1, 0.2]), np.ones((9, 8))).astype(np.uint8)
    step, faster = (RandomCrop(crop_size=(20, 24), cat_max_ratio=share) for _ in range(2))
    speed_up_data(faster)
    assert type(faster).__name__ == 'CountingRandomCrop'
    for seed in range(60):
        boxes, states = [], []
        for each in (step, faster):
            np.random.seed(seed)
            boxes.append(each.crop_bbox(dict(img=labels[..., None], gt_seg_map=labels)))
            states.append(np.random.randint(2**30))
        assert boxes[0] == boxes[1]
        assert states[0] == states[1]  # the steps behind draw the same


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
import resource, runpy, sys
keep_memory = runpy.run_path(sys.argv[1])['keep_memory']  # without what else the package imports
def faults():
    bytearray(2**26)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        bytearray(2**26)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
given_back = faults()
keep_memory()
print(given_back, faults())
"""
    given_back, kept = map(int, run_python(code, memory.__file__).stdout.split()[-2:])
    if given_back < 1000:
        pytest.skip('this C library keeps memory by itself')
    assert kept < given_back / 3  # the first block may be new


@pytest.mark.parametrize('has_it', [True, False])
def test_mixed_precision_without_a_gpu(has_it, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(run_config, 'has_bf16', lambda: has_it)
    cfg = load_config('det/cascade_convnext_t_coco')
    assert cfg.optim_wrapper.type == 'AmpOptimWrapper'
    cfg.launcher = 'none'
    notes = [*run_config.fit_to_cpu(cfg), *run_config.test_in_amp(cfg)]
    assert cfg.optim_wrapper.type == ('BFloat16OptimWrapper' if has_it else 'OptimWrapper')
    assert cfg.test_cfg.get('fp16', False) is has_it
    assert ['fp32' in note for note in notes] == ([False] if has_it else [True, True])


def test_a_step_in_bf16_keeps_weights_gradients_and_moments_in_fp32():
    model = mmseg_upernet()
    seen = []
    model.decode_head.fpn_bottleneck.register_forward_hook(lambda module, given, found: seen.append(found.dtype))
    wrapper = BFloat16OptimWrapper(torch.optim.AdamW(model.parameters()))
    data = dict(inputs=torch.randn(2, 3, 64, 64), data_samples=[segmented((64, 64)) for _ in range(2)])
    model.train()
    losses = {}
    for name, context in (('bf16', wrapper.optim_context(model)), ('fp32', contextlib.nullcontext())):
        with context:
            losses[name], _ = model.parse_losses(model(**copy.deepcopy(data), mode='loss'))
    assert seen == [torch.bfloat16, torch.float32]
    torch.testing.assert_close(losses['bf16'], losses['fp32'], rtol=0.02, atol=0)
    wrapper.update_params(losses['bf16'])
    kept = [*model.parameters(), *(p.grad for p in model.parameters() if p.grad is not None)]
    kept += [each for state in wrapper.optimizer.state.values() for each in state.values()]
    assert {each.dtype for each in kept} == {torch.float32}


@pytest.mark.parametrize('name', DETECTORS)
def test_boxes_are_not_rounded_to_bf16(name):
    model, samples = detector(name)
    keep_boxes_precise(speed_up(model.float()))
    images = torch.randn(1, 3, 96, 128)
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        scores, deltas = model.rpn_head(model.extract_feat(images))
        found = model(images, samples[:1], mode='predict')[0].pred_instances
    assert {each.dtype for each in (*scores, *deltas, found.bboxes, found.scores)} == {torch.float32}
    assert len(found) > 0
    assert (found.bboxes.bfloat16() != found.bboxes).any()


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore:The .grad attribute of a Tensor:UserWarning')  # torch.compile looks at it
def test_maps_are_compiled_a_few_times_for_images_of_all_sizes():
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    model, _ = detector()
    model.float()
    compiled = compile_maps(copy.deepcopy(model), backend=backend)
    sizes = [(2, 128, 160), (2, 192, 128), (1, 128, 192), (1, 160, 128), (3, 224, 160), (2, 160, 224), (1, 192, 256)]
    for is_training in (True, False):
        for size in sizes:
            x, found = torch.randn(size[0], 3, *size[1:]), []
            for each in (model, compiled):
                each.train(is_training)
                torch.manual_seed(0)
                with torch.set_grad_enabled(is_training):
                    found.append(each.extract_feat(x))
            torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)
    assert 4 <= len(graphs) <= 14  # of two parts, in two modes; 28 if each size had its own
    assert copy.deepcopy(compiled).state_dict().keys() == model.state_dict().keys()
