"""Switches of the command line that change a training's config: one table, a row for each.

Each can be written into a config instead; ``docs/first_training.md`` shows the lines.
"""

import copy
import functools
import gc
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log
from mmengine.registry import MODELS, OPTIM_WRAPPERS, VISBACKENDS
from mmengine.visualization.vis_backend import BaseVisBackend, force_init_env

from convnext_dense.compat.errors import UserError
from convnext_dense.configs import SPLITS, model_scope, walk
from convnext_dense.data.samples import draw_for
from convnext_dense.train.launch import device_type
from convnext_dense.train.shards import use_fsdp, use_zero

EMA_MOMENTUM = 2e-4
PROFILED_STEPS = 5
RARE = 0.3  # a class on fewer images than this share is repeated
MONITORS = {'CocoMetric': 'coco/bbox_mAP', 'IoUMetric': 'mIoU', 'VOCMetric': 'pascal_voc/mAP'}
LOGGERS = {
    'tensorboard': 'TensorboardVisBackend',
    'wandb': 'WandbVisBackend',
    'mlflow': 'MLflowVisBackend',
    'trackio': 'TrackioVisBackend',
}
SIZE_KEYS = ('scale', 'scales', 'img_scale', 'crop_size', 'size', 'max_size', 'stride')  # of transforms and tests
RESIZES = ('Resize', 'RandomResize', 'RandomChoiceResize')
LOADERS = ('LoadImageFromFile', 'LoadAnyImage', 'LoadAnnotations')
LEAST_SIDE = 64  # pixels: two of the backbone's last cells
MOST_IMAGES = 256  # of a batch that is tried


def apply_switches(cfg: Config, **given: Any) -> list[str]:
    """Change the config of a training as the switches say, and return a note on each.

    ``given`` are names of :data:`SWITCHES` and their values; None and False change nothing.

    Raises:
        UserError: A value is out of range, or the config has nothing that the switch could change.
    """
    return [SWITCHES[name](cfg, value) for name, value in given.items() if value is not None and value is not False]


def add_hook(cfg: Config, **hook: Any) -> None:
    """Add a hook, unless the config has one of its type."""
    hooks = list(cfg.get('custom_hooks') or [])
    if not any(each.get('type') == hook['type'] for each in hooks):
        cfg.custom_hooks = [*hooks, hook]


def average(cfg: Config, value: bool) -> str:
    """Keep an exponential moving average of the weights, which is evaluated and saved."""
    add_hook(cfg, type='EMAHook', momentum=EMA_MOMENTUM, update_buffers=True)
    return f'--ema: an average of the weights, momentum {EMA_MOMENTUM:g}, is evaluated and saved'


def stop_early(cfg: Config, patience: int) -> str:
    """End the training where the metric has not improved in so many evaluations."""
    check_count('--early-stop', patience)
    metric = monitored(cfg, '--early-stop')
    add_hook(cfg, type='EarlyStoppingHook', monitor=metric, rule='greater', min_delta=0.0, patience=patience)
    return f'--early-stop: the training ends where {metric} has not improved in {patience} evaluations'


def keep_best(cfg: Config, value: bool) -> str:
    """Keep the checkpoint of the best evaluation."""
    metric = monitored(cfg, '--save-best')
    cfg.default_hooks.checkpoint.update(save_best=metric, rule='greater')
    return f'--save-best: the checkpoint with the best {metric} is kept'


def keep_polygons(cfg: Config, value: bool) -> str:
    """Keep masks as polygons until the loss draws what it needs of them, in place of bitmaps of whole images."""
    steps = [node for node in walk(cfg.train_dataloader) if 'LoadAnnotations' in str(node.get('type'))]
    steps = [step for step in steps if step.get('with_mask')]
    if not steps:
        raise UserError(
            '--polygons is for trainings with masks; this config loads none (LoadAnnotations, with_mask=True).'
        )
    for step in steps:
        step.poly2mask = False
    return '--polygons: masks stay polygons until the loss'


def decode_reduced(cfg: Config, value: bool) -> str:
    """Decode JPEG files at about the size to which they are resized."""
    pipelines = [node.pipeline for node in walk(cfg.train_dataloader) if node.get('pipeline')]
    found = [pipeline for pipeline in pipelines if resizing(pipeline)]
    if not found:
        raise UserError(
            '--fast-jpeg is for trainings that resize images as soon as they are loaded; this config does not, or its '
            'LoadImageFromFile has options of its own. Give --size PIXELS with it, or move Resize (with a scale), '
            'RandomResize or RandomChoiceResize in the train_pipeline behind LoadImageFromFile (with no option but '
            'backend_args) and LoadAnnotations.'
        )
    for pipeline in found:
        place = resizing(pipeline)
        pipeline[0] = dict(type='LoadDeferredImage', load=pipeline[0])
        pipeline[place] = dict(type='LoadResizedImage', resize=pipeline[place])
    return '--fast-jpeg: JPEG files are decoded at about the size to which they are resized'


def resizing(pipeline: Sequence[dict]) -> int | None:
    """Return the place of the step that resizes images as soon as they are loaded; None where there is none."""
    types = [step.get('type') for step in pipeline]
    place = next((i for i, name in enumerate(types) if name not in LOADERS), 0)
    if types[0] != 'LoadImageFromFile' or set(pipeline[0]) - {'type', 'backend_args'} or types[place] not in RESIZES:
        return None
    return place if types[place] != 'Resize' or pipeline[place].get('scale') else None


def accumulate(cfg: Config, steps: int) -> str:
    """Add up the gradients of so many batches for a step of the optimizer."""
    check_count('--accumulate', steps)
    cfg.optim_wrapper.accumulative_counts = steps
    return f'--accumulate: {steps} batches for each step of the optimizer'


def set_size(cfg: Config, side: int) -> str:
    """Scale images, and crops with them: a detector's longest sides, or a segmentor's crops, have so many pixels."""
    if side < LEAST_SIDE:
        raise UserError(f'--size takes a number of {LEAST_SIDE} pixels or more; got {side}.')
    is_seg = cfg.get('default_scope') == 'mmseg'
    loaders = [cfg[f'{split}_dataloader'] for split in SPLITS if cfg.get(f'{split}_dataloader')]
    padded = cfg.model.get('data_preprocessor')
    crop = longest(loaders[0], 'crop_size') or longest(padded, 'size')
    before = crop if is_seg else longest(loaders[-1], 'scale')
    if not longest(loaders[0], *SIZE_KEYS):  # images are trained on as they are
        for node in walk(loaders[0]):
            if any(step.get('type') in LOADERS for step in node.get('pipeline') or ()):
                node.pipeline = resized(node.pipeline)
    places = [*loaders, cfg.get('tta_pipeline'), padded, cfg.model.get('test_cfg')]
    for node in {id(node): node for place in places for node in walk(place)}.values():  # a shared one once
        scale_step(node, side, side / before if before else 1)
    return (
        f'--size: {f"crops of {side} x {side}" if is_seg else f"images have a longest side of at most {side}"} pixels'
    )


def longest(node: Any, *keys: str) -> int:
    """Return the longest side in pixels that a node of a config gives by these keys; 0 where there is none."""
    sides = [max(size) for step in walk(node) for key in keys for size in pairs(step.get(key))]
    return max(sides, default=0)


def resized(pipeline: list[dict]) -> list[dict]:
    """Return a training pipeline with a step that scales images, once all is loaded."""
    place = max(i for i, step in enumerate(pipeline, 1) if step.get('type') in LOADERS)
    return [*pipeline[:place], dict(type='Resize', scale_factor=1.0), *pipeline[place:]]


def scale_step(step: dict, side: int, factor: float) -> None:
    """Multiply the sizes of a step by a factor; one that is relative to the image becomes one to a longest side."""
    if step.get('type') == 'Resize' and isinstance(step.get('scale_factor'), int | float):
        longest_side = round(side * step.pop('scale_factor'))
        step.update(scale=(longest_side, longest_side), keep_ratio=True)
        return
    for key in SIZE_KEYS:
        if isinstance(step.get(key), list | tuple) or (key == 'max_size' and key in step):
            step[key] = scaled(step[key], factor)


def scaled(value: Any, factor: float) -> Any:
    """Return pixels, in whatever nesting, times a factor.

    >>> scaled([(1333, 480), (0.5, 0.5)], 0.25)
    [(333, 120), (0.5, 0.5)]
    """
    if isinstance(value, list | tuple):
        return type(value)(scaled(each, factor) for each in value)
    return max(1, round(value * factor)) if isinstance(value, int) else value


def set_batch(cfg: Config, value: str) -> str:
    """Take so many images for a step, or as many as the GPU holds."""
    if value != 'auto':
        if not value.isdecimal() or int(value) < 1:
            raise UserError(f'--batch takes auto, or a number of 1 or more; got {value!r}.')
        cfg.train_dataloader.batch_size = int(value)
        return f'--batch: {value} images for each process and step'
    before = cfg.train_dataloader.get('batch_size', 1)
    if not torch.cuda.is_available():
        return f'--batch auto acts on a GPU alone; the batch stays at {before} images'
    cfg.train_dataloader.batch_size = largest_batch(lambda images: fits(cfg, images))
    return f'--batch auto: {cfg.train_dataloader.batch_size} images fit the GPU, instead of {before}'


def largest_batch(fit: Callable[[int], bool]) -> int:
    """Return the largest batch that fits, among 1, 2, 3, 4, 6, 8, 12, 16, ...

    Raises:
        UserError: Not even one image does.

    >>> largest_batch(lambda images: images <= 13)
    12
    """
    largest, step = 0, 1
    while step <= MOST_IMAGES and fit(step):
        largest, step = step, step * 2
    if not largest:
        raise UserError('--batch auto: not even one image fits the GPU. Take smaller images or a smaller model.')
    between = largest + largest // 2
    return between if largest > 1 and between <= MOST_IMAGES and fit(between) else largest


def fits(cfg: Config, images: int) -> bool:
    """Tell whether a training step on so many drawn images, as large as the config's, fits the GPU with some room."""
    try:
        try_steps(cfg, images)
        free, total = torch.cuda.mem_get_info()
        return free > 0.05 * total
    except torch.cuda.OutOfMemoryError:
        return False
    finally:
        gc.collect()
        torch.cuda.empty_cache()


def try_steps(cfg: Config, images: int) -> None:
    """Take two training steps; the second one has the optimizer's state."""
    with model_scope(cfg):
        model = MODELS.build(copy.deepcopy(cfg.model)).to(device_type()).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
        wrapper = OPTIM_WRAPPERS.build(dict(type=cfg.optim_wrapper.get('type', 'OptimWrapper'), optimizer=optimizer))
        batch = draw_for(cfg, range(images), training=True, side=image_side(cfg))
        for _ in range(2):
            model.train_step(batch, wrapper)


def image_side(cfg: Config) -> int:
    """Return the side of a square as large as the largest image that the training pipeline makes, in pixels."""
    sizes = [size for step in walk(cfg.train_dataloader) for key in SIZE_KEYS for size in pairs(step.get(key))]
    area = max((width * height for width, height in sizes), default=512 * 512)
    return 32 * math.ceil(math.sqrt(area) / 32)


def pairs(value: Any) -> list[tuple[int, int]]:
    """Return a width and height in pixels, or several, as transforms take them; nothing of other values."""
    if not isinstance(value, (list, tuple)):
        return []
    if len(value) == 2 and all(isinstance(each, int) for each in value):
        return [tuple(value)]
    return [size for each in value for size in pairs(each)]


def freeze(cfg: Config, stages: int) -> str:
    """Freeze the stem and the first stages of the backbone."""
    if not 0 <= stages <= 4:
        raise UserError(f'--freeze takes 0 (the stem) to 4 (with all stages); got {stages}.')
    cfg.model.backbone.frozen_stages = stages
    return f'--freeze: the stem and {stages} stages of the backbone are not trained'


def balance(cfg: Config, value: bool) -> str:
    """Repeat images with rare classes (``ClassBalancedDataset``, arXiv 1908.03195)."""
    if cfg.get('default_scope') != 'mmdet':
        raise UserError('--balance repeats images by their objects, and the config is for no detector.')
    wrapped = dict(type='ClassBalancedDataset', oversample_thr=RARE, dataset=cfg.train_dataloader.dataset)
    cfg.train_dataloader.dataset = ConfigDict(wrapped)
    return f'--balance: images with classes that are on fewer than {RARE:.0%} of the images are repeated'


def log_to(cfg: Config, name: str) -> str:
    """Send metrics to a logger as well; where it fails, the run goes on without it."""
    if name not in LOGGERS:
        raise UserError(f'--log takes {", ".join(LOGGERS)}; got {name!r}.')
    visualizer = cfg.setdefault('visualizer', ConfigDict(type='Visualizer'))
    backends = list(visualizer.get('vis_backends') or [dict(type='LocalVisBackend')])
    visualizer.vis_backends = [*backends, dict(type='GuardedVisBackend', backend=LOGGERS[name])]
    return f'--log: metrics go to {name} as well'


def profile(cfg: Config, value: bool) -> str:
    """Write a trace of the first steps."""
    add_hook(
        cfg, type='ProfilerHook', by_epoch=False, profile_times=PROFILED_STEPS,
        json_trace_path=f'{cfg.work_dir}/profile.json',
    )  # fmt: skip
    return f'--profile: a trace of {PROFILED_STEPS} steps goes to {cfg.work_dir}/profile.json (chrome://tracing)'


def set_timeout(cfg: Config, seconds: int) -> str:
    """End the run where a process or a worker of a data loader has not answered for so many seconds."""
    check_count('--timeout', seconds)
    cfg.setdefault('env_cfg', ConfigDict()).setdefault('dist_cfg', ConfigDict(backend='nccl'))['timeout'] = seconds
    return f'--timeout: the run ends where data or a process do not come for {seconds} s'


def check_count(switch: str, value: int) -> None:
    """Raise a :class:`UserError` unless a value is 1 or more."""
    if value < 1:
        raise UserError(f'{switch} takes a number of 1 or more; got {value}.')


def monitored(cfg: Config, switch: str) -> str:
    """Return the metric that tells which evaluation is best.

    Raises:
        UserError: The config evaluates nothing, or with a metric that is not known here.
    """
    given = cfg.get('val_evaluator')
    kinds = [str(each.get('type')) for each in (given if isinstance(given, list) else [given or {}])]
    found = [MONITORS[kind.rpartition('.')[-1]] for kind in kinds if kind.rpartition('.')[-1] in MONITORS]
    if not found:
        raise UserError(
            f'{switch} needs val_evaluator of type {", ".join(MONITORS)}; the config has {", ".join(kinds)}.'
        )
    return found[0]


SWITCHES: Mapping[str, Callable[[Config, Any], str]] = {
    'ema': average,
    'early_stop': stop_early,
    'save_best': keep_best,
    'size': set_size,
    'batch': set_batch,
    'polygons': keep_polygons,
    'fast_jpeg': decode_reduced,
    'accumulate': accumulate,
    'freeze': freeze,
    'zero': use_zero,
    'fsdp': use_fsdp,
    'balance': balance,
    'log': log_to,
    'profile': profile,
    'timeout': set_timeout,
}


def guarded(name: str) -> Callable:
    """Return a method that calls the backend's, and switches the backend off where that fails."""

    @functools.wraps(getattr(BaseVisBackend, name))
    def method(self: 'GuardedVisBackend', *args: Any, **options: Any) -> None:
        if self.backend is None:
            return
        try:
            getattr(self.backend, name)(*args, **options)
        except Exception as error:  # whatever a service, a disk or a missing package makes of it
            kind, self.backend = type(self.backend).__name__, None
            note = f'{kind} failed and is switched off; the run goes on: {type(error).__name__}: {error}'
            print_log(note, logger='current', level=logging.WARNING)

    return method


@VISBACKENDS.register_module()
class GuardedVisBackend(BaseVisBackend):
    """A logger that cannot end a run: where it fails, at the start or later, one warning is logged.

    Args:
        save_dir: Where the backend keeps files.
        backend: Its type, such as ``'TensorboardVisBackend'``.
        **options: Of the backend.
    """

    def __init__(self, save_dir: str, backend: str, **options: Any) -> None:
        super().__init__(save_dir)
        self.backend = VISBACKENDS.build(dict(type=backend, save_dir=save_dir, **options))

    @property
    def experiment(self) -> Any:
        """The backend's experiment; None where it has failed."""
        return getattr(self.backend, 'experiment', None)

    def _init_env(self) -> None:
        """Do nothing: the backend starts itself when it is first used."""

    add_config, add_image = guarded('add_config'), guarded('add_image')
    add_scalar, add_scalars, close = guarded('add_scalar'), guarded('add_scalars'), guarded('close')


@VISBACKENDS.register_module()
class TrackioVisBackend(BaseVisBackend):
    """Send metrics to trackio, whose interface is that of Weights & Biases.

    Args:
        save_dir: Not used: trackio has a place of its own.
        project: The name under which runs are shown together.
    """

    def __init__(self, save_dir: str, project: str = 'convnext-dense') -> None:
        super().__init__(save_dir)
        self.project = project

    def _init_env(self) -> None:
        """Start a run."""
        import trackio

        self.trackio = trackio
        trackio.init(project=self.project)

    @property
    @force_init_env
    def experiment(self) -> Any:
        """The module trackio, with a run that was started."""
        return self.trackio

    @force_init_env
    def add_scalar(self, name: str, value: Any, step: int = 0, **options: Any) -> None:
        """Log a number."""
        self.trackio.log({name: float(value)}, step=step)

    @force_init_env
    def add_scalars(self, scalar_dict: dict, step: int = 0, file_path: str | None = None, **options: Any) -> None:
        """Log numbers of one step."""
        self.trackio.log({name: float(value) for name, value in scalar_dict.items()}, step=step)

    def close(self) -> None:
        """End the run."""
        if self._env_initialized:
            self.trackio.finish()
