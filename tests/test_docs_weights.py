"""What docs/weights.md shows is what happens: its sessions and commands run, in their order, in an empty folder."""

import doctest
import re
from pathlib import Path

import pytest

from convnext_dense import cli
from convnext_dense.weights.convert import TARGETS
from convnext_dense.weights.formats import CC_BY_NC, MIT
from convnext_dense.weights.sources import HOST, PUBLISHED, find_published

PAGE = Path(__file__).parent.parent / 'docs/weights.md'
TEXT = PAGE.read_text()
# a Python session, or a command and what it prints
BLOCK = re.compile(
    r'```python\n(?P<session>>>> (?s:.)*?)```|^    \$ convnext-dense (?P<command>.*)\n(?P<output>(?:    .*\n)*)',
    re.MULTILINE,
)


def test_sessions_and_commands(tmp_path, monkeypatch, capsys):
    pytest.importorskip('transformers')
    monkeypatch.chdir(tmp_path)
    names, commands = {}, []
    for block in BLOCK.finditer(TEXT):
        if block['session']:
            example = doctest.DocTestParser().get_doctest(block['session'], names, PAGE.name, str(PAGE), 0)
            result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, clear_globs=False)
            assert result.failed == 0, capsys.readouterr().out
            names = example.globs
        else:
            commands.append(block['command'].split())
            capsys.readouterr()
            cli.main(arguments=commands[-1])
            expected = re.sub('^    ', '', block['output'], flags=re.MULTILINE)
            shown = capsys.readouterr().out
            assert doctest.OutputChecker().check_output(expected, shown, doctest.ELLIPSIS), shown
    assert [command[0] for command in commands] == ['inspect', 'convert', 'publish']


def test_the_table_of_published_files():
    listed = {}
    for templates, sizes, licence in re.findall(r'^\| (`.*SIZE.*`) \| (.*) \| (.*) \|$', TEXT, re.MULTILINE):
        names = [each.replace('SIZE', size) for each in re.findall('`(.*?)`', templates) for size in sizes.split(', ')]
        listed |= dict.fromkeys(names, licence)
    assert listed == {name: CC_BY_NC if name.startswith('v2') else MIT for name in PUBLISHED}
    assert f'`{HOST}`' in TEXT


def test_names_exist():
    for name in re.findall(r'convnext://(\w+)', TEXT):
        assert name == 'NAME' or find_published(name)
    assert re.findall(r'`--to (\w+)`', TEXT) == [*TARGETS]
