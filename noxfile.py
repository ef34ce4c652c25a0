"""Run the fast tests on other versions of Python and of the packages: ``nox``, or ``nox -s oldest onedl``.

Each session installs the package as a user would. ``docs/versions.md`` has the outcomes.
"""

import re
import runpy

import nox

PYTHONS = ('3.10', '3.11', '3.12', '3.13')
OPENMMLAB = ('mmengine', 'mmcv-lite', 'mmdet', 'mmsegmentation')
FORKS = [name + versions for name, versions in runpy.run_path('convnext_dense/compat/versions.py')['FORKS'].items()]
# the tests that need no OpenMMLab library besides MMEngine
CORE_TESTS = ('tests/test_backbone.py', 'tests/test_doctor.py', 'tests/test_compat_versions.py')

nox.options.error_on_missing_interpreters = False


def run_tests(session: nox.Session, *tests: str) -> None:
    """Run the tests, or what the command line names after ``--``."""
    session.run('python', '-m', 'convnext_dense.compat.doctor')
    session.run('pytest', '-n', '2', *(session.posargs or tests), env={'OMP_NUM_THREADS': '1'})


@nox.session(python=PYTHONS)
def newest(session: nox.Session) -> None:
    """Run on the newest of all packages."""
    session.install('-e', '.[mm,dev]')
    run_tests(session)


@nox.session(python='3.10')
def oldest(session: nox.Session) -> None:
    """Run on the lower bounds of setup.py."""
    session.install('-e', '.[mm,dev]')
    asked = session.run(
        'python',
        '-c',
        "from importlib.metadata import requires; print(*requires('convnext-dense'), sep='\\n')",
        silent=True,
    )
    # tools of the tests may be of any time
    users = [line for line in asked.splitlines() if 'dev' not in line.partition(';')[2]]
    bounds = (re.match(r'([\w-]+).*?>=([\w.]+)', line) for line in users)
    oldest = {f'{bound[1]}=={bound[2]}' for bound in bounds if bound}
    session.install('-e', '.[mm,dev]', 'transformers<5.8', *oldest)  # later ones need a later PyTorch
    run_tests(session)


@nox.session(python='3.11')
def mmengine_next(session: nox.Session) -> None:
    """Run on the next MMEngine."""
    session.install('-e', '.[mm,dev]', 'mmengine==0.11.0rc3')
    run_tests(session)


@nox.session(python='3.11')
def onedl(session: nox.Session) -> None:
    """Run on the onedl forks, which have the same modules as the originals."""
    session.install('-e', '.[mm,dev]')
    session.run('python', '-m', 'pip', 'uninstall', '--yes', *OPENMMLAB)
    session.install(*FORKS)
    run_tests(session)


@nox.session(python='3.11')
def core(session: nox.Session) -> None:
    """Run without MMDetection and MMSegmentation."""
    session.install('-e', '.', 'pytest', 'pytest-xdist', 'timm')
    run_tests(session, *CORE_TESTS)
