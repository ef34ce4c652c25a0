"""The config of a run: what a config file and the command-line options say, made to fit this machine.

The functions change the config that they get. Many return notes of what was changed, for the user.
"""

import os
from collections.abc import Mapping

import torch
from mmengine.config import Config, ConfigDict

from convnext_dense.compat.errors import UserError
from convnext_dense.configs import CLASS_AGNOSTIC, SPLITS, walk
from convnext_dense.data import open_wrappers, read_classes
from convnext_dense.speed import has_bf16

RUN_HOOKS = (  # of every run of the tools
    'CheckWeightsHook', 'FiniteHook', 'DamageHook', 'ProgressBarHook', 'RunSummaryHook',
)  # fmt: skip
TIMEOUT = 600  # seconds
NO_BF16 = 'a CPU without AMX and AVX512_BF16'
ABSOLUTE_RATES = {'eta_min', 'eta_max'}  # of a schedule; all else in it is relative to the optimizer's lr
TRAINING_KEYS = (
    'train_dataloader', 'train_cfg', 'optim_wrapper', 'param_scheduler', 'val_dataloader', 'val_cfg', 'val_evaluator',
)  # fmt: skip


def settle(cfg: Config) -> list[str]:
    """Fit a config to our runner, its data and this machine; return what was changed, a note each."""
    if cfg.setdefault('runner_type', 'OneLineRunner') == 'OneLineRunner':
        hooks, processor = cfg.get('custom_hooks') or [], cfg.get('log_processor') or {}
        present = {hook.get('type') for hook in hooks}
        cfg.custom_hooks = [*hooks, *(dict(type=name) for name in RUN_HOOKS if name not in present)]
        if processor.get('type') in (None, 'LogProcessor'):
            cfg.log_processor = {**processor, 'type': 'OneLineLogProcessor'}
        for loader in [cfg[f'{split}_dataloader'] for split in SPLITS if cfg.get(f'{split}_dataloader')]:
            if isinstance(loader, Mapping) and loader.get('num_workers'):
                loader.setdefault('timeout', run_timeout(cfg))
        guard_loggers(cfg)
    notes = fit_classes(cfg) + fit_bands(cfg)
    return notes if torch.cuda.is_available() else notes + fit_to_cpu(cfg)


def run_timeout(cfg: Mapping) -> float:
    """Return for how many seconds a process waits for another one, or for its data; MMEngine's key says it."""
    return ((cfg.get('env_cfg') or {}).get('dist_cfg') or {}).get('timeout') or TIMEOUT


def guard_loggers(cfg: Config) -> None:
    """Let no logger end a run but the one that writes the files of the run."""
    visualizer = cfg.get('visualizer') or {}
    backends = visualizer.get('vis_backends') or []
    for i, backend in enumerate(backends):
        if isinstance(backend, Mapping) and backend.get('type') not in ('LocalVisBackend', 'GuardedVisBackend'):
            backends[i] = ConfigDict({**backend, 'type': 'GuardedVisBackend', 'backend': backend['type']})


def enable_amp(cfg: Config) -> None:
    """Switch the optimizer wrapper of a training to mixed precision with dynamic loss scaling."""
    allowed = ('OptimWrapper', 'AmpOptimWrapper')
    if cfg.optim_wrapper.get('type', 'OptimWrapper') not in allowed:
        raise UserError(f'--amp works with optim_wrapper.type {" or ".join(allowed)}; got {cfg.optim_wrapper.type}.')
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')


def test_in_amp(cfg: Config) -> list[str]:
    """Switch a test to mixed precision, where this machine has it; return a note where it has not."""
    if torch.cuda.is_available() or has_bf16():
        cfg.test_cfg = {**(cfg.get('test_cfg') or {}), 'fp16': True}  # MMEngine's name; on a CPU it means bf16
        return []
    return [f'no GPU, and {NO_BF16}: testing in fp32 instead of mixed precision']


def fit_lr(cfg: Config, num_processes: int, auto_scale_lr: bool = False) -> list[str]:
    """Scale the lr where the option or ``auto_scale_lr.enable`` asks for it; note what was done, or may be forgotten.

    The rates change in the config, before anything is built from it, so that every optimizer group, the base rate in
    the log and the lowest rate of a schedule follow. The config then names the batch size that it is for: its copy in
    the work dir is not scaled twice. MMEngine's own scaling is switched off; it knows no accumulated steps, and leaves
    out the base rate and the lowest one.
    """
    images, steps = check_step(cfg)
    settings = cfg.get('auto_scale_lr') or {}
    recipe, is_wanted = settings.get('base_batch_size'), auto_scale_lr or settings.get('enable', False)
    needed = {'optim_wrapper.optimizer.lr': optimizers(cfg), 'auto_scale_lr.base_batch_size': recipe}
    missing = ' and '.join(name for name, value in needed.items() if not value)
    if missing and is_wanted:
        raise UserError(
            f'--auto-scale-lr needs {missing} in the config: the lr, and the images of the step for which it was '
            'chosen, such as auto_scale_lr = dict(base_batch_size=16) for 8 GPUs x 2 images.'
        )
    if missing:
        return []
    settings['enable'] = False
    if cfg.get('resume'):
        return ['the lr is that of the checkpoint; --auto-scale-lr acts when a training starts'] if is_wanted else []
    batch, before = num_processes * images * steps, lr_text(cfg)
    factor = batch / recipe
    batches = f'total batch {batch} = processes {num_processes} x images {images} x steps {steps}, recipe {recipe}'
    if not is_wanted:
        note = f'lr kept at {before}, for another batch size ({batches}); --auto-scale-lr scales it by {factor:g}'
        return [] if factor == 1 else [note]
    scale_rates(cfg, factor)
    settings['base_batch_size'] = batch
    note = f'lr scaled by {factor:g}: {before} -> {lr_text(cfg)} ({batches})'
    return [note] if factor != 1 or auto_scale_lr else []


def check_step(cfg: Config) -> tuple[int, int]:
    """Return the images of a batch and the batches of a step.

    Raises:
        UserError: A value of the training step has the wrong type or is out of range.
    """
    settings = cfg.get('auto_scale_lr') or {}
    if not isinstance(settings, Mapping):
        raise UserError(f'auto_scale_lr must be a dict, such as dict(base_batch_size=16); got {settings!r}.')
    counts = {
        'train_dataloader.batch_size': cfg.train_dataloader.get('batch_size', 1),
        'optim_wrapper.accumulative_counts': (cfg.get('optim_wrapper') or {}).get('accumulative_counts', 1),
        'auto_scale_lr.base_batch_size': settings.get('base_batch_size', 1),
    }
    for name, count in counts.items():
        if not isinstance(count, int) or count < 1:
            raise UserError(f'{name} must be a whole number of 1 or more; got {count!r}.')
    for optimizer in optimizers(cfg):
        if not isinstance(optimizer['lr'], (int, float)):
            raise UserError(f'optim_wrapper.optimizer.lr must be a number; got {optimizer["lr"]!r}.')
    images, steps, _ = counts.values()
    return images, steps


def scale_rates(cfg: Config, factor: float) -> None:
    """Scale the lr of each optimizer and the absolute rates of each schedule of the lr."""
    for optimizer in optimizers(cfg):
        optimizer['lr'] *= factor
    for schedule in walk(cfg.get('param_scheduler')):
        if 'LR' in str(schedule.get('type')):  # momentum has schedules as well
            schedule.update({key: factor * schedule[key] for key in ABSOLUTE_RATES & schedule.keys()})


def optimizers(cfg: Config) -> list[dict]:
    """Return the optimizers' settings that have an lr; Adafactor's may be None."""
    given = [wrapper.get('optimizer') or {} for wrapper in walk(cfg.get('optim_wrapper'))]
    return [optimizer for optimizer in given if optimizer.get('lr') is not None]


def lr_text(cfg: Config) -> str:
    """Return the lr as a user would write it; several optimizers have several."""
    return ', '.join(f'{optimizer["lr"]:g}' for optimizer in optimizers(cfg))


def enable_pictures(cfg: Config, show: bool, show_dir: str | None, wait_time: float) -> None:
    """Make the visualization hook draw the predictions of every test image.

    Pictures are written to ``show_dir`` below the folder of the run's log. The hook of detectors does so by itself; a
    segmentor's has no such option, and its pictures go where the visualizer's local backend puts images.
    """
    hook = cfg.default_hooks.get('visualization')
    if hook is None:
        raise UserError('--show and --show-dir need default_hooks.visualization in the config.')
    hook.update(draw=True, show=show, wait_time=wait_time, interval=1)
    if 'Det' in hook['type']:
        hook['test_out_dir'] = show_dir
    elif show_dir:
        others = [each for each in cfg.visualizer.get('vis_backends') or [] if each['type'] != 'LocalVisBackend']
        # relative to the backend's own folder, vis_data
        local = dict(type='LocalVisBackend', img_save_dir=os.path.join('..', show_dir))
        cfg.visualizer['vis_backends'] = [local, *others]


def enable_tta(cfg: Config) -> list[str]:
    """Wrap the model and exchange the test pipeline for test-time augmentation; note sizes other than the test's."""
    for key in ('tta_model', 'tta_pipeline'):
        if not cfg.get(key):
            raise UserError(f'--tta needs {key} in the config; this one has none. convnext_dense/tta.py tells how.')
    if not any(step.get('type') == 'TestTimeAug' for step in cfg.tta_pipeline):
        steps = ', '.join(str(step.get('type')) for step in cfg.tta_pipeline)
        raise UserError(f'--tta needs a TestTimeAug in tta_pipeline, which makes the views; this one has {steps}.')
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    notes, views = [], resize_sizes(cfg.tta_pipeline)
    for _, dataset in open_wrappers(cfg.test_dataloader.dataset):
        plain = resize_sizes(dataset.get('pipeline'))[:1]
        if plain and views and plain[0] not in views:
            sizes = ', '.join(map(str, views))
            notes.append(f'--tta tests with sizes of its own, {sizes}; without it the size is {plain[0]}')
        dataset['pipeline'] = cfg.tta_pipeline
    return list(dict.fromkeys(notes))


def resize_sizes(pipeline: object) -> list[object]:
    """Return the sizes to which the ``Resize`` steps bring an image: pixels, in no order, or factors."""
    resizes = [node for node in walk(pipeline) if node.get('type') == 'Resize']
    scales = [resize.get('scale', resize.get('scale_factor')) for resize in resizes]
    return [tuple(sorted(scale)) if isinstance(scale, (list, tuple)) else scale for scale in scales]


def dump_predictions(cfg: Config, out: str) -> None:
    """Ask the evaluators to write the predictions to ``out`` as well."""
    evaluators = cfg.test_evaluator if isinstance(cfg.test_evaluator, list) else [cfg.test_evaluator]
    if cfg.default_scope == 'mmseg':
        evaluators[0].update(output_dir=out)
    elif not out.endswith(('.pkl', '.pickle')):
        raise UserError(f'--out takes a .pkl file for the predictions of a detector; got {out}.')
    else:
        evaluators = [*evaluators, ConfigDict(type='DumpDetResults', out_file_path=out)]
    cfg.test_evaluator = evaluators


def fit_to_cpu(cfg: Config) -> list[str]:
    """Replace what needs a GPU; return what was replaced, a note each."""
    notes = []
    wrapper = cfg.get('optim_wrapper') or {}
    if wrapper.get('type') == 'AmpOptimWrapper':
        cfg.optim_wrapper = without_amp(wrapper)
        if has_bf16():
            cfg.optim_wrapper['type'] = 'BFloat16OptimWrapper'
            notes.append('no GPU: mixed precision is bf16, without scaling of the loss')
        else:
            notes.append(f'no GPU, and {NO_BF16}: training in fp32 instead of mixed precision')
    if cfg.launcher == 'none':  # a single process reverts SyncBN by itself
        return notes
    ddp = ConfigDict(broadcast_buffers=False, find_unused_parameters=cfg.get('find_unused_parameters', False))
    cfg.setdefault('model_wrapper_cfg', ddp)['device_ids'] = None
    norms = [node for node in walk(cfg.model) if node.get('type') == 'SyncBN']
    for norm in norms:
        norm['type'] = 'BN'
    return [*notes, 'no GPU: BN with per-process statistics instead of SyncBN'] if norms else notes


def without_amp(wrapper_cfg: Mapping) -> dict:
    """Return the config of an optimizer wrapper that trains in full precision."""
    options = {key: value for key, value in wrapper_cfg.items() if key not in ('loss_scale', 'dtype')}
    return {**options, 'type': 'OptimWrapper'}


def drop_training(cfg: Config) -> None:
    """Take training and validation out of a config, so that a test needs no training data."""
    for key in TRAINING_KEYS:
        cfg[key] = None
    drop_initial_weights(cfg.model)  # which the checkpoint replaces


def drop_initial_weights(model_cfg: Mapping) -> None:
    """Let every part of a model start from random weights."""
    for node in walk(model_cfg):
        init_cfg = node.get('init_cfg')
        if isinstance(init_cfg, dict) and init_cfg.get('type') == 'Pretrained':
            node['init_cfg'] = None
        if 'teacher_ckpt' in node:  # of a distilled detector, whose own weights predict
            node['teacher_ckpt'] = None


def fit_bands(cfg: Config) -> list[str]:
    """Normalise images of other than one or three channels, which MMEngine's preprocessors refuse; return a note."""
    given = (cfg.get('model') or {}).get('data_preprocessor') or {}
    if len(given.get('mean') or ()) in (0, 1, 3) or given.get('type') == 'BandsPreprocessor':
        return []
    cfg.model.data_preprocessor = ConfigDict({**given, 'type': 'BandsPreprocessor', 'base': given['type']})
    return [f'{len(given["mean"])} channels are normalised by BandsPreprocessor, in place of {given["type"]}']


def fit_classes(cfg: Config) -> list[str]:
    """Give every head as many classes as the dataset's ``metainfo`` names; return what was changed, a note each."""
    loader = next((cfg[f'{split}_dataloader'] for split in SPLITS if cfg.get(f'{split}_dataloader')), {})
    _, dataset = next(open_wrappers(loader.get('dataset')), ('', {}))  # the first: joined ones have the same classes
    classes = read_classes(dataset)
    if not classes:
        return []
    heads = [node for node in walk(cfg.model, CLASS_AGNOSTIC) if set_classes(node, len(classes))]
    names = ', '.join(classes[:5]) + (', ...' if len(classes) > 5 else '')
    return [f'{len(heads)} heads set to {len(classes)} classes ({names})'] if heads else []


def set_classes(head: dict, num_classes: int) -> bool:
    """Give a head another number of classes, if it has one; tell whether it changed.

    Mask2Former's and MaskFormer's weigh each class, and "nothing" as the last. Panoptic heads are left alone: they
    count things and stuff apart.
    """
    key = 'num_things_classes' if 'num_things_classes' in head else 'num_classes'
    old = head.get(key, num_classes)
    if old == num_classes or head.get('num_stuff_classes'):
        return False
    head[key] = num_classes
    for loss in walk(head):
        weights = loss.get('class_weight')
        if isinstance(weights, (list, tuple)) and len(weights) == old + 1:
            loss['class_weight'] = [weights[0]] * num_classes + [weights[-1]]
    return True
