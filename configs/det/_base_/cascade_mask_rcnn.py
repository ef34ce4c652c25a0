"""Cascade Mask R-CNN with the heads of the paper: 4conv1fc box heads with SyncBN, GIoU on decoded boxes.

Follows facebookresearch/ConvNeXt ``object_detection/configs``.
"""

_base_ = ['two_stage.py']

# one row a cascade stage: loss weight, IoU threshold, standard deviations of the box targets
stages = [
    (1.0, 0.5, (0.1, 0.1, 0.2, 0.2)),
    (0.5, 0.6, (0.05, 0.05, 0.1, 0.1)),
    (0.25, 0.7, (0.033, 0.033, 0.067, 0.067)),
]

model = dict(
    type='CascadeRCNN',
    rpn_head=dict(loss_bbox=dict(type='SmoothL1Loss', beta=1.0 / 9.0, loss_weight=1.0)),
    roi_head=dict(
        type='CascadeRoIHead',
        num_stages=len(stages),
        stage_loss_weights=[loss_weight for loss_weight, _, _ in stages],
        bbox_head=[
            dict(
                type='ConvFCBBoxHead',
                num_shared_convs=4,
                num_shared_fcs=1,
                in_channels=256,
                conv_out_channels=256,
                fc_out_channels=1024,
                roi_feat_size=7,
                num_classes=_base_.num_classes,
                bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_means=[0.0] * 4, target_stds=list(stds)),
                reg_class_agnostic=False,
                reg_decoded_bbox=True,
                norm_cfg=dict(type='SyncBN', requires_grad=True),
                loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
                loss_bbox=dict(type='GIoULoss', loss_weight=10.0),
            )
            for _, _, stds in stages
        ],
    ),
    train_cfg=dict(
        rpn=dict(allowed_border=0),
        rpn_proposal=dict(max_per_img=2000),
        rcnn=[
            dict(
                assigner=dict(
                    type='MaxIoUAssigner',
                    pos_iou_thr=iou,
                    neg_iou_thr=iou,
                    min_pos_iou=iou,
                    match_low_quality=False,
                    ignore_iof_thr=-1,
                ),
                sampler=dict(type='RandomSampler', num=512, pos_fraction=0.25, neg_pos_ub=-1, add_gt_as_proposals=True),
                mask_size=28,
                pos_weight=-1,
                debug=False,
            )
            for _, iou, _ in stages
        ],
    ),
)
