"""A config goes in; parameters, GFLOPs and activations of its backbone, neck and heads come out.

Counting runs on the meta device: it needs the time and memory of Python calls, whatever the size of the model.

What is counted, for one image in inference:

- GFLOPs are multiply-adds (one multiplication with its addition is one) of convolutions, linear layers and matrix
  products, attention's among them, as :class:`torch.utils.flop_counter.FlopCounterMode` finds them.
- Activations are the elements that convolutions and linear layers put out, as in "Designing Network Design Spaces"
  (arXiv 2003.13678).
- Parameters are those of the checkpoint: frozen ones and the auxiliary head's too.
- A two-stage detector's proposals depend on the image. Its RPN runs on all maps, each box head on as many RoIs as
  ``test_cfg`` allows (1000, so a cascade of three on 3000) and each mask head likewise (100). These are the numbers of
  MMDetection 2's ``forward_dummy``.
- A segmentor runs without its auxiliary head, which only training needs.
- Heads that read numbers out of tensors, as those of DINO and Mask2Former do, cannot run on the meta device: of them
  the parameters alone are known.

The published counts (of ConvNeXt, ConvNeXt V2 and Swin) come from MMDetection 2's and MMSegmentation 0's
``get_flops.py``, where hooks of mmcv look at modules of known types. Beside convolutions and linear layers they add one
for each output of a convolution with bias, each output of a ReLU and each input of a pooling, and two for each input of
a batch norm or an ``nn.LayerNorm``. They pass over what is no module of a listed type: ConvNeXt's own LayerNorm, GELU,
GRN, layer scale, residual sums, interpolation, RoIAlign, NMS. None of this is a multiply-add of a layer, and nothing of
it is counted here; it is at most 0.2 % of a model. Added, it gives each ConvNeXt and ResNet figure of the paper to
its last digit (Cascade T 740.99, R50 739.01, UperNet XL 3335.21; the tests let mmcv's hooks count), where batch norm
stands in place of SyncBN, which is of no listed type. The hooks do not see attention's matrix products, but Swin's
figures have them: without them Cascade Swin-T would be 742 instead of 745, UperNet Swin-B 1829 instead of 1841.
Auxiliary heads are in no figure: with its own UperNet T would be 942 instead of 939.
"""

import contextlib
import copy
import inspect
import math
import os
import re
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from convnext_dense import configs
from convnext_dense.compat.errors import UserError
from convnext_dense.data.samples import empty_sample
from convnext_dense.train import config as run_config
from convnext_dense.train import run as runs
from convnext_dense.train import screen
from convnext_dense.train.config_header import Header, find_header
from convnext_dense.train.screen import quiet

CONFIGS = Path(__file__).parents[2] / 'configs'
PARTS = ('backbone', 'neck', 'heads')
NUM_BOX_ROIS, NUM_MASK_ROIS = 1000, 100  # where test_cfg has no max_per_img
ROI_HEADS = ('StandardRoIHead', 'CascadeRoIHead')
STRIDE = 32
# width and height in pixels, where neither header nor test pipeline has them
DEFAULT_SIZES = {'mmdet': (1280, 800), 'mmseg': (2048, 512)}
COCO_SCALE, COCO_SIZE = (1333, 800), (1280, 800)  # COCO is tested at the first, papers count at the second
LAYERS = frozenset(
    getattr(torch.ops.aten, name)
    for name in (
        'linear', 'convolution', 'conv1d', 'conv2d', 'conv3d', 'conv_transpose1d', 'conv_transpose2d',
        'conv_transpose3d',
    )
)  # fmt: skip

MISFIT = re.compile('channel|shape|size|match')  # in PyTorch's errors of layers that do not fit their inputs
CPU_ALLOCATOR = 'DefaultCPUAllocator'  # PyTorch's error of a CPU without memory has no class, but names it


@dataclass(frozen=True)
class Counts:
    """Parameters, multiply-adds and layer outputs of a model or a part of it; None where they cannot be counted."""

    params: int = 0
    macs: int | None = 0
    activations: int | None = 0

    def __add__(self, other: 'Counts') -> 'Counts':
        pairs = zip(astuple(self), astuple(other), strict=True)
        return Counts(*(None if None in pair else sum(pair) for pair in pairs))


@dataclass(frozen=True)
class ModelStats:
    """What a config's model costs.

    Attributes:
        config: The file.
        size: Width and height of the image in pixels.
        parts: The counts of each of ``PARTS``.
        header: What the config promises; None where it has no header.
        cfg: What the file resolves to.
        uncounted: Why the heads, or neck and heads, have parameters alone; empty where all is counted.
    """

    config: Path
    size: tuple[int, int]
    parts: Mapping[str, Counts]
    header: Header | None = None
    cfg: Config | None = None
    uncounted: str = ''

    @property
    def total(self) -> Counts:
        """The sum over the parts."""
        return sum(self.parts.values(), Counts())

    @property
    def published_gflops(self) -> float | None:
        """The published count, where it was made at this size."""
        is_comparable = self.header is not None and self.header.gflops is not None and self.header.size == self.size
        return float(self.header.gflops) if is_comparable else None

    @property
    def difference(self) -> float | None:
        """Our count against the published one, in percent."""
        published, macs = self.published_gflops, self.total.macs
        return None if None in (published, macs) else 100 * (macs / 1e9 / published - 1)


class LinspaceOnCPU(TorchFunctionMode):
    """Keeps ``torch.linspace`` on the CPU where models are built on meta: Swin reads its drop path rates from it."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        """Call ``function``."""
        kwargs = dict(kwargs or {})
        if function is torch.linspace:
            kwargs.setdefault('device', 'cpu')
        return function(*args, **kwargs)


class LayerOutputs(TorchDispatchMode):
    """Counts the elements that convolutions and linear layers put out; needs inference mode, which keeps them whole."""

    def __init__(self) -> None:
        super().__init__()
        self.num_elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Run ``function``."""
        outputs = function(*args, **(kwargs or {}))
        if function.overloadpacket in LAYERS:
            self.num_elements += outputs.numel()
        return outputs


class SplitOps(TorchDispatchMode):
    """Splits compound ops into those that ``FlopCounterMode`` knows; before PyTorch 2.5 it does not do so itself."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Run the parts of ``function``, or ``function`` if it has none."""
        with self:
            outputs = function.decompose(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {})) if outputs is NotImplemented else outputs


def leaf_configs() -> list[Path]:
    """Return the package's own configs, detectors first.

    Raises:
        UserError: This is an installation without them.
    """
    files = [file for folder in ('det', 'seg') for file in sorted((CONFIGS / folder).glob('*.py'))]
    if not files:
        raise UserError(f'There are no configs in {CONFIGS}: name a config file, or run this in a clone.')
    return files


def count_config(file: str | os.PathLike, size: Sequence[int] | None = None) -> ModelStats:
    """Count what the model of a config costs, with as many classes as its data set names.

    Args:
        file: Config file of a detector or a segmentor.
        size: Width and height of the image in pixels; by default those of the published count, or of the test.

    Raises:
        UserError: The config cannot be read or built, or its model has no backbone that can be counted; or it is one of
            this package's, and its header is wrong.
    """
    cfg = configs.load_config(file)
    configs.require_library(cfg.get('default_scope'))
    if not cfg.get('model'):
        raise UserError(f'The config {file} has no model: there is nothing to count.')
    screen.tell(*run_config.fit_classes(cfg))
    header = published_header(file)
    size = check_size(size) if size else default_size(cfg, header)
    with configs.model_scope(cfg):
        parts, uncounted = count_model(build_on_meta(cfg.model), size)
    return ModelStats(Path(file), size, parts, header, cfg, uncounted)


def published_header(file: str | os.PathLike) -> Header | None:
    """Return the header of a config; None where it has none.

    A user's docstring may say what it likes: one that is not written like a header is none.

    Raises:
        UserError: A header of this package's own configs is wrong.
    """
    try:
        return find_header(file)
    except UserError:
        if Path(file).resolve().is_relative_to(CONFIGS.resolve()):
            raise
        return None


def check_size(size: Sequence[int]) -> tuple[int, int]:
    """Return width and height, as multiples of the largest stride.

    Raises:
        UserError: They are no such multiples.
    """
    if any(side < STRIDE or side % STRIDE for side in size):
        raise UserError(
            f'--size takes width and height in pixels, multiples of {STRIDE} (the stride of the last map); got '
            f'{" ".join(map(str, size))}.'
        )
    width, height = size
    return width, height


def default_size(cfg: Config, header: Header | None) -> tuple[int, int]:
    """Return width and height to count at: those of the published figure, of the test pipeline, or of the drawings."""
    if header is not None and header.size:
        return header.size
    nodes = list(configs.walk(cfg.get('test_dataloader') or {}))
    resizes = [node for node in nodes if node.get('type') == 'Resize' and 'scale' in node]
    drawn = [node['size'] for node in nodes if str(node.get('type')).startswith('Shapes') and 'size' in node]
    default = DEFAULT_SIZES.get(cfg.get('default_scope'), COCO_SIZE)
    if resizes:
        return resized_size(resizes[0], default)
    if drawn:
        return (round_up(drawn[0]),) * 2
    return default


def resized_size(resize: Mapping, default: tuple[int, int]) -> tuple[int, int]:
    """Return width and height to count at where images pass a ``Resize``.

    One that keeps the ratio of images takes its two numbers in any order, and leaves a side open with ``inf``; the
    image is then of the ratio of ``default``.

    >>> resized_size(dict(scale=(640, float('inf')), keep_ratio=True), default=(1280, 800))
    (1024, 640)
    """
    scale = resize['scale'] if isinstance(resize['scale'], Sequence) else (resize['scale'],) * 2
    short, long = sorted(scale)
    if (long, short) == COCO_SCALE:
        return COCO_SIZE
    if math.isinf(short):
        return default
    if math.isinf(long):
        return round_up(short * default[0] / default[1]), round_up(short)
    width, height = (long, short) if resize.get('keep_ratio') else scale
    return round_up(width), round_up(height)


def round_up(side: float) -> int:
    """Return the smallest multiple of the largest stride that is not smaller.

    >>> round_up(112)
    128
    """
    return math.ceil(side / STRIDE) * STRIDE


def build_on_meta(model_cfg: Mapping) -> nn.Module:
    """Build a model without memory for its weights.

    Raises:
        UserError: It cannot be built.
    """
    with torch.device('meta'), LinspaceOnCPU():
        return build(model_cfg)


def build(model_cfg: Mapping) -> nn.Module:
    """Build a model, without what libraries say of it.

    Raises:
        UserError: It cannot be built.
    """
    with runs.build_errors(), quiet():
        return MODELS.build(copy.deepcopy(model_cfg))  # some models change their config


def count_model(model: nn.Module, size: tuple[int, int]) -> tuple[dict[str, Counts], str]:
    """Count each of ``PARTS`` of a detector or segmentor on the meta device.

    Args:
        model: A model of MMDetection or MMSegmentation, on meta.
        size: Width and height of the image in pixels.

    Returns:
        The counts of each part, and why the heads, or neck and heads, have parameters alone; empty where all is
        counted.

    Raises:
        UserError: It has no backbone, or one that does not run.
    """
    model.eval()
    width, height = size
    name = type(model).__name__
    if not hasattr(model, 'backbone') or not hasattr(model, 'extract_feat'):
        raise UserError(f'{name} has no backbone: only detectors and segmentors with a backbone and heads are counted.')
    image = maps = torch.empty(1, 3, height, width, device='meta')
    neck = model.neck if model.with_neck else nn.Identity()
    run_heads = run_roi_heads if hasattr(model, 'roi_head') else run_dense_heads
    params = {'backbone': num_params(model.backbone), 'neck': num_params(neck)}
    params['heads'] = num_params(model) - sum(params.values())
    parts, uncounted = {part: Counts(params[part], None, None) for part in PARTS}, ''
    try:
        for part, step in zip(PARTS, (model.backbone, neck, partial(run_heads, model, image)), strict=True):
            with explained_failures(model):
                maps, counts = count_call(step, maps)
            parts[part] = counts + Counts(params=params[part])
    except Uncounted as error:
        if part == 'backbone':
            raise
        missing = 'the heads' if part == 'heads' else 'neck and heads'
        uncounted = f'of {missing} of {name} only the parameters are counted: {error}'
    return parts, uncounted


class Uncounted(UserError):
    """A model is sound as far as is known, and cannot be counted."""


@contextlib.contextmanager
def explained_failures(model: nn.Module) -> Iterator[None]:
    """Say which module of a model fails, and whether that is for want of values.

    Raises:
        Uncounted: The model is on meta, and the failure may be that its tensors have no values.
        UserError: Anything else, such as channels that do not fit.
    """
    try:
        yield
    except UserError:
        raise
    except runs.BUILD_ERRORS as error:
        if is_out_of_memory(error):
            raise
        place, what = failing_module(model, error), f'{type(error).__name__}: {error}'
        is_misfit = isinstance(error, RuntimeError) and MISFIT.search(str(error)) and 'meta' not in str(error)
        if any(parameter.is_meta for parameter in model.parameters()) and not is_misfit:
            raise Uncounted(f'{place} does not run without values ({what})') from error
        raise UserError(f'{type(model).__name__} does not run: {place} ends with {what}') from error


def failing_module(model: nn.Module, error: BaseException) -> str:
    """Return the name of the innermost module of a model that was at work when an error came, or the model's class."""
    names = {module: name for name, module in model.named_modules()}
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    modules = [frame.f_locals.get('self') for frame in frames]
    found = [names[module] for module in modules if isinstance(module, nn.Module) and names.get(module)]
    return found[-1] if found else type(model).__name__


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether an error means that memory is short: one of Python, CUDA or the CPU, or the end of a process."""
    known = (BrokenProcessPool, MemoryError, torch.cuda.OutOfMemoryError)
    return isinstance(error, known) or CPU_ALLOCATOR in str(error)


def num_params(module: nn.Module) -> int:
    """Return the number of parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_call(call: Callable, *inputs) -> tuple[object, Counts]:
    """Run ``call`` on meta tensors; return its outputs and what it did."""
    with torch.inference_mode(), FlopCounterMode(display=False) as flops, SplitOps(), LayerOutputs() as layers:
        outputs = call(*inputs)
    return outputs, Counts(macs=flops.get_total_flops() // 2, activations=layers.num_elements)


def run_roi_heads(model: nn.Module, image: Tensor, maps: Sequence[Tensor]) -> None:
    """Run the heads of a two-stage detector, the second stage on maps of RoIs that no image has."""
    roi_head = model.roi_head
    if type(roi_head).__name__ not in ROI_HEADS:
        raise Uncounted(
            f'two-stage detectors are counted with {" or ".join(ROI_HEADS)}; got {type(roi_head).__name__}.'
        )
    num_box_rois = max_per_img(model.test_cfg, 'rpn', NUM_BOX_ROIS)
    num_mask_rois = max_per_img(model.test_cfg, 'rcnn', NUM_MASK_ROIS)
    if model.with_rpn:
        model.rpn_head(maps)
    for extractor, head in zip(listed(roi_head.bbox_roi_extractor), listed(roi_head.bbox_head), strict=True):
        head(roi_maps(roi_head, extractor, num_box_rois))
    if roi_head.with_mask:
        for extractor, head in zip(listed(roi_head.mask_roi_extractor), listed(roi_head.mask_head), strict=True):
            head(roi_maps(roi_head, extractor, num_mask_rois))


def max_per_img(test_cfg: Mapping | None, stage: str, default: int) -> int:
    """Return how many boxes a stage of a detector hands on."""
    return ((test_cfg or {}).get(stage) or {}).get('max_per_img', default)


def roi_maps(roi_head: nn.Module, extractor: nn.Module, num_rois: int) -> Tensor:
    """Return what ``extractor`` cuts out for ``num_rois`` RoIs, (num_rois, C, h, w), through the shared head if any."""
    side = extractor.roi_layers[0].output_size
    height, width = side if isinstance(side, Sequence) else (side, side)
    maps = torch.empty(num_rois, extractor.out_channels, height, width, device='meta')
    return roi_head.shared_head(maps) if roi_head.with_shared_head else maps


def listed(module: nn.Module) -> list[nn.Module]:
    """Return the modules of a list, or a single module as a list."""
    return list(module) if isinstance(module, nn.ModuleList) else [module]


def run_dense_heads(model: nn.Module, image: Tensor, maps: Sequence[Tensor]) -> None:
    """Run what follows backbone and neck in a model whose heads see the whole image."""
    samples = [empty_sample(library_of(model), image.shape[-2:])]
    head = getattr(model, 'decode_head', None)
    if hasattr(head, 'forward') and 'batch_data_samples' in inspect.signature(head.forward).parameters:
        head(maps, samples)  # Mask2Former's, which a segmentor's own forward forgets to give the samples
        return
    model.extract_feat = lambda image: maps
    try:
        model._forward(image, samples)
    finally:
        del model.extract_feat


def library_of(model: nn.Module) -> str:
    """Return the name of the library that a model is of, 'mmdet' or 'mmseg'."""
    return 'mmseg' if hasattr(model, 'decode_head') else 'mmdet'
