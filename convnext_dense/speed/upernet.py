"""UperNet's head (https://arxiv.org/abs/1807.10221) with three fifths of the multiplications."""

import functools
from collections.abc import Sequence

import torch
from mmcv.cnn import ConvModule
from mmseg.models.decode_heads.uper_head import UPerHead
from mmseg.models.utils import resize
from torch import Tensor, nn
from torch.nn import functional as F

from convnext_dense.backbone.cpu_kernels import is_traced

BAND = 16  # pixels of an enlarged side at a time


class FactoredUPerHead(UPerHead):
    """MMSegmentation's head, which on the CPU convolves small maps before it enlarges them.

    Two of its layers enlarge maps, concatenate them and convolve the result. All of that is linear: the products of
    pixels and weights are the same before the maps are enlarged, and then there are fewer of them.
    """

    def _forward_feature(self, inputs: Sequence[Tensor]) -> Tensor:
        """Return the map (N, channels, H, W) that is classified, from the maps of the backbone."""
        if not inputs[0].is_cpu or is_traced() or not all(map(is_plain, (self.bottleneck, self.fpn_bottleneck))):
            return super()._forward_feature(inputs)
        *maps, top = self._transform_inputs(inputs)
        above = self.convolve(self.bottleneck, [top, *(pool(top) for pool in self.psp_modules)])
        outputs = [above]
        for each, lateral, conv in zip(maps[::-1], self.lateral_convs[::-1], self.fpn_convs[::-1], strict=True):
            enlarged = resize(above, each.shape[2:], mode='bilinear', align_corners=self.align_corners)
            above = lateral(each) + enlarged
            outputs.append(conv(above))
        return self.convolve(self.fpn_bottleneck, outputs[::-1])

    def convolve(self, layer: ConvModule, maps: Sequence[Tensor]) -> Tensor:
        """Apply a layer to maps (N, C_i, h_i, w_i) that are enlarged to the size of the first one and concatenated."""
        first, *others = layer.conv.weight.split([each.shape[1] for each in maps], dim=1)
        total = F.conv2d(maps[0], first, layer.conv.bias, padding=1)
        for each, weight in zip(maps[1:], others, strict=True):
            total = total + convolve_enlarged(each, weight, total.shape[2:], self.align_corners)
        if layer.with_norm:
            total = layer.norm(total)
        return layer.activate(total) if layer.with_activation else total


def is_plain(layer: ConvModule) -> bool:
    """Tell whether a layer is a 3x3 convolution that keeps the size, a norm and an activation, in this order."""
    conv = layer.conv
    settings = (type(conv), conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode)
    return settings == (nn.Conv2d, (3, 3), (1, 1), (1, 1), (1, 1), 1, 'zeros') and layer.order[0] == 'conv'


def convolve_enlarged(x: Tensor, weight: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    """Enlarge x (N, C, h, w) to ``size`` by bilinear interpolation, and convolve it with weight (O, C, 3, 3).

    Returns:
        (N, O, *size), as of a convolution with a padding of 1; channels-last in memory.
    """
    num_out, num_in = weight.shape[:2]
    along_y, along_x = (bands(*sides, align_corners, x.dtype) for sides in zip(x.shape[2:], size, strict=True))
    products = F.conv2d(x, weight.permute(3, 2, 0, 1).reshape(9 * num_out, num_in, 1, 1))  # channels: kx, ky, O
    products = products.permute(0, 2, 3, 1).unflatten(3, (3, 3, num_out))  # (N, h, w, kx, ky, O)
    wide = [torch.einsum('vwk,nhwkyo->nhyvo', band, products[:, :, pixels]) for pixels, band in along_x]
    wide = torch.cat(wide, dim=3)  # (N, h, ky, W, O)
    enlarged = [torch.einsum('vhy,nhyxo->nvxo', band, wide[:, pixels]) for pixels, band in along_y]
    return torch.cat(enlarged, dim=1).permute(0, 3, 1, 2)


@functools.lru_cache(64)
@torch.inference_mode(False)  # what it returns is for trainings too
@torch.no_grad()
def bands(before: int, after: int, align_corners: bool, dtype: torch.dtype) -> list[tuple[slice, Tensor]]:
    """Return how a side is enlarged, some pixels at a time: the pixels before that they need, and their shares.

    The shares are (pixels after, pixels before, 3): what each of the three taps of a convolution around a pixel takes.
    """
    unit = torch.eye(before, dtype=torch.promote_types(dtype, torch.float32))[None]
    shares = F.interpolate(unit, after, mode='linear', align_corners=align_corners)[0]  # (before, after)
    shares = F.pad(shares, (1, 1)).unfold(1, 3, 1).transpose(0, 1)
    used = shares.any(dim=2)
    found = []
    for start in range(0, after, BAND):
        rows = slice(start, start + BAND)
        needed = used[rows].any(dim=0).nonzero()
        pixels = slice(int(needed[0]), int(needed[-1]) + 1)
        found.append((pixels, shares[rows, pixels].to(dtype)))
    return found
