"""The config of a run: what a config file and the command-line options say, made to fit this machine.

:func:`for_training` and :func:`for_testing` return a new config. The functions that they call change the copy.
"""

import copy
import os
from collections.abc import Mapping

import torch
from mmengine.config import Config, ConfigDict

from convnext_dense.compat.errors import UserError
from convnext_dense.configs import CLASS_AGNOSTIC, SPLITS, walk
from convnext_dense.data import open_wrappers, read_classes
from convnext_dense.train.launch import num_processes

RUN_HOOKS = ('CheckWeightsHook', 'ProgressBarHook', 'RunSummaryHook')  # of every run of the tools
ABSOLUTE_RATES = {'eta_min', 'eta_max'}  # of a schedule; all else in it is relative to the optimizer's lr


def for_training(
    given: Config, work_dir: str, launcher: str, checkpoint: str | None, amp: bool = False, auto_scale_lr: bool = False
) -> tuple[Config, list[str]]:
    """Return the config of a training and what the user should know about it; the given config stays as it is.

    Args:
        given: A config as its file and the options of the command line say.
        work_dir: Where logs and checkpoints go.
        launcher: 'none', 'pytorch' or 'slurm'.
        checkpoint: The run to continue; None to start one.
        amp: Train in mixed precision.
        auto_scale_lr: Scale the lr with the total batch size.

    Raises:
        UserError: An option does not fit the config, or a number of the config is out of range.
    """
    cfg = copy.deepcopy(given)
    if amp:
        enable_amp(cfg)
    if auto_scale_lr or (cfg.get('auto_scale_lr') or {}).get('enable'):
        enable_auto_scale_lr(cfg)
    notes = settle(cfg, work_dir, launcher)
    cfg.resume = checkpoint is not None
    if checkpoint is not None:
        cfg.load_from = checkpoint
    return cfg, notes + fit_lr(cfg, num_processes(launcher))


def for_testing(
    given: Config,
    work_dir: str,
    launcher: str,
    checkpoint: str,
    pictures: tuple[bool, str | None, float] | None = None,
    tta: bool = False,
    out: str | None = None,
) -> tuple[Config, list[str]]:
    """Return the config of a test and what the user should know about it; the given config stays as it is.

    Args:
        given: A config as its file and the options of the command line say.
        work_dir: Where the log goes.
        launcher: 'none', 'pytorch' or 'slurm'.
        checkpoint: The weights of the whole model.
        pictures: Whether to show each prediction, the folder to save it in, and the seconds that a window stays.
        tta: Augment the images of the test.
        out: Where to write the raw predictions.

    Raises:
        UserError: An option does not fit the config.
    """
    cfg = copy.deepcopy(given)
    cfg.load_from = checkpoint
    if pictures:
        enable_pictures(cfg, *pictures)
    notes = enable_tta(cfg) if tta else []
    if out is not None:
        dump_predictions(cfg, out)
    drop_training(cfg)
    return cfg, notes + settle(cfg, work_dir, launcher)


def settle(cfg: Config, work_dir: str, launcher: str) -> list[str]:
    """Fit a config to its place, its data and this machine; return what was changed, a note each."""
    cfg.work_dir, cfg.launcher = work_dir, launcher
    if cfg.setdefault('runner_type', 'OneLineRunner') == 'OneLineRunner':
        watch_run(cfg)
    notes = fit_classes(cfg)
    return notes if torch.cuda.is_available() else notes + fit_to_cpu(cfg)


def watch_run(cfg: Config) -> None:
    """Give a config of any origin the hooks and the log lines of this package."""
    hooks = cfg.get('custom_hooks') or []
    present = {hook.get('type') for hook in hooks}
    cfg.custom_hooks = [*hooks, *(dict(type=name) for name in RUN_HOOKS if name not in present)]
    processor = cfg.get('log_processor') or {}
    if processor.get('type') in (None, 'LogProcessor'):
        cfg.log_processor = {**processor, 'type': 'OneLineLogProcessor'}


def enable_amp(cfg: Config) -> None:
    """Switch the optimizer wrapper to mixed precision with dynamic loss scaling."""
    allowed = ('OptimWrapper', 'AmpOptimWrapper')
    if cfg.optim_wrapper.get('type', 'OptimWrapper') not in allowed:
        raise UserError(f'--amp works with optim_wrapper.type {" or ".join(allowed)}; got {cfg.optim_wrapper.type}.')
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')


def enable_auto_scale_lr(cfg: Config) -> None:
    """Ask for an lr scaled by the total batch size over ``auto_scale_lr.base_batch_size``; :func:`fit_lr` scales it.

    Raises:
        UserError: The config does not say for which batch size its lr is, or has no lr.
    """
    check_step(cfg)
    if not recipe_batch(cfg):
        raise UserError(
            '--auto-scale-lr needs the batch size for which the lr was chosen: set '
            'auto_scale_lr = dict(base_batch_size=16) (8 GPUs x 2 images) in the config.'
        )
    if not optimizers(cfg):
        raise UserError('--auto-scale-lr needs optim_wrapper.optimizer.lr in the config, and there is none.')
    cfg.auto_scale_lr.enable = True


def fit_lr(cfg: Config, num_processes: int) -> list[str]:
    """Scale the lr where ``auto_scale_lr.enable`` asks for it; return a note of what was done, or may be forgotten.

    The rates change in the config, before anything is built from it, so that every optimizer group, the base rate in
    the log and the lowest rate of a schedule follow. The config then names the batch size that it is for: its copy in
    the work dir is not scaled twice. MMEngine's own scaling is switched off; it knows no accumulated steps, and leaves
    out the base rate and the lowest one.

    Raises:
        UserError: A number of the training step is out of range; see :func:`check_step`.
    """
    check_step(cfg)
    if not recipe_batch(cfg) or not optimizers(cfg):
        return []
    is_wanted = cfg.auto_scale_lr.get('enable', False)
    cfg.auto_scale_lr.enable = False
    if cfg.get('resume'):
        return ['the lr is that of the checkpoint; --auto-scale-lr acts when a training starts'] if is_wanted else []
    batch, product = total_batch(cfg, num_processes)
    factor = batch / recipe_batch(cfg)
    before, batches = lr_text(cfg), f'total batch {batch} = {product}, recipe {recipe_batch(cfg)}'
    if not is_wanted:
        advice = f'lr kept at {before}, for another batch size ({batches}); --auto-scale-lr scales it by {factor:g}'
        return [] if factor == 1 else [advice]
    for optimizer in optimizers(cfg):
        optimizer['lr'] *= factor
    for schedule in walk(cfg.get('param_scheduler')):
        for key in ABSOLUTE_RATES & schedule.keys():
            schedule[key] *= factor if 'LR' in str(schedule.get('type')) else 1  # momentum has schedules as well
    cfg.auto_scale_lr.base_batch_size = batch
    return [f'lr scaled by {factor:g}: {before} -> {lr_text(cfg)} ({batches})']


def check_step(cfg: Config) -> None:
    """Check the numbers of a training step.

    Raises:
        UserError: The lr is not a number, the images or the accumulated steps are not a whole number of 1 or more, or
            ``auto_scale_lr`` is not a dict.
    """
    if not isinstance(cfg.get('auto_scale_lr') or {}, Mapping):
        raise UserError(f'auto_scale_lr must be a dict, such as dict(base_batch_size=16); got {cfg.auto_scale_lr!r}.')
    counts = {
        'train_dataloader.batch_size': cfg.train_dataloader.get('batch_size', 1),
        'optim_wrapper.accumulative_counts': (cfg.get('optim_wrapper') or {}).get('accumulative_counts', 1),
    }
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise UserError(f'{name} must be a whole number of 1 or more; got {count!r}.')
    for optimizer in optimizers(cfg):
        if isinstance(optimizer['lr'], bool) or not isinstance(optimizer['lr'], (int, float)):
            raise UserError(f'optim_wrapper.optimizer.lr must be a number; got {optimizer["lr"]!r}.')


def recipe_batch(cfg: Config) -> int | None:
    """Return the total batch size for which the lr was chosen; None where the config does not say it."""
    size = (cfg.get('auto_scale_lr') or {}).get('base_batch_size')
    return size if isinstance(size, int) and size > 0 else None


def total_batch(cfg: Config, num_processes: int) -> tuple[int, str]:
    """Return the images of an optimizer step on all processes, and the product that gives them in words."""
    images, steps = cfg.train_dataloader.get('batch_size', 1), cfg.optim_wrapper.get('accumulative_counts', 1)
    one, many = ('GPU', 'GPUs') if torch.cuda.is_available() else ('process', 'processes')
    words = f'{num_processes} {one if num_processes == 1 else many} x {images} images'
    return num_processes * images * steps, words + (f' x {steps} accumulated steps' if steps > 1 else '')


def lr_text(cfg: Config) -> str:
    """Return the lr as a user would write it; several optimizers have several."""
    return ', '.join(f'{optimizer["lr"]:g}' for optimizer in optimizers(cfg))


def optimizers(cfg: Config) -> list[dict]:
    """Return the optimizers' settings that have an lr; Adafactor's may be None."""
    given = [wrapper.get('optimizer') or {} for wrapper in walk(cfg.get('optim_wrapper'))]
    return [optimizer for optimizer in given if optimizer.get('lr') is not None]


def enable_pictures(cfg: Config, show: bool, show_dir: str | None, wait_time: float) -> None:
    """Make the visualization hook draw the predictions of every test image.

    Pictures are written to ``show_dir`` below the folder of the run's log. The hook of detectors does so by itself; a
    segmentor's has no such option, and its pictures go where the visualizer's local backend puts images.
    """
    hook = cfg.default_hooks.get('visualization')
    if hook is None:
        raise UserError('--show and --show-dir need default_hooks.visualization in the config.')
    hook['draw'] = True
    hook['show'], hook['wait_time'] = show, wait_time
    if 'Det' in hook['type']:
        hook['test_out_dir'] = show_dir
    elif show_dir:
        others = [each for each in cfg.visualizer.get('vis_backends') or [] if each['type'] != 'LocalVisBackend']
        # relative to the backend's own folder, vis_data
        local = dict(type='LocalVisBackend', img_save_dir=os.path.join('..', show_dir))
        cfg.visualizer['vis_backends'] = [local, *others]
    hook['interval'] = 1


def enable_tta(cfg: Config) -> list[str]:
    """Wrap the model and exchange the test pipeline for test-time augmentation; note sizes that differ from the test's.

    Raises:
        UserError: The config has no ``tta_model``, no ``tta_pipeline``, or no ``TestTimeAug`` in it.
    """
    for key in ('tta_model', 'tta_pipeline'):
        if not cfg.get(key):
            raise UserError(
                f'--tta needs {key} in the config; this one has none. convnext_dense/tta.py tells how to write both.'
            )
    if not any(step.get('type') == 'TestTimeAug' for step in cfg.tta_pipeline):
        steps = ', '.join(str(step.get('type')) for step in cfg.tta_pipeline)
        raise UserError(f'--tta needs a TestTimeAug in tta_pipeline, which makes the views; this one has {steps}.')
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    notes, views = [], [node for node in walk(cfg.tta_pipeline) if node.get('type') == 'Resize']
    for _, dataset in open_wrappers(cfg.test_dataloader.dataset):
        plain = [node for node in walk(dataset.get('pipeline')) if node.get('type') == 'Resize']
        if plain and views and not any(size_of(view) == size_of(plain[0]) for view in views):
            sizes = ', '.join(str(size_of(view)) for view in views)
            notes.append(f'--tta tests with sizes of its own, {sizes}; without it the size is {size_of(plain[0])}')
        dataset['pipeline'] = cfg.tta_pipeline
    return list(dict.fromkeys(notes))


def size_of(resize: Mapping) -> object:
    """Return the size to which a ``Resize`` brings an image: pixels, in no order, or a factor."""
    scale = resize.get('scale', resize.get('scale_factor'))
    return tuple(sorted(scale)) if isinstance(scale, (list, tuple)) else scale


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
        notes.append('no GPU: training in fp32 instead of mixed precision')
    if cfg.launcher != 'none':  # a single process reverts SyncBN by itself
        unused = cfg.get('find_unused_parameters', False)
        wrapper = ConfigDict(broadcast_buffers=False, find_unused_parameters=unused)
        cfg.setdefault('model_wrapper_cfg', wrapper)['device_ids'] = None
        norms = [node for node in walk(cfg.model) if node.get('type') == 'SyncBN']
        for node in norms:
            node['type'] = 'BN'
        if norms:
            notes.append('no GPU: BN with per-process statistics instead of SyncBN')
    return notes


def without_amp(wrapper_cfg: Mapping) -> dict:
    """Return the config of an optimizer wrapper that trains in full precision."""
    options = {key: value for key, value in wrapper_cfg.items() if key not in ('loss_scale', 'dtype')}
    return {**options, 'type': 'OptimWrapper'}


def drop_training(cfg: Config) -> None:
    """Take training and validation out of a config, so that a test needs no training data."""
    training = ('train_dataloader', 'train_cfg', 'optim_wrapper', 'param_scheduler')
    for key in (*training, 'val_dataloader', 'val_cfg', 'val_evaluator'):
        cfg[key] = None
    drop_initial_weights(cfg.model)  # which the checkpoint replaces


def drop_initial_weights(model_cfg: Mapping) -> None:
    """Let every part of a model start from random weights."""
    for node in walk(model_cfg):
        init_cfg = node.get('init_cfg')
        if isinstance(init_cfg, dict) and init_cfg.get('type') == 'Pretrained':
            node['init_cfg'] = None


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
