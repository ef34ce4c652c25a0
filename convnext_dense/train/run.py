"""Training and testing as a config says; what the commands call.

What a user can get wrong is looked at before the model is built, and answered with one message.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS, RUNNERS
from mmengine.runner import Runner

from convnext_dense import configs
from convnext_dense.compat import check_exists
from convnext_dense.compat.errors import UserError
from convnext_dense.data import check_run
from convnext_dense.lr_decay import LearningRateDecay
from convnext_dense.speed import keep_memory
from convnext_dense.train import config as run_config
from convnext_dense.train import launch
from convnext_dense.train.coco_eval import fast_coco_metric
from convnext_dense.train.ends import caught_signals
from convnext_dense.train.mistakes import build_errors, run_errors
from convnext_dense.train.own_data import prepare_data
from convnext_dense.train.resume import resume_training
from convnext_dense.train.screen import prints_in_log, tell, write_to_log
from convnext_dense.train.switches import SWITCHES, apply_switches

REPORT_HOOK = 'convnext_dense.report.hook.ReportHook'  # imported where a report is wanted


def train(
    config: str | os.PathLike,
    work_dir: str | None = None,
    amp: bool = False,
    resume: str | None = None,
    auto_scale_lr: bool = False,
    cfg_options: Mapping | None = None,
    launcher: str = 'none',
    check: bool = True,
    data: str | os.PathLike | None = None,
    **options,
) -> Runner:
    """Train as the config says.

    Args:
        config: Config file of a detector or a segmentor.
        work_dir: Where logs and checkpoints go; ``work_dirs/<config name>`` by default.
        amp: Switch on mixed precision where the config does not.
        resume: 'auto' for the latest checkpoint of the work dir, or a checkpoint file.
        auto_scale_lr: Scale the lr by the total batch size over ``auto_scale_lr.base_batch_size``.
        cfg_options: Dotted keys to override.
        launcher: 'none', 'pytorch' or 'slurm'; under torchrun 'none' means 'pytorch'.
        check: Check data and config first.
        data: The user's own data, in any format that :func:`~convnext_dense.data.importing.import_data` reads, in place
            of the config's.
        **options: Of ``import_data``, and the switches of :mod:`convnext_dense.train.switches`.

    Raises:
        UserError: A mistake of the user, found before training starts where possible.
    """
    switches = {name: options.pop(name, None) for name in SWITCHES}
    if data is not None:
        place = Path(os.path.abspath(data))
        name = place.stem if place.is_file() else place.name  # of a folder with what stands behind a dot
        work_dir = work_dir or os.path.join('work_dirs', f'{Path(config).stem}_{name}')
        config = prepare_data(config, data, Path(work_dir, 'data'), switches['batch'], **options)
    cfg = open_config(config, cfg_options, 'train', launcher, work_dir)
    with launch.alone_in(Path(cfg.work_dir)):
        notes = resume_training(cfg, resume)
        if amp:
            run_config.enable_amp(cfg)
        notes += apply_switches(cfg, **switches)
        notes += run_config.settle(cfg)
        notes += run_config.fit_lr(cfg, launch.num_processes(cfg.launcher), auto_scale_lr)
        runner = build_runner(cfg, notes, ('train', 'val'), check)
        launch.check_same_checkpoint(cfg.load_from if cfg.resume else None)
        with prints_in_log(runner.logger):
            with build_errors():  # what MMEngine would build in train(), so that mistakes are answered the same way
                _ = runner.train_loop
                runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
                if runner._val_loop is not None:
                    _ = runner.val_loop
            with caught_signals(runner), run_errors(runner), fast_coco_metric():
                runner.train()
    launch.leave_group()
    return runner


def test(
    config: str | os.PathLike,
    checkpoint: str,
    work_dir: str | None = None,
    out: str | None = None,
    show: bool = False,
    show_dir: str | None = None,
    wait_time: float = 2,
    cfg_options: Mapping | None = None,
    launcher: str = 'none',
    tta: bool = False,
    check: bool = True,
    report: bool = False,
    against: str | None = None,
    amp: bool = False,
) -> dict:
    """Evaluate a checkpoint as the config says and return the metrics.

    Args:
        config: Config file of a detector or a segmentor.
        checkpoint: File with the weights of the whole model.
        work_dir: Where the log goes; ``work_dirs/<config name>`` by default.
        out: File for the raw predictions: a pickle for detectors, a folder of PNG label maps for segmentors.
        show: Show each prediction in a window.
        show_dir: Save each prediction as a picture, in this folder below that of the run's log in the work dir.
        wait_time: Seconds for which a window stays.
        cfg_options: Dotted keys to override.
        launcher: As in :func:`train`.
        tta: Test-time augmentation as the config's ``tta_model`` and ``tta_pipeline`` say.
        check: Check data and config first.
        report: Write a page with all figures and the worst images.
        against: The report of another test, which that page compares with.
        amp: Mixed precision: fp16 on a GPU, bf16 on a CPU that has it.

    Raises:
        UserError: A mistake of the user.
    """
    if '://' not in checkpoint:
        check_exists(Path(checkpoint))
    cfg = open_config(config, cfg_options, 'test', launcher, work_dir)
    cfg.load_from = checkpoint
    if show or show_dir:
        run_config.enable_pictures(cfg, show, show_dir, wait_time)
    notes = run_config.enable_tta(cfg) if tta else []
    notes += run_config.test_in_amp(cfg) if amp else []
    if out is not None:
        run_config.dump_predictions(cfg, out)
    if report or against:
        cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), dict(type=REPORT_HOOK, against=against)]
    run_config.drop_training(cfg)
    notes += run_config.settle(cfg)
    runner = build_runner(cfg, notes, ('test',), check)
    with prints_in_log(runner.logger):
        with build_errors():
            _ = runner.test_loop
        with run_errors(runner), fast_coco_metric():
            metrics = runner.test()
    launch.leave_group()
    return metrics


def describe_rates(config: str | os.PathLike, cfg_options: Mapping | None = None) -> str:
    """Return the table of optimizer groups of a config; neither data nor memory for weights is needed.

    Raises:
        UserError: The config has none of this package's optimizer constructors, or cannot be built.
    """
    cfg = configs.load_config(config, cfg_options)
    configs.require_library(cfg.get('default_scope'))
    wrapper_cfg = dict(cfg.get('optim_wrapper') or {})
    name, paramwise_cfg = wrapper_cfg.pop('constructor', None), wrapper_cfg.pop('paramwise_cfg', None)
    with configs.model_scope(cfg), build_errors():
        constructor_class = OPTIM_WRAPPER_CONSTRUCTORS.get(name) if name else None
        if constructor_class is None or not issubclass(constructor_class, LearningRateDecay):
            raise UserError(
                f'optim_wrapper.constructor must be ConvNeXtLayerDecay or ConvNeXtStageDecay to show its rates; '
                f'{config} has {name!r}.'
            )
        with torch.device('meta'):
            model = MODELS.build(cfg.model)
        constructor = constructor_class(wrapper_cfg, paramwise_cfg)
        return constructor.describe(constructor.group(model))


def open_config(
    config: str | os.PathLike, cfg_options: Mapping | None, split: str, launcher: str, work_dir: str | None
) -> Config:
    """Return the config of a run on a split of its data, with its launcher and its folder, which is made, in it."""
    cfg = configs.load_config(config, cfg_options)
    if cfg.get(f'{split}_dataloader') is None:
        raise UserError(f'The config {config} has no {split}_dataloader: there is nothing to {split} on.')
    configs.require_library(cfg.get('default_scope'))
    cfg.launcher = launch.check_launcher(launcher)
    folder = Path(work_dir or cfg.get('work_dir') or Path('work_dirs') / Path(config).stem)
    probe = folder / f'.write_test_{launch.process_rank()}_{os.getpid()}'  # two machines may have the same id
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f'The work dir {folder} cannot be written ({error.strerror}). Give another one with --work-dir.'
        ) from error
    cfg.work_dir = str(folder)
    return cfg


def build_runner(cfg: Config, notes: list[str], splits: tuple[str, ...], check: bool = True) -> Runner:
    """Check the data, show the notes, build the runner, and repeat the notes in its log file."""
    if check and launch.process_rank() == 0:
        notes = [*notes, *check_run(cfg, splits, launch.num_processes(cfg.launcher))]
    tell(*notes)
    if cfg.launcher == 'pytorch':
        launch.join_group(run_config.run_timeout(cfg))
    keep_memory()
    with build_errors():
        runner = RUNNERS.build(cfg)
    for note in notes:
        write_to_log(runner.logger, f'note: {note}')
    return runner
