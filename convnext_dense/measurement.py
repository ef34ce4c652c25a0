"""A config goes in; the time and the memory that its model takes for one image come out, from running it."""

import multiprocessing
import os
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from convnext_dense import run_config
from convnext_dense.data.samples import empty_sample
from convnext_dense.errors import UserError
from convnext_dense.model_stats import build, build_on_meta, library_of, model_scope

WARMUP, MIN_TURNS, MAX_TURNS, MAX_SECONDS = 1, 3, 10, 10
STATUS = Path('/proc/self/status')
CPU_ALLOCATOR = 'DefaultCPUAllocator'  # PyTorch's error of a CPU without memory has no class, but names it


class Measurement(NamedTuple):
    """One image through the whole model: the median time in seconds, the peak memory in bytes, and where."""

    seconds: float
    num_bytes: int | None
    device: str


def measure_config(file: str | os.PathLike, size: tuple[int, int]) -> Measurement:
    """Run one image of noise through the model of a config, in a process of its own; see :func:`measure`.

    Raises:
        UserError: The config cannot be read or built, or memory is short.
    """
    # a process of its own: memory that an earlier model left behind would count
    with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool:
        try:
            return pool.submit(measure, file, size).result()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            is_ended = isinstance(error, BrokenProcessPool)
            reason = 'its process was ended, for want of memory most likely' if is_ended else 'memory is short'
            raise UserError(
                f'{file} cannot be measured at {size[0]}x{size[1]}: {reason}. Give a smaller --size, or leave '
                '--measure out: counting needs no memory.'
            ) from error


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether an error means that memory is short: one of Python, CUDA or the CPU, or the end of a process."""
    known = (BrokenProcessPool, MemoryError, torch.cuda.OutOfMemoryError)
    return isinstance(error, known) or CPU_ALLOCATOR in str(error)


def measure(file: str | os.PathLike, size: tuple[int, int]) -> Measurement:
    """Return median time and peak memory of inference on one image of (width, height) pixels, in fp32.

    The whole ``test_step`` runs, as the config says: preprocessing, NMS, sliding windows, masks at full size. Weights
    are random. The peak is what weights and activations add to the process: the allocator's peak on CUDA, the growth of
    resident memory on a CPU (None where the system does not tell).
    """
    cfg = run_config.load_config(file)
    run_config.fit_classes(cfg)
    run_config.drop_training(cfg)
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    torch.manual_seed(0)
    with model_scope(cfg), torch.inference_mode():
        build_on_meta(cfg.model)  # imports what the model needs, which is not the model's memory
        before = resident_bytes('VmRSS')
        model = build(cfg.model)
        find_objects(model)
        model.to(device).eval()
        width, height = size
        image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
        seconds = []
        while len(seconds) < WARMUP + MIN_TURNS or (len(seconds) < WARMUP + MAX_TURNS and sum(seconds) < MAX_SECONDS):
            batch = dict(inputs=[image], data_samples=[empty_sample(library_of(model), (height, width))])
            start = time.perf_counter()
            model.test_step(batch)
            if device.type == 'cuda':
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
    if device.type == 'cuda':
        return Measurement(
            statistics.median(seconds[WARMUP:]), torch.cuda.max_memory_allocated(), torch.cuda.get_device_name()
        )
    peak = resident_bytes('VmHWM')
    name = f'CPU, {torch.get_num_threads()} threads'
    return Measurement(statistics.median(seconds[WARMUP:]), None if peak is None else peak - before, name)


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
