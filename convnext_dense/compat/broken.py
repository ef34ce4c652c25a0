"""What an error of a broken installation means: its cure, and one readable ImportError instead of a long traceback."""

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from traceback import walk_tb

from .versions import PACKAGES, Installed, Problem, find_installed, find_problems, install_command

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
    r'_ext\S*: undefined symbol': 'compile this mmcv for the installed PyTorch, or take the other one: {install_mmcv}',
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


def find_cure(error: str, module: str, installed: Installed) -> str:
    """Return what to do about an error in a module."""
    pattern = next(pattern for pattern in CURES if re.search(pattern, error))
    missing = re.search(pattern, error).groupdict().get('missing')
    return CURES[pattern].format(
        module=module,
        name=PIP_NAMES.get(module, module),
        missing=PIP_NAMES.get(missing, missing),
        install_torchvision=install_command('torchvision', installed),
        install_mmcv=install_command('mmcv', installed),
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

    Metadata can be wrong, so that a module which the package needs is tried before it is called broken.

    Raises:
        ImportError: The block failed, or such a module. The text says what is broken, and the cure.
    """
    installed = find_installed()
    problems = find_problems(installed)
    needed = {package.module for package in PACKAGES if '' in package.needed_by}
    try:
        for problem in problems:
            if problem.module in needed:
                import_module(problem.module)
        yield
    except Exception as error:
        text = describe_error(error)
        if not problems:
            problems = [Problem(text, find_cure(text, failing_module(error), installed))]
        lines = '\n'.join(f'  {problem.what}. Cure: {problem.cure}' for problem in problems)
        raise ImportError(f'convnext_dense cannot be imported ({text}), because\n{lines}') from error
    log_problems(problems)


def log_problems(problems: Sequence[Problem] | None = None) -> None:
    """Log one line for each problem, by default those that the metadata shows; nothing where all is well."""
    for problem in find_problems(find_installed()) if problems is None else problems:
        logging.getLogger('convnext_dense').warning('convnext_dense: %s. Cure: %s', problem.what, problem.cure)


def failing_module(error: BaseException) -> str:
    """Return the module of the stack, such as ``cv2``, in whose code an error arose; ours if it was in none."""
    modules = [frame.f_globals.get('__name__', '').partition('.')[0] for frame, _ in walk_tb(error.__traceback__)]
    return next((module for module in reversed(modules) if module in PIP_NAMES), 'convnext_dense')
