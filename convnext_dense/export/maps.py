"""Segmentors: UperNet and every other ``EncoderDecoder``, tested as a whole image."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convnext_dense.export.frame import Frame, deviations

ONE_BY_ONE = ('MaskFormerHead', 'IterativeDecodeHead')


def problems(network: nn.Module) -> list[str]:
    """Return why a segmentor cannot be exported."""
    from mmseg.models.segmentors import EncoderDecoder

    methods = 'predict', 'inference', 'whole_inference', 'postprocess_result'
    found = deviations(network, [EncoderDecoder], *methods)
    for module in network.modules():
        name = type(module).__name__
        if name in ONE_BY_ONE:
            found.append(f'{name} does something for each image in turn, so that a graph would take one number of them')
        if getattr(module, 'rand_init', False):
            found.append(f'{name} draws random numbers when it predicts, so that no prediction is repeated')
    if found:
        return found
    if network.test_cfg.get('mode', 'whole') == 'whole':
        return []
    return [
        "it is tested with mode='slide', in windows whose number depends on the image; a graph predicts the image as a "
        'whole. Export it so with --cfg-options model.test_cfg.mode=whole, and compare the mIoU of both'
    ]


def predict(network: nn.Module, images: Tensor, frame: Frame) -> dict[str, Tensor]:
    """Return the class of each pixel, (N, H, W), of images (N, C, h, w) in pixels of the original picture."""
    meta = dict(img_shape=frame.padded, pad_shape=frame.padded, batch_input_shape=frame.padded)
    logits = frame.crop(network.encode_decode(images, [meta]))  # one stands for all: they have one size
    size = frame.original.unbind()
    logits = F.interpolate(logits, size=size, mode='bilinear', align_corners=network.align_corners)
    if logits.shape[1] == 1:
        return {'labels': (logits[:, 0].sigmoid() > network.decode_head.threshold).to(torch.uint8)}
    return {'labels': logits.argmax(1).to(torch.uint8 if logits.shape[1] <= 256 else torch.int32)}
