"""Test-time augmentation: views of known scenes come back together, and real models agree with sums written out."""

import copy
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from mmengine.config import Config, ConfigDict
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.structures import BaseDataElement, InstanceData
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from convnext_dense import UserError
from convnext_dense.configs import walk
from convnext_dense.data import write_shapes
from convnext_dense.train import config as run_config
from convnext_dense.train import run as runs
from convnext_dense.tta import InstanceTTA, WholeImageTTA

CONFIGS = Path(__file__).parent.parent / 'configs'
DETECTOR = CONFIGS / 'det/cascade_convnext_atto_shapes.py'
SEGMENTOR = CONFIGS / 'seg/upernet_convnext_atto_shapes.py'
DRAWN = dict(num_train=2, num_val=3, size=64)
TTA_CFG = dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp('data') / 'shapes', **DRAWN)


# --------------------------------------------------------------------------------------------- known scenes


class Brightest(nn.Module):
    """A detector of the bright rectangle in a view; it answers at the original size, as MMDetection does."""

    def __init__(self, masks: bool = True) -> None:
        super().__init__()
        self.masks = masks

    def test_step(self, data: dict) -> list[BaseDataElement]:
        results = []
        for image, sample in zip(data['inputs'], data['data_samples'], strict=True):
            mask = F.interpolate(image[None].float(), size=sample.ori_shape, mode='nearest')[0, 0] > 0.5
            rows, columns = mask.any(dim=1).nonzero(), mask.any(dim=0).nonzero()
            box = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            instances = InstanceData(
                bboxes=torch.tensor([box], dtype=torch.float32),
                scores=torch.tensor([0.5 + sample.bonus]),
                labels=torch.tensor([3]),
            )
            if self.masks:
                instances.masks = mask[None]
            sample.pred_instances = instances
            results.append(sample)
        return results


def view(image: torch.Tensor, flip: str | None = None, factor: int = 1, bonus: float = 0.0) -> tuple:
    """Return a view of an image (1, H, W) with its metadata."""
    dims = {'horizontal': (-1,), 'vertical': (-2,), 'diagonal': (-2, -1), None: ()}[flip]
    meta = dict(ori_shape=tuple(image.shape[1:]), flip=flip is not None, flip_direction=flip, bonus=bonus)
    resized = image.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    return resized.flip(dims), BaseDataElement(metainfo=meta)


def collate(*views: tuple) -> dict:
    """Return the views of one image as the test loop hands them over."""
    return dict(inputs=[[image] for image, _ in views], data_samples=[[sample] for _, sample in views])


@pytest.fixture
def rectangle():
    image = torch.zeros(1, 10, 16)
    image[0, 1:4, 2:7] = 1
    return image


@pytest.mark.parametrize('masks', [True, False])
def test_views_of_a_rectangle_meet_in_one_box(rectangle, masks):
    model = InstanceTTA(tta_cfg=TTA_CFG, module=Brightest(masks))
    (sample,) = model.test_step(
        collate(
            view(rectangle),
            view(rectangle, 'horizontal', bonus=0.2),
            view(rectangle, 'vertical', factor=2, bonus=0.1),
            view(rectangle, 'diagonal', factor=3),
        )
    )
    found = sample.pred_instances
    assert found.bboxes.tolist() == [[2, 1, 7, 4]]
    assert found.scores.tolist() == pytest.approx([0.7])  # the best view's
    assert found.labels.tolist() == [3]
    assert ('masks' in found) == masks
    if masks:
        assert torch.equal(found.masks[0], rectangle[0] > 0)


def test_several_images_stay_apart(rectangle):
    other = rectangle.flip(-1)
    data = dict(
        inputs=[[rectangle, other], [rectangle.flip(-1), other.flip(-1)]],
        data_samples=[
            [view(rectangle)[1], view(other)[1]],
            [view(rectangle, 'horizontal')[1], view(other, 'horizontal')[1]],
        ],
    )
    first, second = InstanceTTA(tta_cfg=TTA_CFG, module=Brightest()).test_step(data)
    assert first.pred_instances.bboxes.tolist() == [[2, 1, 7, 4]]
    assert second.pred_instances.bboxes.tolist() == [[9, 1, 14, 4]]


def test_nothing_found():
    empty = InstanceData(
        bboxes=torch.zeros(0, 4), scores=torch.zeros(0), labels=torch.zeros(0, dtype=torch.long),
        masks=torch.zeros(0, 5, 6, dtype=torch.bool),
    )  # fmt: skip
    views = [BaseDataElement(metainfo=dict(ori_shape=(5, 6), mirrored=side)) for side in (None, 'horizontal')]
    for sample in views:
        sample.pred_instances = empty
    (merged,) = InstanceTTA(tta_cfg=TTA_CFG, module=Brightest()).merge_preds([views])
    assert len(merged.pred_instances) == 0
    assert merged.pred_instances.masks.shape == (0, 5, 6)


class FlippedElements(TorchDispatchMode):
    """Counts the elements of masks that are mirrored."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket is torch.ops.aten.flip and args[0].dtype == torch.bool:
            self.count += args[0].numel()
        return function(*args, **(kwargs or {}))


def test_masks_are_mirrored_after_the_boxes_are_suppressed():
    """The same as to turn everything back and then to suppress, with the work for the masks that stay."""
    shape, directions = (8, 12), (None, 'horizontal', 'vertical', 'diagonal')
    masks, everything = [], []
    views = [BaseDataElement(metainfo=dict(ori_shape=shape, mirrored=direction)) for direction in directions]
    for view, direction in zip(views, directions, strict=True):
        corners = torch.rand(30, 2) * torch.tensor([8.0, 4.0])
        instances = InstanceData(
            bboxes=torch.cat([corners, corners + 1 + 3 * torch.rand(30, 2)], dim=1),
            scores=torch.rand(30),
            labels=torch.randint(2, (30,)),
            masks=torch.rand(30, *shape) > 0.5,
        )
        view.pred_instances = instances
        dims = {None: (), 'horizontal': (-1,), 'vertical': (-2,), 'diagonal': (-1, -2)}[direction]
        masks.append(instances.masks.flip(dims))
        upright = instances.bboxes.clone()
        for dim in dims:  # -1: x, -2: y
            low, high = upright[:, -dim - 1].clone(), upright[:, -dim + 1].clone()
            upright[:, -dim - 1], upright[:, -dim + 1] = shape[dim] - high, shape[dim] - low
        everything.append(upright)
    boxes = torch.cat(everything)
    scores, labels = (torch.cat([view.pred_instances[field] for view in views]) for field in ('scores', 'labels'))
    kept = torchvision.ops.batched_nms(boxes, scores, labels, TTA_CFG['nms']['iou_threshold'])[:20]

    with FlippedElements() as flipped:
        (sample,) = InstanceTTA(tta_cfg=dict(TTA_CFG, max_per_img=20), module=Brightest()).merge_preds([views])
    found = sample.pred_instances
    assert len(found) == len(kept) == 20
    torch.testing.assert_close(found.bboxes, boxes[kept])
    assert torch.equal(found.scores, scores[kept])
    assert torch.equal(found.labels, labels[kept])
    assert torch.equal(found.masks, torch.cat(masks)[kept])
    assert 0 < flipped.count <= 20 * shape[0] * shape[1]


def test_soft_nms_lowers_the_scores(rectangle):
    tta_cfg = dict(nms=dict(type='soft_nms', iou_threshold=0.5), max_per_img=100)
    (sample,) = InstanceTTA(tta_cfg=tta_cfg, module=Brightest()).test_step(
        collate(view(rectangle, bonus=0.1), view(rectangle))
    )
    assert sample.pred_instances.scores[0] == pytest.approx(0.6)
    assert all(score < 0.01 for score in sample.pred_instances.scores[1:])


# --------------------------------------------------------------------------------------------- real models


def build(config: Path, seed: int = 0) -> tuple[Config, nn.Module]:
    cfg = Config.fromfile(config)
    init_default_scope(cfg.default_scope)
    if 'rcnn' in cfg.model.test_cfg:
        cfg.model.test_cfg.rcnn.update(score_thr=0.0, max_per_img=30)  # an untrained head is sure of nothing
    torch.manual_seed(seed)
    return cfg, MODELS.build(cfg.model).eval()


def views_of(cfg: Config, shapes: Path, pipeline: list, index: int = 0) -> dict:
    dataset = dict(cfg.val_dataloader.dataset, data_root=str(shapes), pipeline=pipeline, **DRAWN)
    return pseudo_collate([DATASETS.build(dataset)[index]])


@torch.no_grad()
def test_one_plain_view_is_the_plain_prediction(shapes):
    cfg, detector = build(DETECTOR)
    plain = views_of(cfg, shapes, cfg.test_pipeline)
    (expected,) = detector.test_step(plain)
    expected = expected.pred_instances
    model = MODELS.build(dict(type='InstanceTTA', tta_cfg=TTA_CFG, module=detector))
    one_view = [
        [dict(type='Resize', scale_factor=1.0)],
        [dict(type='RandomFlip', prob=0.0)],
        [dict(type='PackDetInputs')],
    ]
    pipeline = [dict(type='LoadImageFromFile'), dict(type='TestTimeAug', transforms=one_view)]
    (sample,) = model.test_step(views_of(cfg, shapes, pipeline))
    found = sample.pred_instances
    assert len(found) > 5
    for field in ('bboxes', 'scores', 'labels', 'masks'):
        torch.testing.assert_close(found[field], expected[field])


@torch.no_grad()
def test_probabilities_are_averaged_over_whole_images(shapes):
    cfg, segmentor = build(SEGMENTOR)
    nn.init.normal_(segmentor.decode_head.conv_seg.weight, std=0.5)  # or all pixels are of one class
    segmentor.test_cfg = ConfigDict(mode='slide', crop_size=(32, 32), stride=(21, 21))
    model = MODELS.build(dict(type='WholeImageTTA', module=segmentor))
    data = views_of(cfg, shapes, cfg.tta_pipeline)
    assert len(data['inputs']) == 6
    (sample,) = model.test_step(data)

    image = cv2.imread(sample.img_path)
    height, width = image.shape[:2]
    mean, std = torch.tensor(cfg.model.data_preprocessor.mean), torch.tensor(cfg.model.data_preprocessor.std)
    total = torch.zeros(8, height, width)
    for ratio in (0.75, 1.0, 1.25):
        size = int(width * ratio + 0.5), int(height * ratio + 0.5)
        resized = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
        for flip in (False, True):
            pixels = np.ascontiguousarray(resized[:, ::-1, ::-1] if flip else resized[:, :, ::-1])  # BGR to RGB
            x = ((torch.from_numpy(pixels) - mean) / std).permute(2, 0, 1)[None]
            bottom, right = -size[1] % 32, -size[0] % 32
            padded = F.pad(x, (0, right, 0, bottom))
            scores = segmentor.decode_head(segmentor.backbone(padded))
            scores = F.interpolate(scores, size=padded.shape[2:], mode='bilinear', align_corners=False)
            scores = scores[:, :, : size[1], : size[0]]
            scores = scores.flip(-1) if flip else scores
            scores = F.interpolate(scores, size=(height, width), mode='bilinear', align_corners=False)
            total += scores[0].softmax(dim=0)
    torch.testing.assert_close(sample.seg_logits.data, total / 6, rtol=1e-3, atol=1e-5)
    assert torch.equal(sample.pred_sem_seg.data[0], sample.seg_logits.data.argmax(dim=0))
    assert len(sample.pred_sem_seg.data.unique()) > 1
    assert sample.gt_sem_seg.shape == (height, width)


@pytest.mark.parametrize('test_cfg', [None, {}, dict(mode='slide', crop_size=(32, 32), stride=(21, 21))])
def test_any_test_cfg_becomes_one_of_whole_images(test_cfg):
    _, segmentor = build(SEGMENTOR)
    segmentor.test_cfg = test_cfg
    assert WholeImageTTA(module=segmentor).module.test_cfg.mode == 'whole'


def test_binary_segmentor_is_decided_by_its_threshold():
    class Constant(nn.Module):
        out_channels = 1
        test_cfg = ConfigDict(mode='whole')
        decode_head = ConfigDict(threshold=0.5)

        def test_step(self, data: dict) -> list[BaseDataElement]:
            (sample,) = data['data_samples']
            sample.seg_logits = BaseDataElement(data=data['inputs'][0])
            return [sample]

    model = WholeImageTTA(module=Constant())
    views = [torch.tensor([[[0.2, 0.9]]]), torch.tensor([[[0.4, 0.3]]])]
    (sample,) = model.test_step(dict(inputs=[[v] for v in views], data_samples=[[BaseDataElement()] for _ in views]))
    torch.testing.assert_close(sample.seg_logits.data, torch.tensor([[[0.3, 0.6]]]))
    assert sample.pred_sem_seg.data.tolist() == [[[0.0, 1.0]]]


@pytest.mark.parametrize('config', [DETECTOR, SEGMENTOR], ids=['detector', 'segmentor'])
def test_joined_and_wrapped_data_sets_are_augmented(config, shapes):
    cfg = Config.fromfile(config)
    init_default_scope(cfg.default_scope)
    drawn = dict(cfg.test_dataloader.dataset, data_root=str(shapes), **DRAWN)
    repeated = dict(type='RepeatDataset', times=2, dataset=drawn)
    cfg.test_dataloader.dataset = dict(type='ConcatDataset', datasets=[drawn, repeated])
    plain = DATASETS.build(cfg.test_dataloader.dataset)
    run_config.enable_tta(cfg)
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    assert len(dataset) == len(plain) == 9
    for i in (0, 8):
        assert torch.is_tensor(plain[i]['inputs'])
        assert len(dataset[i]['inputs']) == len(dataset[i]['data_samples']) >= 2


@pytest.mark.parametrize(
    ('name', 'model'),
    [
        ('det/retinanet_convnext_t_coco', 'DetTTAModel'),
        ('det/rtmdet_convnext_t_coco', 'DetTTAModel'),
        ('det/dino_convnext_t_coco', 'InstanceTTA'),
        ('det/mask2former_convnext_t_coco', 'InstanceTTA'),
        ('seg/mask2former_convnext_t_ade20k', 'SegTTAModel'),
    ],
)
def test_modern_heads_are_augmented(name, model):
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    inner = cfg.model
    run_config.enable_tta(cfg)
    assert (cfg.model.type, cfg.model.module) == (model, inner)
    load, views = cfg.test_dataloader.dataset.pipeline
    assert (load.type, views.type) == ('LoadImageFromFile', 'TestTimeAug')
    (pack,) = views.transforms[-1]
    assert pack.type.startswith('Pack')
    assert {'flip', 'flip_direction'} <= set(pack.get('meta_keys', ('flip', 'flip_direction')))


def small_transformer(name: str) -> Config:
    """Return a detector with the smallest backbone, one layer in each stack of transformer layers, and 30 queries."""
    cfg = Config.fromfile(CONFIGS / f'det/{name}.py')
    model, dataset = cfg.model, cfg.test_dataloader.dataset
    widths = {'neck': [80, 160, 320], 'panoptic_head': [40, 80, 160, 320]}
    for part in widths.keys() & model.keys():
        model[part].in_channels = widths[part]
    model.backbone = dict(type='ConvNeXt', arch='atto', out_indices=model.backbone.get('out_indices', (0, 1, 2, 3)))
    for node in walk(model):
        node.update({key: size for key, size in dict(num_layers=1, num_queries=30).items() if key in node})
    dataset.update(ann_file='annotations/instances_val.json', data_prefix=dict(img='images/val'))
    dataset.metainfo = dict(classes=('circle', 'square'))
    return cfg


@pytest.mark.filterwarnings('ignore:The arguments `dropout` in MultiheadAttention:DeprecationWarning')  # in mmcv
@torch.no_grad()
@pytest.mark.parametrize(
    'name', ['cascade_convnext_atto_shapes', 'dino_convnext_t_coco', 'mask2former_convnext_t_coco']
)
def test_views_of_a_mirrored_image_give_the_mirrored_prediction(name, shapes):
    """The views of an image and those of its mirror image are the same ones, and what comes out is mirrored."""
    cfg = build(DETECTOR)[0] if name.startswith('cascade') else small_transformer(name)
    dataset = cfg.test_dataloader.dataset
    dataset.update(data_root=str(shapes), **(DRAWN if name.startswith('cascade') else {}))
    run_config.enable_tta(cfg)
    resizes = next(step.transforms[0] for step in cfg.tta_pipeline if step.type == 'TestTimeAug')
    for resize, side in zip(resizes, (64, 96, 160), strict=False):
        resize.scale = (side, side)
    init_default_scope('mmdet')
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).eval()
    model.module.init_weights()
    data = DATASETS.build(dataset)[0]
    views, num_views = data['inputs'], 2 * len(resizes)
    assert [sample.flip for sample in data['data_samples']] == [False, True] * len(resizes)
    mirrored = dict(inputs=[views[i ^ 1] for i in range(num_views)], data_samples=copy.deepcopy(data['data_samples']))
    (found,), (others,) = (model.test_step(pseudo_collate([each])) for each in (data, mirrored))
    (height, width), found, others = found.ori_shape, found.pred_instances, others.pred_instances
    assert 5 < len(found) == len(others) <= 100
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
    torch.testing.assert_close(found.scores, others.scores, atol=1e-4, rtol=0)
    x1, y1, x2, y2 = others.bboxes.unbind(-1)
    unmirrored = torch.stack([width - x2, y1, width - x1, y2], -1)
    is_other = (found.labels[:, None] != others.labels) * 1e6
    distances, nearest = (torch.cdist(found.bboxes, unmirrored, p=float('inf')) + is_other).min(1)
    assert distances.max() < 0.1  # of a pixel
    if 'masks' in found:
        assert found.masks.shape == (len(found), height, width)
        assert (found.masks == others.masks[nearest].flip(-1)).float().mean() > 0.999
    assert found.bboxes.min() >= 0
    assert found.bboxes[:, 2].max() <= width
    assert found.bboxes[:, 3].max() <= height


@pytest.mark.parametrize(
    ('name', 'value', 'message'),
    [
        ('tta_model', None, r'needs tta_model in the config; .* convnext_dense/tta\.py tells how'),
        ('tta_pipeline', [dict(type='Load'), dict(type='Pack')], r'needs a TestTimeAug .*; this one has Load, Pack\.'),
    ],
)
def test_a_config_that_cannot_be_augmented(name, value, message):
    cfg = Config.fromfile(DETECTOR)
    cfg[name] = value
    with pytest.raises(UserError, match=f'^--tta {message}'):
        run_config.enable_tta(cfg)


def test_views_of_other_sizes_than_the_test_are_noted():
    """As where a config inherits the views, and has a test pipeline of its own."""
    cfg = Config.fromfile(CONFIGS / 'det/cascade_convnext_t_coco.py')
    assert run_config.enable_tta(copy.deepcopy(cfg)) == []
    cfg.test_dataloader.dataset.pipeline[1].scale = (320, 240)
    assert run_config.enable_tta(cfg) == [
        '--tta tests with sizes of its own, (600, 1000), (800, 1333), (1000, 1666); without it the size is (240, 320)'
    ]


def test_a_suppression_that_does_not_exist():
    with pytest.raises(ValueError, match=r"^tta_cfg\.nms\.type is nms or soft_nms; got 'nope'\.$"):
        InstanceTTA(dict(nms=dict(type='nope'), max_per_img=3), module=Brightest())
    assert InstanceTTA(dict(nms=dict(iou_threshold=0.5), max_per_img=3), module=Brightest()).nms['type'] == 'nms'


@pytest.mark.parametrize('config', [DETECTOR, SEGMENTOR], ids=['detector', 'segmentor'])
def test_whole_run(config, shapes, tmp_path, capfd, monkeypatch):
    _, model = build(config, seed=7)
    checkpoint = tmp_path / 'untrained.pth'
    torch.save({'meta': {}, 'state_dict': model.state_dict()}, checkpoint)
    options = {f'test_dataloader.dataset.{key}': value for key, value in DRAWN.items()}
    options['test_dataloader.dataset.data_root'] = str(shapes)
    if config == DETECTOR:
        options['test_evaluator.ann_file'] = str(shapes / 'annotations/instances_val.json')
        options['model.test_cfg.rcnn.score_thr'] = 0.0
    wrapper, in_use = InstanceTTA if config == DETECTOR else WholeImageTTA, []

    def step(self, data):
        in_use.append({key: value.clone() for key, value in self.module.state_dict().items()})
        return test_step(self, data)

    test_step = wrapper.test_step
    monkeypatch.setattr(wrapper, 'test_step', step)
    plain, augmented = (
        runs.test(config, str(checkpoint), str(tmp_path / str(tta)), cfg_options=options, tta=tta)
        for tta in (False, True)
    )
    assert plain.keys() == augmented.keys()
    assert all(np.isfinite(value) for value in augmented.values())
    assert in_use  # with the weights of the checkpoint, each of them
    for weights in in_use:
        assert weights.keys() == model.state_dict().keys()
        assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    assert 'test finished' in capfd.readouterr().out
