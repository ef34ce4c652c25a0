"""Examine the installation: ``python -m convnext_dense.compat.doctor``.

The report names the versions, what serves the ops of mmcv, the patches and the GPU, and ends with what does not work
and the cure. Each part is tried, and its failure is one line. The exit status is 0 where all works, else 1.
"""

import contextlib
import io
import platform
import signal
import sys
import textwrap
import warnings
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import NamedTuple

from packaging.version import Version

from . import broken, versions
from .checkpoints import SAFE_TORCH
from .ext_finder import ops_backend
from .ops import OPS
from .patches import patch_report
from .versions import OURS, PACKAGES, Installed, Problem

WIDTH = 120  # columns


def main() -> int:
    """Print the report and return the exit status."""
    installed = versions.find_installed()
    gpu_lines, gpu_failures = examine_gpu()
    problems = [*versions.find_problems(installed), *run_trials(installed), *gpu_failures]
    sections = {
        'Versions': version_lines(installed),
        'Ops of mmcv': [ops_line()],
        'Patches': patch_lines(),
        'GPU': gpu_lines,
        'What does not work': problem_lines(problems) or ['nothing: all that is installed works'],
    }
    print(OURS, sys.modules['convnext_dense'].__version__)
    for title, lines in sections.items():
        print('\n  '.join([f'\n{title}', *lines]))
    return 1 if problems else 0


class Trial(NamedTuple):
    """Something to do where a module is installed."""

    name: str
    module: str
    run: Callable[[], object]


def run_nms(device: str = 'cpu') -> None:
    """Run a compiled op of torchvision."""
    import torch
    from torchvision.ops import nms

    boxes_xyxy = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 1.9]], device=device)
    nms(boxes_xyxy, torch.tensor([1.0, 0.5], device=device), 0.5).tolist()


def run_backbone(device: str = 'cpu') -> None:
    """Run the smallest backbone forward and backward, as MMEngine's registry builds it."""
    import torch
    from mmengine.registry import MODELS

    image = torch.zeros(1, 3, 64, 64, device=device)
    backbone = MODELS.build(dict(type='ConvNeXt', arch='atto')).to(device)
    sum(feature_map.mean() for feature_map in backbone(image)).backward()


def import_library(library: str) -> None:
    """Import what a run imports of MMDetection or MMSegmentation."""
    for part in ('apis', 'datasets', 'evaluation', 'models'):
        import_module(f'{library}.{part}')


TRIALS = (
    Trial("torchvision's ops", 'torchvision', run_nms),
    Trial('COCO metrics', 'pycocotools', partial(import_module, 'pycocotools.mask')),
    Trial('the backbone', 'mmengine', run_backbone),
    Trial('the ops of mmcv', 'mmcv', partial(import_module, 'mmcv.ops')),
    Trial('detectors', 'mmdet', partial(import_library, 'mmdet')),
    Trial('segmentors', 'mmseg', partial(import_library, 'mmseg')),
)


def run_trials(installed: Installed) -> list[Problem]:
    """Try everything that is installed."""
    return [
        Problem(f'{trial.name}: {error}', broken.find_cure(error, trial.module, installed))
        for trial in TRIALS
        if find_spec(trial.module) is not None and (error := try_quietly(trial.run))
    ]


def try_quietly(run: Callable[[], object]) -> str:
    """Run a function without its prints and warnings; return its error in one line, or nothing."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter('ignore')
        try:
            run()
        except Exception as error:
            return broken.describe_error(error)
    return ''


def version_lines(installed: Installed) -> list[str]:
    """Return a line for Python and for each package that is installed, or that something would use."""
    rows = [('Python', platform.python_version(), '')]
    for package in PACKAGES:
        for name, version in installed.get(package.module, {}).items():
            verdict = versions.judge(package.module, installed)
            rows.append((name or package.module, version or '?', verdict + remark(package.module, version)))
        if package.module not in installed and package.used_for:
            rows.append((package.names[0], '-', f'not installed: no {package.used_for}'))
    lines = [f'{name:22}{version:18}{verdict}'.rstrip() for name, version, verdict in rows]
    if versions.supported_range('torch') is None:
        lines.append('The supported ranges are unknown, since pip does not know convnext-dense: pip install -e .')
    return lines


def remark(module: str, version: str) -> str:
    """Say what a supported version lacks."""
    if module == 'torch' and version and Version(version) < Version(SAFE_TORCH):
        return f'; before {SAFE_TORCH} a .pth file of a stranger can attack it'
    return ''


def ops_line() -> str:
    """Say what serves the ops of mmcv."""
    backend = ops_backend()
    if backend is None:
        return 'mmcv is not installed'
    if backend == 'compiled':
        return f'the compiled module of mmcv, {find_spec("mmcv._ext").origin}'
    return f'torchvision and PyTorch serve {len(OPS)} ops; docs/ops.md lists them'


def patch_lines() -> list[str]:
    """Return the status of each patch and its reason."""
    texts = [f'{row.status:12}{row.patch.name}: {row.reason}' for row in patch_report()]
    return [line for text in texts for line in textwrap.wrap(text, WIDTH - 2, subsequent_indent=14 * ' ')]


def examine_gpu() -> tuple[list[str], list[Problem]]:
    """Return what there is to say of the GPUs, and what does not work on them."""
    import torch

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        available = torch.cuda.is_available()
    errors = [f'the GPU: {str(warned.message).splitlines()[0]}' for warned in caught]
    lines = []
    if not available:
        built = f'built for CUDA {torch.version.cuda}' if torch.version.cuda else 'built without CUDA'
        lines.append(f'none that PyTorch, {built}, can use: runs use the CPU')
    else:
        lines += map(describe_gpu, range(torch.cuda.device_count()))
        for name, run in (('the backbone on the GPU', run_backbone), ("torchvision's ops on the GPU", run_nms)):
            error = try_quietly(partial(run, 'cuda'))
            lines.append(f'{name}: {"failed" if error else "works"}')
            errors += [f'{name}: {error}'] if error else []
    return lines, [Problem(error, broken.find_cure(error, 'torch', versions.find_installed())) for error in errors]


def describe_gpu(index: int) -> str:
    """Return the name, the compute capability and the memory of a GPU."""
    import torch

    gpu = torch.cuda.get_device_properties(index)
    return f'{index}: {gpu.name}, compute capability {gpu.major}.{gpu.minor}, {gpu.total_memory / 2**30:.0f} GiB'


def problem_lines(problems: list[Problem]) -> list[str]:
    """Return the problems, those with the same cure together."""
    by_cure: dict[str, list[str]] = {}
    for problem in problems:
        by_cure.setdefault(problem.cure, []).append(problem.what)
    return [line for cure, whats in by_cure.items() for line in (*whats, f'    cure: {cure}')]


if __name__ == '__main__':
    if hasattr(signal, 'SIGPIPE'):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it without a word
    sys.exit(main())
