"""The table of environments, its page, and what is made of pip, pytest and a missing Python; no real environment."""

import json
import re
import runpy
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from convnext_dense.compat import matrix
from convnext_dense.compat.matrix import ENVIRONMENTS, TITLES, Row, StepFailed
from convnext_dense.compat.versions import FORKS, KNOWN_TO_FAIL, OURS

TOOL = Path(__file__).parents[1] / 'tools/matrix.py'
BY_NAME = {environment.name: environment for environment in ENVIRONMENTS}


@pytest.fixture
def page(tmp_path, monkeypatch):
    monkeypatch.setattr(matrix, 'PAGE', tmp_path / 'versions.md')
    return tmp_path / 'versions.md'


def python_that(folder: Path, name: str, script: str) -> Path:
    """Write a program that stands for an interpreter."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f'#!/bin/sh\n{script}\n')
    (folder / name).chmod(0o755)
    return folder / name


def test_the_table():
    assert len(BY_NAME) == len(ENVIRONMENTS)
    classifiers = metadata.metadata(OURS).get_all('Classifier')
    assert {f'Programming Language :: Python :: {each.python}' for each in ENVIRONMENTS} == set(classifiers)
    for environment in ENVIRONMENTS:
        assert all(Path(matrix.ROOT / test).is_file() for test in environment.tests)
        assert all(Requirement(requirement) for requirement in environment.requirements)


def test_the_page_has_the_rows_of_the_table():
    text = matrix.PAGE.read_text() if matrix.PAGE.is_file() else ''
    rows = matrix.read_rows()
    assert list(rows) == list(BY_NAME), 'run make matrix'
    for environment in ENVIRONMENTS:
        assert rows[environment.name].what == environment.what
        assert rows[environment.name].python.startswith(environment.python)
    for failing in KNOWN_TO_FAIL:
        assert f'| {matrix.describe_versions(failing)} | {failing.why} | `{failing.cure}` |' in text, 'run make matrix'
    for fork, versions in FORKS.items():
        assert f"'{fork}{versions}'" in text
    assert text == matrix.format_page(rows), 'the page is not what the tool writes'


def test_pip_is_called_as_a_user_would():
    assert matrix.pip_calls(BY_NAME['py312']) == [['install', '-e', '.[mm,dev]']]
    assert matrix.pip_calls(BY_NAME['core']) == [['install', '-e', '.', 'pytest', 'pytest-xdist', 'timm']]
    (install,) = matrix.pip_calls(BY_NAME['oldest'])
    assert {'torch==2.4', 'torchvision==0.19', 'numpy==1.26', 'mmengine==0.10.7', 'mmdet==3.3'} < set(install)
    assert len(install) == len(set(install))
    _, uninstall, forks = matrix.pip_calls(BY_NAME['onedl'])
    assert uninstall == ['uninstall', '--yes', 'mmengine', 'mmcv-lite', 'mmdet', 'mmsegmentation']
    assert forks == ['install', *(f'{fork}{versions}' for fork, versions in FORKS.items())]


def test_a_row_of_the_page_stays_when_others_are_run(page):
    assert matrix.read_rows() == {}
    row = Row(
        'oldest', 'lower bounds of `setup.py`', '3.10.1', 'torch 2.4.0, numpy 1.26.0', 'all', '3 passed, 0 skipped'
    )
    page.write_text(matrix.format_page({'oldest': row}))
    assert matrix.read_rows()['oldest'] == row
    assert matrix.read_rows()['py310'] == Row('py310', 'newest of all', '3.10', '-', '-', 'not run yet')
    page.write_text(matrix.format_page({**matrix.read_rows(), 'onedl': row._replace(name='onedl')}))
    assert matrix.read_rows()['oldest'] == row
    assert list(matrix.read_rows()) == list(BY_NAME)
    assert f'| {" | ".join(TITLES)} |\n' in page.read_text()


def test_a_missing_python_is_said(tmp_path, monkeypatch):
    python_that(tmp_path / 'shims', 'python3.99', 'exit 127')
    monkeypatch.setenv('PATH', str(tmp_path / 'shims'))
    with pytest.raises(StepFailed, match=r'^no Python 3\.99 here$'):
        matrix.make_venv('3.99', tmp_path / 'place')


def test_the_first_python_that_runs_is_taken(tmp_path, monkeypatch):
    python_that(tmp_path / 'shims', 'python3.99', 'exit 127')
    python_that(tmp_path / 'real', 'python3.99', f'echo "$@" >> {tmp_path}/calls')
    monkeypatch.setenv('PATH', f'{tmp_path}/shims:{tmp_path}/real')
    assert matrix.make_venv('3.99', tmp_path / 'place') == tmp_path / 'place/bin/python'
    assert (tmp_path / 'calls').read_text().splitlines()[-1] == f'-m venv --clear {tmp_path}/place'


def test_the_last_error_of_pip_is_said(tmp_path):
    python = python_that(tmp_path, 'python', 'echo "ERROR: one" >&2; echo "ERROR: no torch==9" >&2; echo x >&2; exit 1')
    with pytest.raises(StepFailed, match='^cannot be installed: ERROR: no torch==9$'):
        matrix.run_pip(python, ['install', 'torch==9'])
    with pytest.raises(StepFailed, match='^cannot be installed: pip failed$'):
        matrix.run_pip(python_that(tmp_path, 'python', 'exit 1'), [])


def test_installed_versions_are_those_of_the_stack(tmp_path):
    versions = {'numpy': '2.4.6', 'Torch': '2.14.1', 'six': '1.17.0'}
    listed = json.dumps([{'name': name, 'version': version} for name, version in versions.items()])
    assert matrix.installed_versions(python_that(tmp_path, 'python', f"echo '{listed}'")) == 'torch 2.14.1, numpy 2.4.6'


REPORT = """<testsuites><testsuite tests="5">
<testcase name="test_a"/><testcase name="test_b[1]"><failure>x</failure></testcase>
<testcase name="test_b[2]"><failure>x</failure></testcase><testcase name="test_c"><error>x</error></testcase>
<testcase name="test_d"><skipped/></testcase>
</testsuite></testsuites>"""


def test_reports_are_counted(tmp_path):
    (tmp_path / 'all.xml').write_text(REPORT)
    assert matrix.read_report(tmp_path / 'all.xml') == '1 passed, 3 failed (test_b, test_c), 1 skipped'


def test_pytest_runs_in_the_repository(tmp_path, monkeypatch):
    monkeypatch.setattr(matrix, 'ROOT', tmp_path)
    (tmp_path / 'test_one.py').write_text('def test_one():\n    assert True\n\ndef test_two():\n    assert False\n')
    outcome = matrix.run_pytest(Path(sys.executable), ['test_one.py'], tmp_path / 'log')
    assert outcome == '1 passed, 1 failed (test_two), 0 skipped in 0 min'
    assert '1 failed, 1 passed' in (tmp_path / 'log').read_text()
    outcome = matrix.run_pytest(python_that(tmp_path, 'python', 'exit 134'), [], tmp_path / 'log')
    assert outcome == 'pytest ended with status 134'


def test_a_run_writes_its_rows_and_removes_what_it_made(page, tmp_path, monkeypatch, capsys):
    def make_venv(version, place):
        if version == '3.13':
            raise StepFailed('no Python 3.13 here')
        place.mkdir(parents=True)
        return place / 'python'

    monkeypatch.setattr(matrix, 'make_venv', make_venv)
    monkeypatch.setattr(matrix, 'run_pip', lambda python, arguments: '[]')
    monkeypatch.setattr(matrix, 'run_python', lambda python, code: '3.10.13\n')
    monkeypatch.setattr(matrix, 'run_pytest', lambda python, tests, log: f'{len(tests)} passed, 0 skipped in 1 min')
    assert matrix.run_matrix(['core', 'oldest'], tmp_path, keep=False, tests=[])
    assert not (tmp_path / 'core').exists()
    assert matrix.read_rows()['core'].outcome == '3 passed, 0 skipped in 1 min'
    assert matrix.read_rows()['oldest'].tests == 'all fast tests'
    assert matrix.read_rows()['oldest'].python == '3.10.13'
    assert not matrix.run_matrix(['py313', 'py312'], tmp_path, keep=True, tests=['-k', 'nan'])
    assert (tmp_path / 'py312').exists()
    assert matrix.read_rows()['py312'].tests == '-k nan'
    assert matrix.read_rows()['py313'].outcome == 'no Python 3.13 here'
    assert capsys.readouterr().out.splitlines()[-1] == 'py313: no Python 3.13 here'


@pytest.mark.parametrize(
    ('options', 'call'),
    [
        ([], (list(BY_NAME), matrix.FOLDER, False, [])),
        (
            ['oldest', '--keep', '--pytest', 'tests/a.py', '-k', 'x'],
            (['oldest'], matrix.FOLDER, True, ['tests/a.py', '-k', 'x']),
        ),
        (['--folder', '/tmp', 'core'], (['core'], Path('/tmp'), False, [])),
    ],
)
def test_the_tool(options, call, monkeypatch):
    calls = []
    monkeypatch.setattr(matrix, 'run_matrix', lambda *arguments: calls.append(arguments) or True)
    monkeypatch.setattr(sys, 'argv', ['matrix.py', *options])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(TOOL), run_name='__main__')
    assert ended.value.code == 0
    assert calls == [call]


def test_the_tool_knows_its_names(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['matrix.py', 'py27'])
    with pytest.raises(SystemExit):
        runpy.run_path(str(TOOL), run_name='__main__')
    assert re.search(r"invalid choice: '?py27'? \(choose from '?py310", capsys.readouterr().err)


def test_make_matrix_is_the_tool():
    command = ['make', '--dry-run', '--no-print-directory', 'matrix', 'PYTHON=python']
    made = subprocess.run(command, cwd=matrix.ROOT, capture_output=True, text=True)
    assert made.stdout.strip() == 'python tools/matrix.py'
