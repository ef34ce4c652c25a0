"""A config file and options go in, a finished training or test comes out; what the tools call.

Everything that a user can get wrong is looked at before the model is built, and answered with one message.
"""

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from mmengine.config import Config
from mmengine.dist import all_gather_object
from mmengine.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS, RUNNERS, init_default_scope
from mmengine.runner import Runner

from convnext_dense import configs
from convnext_dense.compat import check_exists
from convnext_dense.compat.errors import UserError
from convnext_dense.data.checks import check_dataset
from convnext_dense.lr_decay import LearningRateDecay
from convnext_dense.train import config as run_config
from convnext_dense.train.screen import prints_to, process_rank, tame_console, tell


class Launcher(NamedTuple):
    """What starts several processes: the variable with their number, and the command that does it."""

    size: str
    command: str


BUILD_ERRORS = (KeyError, TypeError, ValueError, AttributeError, AssertionError, ImportError, OSError, RuntimeError)
LAUNCHERS = {
    'pytorch': Launcher('WORLD_SIZE', 'tools/dist_train.sh CONFIG GPUS'),
    'slurm': Launcher('SLURM_NTASKS', 'tools/slurm_train.sh PARTITION JOB_NAME CONFIG'),
}
UNUSED_PARAMETERS = re.compile(r'did not receive grad for rank \d+: (?P<indices>[\d ]+)')
UNREADABLE_IMAGE = re.compile(r"failed to load image: (?P<broken>.+)|No such file or directory: '(?P<missing>.+?)'")


@RUNNERS.register_module()
class OneLineRunner(Runner):
    """MMEngine's runner with a quiet screen: environment, config and hook lists go to the log file alone."""

    def build_logger(self, *args, **kwargs):
        """Build MMEngine's logger; its screen half shows single lines."""
        logger = super().build_logger(*args, **kwargs)
        tame_console(logger)
        return logger


def train(
    config: str | os.PathLike,
    work_dir: str | None = None,
    amp: bool = False,
    resume: str | None = None,
    auto_scale_lr: bool = False,
    cfg_options: Mapping | None = None,
    launcher: str = 'none',
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

    Raises:
        UserError: A mistake of the user, found before training starts where possible.
    """
    cfg = configs.load_config(config, cfg_options)
    if cfg.get('train_dataloader') is None:
        raise UserError(f'The config {config} has no train_dataloader: it cannot be trained, only tested.')
    if amp:
        run_config.enable_amp(cfg)
    if auto_scale_lr or (cfg.get('auto_scale_lr') or {}).get('enable'):
        run_config.enable_auto_scale_lr(cfg)
    if resume not in (None, 'auto'):
        check_exists(Path(resume))
    prepare(cfg, config, work_dir, launcher, ('train', 'val'))
    fit_to_device(cfg)
    if resume is None and cfg.get('resume'):
        resume = cfg.get('load_from') or 'auto'
    if resume == 'auto':
        resume = latest_checkpoint(Path(cfg.work_dir))
        if resume is None:
            tell(f'nothing to resume in {cfg.work_dir}: training starts from the beginning')
    cfg.resume = resume is not None
    if cfg.resume:
        cfg.load_from = str(resume)
    tell(*run_config.fit_lr(cfg, num_processes(cfg.launcher)))
    runner = build_runner(cfg)
    check_same_checkpoint(cfg.load_from if cfg.resume else None)
    with prints_to(Path(runner.log_dir) / 'prints.txt'):
        with build_errors():  # what MMEngine would build in train(), so that mistakes are answered the same way
            _ = runner.train_loop
            runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
            if runner._val_loop is not None:
                _ = runner.val_loop
        with image_errors(), unused_parameter_errors(runner.model):
            runner.train()
    leave_group()
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

    Raises:
        UserError: A mistake of the user.
    """
    cfg = configs.load_config(config, cfg_options)
    if cfg.get('test_dataloader') is None:
        raise UserError(f'The config {config} has no test_dataloader: there is nothing to test on.')
    if '://' not in checkpoint:
        check_exists(Path(checkpoint))
    cfg.load_from = checkpoint
    if show or show_dir:
        run_config.enable_pictures(cfg, show, show_dir, wait_time)
    if tta:
        tell(*run_config.enable_tta(cfg))
    if out is not None:
        run_config.dump_predictions(cfg, out)
    prepare(cfg, config, work_dir, launcher, ('test',))
    run_config.drop_training(cfg)
    fit_to_device(cfg)
    runner = build_runner(cfg)
    with prints_to(Path(runner.log_dir) / 'prints.txt'):
        with build_errors():
            _ = runner.test_loop
        with image_errors():
            metrics = runner.test()
    leave_group()
    return metrics


def describe_rates(config: str | os.PathLike, cfg_options: Mapping | None = None) -> str:
    """Return the table of optimizer groups of a config; neither data nor memory for weights is needed.

    Raises:
        UserError: The config has none of this package's optimizer constructors, or cannot be built.
    """
    cfg = configs.load_config(config, cfg_options)
    configs.require_library(cfg.get('default_scope'))
    if not cfg.get('model') or not cfg.get('optim_wrapper'):
        raise UserError(f'The config {config} has no model or no optim_wrapper: there are no rates to show.')
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    wrapper_cfg = dict(cfg.optim_wrapper)
    name, paramwise_cfg = wrapper_cfg.pop('constructor', None), wrapper_cfg.pop('paramwise_cfg', None)
    with build_errors():
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


def prepare(cfg: Config, config: str | os.PathLike, work_dir: str | None, launcher: str, splits: tuple) -> None:
    """Settle work dir, launcher, device and runner of a run, and check its data."""
    configs.require_library(cfg.get('default_scope'))
    is_torchrun = launcher == 'none' and 'TORCHELASTIC_RUN_ID' in os.environ
    cfg.launcher = 'pytorch' if is_torchrun else launcher
    check_launcher(cfg.launcher)
    cfg.work_dir = work_dir or cfg.get('work_dir') or str(Path('work_dirs') / Path(config).stem)
    make_writable(Path(cfg.work_dir))
    if cfg.setdefault('runner_type', 'OneLineRunner') == 'OneLineRunner':
        run_config.watch_run(cfg)
    if process_rank() == 0:
        for split in splits:
            if cfg.get(f'{split}_dataloader'):
                tell(*check_dataset(cfg[f'{split}_dataloader']['dataset'], f'{split}_dataloader.dataset'))
    tell(*run_config.fit_classes(cfg))


def fit_to_device(cfg: Config) -> None:
    """Make a config run without a GPU where there is none."""
    if not torch.cuda.is_available():
        tell(*run_config.fit_to_cpu(cfg))
        if cfg.launcher == 'pytorch' and not torch.distributed.is_initialized():
            torch.distributed.init_process_group('gloo')  # MMEngine would ask for a GPU first


def device_type() -> str:
    """Return 'cuda' where there is a GPU, else 'cpu'."""
    return 'cuda' if torch.cuda.is_available() else 'cpu'


def num_processes(launcher: str) -> int:
    """Return how many processes the run has on all machines, before torch.distributed is up."""
    return int(os.environ[LAUNCHERS[launcher].size]) if launcher in LAUNCHERS else 1


def check_launcher(launcher: str) -> None:
    """Look for what a launcher has to provide.

    Raises:
        UserError: This process was not started by the launcher, or there are fewer GPUs than processes.
    """
    if launcher not in LAUNCHERS:
        return
    size, command = LAUNCHERS[launcher]
    if size not in os.environ:
        raise UserError(f'--launcher {launcher} finds no {size} in the environment. Start the run with {command}.')
    num_gpus = torch.cuda.device_count()
    if launcher == 'slurm' and num_gpus == 0:
        instead = LAUNCHERS['pytorch'].command
        raise UserError(f'--launcher slurm needs a GPU for each process, and there is none here. Use {instead}.')
    local_size = int(os.environ.get('LOCAL_WORLD_SIZE', 1))
    if launcher == 'pytorch' and 0 < num_gpus < local_size:
        raise UserError(f'{local_size} processes were started for {num_gpus} GPUs on this machine. Start one for each.')


def latest_checkpoint(work_dir: Path) -> Path | None:
    """Return the checkpoint to resume from: the one that MMEngine noted, wherever the folder is now, or the newest."""
    note = work_dir / 'last_checkpoint'
    noted = work_dir / Path(note.read_text().strip()).name if note.is_file() else work_dir
    if noted.is_file():
        return noted
    files = [file for kind in ('epoch_*.pth', 'iter_*.pth') for file in work_dir.glob(kind)]
    return max(files, key=lambda file: file.stat().st_mtime, default=None)


def check_same_checkpoint(file: str | None) -> None:
    """Raise a :class:`UserError` where the processes would resume from different checkpoints, or only some of them."""
    names = [name and Path(name).name for name in all_gather_object(file)]
    if len(set(names)) > 1:
        found = ', '.join(f'process {rank}: {name or "none"}' for rank, name in enumerate(names))
        raise UserError(
            f'The processes find different checkpoints to resume from ({found}). Put the work dir on a disk that all '
            'machines share, or copy the checkpoint to the same place on each.'
        )


def is_lost_connection(error: Exception) -> bool:
    """Tell whether an error means that another process of the run has gone; gloo's errors have no class."""
    if not torch.distributed.is_available():
        return False
    return isinstance(error, torch.distributed.DistBackendError) or 'gloo/transport' in str(error)


def leave_group() -> None:
    """End a distributed run on all processes together: one that leaves early can abort the others."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def make_writable(folder: Path) -> None:
    """Make the work dir and prove that it can be written.

    Raises:
        UserError: It cannot.
    """
    probe = folder / f'.write_test_{process_rank()}_{os.getpid()}'  # processes on two machines may have the same id
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f'The work dir {folder} cannot be written ({error.strerror}). Give another one with --work-dir.'
        ) from error


def build_runner(cfg: Config) -> Runner:
    """Build the runner; mistakes in the config become a :class:`UserError`."""
    with build_errors():
        return RUNNERS.build(cfg)


@contextlib.contextmanager
def build_errors() -> Iterator[None]:
    """Turn what building from a wrong config raises into a :class:`UserError`."""
    try:
        yield
    except UserError:
        raise
    except BUILD_ERRORS as error:
        if is_lost_connection(error):
            raise
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        raise UserError(f'The config cannot be built: {text}') from error


@contextlib.contextmanager
def image_errors() -> Iterator[None]:
    """Turn an image that cannot be read in the middle of a run into a :class:`UserError` that names it."""
    try:
        yield
    except (AssertionError, FileNotFoundError) as error:
        match = UNREADABLE_IMAGE.search(str(error))
        if match is None:
            raise
        problem = f'{match["broken"]} is damaged' if match['broken'] else f'{match["missing"]} does not exist'
        raise UserError(
            f'The image {problem}. Replace it or take it out of the annotation file; --resume continues from the last '
            'checkpoint.'
        ) from error


@contextlib.contextmanager
def unused_parameter_errors(model: torch.nn.Module) -> Iterator[None]:
    """Turn what PyTorch says of parameters without a gradient on several processes into a :class:`UserError`.

    PyTorch numbers the trainable parameters; here they get names.
    """
    try:
        yield
    except RuntimeError as error:
        match = UNUSED_PARAMETERS.search(str(error))
        if match is None:
            raise
        names = [name for name, param in model.named_parameters() if param.requires_grad]
        unused = [names[int(index)].removeprefix('module.') for index in match['indices'].split()]
        shown = ', '.join(unused[:3]) + (', ...' if len(unused) > 3 else '')
        raise UserError(
            f'{len(unused)} parameters take no part in the loss ({shown}), and the processes wait '
            'for their gradients. Freeze them or take them out of the model, or set find_unused_parameters = True in '
            'the config.'
        ) from error
