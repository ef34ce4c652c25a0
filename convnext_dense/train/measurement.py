"""A config goes in; the time and the memory of its model come out, for testing an image or for a training step."""

import copy
import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from torch import nn

from convnext_dense import configs
from convnext_dense.compat.errors import UserError
from convnext_dense.data.samples import draw_for, empty_sample
from convnext_dense.train import config as run_config
from convnext_dense.train import run as runs
from convnext_dense.train.screen import quiet
from convnext_dense.train.stats import (
    build,
    build_on_meta,
    explained_failures,
    is_out_of_memory,
    library_of,
    round_up,
)

WARMUP, MIN_TURNS, MAX_TURNS, MAX_SECONDS = 1, 3, 10, 10
AMP_DTYPES = {'cuda': torch.float16, 'cpu': torch.bfloat16}  # on CUDA as MMEngine has it
STATUS = Path('/proc/self/status')


class Measurement(NamedTuple):
    """Some work of a model: the median time in seconds, the peak memory in bytes, where, and on which images."""

    seconds: float
    num_bytes: int | None
    device: str
    images: str = ''


def measure_config(
    file: str | os.PathLike, size: tuple[int, int], training: bool = False, amp: bool = False
) -> Measurement:
    """Measure the model of a config in a process of its own; see :func:`measure_test` and :func:`measure_training`.

    Args:
        file: The config.
        size: Width and height in pixels.
        training: Take training steps.
        amp: In mixed precision.

    Raises:
        UserError: The config cannot be read, built or run, or memory is short.
    """
    # a process of its own: memory that an earlier model left behind would count
    with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool:
        try:
            return pool.submit(measure_training if training else measure_test, file, size, amp).result()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            is_ended = isinstance(error, BrokenProcessPool)
            reason = 'its process was ended, for want of memory most likely' if is_ended else 'memory is short'
            work, remedy, option = (
                ('a training step', 'the config a smaller train_dataloader.batch_size', '--train')
                if training
                else (f'an image of {size[0]}x{size[1]}', 'a smaller --size', '--measure')
            )
            raise UserError(
                f'{file} cannot be measured with {work}: {reason}. Give {remedy}, or leave {option} out: counting '
                'needs no memory.'
            ) from error


def measure_test(file: str | os.PathLike, size: tuple[int, int], amp: bool = False) -> Measurement:
    """Return time and memory of inference on one image of (width, height) pixels.

    The whole ``test_step`` runs, as the config says: preprocessing, NMS, sliding windows, masks at full size. Weights
    and image are random.
    """
    cfg = configs.load_config(file)
    run_config.fit_classes(cfg)
    run_config.drop_training(cfg)
    width, height = size

    def prepare(model: nn.Module) -> Callable[[], object]:
        find_objects(model.eval())
        image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
        samples = [empty_sample(library_of(model), (height, width))]

        def work() -> None:
            with autocast(amp):
                model.test_step(dict(inputs=[image], data_samples=copy.deepcopy(samples)))

        return work

    with torch.inference_mode():
        return measure(cfg, prepare, amp)


def measure_training(file: str | os.PathLike, size: tuple[int, int], amp: bool = False) -> Measurement:
    """Return time and memory of a training step with the images that a GPU gets: forward, backward and optimizer.

    Images are square drawings, of the size to which the model crops, or of as many pixels as ``size``. Weights are
    random. One process trains: SyncBN is BN.

    Raises:
        UserError: The config has no training, or a number in it is wrong.
    """
    cfg = configs.load_config(file)
    if not cfg.get('optim_wrapper') or not cfg.get('train_dataloader'):
        raise UserError(f'{file} has no optim_wrapper or no train_dataloader: no training step can be measured.')
    run_config.check_step(cfg)
    run_config.fit_classes(cfg)
    run_config.drop_initial_weights(cfg.model)
    wrapper_cfg = run_config.without_amp(cfg.optim_wrapper)
    if amp and torch.cuda.is_available():
        wrapper_cfg['type'] = 'AmpOptimWrapper'
    crop = (cfg.model.get('data_preprocessor') or {}).get('size')
    side = crop[0] if crop else round_up(math.sqrt(size[0] * size[1]))
    batch_size = cfg.train_dataloader.get('batch_size', 1)

    def prepare(model: nn.Module) -> Callable[[], object]:
        model = revert_sync_batchnorm(model)
        model.init_weights()
        model.train()
        MessageHub.get_current_instance().update_info_dict(dict(epoch=0, iter=0))  # for which a few heads ask
        wrapper = build_optim_wrapper(model, wrapper_cfg)
        batch = draw_for(cfg, range(batch_size), True, side)

        def work() -> None:
            with autocast(amp and wrapper_cfg['type'] == 'OptimWrapper'):  # the other one does that by itself
                model.train_step(copy.deepcopy(batch), wrapper)

        return work

    return measure(cfg, prepare, amp)._replace(images=f'{batch_size} x {side}x{side}')


def measure(cfg: Config, prepare: Callable[[nn.Module], Callable[[], object]], amp: bool) -> Measurement:
    """Build a model, do its work several times, and return median time and peak memory.

    The peak is what weights and activations add to the process: the allocator's peak on CUDA, the growth of resident
    memory on a CPU (None where the system does not tell).

    Args:
        cfg: Of the model.
        prepare: Takes the model and returns its work.
        amp: It is in mixed precision.

    Raises:
        UserError: It cannot be built or run.
    """
    device = torch.device(runs.device_type())
    torch.manual_seed(0)
    with configs.model_scope(cfg), quiet():
        build_on_meta(cfg.model)  # imports what the model needs, which is not the model's memory
        before = resident_bytes('VmRSS')
        model = build(cfg.model).to(device)
        with runs.build_errors():
            work, seconds = prepare(model), []
        with explained_failures(model):
            while len(seconds) < WARMUP + MIN_TURNS or (
                len(seconds) < WARMUP + MAX_TURNS and sum(seconds) < MAX_SECONDS
            ):
                start = time.perf_counter()
                work()
                if device.type == 'cuda':
                    torch.cuda.synchronize()
                seconds.append(time.perf_counter() - start)
    name = torch.cuda.get_device_name() if device.type == 'cuda' else f'CPU, {torch.get_num_threads()} threads'
    precision = f', {str(AMP_DTYPES[device.type]).removeprefix("torch.")} AMP' if amp else ', fp32'
    if device.type == 'cuda':
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = resident_bytes('VmHWM')
        peak = None if peak is None else peak - before
    return Measurement(statistics.median(seconds[WARMUP:]), peak, name + precision)


def autocast(enabled: bool) -> torch.autocast:
    """Return a context of mixed precision on the device at hand."""
    device = runs.device_type()
    return torch.autocast(device, AMP_DTYPES[device], enabled=enabled)


def find_objects(model: nn.Module) -> None:
    """Make an untrained two-stage detector sure of the first class, so that its mask heads get their 100 boxes."""
    for module in model.modules():
        classifier = getattr(module, 'fc_cls', None)
        if isinstance(classifier, nn.Linear):
            nn.init.zeros_(classifier.weight)
            classifier.bias.copy_(torch.arange(len(classifier.bias)) == 0).mul_(10)


def resident_bytes(field: str) -> int | None:
    """Return the memory of this process now (``VmRSS``) or at its peak (``VmHWM``); None where Linux is not there."""
    # not resource.getrusage: its peak starts with that of the parent process
    if not STATUS.is_file():
        return None
    line = next((line for line in STATUS.read_text().splitlines() if line.startswith(f'{field}:')), None)
    return None if line is None else 1024 * int(line.split()[1])
