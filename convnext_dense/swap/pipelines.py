"""Which configs of MMDetection and MMSegmentation run with a ConvNeXt in place of their backbone, and which do not.

One row for each method, with ConvNeXt-atto; a row is tried by :func:`try_config`, and tests hold each against what
comes of it, the gaps too. Out: ``docs/pipelines.md``, written by :mod:`~convnext_dense.swap.pipelines_page`.
"""

import tempfile
from collections.abc import Callable, Collection
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from convnext_dense.compat.errors import UserError
from convnext_dense.swap.changes import dotted
from convnext_dense.swap.maps import STRIDES
from convnext_dense.swap.proof import prove
from convnext_dense.swap.survey import Survey
from convnext_dense.swap.swapping import swap_backbone
from convnext_dense.swap.writing import save

ARCH = 'atto'
ALL, FROM_8, FROM_16, LAST = STRIDES, STRIDES[1:], STRIDES[2:], STRIDES[3:]
HEADS = 'decode_head, auxiliary_head'


class Row(NamedTuple):
    """A config that runs.

    Attributes:
        method: As its paper calls it.
        config: Among those that the libraries are installed with.
        strides: Of the maps that ConvNeXt gives.
        params: Of the model, in millions.
        fitted: What takes other channels than upstream.
        unused: Parameters of the backbone without a gradient, which the written config allows.
        needs: A package that it cannot be without; '' for none.
    """

    method: str
    config: str
    strides: tuple[int, ...]
    params: float
    fitted: str = 'neck'
    unused: tuple[str, ...] = ()
    needs: str = ''


class Gap(NamedTuple):
    """A config that does not run.

    Attributes:
        method: As its paper calls it.
        config: As in :class:`Row`.
        why: The reason in words.
        error: A piece of what the tool says; '' where that depends on the machine.
    """

    method: str
    config: str
    why: str
    error: str = ''


DETECTION = (
    Row('Faster R-CNN', 'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', ALL, 20.79),
    Row('Faster R-CNN, OHEM', 'faster_rcnn/faster-rcnn_r50_fpn_ohem_1x_coco.py', ALL, 20.79),
    Row('Fast R-CNN', 'fast_rcnn/fast-rcnn_r50_fpn_1x_coco.py', ALL, 20.2),
    Row('Mask R-CNN', 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', ALL, 23.43),
    Row('Mask R-CNN on Swin', 'swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py', ALL, 23.43),
    Row(
        'Mask R-CNN on ConvNeXt of mmpretrain',
        'convnext/mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco.py',
        ALL,
        23.43,
    ),
    Row('Mask R-CNN, HRFPN', 'hrnet/mask-rcnn_hrnetv2p-w18-1x_coco.py', ALL, 24.02),
    Row(
        'Mask R-CNN, strong baseline',
        'strong_baselines/mask-rcnn_r50_fpn_rpn-2conv_4conv1fc_syncbn-all_lsj-100e_coco.py',
        ALL,
        25.34,
    ),
    Row('Cascade Mask R-CNN', 'cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py', ALL, 56.36),
    Row('RetinaNet', 'retinanet/retinanet_r50_fpn_1x_coco.py', FROM_8, 13.08),
    Row('RetinaNet on EfficientNet', 'efficientnet/retinanet_effb3_fpn_8xb4-crop896-1x_coco.py', FROM_8, 13.1),
    Row('RetinaNet on PVT', 'pvt/retinanet_pvt-t_fpn_1x_coco.py', FROM_8, 13.08),
    Row('FCOS', 'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py', FROM_8, 11.39),
    Row('ATSS', 'atss/atss_r50_fpn_1x_coco.py', FROM_8, 11.39),
    Row('GFL', 'gfl/gfl_r50_fpn_1x_coco.py', FROM_8, 11.53),
    Row('RTMDet', 'rtmdet/rtmdet_tiny_8xb32-300e_coco.py', FROM_8, 5.34),
    Row('RTMDet-Ins', 'rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py', FROM_8, 6.08),
    Row('YOLOX', 'yolox/yolox_tiny_8xb8-300e_coco.py', FROM_8, 5.56),
    Row('TOOD', 'tood/tood_r50_fpn_1x_coco.py', FROM_8, 11.29),
    Row('Sparse R-CNN', 'sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py', ALL, 85.33),
    Row('DETR', 'detr/detr_r50_8xb2-150e_coco.py', LAST, 21.0),
    Row('Conditional DETR', 'conditional_detr/conditional-detr_r50_8xb2-50e_coco.py', LAST, 22.89),
    Row('Deformable DETR', 'deformable_detr/deformable-detr_r50_16xb2-50e_coco.py', FROM_8, 15.23),
    Row('DAB-DETR', 'dab_detr/dab-detr_r50_8xb2-50e_coco.py', LAST, 23.15),
    Row('DINO', 'dino/dino-4scale_r50_8xb2-12e_coco.py', FROM_8, 22.81),
    Row('DDQ', 'ddq/ddq-detr-4scale_r50_8xb2-12e_coco.py', FROM_8, 23.72),
    Row('Mask2Former, instance', 'mask2former/mask2former_r50_8xb2-lsj-50e_coco.py', ALL, 23.06, 'panoptic_head'),
    Row(
        'Mask2Former, panoptic',
        'mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic.py',
        ALL,
        23.07,
        'panoptic_head',
    ),
    Row('MaskFormer', 'maskformer/maskformer_r50_ms-16xb1-75e_coco.py', ALL, 24.1, 'panoptic_head'),
    Row('SOLO', 'solo/solo_r50_fpn_1x_coco.py', ALL, 15.34),
    Row('SOLOv2', 'solov2/solov2_r50_fpn_1x_coco.py', ALL, 25.63),
    Row('CondInst', 'condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py', FROM_8, 13.26),
    Row('BoxInst', 'boxinst/boxinst_r50_fpn_ms-90k_coco.py', FROM_8, 14.24, needs='skimage'),
    Row('YOLACT', 'yolact/yolact_r50_1xb8-55e_coco.py', FROM_8, 10.41),
    Row('PointRend', 'point_rend/point-rend_r50-caffe_fpn_ms-1x_coco.py', ALL, 39.25),
    Row('QueryInst', 'queryinst/queryinst_r50_fpn_1x_coco.py', ALL, 151.73),
    Row('Mask Scoring R-CNN', 'ms_rcnn/ms-rcnn_r50_fpn_1x_coco.py', ALL, 39.77),
    Row('HTC', 'htc/htc_r50_fpn_1x_coco.py', ALL, 59.3),
    Row('SCNet', 'scnet/scnet_r50_fpn_1x_coco.py', ALL, 73.84),
    Row('Panoptic FPN', 'panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py', ALL, 25.06),
    Row('Double-Head R-CNN', 'double_heads/dh-faster-rcnn_r50_fpn_1x_coco.py', ALL, 26.38),
    Row('Grid R-CNN', 'grid_rcnn/grid-rcnn_r50_fpn_gn-head_2x_coco.py', ALL, 43.59),
    Row('Libra R-CNN', 'libra_rcnn/libra-faster-rcnn_r50_fpn_1x_coco.py', ALL, 21.05, 'neck.0'),
    Row('Dynamic R-CNN', 'dynamic_rcnn/dynamic-rcnn_r50_fpn_1x_coco.py', ALL, 20.79),
    Row('PISA', 'pisa/faster-rcnn_r50_fpn_pisa_1x_coco.py', ALL, 20.79),
    Row('CrowdDet', 'crowddet/crowddet-rcnn_r50_fpn_8xb2-30e_crowdhuman.py', ALL, 20.39),
    Row('RPN', 'rpn/rpn_r50_fpn_1x_coco.py', ALL, 6.48),
    Row('Cascade RPN', 'cascade_rpn/cascade-rpn_faster-rcnn_r50-caffe_fpn_1x_coco.py', ALL, 21.38),
    Row('GRoIE', 'groie/faste-rcnn_r50_fpn_groie_1x_coco.py', ALL, 22.69),
    Row('Deformable RoI pooling', 'dcn/faster-rcnn_r50_fpn_dpool_1x_coco.py', ALL, 76.78),
    Row('TOOD with deformable convolutions', 'tood/tood_r101-dconv-c3-c5_fpn_ms-2x_coco.py', FROM_8, 11.79),
    Row('VFNet with deformable convolutions', 'vfnet/vfnet_r50-mdconv-c3-c5_fpn_ms-2x_coco.py', FROM_8, 12.11),
    Row('DyHead', 'dyhead/atss_r50_fpn_dyhead_1x_coco.py', FROM_8, 18.16, 'neck.0'),
    Row('RepPoints', 'reppoints/reppoints-moment_r50_fpn_1x_coco.py', FROM_8, 11.96),
    Row('Guided anchoring', 'guided_anchoring/ga-retinanet_r50_fpn_1x_coco.py', FROM_8, 12.71),
    Row('PAFPN', 'pafpn/faster-rcnn_r50_pafpn_1x_coco.py', ALL, 24.33),
    Row('NAS-FPN', 'nas_fpn/retinanet_r50_nasfpn_crop640-50e_coco.py', FROM_8, 39.07),
    Row(
        'NAS-FCOS',
        'nas_fcos/nas-fcos_r50-caffe_fpn_nashead-gn-head_4xb4-1x_coco.py',
        ALL,
        17.66,
        unused=('backbone.norm0.weight', 'backbone.norm0.bias'),
    ),
    Row('FPG', 'fpg/faster-rcnn_r50_fpg_crop640-50e_coco.py', ALL, 59.06),
    Row('CARAFE', 'carafe/faster-rcnn_r50_fpn-carafe_1x_coco.py', ALL, 22.41),
    Row('CenterNet', 'centernet/centernet_r18-dcnv2_8xb16-crop512-140e_coco.py', LAST, 6.15),
    Row('CenterNet with FPN', 'centernet/centernet-update_r50_fpn_8xb8-amp-lsj-200e_coco.py', FROM_8, 11.39),
    Row('SSD', 'ssd/ssd300_coco.py', (8, 16), 9.81, 'neck, bbox_head'),
    Row('YOLOF', 'yolof/yolof_r50-c5_8xb8-1x_coco.py', LAST, 23.14),
    Row('YOLOv3', 'yolo/yolov3_d53_8xb8-320-273e_coco.py', FROM_8, 24.27),
    Row('SABL', 'sabl/sabl-retinanet_r50_fpn_1x_coco.py', FROM_8, 11.65),
    Row('AutoAssign', 'autoassign/autoassign_r50-caffe_fpn_1x_coco.py', FROM_8, 11.54),
    Row('DDOD', 'ddod/ddod_r50_fpn_1x_coco.py', FROM_8, 11.47),
    Row('FoveaBox', 'foveabox/fovea_r50_fpn_4xb4-1x_coco.py', FROM_8, 11.53),
    Row('FreeAnchor', 'free_anchor/freeanchor_r50_fpn_1x_coco.py', FROM_8, 13.08),
    Row('FSAF', 'fsaf/fsaf_r50_fpn_1x_coco.py', FROM_8, 11.53),
    Row('GHM', 'ghm/retinanet_r50_fpn_ghm-1x_coco.py', FROM_8, 13.08),
    Row('PAA', 'paa/paa_r50_fpn_1x_coco.py', FROM_8, 11.39, needs='sklearn'),
    Row('LAD', 'lad/lad_r101-paa-r50_fpn_2xb8_coco_1x.py', FROM_8, 11.39, needs='sklearn'),
    Row('LD', 'ld/ld_r18-gflv1-r101_fpn_1x_coco.py', FROM_8, 11.53),
    Row(
        'Soft Teacher',
        'soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py',
        ALL,
        41.58,
        'detector.neck',
    ),
    Row(
        'MaskTrack R-CNN',
        'masktrack_rcnn/masktrack-rcnn_mask-rcnn_r50_fpn_8xb1-12e_youtubevis2019.py',
        ALL,
        37.11,
        'detector.neck',
    ),
    Row('Mask2Former, video', 'mask2former_vis/mask2former_r50_8xb2-8e_youtubevis2019.py', ALL, 23.05, 'track_head'),
)

SEGMENTATION = (
    Row('UPerNet', 'upernet/upernet_r50_4xb4-80k_ade20k-512x512.py', ALL, 32.1, HEADS),
    Row(
        'UPerNet on Swin',
        'swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py',
        ALL,
        32.1,
        HEADS,
    ),
    Row(
        'UPerNet on ConvNeXt of mmpretrain',
        'convnext/convnext-tiny_upernet_8xb2-amp-160k_ade20k-512x512.py',
        ALL,
        32.1,
        HEADS,
    ),
    Row('FCN', 'fcn/fcn_r50-d8_4xb4-80k_ade20k-512x512.py', FROM_16, 11.53, HEADS),
    Row('FCN on HRNet', 'hrnet/fcn_hr18_4xb4-80k_ade20k-512x512.py', ALL, 3.58, 'decode_head'),
    Row('PSPNet', 'pspnet/pspnet_r50-d8_4xb4-80k_ade20k-512x512.py', FROM_16, 15.43, HEADS),
    Row('DeepLabV3', 'deeplabv3/deeplabv3_r50-d8_4xb4-80k_ade20k-512x512.py', FROM_16, 20.41, HEADS),
    Row('DeepLabV3+', 'deeplabv3plus/deeplabv3plus_r50-d8_4xb4-80k_ade20k-512x512.py', (4, 16, 32), 17.06, HEADS),
    Row(
        'DeepLabV3+ on MobileNetV2',
        'mobilenet_v2/mobilenet-v2-d8_deeplabv3plus_4xb4-160k_ade20k-512x512.py',
        (4, 16, 32),
        17.06,
        HEADS,
    ),
    Row('OCRNet', 'ocrnet/ocrnet_hr18_4xb4-80k_ade20k-512x512.py', ALL, 7.61, 'decode_head.0, decode_head.1'),
    Row('SegFormer', 'segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py', ALL, 3.83, 'decode_head'),
    Row('Mask2Former', 'mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py', ALL, 23.08, 'decode_head'),
    Row('MaskFormer', 'maskformer/maskformer_r50-d32_8xb2-160k_ade20k-512x512.py', ALL, 16.36, 'decode_head'),
    Row(
        'K-Net',
        'knet/knet-s3_r50-d8_upernet_8xb2-adamw-80k_ade20k-512x512.py',
        ALL,
        45.31,
        'decode_head.kernel_generate_head, auxiliary_head',
    ),
    Row('PointRend', 'point_rend/pointrend_r50_4xb4-160k_ade20k-512x512.py', ALL, 7.91),
    Row('Semantic FPN', 'sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py', ALL, 7.53),
    Row('CCNet', 'ccnet/ccnet_r50-d8_4xb4-80k_ade20k-512x512.py', FROM_16, 11.86, HEADS),
    Row('DANet', 'danet/danet_r50-d8_4xb4-80k_ade20k-512x512.py', FROM_16, 12.01, HEADS),
    Row('EncNet', 'encnet/encnet_r50-d8_4xb4-80k_ade20k-512x512.py', FROM_16, 5.95, HEADS),
    Row('ISANet', 'isanet/isanet_r50-d8_4xb4-80k_ade20k-512x512.py', FROM_16, 7.7, HEADS),
    Row('DNLNet', 'dnlnet/dnl_r50-d8_4xb4-80k_ade20k-512x512.py', FROM_16, 12.06, HEADS),
    Row('GCNet', 'gcnet/gcnet_r50-d8_4xb4-80k_ade20k-512x512.py', FROM_16, 11.66, HEADS),
    Row('PSANet', 'psanet/psanet_r50-d8_4xb4-80k_ade20k-512x512.py', FROM_16, 12.45, HEADS),
    Row('ANN', 'ann/ann_r50-d8_4xb4-80k_ade20k-512x512.py', FROM_16, 6.71, HEADS),
    Row('APCNet', 'apcnet/apcnet_r50-d8_4xb4-80k_ade20k-512x512.py', FROM_16, 19.27, HEADS),
    Row('DMNet', 'dmnet/dmnet_r50-d8_4xb4-80k_ade20k-512x512.py', FROM_16, 16.09, HEADS),
    Row('EMANet', 'emanet/emanet_r50-d8_4xb2-80k_cityscapes-512x1024.py', FROM_16, 8.26, HEADS),
    Row('Non-local', 'nonlocal_net/nonlocal_r50-d8_4xb4-80k_ade20k-512x512.py', FROM_16, 12.06, HEADS),
    Row(
        'FastFCN', 'fastfcn/fastfcn_r50-d32_jpu_aspp_4xb4-80k_ade20k-512x512.py', FROM_8, 51.87, 'neck, auxiliary_head'
    ),
    Row('SegNeXt', 'segnext/segnext_mscan-t_1xb16-adamw-160k_ade20k-512x512.py', FROM_8, 3.76, 'decode_head'),
    Row('Segmenter', 'segmenter/segmenter_vit-t_mask_8xb1-160k_ade20k-512x512.py', (16,), 2.52, 'decode_head'),
)


GAPS = (
    Gap(
        'Faster R-CNN C4',
        'faster_rcnn/faster-rcnn_r50-caffe-c4_ms-1x_coco.py',
        "no neck: the head is a ResNet's last stage",
        'FasterRCNN has no neck, and its heads are made for the maps of ResNet.',
    ),
    Gap(
        'TridentNet',
        'tridentnet/tridentnet_r50-caffe_1x_coco.py',
        'no neck: branches inside of the ResNet',
        'TridentFasterRCNN has no neck, and its heads are made for the maps of TridentResNet.',
    ),
    Gap(
        'CornerNet',
        'cornernet/cornernet_hourglass104_8xb6-210e-mstest_coco.py',
        'made for two maps of one stride, of an hourglass',
        'HourglassNet gives maps of 256, 256 channels at strides 4, 4;',
    ),
    Gap(
        'CentripetalNet',
        'centripetalnet/centripetalnet_hourglass104_16xb6-crop511-210e-mstest_coco.py',
        'made for two maps of one stride, of an hourglass',
        'HourglassNet gives maps of 256, 256 channels at strides 4, 4;',
    ),
    Gap(
        'DetectoRS, recursive FPN',
        'detectors/cascade-rcnn_r50-rfp_1x_coco.py',
        'the FPN feeds back into a ResNet of its own',
        'DetectoRS_ResNet gives maps of 3, 256, 512, 1024, 2048 channels at strides 1, 4, 8, 16, 32;',
    ),
    Gap(
        'Cascade RPN alone',
        'cascade_rpn/cascade-rpn_r50-caffe_fpn_1x_coco.py',
        'does not build upstream either: the config lacks num_classes',
        "CascadeRPNHead.__init__() missing 1 required positional argument: 'num_classes'",
    ),
    Gap(
        'DeepSORT',
        'deepsort/deepsort_faster-rcnn_r50_fpn_8xb2-4e_mot17halftrain_test-mot17halfval.py',
        'two models, of which one tracks',
        'DeepSORT has several backbones, in model.detector, model.reid: exchange them by hand',
    ),
    Gap(
        'GLIP',
        'glip/glip_atss_swin-t_a_fpn_dyhead_16xb2_ms-2x_funtune_coco.py',
        'needs a BERT from Hugging Face, and sentences in the data',
    ),
    Gap(
        'Grounding DINO',
        'grounding_dino/grounding_dino_swin-t_finetune_16xb2_1x_coco.py',
        'needs a BERT from Hugging Face, fairscale, and sentences in the data',
    ),
    Gap(
        'OCRNet on a dilated ResNet',
        'ocrnet/ocrnet_r101-d8_8xb2-40k_cityscapes-512x1024.py',
        'its two heads compare maps of one size; OCRNet on HRNet runs',
        'Expected size for first two dimensions of batch2 tensor to be: [2, 64] but got: [2, 16].',
    ),
    Gap(
        'SETR',
        'setr/setr_vit-l-mla_8xb1-160k_ade20k-512x512.py',
        'made for four maps of stride 16, of a vision transformer',
        'VisionTransformer gives maps of 1024, 1024, 1024, 1024 channels at strides 16, 16, 16, 16;',
    ),
    Gap(
        'DPT',
        'dpt/dpt_vit-b16_8xb2-160k_ade20k-512x512.py',
        'made for the tokens of a vision transformer',
        'VisionTransformer gives more than feature maps, and its heads need it.',
    ),
    Gap(
        'SAN',
        'san/san-vit-b16_coco-stuff164k-640x640.py',
        'made for CLIP',
        'MultimodalEncoderDecoder has no `backbone` in its config: there is nothing to exchange.',
    ),
    Gap(
        'U-Net',
        'unet/unet-s5-d16_fcn_4xb4-40k_drive-64x64.py',
        'an encoder with its own decoder, not a backbone',
        'UNet gives maps of 1024, 512, 256, 128, 64 channels at strides 16, 8, 4, 2, 1;',
    ),
    Gap(
        'BiSeNetV2',
        'bisenetv2/bisenetv2_fcn_4xb4-160k_cityscapes-1024x1024.py',
        'a network of two branches, not a backbone',
        'BiSeNetV2 gives maps of 128, 16, 32, 64, 128 channels at strides 8, 4, 8, 16, 32;',
    ),
    Gap(
        'ICNet',
        'icnet/icnet_r50-d8_4xb2-80k_cityscapes-832x832.py',
        'a network of three branches, not a backbone',
        'ICNet gives maps of 64, 256, 256 channels at strides 8, 15, 32;',
    ),
    Gap(
        'STDC',
        'stdc/stdc1_in1k-pre_4xb12-80k_cityscapes-512x1024.py',
        'a network of two branches, not a backbone',
        'STDCContextPathNet gives maps of 256, 128, 128, 256 channels at strides 8, 16, 8, 8;',
    ),
)

ROWS = (*DETECTION, *SEGMENTATION)

# of MMDetection 3.3.0 and MMSegmentation 1.2.2
SURVEY = Survey(
    num_configs=1448,
    num_swapped=1291,
    reasons={
        "the old backbone's maps have other strides: ViT, U-Net, real-time networks, P6, recursive FPN": 93,
        'a piece of a config, without a model': 15,
        'heads made for one map of a ResNet or an hourglass (C4, TridentNet, CornerNet)': 11,
        'the old backbone needs mmpretrain': 11,
        'no backbone of MMDetection or MMSegmentation (Detectron2, CLIP)': 9,
        'the old backbone does not run on 256 pixels, or needs more packages (BEiT, MAE, VPD)': 9,
        'a base is not where the config looks for it': 4,
        'several backbones (tracking)': 4,
        'made for the tokens of a vision transformer (DPT)': 1,
    },
)


def try_config(config: str) -> tuple[tuple[int, ...], float, str, tuple[str, ...]]:
    """Exchange the backbone of a config and prove it; return what :class:`Row` says of it, from ``strides`` on.

    Raises:
        UserError: It does not run.
    """
    with tempfile.TemporaryDirectory() as folder:
        swap = swap_backbone(config, ARCH, weights='')
        file = Path(folder, 'config.py')
        save(swap.text(folder), file)
        proof = prove(file, 'cpu', reload=True)
    backbone = next(value for path, value in swap.changes.items() if path[-1] == 'backbone')
    strides = tuple(STRIDES[stage] for stage in backbone.get('out_indices', range(len(STRIDES))))
    fitted = dict.fromkeys(dotted(path[1:-1]) for path in swap.changes if str(path[-1]).endswith('in_channels'))
    return strides, round(proof.num_params / 1e6, 2), ', '.join(fitted), proof.without_gradient


def check_row(row: Row) -> str:
    """Try a row; return how it differs from what the table says, or nothing."""
    is_complete = not row.needs or find_spec(row.needs) is not None
    try:
        found = try_config(row.config)
    except UserError as error:
        return '' if not is_complete and row.needs in str(error) else f'{row.config} does not run: {error}'
    if not is_complete:
        return f'{row.config} runs without {row.needs}'
    expected = (row.strides, row.params, row.fitted, row.unused)
    return '' if found == expected else f'{row.config}: {found} instead of {expected}'


def check_gap(gap: Gap) -> str:
    """Try a gap, unless that depends on the machine; return how it differs from what the table says, or nothing."""
    if not gap.error:
        return ''
    try:
        try_config(gap.config)
    except UserError as error:
        return '' if gap.error in str(error) else f'{gap.config}: {error}'
    return f'{gap.config} runs'


def check_table(configs: Collection[str] = (), tell: Callable[[str], None] = print) -> bool:
    """Try rows and gaps, by default all; tell how each differs from what the table says, and whether none does.

    Raises:
        UserError: A config is not in the table.
    """
    if unknown := sorted(set(configs) - {row.config for row in (*ROWS, *GAPS)}):
        raise UserError(f'The table has no {", ".join(unknown)}; docs/pipelines.md lists what it has.')
    chosen = [row for row in (*ROWS, *GAPS) if not configs or row.config in configs]
    is_true = True
    for row in chosen:
        difference = check_row(row) if isinstance(row, Row) else check_gap(row)
        tell(difference or f'{row.config}: as in the table')
        is_true = is_true and not difference
    return is_true
