"""Examine the installation: ``python -m convnext_dense.compat.doctor``.

In: the installed packages and the GPU. Out: versions, what serves the ops of mmcv, the patches, the GPU, and what does
not work, with its cure; exit status 0 where all works, else 1. Whatever the state of PyTorch and torchvision, the
answer is a report: each part is tried, and its failure is one line.
"""

import contextlib
import io
import platform
import re
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

from convnext_dense import __version__
from convnext_dense import compat as stack
from convnext_dense.compat import versions
from convnext_dense.compat.checkpoints import SAFE_TORCH
from convnext_dense.compat.ops import OPS
from convnext_dense.compat.versions import PACKAGES, Installed, Problem

WIDTH = 120  # columns


def main() -> int:
    """Print the report and return the exit status."""
    installed = versions.find_installed()
    failures = run_trials()
    gpu_lines = ['not examined, since PyTorch fails']
    if not any(failure.module == 'torch' for failure in failures):
        gpu_lines, gpu_failures = examine_gpu()
        failures += gpu_failures
    problems = versions.find_problems(installed)
    problems += [Problem(describe(failure), find_cure(failure, installed)) for failure in failures]
    sections = {
        'Versions': version_lines(installed),
        'Ops of mmcv': [ops_line()],
        'Patches': patch_lines(),
        'GPU': gpu_lines,
        'What does not work': problem_lines(problems) or ['nothing: all that is installed works'],
    }
    print(f'convnext-dense {__version__}')
    for title, lines in sections.items():
        print('\n  '.join([f'\n{title}', *lines]))
    return 1 if problems else 0


class Trial(NamedTuple):
    """Something to do where a module is installed, and the modules that it needs have not failed."""

    name: str
    module: str
    run: Callable[[], object]
    needs: tuple[str, ...] = ()


class Failure(NamedTuple):
    """A trial that failed, and what could not be tried because of it."""

    name: str
    module: str
    error: str
    prevented: list[str]


def run_nms(device: str = 'cpu') -> None:
    """Run a compiled op of torchvision."""
    import torch
    from torchvision.ops import nms

    boxes_xyxy = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 1.9]], device=device)
    nms(boxes_xyxy, torch.tensor([1.0, 0.5], device=device), 0.5).tolist()


def run_backbone(device: str = 'cpu') -> None:
    """Run the smallest backbone forward and backward."""
    import torch

    from convnext_dense.backbone import ConvNeXt

    image = torch.zeros(1, 3, 64, 64, device=device)
    sum(feature_map.mean() for feature_map in ConvNeXt('atto').to(device)(image)).backward()


def import_library(library: str) -> None:
    """Import what a run imports of MMDetection or MMSegmentation."""
    for part in ('apis', 'datasets', 'evaluation', 'models'):
        import_module(f'{library}.{part}')


def import_rooms() -> None:
    """Import what ``import convnext_dense`` would have, were it not for the doctor."""
    for room in ('data', 'heads', 'hooks', 'runs', 'tta'):
        import_module(f'convnext_dense.{room}')


# In the order of what needs what
TRIALS = (
    Trial('PyTorch', 'torch', partial(import_module, 'torch')),
    Trial("torchvision's ops", 'torchvision', run_nms, needs=('torch',)),
    Trial('OpenCV', 'cv2', partial(import_module, 'cv2')),
    Trial('COCO metrics', 'pycocotools', partial(import_module, 'pycocotools.mask')),
    Trial('the backbone', 'mmengine', run_backbone, needs=('torch', 'cv2')),
    Trial('training and testing', 'convnext_dense', import_rooms, needs=('mmengine',)),
    Trial('the ops of mmcv', 'mmcv', partial(import_module, 'mmcv.ops'), needs=('torchvision', 'mmengine')),
    Trial('detectors', 'mmdet', partial(import_library, 'mmdet'), needs=('mmcv', 'pycocotools')),
    Trial('segmentors', 'mmseg', partial(import_library, 'mmseg'), needs=('mmcv',)),
)

# Modules that pip knows by another name
PIP_NAMES = {'cv2': 'opencv-python', 'PIL': 'pillow', 'yaml': 'pyyaml'} | {
    each.module: each.names[0] for each in PACKAGES
}

# What an error says -> its cure, in which {name} is the package that failed, {module} its module, and {missing} the
# package that the error names
CURES = {
    r'operator torchvision::\w+ does not exist|torchvision\S*: undefined symbol|(?i:load custom c\+\+ ops)': (
        '{install_torchvision}'
    ),
    r'_ext\S*: undefined symbol': (
        'compile this mmcv for the installed PyTorch, or take the other one: {install_mmcv}'
    ),
    r"'torchvision::\w+'.*'CUDA' backend|(?i:not compiled with (gpu|cuda))": (
        'reinstall torch and torchvision from one place, both built for the same CUDA'
    ),
    r'no kernel image is available': 'install a PyTorch that was built for the compute capability of this GPU',
    r'driver': 'update the driver of the GPU, or install a PyTorch that was built for an older CUDA',
    r'lib(GL|gthread|SM|Xext)\S*: cannot open': 'pip install --force-reinstall --no-deps opencv-python-headless',
    r'numpy\.dtype size changed|_ARRAY_API not found|numpy\.core\.multiarray failed': 'pip install --upgrade {name}',
    r"No module named '(?P<missing>\w+)": 'pip install {missing}',
    '': 'pip install --force-reinstall --no-deps {name}; where that is no help, python -c "import {module}" says more',
}


def run_trials() -> list[Failure]:
    """Try everything that is installed."""
    failures, cause = [], {}
    for trial in TRIALS:
        if find_spec(trial.module) is None:
            continue
        failure = next((cause[module] for module in trial.needs if module in cause), None)
        if failure is not None:
            failure.prevented.append(trial.name)
        elif error := try_quietly(trial.run):
            failure = Failure(trial.name, trial.module, error, [])
            failures.append(failure)
        if failure is not None:
            cause[trial.module] = failure
    return failures


def try_quietly(run: Callable[[], object]) -> str:
    """Run a function without its prints and warnings; return its error in one line, or nothing."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter('ignore')
        try:
            run()
        except Exception as error:
            return f'{type(error).__name__}: {first_line(error)}'
    return ''


def describe(failure: Failure) -> str:
    """Say what failed, and what fails with it."""
    others = f' (and so {", ".join(failure.prevented)})' if failure.prevented else ''
    return f'{failure.name}{others}: {failure.error}'


def find_cure(failure: Failure, installed: Installed) -> str:
    """Return what to do."""
    pattern = next(pattern for pattern in CURES if re.search(pattern, failure.error))
    missing = re.search(pattern, failure.error).groupdict().get('missing')
    return CURES[pattern].format(
        module=failure.module,
        name=PIP_NAMES.get(failure.module, failure.module),
        missing=PIP_NAMES.get(missing, missing),
        install_torchvision=versions.install_command('torchvision', installed),
        install_mmcv=versions.install_command('mmcv', installed),
    )


def version_lines(installed: Installed) -> list[str]:
    """Return a line for Python and for each package that is installed, or that something would use."""
    rows = [('Python', platform.python_version(), versions.judge_python())]
    for package in PACKAGES:
        for name, version in installed.get(package.module, {}).items():
            verdict = versions.judge(package.module, installed)
            rows.append((name or package.module, version or '?', verdict + remark(package.module, version)))
        if package.module not in installed and package.used_for:
            rows.append((package.names[0], '-', f'not installed: no {package.used_for}'))
    lines = [f'{name:22}{version:18}{verdict}' for name, version, verdict in rows]
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
    backend = stack.ops_backend()
    if backend is None:
        return 'mmcv is not installed'
    if backend == 'compiled':
        return f'the compiled module of mmcv, {find_spec("mmcv._ext").origin}'
    return f'torchvision and PyTorch serve {len(OPS)} of them; docs/ops.md lists them'


def patch_lines() -> list[str]:
    """Return the status of each patch and its reason."""
    return [
        line
        for row in stack.patch_report()
        for line in textwrap.wrap(
            f'{row.status:12}{row.patch.name}: {row.reason}', WIDTH - 2, subsequent_indent=14 * ' '
        )
    ]


def examine_gpu() -> tuple[list[str], list[Failure]]:
    """Return what there is to say of the GPUs, and what does not work on them."""
    import torch

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        available = torch.cuda.is_available()
    failures = [Failure('the GPU', 'torch', first_line(warned.message), []) for warned in caught]
    if not available:
        built = f'built for CUDA {torch.version.cuda}' if torch.version.cuda else 'built without CUDA'
        return [f'none that PyTorch, {built}, can use: runs use the CPU'], failures
    lines = [describe_gpu(index) for index in range(torch.cuda.device_count())]
    for name, run in (('the backbone on the GPU', run_backbone), ("torchvision's ops on the GPU", run_nms)):
        error = try_quietly(partial(run, 'cuda'))
        lines.append(f'{name}: {"failed" if error else "works"}')
        if error:
            failures.append(Failure(name, 'torch', error, []))
    lines.append(nccl_line())
    return lines, failures


def describe_gpu(index: int) -> str:
    """Return the name, the compute capability and the memory of a GPU."""
    import torch

    gpu = torch.cuda.get_device_properties(index)
    return f'{index}: {gpu.name}, compute capability {gpu.major}.{gpu.minor}, {gpu.total_memory / 2**30:.0f} GiB'


def nccl_line() -> str:
    """Say whether several GPUs can train together."""
    import torch

    if not torch.distributed.is_available() or not torch.distributed.is_nccl_available():
        return 'NCCL is not in this PyTorch: several GPUs cannot train together'
    return f'NCCL {".".join(map(str, torch.cuda.nccl.version()))}: several GPUs can train together'


def problem_lines(problems: list[Problem]) -> list[str]:
    """Return the problems, those with the same cure together."""
    by_cure: dict[str, list[str]] = {}
    for problem in problems:
        by_cure.setdefault(problem.cure, []).append(problem.what)
    return [line for cure, whats in by_cure.items() for line in (*whats, f'    cure: {cure}')]


def first_line(message: object) -> str:
    """Return the first line of a message that says something.

    >>> first_line(ImportError('\\nnumpy.core.multiarray failed to import\\nUpdate it'))
    'numpy.core.multiarray failed to import'
    """
    return next((line.strip() for line in str(message).splitlines() if line.strip()), 'no message')


if __name__ == '__main__':
    if hasattr(signal, 'SIGPIPE'):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it without a word
    sys.exit(main())
