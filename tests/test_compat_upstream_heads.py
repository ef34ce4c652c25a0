"""Each cure of an upstream head mends a defect that is shown first, on upstream's own function."""

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.registry import DefaultScope

from convnext_dense.configs import config_folder
from convnext_dense.data.samples import draw_batch
from convnext_dense.train.screen import quiet

CHANNELS_LAST = torch.channels_last


def test_masks_are_pasted_from_boxes_outside_of_the_image():
    from mmdet.models.roi_heads.mask_heads import fcn_mask_head

    paste, upstream_paste = fcn_mask_head._do_paste_mask, fcn_mask_head._do_paste_mask.__wrapped__
    masks = torch.rand(2, 1, 7, 7)
    outside = torch.tensor([[-90.0, -90, -60, -60], [-40, -50, -20, -20]])
    with pytest.raises(RuntimeError, match='upper bound and (larger|lower) bound inconsistent with step sign'):
        upstream_paste(masks, outside, 32, 48, skip_empty=True)
    pasted, _ = paste(masks, outside, 32, 48, skip_empty=True)
    assert pasted.shape == (2, 32, 48)
    assert not pasted.any()


@pytest.mark.parametrize('skip_empty', [True, False])
def test_masks_in_the_image_are_pasted_as_upstream_does(skip_empty):
    from mmdet.models.roi_heads.mask_heads import fcn_mask_head

    paste, upstream_paste = fcn_mask_head._do_paste_mask, fcn_mask_head._do_paste_mask.__wrapped__
    boxes = torch.tensor([[-5.0, 3, 20, 30], [10, 12, 60, 20]])
    arguments = (torch.rand(2, 1, 7, 7), boxes, 32, 48, skip_empty)
    (ours, our_place), (theirs, their_place) = paste(*arguments), upstream_paste(*arguments)
    assert torch.equal(ours, theirs)
    assert our_place == their_place


@pytest.mark.parametrize('fusion', [True, False])
def test_a_dynamic_convolution_takes_channels_last_maps(fusion):
    from mmseg.models.decode_heads.dm_head import DCM

    module = DCM(3, fusion, 8, 4, None, None, dict(type='ReLU'))
    x = torch.randn(2, 8, 6, 5)
    with pytest.raises(RuntimeError, match='view size is not compatible'):
        DCM.forward.__wrapped__(module, x.to(memory_format=CHANNELS_LAST))
    expected = DCM.forward.__wrapped__(module, x)
    assert torch.equal(module(x), expected)
    torch.testing.assert_close(module(x.to(memory_format=CHANNELS_LAST)), expected)


def test_the_head_of_ssd_predicts():
    from mmdet.models.dense_heads import SSDHead
    from mmdet.registry import MODELS
    from mmdet.structures import DetDataSample

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
    """DDQ with few layers and queries."""
    from mmdet.registry import MODELS

    model = Config.fromfile(config_folder('mmdet') / 'ddq/ddq-detr-4scale_r50_8xb2-12e_coco.py').model
    model.update(num_queries=8, dense_topk_ratio=1.0)
    model.backbone = dict(type='ConvNeXt', arch='atto', out_indices=(1, 2, 3))
    model.neck.in_channels = [80, 160, 320]
    model.encoder.num_layers = model.decoder.num_layers = 1
    model.data_preprocessor.pop('batch_augments', None)
    with DefaultScope.overwrite_default_scope('mmdet'), quiet():
        return MODELS.build(model)


def names_before_and_after_a_step(model):
    model.init_weights()
    before = set(model.state_dict())
    MessageHub.get_current_instance().update_info('epoch', 0)
    model.train()
    batch = draw_batch('mmdet', [0, 1], 64)
    for sample in batch['data_samples']:
        del sample.gt_instances.masks
    model(**model.data_preprocessor(batch, training=True), mode='loss')
    return before, set(model.state_dict())


def test_a_trained_ddq_has_the_names_of_a_built_one(monkeypatch):
    from mmdet.models.detectors import ddq_detr

    model = build_ddq()
    before, after = names_before_and_after_a_step(model)
    assert after == before
    for name in ('__init__', 'init_weights'):
        monkeypatch.setattr(ddq_detr.DDQDETR, name, getattr(ddq_detr.DDQDETR, name).__wrapped__)
    upstream_before, upstream_after = names_before_and_after_a_step(build_ddq())
    assert upstream_after - upstream_before == {name for name in before if name.startswith('decoder.aux_reg_branches')}
    assert upstream_after == after


def test_ddq_has_upstreams_initial_weights(monkeypatch):
    from mmdet.models.detectors import ddq_detr

    def initialized():
        torch.manual_seed(0)
        model = build_ddq()
        model.init_weights()
        return dict(model.named_parameters())

    ours = initialized()
    for name in ('__init__', 'init_weights'):
        monkeypatch.setattr(ddq_detr.DDQDETR, name, getattr(ddq_detr.DDQDETR, name).__wrapped__)
    theirs = initialized()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
