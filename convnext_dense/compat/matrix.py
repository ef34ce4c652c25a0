"""The environments in which the tests are run, and how each fared. Out: ``docs/versions.md``.

In: the table ``ENVIRONMENTS``. Each gets a virtual environment with the package as a user would install it, in which
the fast tests are run. Its row on the page is written as soon as they end; the rows of the others stay.
"""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from .versions import FORKS, KNOWN_TO_FAIL, MMCV, MMDET, MMENGINE, MMSEG, OURS, PACKAGES, Failing

ROOT = Path(__file__).parents[2]
PAGE = ROOT / 'docs/versions.md'
FOLDER = ROOT / '.matrix'
WORKERS = '2'  # tests at a time
SHOWN = ('torch', 'torchvision', 'numpy', 'mmengine', 'mmcv', 'mmdet', 'mmseg')  # modules whose versions the page has


class Environment(NamedTuple):
    """One environment; what is not said is the newest that pip finds."""

    name: str
    what: str
    python: str
    extras: str = '[mm,dev]'
    requirements: tuple[str, ...] = ()  # beside the package's own
    lower_bounds: bool = False  # the oldest versions that setup.py allows
    instead: tuple[tuple[str, str], ...] = ()  # a package to uninstall, and the requirement to install in its place
    tests: tuple[str, ...] = ()  # arguments of pytest


ENVIRONMENTS = (
    Environment('py310', 'newest of all', '3.10'),
    Environment('py311', 'newest of all', '3.11'),
    Environment('py312', 'newest of all', '3.12'),
    Environment('py313', 'newest of all', '3.13'),
    Environment('oldest', 'lower bounds of `setup.py`', '3.10', lower_bounds=True),
    Environment('mmengine-next', 'the next MMEngine', '3.11', requirements=('mmengine==0.11.0rc3',)),
    Environment(
        'onedl',
        'the onedl forks',
        '3.11',
        instead=tuple((names[0], names[-1] + FORKS[names[-1]]) for names in (MMENGINE, MMCV, MMDET, MMSEG)),
    ),
    Environment(
        'core',
        'no MMDetection, no MMSegmentation',
        '3.11',
        extras='',
        requirements=('pytest', 'pytest-xdist', 'timm'),
        tests=('tests/test_backbone.py', 'tests/test_doctor.py', 'tests/test_compat_versions.py'),
    ),
)


class Row(NamedTuple):
    """What the page says of an environment."""

    name: str
    what: str
    python: str
    versions: str = ''
    tests: str = ''
    outcome: str = 'not run yet'


class StepFailed(Exception):
    """An environment cannot be had; the message is its outcome."""


def run_matrix(names: Sequence[str], folder: Path, keep: bool, tests: Sequence[str]) -> bool:
    """Run environments one after the other and write their rows; return whether all tests passed.

    Args:
        names: Of the environments.
        folder: Where the virtual environments and the logs go.
        keep: Leave the virtual environments there, several gigabytes each.
        tests: Arguments of pytest instead of the environment's own, such as ``['tests/test_hooks.py', '-k', 'nan']``.
    """
    all_passed = True
    for environment in ENVIRONMENTS:
        if environment.name in names:
            row = run_environment(environment, folder, tests or environment.tests)
            PAGE.write_text(format_page({**read_rows(), row.name: row}))
            print(f'{row.name}: {row.outcome}', flush=True)
            all_passed &= row.outcome[0].isdigit() and ' failed' not in row.outcome
            if not keep:
                shutil.rmtree(folder / row.name, ignore_errors=True)
    return all_passed


def run_environment(environment: Environment, folder: Path, tests: Sequence[str]) -> Row:
    """Make the environment, run pytest in it, and return its row."""
    row = Row(environment.name, environment.what, environment.python, tests=' '.join(tests) or 'all fast tests')
    place = folder / environment.name
    try:
        python = make_venv(environment.python, place)
        print(f'{row.name}: installing', flush=True)
        for arguments in pip_calls(environment):
            run_pip(python, arguments)
        row = row._replace(python=run_python(python, 'import platform; print(platform.python_version())').strip())
        row = row._replace(versions=installed_versions(python))
        print(f'{row.name}: testing with {row.versions}', flush=True)
        return row._replace(outcome=run_pytest(python, tests, place.with_suffix('.log')))
    except StepFailed as reason:
        return row._replace(outcome=str(reason))


def make_venv(version: str, place: Path) -> Path:
    """Make an empty virtual environment of a Python such as ``3.12`` and return its interpreter.

    Raises:
        StepFailed: There is no such Python on the path.
    """
    for folder in os.get_exec_path():
        python = shutil.which(f'python{version}', path=folder)
        # A version manager may put a name on the path that does not run
        if python and subprocess.run([python, '-c', 'import venv, ensurepip'], capture_output=True).returncode == 0:
            subprocess.run([python, '-m', 'venv', '--clear', str(place)], check=True)
            return place / 'bin/python'
    raise StepFailed(f'no Python {version} here')


def pip_calls(environment: Environment) -> list[list[str]]:
    """Return the arguments of each call of pip that fills the environment."""
    bounds = lower_bounds() if environment.lower_bounds else []
    calls = [['install', '-e', f'.{environment.extras}', *environment.requirements, *bounds]]
    if environment.instead:
        calls.append(['uninstall', '--yes', *(name for name, _ in environment.instead)])
        calls.append(['install', *(requirement for _, requirement in environment.instead)])
    return calls


def lower_bounds() -> list[str]:
    """Return the oldest version of each package that ``setup.py`` names, ``torch==2.4``."""
    asked = map(Requirement, metadata.requires(OURS) or ())
    bounds = ((each.name, bound) for each in asked for bound in each.specifier if bound.operator == '>=')
    return list(dict.fromkeys(f'{name}=={bound.version}' for name, bound in bounds))


def run_pip(python: Path, arguments: Sequence[str]) -> str:
    """Call pip in the root of the repository and return what it prints.

    Raises:
        StepFailed: It fails; with its last error.
    """
    command = [str(python), '-m', 'pip', '--disable-pip-version-check', *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith(('ERROR:', 'error:'))]
        raise StepFailed(f'cannot be installed: {(errors or ["pip failed"])[-1]}')
    return done.stdout


def installed_versions(python: Path) -> str:
    """Return the versions of the packages of the stack, ``torch 2.14.1, numpy 2.4.6``."""
    listed = json.loads(run_pip(python, ['list', '--format=json']))
    versions = {canonicalize_name(each['name']): each['version'] for each in listed}
    names = [name for package in PACKAGES if package.module in SHOWN for name in package.names if name in versions]
    return ', '.join(f'{name} {versions[name]}' for name in names)


def run_python(python: Path, code: str) -> str:
    """Return what Python prints."""
    return subprocess.run([str(python), '-c', code], check=True, capture_output=True, text=True).stdout


def run_pytest(python: Path, tests: Sequence[str], log: Path) -> str:
    """Run pytest in the root of the repository, its output in a log file; return the outcome."""
    start, report = time.monotonic(), log.with_suffix('.xml')
    report.unlink(missing_ok=True)
    command = [str(python), '-m', 'pytest', '-n', WORKERS, '-p', 'no:cacheprovider', f'--junitxml={report}', *tests]
    with log.open('w') as stream:
        code = subprocess.run(command, cwd=ROOT, stdout=stream, stderr=subprocess.STDOUT).returncode
    if not report.is_file():
        return f'pytest ended with status {code}'
    return f'{read_report(report)} in {(time.monotonic() - start) / 60:.0f} min'


def read_report(report: Path) -> str:
    """Return the counts in a report in JUnit's format, and the names of what failed."""
    cases = list(ElementTree.parse(report).iter('testcase'))
    skipped = [case for case in cases if case.find('skipped') is not None]
    failed = [case for case in cases if case.find('failure') is not None or case.find('error') is not None]
    names = ', '.join(dict.fromkeys(case.get('name').partition('[')[0] for case in failed))
    num_passed = len(cases) - len(skipped) - len(failed)
    return (
        f'{num_passed} passed, ' + (f'{len(failed)} failed ({names}), ' if failed else '') + f'{len(skipped)} skipped'
    )


# The page

TITLES = ('environment', 'what', 'Python', 'versions', 'tests', 'outcome')
HEAD = """# Versions

`setup.py` holds the ranges that are supported, `constraints.txt` the exact set that `make` installs. `make matrix`
makes a virtual environment for each row below, installs the package as a user would, runs the tests and writes the row.
All rows take an hour or two; `python tools/matrix.py oldest onedl` runs two of them, and
`python tools/matrix.py py312 --pytest tests/test_hooks.py` one file in one. These are from Linux without a GPU.

"""
DOCTOR = """
## The doctor

    python -m convnext_dense.compat.doctor

prints the installed versions and whether they are in the supported ranges, who serves the ops of mmcv, each patch with
the reason why it is active or not, and the GPU; it tries torchvision's ops, the backbone, detectors and segmentors, and
ends with what does not work and the cure. The exit status is 0 where all that is installed works. A compiled
`mmcv._ext` always comes before torchvision.

## The onedl forks

They have the same modules as the originals, so the originals have to go:

    pip install -e '.[mm]'
    pip uninstall --yes {originals}
    pip install {forks}

pip builds `onedl-mmcv` without its ops where it finds no wheel for the PyTorch at hand; they are then served by
torchvision. The forks have a few more configs, and their DINO has 0.1 M parameters more than the pages here say.

## Known not to work

Importing `convnext_dense` says so in one line where one of these is installed, where torchvision does not fit PyTorch,
or where two packages hold one module.

"""


def format_page(rows: dict[str, Row]) -> str:
    """Return the text of the page, with a row for each environment."""
    listed = [rows.get(each.name, Row(each.name, each.what, each.python)) for each in ENVIRONMENTS]
    failing = [(describe_versions(each), each.why, f'`{each.cure}`', f'<{each.link}>') for each in KNOWN_TO_FAIL]
    instead = next(each.instead for each in ENVIRONMENTS if each.name == 'onedl')
    forks = DOCTOR.format(
        originals=' '.join(name for name, _ in instead), forks=' '.join(f"'{fork}'" for _, fork in instead)
    )
    return HEAD + format_table(TITLES, listed) + forks + format_table(('together', 'why', 'cure', 'source'), failing)


def read_rows() -> dict[str, Row]:
    """Return the rows that the page has."""
    lines = PAGE.read_text().splitlines() if PAGE.is_file() else []
    cells = [line.strip('| ').split(' | ') for line in lines if line.startswith('| ')]
    names = {environment.name for environment in ENVIRONMENTS}
    return {row[0]: Row(*row) for row in cells if row[0] in names and len(row) == len(TITLES)}


def describe_versions(failing: Failing) -> str:
    """Return the ranges that do not work together."""
    return ', '.join(f'{module} {versions}' for module, versions in failing.versions.items())


def format_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [titles, ['---'] * len(titles), *rows]
    return ''.join(f'| {" | ".join(cell or "-" for cell in cells)} |\n' for cells in lines)
