"""Sliding windows of a segmentor, some at a time."""

from itertools import product

import torch
from mmseg.models.segmentors.encoder_decoder import EncoderDecoder
from torch import Tensor

from convnext_dense.compat.errors import UserError

PIXELS = 2**20  # of the windows that are predicted at once; four of 512x512


class WindowedEncoderDecoder(EncoderDecoder):
    """MMSegmentation's segmentor, which predicts several windows in one step and adds up only what they cover."""

    def slide_inference(self, inputs: Tensor, batch_img_metas: list[dict]) -> Tensor:
        """Return the means of the windows' logits (N, classes, H, W), for images (N, C, H, W)."""
        (height, width), window, stride = inputs.shape[2:], self.test_cfg.crop_size, self.test_cfg.stride
        if stride[0] > window[0] or stride[1] > window[1]:
            raise UserError(
                f'test_cfg.stride {tuple(stride)} leaves pixels between windows of crop_size {tuple(window)}. Allowed '
                'are strides up to the size of a window.'
            )
        corners = list(product(*map(starts, (height, width), window, stride)))
        rows, columns = min(height, window[0]), min(width, window[1])
        batch_img_metas[0]['img_shape'] = torch.Size((rows, columns))  # by which the head knows the size of a window
        if len(corners) == 1:
            return self.encode_decode(inputs, batch_img_metas)
        shape = len(inputs), self.out_channels, height, width
        # the best class of a pixel is found several times as fast where its logits lie together
        total = inputs.new_empty(shape).to(memory_format=torch.channels_last).zero_()
        covered = inputs.new_zeros(1, 1, height, width)
        for y, x in corners:
            covered[..., y : y + rows, x : x + columns] += 1
        at_once = max(1, PIXELS // (len(inputs) * rows * columns))
        for i in range(0, len(corners), at_once):
            some = corners[i : i + at_once]
            windows = torch.cat([inputs[..., y : y + rows, x : x + columns] for y, x in some])
            logits = self.encode_decode(windows, batch_img_metas * len(some)).split(len(inputs))
            for (y, x), each in zip(some, logits, strict=True):
                total[..., y : y + rows, x : x + columns] += each
        return total.div_(covered)


def starts(side: int, window: int, stride: int) -> list[int]:
    """Return where windows start along a side; the last one ends with it.

    >>> starts(10, 4, 3), starts(3, 4, 3)
    ([0, 3, 6], [0])
    """
    last = max(side - window, 0)
    return [min(start, last) for start in range(0, last + stride, stride)]
