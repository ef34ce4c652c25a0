"""A training that is told to stop, that waits in vain, or whose worker dies: what it leaves, and with which code."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import toy_runs
from mmengine.config import Config
from mmengine.registry import DATASETS
from test_resume import assert_same, newest

from convnext_dense import UserError, cli
from convnext_dense.compat import read_checkpoint
from convnext_dense.compat.errors import NotFiniteError, RunStopped
from convnext_dense.train import ends, mistakes, resume

ROOT = Path(__file__).parent.parent
EMA = dict(type='EMAHook', momentum=0.1, update_buffers=True)
ITERS = {'by_iter': True, 'default_hooks.checkpoint': dict(by_epoch=False, interval=6)}
BEST = {'default_hooks.checkpoint.save_best': 'score', 'default_hooks.checkpoint.rule': 'greater'}


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(toy_runs.SignalHook, 'done', False)


def stop(folder: Path, number: int, step: int, hooks=(), options=None, **where) -> RunStopped:
    """Train until a signal comes; return how the training ended."""
    told = dict(type='SignalHook', number=int(number), step=step, **where)
    with pytest.raises(RunStopped) as stopped:
        toy_runs.train(folder, 'stopped', custom_hooks=[*hooks, told], **(options or {}))
    return stopped.value


HOLDER = """
import sys
from pathlib import Path
from convnext_dense.train.launch import alone_in
with alone_in(Path(sys.argv[1])):
    print('in it', flush=True)
    input()
"""


def test_a_work_dir_has_one_training_at_a_time(tmp_path):
    (tmp_path / 'run').mkdir()
    other = subprocess.Popen(
        [sys.executable, '-c', HOLDER, str(tmp_path / 'run')], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with other:
        other.stdout.readline()
        with pytest.raises(UserError, match=f'process {other.pid} on .*--work-dir'):
            toy_runs.train(tmp_path, 'run')
        assert [file.name for file in (tmp_path / 'run').iterdir()] == ['.training']
        other.kill()
    toy_runs.train(tmp_path, 'run')
    assert not (tmp_path / 'run/.training').exists()


CASES = {  # what is trained -> options, hooks
    'epochs': ({}, []),
    'iterations': (ITERS, []),
    'a sum of gradients and averages': ({'optim_wrapper.accumulative_counts': 3}, [EMA]),
}


@pytest.mark.parametrize('name', CASES)
@pytest.mark.parametrize(('number', 'code'), [('SIGTERM', 75), ('SIGUSR1', 75), ('SIGINT', 130)])
def test_a_signal_finishes_the_step_and_saves(number, code, name, tmp_path, capfd):
    options, hooks = CASES[name]
    stopped = stop(tmp_path, getattr(signal, number), 5, hooks, options)
    file = tmp_path / 'stopped/iter_6.pth'
    assert (stopped.code, str(stopped)) == (
        code, f'{number}: the training stopped after 6 steps. It continues from {file} with --resume.',
    )  # fmt: skip
    assert read_checkpoint(file)['meta']['iter'] == 6
    assert f'{number}: the step is finished and saved' in capfd.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    toy_runs.train(tmp_path, 'stopped', custom_hooks=hooks, **options)  # follows the advice
    toy_runs.train(tmp_path, 'whole', custom_hooks=hooks, **options)
    assert_same(newest(tmp_path / 'whole'), newest(tmp_path / 'stopped'))
    names = [sorted(file.name for file in (tmp_path / run).glob('*.pth')) for run in ('whole', 'stopped')]
    assert names[0] == names[1]  # the file of the signal has gone


def test_a_step_that_is_saved_is_not_saved_again(tmp_path):
    stopped = stop(tmp_path, signal.SIGTERM, 3)
    assert str(stopped).endswith('epoch_1.pth with --resume.')
    assert [file.name for file in (tmp_path / 'stopped').glob('*.pth')] == ['epoch_1.pth']


@pytest.mark.parametrize('place', ['before_val', 'after_val_iter'])
def test_a_validation_that_a_signal_breaks_off_is_made_up_for(place, tmp_path):
    options = {**BEST, 'default_hooks.checkpoint.interval': 2}
    stopped = stop(tmp_path, signal.SIGTERM, 4, [EMA], options, place=place)
    assert 'continues from' in str(stopped)
    assert 'iter_4.pth' in str(stopped)
    assert not list((tmp_path / 'stopped').glob('best_*'))
    toy_runs.train(tmp_path, 'stopped', kill=4, custom_hooks=[EMA], **options)
    assert [file.name for file in (tmp_path / 'stopped').glob('best_*')] == ['best_score_epoch_1.pth']
    toy_runs.train(tmp_path, 'stopped', custom_hooks=[EMA], **options)
    toy_runs.train(tmp_path, 'whole', custom_hooks=[EMA], **options)
    assert_same(newest(tmp_path / 'whole'), newest(tmp_path / 'stopped'))


def test_a_second_interrupt_ends_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(ends, 'REPEATED', 0.1)
    stopped = stop(tmp_path, signal.SIGINT, 9, place='before_train_iter', repeated=0.2)
    assert stopped.code == 130
    assert str(stopped).startswith('The training was interrupted in step 10. It continues from ')
    assert str(stopped).endswith('epoch_2.pth with --resume.')
    assert [file.name for file in (tmp_path / 'stopped').glob('iter*')] == []


def test_an_interrupt_that_a_launcher_repeats_is_one(tmp_path):
    stopped = stop(tmp_path, signal.SIGINT, 9, repeated=0.0)
    assert str(stopped).endswith('iter_10.pth with --resume.')


def test_nothing_is_promised_where_nothing_was_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(ends, 'save_here', lambda runner: None)
    assert str(stop(tmp_path, signal.SIGTERM, 1)).endswith('No checkpoint was written yet.')


def test_a_full_disk_does_not_hide_the_signal(tmp_path, monkeypatch, capfd):
    def refuse(*args, **kwargs):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(toy_runs.runs.RUNNERS.get('OneLineRunner'), '_save_checkpoint', refuse)
    assert stop(tmp_path, signal.SIGTERM, 1).code == 75
    assert 'iter_2.pth was not saved: [Errno 28] No space left on device' in capfd.readouterr().out


@pytest.mark.parametrize(
    ('error', 'code', 'said'),
    [
        (RunStopped(75, 'SIGTERM: stopped.'), 75, 'SIGTERM: stopped.'),
        (NotFiniteError('NaN.'), 3, 'error: NaN.'),
        (UserError('Wrong.'), 2, 'error: Wrong.'),
        (KeyboardInterrupt(), 130, 'interrupted'),
    ],
)
def test_exit_codes(error, code, said, capsys):
    with pytest.raises(SystemExit) as left, cli.user_errors():
        raise error
    assert left.value.code == code
    assert capsys.readouterr().err.startswith(said)


# Data that do not come


@DATASETS.register_module()
class HangingDataset(toy_runs.ToyDataset):
    """A dataset of files, of which one makes its worker hang or die."""

    METAINFO = dict(classes=('a',))
    end = 'hang'

    def get_data_info(self, idx):
        return {**super().get_data_info(idx), 'img_path': f'{idx}.jpg'}

    def prepare_data(self, idx):
        if idx == 7:
            time.sleep(3) if self.end == 'hang' else os.kill(os.getpid(), signal.SIGKILL)
        return super().prepare_data(idx)


@DATASETS.register_module()
class DyingDataset(HangingDataset):
    """A dataset whose worker is killed, as by a system whose memory is full."""

    end = 'die'


@pytest.mark.parametrize(
    ('dataset', 'message'),
    [
        (
            'HangingDataset',
            r'No data came within 2.* s: a worker of the data loader hangs over the images .*7\.jpg.* of step 3',
        ),
        (
            'DyingDataset',
            r'A worker of the data loader (is killed by signal: Killed|exited unexpectedly).*: most often the memory',
        ),
    ],
)
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')  # it was told within a finalizer
def test_a_worker_that_does_not_answer_ends_the_run(dataset, message, tmp_path):
    options = {
        'train_dataloader.num_workers': 1,
        'train_dataloader.dataset.type': dataset,
        'train_dataloader.sampler.shuffle': False,
        'env_cfg': dict(dist_cfg=dict(timeout=2)),
        'default_hooks.checkpoint': dict(by_epoch=False, interval=1),
    }
    with pytest.raises(UserError, match=message) as error:
        toy_runs.train(tmp_path, **options)
    assert 'continues from' in str(error.value) or 'No checkpoint was written yet' in str(error.value)
    assert not multiprocessing.active_children()  # although the error still holds the frames of the loop


def test_a_worker_that_dies_while_the_config_is_formatted():
    error = SyntaxError('Failed to format the config file')  # as MMEngine says it, of what yapf makes of PyTorch's
    error.__context__ = IndexError('tuple index out of range')
    error.__context__.__context__ = RuntimeError('DataLoader worker (pid 8) is killed by signal: Killed. ')
    with pytest.raises(UserError, match='is killed by signal: Killed'), mistakes.run_errors():
        raise error


def test_a_worker_that_dies_while_its_batch_is_taken_over():
    def rebuild_storage_fd():  # as PyTorch calls it
        raise ConnectionResetError(104, 'Connection reset by peer')

    with pytest.raises(UserError, match='A worker of the data loader exited unexpectedly'), mistakes.run_errors():
        rebuild_storage_fd()
    with pytest.raises(ConnectionError), mistakes.run_errors():
        raise ConnectionResetError(104, 'Connection reset by peer')


# Several processes


def start(folder: Path, job: str, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / 'tools/torchrun.py', '--standalone', '--nproc-per-node', '2', *options]
    command += [ROOT / 'tests/toy_runs.py', folder, job]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_processes_stop_and_skip_together_and_miss_each_other(tmp_path):
    done = start(tmp_path, 'train_with_signals')
    assert 'resumed epoch: 0, iter: 7' in done.stdout
    assert_same(newest(tmp_path / 'spoilt'), newest(tmp_path / 'stopped'))
    reports = [sorted(file.name for file in (tmp_path / run / 'nonfinite').iterdir()) for run in ('spoilt', 'stopped')]
    names = ['step_0000003_process_1.json', 'step_0000005_process_0.json', 'step_0000005_process_1.json']
    assert reports == [names, names]  # the first one adds to the sum of which the others tell
    assert done.returncode == 2
    assert 'error: Process 1 of 2 did not come to the next step within 4 s' in done.stderr
    assert 'Traceback' not in done.stderr


@pytest.mark.slow
def test_torchrun_brings_a_killed_process_back(tmp_path):
    """With saves inside of a sum of gradients, which each process has for itself."""
    done = start(tmp_path, 'train_and_die', '--max-restarts', '1')
    assert done.returncode == 0, done.stderr[-3000:]
    assert 'resumed epoch: 0, iter: 6' in done.stdout
    assert_same(newest(tmp_path / 'whole'), newest(tmp_path / 'killed'))


@pytest.mark.parametrize('name', resume.RESTARTS)
def test_a_run_that_a_launcher_starts_again_resumes(name, tmp_path, monkeypatch):
    cfg = Config(dict(work_dir=str(tmp_path)))
    monkeypatch.setenv(name, '0')
    assert resume.resume_training(cfg, None) == []
    monkeypatch.setenv(name, '2')
    assert resume.resume_training(cfg, None) == [f'nothing to resume in {tmp_path}: training starts from the beginning']
