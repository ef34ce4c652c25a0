"""Whole runs through the commands on drawn data, and every mistake of a user that a run answers."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config

from convnext_dense import UserError, cli, configs
from convnext_dense.compat import read_checkpoint
from convnext_dense.train import OneLineRunner, mistakes
from convnext_dense.train import config as run_config
from convnext_dense.train import run as runs
from convnext_dense.train.resume import resume_training
from convnext_dense.train.stats import build, build_on_meta

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / 'configs/det/cascade_convnext_atto_shapes.py'
COCO_CONFIG = ROOT / 'configs/det/cascade_convnext_t_coco.py'
EPOCHS, ITERS_PER_EPOCH = 3, 2
CLASSES = dict(classes=('date', 'fig', 'hazelnut'))


@pytest.fixture
def options(drawn_boxes):
    """Options that shrink the first command to a few iterations."""
    return {
        **drawn_boxes,
        'train_cfg.max_epochs': EPOCHS,
        'model.test_cfg.rcnn.score_thr': 0.0,  # a few iterations give no confident prediction
    }


def command(*arguments, options: dict) -> list[str]:
    return [*map(str, arguments), '--cfg-options', *(f'{key}={value}' for key, value in options.items())]


@pytest.fixture
def run_command(capfd):
    """Return a function that runs a command in this process and returns its code and what it shows."""

    def run(*arguments, options: dict) -> tuple[int, str, str]:
        capfd.readouterr()
        try:
            cli.main(arguments=command(*arguments, options=options))
        except SystemExit as leave:
            return leave.code, *capfd.readouterr()
        return 0, *capfd.readouterr()

    return run


def logged_rows(work_dir: Path) -> list[dict]:
    """Return the rows of the latest run's JSON lines."""
    latest = max(work_dir.glob('*/vis_data/scalars.json'))
    return [json.loads(line) for line in latest.read_text().splitlines()]


def test_train_kill_resume_test(options, tmp_path, run_command):
    train = [
        sys.executable,
        '-m',
        *command('convnext_dense.cli', 'train', CONFIG, '--work-dir', tmp_path, options=options),
    ]
    with subprocess.Popen(train, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 240
        while 'epoch_1' not in read_if_there(tmp_path / 'last_checkpoint'):
            assert process.poll() is None, 'training ended early'
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
    done = int(Path(read_if_there(tmp_path / 'last_checkpoint')).stem.split('_')[1])
    assert done < EPOCHS, 'killed too late to resume'

    code, resumed, errors = run_command('train', CONFIG, '--work-dir', tmp_path, '--resume', options=options)
    assert code == 0, errors
    assert f'resumed epoch: {done}, iter: {done * ITERS_PER_EPOCH}' in resumed
    losses = [row for row in logged_rows(tmp_path) if 'loss' in row]
    assert [row['step'] for row in losses] == list(range(done * ITERS_PER_EPOCH + 1, EPOCHS * ITERS_PER_EPOCH + 1))
    checkpoint = read_checkpoint(tmp_path / f'epoch_{EPOCHS}.pth')
    steps = {int(state['step']) for state in checkpoint['optimizer']['state'].values()}
    assert steps == {EPOCHS * ITERS_PER_EPOCH} == {checkpoint['meta']['iter']}
    check_screen(resumed, errors, tmp_path)

    arguments = ('test', CONFIG, tmp_path / f'epoch_{EPOCHS}.pth', '--work-dir', tmp_path / 'test')
    code, shown, errors = run_command(*arguments, options=options)
    assert code == 0, errors
    assert ap_rows(shown) == ap_rows(resumed)
    assert 'predictions' in shown


def read_if_there(file: Path) -> str:
    return file.read_text() if file.exists() else ''


def ap_rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines() if line.startswith('AP')]


def check_screen(text: str, errors: str, work_dir: Path) -> None:
    """The table, the files that it names, and nothing that does not belong on a screen."""
    assert [row[0] for row in ap_rows(text)] == ['AP', 'AP50', 'AP75', 'APs', 'APm', 'APl']
    words = [line.split(maxsplit=1) for line in text.splitlines()]
    for what in ('checkpoint', 'metrics', 'curves', 'predictions'):
        (file,) = [word[1] for word in words if word[:1] == [what]]
        assert Path(file).stat().st_size > 0
    assert 'Warning' not in text + errors
    assert len([line for line in text.splitlines() if 'Epoch(train)' in line]) <= EPOCHS * ITERS_PER_EPOCH
    assert max(map(len, text.splitlines())) < 250
    assert 'System environment' not in text
    assert 'System environment' in max(work_dir.glob('*/*.log')).read_text()


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
SEGMENTOR = """
_base_ = '{root}/configs/seg/upernet_convnext_atto_shapes.py'
custom_imports = dict(imports=['convnext_dense', 'talking'], allow_failed_imports=False)
custom_hooks = [dict(type='TalkingHook')]
pipeline = [dict(type='TalkingTransform'), *_base_.train_pipeline]
train_dataloader = dict(num_workers=1, dataset=dict(pipeline=pipeline))
train_cfg = dict(max_iters=6, val_interval=3)
default_hooks = dict(checkpoint=dict(interval=3))
log_processor = dict(_delete_=True, type='LogProcessor', window_size=10, by_epoch=False)  # as upstream's
"""


def test_segmentor_trains_and_tests_with_the_same_commands(drawn, tmp_path, run_command, monkeypatch):
    config, run = tmp_path / 'config.py', tmp_path / 'run'
    config.write_text(SEGMENTOR.format(root=ROOT))
    (tmp_path / 'talking.py').write_text(TALKING)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    code, shown, errors = run_command('train', config, '--work-dir', run, '--amp', options=drawn)
    assert code == 0, errors
    assert 'a hook of the user speaks\n' in shown
    assert 'a transform of the user speaks in a worker\n' in shown
    note = 'note: no GPU'  # training in fp32, or in bf16 where the CPU has it
    assert note in errors
    (log,) = run.glob('*/*.log')
    assert log.read_text().count(note) == 1
    assert 'Iter(train) [6/6]  loss ' in shown
    miou = [line.split() for line in shown.splitlines() if line.startswith('mIoU')]
    assert (run / 'predictions.png').stat().st_size > 0
    assert (run / 'curves.png').stat().st_size > 0
    assert (run / 'first_batch.png').stat().st_size > 0
    outputs = ('--work-dir', tmp_path / 'test', '--out', tmp_path / 'out', '--show-dir', 'drawn')
    code, shown, errors = run_command('test', config, run / 'iter_6.pth', *outputs, options=drawn)
    assert code == 0, errors
    assert [line.split() for line in shown.splitlines() if line.startswith('mIoU')] == miou != []
    assert len(list((tmp_path / 'out').glob('*.png'))) == 3
    (log,) = (tmp_path / 'test').glob('*/*.log')
    assert len(list((log.parent / 'drawn').glob('*.png'))) == 3
    assert (log.parent / 'vis_data/config.py').exists()
    assert not Path('drawn').exists()


RUN_HOOKS = ['CheckWeightsHook', 'FiniteHook', 'DamageHook', 'ProgressBarHook', 'RunSummaryHook']
OURS = dict(type='OneLineLogProcessor')


@pytest.mark.parametrize(
    ('given', 'hooks', 'processor'),
    [
        ({}, RUN_HOOKS, OURS),
        (  # the end of a config of MMDetection's
            dict(
                custom_hooks=[dict(type='EMAHook', momentum=0.1), dict(type='RunSummaryHook')],
                log_processor=dict(type='LogProcessor', window_size=5, _scope_='mmdet'),
            ),
            ['EMAHook', 'RunSummaryHook', 'CheckWeightsHook', 'FiniteHook', 'DamageHook', 'ProgressBarHook'],
            dict(OURS, window_size=5, _scope_='mmdet'),
        ),
        (dict(custom_hooks=None, log_processor=dict(type='Theirs')), RUN_HOOKS, dict(type='Theirs')),
        (dict(runner_type='Runner', custom_hooks=[]), [], None),
    ],
)
def test_a_config_of_any_origin_is_watched(given, hooks, processor):
    cfg = Config(dict(given, launcher='none'))
    for _ in range(2):  # what is there is not added again
        run_config.settle(cfg)
        assert [hook['type'] for hook in cfg.custom_hooks] == hooks
        assert cfg.get('log_processor') == processor


@pytest.mark.parametrize('backends', [[], ['TensorboardVisBackend'], ['LocalVisBackend', 'TensorboardVisBackend']])
def test_pictures_are_drawn_below_the_log(backends):
    visualizer = dict(vis_backends=[dict(type=name) for name in backends])
    cfg = Config(dict(default_hooks=dict(visualization=dict(type='SegVisualizationHook')), visualizer=visualizer))
    run_config.enable_pictures(cfg, False, 'drawn', 0)
    local = [backend for backend in cfg.visualizer.vis_backends if backend.type == 'LocalVisBackend']
    assert local == [dict(type='LocalVisBackend', img_save_dir='../drawn')]
    cfg.default_hooks.visualization.type = 'DetVisualizationHook'
    run_config.enable_pictures(cfg, False, 'drawn', 0)
    assert cfg.default_hooks.visualization.test_out_dir == 'drawn'


def test_mmdetections_own_tool_trains_the_config(options, tmp_path):
    tool = configs.config_folder('mmdet').with_name('tools') / 'train.py'
    arguments = command(tool, CONFIG, '--work-dir', tmp_path, options={**options, 'train_cfg.max_epochs': 1})
    subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, timeout=300, check=True)
    assert (tmp_path / 'epoch_1.pth').exists()


def test_missing_coco_is_answered_at_once(tmp_path, run_command):
    missing = {'train_dataloader.dataset.data_root': 'nowhere/'}
    code, shown, errors = run_command('train', COCO_CONFIG, '--work-dir', tmp_path, options=missing)
    assert (code, shown) == (2, '')
    assert errors.startswith('error: ')
    assert 'nowhere/annotations/instances_train2017.json' in errors
    assert 'train_dataloader.dataset.data_root=' in errors
    assert 'Traceback' not in errors
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope='module')
def femto(tmp_path_factory):
    """A checkpoint of an untrained femto detector, as MMEngine writes it."""
    cfg = Config.fromfile(CONFIG)
    cfg.model.backbone.arch = 'femto'
    cfg.model.neck.in_channels = [48, 96, 192, 384]
    with configs.model_scope(cfg):
        model = build(cfg.model)
    file = tmp_path_factory.mktemp('checkpoint') / 'femto.pth'
    torch.save({'meta': {}, 'state_dict': model.state_dict()}, file)
    return file


def test_checkpoint_of_another_architecture_is_refused(options, femto, tmp_path, run_command):
    code, _, errors = run_command('test', CONFIG, femto, '--work-dir', tmp_path, options=options)
    assert code == 2
    assert 'It is ConvNeXt femto, the model is ConvNeXt atto.' in errors
    assert 'Traceback' not in errors
    with pytest.raises(UserError, match='does not fit the backbone. It is ConvNeXt femto'):
        runs.train(CONFIG, str(tmp_path), cfg_options={**options, 'load_from': str(femto)})


@pytest.mark.parametrize(
    ('typo', 'message'),
    [
        ({'model.backbone.arch': 'atoo'}, "Unknown ConvNeXt arch 'atoo'. Allowed: atto, femto"),
        ({'model.backbone.type': 'ConvNext'}, 'ConvNext is not in the mmdet::model registry'),
        ({'model.backbone.drop_path': 0.1}, "unexpected keyword argument 'drop_path'"),
        ({'optim_wrapper.optimizer.type': 'AdamWW'}, "no optimizer 'AdamWW'. Did you mean AdamW"),
        ({'optim_wrapper.paramwise_cfg.decay': 0.1}, r"paramwise_cfg has unknown keys \['decay'\]"),
        ({'train_cfg.max_epoch': 3}, "unexpected keyword argument 'max_epoch'"),
        ({'train_dataloader.dataset.split': 'trian'}, 'trian'),
        ({'train_dataloader': None}, 'has no train_dataloader'),
    ],
)
def test_typos_in_a_config(options, tmp_path, typo, message):
    with pytest.raises(UserError, match=message):
        runs.train(CONFIG, str(tmp_path), cfg_options={**options, **typo})


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(checkpoint='{folder}/epoch_9.pth'), r'epoch_9\.pth does not exist. The checkpoints in .* femto\.pth\.'),
        (dict(work_dir='{folder}/femto.pth/run'), r'femto\.pth/run cannot be written .* with --work-dir'),
        (dict(work_dir='/proc'), r'/proc cannot be written .* with --work-dir'),  # a folder that is there
        (dict(tta=True, cfg_options={'tta_model': None}), '--tta needs tta_model'),
        (dict(out='predictions.txt'), r'--out takes a .pkl file .* got predictions\.txt'),
        (dict(show=True, cfg_options={'default_hooks.visualization': None}), '--show .* default_hooks.visualization'),
        (dict(cfg_options={'test_dataloader': None}), 'has no test_dataloader'),
    ],
)
def test_options_that_do_not_fit(arguments, message, femto, tmp_path):
    given = dict(checkpoint=str(femto), work_dir=str(tmp_path)) | arguments
    for name in ('checkpoint', 'work_dir'):
        given[name] = given[name].format(folder=femto.parent)
    with pytest.raises(UserError, match=message):
        runs.test(CONFIG, **given)


def test_runs_of_one_second_share_nothing(tmp_path):
    for name in ('first', 'second', 'third'):  # two of them start in one second
        cfg = Config(dict(model=torch.nn.Identity(), work_dir=str(tmp_path / name), experiment_name='run'))
        cfg.visualizer = dict(type='Visualizer', name='visualizer', vis_backends=[dict(type='LocalVisBackend')])
        runner = OneLineRunner.from_cfg(cfg)
        assert runner.message_hub.get_info('owner') is None
        runner.message_hub.update_info('owner', name)
        runner.logger.info(f'log of the {name}')
        runner.visualizer.add_scalar(name, 1)
    for name in ('first', 'second', 'third'):
        (log,) = (tmp_path / name).glob('*/*.log')
        assert re.findall(r'log of the (\w+)', log.read_text()) == [name]
        assert [row.keys() & {'first', 'second', 'third'} for row in logged_rows(tmp_path / name)] == [{name}]


def test_nothing_to_resume_from(tmp_path):
    with pytest.raises(UserError, match=r'nothing/here\.pth does not exist, and neither does the folder nothing'):
        runs.train(CONFIG, str(tmp_path), resume='nothing/here.pth')
    cfg = Config(dict(work_dir=str(tmp_path), resume=True))
    assert resume_training(cfg, None) == [f'nothing to resume in {tmp_path}: training starts from the beginning']
    assert not cfg.resume


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
    samples = [dict(img_path=str(file), seg_map_path=str(file))]
    iterator = iter(torch.utils.data.DataLoader(samples, None, collate_fn=transform, num_workers=num_workers))
    with pytest.raises(UserError, match=message), mistakes.run_errors():
        next(iterator)
    if num_workers:
        iterator._shutdown_workers()  # which Python would wait for, for 5 seconds, when it collects the error


def test_an_error_in_a_training_says_from_where_it_continues(tmp_path):
    cfg = Config(dict(work_dir=str(tmp_path)))
    training = SimpleNamespace(_train_loop=object(), cfg=cfg, model=None)
    testing = SimpleNamespace(_train_loop=None, cfg=cfg, model=None)
    full = OSError(28, 'No space left on device')
    first = r'disk .* is full\. .* free some space\. No checkpoint was written yet\.$'
    with pytest.raises(UserError, match=first), mistakes.run_errors(training):
        raise full
    (tmp_path / 'epoch_3.pth').touch()
    then = r'It continues from .*epoch_3\.pth with --resume\.$'
    with pytest.raises(UserError, match=then), mistakes.run_errors(training):
        raise full
    with pytest.raises(UserError, match=r'free some space\.$'), mistakes.run_errors(testing):
        raise full


CAUGHT = """Caught FileNotFoundError in DataLoader worker process 0.
Original Traceback (most recent call last):
KeyError: 'a.json'

During handling of the above exception, another exception occurred:

FileNotFoundError: [Errno 2] No such file or directory: 'a.json'"""


def test_the_last_of_several_errors_in_a_worker_is_answered():
    with pytest.raises(UserError, match=r'The annotation file a\.json does not exist'), mistakes.run_errors():
        raise FileNotFoundError(CAUGHT)


@pytest.mark.parametrize('error', [AssertionError('a bug'), RuntimeError('Caught in a worker\nOriginal Traceback')])
def test_other_errors_of_a_run_keep_their_traceback(error):
    with pytest.raises(type(error)) as raised, mistakes.run_errors():
        raise error
    assert raised.value is error


def test_missing_library_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(configs.files.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(UserError, match=r"needs MMDetection, .*pip install 'convnext-dense\[mm\]'"):
        runs.train(CONFIG, str(tmp_path))


def test_amp_option_and_a_cpu_which_has_neither_amp_nor_sync_bn():
    cfg = Config.fromfile(COCO_CONFIG)
    cfg.optim_wrapper.type, cfg.launcher = 'OptimWrapper', 'pytorch'
    run_config.enable_amp(cfg)
    assert (cfg.optim_wrapper.type, cfg.optim_wrapper.loss_scale) == ('AmpOptimWrapper', 'dynamic')
    assert len(run_config.fit_to_cpu(cfg)) == 2
    assert cfg.optim_wrapper.type != 'AmpOptimWrapper'
    assert 'SyncBN' not in str(cfg.model)
    with pytest.raises(UserError, match=r'--amp .* OptimWrapper or AmpOptimWrapper; got Other'):
        run_config.enable_amp(Config(dict(optim_wrapper=dict(type='Other'))))


def test_heads_follow_the_classes_of_the_data():
    cfg = Config.fromfile(COCO_CONFIG)
    assert run_config.fit_classes(cfg) == []
    cfg.model.roi_head.semantic_head = dict(num_classes=183)
    cfg.train_dataloader.dataset.metainfo = CLASSES
    assert run_config.fit_classes(cfg) == ['4 heads set to 3 classes (date, fig, hazelnut)']
    assert [head.num_classes for head in cfg.model.roi_head.bbox_head] == [3, 3, 3]
    assert cfg.model.roi_head.mask_head.num_classes == 3
    assert cfg.model.roi_head.semantic_head.num_classes == 183


@pytest.mark.parametrize('leaf', ['det/mask2former_convnext_t_coco', 'seg/mask2former_convnext_t_ade20k'])
def test_heads_that_weigh_their_classes_follow_them(leaf):
    cfg = configs.load_config(leaf)
    cfg.train_dataloader.dataset.metainfo = CLASSES
    assert run_config.fit_classes(cfg)[0].endswith('heads set to 3 classes (date, fig, hazelnut)')
    with configs.model_scope(cfg):
        model = build_on_meta(cfg.model)
    head = model.panoptic_head if cfg.default_scope == 'mmdet' else model.decode_head
    assert (head.num_classes, head.cls_embed.out_features) == (3, 4)
    assert head.loss_cls.class_weight == [1.0, 1.0, 1.0, 0.1]
    assert cfg.default_scope == 'mmseg' or model.panoptic_fusion_head.num_classes == 3


def test_panoptic_heads_keep_their_classes():
    cfg = configs.load_config('mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic.py')
    cfg.train_dataloader.dataset.metainfo = CLASSES
    assert run_config.fit_classes(cfg) == []
    assert cfg.model.panoptic_head.num_things_classes == 80


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'bounds'),  # of their headers
    [
        ('det/cascade_convnext_atto_shapes', {'coco/bbox_mAP_50': 0.75, 'coco/segm_mAP_50': 0.70}),
        ('seg/upernet_convnext_atto_shapes', {'mIoU': 80}),
    ],
)
def test_the_drawn_configs_reach_what_their_headers_promise(name, bounds, tmp_path):
    """They train for minutes."""
    data = tmp_path / 'shapes'
    options = {f'{split}_dataloader.dataset.data_root': str(data) for split in ('train', 'val')}
    if name.startswith('det'):
        options['val_evaluator.ann_file'] = str(data / 'annotations/instances_val.json')
    runs.train(name, str(tmp_path / 'run'), cfg_options=options)
    last = logged_rows(tmp_path / 'run')[-1]
    assert all(last[metric] >= bound for metric, bound in bounds.items())
