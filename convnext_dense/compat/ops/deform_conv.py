"""Deformable convolution: v1 (https://arxiv.org/abs/1703.06211) and v2, with a mask (https://arxiv.org/abs/1811.11168).

In: features ``(N, C, H, W)``, a kernel ``(O, C / group, KH, KW)``, and for each of ``G`` deformable groups, tap of the
kernel and output pixel how far its sample is moved, ``(N, G * KH * KW * 2, OH, OW)`` as ``(y, x)`` in feature pixels;
v2 adds a factor for each sample, ``(N, G * KH * KW, OH, OW)``, and a bias ``(O,)``.
Out: ``(N, O, OH, OW)``, written into ``output``, or the gradients.

All is torchvision's kernels, on every device. They hold the samples of some images at a time, ``C * KH * KW * OH * OW``
numbers each: here those of one image, as mmcv does, or on a GPU of more within 128 MB.
"""

import weakref
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import UserError
from .arguments import as_computable, check_shape, numbers_at_once

FAR_OUTSIDE = 1e8  # pixels; exact enough in float32, and an int in C


def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Convolve into ``output``. ``columns``, ``ones`` and ``im2col_step`` matter to the compiled op's memory only."""
    geometry = _Geometry(dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    _prepare('deform_conv', geometry, input, weight, offset).forward(output)


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradInput: Tensor,
    gradOffset: Tensor,
    weight: Tensor,
    columns: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Add to ``gradInput`` and fill ``gradOffset``.

    torchvision's kernel finds the gradient of the weight as well. It is left with ``columns``, which belongs to one
    call of the layer, for ``deform_conv_backward_parameters``: to compute it anew would cost the same again.
    """
    geometry = _Geometry(dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    gradients = _prepare('deform_conv', geometry, input, weight, offset).gradients(gradOutput)
    gradInput += gradients.input
    gradOffset.copy_(gradients.offset)
    columns.weight_gradient = (weakref.ref(gradOutput), gradients.weight)


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradWeight: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    scale: float,
    im2col_step: int,
) -> None:
    """Add ``scale`` times the gradient of the weight to ``gradWeight``."""
    kept_for, gradient = columns.__dict__.pop('weight_gradient', (lambda: None, None))
    # A second backward through the same layer may ask for the weight alone, with another gradOutput.
    if kept_for() is not gradOutput:
        geometry = _Geometry(dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
        gradient = _prepare('deform_conv', geometry, input, gradWeight, offset).gradients(gradOutput).weight
    gradWeight += scale * gradient


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Convolve into ``output``. Without ``with_bias``, ``bias`` is an empty tensor.

    Offsets and masks may be larger maps than the output. As in mmcv, the first numbers of each image's are then taken
    as the map: DyHead hands the finer level's offsets to the coarser level, and its published weights rely on it.
    """
    geometry = _Geometry(stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group)
    bias = bias if with_bias else None
    _prepare('modulated_deform_conv', geometry, input, weight, offset, mask, bias).forward(output)


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Add to ``grad_input``, ``grad_weight`` and ``grad_bias``; fill ``grad_offset`` and ``grad_mask``.

    Of maps that are larger than the output, the numbers that were not taken get 0.
    """
    geometry = _Geometry(stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group)
    bias = bias if with_bias else None
    convolution = _prepare('modulated_deform_conv', geometry, input, weight, offset, mask, bias)
    gradients = convolution.gradients(grad_output)
    grad_input += gradients.input
    grad_weight += gradients.weight
    if with_bias:
        grad_bias += gradients.bias
    for buffer, gradient in ((grad_offset, gradients.offset), (grad_mask, gradients.mask)):
        not_taken = (buffer.numel() - gradient.numel()) // len(buffer)
        buffer.copy_(F.pad(gradient.flatten(1), (0, not_taken)).view_as(buffer))


class _Geometry(NamedTuple):
    """In torchvision's order."""

    stride_h: int
    stride_w: int
    pad_h: int
    pad_w: int
    dilation_h: int
    dilation_w: int
    groups: int
    deform_groups: int

    def output_size(self, size: torch.Size, kernel: torch.Size) -> tuple[int, int]:
        """Return the rows and columns of the output; 0 or less where the input is too small."""
        spans = [dilation * (taps - 1) + 1 for dilation, taps in zip(self[4:6], kernel, strict=True)]
        return tuple(
            (extent + 2 * pad - span) // stride + 1
            for extent, span, stride, pad in zip(size, spans, self[:2], self[2:4], strict=True)
        )


class _Gradients(NamedTuple):
    input: Tensor
    weight: Tensor
    offset: Tensor
    mask: Tensor
    bias: Tensor


class _Convolution(NamedTuple):
    """The arguments of torchvision's kernels, checked and of one type."""

    op: str
    output_shape: tuple[int, int, int, int]
    geometry: _Geometry
    input: Tensor
    weight: Tensor
    offset: Tensor
    mask: Tensor  # (N, 1) where there is none
    bias: Tensor
    has_mask: bool

    def forward(self, output: Tensor) -> None:
        """Fill ``output``."""
        check_shape(self.op, output=(output.shape, self.output_shape))
        for images in self._batches():
            output[images] = torch.ops.torchvision.deform_conv2d(*self._arguments(images))

    def gradients(self, grad_output: Tensor) -> _Gradients:
        """Return the five gradients, given that of the output."""
        check_shape(self.op, grad_output=(grad_output.shape, self.output_shape))
        _, grad_output = as_computable(self.op, input=self.input, grad_output=grad_output)
        by_image = [torch.empty_like(tensor) for tensor in (self.input, self.offset, self.mask)]
        totals = [torch.zeros_like(tensor) for tensor in (self.weight, self.bias)]
        for images in self._batches():
            found = torch.ops.torchvision._deform_conv2d_backward(grad_output[images], *self._arguments(images))
            for gradient, part in zip(by_image, (found[0], found[2], found[3]), strict=True):
                gradient[images] = part
            for total, part in zip(totals, (found[1], found[4]), strict=True):
                total += part
        by_image[1].masked_fill_(self._starts_at_the_edge(), 0)
        return _Gradients(by_image[0], totals[0], by_image[1], by_image[2], totals[1])

    def _arguments(self, images: slice) -> tuple:
        return (
            self.input[images],
            self.weight,
            self.offset[images],
            self.mask[images],
            self.bias,
            *self.geometry,
            self.has_mask,
        )

    def _batches(self) -> Iterator[slice]:
        samples = self.input.shape[1] * self.weight[0, 0].numel() * self.output_shape[2] * self.output_shape[3]
        step = max(1, numbers_at_once(self.input.device) // samples)
        for first in range(0, len(self.input), step):
            yield slice(first, first + step)

    def _starts_at_the_edge(self) -> Tensor:
        """Say, for each number of the offsets, if it leads to exactly -1, where the border's first pixel fades out.

        The derivative jumps there. mmcv takes the one from outside, 0, and torchvision the one from inside. Layers
        start with offsets of 0, so with padding every sample of the first row and column outside is such a one.
        """
        g, kernel, size = self.geometry, self.weight.shape[2:], self.offset.shape[2:]
        axes = []
        for taps, dilation, pixels, stride, pad in zip(kernel, g[4:6], size, g[:2], g[2:4], strict=True):
            tap = torch.arange(taps, device=self.offset.device) * dilation
            axes.append(tap[:, None] + torch.arange(pixels, device=self.offset.device) * stride - pad)
        # (1, KH, 1, 1, OH, 1) and (1, 1, KW, 1, 1, OW)
        rows, columns = axes[0][None, :, None, None, :, None], axes[1][None, None, :, None, None, :]
        offset = self.offset.unflatten(1, (g.deform_groups, *kernel, 2)).flatten(0, 1)
        edge = torch.empty_like(offset, dtype=torch.bool)
        for axis, base in enumerate((rows, columns)):
            edge[:, :, :, axis : axis + 1] = offset[:, :, :, axis : axis + 1] + base == -1
        return edge.view_as(self.offset)


def _prepare(
    op: str,
    geometry: _Geometry,
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
) -> _Convolution:
    import torchvision  # noqa: F401  registers torch.ops.torchvision

    input, weight, offset, mask, bias = as_computable(
        op, input=input, weight=weight, offset=offset, mask=mask, bias=bias
    )
    size = _check(op, geometry, input, weight)
    num_taps = geometry.deform_groups * weight[0, 0].numel()
    shapes = dict(weight=(weight.shape, (len(weight), input.shape[1] // geometry.groups, *weight.shape[2:])))
    if mask is not None:
        offset, mask = _first_numbers(offset, size), _first_numbers(mask, size)
        shapes['mask'] = (mask.shape, (len(input), num_taps, *size))
    if bias is not None:
        shapes['bias'] = (bias.shape, (len(weight),))
    shapes['offset'] = (offset.shape, (len(input), 2 * num_taps, *size))
    check_shape(op, **shapes)
    # The kernel would read foreign memory at NaN. mmcv's samples nothing there.
    offset = offset.nan_to_num(nan=FAR_OUTSIDE, posinf=FAR_OUTSIDE, neginf=-FAR_OUTSIDE)
    has_mask = mask is not None
    mask = mask if has_mask else input.new_zeros(len(input), 1)
    bias = bias if bias is not None else input.new_zeros(len(weight))
    return _Convolution(op, (len(input), len(weight), *size), geometry, input, weight, offset, mask, bias, has_mask)


def _first_numbers(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Return ``(N, X, *size)`` from the first numbers of each image's larger maps ``(N, X, H, W)``."""
    if maps.ndim != 4 or maps.shape[2:] == size or maps.shape[2] < size[0] or maps.shape[3] < size[1]:
        return maps
    return maps.flatten(1)[:, : maps.shape[1] * size[0] * size[1]].unflatten(1, (-1, *size))


def _check(op: str, geometry: _Geometry, input: Tensor, weight: Tensor) -> tuple[int, int]:
    """Return the size of the output, after the checks that torchvision makes without the op's name, or not at all."""
    if min(*geometry[:2], *geometry[4:]) < 1 or min(geometry[2:4]) < 0:
        raise UserError(f'{op} needs strides, dilations and groups of 1 or more and no negative padding: {geometry}.')
    if input.ndim != 4 or weight.ndim != 4 or 0 in weight.shape:
        raise UserError(
            f'{op} needs features (N, C, H, W) and a kernel (O, C / groups, KH, KW), '
            f'and got {tuple(input.shape)} and {tuple(weight.shape)}.'
        )
    channels, size, kernel = input.shape[1], input.shape[2:], weight.shape[2:]
    if len(weight) % geometry.groups or channels % geometry.deform_groups:
        raise UserError(
            f'{op}: {len(weight)} output channels must be a multiple of groups={geometry.groups}, '
            f'and {channels} input channels of deform_groups={geometry.deform_groups}.'
        )
    rows, columns = geometry.output_size(size, kernel)
    if rows < 1 or columns < 1:
        raise UserError(
            f'{op}: a {size[0]} x {size[1]} feature map is too small for a {kernel[0]} x {kernel[1]} kernel with '
            f'{geometry}. Pad more, or use larger images.'
        )
    return rows, columns
