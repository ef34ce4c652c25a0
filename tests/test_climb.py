"""The table and the picture of the ladder, and trainings that go on where they were interrupted."""

import json
import re
import subprocess
from pathlib import Path

import pytest
from mmengine.registry import MODELS
from test_recipes import OWN, differing

from convnext_dense import UserError
from convnext_dense.configs import config_folder, load_config, model_scope
from convnext_dense.ladder import channels, steps
from convnext_dense.train import climb as ladder
from convnext_dense.train.stats import build_on_meta

LAST = 1000  # iterations of a training on the drawn data
DOCS = Path(__file__).parent.parent / 'docs'


def counted(text):
    """Return the cells of the wide table that do not depend on a machine or a training."""
    return [line.split(' | ')[:8] for line in text.splitlines() if line.count(' | ') > 8]


def log_validation(work_dir, step, score):
    file = work_dir / '20260101_000000/vis_data/scalars.json'
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open('a') as log:
        log.write(json.dumps(dict(step=step, mIoU=score)) + '\n{"step": ')  # and a line that was cut


@pytest.fixture
def trainings(monkeypatch):
    """Stand-ins for trainings: each ends with mIoU 50 plus its seed."""
    commands = []

    def run(command, stdout, **options):
        work_dir = command[command.index('--work-dir') + 1]
        commands.append((command, options['env'].get('OMP_NUM_THREADS')))
        seed = int(command[-1].removeprefix('randomness.seed='))
        log_validation(ladder.Path(work_dir), LAST, 50.0 + seed)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(ladder.subprocess, 'run', run)
    return commands


@pytest.mark.slow
def test_table_and_picture(tmp_path, trainings):
    table = ladder.climb(tmp_path, rounds=0, train=True, seeds=2, jobs=2)
    assert len(trainings) == 2 * len(steps())
    assert all('--resume' in command and threads == '1' for command, threads in trainings)
    rows = json.loads((tmp_path / 'ladder.json').read_text())
    assert [row['step'] for row in rows] == list(steps())
    assert all(row['mIoU'] == 50.5 for row in rows)
    _, _, first, *_, last = table.splitlines()
    assert first.startswith('| resnet | 78.82 | 81.14 | 23.51 | 4.09 |')
    assert last.startswith('| convnext | 81.97 | 83.60 | 27.81 | 4.45 |')
    assert '| 44.4 | 259 |' in first  # Mask R-CNN R50 in arXiv 2201.03545, Table 3: 44 M parameters, 260 GFLOPs
    assert last.endswith('| 50.5 | 50.0, 51.0 |')
    assert counted((DOCS / 'ladder.md').read_text()) == counted(table)
    assert (tmp_path / 'ladder.md').read_text() == table
    assert (tmp_path / 'ladder.png').read_bytes().startswith(b'\x89PNG')
    ladder.train_steps(tmp_path / 'runs', seeds=2, jobs=1)
    assert len(trainings) == 2 * len(steps())  # nothing is trained twice


def test_a_picture_with_all_columns(tmp_path):
    rows = [dict.fromkeys(ladder.COLUMNS, 80.0) | {'step': step, 'mIoU of the seeds': '75, 85'} for step in steps()]
    ladder.draw_ladder(rows, tmp_path / 'ladder.png')
    assert (tmp_path / 'ladder.png').is_file()
    assert sum(ladder.STAGES.values()) == len(steps())


def test_an_unfinished_training_has_no_score(tmp_path):
    log_validation(tmp_path, LAST // 2, 40.0)
    assert ladder.read_score(tmp_path) is None
    log_validation(tmp_path, LAST, 45.0)
    assert ladder.read_score(tmp_path) is None  # its line continues the one that was cut


def test_a_training_that_fails_is_answered(tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess([], 1)
    monkeypatch.setattr(ladder.subprocess, 'run', lambda *args, **options: failed)
    with pytest.raises(UserError, match=r'resnet/seed_0.*output\.txt'):
        ladder.train_steps(tmp_path, seeds=1, jobs=1)


@pytest.mark.parametrize('wrong', [dict(size=(640, 400)), dict(seeds=0), dict(jobs=0), dict(rounds=-1)])
def test_numbers_out_of_range_are_answered(wrong, tmp_path):
    with pytest.raises(UserError, match='--size takes multiples of 32, --seeds and --jobs 1 or more'):
        ladder.climb(tmp_path, **wrong)


@pytest.mark.parametrize('step', steps())
def test_every_step_has_its_configs(step):
    for name in (f'mask_rcnn_{step}_coco', f'upernet_{step}_ade20k', f'upernet_{step}_shapes'):
        cfg = load_config(config_folder() / f'ladder/{name}.py')
        assert cfg.model.backbone.step == step
        with model_scope(cfg):
            model = build_on_meta(cfg.model)
        widths = channels(step, design=cfg.model.backbone.get('design'))
        given = cfg.model.neck if 'neck' in cfg.model else cfg.model.decode_head
        assert list(model.backbone.dims) == list(given.in_channels) == widths
    files = {file.stem for file in (config_folder() / 'ladder').glob('*.py')}
    assert len(files) == 3 * len(steps()) + 2  # and two recipes for the first step


def test_configs_are_those_of_the_published_row_but_for_the_backbone():
    ours, theirs = (load_config(f'{name}_coco') for name in ('ladder/mask_rcnn_convnext', 'det/mask_rcnn_convnext_t'))
    for key in ('optim_wrapper', 'param_scheduler', 'train_cfg', 'train_dataloader', 'val_dataloader'):
        assert ours[key] == theirs[key]
    assert ours.model.roi_head == theirs.model.roi_head
    for key in ('drop_path_rate', 'init_cfg', 'layer_scale_init_value'):
        assert ours.model.backbone[key] == theirs.model.backbone[key]
    assert MODELS.get('ModernizedResNet')


def test_two_recipes_of_one_network():
    sgd, adamw = (load_config(f'ladder/mask_rcnn_resnet_{name}_shapes').to_dict() for name in ('sgd', 'adamw'))
    pipeline = {'train_pipeline', 'train_dataloader.dataset.pipeline'}
    optimizer = {f'optim_wrapper.optimizer.{name}' for name in ('type', 'lr', 'momentum', 'betas', 'weight_decay')}
    variables = {'load', 'annotate', 'flip', 'pack', 'resize', 'crop'}
    assert set(differing(sgd, adamw)) - variables == pipeline | optimizer | {'model.backbone.drop_path_rate'}
    assert [sgd.get(key) for key in OWN] == [adamw.get(key) for key in OWN]
    page = (DOCS / 'modern_training.md').read_text()
    for name in ('lr', 'weight_decay'):
        values = [recipe['optim_wrapper']['optimizer'][name] for recipe in (sgd, adamw)]
        assert re.search(rf'\| {values[0]:g}\b.* \| {values[1]:g} \|', page)
