"""What docs/weights.md shows is what happens: its sessions and commands run, in their order, in an empty folder."""

import doctest
import re
import runpy
import sys
from pathlib import Path

import pytest

from convnext_dense.weights.convert import TARGETS
from convnext_dense.weights.sources import HOST, PUBLISHED, find_published

ROOT = Path(__file__).parent.parent
PAGE = ROOT / 'docs/weights.md'
TEXT = PAGE.read_text()
# a Python session, or a command and what it prints
BLOCK = re.compile(
    r'```python\n(?P<session>>>> (?s:.)*?)```|^    \$ python (?P<command>.*)\n(?P<output>(?:    .*\n)*)', re.MULTILINE
)
NEEDS_TRAINING = re.compile('work_dirs/|published/')  # that of `make train`, which takes minutes


def test_sessions_and_commands(tmp_path, monkeypatch, capsys):
    pytest.importorskip('transformers')
    monkeypatch.chdir(tmp_path)
    names, run = {}, 0
    for block in BLOCK.finditer(TEXT):
        if block['session']:
            example = doctest.DocTestParser().get_doctest(block['session'], names, PAGE.name, str(PAGE), 0)
            runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
            result = runner.run(example, clear_globs=False)
            assert result.failed == 0, capsys.readouterr().out
            names = example.globs
        elif not NEEDS_TRAINING.search(block['command']):
            tool, *arguments = block['command'].split()
            monkeypatch.setattr(sys, 'argv', [tool, *arguments])
            capsys.readouterr()
            runpy.run_path(str(ROOT / tool), run_name='__main__')
            assert capsys.readouterr().out == re.sub('^    ', '', block['output'], flags=re.MULTILINE)
        run += 1
    assert run >= 5


def test_the_table_of_published_files():
    listed = {}
    for row in re.findall(r'^\| (`.*SIZE.*`) \| (.*) \| (.*) \|$', TEXT, re.MULTILINE):
        templates, sizes, licence = row
        for size, megabytes in re.findall(r'([a-z]+)(?: (\d+))?', sizes):
            for template in re.findall('`(.*?)`', templates):
                assert template.replace('SIZE', size) not in listed
                listed[template.replace('SIZE', size)] = (size, int(megabytes) if megabytes else None, licence)
    assert listed == {name: (file.size, file.megabytes, file.licence) for name, file in PUBLISHED.items()}
    assert f'`{HOST}`' in TEXT


def test_names_exist():
    for path in re.findall(r'(?:tools|configs)/[\w/]+\.py', TEXT):
        assert (ROOT / path).is_file(), path
    for path in re.findall(r'\]\((?!http)([^)]+)\)', TEXT):
        assert (PAGE.parent / path).exists(), path
    for name in re.findall(r'convnext://(\w+)', TEXT):
        assert name == 'NAME' or find_published(name)
    assert re.findall(r'`--to (\w+)`', TEXT) == [*TARGETS]
