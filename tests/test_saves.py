"""A checkpoint is on the disk before an older one goes, whatever breaks off, and nothing of others is deleted."""

import errno
import os
import pkgutil
import re
import shutil
import time
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import toy_runs
from mmengine.fileio import LocalBackend
from mmengine.runner import Runner

from convnext_dense import UserError
from convnext_dense.compat import files, read_checkpoint
from convnext_dense.compat.checkpoints import check_records
from convnext_dense.train import OneLineRunner, mistakes, saves

FULL = OSError(errno.ENOSPC, 'No space left on device')
KEEP_ONE = {'default_hooks.checkpoint.max_keep_ckpts': 1}
KEEP_BEST = {**KEEP_ONE, 'default_hooks.checkpoint.save_best': 'score', 'default_hooks.checkpoint.rule': 'greater'}


class Saving(OneLineRunner):
    """A runner of which nothing is built."""

    cfg: ClassVar = {}

    def __init__(self):
        pass

    def save(self, folder: Path) -> None:
        self.save_checkpoint(str(folder), 'best.pth', save_optimizer=False)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize('failure', [FULL, KeyboardInterrupt()])
def test_a_save_that_fails_leaves_the_old_checkpoint(failure, tmp_path, monkeypatch):
    def break_off(self, out_dir, filename, *args, **kwargs):
        (Path(out_dir) / filename).write_bytes(b'half of a n')
        raise failure

    (tmp_path / 'best.pth').write_bytes(b'old')
    monkeypatch.setattr(Runner, 'save_checkpoint', break_off)
    is_full = isinstance(failure, OSError)
    answer = pytest.raises(UserError, match='disk of the work dir is full') if is_full else pytest.raises(type(failure))
    with answer, mistakes.run_errors():
        Saving().save(tmp_path)
    assert contents(tmp_path) == {'best.pth': b'old'}


def test_a_save_replaces_the_old_checkpoint_when_it_is_on_the_disk(tmp_path, monkeypatch):
    flushed = []

    def save(self, out_dir, filename, *args, **kwargs):
        assert (tmp_path / 'best.pth').read_bytes() == b'old'
        torch.save({'new': torch.ones(3)}, Path(out_dir) / filename)

    (tmp_path / 'best.pth').write_bytes(b'old')
    monkeypatch.setattr(Runner, 'save_checkpoint', save)
    monkeypatch.setattr(files.os, 'fsync', lambda _: flushed.append((tmp_path / 'best.pth').read_bytes() == b'old'))
    Saving().save(tmp_path)
    assert flushed == [True, False]  # the file, then its name
    assert list(read_checkpoint(tmp_path / 'best.pth')) == ['new']


def test_a_file_that_the_disk_has_changed_does_not_replace_the_old_one(tmp_path, monkeypatch):
    def save(self, out_dir, filename, *args, **kwargs):
        torch.save({'new': torch.ones(300)}, Path(out_dir) / filename)
        content = (Path(out_dir) / filename).read_bytes()
        (Path(out_dir) / filename).write_bytes(content.replace(b'\x80\x3f', b'\x80\x3e', 1))

    (tmp_path / 'best.pth').write_bytes(b'old')
    monkeypatch.setattr(Runner, 'save_checkpoint', save)
    with pytest.raises(OSError, match='gives back other data'):
        Saving().save(tmp_path)
    assert contents(tmp_path) == {'best.pth': b'old'}


STAGES = {  # what a kill leaves -> the call that it breaks off
    'half of the draft': 'mmengine.fileio.LocalBackend.put',
    'the draft, not verified': 'convnext_dense.train.runner.check_records',
    'the draft, not flushed': 'os.fsync',
    'the new checkpoint and the old ones': 'convnext_dense.compat.files.flush_names',
    'the note and the old ones': 'convnext_dense.train.saves.OwnFiles.remove_doomed',
}


@pytest.mark.parametrize('call', [2, 3, 5])
@pytest.mark.parametrize('stage', STAGES)
def test_a_kill_at_any_stage_leaves_a_sound_checkpoint(stage, call, tmp_path, monkeypatch):
    """At a call of a function that a save needs; half-written files stay, as after a kill."""
    place, count = STAGES[stage], iter(range(99))
    original = pkgutil.resolve_name(place)

    def killed(*args, **kwargs):
        if next(count) < call:
            return original(*args, **kwargs)
        if stage == 'half of the draft':
            Path(args[2]).write_bytes(args[1][: len(args[1]) // 2])
        raise toy_runs.Killed

    with monkeypatch.context() as patch:
        patch.setattr(place, killed)
        patch.setattr(files.tempfile, 'TemporaryDirectory', LeftBehind)
        toy_runs.train(tmp_path, **KEEP_BEST)
    run = tmp_path / 'run'
    kept = [file for file in run.glob('epoch_*.pth') if not file.is_dir()]
    assert kept
    for file in [*kept, *run.glob('best_*.pth')]:
        check_records(file)
        read_checkpoint(file)
    assert toy_runs.train(tmp_path, **KEEP_BEST).iter == 16
    assert not list(run.glob('.*'))
    assert (run / 'epoch_4.pth').is_file()


class LeftBehind(files.tempfile.TemporaryDirectory):
    """A temporary folder that stays where a kill breaks off."""

    def __exit__(self, kind, *_):
        if kind is toy_runs.Killed:
            self._finalizer.detach()
        else:
            self.cleanup()


def fill_disk(monkeypatch, *numbers: int) -> None:
    """Let the saves of these numbers, from 0, find a full disk."""
    count, put = iter(range(99)), LocalBackend.put

    def full(self, content, filepath):
        if next(count) not in numbers:
            return put(self, content, filepath)
        Path(filepath).write_bytes(content[:99])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(LocalBackend, 'put', full)


def test_a_run_goes_on_where_the_disk_is_full(tmp_path, monkeypatch, capfd):
    fill_disk(monkeypatch, 1, 2)
    runner = toy_runs.train(tmp_path, **KEEP_ONE)
    shown = capfd.readouterr().out
    for name in ('epoch_2.pth', 'epoch_3.pth'):
        assert len(re.findall(rf'{name} was not saved in \S+ \(No space left on device\): it needs about', shown)) == 1
    assert re.search(r'about \d+\.\d MB, and [\d,.]+ MB are free\. .* The run goes on to its next save\.', shown)
    assert sorted(file.name for file in (tmp_path / 'run').glob('*.pth')) == ['epoch_4.pth']
    assert runner.message_hub.get_info('keep_ckpt_ids') == [4]


def test_earlier_checkpoints_stay_where_the_last_save_fails(tmp_path, monkeypatch):
    fill_disk(monkeypatch, 1, 2, 3)
    with pytest.raises(UserError, match=r'has ended, but its last save failed\. .*epoch_4\.pth was not saved'):
        toy_runs.train(tmp_path, **KEEP_ONE)
    assert [file.name for file in (tmp_path / 'run').glob('*.pth')] == ['epoch_1.pth']
    monkeypatch.undo()
    toy_runs.train(tmp_path, **KEEP_ONE)
    assert [file.name for file in (tmp_path / 'run').glob('*.pth')] == ['epoch_4.pth']


def test_the_best_stays_where_a_better_one_cannot_be_saved(tmp_path, monkeypatch):
    fill_disk(monkeypatch, 4)  # epoch 1, its best, epoch 1 again, epoch 2, its best
    with pytest.raises(UserError, match='The best checkpoint was not saved'):
        toy_runs.train(tmp_path, **KEEP_BEST, **{'train_cfg.max_epochs': 2})
    names = {file.name for file in (tmp_path / 'run').glob('*.pth')}
    assert names == {'epoch_2.pth', 'best_score_epoch_1.pth'}


def test_a_disk_that_is_too_small_is_told_at_the_start(tmp_path, monkeypatch, capfd):
    free = shutil.disk_usage(tmp_path)._replace(free=500)
    monkeypatch.setattr(saves.shutil, 'disk_usage', lambda folder: free)
    toy_runs.train(tmp_path, **KEEP_BEST)
    assert re.search(
        r'The disk of .* may become full: .* \(0\.0 MB each\), and 0\.0 MB are free', capfd.readouterr().out
    )


def test_a_copied_run_leaves_the_first_one_alone(tmp_path):
    toy_runs.train(tmp_path, 'first', kill=9, **KEEP_BEST)
    shutil.copytree(tmp_path / 'first', tmp_path / 'second')
    before = {file.name: file.read_bytes() for file in (tmp_path / 'first').glob('*.pth')}
    toy_runs.train(tmp_path, 'second', **KEEP_BEST)
    assert {file.name: file.read_bytes() for file in (tmp_path / 'first').glob('*.pth')} == before
    names = {file.name for file in (tmp_path / 'second').glob('*.pth')}
    assert names == {'epoch_4.pth', 'best_score_epoch_4.pth'}


@pytest.mark.parametrize('is_folder', [True, False])
def test_what_a_checkpoint_names_is_not_deleted(is_folder, tmp_path):
    precious = tmp_path / 'precious/best_score_epoch_1.pth'
    (precious / 'data' if is_folder else precious.parent).mkdir(parents=True)
    if not is_folder:
        precious.write_text('precious')
    toy_runs.train(tmp_path, kill=9, **KEEP_BEST)
    file = tmp_path / 'run/epoch_2.pth'
    checkpoint = read_checkpoint(file)
    own = tmp_path / 'run/best_notes.pth'
    own.write_text('of the user')
    steps = ['1/../../precious/best_score_epoch_1', '../precious', 2]
    for best in (str(precious), str(own), str(tmp_path / 'run')):
        checkpoint['message_hub']['runtime_info'].update(best_ckpt=best, keep_ckpt_ids=steps)
        torch.save(checkpoint, file)
        toy_runs.train(tmp_path, resume=str(file), **KEEP_BEST)
        assert precious.exists()
        assert own.exists()


def test_drafts_of_killed_runs_go_and_nothing_else(tmp_path):
    run = tmp_path / 'run'
    drafts = ('.epoch_3.pth.ab_cd123', '.best_score_epoch_2.pth.abcd1234')
    others = ('.epoch_3.pth.ABCD1234', '.epoch_3.txt.abcd1234', '.notes.pth.abcd1234', 'epoch_3.pth.abcd1234')
    for name in (*drafts, *others):
        (run / name).mkdir(parents=True)
        (run / name / name[1:-9]).write_text('half')
    full = run / '.epoch_4.pth.abcd1234'
    full.mkdir()
    (full / 'of the user').touch()
    (run / '.epoch_5.pth.abcd1234').touch()
    (run / '.epoch_6.pth.abcd1234').symlink_to(run / others[0])
    toy_runs.train(tmp_path, **{'train_cfg.max_epochs': 1})
    left = {file.name for file in run.iterdir() if 'pth.' in file.name or 'txt.' in file.name}
    assert left == {*others, full.name, '.epoch_5.pth.abcd1234', '.epoch_6.pth.abcd1234'}
    assert list((run / others[0]).iterdir())


def test_fewer_checkpoints_are_kept_from_the_start(tmp_path):
    toy_runs.train(tmp_path, kill=13, **{'default_hooks.checkpoint.max_keep_ckpts': 3})
    assert {file.name for file in (tmp_path / 'run').glob('*.pth')} == {f'epoch_{i}.pth' for i in (1, 2, 3)}
    toy_runs.train(tmp_path, kill=13, **KEEP_ONE)
    assert {file.name for file in (tmp_path / 'run').glob('*.pth')} == {'epoch_3.pth'}


def flips(size: int, number: int) -> list[int]:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(size, (number,), generator=generator).tolist()


def test_every_flipped_bit_in_a_record_is_found(tmp_path):
    """The bytes that no record holds are padding and names, which change no number."""
    file = tmp_path / 'model.pth'
    weights = {'state_dict': {f'layer{i}': torch.randn(50, 50) for i in range(9)}}
    torch.save(weights, file)
    content, num_silent = file.read_bytes(), 0
    for place in flips(len(content), 200):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        file.write_bytes(changed)
        try:
            read = read_checkpoint(file)
        except UserError:
            continue
        num_silent += 1
        assert all(torch.equal(read['state_dict'][name], weight) for name, weight in weights['state_dict'].items())
    assert num_silent < 20


def test_a_file_without_checksums_is_read(tmp_path):
    if not hasattr(torch.serialization, 'set_crc32_options'):
        pytest.skip('this PyTorch always writes them')
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({'a': torch.ones(3)}, tmp_path / 'plain.pth')
    finally:
        torch.serialization.set_crc32_options(True)
    assert read_checkpoint(tmp_path / 'plain.pth')['a'].sum() == 3


def test_checksums_cost_little_and_are_computed_once(tmp_path):
    file = tmp_path / 'large.pth'
    torch.save({'a': torch.randn(12_500_000)}, file)
    begin = time.perf_counter()
    check_records(file)
    first = time.perf_counter() - begin
    check_records(file)
    assert time.perf_counter() - begin - first < first / 3
    assert first < 1
