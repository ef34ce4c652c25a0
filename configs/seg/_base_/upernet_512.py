"""UperNet with an FCN head beside it, for crops of 512 pixels.

Follows facebookresearch/ConvNeXt ``semantic_segmentation/configs``. A leaf sets the backbone,
``decode_head.in_channels`` and ``auxiliary_head.in_channels``.
"""

window = (512, 512)
num_classes = 150
norm = dict(type='SyncBN', requires_grad=True)

model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=window,
    ),
    backbone=dict(type='ConvNeXt', layer_scale_init_value=1.0),
    decode_head=dict(
        type='UPerHead',
        in_index=[0, 1, 2, 3],
        channels=512,
        pool_scales=(1, 2, 3, 6),
        dropout_ratio=0.1,
        num_classes=num_classes,
        norm_cfg=norm,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    ),
    auxiliary_head=dict(
        type='FCNHead',
        in_index=2,
        channels=256,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.1,
        num_classes=num_classes,
        norm_cfg=norm,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=0.4),
    ),
    train_cfg=dict(),
    # windows overlap by a third
    test_cfg=dict(mode='slide', crop_size=window, stride=(2 * window[0] // 3, 2 * window[1] // 3)),
)
