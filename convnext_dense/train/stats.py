"""Parameters, GFLOPs and activations of a config's model, and on request its time and memory.

Counting runs on the meta device, for one image in inference. GFLOPs are multiply-adds of convolutions, linear layers
and matrix products; activations are the outputs of convolutions and linear layers (arXiv 2003.13678). All parameters
count, also frozen ones and those of an auxiliary head, which does not run. The RPN of a two-stage detector runs on all
maps, each box head on the 1000 RoIs that ``test_cfg`` allows, each mask head on 100.

The published counts come from ``get_flops.py`` of MMDetection 2 and MMSegmentation 0. They add biases of convolutions,
ReLU, pooling and norms, at most 0.2 % of a model, and leave out, as the counts here do, GELU, GRN, layer scale,
residual sums, interpolation, RoIAlign and NMS.
"""

import copy
import csv
import io
import json
import math
import multiprocessing
import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from mmengine.config import Config
from mmengine.fileio import load
from mmengine.logging import MessageHub
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from mmengine.utils import to_2tuple
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

from convnext_dense import configs
from convnext_dense.compat.errors import UserError
from convnext_dense.data import samples
from convnext_dense.speed import keep_memory, speed_up
from convnext_dense.train import config as run_config
from convnext_dense.train.launch import device_type
from convnext_dense.train.mistakes import BUILD_ERRORS, build_errors
from convnext_dense.train.screen import quiet, tell

STRIDE = 32  # of the last map, in pixels
SIZES = {'mmdet': (1280, 800), 'mmseg': (2048, 512)}  # width and height where the config has none
SIZE_KEYS = {'Resize': 'scale', 'ShapesInstances': 'size', 'ShapesLabels': 'size'}  # of the test data, by type
OPEN_SIDES = {1333, math.inf}  # papers count detectors that are tested at 1333x800 at 1280x800; inf is no size
NUM_ROIS = {'bbox': ('rpn', 1000), 'mask': ('rcnn', 100)}  # stage whose max_per_img limits them, default
ROI_HEADS = ('StandardRoIHead', 'CascadeRoIHead')
LAYERS = (torch.ops.aten.linear, torch.ops.aten.convolution)
SECONDS = 5  # a measurement takes at least so long
COLUMNS = {
    'config': '', 'input': '', 'part': '', 'params (M)': '.2f', 'published params (M)': 'g', 'GFLOPs': '.2f',
    'published GFLOPs': 'g', 'difference (%)': '+.2f', 'activations (M)': '.2f', 'peak memory (MB)': '.0f',
    'time (ms)': '.1f', 'training memory (MB)': '.0f', 'step time (ms)': '.1f', 'step images': '', 'device': '',
}  # fmt: skip


class Counts(NamedTuple):
    """Parameters, multiply-adds and layer outputs of a model or a part of it; None where they cannot be counted."""

    params: int
    macs: int | None = None
    activations: int | None = None


class ModelStats(NamedTuple):
    """What the model of a config costs."""

    size: tuple[int, int]  # width and height of the image in pixels
    parts: dict[str, Counts]  # of backbone, neck, heads and of the whole model ('total')
    published: Mapping  # what the metafile beside the config says of it; empty where there is no entry
    uncounted: str  # why there are parts of which only the parameters are known; empty where all is counted


class LinspaceOnCPU(TorchFunctionMode):
    """Keeps ``torch.linspace`` on the CPU while models are built on meta: Swin reads its drop path rates from it."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        """Call ``function``."""
        device = {'device': 'cpu'} if function is torch.linspace else {}
        return function(*args, **{**device, **(kwargs or {})})


class LayerOutputs(TorchDispatchMode):
    """Counts what layers put out, and splits compound ops, which ``FlopCounterMode`` learned in PyTorch 2.5."""

    num_elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Run the parts of ``function``, or ``function`` if it has none."""
        with self:
            outputs = function.decompose(*args, **(kwargs or {}))
        if outputs is NotImplemented:
            outputs = function(*args, **(kwargs or {}))
        self.num_elements += outputs.numel() if function.overloadpacket in LAYERS else 0
        return outputs


def count_config(file: str | os.PathLike, size: Sequence[int] | None = None) -> ModelStats:
    """Count what the model of a config costs, with as many classes as its data set names.

    The image has ``size`` (width, height) pixels; by default those of the published count, or of the test.

    Raises:
        UserError: The config cannot be read or built, or its model has no backbone that can be counted.
    """
    cfg = configs.load_config(file)
    configs.require_library(cfg.get('default_scope'))
    if not cfg.get('model'):
        raise UserError(f'The config {file} has no model. Name the config of a detector or a segmentor.')
    tell(*run_config.fit_classes(cfg))
    published = read_published(Path(cfg.filename).resolve())
    image = published.get('Image')
    size = tuple(size or (map(int, image.split('x')) if image else find_size(cfg)))
    with configs.model_scope(cfg):
        parts, uncounted = count_model(build_on_meta(cfg.model), size)
    return ModelStats(size, parts, published, uncounted)


def read_published(file: Path) -> dict:
    """Return the metadata of one of this package's configs in the metafile of its folder; empty for any other file."""
    metafile = file.with_name('metafile.yml')
    if metafile.parents[1] != configs.config_folder().resolve() or not metafile.is_file():
        return {}
    models = {Path(model['Config']).name: model['Metadata'] for model in load(metafile)['Models']}
    return models.get(file.name, {})


def find_size(cfg: Config) -> tuple[int, int]:
    """Return the width and height of a test image, or those at which papers count."""
    default = SIZES.get(cfg.get('default_scope'), SIZES['mmdet'])
    for node in configs.walk(cfg.get('test_dataloader')):
        key = SIZE_KEYS.get(node.get('type'))
        if key in node:
            scale = to_2tuple(node[key])
            longest_first = sorted(scale, reverse=True) if node.get('keep_ratio') else scale
            return default if OPEN_SIDES & set(scale) else tuple(map(round_up, longest_first))
    return default


def round_up(side: float) -> int:
    """Return the smallest multiple of the largest stride that is not smaller."""
    return math.ceil(side / STRIDE) * STRIDE


def build(model_cfg: Mapping) -> nn.Module:
    """Build a model without the messages of the libraries; raise a :class:`UserError` if it cannot be built."""
    with build_errors(), quiet():
        return MODELS.build(copy.deepcopy(model_cfg))  # some models change their config


def build_on_meta(model_cfg: Mapping) -> nn.Module:
    """Build a model without memory for its weights; raise a :class:`UserError` if it cannot be built."""
    with torch.device('meta'), LinspaceOnCPU():
        return build(model_cfg)


def count_model(model: nn.Module, size: tuple[int, int]) -> tuple[dict[str, Counts], str]:
    """Return the counts of backbone, neck, heads and total for an image of (width, height) pixels.

    The second result is the reason why some have parameters alone; it is empty where all is counted. Heads that read
    numbers out of tensors cannot run on the meta device.
    """
    name = type(model).__name__
    if not hasattr(model, 'backbone') or not hasattr(model, 'extract_feat'):
        raise UserError(f'{name} has no backbone. Only detectors and segmentors with a backbone and heads are counted.')
    model.eval()
    image = maps = torch.empty(1, 3, size[1], size[0], device='meta')
    neck = model.neck if model.with_neck else nn.Identity()
    run_heads = run_roi_heads if hasattr(model, 'roi_head') else run_dense_heads
    calls = {'backbone': model.backbone, 'neck': neck, 'heads': partial(run_heads, model, image)}
    params = {'backbone': num_params(model.backbone), 'neck': num_params(neck)}
    params['heads'] = num_params(model) - sum(params.values())
    parts = {part: Counts(count) for part, count in params.items()}
    for part, call in calls.items():
        try:
            maps, macs, activations = count_call(call, maps)
        except BUILD_ERRORS as error:
            what = f'{find_failing(model, error)} fails on the meta device ({type(error).__name__}: {error})'
            if part == 'backbone':
                raise UserError(f'{name} cannot be counted: {what}') from error
            parts['total'] = Counts(sum(params.values()))
            return parts, f'from the {part} of {name} on only the parameters are counted: {what}'
        parts[part] = Counts(params[part], macs, activations)
    parts['total'] = Counts(*map(sum, zip(*parts.values(), strict=True)))
    return parts, ''


def find_failing(model: nn.Module, error: BaseException) -> str:
    """Return the name of the innermost module of a model that was at work when an error came, or the model's class."""
    names = {module: name for name, module in model.named_modules() if name}
    at_work = [frame.f_locals.get('self') for frame, _ in traceback.walk_tb(error.__traceback__)]
    found = [names[module] for module in at_work if isinstance(module, nn.Module) and module in names]
    return found[-1] if found else type(model).__name__


def num_params(module: nn.Module) -> int:
    """Return the number of parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_call(call: Callable, *inputs) -> tuple[object, int, int]:
    """Run ``call`` on meta tensors; return its outputs, its multiply-adds and its activations."""
    with torch.inference_mode(), FlopCounterMode(display=False) as flops, LayerOutputs() as layers:
        outputs = call(*inputs)
    return outputs, flops.get_total_flops() // 2, layers.num_elements


def run_roi_heads(model: nn.Module, image: Tensor, maps: Sequence[Tensor]) -> None:
    """Run the RPN of a two-stage detector on maps, and its other heads on maps of as many RoIs as it tests."""
    roi_head, test_cfg = model.roi_head, model.test_cfg or {}
    if type(roi_head).__name__ not in ROI_HEADS:
        raise TypeError(f'only {" and ".join(ROI_HEADS)} are counted; got {type(roi_head).__name__}')
    if model.with_rpn:
        model.rpn_head(maps)
    for kind, (stage, default) in NUM_ROIS.items():
        num_rois = (test_cfg.get(stage) or {}).get('max_per_img', default)
        heads, extractors = listed(roi_head, f'{kind}_head'), listed(roi_head, f'{kind}_roi_extractor')
        for head, extractor in zip(heads, extractors, strict=True):
            height, width = to_2tuple(extractor.roi_layers[0].output_size)
            rois = torch.empty(num_rois, extractor.out_channels, height, width, device='meta')
            head(roi_head.shared_head(rois) if roi_head.with_shared_head else rois)


def listed(parent: nn.Module, name: str) -> list[nn.Module]:
    """Return the children of a module under a name: none, one, or those of a list."""
    child = getattr(parent, name, None)
    if child is None:
        return []
    return list(child) if isinstance(child, nn.ModuleList) else [child]


def run_dense_heads(model: nn.Module, image: Tensor, maps: Sequence[Tensor]) -> None:
    """Run what follows backbone and neck in a model whose heads see the whole image."""
    head = getattr(model, 'decode_head', None)  # a segmentor's
    data = [samples.empty_sample('mmdet' if head is None else 'mmseg', image.shape[-2:])]
    if type(head).__name__ == 'Mask2FormerHead':
        head(maps, data)  # the model's own forward does not hand on the samples
        return
    model.extract_feat = lambda image: maps
    try:
        model._forward(image, data)
    finally:
        del model.extract_feat


def measure_config(file: str | os.PathLike, size: tuple[int, int], training: bool, amp: bool) -> dict[str, object]:
    """Call :func:`measure` in a process of its own, where no earlier model has left memory behind."""
    with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool:
        try:
            return pool.submit(measure, file, size, training, amp).result()
        except (BrokenProcessPool, MemoryError) as error:
            cure = 'Set a smaller train_dataloader.batch_size' if training else 'Give a smaller --size'
            raise UserError(f'{file} cannot be measured: memory is short. {cure}; counting needs no memory.') from error


def measure(file: str | os.PathLike, size: tuple[int, int], training: bool, amp: bool) -> dict[str, object]:
    """Return the median time and the peak memory of a test of one image, or of a training step, by column.

    The weights are random. The memory is what the model adds to the process: the peak of CUDA's allocator, or on a CPU
    the growth of resident memory. Mixed precision is fp16 on CUDA and bfloat16 on a CPU.
    """
    memory, duration = ('training memory (MB)', 'step time (ms)') if training else ('peak memory (MB)', 'time (ms)')
    cfg = configs.load_config(file)
    run_config.fit_classes(cfg)
    run_config.drop_initial_weights(cfg.model)
    torch.manual_seed(0)
    with configs.model_scope(cfg), quiet():
        build_on_meta(cfg.model)  # imports what the model needs, which is not the model's memory
        before = resident_bytes('VmRSS')
        keep_memory()
        model = speed_up(build(cfg.model).to(device_type()))
        try:
            work, images = (prepare_step if training else prepare_test)(cfg, model, size, amp)
            timer = Timer('work()', globals={'work': work}, num_threads=torch.get_num_threads())
            seconds = timer.blocked_autorange(min_run_time=SECONDS).median
        except BUILD_ERRORS as error:
            raise UserError(f'{file} does not run: {find_failing(model, error)}: {error}') from error
    place, peak = f'CPU, {torch.get_num_threads()} threads', resident_bytes('VmHWM') - before
    if torch.cuda.is_available():
        place, peak = torch.cuda.get_device_name(), torch.cuda.max_memory_allocated()
    return {
        memory: None if math.isnan(peak) else round(peak / 1e6),
        duration: round(1000 * seconds, 1),
        'device': f'{place}, {"AMP" if amp else "fp32"}',
        **images,
    }


def prepare_test(cfg: Config, model: nn.Module, size: tuple[int, int], amp: bool) -> tuple[Callable, dict[str, str]]:
    """Return the whole test of one image of (width, height) pixels, NMS and sliding windows included."""
    image = torch.randint(0, 256, (3, size[1], size[0]), dtype=torch.uint8)
    data = [samples.empty_sample(cfg.default_scope, image.shape[1:])]
    model.eval()
    for classifier in [getattr(module, 'fc_cls', None) for module in model.modules()]:
        if isinstance(classifier, nn.Linear):  # with all boxes of the first class, the mask heads get theirs
            nn.init.zeros_(classifier.weight)
            nn.init.zeros_(classifier.bias).data[0] = 10

    def work() -> object:
        with torch.inference_mode(), torch.autocast(device_type(), enabled=amp):
            return model.test_step(dict(inputs=[image], data_samples=copy.deepcopy(data)))

    return work, {}


def prepare_step(cfg: Config, model: nn.Module, size: tuple[int, int], amp: bool) -> tuple[Callable, dict[str, str]]:
    """Return a step of one process and its images: drawings of the model's crop, or of as many pixels as ``size``."""
    if not cfg.get('optim_wrapper') or not cfg.get('train_dataloader'):
        raise ValueError('a training step needs optim_wrapper and train_dataloader')
    wrapper_cfg = run_config.without_amp(cfg.optim_wrapper)
    if amp:
        wrapper_cfg['type'] = 'AmpOptimWrapper' if torch.cuda.is_available() else 'BFloat16OptimWrapper'
    crop = (cfg.model.get('data_preprocessor') or {}).get('size')
    side = crop[0] if crop else round_up(math.sqrt(size[0] * size[1]))
    model = revert_sync_batchnorm(model)
    model.init_weights()
    model.train()
    MessageHub.get_current_instance().update_info_dict(dict(epoch=0, iter=0))  # for which a few heads ask
    wrapper, num_images = build_optim_wrapper(model, wrapper_cfg), cfg.train_dataloader.get('batch_size', 1)
    batch = samples.draw_for(cfg, range(num_images), True, side)
    images = {'step images': f'{num_images} x {side}x{side}'}
    return lambda: model.train_step(copy.deepcopy(batch), wrapper), images


def resident_bytes(field: str) -> float:
    """Return the memory of this process now (``VmRSS``) or at its peak (``VmHWM``); NaN where it is unknown."""
    status = Path('/proc/self/status')  # resource.getrusage starts with the peak of the parent process
    lines = status.read_text().splitlines() if status.is_file() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f'{field}:')), math.nan)


def describe_models(
    configs: Sequence[str | os.PathLike] = (),
    size: Sequence[int] | None = None,
    measure: bool = False,
    train: bool = False,
    amp: bool = False,
    out: str | None = None,
) -> tuple[str, list[str]]:
    """Return the table of configs, by default of this package's own, and what was wrong with those that it lacks.

    The image has ``size`` (width, height) pixels, as in :func:`count_config`. ``measure`` adds the time and memory of a
    test, ``train`` those of a training step, both with ``amp`` in mixed precision. ``out`` is a .md, .csv or .json
    file for the table.

    Raises:
        UserError: No config can be counted, an option is wrong, or the file cannot be written.
    """
    check_options(size, measure or train, amp, out)
    rows, failures = [], []
    for config in configs or own_configs():
        try:
            stats = count_config(config, size)
            rows += list_rows(str(config), stats)
            for training in [False] * measure + [True] * train:
                rows[-1].update(measure_config(config, stats.size, training, amp))
        except UserError as error:
            failures.append(str(error) if str(config) in str(error) else f'{config}: {error}')
    if not rows:
        raise UserError('\n'.join(failures))
    if out is not None:
        try:
            Path(out).write_text(FORMATS[Path(out).suffix](rows))
        except OSError as error:
            raise UserError(f'{out} cannot be written ({error.strerror}). Give another file with --out.') from error
    return format_text(rows), failures


def check_options(size: Sequence[int] | None, measured: bool, amp: bool, out: str | None) -> None:
    """Raise a :class:`UserError` where an option of the tool is wrong."""
    if any(side < STRIDE or side % STRIDE for side in size or ()):
        given = ' '.join(map(str, size))
        raise UserError(f'--size takes width and height in pixels, multiples of {STRIDE}; got {given}.')
    if amp and not measured:
        raise UserError('--amp is for measuring. Give --measure or --train with it.')
    if out is not None and Path(out).suffix not in FORMATS:
        raise UserError(f'--out takes a file that ends in {", ".join(FORMATS)}; got {out}.')


def own_configs() -> list[Path]:
    """Return this package's configs, detectors first."""
    folder = Path(os.path.relpath(configs.config_folder()))
    return [file for task in configs.TASKS for file in sorted((folder / task).glob('*.py'))]


def list_rows(config: str, stats: ModelStats) -> list[dict[str, object]]:
    """Return a row for each part of a model; that of the total, the last, has the published figures beside it."""
    if stats.uncounted:
        tell(f'{config}: {stats.uncounted}')
    rows = []
    for part, counts in stats.parts.items():
        row = dict.fromkeys(COLUMNS) | {'config': config, 'input': '{}x{}'.format(*stats.size), 'part': part}
        row['params (M)'] = round(counts.params / 1e6, 2)
        if counts.macs is not None:
            row |= {'GFLOPs': round(counts.macs / 1e9, 2), 'activations (M)': round(counts.activations / 1e6, 2)}
        rows.append(row)
    total, published = rows[-1], stats.published
    total['published params (M)'] = published.get('Parameters (M)')
    if published.get('Image') == total['input']:
        total['published GFLOPs'] = published['GFLOPs']
        total['difference (%)'] = round(100 * (stats.parts['total'].macs / 1e9 / published['GFLOPs'] - 1), 2)
    return rows


def format_cells(rows: Sequence[Mapping[str, object]], columns: Mapping[str, str] = COLUMNS) -> list[list[str]]:
    """Return head and rows of a table as text, without columns in which nothing stands."""
    names = [name for name in columns if any(row.get(name) is not None for row in rows)]
    table = [names]
    for row in rows:
        table.append(['' if row.get(name) is None else format(row[name], columns[name]) for name in names])
    return table


def format_text(rows: Sequence[Mapping[str, object]]) -> str:
    """Return a table for a terminal."""
    table = format_cells(rows)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    aligned = ['>' if COLUMNS[name] else '<' for name in table[0]]
    return '\n'.join('  '.join(map('{:{}{}}'.format, row, aligned, widths)).rstrip() for row in table)


def format_markdown(rows: Sequence[Mapping[str, object]], columns: Mapping[str, str] = COLUMNS) -> str:
    """Return a table in Markdown; ``columns`` are the names and the formats of what may stand in it."""
    head, *cells = format_cells(rows, columns)
    return ''.join(f'| {" | ".join(row)} |\n' for row in (head, ['---'] * len(head), *cells))


def format_csv(rows: Sequence[Mapping[str, object]]) -> str:
    """Return comma-separated values with a head."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator='\n').writerows([list(COLUMNS), *(row.values() for row in rows)])
    return stream.getvalue()


FORMATS = {'.md': format_markdown, '.csv': format_csv, '.json': partial(json.dumps, indent=1)}
