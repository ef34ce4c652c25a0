"""The cascade with narrow heads and few samples, for 128-pixel images on a CPU."""

_base_ = ['cascade_mask_rcnn.py']

width = 64
num_classes = 5
narrow = dict(
    num_shared_convs=1,
    in_channels=width,
    conv_out_channels=width,
    fc_out_channels=4 * width,
    num_classes=num_classes,
    norm_cfg=dict(type='GN', num_groups=8),
)
model = dict(
    neck=dict(out_channels=width),
    rpn_head=dict(in_channels=width, feat_channels=width, anchor_generator=dict(scales=[4])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=width),
        bbox_head=[dict(head, **narrow) for head in _base_.model.roi_head.bbox_head],
        mask_roi_extractor=dict(out_channels=width),
        mask_head=dict(num_convs=2, in_channels=width, conv_out_channels=width, num_classes=num_classes),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=128)),
        rpn_proposal=dict(nms_pre=200, max_per_img=100),
        rcnn=[dict(stage, sampler=dict(stage.sampler, num=32)) for stage in _base_.model.train_cfg.rcnn],
    ),
    test_cfg=dict(rpn=dict(nms_pre=200, max_per_img=100)),
)
