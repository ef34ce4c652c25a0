"""Two processes do what one does: the same training, the same metrics, the same answer to a mistake."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import distributed_jobs
import pytest
import torch
import yaml
from mmengine.config import Config

from convnext_dense import UserError, cli
from convnext_dense.data import write_shapes
from convnext_dense.train import launch, mistakes

ROOT = Path(__file__).parent.parent
SHAPES_CONFIG = ROOT / 'configs/det/cascade_convnext_atto_shapes.py'
JOBS = distributed_jobs.__file__
TORCHRUN = (ROOT / 'tools/torchrun.py', '--standalone', '--nproc-per-node', '2')
STEPS = 10
ROUNDING = 2e-6  # relative; 10 steps in fp32 differed by 5e-7 in a single loss, by 2e-7 in the sum

# Norms and samples do not depend on how the images are dealt out.
SEGMENTOR = """
_base_ = '{root}/configs/seg/upernet_convnext_atto_shapes.py'
train_cfg = dict(max_iters=10)
val_dataloader = val_cfg = val_evaluator = None
optim_wrapper = dict(constructor='ConvNeXtLayerDecay', paramwise_cfg=dict(decay_rate=0.8))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=4),
    dict(type='PolyLR', power=0.9, eta_min=1e-5, by_epoch=False, begin=4, end=10),
]
auto_scale_lr = dict(base_batch_size=16)
default_hooks = dict(checkpoint=dict(interval=5))
custom_hooks = [dict(type='CheckWeightsHook'), dict(type='RecordHook')]
randomness = dict(seed=0, diff_rank_seed=True)
visualizer = dict(name='segmentor')
drawn = dict(data_root='{shapes}', num_train=16, num_val=7, size=64)
load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', reduce_zero_label=True)]
fixed_size, pack = dict(type='Resize', scale=(64, 64), keep_ratio=False), dict(type='PackSegInputs')
train_dataloader = dict(batch_size=2, sampler=dict(seed=0), dataset=dict(pipeline=[*load, fixed_size, pack], **drawn))
test_dataloader = dict(dataset=dict(pipeline=[*load, pack], **drawn))
model = dict(
    data_preprocessor=dict(size=(64, 64), test_cfg=None),
    backbone=dict(out_indices=(3,)),
    decode_head=dict(
        _delete_=True, type='FCNHead', in_channels=320, in_index=0, channels=16, num_convs=1, num_classes=8,
        dropout_ratio=0.0, norm_cfg=dict(type='GN', num_groups=4), loss_decode=dict(type='CrossEntropyLoss'),
    ),
    auxiliary_head=None,
)
"""
PLAIN = """
_base_ = ['segmentor.py']
custom_hooks = [dict(type='CheckWeightsHook'), dict(type='RunSummaryHook')]
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder with the drawn data and the configs."""
    folder = tmp_path_factory.mktemp('distributed')
    shapes = write_shapes(folder / 'shapes', num_train=16, num_val=7, size=64)
    (folder / 'segmentor.py').write_text(SEGMENTOR.format(root=ROOT, shapes=shapes))
    (folder / 'plain.py').write_text(PLAIN)
    return folder


@pytest.fixture(scope='module')
def segmentors(folder):
    """The folders of a segmentor that one process trains and tests, and that two do beside it.

    A step has four images in all. The two scale the lr by the option, the one has the scaled lr in its config.
    """
    config, folders = str(folder / 'segmentor.py'), (folder / 'one', folder / 'two')
    scaled = {'optim_wrapper.optimizer.lr': 2.5e-4, 'param_scheduler.1.eta_min': 2.5e-6}
    one = dict(config=config, cfg_options={'train_dataloader.batch_size': 4, **scaled}, work_dir='segmentor')
    two = dict(one, cfg_options={'train_dataloader.batch_size': 2}, auto_scale_lr=True)
    again = dict(two, resume='segmentor/iter_5.pth', work_dir='resumed')
    test = dict(config=config, checkpoint=str(folders[1] / 'segmentor/iter_10.pth'), work_dir='test', out='maps')
    for place in folders:
        place.mkdir()
    command = [sys.executable, *TORCHRUN, JOBS, json.dumps([['train', two], ['train', again], ['test', test]])]
    with (folders[1] / 'output.txt').open('w') as output:
        process = subprocess.Popen(command, cwd=folders[1], stdout=output, stderr=output)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folders[0])
            distributed_jobs.run_jobs([['train', one], ['test', test]])
        code = process.wait(300)
    finally:
        process.terminate()
        process.wait(60)
    assert code == 0, (folders[1] / 'output.txt').read_text()[-3000:]
    return folders


def recorded(folder: Path, key: str) -> list[dict]:
    return [row for row in map(json.loads, folder.read_text().splitlines()) if key in row]


def rows_of(segmentors: tuple[Path, Path], name: str, key: str) -> list[tuple[dict, dict, dict]]:
    """Return the rows of the one process beside those of the first and of the second of the two."""
    one, two = segmentors
    files = (one / name / 'record_0.jsonl', two / name / 'record_0.jsonl', two / name / 'record_1.jsonl')
    return list(zip(*(recorded(file, key) for file in files), strict=True))


def test_segmentor_trains_alike(segmentors):
    """Its loss is a mean over pixels, of which each process has equally many."""
    steps = rows_of(segmentors, 'segmentor', 'step')
    assert [row['step'] for row, _, _ in steps] == list(range(1, STEPS + 1))
    for alone, first, second in steps:
        assert sorted(first['images'] + second['images']) == sorted(alone['images'])
        assert not set(first['images']) & set(second['images'])
        assert first['losses'] != second['losses']
        means = {name: (loss + second['losses'][name]) / 2 for name, loss in first['losses'].items()}
        assert means == pytest.approx(alone['losses'], rel=ROUNDING)
        assert first['rates'] == second['rates'] == pytest.approx(alone['rates'], rel=1e-12)


NAMES = ('segmentor', 'resumed')


@pytest.mark.parametrize('name', NAMES)
def test_processes_have_the_same_weights(segmentors, name):
    """The config gives each process a seed of its own: without synchronisation the weights would differ."""
    first, second = (recorded(segmentors[1] / f'{name}/record_{rank}.jsonl', 'weights') for rank in (0, 1))
    assert first == second
    before, after = first
    assert before != after


@pytest.mark.parametrize('rank', [0, 1])
def test_a_resumed_training_ends_with_the_same_weights(segmentors, rank):
    whole, resumed = (recorded(segmentors[1] / f'{name}/record_{rank}.jsonl', 'weights')[-1] for name in NAMES)
    assert whole == resumed


def test_segmentor_is_tested_alike(segmentors):
    """Seven images by two processes: the image that fills up the eighth place does not count."""
    ((alone, first, second),) = rows_of(segmentors, 'test', 'metrics')
    assert first == second == alone
    assert max(alone['metrics'].values()) > 0
    one, two = ({file.name: file.read_bytes() for file in (folder / 'maps').iterdir()} for folder in segmentors)
    assert one == two
    assert len(one) == 7


def test_two_processes_resume(segmentors):
    """The second half again: the same images, losses and rates, nothing scaled twice."""
    for rank in (0, 1):
        rows = recorded(segmentors[1] / f'segmentor/record_{rank}.jsonl', 'step')
        again = recorded(segmentors[1] / f'resumed/record_{rank}.jsonl', 'step')
        assert again == rows[STEPS // 2 :]


def test_notes_of_two_processes(segmentors):
    output = (segmentors[1] / 'output.txt').read_text()
    scaled, resumed = [line for line in output.splitlines() if line.startswith('note: ')]
    assert 'scaled by 0.25: 0.001 -> 0.00025 (total batch 4 = processes 2 x images 2' in scaled
    assert 'lr is that of the checkpoint' in resumed
    copy = Config.fromfile(segmentors[1] / 'segmentor/segmentor.py')
    assert copy.optim_wrapper.optimizer.lr == 2.5e-4
    assert copy.auto_scale_lr.to_dict() == dict(enable=False, base_batch_size=4)


# The launch scripts


READ = ('NNODES', 'NODE_RANK', 'MASTER_ADDR', 'MASTER_PORT', 'PORT', 'OMP_NUM_THREADS', 'GPUS', 'GPUS_PER_NODE',
        'CPUS_PER_TASK', 'SRUN_ARGS', 'SUBMIT', 'WARN', 'MAX_RESTARTS')  # fmt: skip


def run_script(script: str, *arguments, cwd: Path, **variables) -> subprocess.CompletedProcess:
    """Run a launch script, with the variables that it reads and no others of them."""
    environment = {name: value for name, value in os.environ.items() if name not in READ}
    environment.update({'PYTHON': sys.executable, **variables})
    command = [ROOT / 'tools' / script, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture
def echo(tmp_path):
    """A program that prints its arguments, a line each, in a folder with a space in its name."""
    program = tmp_path / 'my programs/srun'
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\necho "port=$MASTER_PORT threads=$OMP_NUM_THREADS"\n')
    program.chmod(0o755)
    return program


ONE_MACHINE = '--standalone --nproc-per-node 2'


@pytest.mark.parametrize(
    ('variables', 'expected'),
    [
        ({}, ONE_MACHINE),
        ({'NODE_RANK': '1', 'MASTER_ADDR': '10.0.0.1'}, ONE_MACHINE),  # of several machines alone
        ({'PORT': '29700'}, '--master-addr 127.0.0.1 --master-port 29700 --nproc-per-node 2'),
        (
            {'NNODES': '3', 'NODE_RANK': '2', 'MASTER_ADDR': 'node-0'},
            '--nnodes 3 --node-rank 2 --master-addr node-0 --master-port 29500 --nproc-per-node 2',
        ),
        (
            {'NNODES': '2', 'NODE_RANK': '0', 'MASTER_ADDR': 'node-0', 'PORT': '1234'},
            '--nnodes 2 --node-rank 0 --master-addr node-0 --master-port 1234 --nproc-per-node 2',
        ),
        ({'MAX_RESTARTS': '3'}, '--standalone --max-restarts 3 --nproc-per-node 2'),
    ],
)
@pytest.mark.parametrize(
    ('script', 'tool', 'rest', 'threads'),
    [('dist_train.sh', 'train.py', ['a config.py'], '3'), ('dist_test.sh', 'test.py', ['config.py', 'a file.pth'], '')],
)
def test_what_dist_scripts_start(echo, tmp_path, script, tool, rest, threads, variables, expected):
    variables = {'PYTHON': str(echo), 'OMP_NUM_THREADS': threads, **variables}
    result = run_script(script, *rest, 2, '--cfg-options', 'a=b c', cwd=tmp_path, **variables)
    assert result.returncode == 0, result.stderr
    torchrun, tool = (str(ROOT / 'tools' / name) for name in ('torchrun.py', tool))
    options = ['--cfg-options', 'a=b c', '--launcher', 'pytorch', f'port= threads={threads or 1}']
    assert result.stdout.splitlines() == [torchrun, *expected.split(), tool, *rest, *options]


MANY = {'GPUS': '16', 'GPUS_PER_NODE': '4', 'CPUS_PER_TASK': '12', 'SRUN_ARGS': '--time 3-0 -x', 'PORT': '65535'}


@pytest.mark.parametrize(
    ('variables', 'gpus', 'per_node', 'cpus', 'words', 'port'),
    [
        ({}, '8', '8', '5', [], ''),
        ({'GPUS': '2', 'MASTER_PORT': '29501'}, '2', '2', '5', [], '29501'),
        (MANY, '16', '4', '12', ['--time', '3-0', '-x'], '65535'),
    ],
)
@pytest.mark.parametrize(
    ('script', 'tool', 'rest', 'told'),
    [
        ('slurm_train.sh', 'train.py', ['my config.py'], ['--signal', 'USR1@120']),
        ('slurm_test.sh', 'test.py', ['my config.py', 'a.pth'], []),
    ],
)
def test_what_slurm_scripts_start(
    echo, tmp_path, script, tool, rest, told, variables, gpus, per_node, cpus, words, port
):
    variables = {'PATH': f'{echo.parent}:{os.environ["PATH"]}', **variables}
    result = run_script(script, 'long queue', 'job', *rest, '--work-dir', 'x y', cwd=tmp_path, **variables)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        '--partition', 'long queue', '--job-name', 'job', '--gres', f'gpu:{per_node}', '--ntasks', gpus,
        '--ntasks-per-node', per_node, '--cpus-per-task', cpus, *words, *told, '--kill-on-bad-exit=1',
        sys.executable, '-u', str(ROOT / 'tools' / tool), *rest, '--work-dir', 'x y', '--launcher', 'slurm',
        f'port={port} threads=',
    ]  # fmt: skip


def program(folder: Path, name: str, text: str) -> None:
    """Write a program of Slurm's that notes how it was called."""
    file = folder / name
    file.write_text(f'#!/bin/bash\nprintf "%s\\n" {name} "$@" >> "{folder}/calls"\n{text}\n')
    file.chmod(0o755)


@pytest.mark.parametrize('code', [0, 1, 75])
def test_a_batch_job_queues_again_after_a_signal(code, tmp_path):
    """Slurm's programs are played: sbatch runs what it gets, srun ends with the code of a training."""
    programs = tmp_path / 'programs'
    programs.mkdir()
    program(programs, 'sbatch', 'export SLURM_JOB_ID=42; eval "${@: -1}"')
    program(programs, 'srun', f'exit {code}')
    program(programs, 'scontrol', '')
    variables = {'PATH': f'{programs}:{os.environ["PATH"]}', 'SUBMIT': '1', 'WARN': '60', 'SRUN_ARGS': '--time 4:00:00'}
    result = run_script('slurm_train.sh', 'p', 'j', 'my config.py', '--work-dir', 'x y', cwd=tmp_path, **variables)
    assert result.returncode == (0 if code == 75 else code), result.stderr
    calls = (programs / 'calls').read_text().splitlines()
    assert calls[0] == 'sbatch'
    assert ' '.join(calls[1:20]).endswith('--time 4:00:00 --requeue --open-mode append --signal USR1@60')
    start = calls.index('srun')
    assert calls[calls.index(str(ROOT / 'tools/train.py')) :][:4] == [
        str(ROOT / 'tools/train.py'), 'my config.py', '--work-dir', 'x y',
    ]  # fmt: skip
    assert '--signal' in calls[start:]
    assert calls[-3:] == ['scontrol', 'requeue', '42'] if code == 75 else 'scontrol' not in calls


CLUSTERS = (ROOT / 'docs/clusters.md').read_text()


@pytest.mark.parametrize('text', re.findall(r'```sh\n(.*?)```', CLUSTERS, re.DOTALL))
def test_shell_examples_are_shell(text):
    assert subprocess.run(['bash', '-n'], input=text, text=True, check=False).returncode == 0


def test_manifests_are_manifests():
    kubernetes, skypilot = re.findall(r'```yaml\n(.*?)```', CLUSTERS, re.DOTALL)
    service, job = yaml.safe_load_all(kubernetes)
    assert [part['kind'] for part in (service, job)] == ['Service', 'Job']
    spec, (container,) = job['spec'], job['spec']['template']['spec']['containers']
    assert spec['podFailurePolicy']['rules'][0]['onExitCodes']['values'] == [2, 3]
    mounts, volumes = container['volumeMounts'], job['spec']['template']['spec']['volumes']
    assert {mount['name'] for mount in mounts} == {volume['name'] for volume in volumes}
    assert service['metadata']['name'] == job['spec']['template']['spec']['subdomain']
    for command in (container['args'][0], yaml.safe_load(skypilot)['run']):
        assert 'tools/dist_train.sh det/cascade_convnext_t_coco 8 --work-dir /runs/t --resume' in command
        assert subprocess.run(['bash', '-n'], input=command, text=True, check=False).returncode == 0


WITHOUT_SRUN = ':'.join(place for place in os.environ['PATH'].split(':') if not (Path(place) / 'srun').exists())
ON_TWO = {'NNODES': '2', 'MASTER_ADDR': 'a'}


@pytest.mark.parametrize(
    ('script', 'arguments', 'variables', 'message'),
    [
        ('dist_train.sh', 'c.py', {}, '2 arguments are needed, 1 came'),
        ('dist_test.sh', 'c.py 8', {}, '3 arguments are needed, 2 came'),
        ('slurm_train.sh', 'p j', {}, '3 arguments are needed, 2 came'),
        ('slurm_test.sh', 'p j c.py', {}, '4 arguments are needed, 3 came'),
        *(('dist_train.sh', f'c.py {gpus}', {}, f"GPUS must .* got '{gpus}'") for gpus in ('0', '-1', '08', '--amp')),
        ('dist_test.sh', 'c.py 2 a.pth', {}, "GPUS must .* got 'a.pth'"),
        ('dist_train.sh', 'c.py 2 x', {}, "options start with a dash; got 'x'"),
        ('slurm_train.sh', 'p j c.py work_dirs/x', {}, "options start with a dash; got 'work_dirs/x'"),
        ('slurm_train.sh', 'p j c.py', {'GPUS': 'all'}, "GPUS must .* got 'all'"),
        ('slurm_train.sh', 'p j c.py', {'WARN': 'soon'}, "WARN must .* got 'soon'"),
        ('slurm_train.sh', 'p j c.py', {'SUBMIT': '1', 'PATH': WITHOUT_SRUN}, 'there is no sbatch here'),
        ('dist_train.sh', 'c.py 2', {'MAX_RESTARTS': '-1'}, "MAX_RESTARTS must .* got '-1'"),
        ('slurm_test.sh', 'p j c f', {'PORT': '99999'}, "PORT must .* 1 to 65535; got '99999'"),
        ('dist_train.sh', 'c.py 2', {'PORT': '65536'}, "PORT must .* 1 to 65535; got '65536'"),
        ('dist_train.sh', 'c.py 2', {'NNODES': 'two'}, "NNODES must .* got 'two'"),
        ('dist_train.sh', 'c.py 2', {'NNODES': '2'}, 'NNODES=2 needs MASTER_ADDR'),
        ('dist_train.sh', 'c.py 2', ON_TWO, "NODE_RANK must .* got ''"),
        ('dist_train.sh', 'c.py 2', {**ON_TWO, 'NODE_RANK': '2'}, "NODE_RANK must be less than NNODES=2; got '2'"),
        ('dist_train.sh', 'c.py 2', {'PYTHON': 'nowhere/python'}, 'no nowhere/python; set PYTHON'),
        ('slurm_train.sh', 'p j c.py', {'PATH': WITHOUT_SRUN}, 'there is no srun here. .* tools/dist_train.sh'),
    ],
)
def test_wrong_arguments_get_the_usage(tmp_path, script, arguments, variables, message):
    result = run_script(script, *arguments.split(), cwd=tmp_path, **variables)
    assert result.returncode == 2
    assert re.match(f'error: .*{message}', result.stderr)
    assert f'\nusage: tools/{script} ' in result.stderr
    assert result.stdout == ''


@pytest.mark.parametrize('script', ['dist_train.sh', 'dist_test.sh', 'slurm_train.sh', 'slurm_test.sh'])
def test_help(tmp_path, script):
    result = run_script(script, '--help', cwd=tmp_path)
    assert result.returncode == 0
    assert result.stdout.startswith(f'usage: tools/{script} ')


def test_scripts_find_the_python_of_the_clone(echo, tmp_path):
    tools, path = tmp_path / 'my clone/tools', f'{tmp_path}:{os.environ["PATH"]}'
    shutil.copytree(ROOT / 'tools', tools, ignore=shutil.ignore_patterns('__pycache__'))
    for place in (tmp_path / 'python', tools.parent / '.venv/bin/python'):
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(echo, place)
        result = run_script(tools / 'dist_train.sh', 'c.py', 1, cwd=tmp_path, PYTHON='', PATH=path)
        assert result.stdout.startswith(f'{tools}/torchrun.py\n')
        place.unlink()


def drawn_options(folder: Path) -> list[str]:
    """Return options that shrink the first command to two epochs of four steps."""
    options = {'train_cfg.max_epochs': 2, 'train_dataloader.batch_size': 2, 'model.test_cfg.rcnn.score_thr': 0.0}
    for split in ('train', 'val', 'test'):
        drawn = dict(data_root=folder / 'shapes', num_train=16, num_val=7, size=64)
        options.update({f'{split}_dataloader.dataset.{key}': value for key, value in drawn.items()})
    for split in ('val', 'test'):
        options[f'{split}_evaluator.ann_file'] = folder / 'shapes/annotations/instances_val.json'
    return ['--cfg-options', *(f'{key}={value}' for key, value in options.items())]


@pytest.fixture(scope='module')
def dist_train(folder):
    """The first command with two processes, started elsewhere than in the clone."""
    return run_script('dist_train.sh', SHAPES_CONFIG, 2, '--work-dir', 'run', *drawn_options(folder), cwd=folder)


def ap_rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines() if line.startswith('AP')]


@pytest.mark.slow
def test_dist_train(dist_train, folder):
    assert dist_train.returncode == 0, dist_train.stderr[-3000:]
    assert 'Warning' not in dist_train.stderr
    assert dist_train.stderr.count('lr kept at 0.001') == 1
    (scalars,) = folder.glob('run/*/vis_data/scalars.json')
    steps = [row['step'] for row in map(json.loads, scalars.read_text().splitlines()) if 'coco/bbox_mAP' in row]
    assert steps == [1, 2]
    assert '8 iterations in ' in dist_train.stdout  # 16 images by 2 processes of 2, twice
    assert dist_train.stdout.count('training finished') == 1
    assert len(ap_rows(dist_train.stdout)) == 6


@pytest.mark.slow
@pytest.mark.parametrize('gpus', [1, 2])
def test_dist_test(dist_train, folder, gpus):
    """Seven images by two processes: the image that fills up the eighth place does not count."""
    options = ('--work-dir', f'test_{gpus}', *drawn_options(folder))
    result = run_script('dist_test.sh', SHAPES_CONFIG, folder / 'run/epoch_2.pth', gpus, *options, cwd=folder)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count('test finished') == 1
    assert ap_rows(result.stdout) == ap_rows(dist_train.stdout)


# Mistakes


def test_mistake_of_all_processes_is_told_once(tmp_path):
    result = run_script('dist_train.sh', 'nowhere.py', 2, cwd=tmp_path)
    assert result.stderr == 'error: The config file nowhere.py does not exist.\n'
    assert result.returncode == 2


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--nproc-per-node', '1', '--master-port', '99999'], "9999' must be an integer between 0 and 65536."),
        (['--nproc-per-node', '0', '--standalone'], 'an option is out of range'),
    ],
)
def test_options_that_torchrun_refuses(tmp_path, options, message):
    (tmp_path / 'script.py').write_text('')
    command = [sys.executable, ROOT / 'tools/torchrun.py', *options, 'script.py']
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith('error: torchrun cannot start: ')
    assert result.stderr.endswith(f'{message}\n')
    assert result.stderr.count('\n') == 1


@pytest.mark.slow
def test_port_in_use(tmp_path):
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        s.listen()
        result = run_script('dist_train.sh', 'nowhere.py', 2, cwd=tmp_path, PORT=str(s.getsockname()[1]))
    assert result.returncode == 2
    assert result.stderr.startswith('error: the processes cannot meet; check MASTER_ADDR, or choose another PORT. ')
    assert 'Traceback' not in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize('rank', [0, 1])
def test_mistake_of_one_process_ends_all(folder, tmp_path, rank):
    (tmp_path / 'breaking.py').write_text(BREAKING)
    (tmp_path / 'config.py').write_text(BROKEN.format(folder=folder))
    path = os.pathsep.join([str(tmp_path), os.environ.get('PYTHONPATH', '')])
    start = time.monotonic()
    result = run_script(
        'dist_train.sh', tmp_path / 'config.py', 2, cwd=tmp_path, PYTHONPATH=path, BROKEN_RANK=str(rank)
    )
    assert time.monotonic() - start < 120  # PyTorch itself gives up after 30 minutes
    assert '\nerror: The image photos/7.jpg is damaged. Replace it' in result.stderr
    assert result.stderr.count('error: ') == 1
    assert 'Traceback' not in result.stderr.replace('for the traceback', '')
    assert 'FAILED' not in result.stderr
    assert result.returncode == 2


BREAKING = """
import os
from mmengine.registry import TRANSFORMS

@TRANSFORMS.register_module()
class BreakAtFifthImage:
    calls = 0

    def __call__(self, results):
        self.calls += 1
        if self.calls == 5 and os.environ['RANK'] == os.environ['BROKEN_RANK']:
            raise AssertionError('failed to load image: photos/7.jpg')
        return results
"""
BROKEN = """
_base_ = ['{folder}/plain.py']
custom_imports = dict(imports=['convnext_dense', 'breaking'], allow_failed_imports=False)
pipeline = [dict(type='BreakAtFifthImage'), *_base_.train_dataloader.dataset.pipeline]
train_dataloader = dict(dataset=dict(pipeline=pipeline))
"""


@pytest.mark.slow
def test_parameters_without_a_gradient_are_named(folder, tmp_path):
    options = ['model.backbone.out_indices=(0,3)', 'model.decode_head.in_index=1']
    result = run_script('dist_train.sh', folder / 'plain.py', 2, '--cfg-options', *options, cwd=tmp_path)
    assert result.returncode == 2
    assert 'error: 2 parameters take no part in the loss (backbone.norm0.weight, backbone.norm0.bias)' in result.stderr
    assert 'set find_unused_parameters = True in the config' in result.stderr
    assert 'Traceback' not in result.stderr


def test_parameter_names_of_pytorchs_indices():
    model = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Linear(1, 1), torch.nn.Linear(1, 1))
    model[0].requires_grad_(False)
    error = RuntimeError('... Parameter indices which did not receive grad for rank 1: 0 3\n In addition ...')
    with (
        pytest.raises(UserError, match=r'2 parameters take no part in the loss \(1\.weight, 2\.bias\)'),
        mistakes.run_errors(SimpleNamespace(model=model)),
    ):
        raise error
    with pytest.raises(RuntimeError, match='another'), mistakes.run_errors(SimpleNamespace(model=model)):
        raise RuntimeError('another')


def test_lost_connection_is_no_mistake_in_the_config():
    with pytest.raises(RuntimeError, match='closed by peer'), mistakes.build_errors():
        raise RuntimeError('[gloo/transport/tcp/pair.cc:561] Connection closed by peer')


@pytest.mark.parametrize('is_known', [True, False])
def test_a_lost_connection_is_no_news_where_the_reason_was_told(is_known, monkeypatch, tmp_path):
    monkeypatch.setenv('TORCHELASTIC_ERROR_FILE', str(tmp_path / '0/error.json'))
    if is_known:
        launch.say_once('error: wrong')
    with pytest.raises(SystemExit if is_known else RuntimeError), cli.user_errors():
        raise RuntimeError('[gloo/transport/tcp/pair.cc:561] Connection closed by peer')


def test_processes_of_slurm_share_what_was_said(monkeypatch, tmp_path, capsys):
    set_environment(monkeypatch, {'SLURM_NTASKS': '2', 'SLURM_JOB_ID': '7', 'SLURM_STEP_ID': '0'})
    monkeypatch.setattr(launch.tempfile, 'gettempdir', lambda: str(tmp_path))
    launch.say_once('wrong')
    launch.say_once('wrong')
    assert capsys.readouterr().err == 'wrong\n'


@pytest.mark.parametrize(
    ('launcher', 'environment', 'num_gpus', 'message'),
    [
        ('pytorch', {}, 0, 'finds no WORLD_SIZE in the environment. Start the run with tools/dist_train.sh CONFIG'),
        ('slurm', {}, 8, 'finds no SLURM_NTASKS in the environment. Start the run with tools/slurm_train.sh PART'),
        ('slurm', {'SLURM_NTASKS': '8'}, 0, 'needs a GPU for each process, and there is none here. Use tools/dist_'),
        ('pytorch', {'WORLD_SIZE': '16', 'LOCAL_WORLD_SIZE': '8'}, 4, '8 processes were started for 4 GPUs on this'),
    ],
)
def test_what_a_launcher_has_to_provide(monkeypatch, launcher, environment, num_gpus, message):
    set_environment(monkeypatch, environment)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: num_gpus)
    with pytest.raises(UserError, match=message):
        launch.check_launcher(launcher)


@pytest.mark.parametrize(
    ('launcher', 'environment', 'rank', 'size'),
    [
        ('none', {}, 0, 1),
        ('pytorch', {'RANK': '11', 'WORLD_SIZE': '16', 'LOCAL_RANK': '3', 'LOCAL_WORLD_SIZE': '8'}, 11, 16),
        ('slurm', {'SLURM_PROCID': '5', 'SLURM_NTASKS': '6', 'SLURM_LOCALID': '1'}, 5, 6),
        ('pytorch', {'RANK': '1', 'WORLD_SIZE': '2', 'SLURM_PROCID': '0', 'SLURM_NTASKS': '1'}, 1, 2),
    ],
)
def test_rank_and_number_of_processes(monkeypatch, launcher, environment, rank, size):
    set_environment(monkeypatch, environment)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 8)
    launch.check_launcher(launcher)
    assert (launch.process_rank(), launch.num_processes(launcher)) == (rank, size)


def set_environment(monkeypatch, environment: dict) -> None:
    for name in ('RANK', 'WORLD_SIZE', 'SLURM_PROCID', 'SLURM_NTASKS'):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize('other', ['b/epoch_3.pth', 'a/epoch_2.pth', None])
def test_processes_resume_from_the_same_checkpoint(monkeypatch, other):
    monkeypatch.setattr(launch, 'all_gather_object', lambda file: [file, other])
    is_same = other == 'b/epoch_3.pth'
    with contextlib.nullcontext() if is_same else pytest.raises(UserError, match='find different checkpoints'):
        launch.check_same_checkpoint('a/epoch_3.pth')
