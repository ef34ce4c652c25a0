"""Examine the installation: ``python -m convnext_dense.compat.doctor``.

The report names the versions, what serves the ops of mmcv, the patches and the GPU, and ends with what does not work
and the cure. Each part is tried, on the GPU where there is one. The exit status is 0 where all works, else 1.
"""

import contextlib
import io
import platform
import re
import sys
import warnings
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from importlib.util import find_spec

from . import broken, versions
from .ext_finder import ops_backend
from .ops import OPS
from .patches import patch_report
from .versions import OURS, PACKAGES, Installed, Problem


def main() -> int:
    """Print the report and return the exit status."""
    installed = versions.find_installed()
    problems = [*versions.find_problems(installed), *run_trials(installed)]
    sections = {
        'Versions': version_lines(installed),
        'Ops of mmcv': [ops_line()],
        'Patches': [f'{status:12}{name}: {reason}' for name, status, reason in patch_report()],
        'GPU': gpu_lines(),
        'What does not work': [f'{problem.what}\n    cure: {problem.cure}' for problem in problems]
        or ['nothing: all that is installed works'],
    }
    blocks = ['\n  '.join([title, *lines]) for title, lines in sections.items()]
    print('\n\n'.join([f'{OURS} {sys.modules["convnext_dense"].__version__}', *blocks]))
    return 1 if problems else 0


def run_nms() -> None:
    """Run a compiled op of torchvision."""
    import torch
    from mmengine.device import get_device
    from torchvision.ops import nms

    boxes_xyxy = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 1.9]], device=get_device())
    nms(boxes_xyxy, boxes_xyxy[:, 3], 0.5).tolist()


def run_backbone() -> None:
    """Run the smallest backbone forward and backward, as MMEngine's registry builds it."""
    import torch
    from mmengine.device import get_device
    from mmengine.registry import MODELS

    backbone = MODELS.build(dict(type='ConvNeXt', arch='atto')).to(get_device())
    maps = backbone(torch.zeros(1, 3, 64, 64, device=get_device()))
    sum(feature_map.mean() for feature_map in maps).backward()


def import_library(library: str) -> None:
    """Import what a run imports of MMDetection or MMSegmentation."""
    for part in ('apis', 'datasets', 'evaluation', 'models'):
        import_module(f'{library}.{part}')


def find_gpu() -> None:
    """Raise why PyTorch cannot use the GPU, unless there is none."""
    import torch

    try:
        torch.cuda.init()
    except (AssertionError, RuntimeError) as error:
        if not re.search('no NVIDIA driver|No CUDA GPUs|not compiled with CUDA', str(error)):
            raise


# What is tried, the module without which it is left out, and the function
TRIALS = (
    ("torchvision's ops", 'torch', run_nms),
    ('COCO metrics', 'pycocotools', partial(import_module, 'pycocotools.mask')),
    ('the backbone', 'torch', run_backbone),
    ('the ops of mmcv', 'mmcv', partial(import_module, 'mmcv.ops')),
    ('detectors', 'mmdet', partial(import_library, 'mmdet')),
    ('segmentors', 'mmseg', partial(import_library, 'mmseg')),
    ('the GPU', 'torch', find_gpu),
)


def run_trials(installed: Installed) -> Iterator[Problem]:
    """Try everything that is installed, without its prints and warnings, and yield what fails."""
    for name, module, run in TRIALS:
        if find_spec(module) is None:
            continue
        try:
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
                warnings.simplefilter('ignore')
                run()
        except Exception as error:
            text = broken.describe_error(error)
            yield Problem(f'{name}: {text}', broken.find_cure(text, module, installed))


def version_lines(installed: Installed) -> list[str]:
    """Return a line for Python and for each package, with the supported range."""
    lines = [f'{"Python":22}{platform.python_version()}']
    for module, names in PACKAGES.items():
        for name, version in installed.get(module, {names[0]: '-'}).items():
            asked = versions.find_requirement(name)
            supported = f'supported: {asked.specifier or "all"}' if asked else ''
            lines.append(f'{name or module:22}{version or "?":18}{supported}'.rstrip())
    return lines


def ops_line() -> str:
    """Say what serves the ops of mmcv."""
    backend = ops_backend()
    if backend == 'compiled':
        return f'the compiled module of mmcv, {find_spec("mmcv._ext").origin}'
    return f'torchvision and PyTorch serve {len(OPS)} ops' if backend else 'mmcv is not installed'


def gpu_lines() -> list[str]:
    """Return the name, the compute capability and the memory of each GPU."""
    import torch

    if not torch.cuda.is_available():
        built = f'built for CUDA {torch.version.cuda}' if torch.version.cuda else 'built without CUDA'
        return [f'none that PyTorch, {built}, can use: runs use the CPU']
    gpus = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return [f'{gpu.name}, compute capability {gpu.major}.{gpu.minor}, {gpu.total_memory >> 30} GiB' for gpu in gpus]


if __name__ == '__main__':
    sys.exit(main())
