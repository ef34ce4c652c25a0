"""Faster ways to the same numbers, for models with one of our backbones and for their data.

The maps of the backbone keep their channels last in memory. Here what stands behind it does the same: the weights of
all convolutions, and the features of regions of interest. Numbers of models differ by rounding alone, samples not at
all.
"""

import importlib
from typing import Any

import torch
from torch import nn

from convnext_dense.backbone import StagedBackbone
from convnext_dense.speed.memory import keep_memory
from convnext_dense.speed.precision import BFloat16OptimWrapper, StridedConv2d, has_bf16, keep_boxes_precise

# option without which PyTorch 2.14 fails to order the strides of maps whose size is not known (a TypeError)
STRIDES = 'strict_output_strides'
# class of MMDetection or MMSegmentation -> its faster subclass here
FASTER = {
    'mmdet.models.roi_heads.roi_extractors.single_level_roi_extractor.SingleRoIExtractor': 'rois.ChannelsLastExtractor',
    'mmdet.models.roi_heads.cascade_roi_head.CascadeRoIHead': 'cascade.OncePooledRoIHead',
    'mmdet.models.roi_heads.mask_heads.fcn_mask_head.FCNMaskHead': 'masks.ProductMaskHead',
    'mmseg.models.segmentors.encoder_decoder.EncoderDecoder': 'windows.WindowedEncoderDecoder',
    'mmdet.datasets.transforms.formatting.PackDetInputs': 'det_images.PixelsLastPack',
    'mmdet.datasets.transforms.transforms.RandomFlip': 'det_images.OrderedRandomFlip',
    'mmseg.datasets.transforms.formatting.PackSegInputs': 'pixels.PixelsLastPack',
    'mmseg.datasets.transforms.transforms.RandomFlip': 'pixels.OrderedRandomFlip',
    'mmseg.datasets.transforms.transforms.RandomCrop': 'pixels.CountingRandomCrop',
    'mmseg.datasets.transforms.transforms.PhotoMetricDistortion': 'pixels.TablePhotoMetricDistortion',
    'mmseg.models.decode_heads.uper_head.UPerHead': 'upernet.FactoredUPerHead',
}


def speed_up(model: nn.Module) -> nn.Module:
    """Exchange slow layers of a model with one of our backbones; leave other models as they are.

    Parameters keep their names, their values and their identity. A second call changes nothing.

    Args:
        model: A detector, a segmentor, or any other module; it is changed.

    Returns:
        The model.
    """
    if not any(isinstance(module, StagedBackbone) for module in model.modules()):
        return model
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
        if type(module) is nn.Conv2d and module.padding != (0, 0) and module.stride != (1, 1):
            module.__class__ = StridedConv2d
        if hasattr(module, 'turn_on_efficient_conv_bn_eval'):  # mmcv's ConvModule: one layer of two in a test
            module.turn_on_efficient_conv_bn_eval()
        exchange(module)
    return model


def compile_maps(model: nn.Module, **options: Any) -> nn.Module:
    """Compile our backbones of a model and the necks behind them with ``torch.compile``, once for images of all sizes.

    Each part gets a graph for batches of one image and one for larger batches, in training and in tests, and one more
    where a map is a single pixel high or wide. PyTorch compiles at most eight graphs of a part; images that need
    another one are computed without compiling.

    The model is changed and returned. ``options`` are those of ``torch.compile``; ``dynamic=True`` unless they say
    otherwise.
    """
    from torch._inductor import config, list_mode_options  # takes half a second

    options = {'dynamic': True, **options}
    if options.get('backend', 'inductor') == 'inductor' and hasattr(config, STRIDES):
        of_mode = list_mode_options(options.pop('mode', None) or 'default', options['dynamic'])
        options['options'] = {STRIDES: True, **of_mode, **(options.get('options') or {})}
    for module in model.modules():
        backbone = getattr(module, 'backbone', None)
        if isinstance(backbone, StagedBackbone):
            for part in (backbone, getattr(module, 'neck', None)):
                if part is not None:
                    part.compile(**options)
    return model


def speed_up_data(dataset: object) -> None:
    """Exchange slow steps in the pipelines of a data set, and of those that it wraps; samples stay what they are."""
    waiting = [dataset]
    while waiting:
        each = waiting.pop()
        exchange(each)
        for name in ('dataset', 'datasets', 'pipeline', 'transforms'):
            inner = getattr(each, name, None) or ()
            waiting += inner if isinstance(inner, (list, tuple)) else [inner]
        if isinstance(each, (list, tuple)):
            waiting += each


def exchange(part: object) -> None:
    """Make an object of a class that has a faster one an object of that one."""
    kind = type(part)
    if faster := FASTER.get(f'{kind.__module__}.{kind.__qualname__}'):
        file, name = faster.split('.')
        part.__class__ = getattr(importlib.import_module(f'{__name__}.{file}'), name)
