"""Checkpoints that were changed: each gives what the sound one gives, bit for bit, or one message that names the file.

HOSTILE_EXAMPLES is the number of files of each kind. A failure names the call that makes its file again.
"""

import contextlib
import functools
import json
import os
import shutil
import signal
import tempfile
import traceback
import warnings
from collections import Counter

import mutated_files
import pytest
import torch
import toy_runs
from mmengine.logging import HistoryBuffer
from mmengine.runner import Runner
from mutated_files import ARCHIVES, BYTES, CODE, CONTENTS, HEADERS, STATES, mutated
from safetensors.torch import save_file
from small_models import SMALL, Detector, randomize

from convnext_dense import ConvNeXt, UserError
from convnext_dense.compat import read_checkpoint, trust_checkpoints
from convnext_dense.compat.checksums import seal_archive
from convnext_dense.weights import load_weights
from convnext_dense.weights.convert import convert
from convnext_dense.weights.inspect import inspect

EXAMPLES = int(os.environ.get('HOSTILE_EXAMPLES', 1))  # of each kind; more where time allows
MOST_SECONDS = 30
COUNTS = Counter()  # (what, outcome) -> number


@pytest.fixture(scope='module', autouse=True)
def _counts():
    """Print what came out, for docs/reliability.md."""
    yield
    print()
    for names, number in sorted(COUNTS.items()):
        print(f'{number:6} {", ".join(names)}')


def build_model(name):
    return ConvNeXt(SMALL, out_norm=False) if name.startswith('backbone') else Detector(out_norm=False)


def training(model):
    """Return a checkpoint of a training."""
    optimizer = torch.optim.AdamW(model.parameters())
    sum(parameter.square().sum() for parameter in model.parameters()).backward()
    optimizer.step()
    meta = dict(epoch=3, iter=12, seed=5, cfg='a = 1', experiment_name='a', dataset_meta=dict(classes=('a', 'b', 'c')))
    hub = dict(log_scalars={'train/loss': HistoryBuffer([0.5], [1])}, runtime_info={}, resumed_keys={})
    return dict(meta=meta, state_dict=model.state_dict(), optimizer=optimizer.state_dict(), message_hub=hub)


@pytest.fixture(scope='module')
def sound(tmp_path_factory):
    """Sound files: those of this package have a digest, those of others have PyTorch's checksums or none."""
    folder = tmp_path_factory.mktemp('sound')
    torch.manual_seed(0)
    weights, checkpoint = randomize(build_model('backbone')).state_dict(), training(randomize(build_model('detector')))
    torch.save(weights, folder / 'backbone_of_others.pth')
    torch.save(weights, folder / 'backbone_of_old.pth', _use_new_zipfile_serialization=False)
    save_file(weights, folder / 'backbone_of_others.safetensors')
    torch.save(checkpoint, folder / 'detector_of_training.pth')
    for suffix in ('.pth', '.safetensors'):
        convert(folder / 'backbone_of_others.pth', folder / f'backbone{suffix}', 'fb')
        convert(folder / 'detector_of_training.pth', folder / f'detector{suffix}', 'fb')
    seal_archive(folder / 'detector_of_training.pth')
    return folder


# Entry points: what each gives for a file


def load(file, name):
    model = build_model(name)
    load_weights(model, file, need='backbone' if name.startswith('backbone') else 'all')
    return dict(model.state_dict())


def convert_backbone(file, name):
    out = file.with_name(f'{file.name}.safetensors')
    return dict(convert(file, out, 'timm', backbone_only=True, force=True).tensors)


def look_at(file, name):
    found = inspect(file, keys=True)
    json.dumps(found)
    return {key: value for key, value in found.items() if key not in ('source', 'megabytes', 'container')}


def load_to_test(file, name):
    """As ``test`` does."""
    runner = runner_for(name.partition('_')[0].partition('.')[0])
    randomize(runner.model)
    runner.load_checkpoint(str(file))
    return {key: value.clone() for key, value in runner.model.state_dict().items()}


@functools.cache
def runner_for(kind):
    model = build_model(kind)
    options = dict(custom_hooks=[dict(type='CheckWeightsHook')], default_scope='mmengine', log_level='ERROR')
    return Runner(model, tempfile.mkdtemp(prefix='hostile_'), experiment_name=f'hostile_{kind}', **options)


ENTRIES = dict(load=load, convert=convert_backbone, inspect=look_at, test=load_to_test)


@contextlib.contextmanager
def time_limit():
    """Raise after :data:`MOST_SECONDS`, where the system can."""

    def stop(*_):
        raise TimeoutError(f'it takes more than {MOST_SECONDS} s')

    before = signal.signal(signal.SIGALRM, stop) if hasattr(signal, 'SIGALRM') else None
    if before is not None:
        signal.alarm(MOST_SECONDS)
    try:
        yield
    finally:
        if before is not None:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)


def is_equal(one, other):
    """Compare nested containers, tensors bit for bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(is_equal(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return isinstance(other, list | tuple) and len(one) == len(other) and all(map(is_equal, one, other))
    return one == other


def outcome(call, expected, file):
    """Return 'refused', 'same' or 'other', as what the call gives is; or 'failure' and what went wrong."""
    try:
        with time_limit(), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            found = 'same' if is_equal(call(), expected) else 'other'
    except UserError as error:
        found = 'refused' if file.name in str(error) else f'failure, which does not name the file: {error}'
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        found = f'failure: {error!r} in {where.filename}:{where.lineno}'
    is_run = (file.parent / mutated_files.MARKER).exists()
    return 'failure: code was run' if is_run else found


def may_differ(name, kind, entry):
    """Tell whether nothing in a changed file can show the change: no checksum, or one that was made anew."""
    is_ours = name in OURS
    if kind in CONTENTS:  # a file that a program could save
        return entry in ('inspect', 'convert')
    if kind in STATES:
        return True
    has_checksums = is_ours or name == 'backbone_of_others.pth'
    return not (has_checksums if kind in BYTES else is_ours)


def kinds_for(name):
    is_pickle = name.endswith('.pth')
    is_archive = is_pickle and not name.endswith('of_old.pth')
    return [
        *BYTES,
        *(ARCHIVES if is_archive else ()),
        *(CONTENTS if is_pickle else HEADERS),
        *(STATES if 'training' in name else ()),
        *(CODE if is_archive else ()),
    ]


OURS = ('backbone.pth', 'backbone.safetensors', 'detector.pth', 'detector.safetensors', 'detector_of_training.pth')
FILES = {  # -> which of the kinds are among the fast tests
    'backbone.pth': 1,
    'backbone.safetensors': 1,
    'detector.pth': 4,
    'detector.safetensors': 5,
    'detector_of_training.pth': 3,
    'backbone_of_others.pth': 3,
    'backbone_of_others.safetensors': 5,
    'backbone_of_old.pth': 3,
}
CASES = [
    (name, kind)
    for name, every in FILES.items()
    for number, kind in enumerate(kinds_for(name))
    if EXAMPLES > 1 or number % every == 0
]


@pytest.fixture(scope='module')
def expected(sound):
    """What each entry point gives for each sound file."""
    return {(name, entry): call(sound / name, name) for name in FILES for entry, call in ENTRIES.items()}


@pytest.mark.parametrize(('name', 'kind'), CASES)
def test_a_changed_checkpoint(name, kind, sound, expected, tmp_path):
    failures = []
    for seed in range(EXAMPLES):
        file = mutated(sound / name, kind, seed, tmp_path / f'changed_{name}')
        for entry, call in ENTRIES.items():
            found = outcome(functools.partial(call, file, name), expected[name, entry], file)
            COUNTS['checkpoints', group_of(kind), 'ours' if name in OURS else 'of others', entry, found[:7]] += 1
            if found.startswith('failure') or (found == 'other' and not may_differ(name, kind, entry)):
                failures.append(f'{entry} of mutated(sound / {name!r}, {kind!r}, {seed}, FILE): {found}')
    assert not failures, '\n'.join(failures)


@pytest.mark.parametrize('name', FILES)
def test_a_checkpoint_that_is_cut_at_any_page(name, sound, expected, tmp_path):
    file, content = tmp_path / name, (sound / name).read_bytes()
    for size in range(0, len(content), mutated_files.PAGE):
        file.write_bytes(content[:size])
        assert outcome(functools.partial(load, file, name), expected[name, 'load'], file) == 'refused'


def group_of(kind):
    groups = dict(bytes=BYTES, archives=ARCHIVES, headers=HEADERS, contents=CONTENTS, states=STATES, code=CODE)
    return next(name for name, kinds in groups.items() if kind in kinds)


@pytest.mark.parametrize('kind', list(CODE))
def test_the_traps_are_real(kind, sound, tmp_path):
    for seed in range(4):
        file = mutated(sound / 'backbone.pth', kind, seed, tmp_path / 'trap.pth')
        with trust_checkpoints(), contextlib.suppress(Exception):
            torch.load(file, weights_only=False)
    assert (tmp_path / mutated_files.MARKER).exists()


# Training states


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A run with all its checkpoints."""
    folder = tmp_path_factory.mktemp('trained')
    toy_runs.train(folder, **KEEP_ALL)
    return folder / 'run'


KEEP_ALL = {'default_hooks.checkpoint.max_keep_ckpts': -1}
COMPARED = ('state_dict', 'optimizer', 'param_schedulers')


def end_of(run):
    """Return what a run has come to."""
    checkpoint = read_checkpoint(run / 'epoch_4.pth')
    return {key: checkpoint[key] for key in COMPARED}


def end_of_training(folder, resume):
    folder.mkdir(exist_ok=True)
    toy_runs.train(folder, resume=str(resume), **KEEP_ALL)
    return end_of(folder / 'run')


@pytest.mark.parametrize('kind', [*BYTES, *ARCHIVES, *CODE, *STATES])
def test_a_changed_training_state(kind, trained, tmp_path):
    expected, failures = end_of(trained), []
    for seed in range(EXAMPLES):
        file = mutated(trained / 'epoch_3.pth', kind, seed, tmp_path / 'changed.pth')
        found = outcome(functools.partial(end_of_training, tmp_path / str(seed), file), expected, file)
        COUNTS['states', group_of(kind), 'file', found[:7]] += 1
        if found.startswith('failure') or (found == 'other' and kind not in STATES):
            failures.append(f"mutated(trained / 'epoch_3.pth', {kind!r}, {seed}, FILE): {found}")
    assert not failures, '\n'.join(failures)


@pytest.mark.parametrize('kind', [*BYTES, *ARCHIVES, *CODE][:: 1 if EXAMPLES > 1 else 6])
def test_a_training_continues_from_the_state_before(kind, trained, tmp_path):
    expected, failures = end_of(trained), []
    for seed in range(EXAMPLES):
        folder = tmp_path / str(seed)
        (folder / 'run').mkdir(parents=True)
        shutil.copy(trained / 'epoch_2.pth', folder / 'run')
        file = mutated(trained / 'epoch_3.pth', kind, seed, folder / 'run/epoch_3.pth')
        found = outcome(functools.partial(end_of_training, folder, 'auto'), expected, file)
        COUNTS['states', group_of(kind), 'auto', found[:7]] += 1
        if found != 'same':
            failures.append(f"mutated(trained / 'epoch_3.pth', {kind!r}, {seed}, FILE): {found}")
    assert not failures, '\n'.join(failures)
