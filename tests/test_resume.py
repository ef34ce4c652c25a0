"""A training that was killed ends with the numbers of one that was not, and what no training can continue from."""

import itertools
import json
import multiprocessing
import random
import re
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import toy_runs
from mmengine.config import Config
from mmengine.dataset import InfiniteSampler

from convnext_dense import UserError
from convnext_dense.compat import read_checkpoint
from convnext_dense.data import write_shapes
from convnext_dense.train import resume
from convnext_dense.train.steps import StepBatches, seed_all

ROOT = Path(__file__).parent.parent
JOBS = Path(__file__).with_name('kill_jobs.py')

ITERS = {'by_iter': True, 'default_hooks.checkpoint': dict(by_epoch=False, interval=3)}
ENDLESS = {'train_dataloader.sampler': dict(type='InfiniteSampler', shuffle=True)}
WORKERS = {'train_dataloader.num_workers': 2}
EMA = [dict(type='EMAHook', momentum=0.1, update_buffers=True)]
CASES = {
    'epochs': {},
    'saves inside of an epoch': {'default_hooks.checkpoint': dict(by_epoch=False, interval=3)},
    'saves at the end of an epoch, by iteration': {'default_hooks.checkpoint': dict(by_epoch=False, interval=4)},
    'epochs, workers': WORKERS,
    'iterations': ITERS,
    'iterations, workers': {**ITERS, **WORKERS},
    'endless sampler, workers': {**ITERS, **ENDLESS, **WORKERS},
    'endless sampler, accumulation': {**ITERS, **ENDLESS, 'optim_wrapper.accumulative_counts': 5},
    'epochs, accumulation': {'optim_wrapper.accumulative_counts': 3},
    'averaged weights': {'custom_hooks': EMA},
    'a seed for each process': {'randomness.diff_rank_seed': True},
    'incomplete batches left out': {'train_dataloader.drop_last': True},
}


def numbers_in(tree, name=''):
    """Yield the tensors and numbers in nested containers."""
    if isinstance(tree, torch.Tensor | int | float):
        yield name, torch.as_tensor(tree)
    parts = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list | tuple) else ()
    for key, part in parts:
        yield from numbers_in(part, f'{name}.{key}')


def assert_same(one: Path, other: Path) -> None:
    """Compare every bit of weights, averages, optimizer and schedules."""
    states = [read_checkpoint(file) for file in (one, other)]
    first, second = (
        {name: number for key in state for name, number in numbers_in(state[key], key) if key not in LOGS}
        for state in states
    )
    assert states[0]['meta']['iter'] == states[1]['meta']['iter']
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


LOGS = ('meta', 'message_hub')


def newest(folder: Path) -> Path:
    return folder / Path((folder / 'last_checkpoint').read_text()).name


# the workers of a loader that is left in the middle live on for seconds
@pytest.mark.parametrize(
    'name', [pytest.param(name, marks=pytest.mark.slow) if 'workers' in name else name for name in CASES]
)
def test_a_training_that_was_killed_ends_like_one_that_was_not(name, tmp_path):
    options = CASES[name]
    toy_runs.train(tmp_path, 'whole', **options)
    for step in (7, 11):  # killed before it
        assert toy_runs.train(tmp_path, 'killed', kill=step, **options) is None
    toy_runs.train(tmp_path, 'killed', **options)
    assert_same(newest(tmp_path / 'whole'), newest(tmp_path / 'killed'))


def test_the_seed_of_the_first_run_is_taken_where_the_config_has_none(tmp_path):
    toy_runs.train(tmp_path, 'killed', kill=9, **{'randomness.seed': None})
    seed = read_checkpoint(newest(tmp_path / 'killed'))['meta']['seed']
    toy_runs.train(tmp_path, 'killed', **{'randomness.seed': None})
    toy_runs.train(tmp_path, 'whole', **{'randomness.seed': seed})
    assert_same(newest(tmp_path / 'whole'), newest(tmp_path / 'killed'))


@pytest.mark.parametrize('by_iter', [False, True])
def test_workers_change_nothing(by_iter, tmp_path):
    for num_workers in (0, 2):
        splits = ('train', 'val')
        options = {f'{split}_dataloader.num_workers': num_workers for split in splits}
        options |= {f'{split}_dataloader.persistent_workers': num_workers > 0 for split in splits}
        runner = toy_runs.train(tmp_path, str(num_workers), by_iter=by_iter, **options)
        assert not multiprocessing.active_children()  # they have ended with the run, not with the runner
        del runner
    assert_same(newest(tmp_path / '0'), newest(tmp_path / '2'))


def test_steps_differ_from_each_other():
    drawn = {
        (torch.rand(1).item(), np.random.rand())
        for numbers in itertools.product(range(3), repeat=4)
        if not seed_all(*numbers)
    }
    assert len(drawn) == 81


def test_data_that_were_seen_are_skipped_at_once():
    """A hundred thousand steps of sixteen images of COCO."""
    begin = time.monotonic()
    sampler = InfiniteSampler(range(117_266), seed=1)
    batch = next(iter(StepBatches(sampler, 16, step=100_000, endless=True)))
    assert time.monotonic() - begin < 5
    assert batch == list(itertools.islice(InfiniteSampler(range(117_266), seed=1), 1_600_000, 1_600_016))
    assert batch.seed[2] == 100_000


def test_an_empty_dataset_gives_no_batches():
    assert list(StepBatches([], 2, endless=True)) == []


# What a training continues from


def change(file: Path, **entries) -> None:
    """Change entries of a checkpoint; None takes one out."""
    checkpoint = read_checkpoint(file)
    checkpoint.update(entries)
    torch.save({key: value for key, value in checkpoint.items() if value is not None}, file)


def flip_a_byte(file: Path, place: float = 0.5) -> None:
    """Change a byte in the middle of a record."""
    with zipfile.ZipFile(file) as archive:
        records = [record for record in archive.infolist() if record.file_size]
        record = records[round((len(records) - 1) * place)]
        content = bytearray(file.read_bytes())
        begin = content.index(archive.read(record), record.header_offset)
    content[begin + record.file_size // 2] ^= 1
    file.write_bytes(content)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A run with all its checkpoints, and the best."""
    folder = tmp_path_factory.mktemp('trained')
    options = {'max_keep_ckpts': -1, 'save_best': 'score', 'rule': 'greater'}
    toy_runs.train(folder, **{f'default_hooks.checkpoint.{key}': value for key, value in options.items()})
    return folder / 'run'


@pytest.fixture
def run(trained, tmp_path):
    """A copy of it."""
    return Path(shutil.copytree(trained, tmp_path / 'run'))


def found(run: Path, given: str | None = 'auto') -> tuple[str, list[str]]:
    """Return the name of the checkpoint from which a training continues, and the notes."""
    cfg = Config(dict(work_dir=str(run), param_scheduler=[dict(type='LinearLR')]))
    notes = resume.resume_training(cfg, given)
    return Path(cfg.load_from).name if cfg.resume else '', notes


def test_the_newest_checkpoint_is_taken_whatever_the_note_says(run):
    assert found(run) == ('epoch_4.pth', [])
    for note in ('', 'junk \0', '/moved/away/epoch_4.pth', '/moved/epoch_9.pth', 'x' * 5000):
        (run / 'last_checkpoint').write_text(note)
        assert found(run)[0] == 'epoch_4.pth'
    (run / 'last_checkpoint').write_bytes(b'\xff\xfe')
    assert found(run)[0] == 'epoch_4.pth'
    (run / 'last_checkpoint').write_text('epoch_2.pth')  # of a training that began again there
    assert found(run)[0] == 'epoch_2.pth'
    (run / 'last_checkpoint').unlink()
    (run / 'last_checkpoint').mkdir()
    assert found(run)[0] == 'epoch_4.pth'


def test_the_latest_checkpoint_is_found_after_a_move(tmp_path):
    assert not resume.candidates(tmp_path)
    for name in ('epoch_9.pth', 'epoch_10.pth'):
        (tmp_path / name).touch()
    assert resume.candidates(tmp_path)[0] == tmp_path / 'epoch_10.pth'
    (tmp_path / 'last_checkpoint').write_text('/where/it/was/epoch_9.pth')
    assert resume.candidates(tmp_path)[0] == tmp_path / 'epoch_9.pth'


def test_damaged_checkpoints_are_passed_over_and_named(run):
    flip_a_byte(run / 'epoch_4.pth')
    (run / 'epoch_3.pth').write_bytes((run / 'epoch_3.pth').read_bytes()[:5000])
    name, notes = found(run)
    assert name == 'epoch_2.pth'
    assert ['epoch_4.pth' in notes[0], 'epoch_3.pth' in notes[1], len(notes)] == [True, True, 2]
    assert all(note.startswith('passed over: ') for note in notes)
    for number in (1, 2):
        (run / f'epoch_{number}.pth').write_bytes(b'')
    with pytest.raises(UserError, match=r'No checkpoint in .* is sound, .* another --work-dir'):
        found(run)


@pytest.mark.parametrize('place', [0, 0.3, 0.5, 0.7, 1])
def test_a_flipped_bit_is_found(place, run):
    flip_a_byte(run / 'epoch_4.pth', place)
    with pytest.raises(UserError, match=r'epoch_4\.pth'):
        found(run, str(run / 'epoch_4.pth'))


def test_checkpoints_of_another_place_and_name_are_found(run, tmp_path):
    elsewhere = tmp_path / 'elsewhere/run'
    elsewhere.mkdir(parents=True)
    shutil.move(run / 'epoch_4.pth', elsewhere / 'step-4.pth')
    hook = dict(out_dir=str(elsewhere.parent), filename_tmpl='step-{}.pth')
    (run / 'last_checkpoint').write_text(str(elsewhere / 'step-4.pth'))
    cfg = Config(dict(work_dir=str(run), default_hooks=dict(checkpoint=hook)))
    resume.resume_training(cfg, 'auto')
    assert cfg.load_from == str(elsewhere / 'step-4.pth')


def nan_like(state: dict) -> dict:
    first = state['state'][0]
    return {**state, 'state': {**state['state'], 0: {**first, 'exp_avg': first['exp_avg'] * torch.nan}}}


@pytest.mark.parametrize(
    ('entries', 'message'),
    [
        (lambda given: dict(optimizer=None), 'has no state of the optimizer: no training can continue from it'),
        (lambda given: dict(param_schedulers=None, message_hub=None), 'has no log, no schedules'),
        (lambda given: dict(meta={}), 'does not say how far'),
        (lambda given: dict(meta=dict(epoch=1, iter=-1)), 'does not say how far'),
        (
            lambda given: dict(optimizer=nan_like(given['optimizer'])),
            r'NaN or infinity .* optimizer\.state\.0\.exp_avg',
        ),
    ],
)
def test_what_a_checkpoint_lacks_is_named(entries, message, run):
    file = run / 'epoch_4.pth'
    change(file, **entries(read_checkpoint(file)))
    with pytest.raises(UserError, match=message):
        found(run, str(file))
    name, notes = found(run)
    assert (name, len(notes)) == ('epoch_3.pth', 1)


def test_the_best_checkpoint_starts_a_training_but_continues_none(run):
    (best,) = run.glob('best_*.pth')
    with pytest.raises(UserError, match=r'has no state of the optimizer, no schedules: .* load_from=.*best_score'):
        found(run, str(best))


def test_a_training_that_has_ended_is_told_and_does_nothing(run):
    before = (run / 'epoch_4.pth').read_bytes()
    cfg = Config(dict(work_dir=str(run), train_cfg=dict(by_epoch=True, max_epochs=4)))
    (note,) = resume.resume_training(cfg, 'auto')
    assert note.endswith('epoch_4.pth has done all 4 epochs of the training: nothing is left to train')
    runner = toy_runs.train(run.parent)
    assert runner.iter == 16
    assert (run / 'epoch_4.pth').read_bytes() == before


@pytest.mark.parametrize('num_workers', [0, 1])
def test_a_step_beyond_the_end_ends_at_once(num_workers, tmp_path):
    toy_runs.train(tmp_path, **ITERS)
    file = tmp_path / 'run/iter_16.pth'
    change(file, meta={**read_checkpoint(file)['meta'], 'iter': 10**15})
    begin = time.monotonic()
    toy_runs.train(tmp_path, **ITERS, **{'train_dataloader.num_workers': num_workers})
    assert time.monotonic() - begin < 20


OTHER_GROUPS = {'optim_wrapper.paramwise_cfg': dict(custom_keys=dict(layers=dict(lr_mult=0.5)))}
SCHEDULE = dict(type='ConstantLR', by_epoch=False, begin=0, end=9)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (OTHER_GROUPS, r'its optimizer has 6 parameters in groups of \[6\], this run has 6 in \[1, 1, 1, 1, 1, 1\]'),
        ({'optim_wrapper.optimizer.type': 'SGD'}, 'its optimizer is of another type'),
        ({'param_scheduler': [SCHEDULE, SCHEDULE]}, 'it has 1 schedules, this run has 2'),
        ({'param_scheduler': [SCHEDULE]}, 'its schedules are of other types'),
    ],
)
def test_a_training_of_another_shape_is_refused(options, message, run):
    with pytest.raises(UserError, match=rf'epoch_3\.pth does not fit this run: .*{message}'):
        toy_runs.train(run.parent, resume=str(run / 'epoch_3.pth'), **options)


def test_a_log_of_another_shape_is_refused(run):
    change(run / 'epoch_3.pth', message_hub=dict(log_scalars=3))
    with pytest.raises(UserError, match='its message_hub must hold log_scalars, runtime_info, resumed_keys'):
        toy_runs.train(run.parent, resume=str(run / 'epoch_3.pth'))


def test_a_training_without_schedules_continues(tmp_path):
    toy_runs.train(tmp_path, kill=9, param_scheduler=None)
    assert 'param_schedulers' not in read_checkpoint(newest(tmp_path / 'run'))
    assert toy_runs.train(tmp_path, param_scheduler=None).iter == 16


def test_groups_of_an_older_pytorch_fit(run):
    """Later versions have options that theirs lack."""
    optimizer = read_checkpoint(run / 'epoch_3.pth')['optimizer']
    for group in optimizer['param_groups']:
        group.pop('decoupled_weight_decay', None)
    change(run / 'epoch_3.pth', optimizer=optimizer)
    assert toy_runs.train(run.parent, resume=str(run / 'epoch_3.pth')).iter == 16


def test_checkpoints_of_earlier_versions_continue_with_a_note(run):
    file = run / 'epoch_2.pth'
    change(file, training_state=None)
    assert found(run, str(file)) == ('epoch_2.pth', [f'{file} was not written by this version: {resume.INEXACT}'])
    assert toy_runs.train(run.parent, resume=str(file)).iter == 16


def test_other_data_are_told(run, capfd):
    toy_runs.train(run.parent, resume=str(run / 'epoch_3.pth'), **{'train_dataloader.batch_size': 4})
    assert 'an epoch had 4 batches, now it has 3' in capfd.readouterr().out


def test_another_seed_is_told(run):
    cfg = Config(dict(work_dir=str(run), randomness=dict(seed=99, deterministic=True)))
    assert resume.resume_training(cfg, 'auto') == ['the seed is 5, that of the checkpoint, instead of 99']
    assert cfg.randomness == dict(seed=5, deterministic=True)


# Kills


DETECTOR = """
_base_ = '{root}/configs/det/cascade_convnext_atto_shapes.py'
data = dict(data_root='{shapes}', num_train=8, num_val=2, size=64)
train_dataloader = dict(batch_size=2, num_workers=0, dataset=data)
val_dataloader = val_cfg = val_evaluator = test_dataloader = test_cfg = test_evaluator = None
train_cfg = dict(max_epochs=2)
model = dict(backbone=dict(drop_path_rate=0.3))
default_hooks = dict(checkpoint=dict(interval=1, max_keep_ckpts=1), logger=dict(interval=1))
custom_hooks = [dict(type='CheckWeightsHook')]
"""
SEGMENTOR = """
_base_ = '{root}/configs/seg/upernet_convnext_atto_shapes.py'
data = dict(data_root='{shapes}', num_train=8, num_val=2, size=64)
train_dataloader = dict(batch_size=2, num_workers=2, dataset=data)
val_dataloader = val_cfg = val_evaluator = test_dataloader = test_cfg = test_evaluator = None
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=8)
optim_wrapper = dict(accumulative_counts=3)
model = dict(backbone=dict(drop_path_rate=0.3))
default_hooks = dict(checkpoint=dict(interval=2, max_keep_ckpts=1), logger=dict(interval=1))
custom_hooks = [dict(type='CheckWeightsHook'), dict(type='EMAHook', momentum=0.1, update_buffers=True)]
"""
LABELS_BY_EPOCH = SEGMENTOR.replace(
    "type='IterBasedTrainLoop', max_iters=8", "type='EpochBasedTrainLoop', max_epochs=4"
)
LABELS_BY_EPOCH = LABELS_BY_EPOCH.replace('num_workers=2', "num_workers=2, sampler=dict(type='DefaultSampler')")
BOXES_BY_ITER = DETECTOR.replace('max_epochs=2', "_delete_=True, type='IterBasedTrainLoop', max_iters=12")
BOXES_BY_ITER = BOXES_BY_ITER.replace('interval=1, max', 'by_epoch=False, interval=2, max')


def train_killed(folder: Path, text: str, kills: list[tuple[int, float]], **steps: int) -> None:
    """Train once without a break and once with kills, so many seconds after so many steps each, and compare."""
    for name, number in steps.items():
        text = re.sub(rf'{name}=\d+', f'{name}={number}', text)
    (folder / 'config.py').write_text(
        text.format(root=ROOT, shapes=write_shapes(folder / 'shapes', num_train=8, num_val=2, size=64))
    )
    for name, tries in (('whole', [None]), ('killed', [*kills, None])):
        command = [sys.executable, JOBS, folder / 'config.py', folder / name, json.dumps(tries)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=True)
        assert done.stdout.split() == ['-9'] * len(tries[:-1]) + ['0'], (folder / f'{name}.log').read_text()[-3000:]
    assert 'resumed epoch' in (folder / 'killed.log').read_text()
    assert_same(newest(folder / 'whole'), newest(folder / 'killed'))
    assert not list((folder / 'killed').glob('.*'))


@pytest.mark.slow
@pytest.mark.parametrize(('text', 'steps'), [(DETECTOR, 4), (SEGMENTOR, 3)], ids=['detector', 'segmentor'])
def test_killed_by_the_system(text, steps, tmp_path):
    train_killed(tmp_path, text, [(steps + 1, 0.02)])


@pytest.mark.slow
@pytest.mark.parametrize(
    ('text', 'most', 'steps'),
    [
        (DETECTOR, 5, dict(max_epochs=18)),
        (BOXES_BY_ITER, 3, dict(max_iters=40)),
        (SEGMENTOR, 3, dict(max_iters=41)),
        (LABELS_BY_EPOCH, 3, dict(max_epochs=11)),
    ],
    ids=['detector, epochs', 'detector, iterations', 'segmentor, iterations', 'segmentor, epochs'],
)
def test_killed_by_the_system_again_and_again(text, most, steps, tmp_path):
    """Sixteen kills, before, in and after a save."""
    draw = random.Random(most)
    train_killed(tmp_path, text, [(draw.randint(1, most), draw.uniform(0, 0.4)) for _ in range(16)], **steps)
