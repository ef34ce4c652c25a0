"""A trained model as one graph: from the pixels of an image to what is found on it."""

import contextlib
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.exc import UserError as DynamoError
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.onnx.errors import OnnxExporterError

from convnext_dense.compat.errors import UserError
from convnext_dense.export import dense, maps, queries, two_stage
from convnext_dense.export.frame import Frame, as_tensor, larger
from convnext_dense.export.steps import Steps

OUTPUTS = ('boxes', 'scores', 'labels', 'masks')  # in this order, as far as there are


class Graph(nn.Module):
    """What is exported: a model with what its data preprocessor does before, and its head after it.

    Raises:
        UserError: It cannot be exported.
    """

    def __init__(self, network: nn.Module, steps: Steps) -> None:
        super().__init__()
        self.predict = find_family(network)
        self.network, self.steps = network, steps
        self.outputs: tuple[str, ...] = ()  # the names of what it returned
        self.eval()

    def forward(self, images: Tensor, size: Tensor) -> tuple[Tensor, ...]:
        """Predict.

        Args:
            images: (N, H, W, C) uint8, resized as the test pipeline does it, in the order of channels that it reads.
            size: (2,) int64, height and width of the original picture, to which results are scaled.

        Returns:
            Of a segmentor the class of each pixel, (N, H, W). Of a detector, with N of 1, boxes (M, 4) as x1, y1, x2,
            y2, scores (M,), labels (M,), and masks where it has them.
        """
        values = images.permute(0, 3, 1, 2).float()
        resized = values.shape[2:]
        if self.steps.square:
            values = pad(values, *(larger(*resized),) * 2, self.steps.pad_value)
        if self.steps.pad:
            values = fill(values, self.steps.pad, self.steps.pad_value)
        shape = values.shape[2:]
        values = self.normalise(values)
        padded = self.pad(values)
        frame = Frame(size, resized, shape, shape if padded is values else padded.shape[2:])
        found = self.predict(self.network, padded, frame)
        self.outputs = tuple(name for name in OUTPUTS if name in found)
        return tuple(found[name] for name in self.outputs)

    def normalise(self, values: Tensor) -> Tensor:
        """Return images (N, C, H, W) with the mean 0 and the deviation 1, in the order of channels of the model."""
        given = self.network.data_preprocessor
        if getattr(given, '_channel_conversion', False) or getattr(given, 'channel_conversion', False):
            values = values[:, [2, 1, 0]]
        if given._enable_normalize:
            values = (values - given.mean) / given.std
        return values

    def pad(self, values: Tensor) -> Tensor:
        """Return images (N, C, H, W) of the size that the model needs; the same ones, if it takes any."""
        given = self.network.data_preprocessor
        settings = getattr(given, 'test_cfg', None) or {}
        if settings.get('size'):
            return fill(values, settings['size'], given.pad_val)
        divisor = settings.get('size_divisor') or getattr(given, 'pad_size_divisor', 1)
        if divisor == 1:
            return values
        height, width = ((length + divisor - 1) // divisor * divisor for length in values.shape[2:])
        return pad(values, height, width, given.pad_val if settings else given.pad_value)


def pad(values: Tensor, height: Any, width: Any, value: float) -> Tensor:
    """Pad maps (N, C, H, W) at the right and below to a size."""
    return F.pad(values, (0, width - values.shape[3], 0, height - values.shape[2]), value=value)


def fill(values: Tensor, size: tuple[int, int], value: float) -> Tensor:
    """Pad maps (N, C, H, W) at the right and below to a size (height, width), where they are smaller."""
    return pad(values, *map(larger, size, values.shape[2:]), value)


Predict = Callable[[nn.Module, Tensor, Frame], dict[str, Tensor]]


class Family(NamedTuple):
    """Models that are exported in the same way."""

    part: str  # the attribute by which they are known
    predict: Predict  # returns what a model finds on images
    problems: Callable[[nn.Module], list[str]]  # returns why a model cannot be exported


PREPROCESSING = ('DetDataPreprocessor.forward', 'SegDataPreProcessor.forward', 'ImgDataPreprocessor.forward')
WITHOUT_OPERATOR = {'CARAFEPack', 'DeformConv2d', 'MaskedConv2d', 'ModulatedDeformConv2d', 'PSAMask'}  # of MMCV
FAMILIES = (  # the first that fits
    Family('decode_head', maps.predict, maps.problems),
    Family('panoptic_fusion_head', queries.predict_masks, queries.problems_of_masks),
    Family('roi_head', two_stage.predict, two_stage.problems),
    Family('encoder', queries.predict_boxes, queries.problems_of_boxes),
    Family('bbox_head', dense.predict, dense.problems),
)


def find_family(network: nn.Module) -> Predict:
    """Return what predicts with a model.

    Raises:
        UserError: No graph can be made of it.
    """
    family = next((each for each in FAMILIES if hasattr(network, each.part)), None)
    problems = ['it is none of the known kinds'] if family is None else family.problems(network)
    classes = {each.__name__ for module in network.modules() for each in type(module).__mro__}
    problems += [f'ONNX has no operator for {name}' for name in sorted(classes & WITHOUT_OPERATOR)]
    given = type(network.data_preprocessor)
    if given.forward.__qualname__ not in PREPROCESSING:
        problems.append(f'{given.__name__} prepares images in a way of its own')
    if problems:
        raise UserError(f'{type(network).__name__} cannot be exported: {"; ".join(problems)}.')
    return family.predict


@contextlib.contextmanager
def recording() -> Iterator[None]:
    """Replace what a graph cannot hold, while it is recorded.

    Average pooling to a given size becomes two products of matrices, which fit images of any size; so do the upsampling
    by a factor in Semantic FPN, and the diagonal in CCNet, as they stand here. The libraries' own branches for ONNX
    call modules that are gone since MMDetection 3, or leave out the mask of a padded image.

    Raises:
        UserError: The model does what the exporter does not know.
    """
    replaced = [
        mock.patch.object(F, 'adaptive_avg_pool2d', average_pool),
        mock.patch.object(torch.onnx, 'is_in_onnx_export', return_value=False),
        mock.patch.object(torch, '_shape_as_tensor', lambda maps: as_tensor(maps.shape)),
        mock.patch('mmcv.ops.cc_attention.NEG_INF_DIAG', infinite_diagonal),
    ]
    if 'mmseg.models' in sys.modules:
        replaced.append(mock.patch('mmseg.models.utils.Upsample.forward', upsample))
    with contextlib.ExitStack() as stack, torch.inference_mode(False), torch.no_grad():
        for each in replaced:
            stack.enter_context(each)
        try:
            yield
        except (OnnxExporterError, GuardOnDataDependentSymNode, DynamoError) as error:
            reason = textwrap.shorten(str(error), 120, placeholder=' ...')
            raise UserError(
                f"The model cannot be exported: PyTorch's exporter does not follow it ({reason})."
            ) from error


def average_pool(maps: Tensor, size: int | tuple[int | None, int | None]) -> Tensor:
    """Average maps (N, C, H, W) to a size, as ``F.adaptive_avg_pool2d`` does."""
    height, width = (size, size) if isinstance(size, int) else size
    rows = shares(maps.shape[2], height or maps.shape[2], maps)
    return rows @ maps @ shares(maps.shape[3], width or maps.shape[3], maps).T


def infinite_diagonal(count: Any, device: torch.device) -> Tensor:
    """Return a matrix (count, count) of zeros, with minus infinity on its diagonal."""
    places = torch.arange(count, device=device)
    return torch.where(places == places[:, None], float('-inf'), 0.0)


def upsample(module: Any, maps: Tensor) -> Tensor:
    """Resize maps (N, C, H, W) as MMSegmentation's ``Upsample`` does."""
    factor = None if module.size else module.scale_factor
    return F.interpolate(maps, module.size, factor, module.mode, module.align_corners)


def shares(length: Any, count: Any, like: Tensor) -> Tensor:
    """Return the share (count, length) of each pixel of an axis in each part of it."""
    parts = torch.arange(count, device=like.device)[:, None]
    places = torch.arange(length, device=like.device)
    start, end = parts * length // count, ((parts + 1) * length + count - 1) // count
    inside = ((places >= start) & (places < end)).to(like)
    return inside / inside.sum(1, keepdim=True)
