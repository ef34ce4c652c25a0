"""Deformable convolution: v1 (https://arxiv.org/abs/1703.06211) and v2, with a mask (https://arxiv.org/abs/1811.11168).

For each of ``G`` deformable groups, tap of the kernel and output pixel, the offsets ``(N, G * KH * KW * 2, OH, OW)``
move the sample by ``(y, x)`` feature pixels. v2 multiplies each sample by its mask ``(N, G * KH * KW, OH, OW)``.

All ops run torchvision's kernels. These hold ``C * KH * KW * OH * OW`` numbers for each image that they get: here they
get one image at a time, as in mmcv, or on a GPU as many as fit in 128 MB.

mmcv gives the sizes by name, so the ops take them as ``**sizes``. The kernel's size is that of ``weight``.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import UserError
from .arguments import as_computable, check_shape, numbers_at_once

FAR_OUTSIDE = 1e8  # pixels; exact enough in float32, and an int in C
SIZES = ('dH', 'dW', 'padH', 'padW', 'dilationH', 'dilationW', 'group', 'deformable_group')
MODULATED_SIZES = (
    'stride_h', 'stride_w', 'pad_h', 'pad_w', 'dilation_h', 'dilation_w', 'group', 'deformable_group'
)  # fmt: skip


def deform_conv_forward(
    input: Tensor, weight: Tensor, offset: Tensor, output: Tensor, columns: Tensor, ones: Tensor, **sizes: int
) -> None:
    """Fill ``output`` ``(N, O, OH, OW)``. ``columns`` and ``ones`` matter to the compiled op only."""
    _prepare('deform_conv', sizes, input, weight, offset).forward(output)


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradInput: Tensor,
    gradOffset: Tensor,
    weight: Tensor,
    columns: Tensor,
    **sizes: int,
) -> None:
    """Add to ``gradInput`` and fill ``gradOffset``.

    torchvision's kernel finds the gradient of the weight as well. It is left with ``columns``, which belongs to one
    call of the layer, for ``deform_conv_backward_parameters``: to compute it anew would cost the same again.
    """
    convolution = _prepare('deform_conv', sizes, input, weight, offset)
    grad_input, grad_weight, grad_offset, *_ = convolution.gradients(gradOutput=gradOutput)
    gradInput += grad_input
    gradOffset.copy_(grad_offset)
    columns.weight_gradient = (gradOutput, grad_weight)


def deform_conv_backward_parameters(
    input: Tensor, offset: Tensor, gradOutput: Tensor, gradWeight: Tensor, columns: Tensor, ones: Tensor, **sizes: float
) -> None:
    """Add ``scale`` times the gradient of the weight to ``gradWeight``."""
    kept_for, gradient = columns.__dict__.pop('weight_gradient', (None, None))
    # A second backward through the same layer may ask for the weight alone, with another gradOutput.
    if kept_for is not gradOutput:
        convolution = _prepare('deform_conv', sizes, input, gradWeight, offset)
        gradient = convolution.gradients(gradOutput=gradOutput)[1]
    gradWeight += sizes['scale'] * gradient


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    **sizes: int,
) -> None:
    """Fill ``output`` ``(N, O, OH, OW)``. Without ``with_bias``, ``bias`` is an empty tensor.

    Offsets and masks may be larger maps than the output. As in mmcv, the first numbers of each image's are then taken
    as the map: DyHead hands the finer level's offsets to the coarser level, and its published weights rely on it.
    """
    _prepare('modulated_deform_conv', sizes, input, weight, offset, mask, bias).forward(output)


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
    **sizes: int,
) -> None:
    """Add to ``grad_input``, ``grad_weight`` and ``grad_bias``; fill ``grad_offset`` and ``grad_mask``.

    Of maps that are larger than the output, the numbers that were not taken get 0.
    """
    convolution = _prepare('modulated_deform_conv', sizes, input, weight, offset, mask, bias)
    found = convolution.gradients(grad_output=grad_output)
    grad_input += found[0]
    grad_weight += found[1]
    if sizes['with_bias']:
        grad_bias += found[4]
    for buffer, gradient in ((grad_offset, found[2]), (grad_mask, found[3])):
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

    def axes(self) -> Iterator[tuple[int, int, int]]:
        """Yield stride, padding and dilation along y, then along x."""
        return zip(self[:2], self[2:4], self[4:6], strict=True)

    def output_size(self, size: torch.Size, kernel: torch.Size) -> list[int]:
        """Return the rows and columns of the output."""
        return [
            (extent + 2 * pad - dilation * (taps - 1) - 1) // stride + 1
            for extent, taps, (stride, pad, dilation) in zip(size, kernel, self.axes(), strict=True)
        ]


class _Convolution(NamedTuple):
    """The arguments of torchvision's kernels in their order, checked and of one type."""

    input: Tensor
    weight: Tensor
    offset: Tensor
    mask: Tensor  # not looked at without has_mask
    bias: Tensor
    geometry: _Geometry
    has_mask: bool

    def forward(self, output: Tensor) -> None:
        """Fill ``output``."""
        self._check_output(output=output)
        for images in self._batches():
            output[images] = torch.ops.torchvision.deform_conv2d(*self._arguments(images))

    def gradients(self, **grad_output: Tensor) -> list[Tensor]:
        """Return the gradients of input, weight, offset, mask and bias, given that of the output by its name."""
        (gradient,) = self._check_output(**grad_output)
        totals = [torch.zeros_like(tensor) for tensor in self[:5]]
        for images in self._batches():
            found = torch.ops.torchvision._deform_conv2d_backward(gradient[images], *self._arguments(images))
            for total, place, part in zip(totals, (images, ..., images, images, ...), found, strict=True):
                total[place] += part
        totals[2].masked_fill_(self._starts_at_the_edge(), 0)
        return totals

    def _check_output(self, **given: Tensor) -> tuple[Tensor, ...]:
        op = 'modulated_deform_conv' if self.has_mask else 'deform_conv'
        expected = (len(self.input), len(self.weight), *self.offset.shape[2:])
        check_shape(op, **{name: (tensor.shape, expected) for name, tensor in given.items()})
        return as_computable(op, **given, input=self.input)[:-1]

    def _arguments(self, images: slice) -> tuple:
        input, offset, mask = self.input[images], self.offset[images], self.mask[images]
        return (input, self.weight, offset, mask, self.bias, *self.geometry, self.has_mask)

    def _batches(self) -> Iterator[slice]:
        samples = self.input.shape[1] * self.weight[0, 0].numel() * self.offset.shape[2:].numel()
        step = max(1, numbers_at_once(self.input.device) // samples)
        for first in range(0, len(self.input), step):
            yield slice(first, first + step)

    def _starts_at_the_edge(self) -> Tensor:
        """Say, for each number of the offsets, if it leads to exactly -1, where the border's first pixel fades out.

        The derivative jumps there. mmcv takes the one from outside, 0, and torchvision the one from inside. Layers
        start with offsets of 0, so with padding every sample of the first row and column outside is such a one.
        """
        kernel, size, device = self.weight.shape[2:], self.offset.shape[2:], self.offset.device
        rows, columns = (
            torch.arange(taps, device=device)[:, None] * dilation + torch.arange(pixels, device=device) * stride - pad
            for taps, pixels, (stride, pad, dilation) in zip(kernel, size, self.geometry.axes(), strict=True)
        )  # (KH, OH) and (KW, OW)
        start = torch.stack(torch.broadcast_tensors(rows[:, None, :, None], columns[:, None]), dim=2)
        position = self.offset.unflatten(1, (-1, *start.shape[:3])) + start  # (N, G, KH, KW, 2, OH, OW)
        return (position == -1).view_as(self.offset)


def _prepare(
    op: str,
    sizes: dict[str, int],
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
) -> _Convolution:
    import torchvision  # noqa: F401  registers torch.ops.torchvision

    has_mask, has_bias = mask is not None, sizes.get('with_bias', False)
    geometry = _Geometry(*(sizes[name] for name in (MODULATED_SIZES if has_mask else SIZES)))
    input, weight, offset, mask, bias = as_computable(
        op, input=input, weight=weight, offset=offset, mask=mask, bias=bias if has_bias else None
    )
    size = _check(op, geometry, input, weight)
    num_samples = geometry.deform_groups * weight[0, 0].numel()
    if has_mask:
        offset, mask = _first_numbers(offset, size), _first_numbers(mask, size)
    else:
        mask = input.new_zeros(len(input), num_samples, *size)
    if not has_bias:
        bias = input.new_zeros(len(weight))
    check_shape(
        op,
        weight=(weight.shape, (len(weight), input.shape[1] // geometry.groups, *weight.shape[2:])),
        mask=(mask.shape, (len(input), num_samples, *size)),
        bias=(bias.shape, (len(weight),)),
        offset=(offset.shape, (len(input), 2 * num_samples, *size)),
    )
    # The kernel would read foreign memory at NaN. mmcv's samples nothing there.
    offset = offset.nan_to_num(nan=FAR_OUTSIDE, posinf=FAR_OUTSIDE, neginf=-FAR_OUTSIDE)
    return _Convolution(input, weight, offset, mask, bias, geometry, has_mask)


def _first_numbers(maps: Tensor, size: list[int]) -> Tensor:
    """Return ``(N, X, *size)`` from the first numbers of each image's larger maps ``(N, X, H, W)``."""
    if maps.ndim != 4 or maps.shape[2] < size[0] or maps.shape[3] < size[1]:
        return maps
    return maps.flatten(1)[:, : maps.shape[1] * size[0] * size[1]].unflatten(1, (-1, *size))


def _check(op: str, geometry: _Geometry, input: Tensor, weight: Tensor) -> list[int]:
    """Return the size of the output. Refuse what torchvision refuses without the op's name, or not at all."""
    if min(*geometry[:2], *geometry[4:]) < 1 or min(geometry[2:4]) < 0:
        raise UserError(f'{op} needs strides, dilations and groups of 1 or more and no negative padding: {geometry}.')
    if input.ndim != 4 or weight.ndim != 4 or 0 in weight.shape:
        raise UserError(
            f'{op} needs features (N, C, H, W) and a kernel (O, C / groups, KH, KW), '
            f'and got {tuple(input.shape)} and {tuple(weight.shape)}.'
        )
    if len(weight) % geometry.groups or input.shape[1] % geometry.deform_groups:
        raise UserError(
            f'{op}: {len(weight)} output channels must be a multiple of groups={geometry.groups}, '
            f'and {input.shape[1]} input channels of deform_groups={geometry.deform_groups}.'
        )
    size = geometry.output_size(input.shape[2:], weight.shape[2:])
    if min(size) < 1:
        raise UserError(f'{op}: a map of {tuple(input.shape[2:])} pixels is too small for the kernel: pad it more.')
    return size
