"""The commands, their doors in tools/, and what a mistake looks like."""

import contextlib
import runpy
from pathlib import Path

import pytest

from convnext_dense import UserError, cli

ROOT = Path(__file__).parent.parent
DOORS = {
    'train': 'train', 'test': 'test', 'show_lr': 'show-lr', 'swap_backbone': 'swap', 'convert_checkpoint': 'convert',
    'inspect_checkpoint': 'inspect', 'publish_model': 'publish', 'model_stats': 'stats', 'ladder': 'ladder',
}  # fmt: skip
CONFIG = 'det/cascade_convnext_atto_shapes'


@pytest.fixture
def calls(monkeypatch):
    """Record the options with which a command calls its function."""
    calls = []
    monkeypatch.setattr(cli, 'resolve_name', lambda place: lambda **options: calls.append((place, options)))
    return calls


@pytest.mark.parametrize(('tool', 'command'), DOORS.items())
def test_a_tool_is_the_door_to_its_command(tool, command, monkeypatch, capsys):
    monkeypatch.setattr(cli.sys, 'argv', [f'{tool}.py', '--help'])
    with pytest.raises(SystemExit) as leave:
        runpy.run_path(str(ROOT / f'tools/{tool}.py'), run_name='__main__')
    assert leave.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f'usage: {tool}.py')
    for flags, settings in cli.COMMANDS[command].options:
        assert flags[-1] in shown or settings['help'] == cli.argparse.SUPPRESS or settings.get('metavar') in shown


@pytest.mark.parametrize('name', cli.COMMANDS)
def test_a_command_has_help_and_a_function(name, capsys):
    for words in (['--help'], [name, '--help']):
        with pytest.raises(SystemExit) as leave:
            cli.main(arguments=words)
        assert leave.value.code == 0
        assert f'{name} ' in (shown := capsys.readouterr().out)
    assert shown.startswith(f'usage: convnext-dense {name} ')
    assert callable(cli.resolve_name(cli.COMMANDS[name].function))


def test_default_format_is_allowed():
    parser = cli.option_parser('publish')
    assert parser.parse_args(['in.pth', 'out/', '--format', 'pth']).file_format == 'pth'
    formats = cli.resolve_name('convnext_dense.weights.publish:FORMATS')
    assert parser.parse_args(['in.pth', 'out/']).file_format in formats


@pytest.mark.parametrize(
    ('words', 'place', 'expected'),
    [
        (['train', CONFIG, '--resume', '--amp', '--cfg-options', 'a.b=1', 'c=[2,3]', '--work-dir', 'runs'],
         'convnext_dense.train:train',
         dict(config=CONFIG, resume='auto', amp=True, cfg_options={'a.b': 1, 'c': [2, 3]}, work_dir='runs',
              launcher='none', auto_scale_lr=False, data=None)),
        (['test', CONFIG, 'a.pth', '--tta'], 'convnext_dense.train:test', dict(tta=True, show=False)),
        (['predict', 'a.pth', 'b.png', '--classes', 'a, b c ,d'], 'convnext_dense.report.compare:predict',
         dict(classes=['a', 'b c', 'd'])),
        (['inspect', 'a.pth', '--json'], 'convnext_dense.weights.inspect:describe', dict(as_json=True, keys=False)),
    ],
)  # fmt: skip
def test_options_reach_the_function(words, place, expected, calls):
    cli.main(arguments=words)
    [(found, options)] = calls
    assert found == place
    assert options.items() >= expected.items()


def test_old_launchers_set_the_local_rank(calls, monkeypatch):
    monkeypatch.setenv('LOCAL_RANK', '0')
    monkeypatch.delenv('LOCAL_RANK')
    for rank in ('3', '4'):  # what is set stays
        cli.main('test', [CONFIG, 'x.pth', '--local-rank', rank])
        assert cli.os.environ['LOCAL_RANK'] == '3'
    assert 'local_rank' not in calls[0][1]


def test_trust_holds_during_the_call(monkeypatch):
    inside = []

    @contextlib.contextmanager
    def trust():
        inside.append(True)
        yield
        inside.pop()

    seen = []
    monkeypatch.setattr(cli, 'trust_checkpoints', trust)
    monkeypatch.setattr(cli, 'resolve_name', lambda place: lambda **options: seen.append(bool(inside)))
    cli.main('test', [CONFIG, 'x.pth', '--trust-checkpoint'])
    cli.main('test', [CONFIG, 'x.pth'])
    assert seen == [True, False]


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['trian'], "'trian'"),
        (['show-lr', CONFIG, '--cfg-options', 'epochs'], "KEY=VALUE pairs; got 'epochs'"),
        (['show-lr', 'det/cascade_convnxt_atto_shapes'], 'cascade_convnext_atto_shapes.py'),
        (['inspect', 'nowhere.pth'], 'nowhere.pth'),
        (['convert', 'in.pth', 'out.pth', '--to', 'nobody'], "invalid choice: 'nobody'"),
        (['stats', CONFIG, '--size', '31', '32'], '--size'),
    ],
)
def test_mistakes_end_with_code_2(words, message, capsys):
    with pytest.raises(SystemExit) as leave:
        cli.main(arguments=words)
    assert leave.value.code == 2
    shown = capsys.readouterr().err
    assert 'error: ' in shown
    assert message in shown
    assert 'Traceback' not in shown


def test_traceback_on_demand(monkeypatch):
    monkeypatch.setenv(cli.TRACEBACK_VARIABLE, '1')
    with pytest.raises(UserError, match='nowhere'):
        cli.main('inspect', ['nowhere.pth'])


def test_exit_code_of_the_doctor(monkeypatch):
    monkeypatch.setattr(cli, 'resolve_name', lambda place: lambda: 1)
    with pytest.raises(SystemExit) as leave:
        cli.main(arguments=['doctor'])
    assert leave.value.code == 1


@pytest.fixture
def shared_run(tmp_path, monkeypatch):
    """The environment of a process that torchrun started with others."""
    monkeypatch.setenv('TORCHELASTIC_ERROR_FILE', str(tmp_path / '0/error.json'))


@pytest.mark.parametrize(
    ('words', 'code', 'said'),
    [
        (('train', CONFIG, '--nonsense'), 2, 'error: '),
        (('inspect', 'nowhere.pth'), 2, 'error: '),
        (('show-lr', 'interrupted'), 130, 'interrupted; '),
    ],
)
@pytest.mark.usefixtures('shared_run')
def test_what_ends_all_processes_is_told_once(words, code, said, monkeypatch, capsys):
    def interrupt(**options):
        raise KeyboardInterrupt

    monkeypatch.setattr('convnext_dense.train.run.describe_rates', interrupt)
    for rank in range(2):
        with pytest.raises(SystemExit) as leave:
            cli.main(arguments=words)
        assert leave.value.code == code
        assert (said in capsys.readouterr().err) == (rank == 0)
