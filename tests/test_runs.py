"""Whole runs through the tools on drawn data, and every mistake of a user that a run answers."""

import errno
import json
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from convnext_dense import UserError, configs
from convnext_dense import cli as command_line
from convnext_dense.compat import read_checkpoint
from convnext_dense.configs import model_scope
from convnext_dense.data import write_shapes
from convnext_dense.train import config as run_config
from convnext_dense.train import mistakes
from convnext_dense.train import run as runs
from convnext_dense.train.stats import build

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / 'configs/det/cascade_convnext_atto_shapes.py'
COCO_CONFIG = ROOT / 'configs/det/cascade_convnext_t_coco.py'
DRAWN = dict(num_train=8, num_val=3, size=64)
EPOCHS, ITERS_PER_EPOCH = 5, 2
# MMEngine warns of the second runner in one process, which only tests have
pytestmark = [
    pytest.mark.filterwarnings('ignore:.*instance named of .* has been created:UserWarning'),
    pytest.mark.filterwarnings('ignore:__array_:DeprecationWarning'),  # NumPy's, of pycocotools and mmdet's visualizer
]


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp('data') / 'shapes', **DRAWN)


@pytest.fixture
def options(shapes):
    """Options that shrink the first command to a few iterations."""
    small = {f'{split}_dataloader.dataset.{key}': value for split in ('train', 'val') for key, value in DRAWN.items()}
    roots = {f'{split}_dataloader.dataset.data_root': str(shapes) for split in ('train', 'val', 'test')}
    test = {f'test_dataloader.dataset.{key}': value for key, value in DRAWN.items()}
    ann_file = str(shapes / 'annotations/instances_val.json')
    return {
        **small,
        **test,
        **roots,
        'train_dataloader.batch_size': 4,
        'train_cfg.max_epochs': EPOCHS,
        'val_evaluator.ann_file': ann_file,
        'test_evaluator.ann_file': ann_file,
        'default_hooks.logger.interval': 1,
        'model.test_cfg.rcnn.score_thr': 0.0,  # a few iterations give no confident prediction
    }


def command(tool: str, *arguments, options: dict | None = None) -> list[str]:
    pairs = [f'{key}={value}' for key, value in (options or {}).items()]
    return [str(a) for a in (f'tools/{tool}.py', *arguments, *(['--cfg-options', *pairs] if pairs else []))]


@pytest.fixture
def run_tool(monkeypatch, capfd):
    """Return a function that runs a tool in this process, as Python runs a script."""

    def run(*arguments, options=None) -> subprocess.CompletedProcess:
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, 'argv', command(*arguments, options=options))
        capfd.readouterr()
        code = 0
        try:
            runpy.run_path(sys.argv[0], run_name='__main__')
        except SystemExit as leave:
            code = leave.code or 0
        return subprocess.CompletedProcess(sys.argv, code, *capfd.readouterr())

    return run


def logged_rows(work_dir: Path) -> list[dict]:
    """Return the rows of the latest run's JSON lines."""
    latest = max(work_dir.glob('*/vis_data/scalars.json'))
    return [json.loads(line) for line in latest.read_text().splitlines()]


def test_train_kill_resume_test(options, tmp_path, run_tool):
    with subprocess.Popen(
        [sys.executable, *command('train', CONFIG, '--work-dir', tmp_path, options=options)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        deadline = time.monotonic() + 240
        while 'epoch_2' not in read_if_there(tmp_path / 'last_checkpoint'):
            assert process.poll() is None, 'training ended early'
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
    done = int(Path(read_if_there(tmp_path / 'last_checkpoint')).stem.split('_')[1])
    assert done < EPOCHS, 'killed too late to resume'

    resumed = subprocess.run(
        [sys.executable, *command('train', CONFIG, '--work-dir', tmp_path, '--resume', options=options)],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert resumed.returncode == 0, resumed.stderr
    assert f'resumed epoch: {done}, iter: {done * ITERS_PER_EPOCH}' in resumed.stdout
    losses = [row for row in logged_rows(tmp_path) if 'loss' in row]
    assert [row['step'] for row in losses] == list(range(done * ITERS_PER_EPOCH + 1, EPOCHS * ITERS_PER_EPOCH + 1))
    checkpoint = read_checkpoint(tmp_path / f'epoch_{EPOCHS}.pth')
    steps = {int(state['step']) for state in checkpoint['optimizer']['state'].values()}
    assert steps == {EPOCHS * ITERS_PER_EPOCH}
    assert checkpoint['meta']['iter'] == EPOCHS * ITERS_PER_EPOCH
    check_screen(resumed.stdout, resumed.stderr, tmp_path)

    tested = run_tool(
        'test', CONFIG, tmp_path / f'epoch_{EPOCHS}.pth', '--work-dir', tmp_path / 'test', options=options
    )
    assert tested.returncode == 0, tested.stderr
    assert ap_rows(tested.stdout) == ap_rows(resumed.stdout)
    assert 'predictions' in tested.stdout


def read_if_there(file: Path) -> str:
    return file.read_text() if file.exists() else ''


def ap_rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines() if line.startswith('AP')]


def check_screen(text: str, errors: str, work_dir: Path) -> None:
    """The table, the files that it names, and nothing that does not belong on a screen."""
    rows = ap_rows(text)
    assert [row[0] for row in rows] == ['AP', 'AP50', 'AP75', 'APs', 'APm', 'APl']
    named = dict(
        line.split(maxsplit=1)
        for line in text.splitlines()
        if line.startswith(('checkpoint', 'metrics', 'curves', 'pred'))
    )
    assert set(named) == {'checkpoint', 'metrics', 'curves', 'predictions'}
    for file in named.values():
        assert Path(file).stat().st_size > 0
    assert 'System environment' not in text
    assert 'Warning' not in text + errors
    assert len([line for line in text.splitlines() if 'Epoch(train)' in line]) <= EPOCHS * ITERS_PER_EPOCH
    assert max(map(len, text.splitlines())) < 250
    log = max(work_dir.glob('*/*.log')).read_text()
    assert 'System environment' in log


SEGMENTOR = """
_base_ = ['{root}/configs/_base_/runtime.py']
default_scope = 'mmseg'
data = dict(type='ShapesLabels', data_root='{shapes}', num_train=8, num_val=3, size=64)
load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', reduce_zero_label=True)]
pack = dict(type='PackSegInputs')
crop = dict(type='RandomCrop', crop_size=(64, 64))
train_dataloader = dict(
    batch_size=4,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(split='train', pipeline=[*load, crop, pack], **data),
)
val_dataloader = dict(
    batch_size=1,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(split='val', pipeline=[*load, pack], **data),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(64, 64),
    ),
    backbone=dict(type='ConvNeXt', arch='atto', out_indices=(0,)),
    decode_head=dict(
        type='FCNHead', in_channels=40, in_index=0, channels=16, num_convs=1, num_classes=8,
        norm_cfg=dict(type='SyncBN'), loss_decode=dict(type='CrossEntropyLoss'),
    ),
    test_cfg=dict(mode='whole'),
)
train_cfg = dict(type='IterBasedTrainLoop', max_iters=6, val_interval=3)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='AmpOptimWrapper',
    constructor='ConvNeXtStageDecay',
    paramwise_cfg=dict(decay_rate=0.9),
    optimizer=dict(type='AdamW', lr=1e-3),
)
log_processor = dict(by_epoch=False)
default_hooks = dict(
    logger=dict(interval=1),
    checkpoint=dict(by_epoch=False, interval=3),
    visualization=dict(type='SegVisualizationHook'),
)
visualizer = dict(type='SegLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')], name='visualizer')
"""


TALKING = """
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, TRANSFORMS

@HOOKS.register_module()
class TalkingHook(Hook):
    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        print('a hook of the user speaks')

@TRANSFORMS.register_module()
class TalkingTransform:
    def __call__(self, results):
        print('a transform of the user speaks in a worker')
        return results
"""
TALKING_CONFIG = """
custom_imports = dict(imports=['convnext_dense', 'talking'], allow_failed_imports=False)
custom_hooks = [dict(type='TalkingHook')]
train_dataloader['num_workers'] = 1
train_dataloader['dataset']['pipeline'].insert(0, dict(type='TalkingTransform'))
"""


def test_segmentor_trains_and_tests_with_the_same_tools(shapes, tmp_path, run_tool, monkeypatch):
    config = tmp_path / 'config.py'
    config.write_text(SEGMENTOR.format(root=ROOT, shapes=shapes) + TALKING_CONFIG)
    (tmp_path / 'talking.py').write_text(TALKING)
    monkeypatch.syspath_prepend(tmp_path)
    trained = run_tool('train', config, '--work-dir', tmp_path / 'run')
    assert trained.returncode == 0, trained.stderr
    assert 'a hook of the user speaks\n' in trained.stdout
    assert 'a transform of the user speaks in a worker\n' in trained.stdout
    note = 'note: no GPU: training in fp32'
    assert note in trained.stderr
    (log,) = (tmp_path / 'run').glob('*/*.log')
    assert log.read_text().count(note) == 1
    assert 'Iter(train) [6/6]  loss ' in trained.stdout
    (miou,) = [line.split()[1] for line in trained.stdout.splitlines() if line.startswith('mIoU')]
    assert (tmp_path / 'run/predictions.png').stat().st_size > 0
    assert (tmp_path / 'run/curves.png').stat().st_size > 0
    outputs = ('--work-dir', tmp_path / 'test', '--out', tmp_path / 'out', '--show-dir', 'drawn')
    one_of_its_own = {'visualizer.name': 'second'}  # MMEngine keeps those of a process by their names
    tested = run_tool('test', config, tmp_path / 'run/iter_6.pth', *outputs, options=one_of_its_own)
    assert tested.returncode == 0, tested.stderr
    assert [line.split()[1] for line in tested.stdout.splitlines() if line.startswith('mIoU')] == [miou]
    assert len(list((tmp_path / 'out').glob('*.png'))) == DRAWN['num_val']
    (log,) = (tmp_path / 'test').glob('*/*.log')
    assert len(list((log.parent / 'drawn').glob('*.png'))) == DRAWN['num_val']
    assert (log.parent / 'vis_data/config.py').exists()
    assert not (ROOT / 'drawn').exists()


RUN_HOOKS = ['CheckWeightsHook', 'ProgressBarHook', 'RunSummaryHook']


@pytest.mark.parametrize(
    ('given', 'hooks', 'processor'),
    [
        ({}, RUN_HOOKS, dict(type='OneLineLogProcessor')),
        (  # the end of a config of MMDetection's
            dict(
                custom_hooks=[dict(type='EMAHook', momentum=0.1), dict(type='RunSummaryHook')],
                log_processor=dict(type='LogProcessor', window_size=5, _scope_='mmdet'),
            ),
            ['EMAHook', 'RunSummaryHook', 'CheckWeightsHook', 'ProgressBarHook'],
            dict(type='OneLineLogProcessor', window_size=5, _scope_='mmdet'),
        ),
        (dict(custom_hooks=None, log_processor=dict(type='Theirs')), RUN_HOOKS, dict(type='Theirs')),
        (dict(runner_type='OneLineRunner'), RUN_HOOKS, dict(type='OneLineLogProcessor')),
        (dict(runner_type='Runner', custom_hooks=[]), [], None),
    ],
)
def test_a_config_of_any_origin_is_watched(given, hooks, processor, tmp_path):
    cfg = Config(given)
    for _ in range(2):  # what is there is not added again
        run_config.settle(cfg, str(tmp_path), 'none')
        assert [hook['type'] for hook in cfg.custom_hooks] == hooks
        assert cfg.get('log_processor') == processor


def test_the_given_config_stays_as_it_is(options):
    given = configs.load_config(CONFIG, options)
    before = given.pretty_text
    cfg, _ = run_config.for_training(given, 'run', 'none', 'epoch_1.pth', amp=True, auto_scale_lr=True)
    assert (cfg.work_dir, cfg.resume, cfg.load_from) == ('run', True, 'epoch_1.pth')
    cfg, _ = run_config.for_testing(given, 'test', 'none', 'epoch_1.pth', (False, 'drawn', 0), True, 'out.pkl')
    assert (cfg.work_dir, cfg.load_from, cfg.train_dataloader) == ('test', 'epoch_1.pth', None)
    assert given.pretty_text == before


RETINANET = """
_base_ = '{root}/configs/det/retinanet_convnext_t_coco.py'
data = dict(_delete_=True, type='ShapesInstances', data_root='{shapes}', num_train=8, num_val=3, size=64)
small = dict(type='Resize', scale=(64, 64), keep_ratio=True)
load, annotate, _, *others = _base_.train_pipeline
train = dict(data, split='train', pipeline=[load, annotate, small, *others])
test = dict(data, split='val', test_mode=True, pipeline=[load, small, *_base_.test_pipeline[2:]])
train_dataloader = dict(batch_size=4, num_workers=0, persistent_workers=False, dataset=train)
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=test)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file='{shapes}/annotations/instances_val.json')
test_evaluator = val_evaluator
model = dict(
    backbone=dict(arch='atto', init_cfg=None),
    neck=dict(in_channels=[80, 160, 320]),
    bbox_head=dict(num_classes=5),
    test_cfg=dict(score_thr=0.0),
)
train_cfg = dict(max_epochs=1)
default_hooks = dict(logger=dict(interval=1))
"""


def test_a_config_with_upstreams_runtime_trains_and_tests(shapes, tmp_path, capfd):
    config, run = tmp_path / 'config.py', tmp_path / 'run'
    config.write_text(RETINANET.format(root=ROOT, shapes=shapes))
    # MMEngine keeps one visualizer of a name in a process; that of an earlier run logs elsewhere
    runs.train(config, str(run), cfg_options={'visualizer.name': 'retinanet'})
    shown = capfd.readouterr().out
    assert 'Epoch(train) [1][2/2]  loss ' in shown
    assert '2 iterations in ' in shown
    assert [row[0] for row in ap_rows(shown)] == ['AP', 'AP50', 'AP75', 'APs', 'APm', 'APl']
    assert (run / 'predictions.png').stat().st_size > 0
    metrics = runs.test(config, str(run / 'epoch_1.pth'), str(tmp_path / 'test'))
    (trained,) = [row for row in logged_rows(run) if 'coco/bbox_mAP' in row]
    assert metrics == {name: value for name, value in trained.items() if name.startswith('coco/')}


@pytest.mark.parametrize('backends', [None, ['TensorboardVisBackend'], ['LocalVisBackend', 'TensorboardVisBackend']])
def test_pictures_are_drawn_below_the_log(backends):
    given = {} if backends is None else {'vis_backends': [dict(type=name) for name in backends]}
    cfg = Config(dict(default_hooks=dict(visualization=dict(type='SegVisualizationHook')), visualizer=given))
    run_config.enable_pictures(cfg, False, 'drawn', 0)
    local = [backend for backend in cfg.visualizer.vis_backends if backend.type == 'LocalVisBackend']
    assert local == [dict(type='LocalVisBackend', img_save_dir='../drawn')]
    cfg = Config(dict(default_hooks=dict(visualization=dict(type='DetVisualizationHook'))))
    run_config.enable_pictures(cfg, False, 'drawn', 0)
    assert cfg.default_hooks.visualization.test_out_dir == 'drawn'


def test_mmdetections_own_tool_trains_the_config(options, tmp_path):
    import mmdet

    tool = Path(mmdet.__file__).parent / '.mim/tools/train.py'
    pairs = [f'{key}={value}' for key, value in {**options, 'train_cfg.max_epochs': 1}.items()]
    result = subprocess.run(
        [sys.executable, tool, CONFIG, '--work-dir', tmp_path, '--cfg-options', *pairs],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert (tmp_path / 'epoch_1.pth').exists()


def test_missing_coco_is_answered_at_once(tmp_path, run_tool):
    start = time.monotonic()
    result = run_tool(
        'train', COCO_CONFIG, '--work-dir', tmp_path, options={'train_dataloader.dataset.data_root': 'nowhere/'}
    )
    assert result.returncode == 2
    assert result.stderr.startswith('error: ')
    assert 'nowhere/annotations/instances_train2017.json' in result.stderr
    assert 'train_dataloader.dataset.data_root=' in result.stderr
    assert 'Traceback' not in result.stderr
    assert result.stdout == ''
    assert time.monotonic() - start < 60
    assert list(tmp_path.iterdir()) == []


def test_show_lr_needs_neither_data_nor_weights(run_tool):
    result = run_tool('show_lr', COCO_CONFIG)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith('ConvNeXtLayerDecay: decay rate 0.7, base lr 0.0002, lr 1.65e-05 to 0.0002\n')
    assert len(result.stdout.splitlines()) == 18


def test_show_lr_of_another_constructor():
    with pytest.raises(UserError, match=r'must be ConvNeXtLayerDecay or ConvNeXtStageDecay .* has None'):
        runs.describe_rates(COCO_CONFIG, {'optim_wrapper.constructor': None})


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A checkpoint of an untrained femto detector, as MMEngine writes it."""
    from mmengine.registry import MODELS, init_default_scope

    cfg = Config.fromfile(CONFIG)
    init_default_scope('mmdet')
    cfg.model.backbone.arch = 'femto'
    cfg.model.neck.in_channels = [48, 96, 192, 384]
    model = MODELS.build(cfg.model)
    file = tmp_path_factory.mktemp('checkpoint') / 'femto.pth'
    torch.save({'meta': {}, 'state_dict': model.state_dict()}, file)
    return file


def test_checkpoint_of_another_architecture_is_refused(options, trained, tmp_path, run_tool):
    result = run_tool('test', CONFIG, trained, '--work-dir', tmp_path, options=options)
    assert result.returncode == 2
    assert 'It is ConvNeXt femto, the model is ConvNeXt atto.' in result.stderr
    assert 'Traceback' not in result.stderr


def test_fine_tuning_from_another_architecture_is_refused(options, trained, tmp_path):
    with pytest.raises(UserError, match='does not fit the backbone. It is ConvNeXt femto'):
        runs.train(CONFIG, str(tmp_path), cfg_options={**options, 'load_from': str(trained)})


@pytest.mark.parametrize(
    ('typo', 'message'),
    [
        (
            {'model.backbone.arch': 'atoo'},
            "The config cannot be built: .*Unknown ConvNeXt arch 'atoo'. Allowed: atto, femto",
        ),
        (
            {'model.backbone.type': 'ConvNext'},
            'The config cannot be built: ConvNext is not in the mmdet::model registry',
        ),
        ({'model.backbone.drop_path': 0.1}, "The config cannot be built: .*unexpected keyword argument 'drop_path'"),
        (
            {'optim_wrapper.optimizer.type': 'AdamWW'},
            "no optimizer 'AdamWW'. Did you mean AdamW",
        ),
        ({'optim_wrapper.paramwise_cfg.decay': 0.1}, r"paramwise_cfg has unknown keys \['decay'\]"),
        ({'train_cfg.max_epoch': 3}, "The config cannot be built: .*unexpected keyword argument 'max_epoch'"),
        ({'train_dataloader.dataset.split': 'trian'}, 'trian'),
    ],
)
def test_typos_in_a_config(options, tmp_path, typo, message):
    with pytest.raises(UserError, match=message):
        runs.train(CONFIG, str(tmp_path), cfg_options={**options, **typo})


def test_mistyped_top_level_key(tmp_path):
    file = tmp_path / 'config.py'
    file.write_text(f'_base_ = [{str(CONFIG)!r}]\noptim_wraper = dict(type="OptimWrapper")\n')
    with pytest.raises(UserError, match="sets 'optim_wraper', which nothing reads. Did you mean 'optim_wrapper'"):
        configs.load_config(file)


def test_config_that_does_not_parse(tmp_path):
    file = tmp_path / 'config.py'
    file.write_text('model = dict(\n')
    with pytest.raises(UserError, match='cannot be read: .*never closed'):
        configs.load_config(file)


def test_missing_config_names_its_neighbours():
    with pytest.raises(UserError, match=r'does not exist. Did you mean .*cascade_convnext_t_coco\.py'):
        configs.load_config(COCO_CONFIG.with_name('cascade_convnxt_t_coco.py'))


def test_work_dir_that_cannot_be_written(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(UserError, match='The work dir .*file/run cannot be written .*Give another one with --work-dir'):
        runs.train(CONFIG, str(tmp_path / 'file/run'))


def test_missing_checkpoint_names_those_beside_it(tmp_path, trained):
    with pytest.raises(
        UserError, match=r'Checkpoint .*epoch_9\.pth does not exist. The checkpoints in .* are: femto\.pth\.'
    ):
        runs.test(CONFIG, str(trained.with_name('epoch_9.pth')), str(tmp_path))
    with pytest.raises(
        UserError, match=r'Checkpoint nothing/here.pth does not exist, and neither does the folder nothing'
    ):
        runs.train(CONFIG, str(tmp_path), resume='nothing/here.pth')


def test_options_that_a_config_does_not_support(tmp_path, trained):
    with pytest.raises(UserError, match='--tta needs tta_model in the config'):
        runs.test(CONFIG, str(trained), str(tmp_path), tta=True, cfg_options={'tta_model': None})
    with pytest.raises(UserError, match='--out takes a .pkl file'):
        runs.test(CONFIG, str(trained), str(tmp_path), out='predictions.txt')
    with pytest.raises(UserError, match='--auto-scale-lr needs the batch size'):
        runs.train(CONFIG, str(tmp_path), auto_scale_lr=True, cfg_options={'auto_scale_lr': None})
    with pytest.raises(UserError, match='has no train_dataloader'):
        runs.train(CONFIG, str(tmp_path), cfg_options={'train_dataloader': None})


class Reading(torch.utils.data.Dataset):
    """A data set of one sample, which a transform cannot read."""

    def __init__(self, transform, results):
        self.transform, self.results = transform, results

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return self.transform(dict(self.results))


IMAGE_CURE = 'Replace it or take it out of the annotations'


@pytest.mark.parametrize('num_workers', [0, 1])
@pytest.mark.parametrize(
    ('name', 'content', 'message'),
    [
        ('my photos/7.jpg', 'no image', rf'The image .*/my photos/7\.jpg is damaged\. {IMAGE_CURE}'),
        ("it's.jpg", None, rf"The image .*/it's\.jpg does not exist\. {IMAGE_CURE}"),
        ('label.png', None, r'The label map .*/label\.png does not exist\. Replace it or take its image'),
        ('objects.json', None, r'The annotation file .*/objects\.json does not exist\. Set data_root and ann_file'),
        ('a.pth', None, r'The checkpoint .*/a\.pth does not exist\. Set load_from'),
        ('notes', None, r'The file .*/notes does not exist\. Put it there'),
    ],
)
def test_file_that_cannot_be_read_in_the_middle_of_a_run(name, content, message, num_workers, tmp_path):
    from mmcv.transforms import LoadAnnotations, LoadImageFromFile

    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    if content:
        file.write_text(content)
    transform = LoadImageFromFile()
    if 'label' in name:
        transform = LoadAnnotations(with_bbox=False, with_label=False, with_seg=True)
    loader = torch.utils.data.DataLoader(
        Reading(transform, dict(img_path=str(file), seg_map_path=str(file))), num_workers=num_workers
    )
    with pytest.raises(UserError, match=message) as error, mistakes.run_errors():
        next(iter(loader))
    assert '--resume' in str(error.value)


@pytest.mark.parametrize('error', [AssertionError('a bug'), RuntimeError('Caught in a worker\nOriginal Traceback')])
def test_other_errors_of_a_run_keep_their_traceback(error):
    with pytest.raises(type(error)) as raised, mistakes.run_errors():
        raise error
    assert raised.value is error


class Saving(runs.OneLineRunner):
    """A runner of which nothing is built."""

    def __init__(self):
        pass


@pytest.mark.parametrize('failure', [OSError(errno.ENOSPC, 'No space left on device'), KeyboardInterrupt()])
def test_a_save_that_fails_leaves_the_old_checkpoint(failure, tmp_path, monkeypatch):
    def break_off(self, out_dir, filename, *args, **kwargs):
        (Path(out_dir) / filename).write_bytes(b'half of a n')
        raise failure

    (tmp_path / 'best.pth').write_bytes(b'old')
    monkeypatch.setattr(runs.Runner, 'save_checkpoint', break_off)
    message = 'disk of the work dir is full' if isinstance(failure, OSError) else None
    allowed = UserError if isinstance(failure, OSError) else KeyboardInterrupt
    with pytest.raises(allowed, match=message), mistakes.run_errors():
        Saving().save_checkpoint(str(tmp_path), 'best.pth')
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {'best.pth': b'old'}


def test_a_save_replaces_the_old_checkpoint_when_it_is_on_the_disk(tmp_path, monkeypatch):
    flushed = []

    def save(self, out_dir, filename, *args, **kwargs):
        assert (tmp_path / 'best.pth').read_bytes() == b'old'
        (Path(out_dir) / filename).write_bytes(b'new')

    (tmp_path / 'best.pth').write_bytes(b'old')
    monkeypatch.setattr(runs.Runner, 'save_checkpoint', save)
    monkeypatch.setattr(runs.os, 'fsync', lambda _: flushed.append((tmp_path / 'best.pth').read_bytes()))
    Saving().save_checkpoint(str(tmp_path), 'best.pth')
    assert flushed == [b'old']
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {'best.pth': b'new'}


def test_user_errors_end_with_code_2(capsys):
    with pytest.raises(SystemExit) as leave, command_line.user_errors():
        raise UserError('wrong')
    assert leave.value.code == 2
    assert capsys.readouterr().err == 'error: wrong\n'


def test_missing_library_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(configs.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(
        UserError, match=r"needs MMDetection, which is not installed: pip install 'convnext-dense\[mm\]'"
    ):
        runs.train(CONFIG, str(tmp_path))


def test_interruption_ends_with_code_130(capsys):
    with pytest.raises(SystemExit) as leave, command_line.user_errors():
        raise KeyboardInterrupt
    assert leave.value.code == 130
    assert '--resume' in capsys.readouterr().err


def test_options_need_an_equals_sign(run_tool):
    result = run_tool('show_lr', CONFIG, '--cfg-options', 'max_epochs')
    assert result.returncode == 2
    assert "--cfg-options takes KEY=VALUE pairs; got 'max_epochs'" in result.stderr


def test_latest_checkpoint_is_found_after_a_move(tmp_path):
    assert runs.latest_checkpoint(tmp_path) is None
    (tmp_path / 'epoch_1.pth').touch()
    assert runs.latest_checkpoint(tmp_path) == tmp_path / 'epoch_1.pth'
    (tmp_path / 'epoch_2.pth').touch()
    (tmp_path / 'last_checkpoint').write_text('/where/it/was/epoch_2.pth')
    assert runs.latest_checkpoint(tmp_path) == tmp_path / 'epoch_2.pth'
    (tmp_path / 'last_checkpoint').write_text('')
    assert runs.latest_checkpoint(tmp_path) in {tmp_path / 'epoch_1.pth', tmp_path / 'epoch_2.pth'}


def test_auto_scale_lr_option():
    cfg = Config.fromfile(COCO_CONFIG)
    run_config.enable_auto_scale_lr(cfg)
    assert cfg.auto_scale_lr.to_dict() == dict(enable=True, base_batch_size=16)


def test_amp_option():
    cfg = Config(dict(optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='SGD'))))
    run_config.enable_amp(cfg)
    assert cfg.optim_wrapper.type == 'AmpOptimWrapper'
    assert cfg.optim_wrapper.loss_scale == 'dynamic'
    with pytest.raises(
        UserError, match='--amp works with optim_wrapper.type OptimWrapper or AmpOptimWrapper; got Other'
    ):
        run_config.enable_amp(Config(dict(optim_wrapper=dict(type='Other'))))


def test_cpu_needs_no_amp_and_no_sync_bn():
    cfg = Config.fromfile(COCO_CONFIG)
    cfg.launcher = 'pytorch'
    notes = run_config.fit_to_cpu(cfg)
    assert cfg.optim_wrapper.type == 'OptimWrapper'
    assert 'SyncBN' not in str(cfg.model)
    assert len(notes) == 2


def test_heads_follow_the_classes_of_the_data():
    cfg = Config.fromfile(COCO_CONFIG)
    assert run_config.fit_classes(cfg) == []
    cfg.model.roi_head.semantic_head = dict(num_classes=183)
    cfg.train_dataloader.dataset.metainfo = dict(classes=('date', 'fig', 'hazelnut'))
    assert run_config.fit_classes(cfg) == ['4 heads set to 3 classes (date, fig, hazelnut)']
    assert [head.num_classes for head in cfg.model.roi_head.bbox_head] == [3, 3, 3]
    assert cfg.model.roi_head.mask_head.num_classes == 3
    assert cfg.model.roi_head.semantic_head.num_classes == 183


@pytest.mark.parametrize('leaf', ['det/mask2former_convnext_t_coco.py', 'seg/mask2former_convnext_t_ade20k.py'])
def test_heads_that_weigh_their_classes_follow_them(leaf):
    cfg = Config.fromfile(ROOT / 'configs' / leaf)
    cfg.train_dataloader.dataset.metainfo = dict(classes=('date', 'fig', 'hazelnut'))
    assert run_config.fit_classes(cfg)[0].endswith('heads set to 3 classes (date, fig, hazelnut)')
    with model_scope(cfg):
        model = build(cfg.model)
    head = model.panoptic_head if cfg.default_scope == 'mmdet' else model.decode_head
    assert head.num_classes == 3
    assert head.cls_embed.out_features == 4
    assert head.loss_cls.class_weight == [1.0, 1.0, 1.0, 0.1]
    if cfg.default_scope == 'mmdet':
        assert model.panoptic_fusion_head.num_classes == 3


def test_panoptic_heads_keep_their_classes():
    cfg = Config.fromfile(configs.find_config('mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic.py'))
    cfg.train_dataloader.dataset.metainfo = dict(classes=('date', 'fig', 'hazelnut'))
    assert run_config.fit_classes(cfg) == []
    assert cfg.model.panoptic_head.num_things_classes == 80


@pytest.mark.slow
@pytest.mark.parametrize('name', ['det/cascade_convnext_atto_shapes', 'seg/upernet_convnext_atto_shapes'])
def test_the_drawn_configs_reach_what_their_headers_promise(name, tmp_path):
    """They train for minutes; the metrics of COCO are called otherwise there."""
    config = ROOT / f'configs/{name}.py'
    data = tmp_path / 'shapes'
    options = {f'{split}_dataloader.dataset.data_root': data for split in ('train', 'val')}
    if name.startswith('det'):
        options['val_evaluator.ann_file'] = data / 'annotations/instances_val.json'
    runs.train(config, str(tmp_path / 'run'), cfg_options={key: str(value) for key, value in options.items()})
    last = logged_rows(tmp_path / 'run')[-1]
    keys = {'box AP50': 'coco/bbox_mAP_50', 'mask AP50': 'coco/segm_mAP_50', 'mIoU': 'mIoU'}
    bounds = {'box AP50': 0.75, 'mask AP50': 0.70} if name.startswith('det') else {'mIoU': 80}  # of their headers
    assert all(last[keys[metric]] >= bound for metric, bound in bounds.items())
