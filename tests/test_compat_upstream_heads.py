"""Each cure of an upstream head mends a defect that is shown first, on upstream's own function."""

import pytest
import torch
from mmdet.models.dense_heads import SSDHead
from mmdet.models.detectors.ddq_detr import DDQDETR
from mmdet.models.roi_heads.mask_heads import fcn_mask_head
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.registry import DefaultScope
from mmseg.models.decode_heads.dm_head import DCM

from convnext_dense.configs import config_folder
from convnext_dense.data.samples import draw_batch
from convnext_dense.train.screen import quiet


@pytest.mark.parametrize(
    'boxes', [[[-90.0, -90, -60, -60], [-40, -50, -20, -20]], [[-5.0, 3, 20, 30], [10, 12, 60, 20]]]
)
@pytest.mark.parametrize('skip_empty', [True, False])
def test_masks_are_pasted_from_boxes_anywhere(boxes, skip_empty):
    paste, upstream_paste = fcn_mask_head._do_paste_mask, fcn_mask_head._do_paste_mask.__wrapped__
    masks, boxes = torch.rand(2, 1, 7, 7), torch.tensor(boxes)
    pasted, place = paste(masks, boxes, 32, 48, skip_empty)
    if skip_empty and boxes.max() < 0:
        with pytest.raises(RuntimeError, match='upper bound and (larger|lower) bound inconsistent with step sign'):
            upstream_paste(masks, boxes, 32, 48, skip_empty)
        assert pasted.shape == (2, 32, 48)
        assert not pasted.any()
    else:
        expected, expected_place = upstream_paste(masks, boxes, 32, 48, skip_empty)
        assert torch.equal(pasted, expected)
        assert place == expected_place


@pytest.mark.parametrize('fusion', [True, False])
def test_a_dynamic_convolution_takes_channels_last_maps(fusion):
    module = DCM(3, fusion, 8, 4, None, None, dict(type='ReLU'))
    x = torch.randn(2, 8, 6, 5)
    channels_last = x.to(memory_format=torch.channels_last)
    with pytest.raises(RuntimeError, match='view size is not compatible'):
        DCM.forward.__wrapped__(module, channels_last)
    expected = DCM.forward.__wrapped__(module, x)
    assert torch.equal(module(x), expected)
    torch.testing.assert_close(module(channels_last), expected)


def test_the_head_of_ssd_predicts():
    model = Config.fromfile(config_folder('mmdet') / 'ssd/ssd300_coco.py').model
    model.bbox_head.update(in_channels=(4,) * 6, num_classes=2, test_cfg=model.test_cfg)
    with DefaultScope.overwrite_default_scope('mmdet'):
        head = MODELS.build(model.bbox_head)
    maps = [torch.randn(1, 4, side, side) for side in (38, 19, 10, 5, 3, 1)]
    samples = [DetDataSample(metainfo=dict(img_shape=(300, 300), scale_factor=(1.0, 1.0)))]
    (found,) = head.predict(maps, samples)
    assert len(found) > 0
    del head.loss_cls
    with pytest.raises(AttributeError, match="no attribute 'loss_cls'"):
        head.predict(maps, samples)

    class Focal(SSDHead):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.loss_cls = torch.nn.Identity()

    model.bbox_head.pop('type')
    with DefaultScope.overwrite_default_scope('mmdet'):
        assert isinstance(Focal(**model.bbox_head).loss_cls, torch.nn.Identity)


def build_ddq():
    """DDQ with few layers and queries, and with its initial weights."""
    config = Config.fromfile(config_folder('mmdet') / 'ddq/ddq-detr-4scale_r50_8xb2-12e_coco.py').model
    config.update(num_queries=8, dense_topk_ratio=1.0)
    config.backbone = dict(type='ConvNeXt', arch='atto', out_indices=(1, 2, 3))
    config.neck.in_channels = [80, 160, 320]
    config.encoder.num_layers = config.decoder.num_layers = 1
    config.data_preprocessor.pop('batch_augments', None)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'), quiet():
        model = MODELS.build(config)
        model.init_weights()
    return model


def test_a_trained_ddq_has_the_names_of_a_built_one(monkeypatch):
    ours = build_ddq()
    for name in ('__init__', 'init_weights'):
        monkeypatch.setattr(DDQDETR, name, getattr(DDQDETR, name).__wrapped__)
    theirs = build_ddq()
    initial = dict(theirs.named_parameters())
    assert list(initial) == [name for name, _ in ours.named_parameters()]
    assert all(torch.equal(value, initial[name]) for name, value in ours.named_parameters())

    built, built_by_upstream = set(ours.state_dict()), set(theirs.state_dict())
    MessageHub.get_current_instance().update_info('epoch', 0)
    for model in (ours, theirs):
        batch = draw_batch('mmdet', [0, 1], 64)
        for sample in batch['data_samples']:
            del sample.gt_instances.masks
        model.train()(**model.data_preprocessor(batch, training=True), mode='loss')
    assert built == set(ours.state_dict()) == set(theirs.state_dict())
    assert built - built_by_upstream == {name for name in built if name.startswith('decoder.aux_reg_branches')} != set()
