"""Two processes do what one does: the same training, the same metrics, the same answer to a mistake."""

import contextlib
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config

from convnext_dense import UserError
from convnext_dense import cli as command_line
from convnext_dense.data import write_shapes
from convnext_dense.train import launch, mistakes

ROOT = Path(__file__).parent.parent
SHAPES_CONFIG = ROOT / 'configs/det/cascade_convnext_atto_shapes.py'
JOBS = Path(__file__).with_name('distributed_jobs.py')
TORCHRUN = (ROOT / 'tools/torchrun.py', '--standalone', '--nproc-per-node', '2')
STEPS = 10
ROUNDING = 2e-6  # relative; 10 steps in fp32 differed by 5e-7 in a single loss, by 2e-7 in the sum

SHARED = """
data = dict(data_root='{shapes}', num_train=16, num_val=7, size=64)
train_cfg = dict(type='IterBasedTrainLoop', max_iters=10)
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    constructor='ConvNeXtLayerDecay',
    paramwise_cfg=dict(decay_rate=0.8),
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=4),
    dict(type='PolyLR', power=0.9, eta_min=1e-5, by_epoch=False, begin=4, end=10),
]
auto_scale_lr = dict(enable=False, base_batch_size=16)
log_processor = dict(by_epoch=False)
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=5))
custom_hooks = [dict(type='CheckWeightsHook'), dict(type='RecordHook')]
randomness = dict(seed=0, diff_rank_seed=True)
backbone = dict(type='ConvNeXt', arch='atto')
pixels = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True)
sampler = dict(type='InfiniteSampler', shuffle=True, seed=0)
fixed_size = dict(type='Resize', scale=(64, 64), keep_ratio=False)
"""
SEGMENTOR = """
_base_ = ['{root}/configs/_base_/runtime.py']
default_scope = 'mmseg'
load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', reduce_zero_label=True)]
train_dataloader = dict(
    batch_size=2,
    sampler=sampler,
    dataset=dict(type='ShapesLabels', split='train', pipeline=[*load, fixed_size, dict(type='PackSegInputs')], **data),
)
test_dataloader = dict(
    batch_size=1,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='ShapesLabels', split='val', pipeline=[*load, dict(type='PackSegInputs')], **data),
)
test_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(type='SegDataPreProcessor', pad_val=0, seg_pad_val=255, size=(64, 64), **pixels),
    backbone=dict(out_indices=(3,), **backbone),
    decode_head=dict(
        type='FCNHead', in_channels=320, in_index=0, channels=16, num_convs=1, num_classes=8, dropout_ratio=0.0,
        norm_cfg=dict(type='GN', num_groups=4), loss_decode=dict(type='CrossEntropyLoss'),
    ),
    test_cfg=dict(mode='whole'),
)
"""
DETECTOR = """
default_scope = 'mmdet'
load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True, with_mask=True)]
meta_keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
pack = dict(type='PackDetInputs', meta_keys=meta_keys)
train_dataloader = dict(
    batch_size=2,
    sampler=sampler,
    dataset=dict(type='ShapesInstances', split='train', pipeline=[*load, fixed_size, pack], **data),
)
test_dataloader = dict(
    batch_size=1,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='ShapesInstances', split='val', test_mode=True, pipeline=[*load, fixed_size, pack], **data),
)
test_evaluator = dict(type='CocoMetric', ann_file='{shapes}/annotations/instances_val.json', metric='bbox')
preprocessor = dict(type='DetDataPreprocessor', pad_size_divisor=32, **pixels)
"""
FCOS = """
_base_ = ['{root}/configs/_base_/runtime.py']
model = dict(
    type='FCOS',
    data_preprocessor=preprocessor,
    backbone=backbone,
    neck=dict(type='FPN', in_channels=[40, 80, 160, 320], out_channels=32, num_outs=4),
    bbox_head=dict(
        type='FCOSHead', num_classes=5, in_channels=32, feat_channels=32, stacked_convs=1, strides=[4, 8, 16, 32],
        regress_ranges=[(-1, 16), (16, 32), (32, 64), (64, 1000)], norm_cfg=dict(type='GN', num_groups=8),
    ),
    test_cfg=dict(nms_pre=100, min_bbox_size=0, score_thr=0.0, nms=dict(type='nms', iou_threshold=0.5), max_per_img=20),
)
"""


CASCADE = """
_base_ = ['{root}/configs/_base_/runtime.py', '{root}/configs/det/_base_/cascade_mask_rcnn_mini.py']
rpn, stages = _base_.model.train_cfg.rpn, _base_.model.train_cfg.rcnn
first = dict(type='FirstSampler', pos_fraction=1.0)
model = dict(
    data_preprocessor=preprocessor,
    backbone=backbone,
    neck=dict(in_channels=[40, 80, 160, 320]),
    train_cfg=dict(
        rpn=dict(sampler=dict(type='FirstSampler')),
        rcnn=[dict(stage, sampler=dict(stage.sampler, **first)) for stage in stages],
    ),
)
"""
PLAIN = """
_base_ = ['segmentor.py']
custom_hooks = [dict(type='CheckWeightsHook'), dict(type='RunSummaryHook')]
"""
BOXES_ALONE = """
model.update(roi_head=dict(mask_roi_extractor=None, mask_head=None))
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder with the drawn data and the configs."""
    folder = tmp_path_factory.mktemp('distributed')
    shapes = write_shapes(folder / 'shapes', num_train=16, num_val=7, size=64)
    texts = {
        'segmentor': SHARED + SEGMENTOR,
        'fcos': SHARED + DETECTOR + FCOS,
        'cascade': SHARED + DETECTOR + CASCADE,
        'boxes': SHARED + DETECTOR + CASCADE + BOXES_ALONE,
        'plain': PLAIN,
    }
    for name, text in texts.items():
        (folder / f'{name}.py').write_text(text.replace('{root}', str(ROOT)).replace('{shapes}', str(shapes)))
    return folder


def run_beside(folder: Path, name: str, one: list, two: list) -> tuple[Path, Path]:
    """Run jobs in one process and others in two, side by side; return the folders of both."""
    folders, processes = (folder / f'{name}_one', folder / f'{name}_two'), []
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'MKL_NUM_THREADS': '1'}
    for jobs, place, launcher in zip((one, two), folders, ([], TORCHRUN), strict=True):
        place.mkdir()
        (place / 'jobs.json').write_text(json.dumps(jobs))
        with (place / 'output.txt').open('w') as output:
            command = [sys.executable, *launcher, JOBS, place / 'jobs.json']
            processes.append(subprocess.Popen(command, cwd=place, env=environment, stdout=output, stderr=output))
    try:
        deadline = time.monotonic() + 300
        while None in (codes := [process.poll() for process in processes]) and not any(codes):
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        for process in processes:
            process.terminate()
            process.wait(60)
    for process, place in zip(processes, folders, strict=True):
        assert process.returncode == 0, (place / 'output.txt').read_text()[-5000:]
    return folders


def job_of_training(folder: Path, config: str, num_processes: int, **options) -> list:
    """Return a job that trains with four images a step in all."""
    batch = {'train_dataloader.batch_size': 4 // num_processes}
    arguments = dict(config=str(folder / f'{config}.py'), work_dir=config, cfg_options=batch)
    arguments['cfg_options'].update(options.pop('cfg_options', {}))
    return ['train', {**arguments, **options}]


def job_of_test(folder: Path, config: str, checkpoint: Path, out: str) -> list:
    """Return a job that tests a checkpoint and writes the predictions."""
    work_dir = f'{config}_test'
    return ['test', dict(config=str(folder / f'{config}.py'), checkpoint=str(checkpoint), work_dir=work_dir, out=out)]


@pytest.fixture(scope='module')
def segmentors(folder):
    """A segmentor, trained and tested by one process and by two.

    The two scale its lr by the option, the one has the scaled lr in its config.
    """
    scaled = {'optim_wrapper.optimizer.lr': 2.5e-4, 'param_scheduler.1.eta_min': 2.5e-6}
    test = job_of_test(folder, 'segmentor', folder / 'segmentors_two/segmentor/iter_10.pth', out='maps')
    one = [job_of_training(folder, 'segmentor', 1, cfg_options=scaled), test]
    first, second = {}, dict(resume='segmentor/iter_5.pth', work_dir='resumed')
    two = [job_of_training(folder, 'segmentor', 2, auto_scale_lr=True, **again) for again in (first, second)]
    return run_beside(folder, 'segmentors', one, [*two, test])


@pytest.fixture(scope='module')
def detectors(folder):
    """Three detectors, trained by one process and by two; one of them is tested."""
    test = job_of_test(folder, 'fcos', folder / 'detectors_two/fcos/iter_10.pth', out='boxes.pkl')
    jobs = ([*(job_of_training(folder, name, n) for name in ('fcos', 'boxes', 'cascade')), test] for n in (1, 2))
    return run_beside(folder, 'detectors', *jobs)


def recorded(folder: Path, key: str) -> list[dict]:
    return [row for row in map(json.loads, folder.read_text().splitlines()) if key in row]


def steps_of(folders: tuple[Path, Path], name: str) -> list[tuple[dict, dict, dict]]:
    """Return the rows of each step: of the one process, of the first and of the second of the two."""
    one, two = folders
    files = (one / name / 'record_0.jsonl', two / name / 'record_0.jsonl', two / name / 'record_1.jsonl')
    steps = list(zip(*(recorded(file, 'step') for file in files), strict=True))
    assert [row['step'] for row, _, _ in steps] == list(range(1, STEPS + 1))
    return steps


def mean_losses(first: dict, second: dict) -> dict:
    return {name: (value + second['losses'][name]) / 2 for name, value in first['losses'].items()}


def check_same_training(folders: tuple[Path, Path], name: str) -> None:
    for alone, first, second in steps_of(folders, name):
        assert sorted(first['images'] + second['images']) == sorted(alone['images'])
        assert not set(first['images']) & set(second['images'])
        assert abs(first['losses']['loss'] - second['losses']['loss']) > 1e-3  # they see different images
        assert mean_losses(first, second) == pytest.approx(alone['losses'], rel=ROUNDING)
        assert first['rates'] == second['rates'] == pytest.approx(alone['rates'], rel=1e-12)


def test_segmentor_trains_alike(segmentors):
    """Its loss is a mean over pixels, of which each process has equally many."""
    check_same_training(segmentors, 'segmentor')


@pytest.mark.slow
@pytest.mark.parametrize('name', ['fcos', 'boxes'])
def test_detectors_train_alike(detectors, name):
    """FCOS shares its normalisers; box losses of a cascade are means over a fixed number of samples, not drawn here."""
    check_same_training(detectors, name)


@pytest.mark.slow
def test_mask_loss_is_a_mean_over_the_positives_of_a_process(detectors):
    """Two processes weigh masks a little differently than one: each averages over its own number of objects."""
    alone, first, second = steps_of(detectors, 'cascade')[0]
    mean = mean_losses(first, second)
    others = {name: value for name, value in alone['losses'].items() if name != 'loss' and 'mask' not in name}
    assert {name: mean[name] for name in others} == pytest.approx(others, rel=ROUNDING)
    assert mean['s0.loss_mask'] != pytest.approx(alone['losses']['s0.loss_mask'], rel=10 * ROUNDING)
    for stage in range(3):
        counts = [row['positives'][stage] for row in (first, second)]
        losses = [row['losses'][f's{stage}.loss_mask'] for row in (first, second)]
        assert sum(counts) == alone['positives'][stage]
        assert np.average(losses, weights=counts) == pytest.approx(alone['losses'][f's{stage}.loss_mask'], rel=ROUNDING)


def check_same_weights(folder: Path) -> None:
    """The configs give each process a seed of its own: without synchronisation the weights would differ."""
    first, second = (recorded(folder / f'record_{rank}.jsonl', 'weights') for rank in (0, 1))
    assert first == second
    before, after = first
    assert before != after


@pytest.mark.parametrize('name', ['segmentor', 'resumed'])
def test_processes_have_the_same_weights(segmentors, name):
    check_same_weights(segmentors[1] / name)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['fcos', 'boxes', 'cascade'])
def test_processes_have_the_same_detector(detectors, name):
    check_same_weights(detectors[1] / name)


def check_same_metrics(folders: tuple[Path, Path], name: str) -> None:
    """Seven images by two processes: the image that fills up the eighth place does not count."""
    one, two = (folder / f'{name}_test' for folder in folders)
    files = (one / 'record_0.jsonl', two / 'record_0.jsonl', two / 'record_1.jsonl')
    (alone,), (first,), (second,) = (recorded(file, 'metrics') for file in files)
    assert first == second == alone
    assert max(alone['metrics'].values()) > 0


def test_segmentor_is_tested_alike(segmentors):
    check_same_metrics(segmentors, 'segmentor')
    one, two = ({file.name: file.read_bytes() for file in (folder / 'maps').iterdir()} for folder in segmentors)
    assert one == two
    assert len(one) == 7


@pytest.mark.slow
def test_detector_is_tested_alike(detectors):
    check_same_metrics(detectors, 'fcos')
    one, two = (pickle.loads((folder / 'boxes.pkl').read_bytes()) for folder in detectors)
    assert [sample['img_id'] for sample in two] == [sample['img_id'] for sample in one]
    assert len(two) == 7
    for sample, expected in zip(two, one, strict=True):
        for key, value in expected['pred_instances'].items():
            assert torch.equal(sample['pred_instances'][key], value)


def test_two_processes_resume(segmentors):
    """The second half again: the same images, losses and rates, nothing scaled twice."""
    for rank in (0, 1):
        rows = recorded(segmentors[1] / f'segmentor/record_{rank}.jsonl', 'step')
        again = recorded(segmentors[1] / f'resumed/record_{rank}.jsonl', 'step')
        assert again == rows[STEPS // 2 :]


def test_notes_of_two_processes(segmentors):
    output = (segmentors[1] / 'output.txt').read_text()
    assert [line for line in output.splitlines() if line.startswith('note: ')] == [
        'note: lr scaled by 0.25: 0.001 -> 0.00025 (total batch 4 = 2 processes x 2 images, recipe 16)',
        'note: the lr is that of the checkpoint; --auto-scale-lr acts when a training starts',
    ]
    copy = Config.fromfile(segmentors[1] / 'segmentor/segmentor.py')
    assert copy.optim_wrapper.optimizer.lr == 2.5e-4
    assert copy.auto_scale_lr.to_dict() == dict(enable=False, base_batch_size=4)


# The launch scripts


def run_script(script: str, *arguments, cwd: Path, **variables) -> subprocess.CompletedProcess:
    """Run a launch script, with the variables that it reads and no others of them."""
    known = ('NNODES', 'NODE_RANK', 'MASTER_ADDR', 'MASTER_PORT', 'PORT', 'OMP_NUM_THREADS')
    of_slurm = ('GPUS', 'GPUS_PER_NODE', 'CPUS_PER_TASK', 'SRUN_ARGS')
    environment = {name: value for name, value in os.environ.items() if name not in known + of_slurm}
    return subprocess.run(
        [ROOT / 'tools' / script, *map(str, arguments)],
        cwd=cwd,
        env={**environment, 'PYTHON': sys.executable, **variables},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture
def echo(tmp_path):
    """A program that prints its arguments, a line each, in a folder with a space in its name."""
    program = tmp_path / 'my programs/srun'
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\necho "port=$MASTER_PORT threads=$OMP_NUM_THREADS"\n')
    program.chmod(0o755)
    return program


ONE_MACHINE = ['--standalone', '--nproc-per-node', '2']


@pytest.mark.parametrize(
    ('variables', 'expected'),
    [
        ({}, ONE_MACHINE),
        ({'NODE_RANK': '1', 'MASTER_ADDR': '10.0.0.1'}, ONE_MACHINE),  # of several machines alone
        ({'PORT': '29700'}, ['--master-addr', '127.0.0.1', '--master-port', '29700', '--nproc-per-node', '2']),
        (
            {'NNODES': '3', 'NODE_RANK': '2', 'MASTER_ADDR': 'node-0'},
            ['--nnodes', '3', '--node-rank', '2', '--master-addr', 'node-0', '--master-port', '29500',
             '--nproc-per-node', '2'],
        ),
        (
            {'NNODES': '2', 'NODE_RANK': '0', 'MASTER_ADDR': 'node-0', 'PORT': '1234'},
            ['--nnodes', '2', '--node-rank', '0', '--master-addr', 'node-0', '--master-port', '1234',
             '--nproc-per-node', '2'],
        ),
    ],
)  # fmt: skip
def test_what_dist_train_starts(echo, tmp_path, variables, expected):
    result = run_script(
        'dist_train.sh', 'a config.py', 2, '--cfg-options', 'a=b c', cwd=tmp_path, PYTHON=str(echo),
        OMP_NUM_THREADS='3', **variables,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    torchrun, train = (str(ROOT / 'tools' / name) for name in ('torchrun.py', 'train.py'))
    options = ['--cfg-options', 'a=b c', '--launcher', 'pytorch']
    assert result.stdout.splitlines() == [torchrun, *expected, train, 'a config.py', *options, 'port= threads=3']


def test_what_dist_test_starts(echo, tmp_path):
    result = run_script('dist_test.sh', 'config.py', 'my file.pth', 1, '--tta', cwd=tmp_path, PYTHON=str(echo))
    assert result.stdout.splitlines()[3:] == [
        '1', str(ROOT / 'tools/test.py'), 'config.py', 'my file.pth', '--tta', '--launcher', 'pytorch',
        'port= threads=1',
    ]  # fmt: skip


@pytest.mark.parametrize(
    ('variables', 'gpus', 'per_node', 'cpus', 'words', 'port'),
    [
        ({}, '8', '8', '5', [], ''),
        ({'GPUS': '2', 'MASTER_PORT': '29501'}, '2', '2', '5', [], '29501'),
        (
            {'GPUS': '16', 'GPUS_PER_NODE': '4', 'CPUS_PER_TASK': '12', 'SRUN_ARGS': '--time 3-0 --exclusive',
             'PORT': '65535'},
            '16', '4', '12', ['--time', '3-0', '--exclusive'], '65535',
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    ('script', 'tool', 'rest'),
    [('slurm_train.sh', 'train.py', ['my config.py']), ('slurm_test.sh', 'test.py', ['my config.py', 'a.pth'])],
)
def test_what_slurm_scripts_start(echo, tmp_path, script, tool, rest, variables, gpus, per_node, cpus, words, port):
    path = f'{echo.parent}:{os.environ["PATH"]}'
    result = run_script(
        script, 'long queue', 'job', *rest, '--work-dir', 'x y', cwd=tmp_path, PATH=path, OMP_NUM_THREADS='1',
        **variables,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        '--partition', 'long queue', '--job-name', 'job', '--gres', f'gpu:{per_node}', '--ntasks', gpus,
        '--ntasks-per-node', per_node, '--cpus-per-task', cpus, '--kill-on-bad-exit=1', *words,
        sys.executable, '-u', str(ROOT / 'tools' / tool), *rest, '--work-dir', 'x y', '--launcher', 'slurm',
        f'port={port} threads=1',
    ]  # fmt: skip


@pytest.mark.parametrize(
    ('script', 'arguments', 'variables', 'message'),
    [
        ('dist_train.sh', [], {}, '2 arguments are needed, 0 came.'),
        ('dist_train.sh', ['c.py'], {}, '2 arguments are needed, 1 came.'),
        ('dist_test.sh', ['c.py', '8'], {}, '3 arguments are needed, 2 came.'),
        ('slurm_train.sh', ['p', 'j'], {}, '3 arguments are needed, 2 came.'),
        ('slurm_test.sh', ['p', 'j', 'c.py'], {}, '4 arguments are needed, 3 came.'),
        ('dist_train.sh', ['c.py', '0'], {}, "GPUS must be a whole number, 1 or more; got '0'."),
        ('dist_train.sh', ['c.py', '-1'], {}, "GPUS must be a whole number, 1 or more; got '-1'."),
        ('dist_train.sh', ['c.py', '08'], {}, "GPUS must be a whole number, 1 or more; got '08'."),
        ('dist_train.sh', ['c.py', '--amp'], {}, "GPUS must be a whole number, 1 or more; got '--amp'."),
        ('dist_test.sh', ['c.py', '2', 'a.pth'], {}, "GPUS must be a whole number, 1 or more; got 'a.pth'."),
        ('dist_train.sh', ['c.py', '2', 'x'], {}, "options start with a dash; got 'x'."),
        ('slurm_train.sh', ['p', 'j', 'c.py', 'work_dirs/x'], {}, "options start with a dash; got 'work_dirs/x'."),
        ('dist_train.sh', ['c.py', '2'], {'NNODES': 'two'}, "NNODES must be a whole number, 1 or more; got 'two'."),
        ('dist_train.sh', ['c.py', '2'], {'PORT': 'x'}, "PORT must be a whole number, 1 to 65535; got 'x'."),
        ('dist_train.sh', ['c.py', '2'], {'PORT': '65536'}, "PORT must be a whole number, 1 to 65535; got '65536'."),
        ('slurm_test.sh', list('pjcf'), {'PORT': '99999'}, "PORT must be a whole number, 1 to 65535; got '99999'."),
        ('slurm_train.sh', ['p', 'j', 'c.py'], {'PORT': '0'}, "PORT must be a whole number, 1 to 65535; got '0'."),
        ('dist_train.sh', ['c.py', '2'], {'NNODES': '2'}, 'NNODES=2 needs MASTER_ADDR, the address of the machine'),
        (
            'dist_train.sh', ['c.py', '2'], {'NNODES': '2', 'MASTER_ADDR': 'a'},
            "NODE_RANK must be a whole number, 0 or more; got ''.",
        ),
        (
            'dist_train.sh', ['c.py', '2'], {'NNODES': '2', 'MASTER_ADDR': 'a', 'NODE_RANK': '2'},
            "NODE_RANK must be less than NNODES=2; got '2'.",
        ),
        ('dist_train.sh', ['c.py', '2'], {'PYTHON': 'nowhere/python'}, 'there is no nowhere/python; set PYTHON to an'),
        ('slurm_train.sh', ['p', 'j', 'c.py'], {'GPUS': 'all'}, "GPUS must be a whole number, 1 or more; got 'all'."),
    ],
)  # fmt: skip
def test_wrong_arguments_get_the_usage(tmp_path, script, arguments, variables, message):
    result = run_script(script, *arguments, cwd=tmp_path, **variables)
    assert result.returncode == 2
    assert result.stderr.startswith(f'error: {message}')
    assert f'\nusage: tools/{script} ' in result.stderr
    assert result.stdout == ''


def test_slurm_scripts_without_slurm(tmp_path):
    path = os.pathsep.join(
        place for place in os.environ['PATH'].split(os.pathsep) if not (Path(place) / 'srun').exists()
    )
    result = run_script('slurm_train.sh', 'p', 'j', 'c.py', cwd=tmp_path, PATH=path)
    assert result.returncode == 2
    assert result.stderr.startswith('error: there is no srun here. Without Slurm use tools/dist_train.sh')


@pytest.mark.parametrize('script', ['dist_train.sh', 'dist_test.sh', 'slurm_train.sh', 'slurm_test.sh'])
def test_help(tmp_path, script):
    result = run_script(script, '--help', cwd=tmp_path)
    assert result.returncode == 0
    assert result.stdout.startswith(f'usage: tools/{script} ')


def test_scripts_find_the_python_of_the_clone(echo, tmp_path):
    tools = tmp_path / 'my clone/tools'
    shutil.copytree(ROOT / 'tools', tools, ignore=shutil.ignore_patterns('__pycache__'))
    path = f'{tmp_path}:{os.environ["PATH"]}'
    shutil.copy(echo, tmp_path / 'python')
    in_path = run_script(tools / 'dist_train.sh', 'c.py', 1, cwd=tmp_path, PYTHON='', PATH=path)
    assert in_path.stdout.startswith(f'{tools}/torchrun.py\n')
    (tmp_path / 'python').unlink()
    venv_python = tmp_path / 'my clone/.venv/bin/python'
    venv_python.parent.mkdir(parents=True)
    shutil.copy(echo, venv_python)
    in_venv = run_script(tools / 'dist_train.sh', 'c.py', 1, cwd=tmp_path, PYTHON='', PATH=path)
    assert in_venv.stdout == in_path.stdout


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


def test_dist_train(dist_train, folder):
    assert dist_train.returncode == 0, dist_train.stderr[-3000:]
    assert 'Warning' not in dist_train.stderr
    advice = 'note: lr kept at 0.001, for another batch size (total batch 4 = 2 processes x 2 images, recipe 8)'
    assert dist_train.stderr.count('lr kept') == dist_train.stderr.count(advice) == 1
    (scalars,) = folder.glob('run/*/vis_data/scalars.json')
    steps = [row['step'] for row in map(json.loads, scalars.read_text().splitlines()) if 'coco/bbox_mAP' in row]
    assert steps == [1, 2]
    assert '8 iterations in ' in dist_train.stdout  # 16 images by 2 processes of 2, twice
    assert dist_train.stdout.count('training finished') == 1
    assert len(ap_rows(dist_train.stdout)) == 6


@pytest.mark.slow
def test_dist_test(dist_train, folder):
    checkpoint = folder / 'run/epoch_2.pth'
    result = run_script('dist_test.sh', SHAPES_CONFIG, checkpoint, 2, '--work-dir', 'test', *drawn_options(folder),
                        cwd=folder)  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count('test finished') == 1
    assert ap_rows(result.stdout) == ap_rows(dist_train.stdout)


@pytest.mark.slow
def test_two_machines(folder, tmp_path):
    """Two machines of one process each, both of them this one."""
    work_dirs = [tmp_path / 'shared', tmp_path / 'shared']
    results = run_two_machines(folder / 'plain.py', work_dirs, tmp_path, '--auto-scale-lr')
    assert [code for code, _, _ in results] == [0, 0], results[0][2][-3000:]
    assert 'lr scaled by 0.25: 0.001 -> 0.00025 (total batch 4 = 2 processes x 2 images, recipe 16)' in results[0][2]
    assert 'note: ' not in results[1][2]
    assert [out.count('training finished') for _, out, _ in results] == [1, 0]

    results = run_two_machines(folder / 'plain.py', [tmp_path / 'shared', tmp_path / 'own'], tmp_path, '--resume')
    assert [code for code, _, _ in results] == [2, 2]
    assert 'error: The processes find different checkpoints to resume from (process 0: iter_10.pth, process 1: none). '\
        'Put the work dir on a disk that all machines share' in results[0][2]  # fmt: skip


def run_two_machines(config: Path, work_dirs: list[Path], cwd: Path, *options) -> list[tuple[int, str, str]]:
    """Return (exit code, standard output, standard error) of both."""
    shared = {**os.environ, 'PYTHON': sys.executable, 'NNODES': '2', 'MASTER_ADDR': '127.0.0.1', 'PORT': free_port()}
    machines = [
        subprocess.Popen(
            [ROOT / 'tools/dist_train.sh', config, '1', '--work-dir', work_dir, *options],
            cwd=cwd, env={**shared, 'NODE_RANK': str(rank)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank, work_dir in enumerate(work_dirs)
    ]  # fmt: skip
    try:
        texts = [machine.communicate(timeout=300) for machine in machines]
    finally:
        for machine in machines:
            machine.terminate()
    return [(machine.returncode, *text) for machine, text in zip(machines, texts, strict=True)]


def free_port() -> str:
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return str(s.getsockname()[1])


# Mistakes


def test_mistake_of_all_processes_is_told_once(tmp_path):
    result = run_script('dist_train.sh', 'nowhere.py', 2, cwd=tmp_path)
    assert result.stderr == 'error: The config file nowhere.py does not exist.\n'
    assert result.returncode == 2


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--nproc-per-node', '1', '--master-port', '99999'], "9999' must be an integer between 0 and 65536."),
        (['--nproc-per-node', 'some', '--standalone'], 'Unsupported nproc_per_node value: some'),
        (['--nproc-per-node', '0', '--standalone'], 'an option is out of range'),
    ],
)
def test_options_that_torchrun_refuses(tmp_path, options, message):
    (tmp_path / 'script.py').write_text('')
    command = [sys.executable, ROOT / 'tools/torchrun.py', *options, 'script.py']
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
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
        mistakes.run_errors(model),
    ):
        raise error
    with pytest.raises(RuntimeError, match='another'), mistakes.run_errors(model):
        raise RuntimeError('another')


def test_lost_connection_is_no_mistake_in_the_config():
    with pytest.raises(RuntimeError, match='closed by peer'), mistakes.build_errors():
        raise RuntimeError('[gloo/transport/tcp/pair.cc:561] Connection closed by peer')


@pytest.fixture
def slate(monkeypatch, tmp_path):
    """The folder by which torchrun lets its processes tell what went wrong."""
    monkeypatch.setenv('TORCHELASTIC_ERROR_FILE', str(tmp_path / '0/error.json'))


def test_a_mistake_of_several_processes_is_told_by_the_first_that_finds_it(slate, capsys):
    for _ in range(3):
        with pytest.raises(SystemExit), command_line.user_errors():
            raise UserError('wrong')
        assert launch.was_said()
    assert capsys.readouterr().err == 'error: wrong\n'


@pytest.mark.parametrize('is_known', [True, False])
def test_a_lost_connection_is_no_news_where_the_reason_was_told(slate, capsys, is_known):
    if is_known:
        launch.say_once('error: wrong')
    with pytest.raises(SystemExit if is_known else RuntimeError), command_line.user_errors():
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
    for name in (
        'RANK',
        'WORLD_SIZE',
        'LOCAL_RANK',
        'LOCAL_WORLD_SIZE',
        'SLURM_PROCID',
        'SLURM_NTASKS',
        'TORCHELASTIC_ERROR_FILE',
        'TORCHELASTIC_RUN_ID',
    ):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(('names', 'is_same'), [(('a/epoch_3.pth', 'b/epoch_3.pth'), True), ((None, None), True),
                                                (('a/epoch_3.pth', 'a/epoch_2.pth'), False),
                                                ((None, 'a/epoch_2.pth'), False)])  # fmt: skip
def test_processes_resume_from_the_same_checkpoint(monkeypatch, names, is_same):
    monkeypatch.setattr(launch, 'all_gather_object', lambda _: list(names))
    refusal = contextlib.nullcontext() if is_same else pytest.raises(UserError, match='find different checkpoints')
    with refusal:
        launch.check_same_checkpoint('a/epoch_3.pth')
