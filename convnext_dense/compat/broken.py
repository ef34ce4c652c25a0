"""What an error of a broken installation means: its cure, and one readable ImportError instead of a long traceback."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from traceback import walk_tb

from .versions import PIP_NAMES, Installed, Problem, find_installed, find_problems, install_command
from .warnings import quiet_import

NEEDED = ('torch', 'torchvision', 'numpy', 'mmengine')

# What an error says -> its cure, in which {name} is the package that failed, {module} its module, and {install_...}
# the command for a version that fits
CURES = {
    r'operator torchvision::\w+ does not exist|torchvision\S*: undefined symbol|(?i:load custom c\+\+ ops)': (
        '{install_torchvision}'
    ),
    r'_ext\S*: undefined symbol': 'compile this mmcv for the installed PyTorch, or take the other one: {install_mmcv}',
    r"'torchvision::\w+'.*'CUDA' backend|(?i:not compiled with (gpu|cuda))": (
        'reinstall torch and torchvision from one place, both built for the same CUDA'
    ),
    r'no kernel image is available': 'install a PyTorch that was built for the compute capability of this GPU',
    r'(?i:nvidia|cuda) driver': 'update the driver of the GPU, or install a PyTorch that was built for an older CUDA',
    r'lib(GL|gthread|SM|Xext)\S*: cannot open': 'pip install --force-reinstall --no-deps opencv-python-headless',
    r'numpy\.dtype size changed|_ARRAY_API not found|numpy\.core\.multiarray failed': 'pip install --upgrade {name}',
    r"No module named '(?P<missing>\w+)": '{install_missing}',
    '': 'pip install --force-reinstall --no-deps {name}; where that is no help, python -c "import {module}" says more',
}


def find_cure(error: str, module: str, installed: Installed) -> str:
    """Return what to do about an error in a module."""
    found = next(found for found in (re.search(pattern, error) for pattern in CURES) if found)
    missing = found.groupdict().get('missing', '')
    return CURES[found.re.pattern].format(
        module=module,
        name=PIP_NAMES.get(module, module),
        install_torchvision=install_command('torchvision', installed),
        install_mmcv=install_command('mmcv', installed),
        install_missing=install_command(missing, installed),
    )


def describe_error(error: BaseException) -> str:
    """Return an error in one line, with the first line of its message that says something.

    >>> describe_error(ImportError('\\nnumpy.core.multiarray failed to import\\nUpdate it'))
    'ImportError: numpy.core.multiarray failed to import'
    """
    lines = (line.strip() for line in str(error).splitlines())
    return f'{type(error).__name__}: {next(filter(None, lines), "no message")}'


@contextmanager
def explained_import() -> Iterator[None]:
    """Import the package in this block: problems that let it work are logged, and others are one ImportError.

    Metadata can be wrong, so that where it shows a problem, the modules that the package needs are tried.

    Raises:
        ImportError: The block failed, or such a module. The text says what is broken, and the cure.
    """
    installed = find_installed()
    problems = find_problems(installed)
    try:
        with quiet_import():
            for module in NEEDED if problems else ():
                import_module(module)
            yield
    except Exception as error:
        text = describe_error(error)
        problems = problems or [Problem(text, find_cure(text, failing_module(error), installed))]
        lines = '\n'.join(f'  {problem.what}. Cure: {problem.cure}' for problem in problems)
        raise ImportError(f'convnext_dense cannot be imported ({text}), because\n{lines}') from error
    for problem in problems:
        logging.getLogger('convnext_dense').warning('convnext_dense: %s. Cure: %s', problem.what, problem.cure)


def failing_module(error: BaseException) -> str:
    """Return the module, such as ``cv2``, in whose code an error arose; ours if it was in none that pip installs."""
    modules = [frame.f_globals.get('__name__', '').partition('.')[0] for frame, _ in walk_tb(error.__traceback__)]
    return next((each for each in reversed(modules) if each in PIP_NAMES), 'convnext_dense')
