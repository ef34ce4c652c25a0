"""Counts equal arithmetic over depths and widths, built models, and what the papers print."""

import csv
import json
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import ANY

import pytest
import torch
from mmcv.cnn import get_model_complexity_info
from mmengine.config import Config
from mmengine.infer.infer import BaseInferencer
from torch import nn

from convnext_dense import ConvNeXt, UserError, cli, configs
from convnext_dense.configs import walk
from convnext_dense.data import samples
from convnext_dense.train import stats as model_stats
from convnext_dense.train.stats import Counts, count_call, count_config, count_model, describe_models, find_size
from convnext_dense.variants import VARIANTS

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / 'configs'
DRAWN = CONFIGS / 'det/cascade_convnext_atto_shapes.py'
DRAWN_SEG = CONFIGS / 'seg/upernet_convnext_atto_shapes.py'
CASCADE_T = CONFIGS / 'det/cascade_convnext_t_coco.py'
MMDET = Path(find_spec('mmdet').origin).parent / '.mim/configs'
INF = float('inf')
COCO, ADE, LARGE_ADE = (1280, 800), (2048, 512), (2560, 640)
MODELS = {model['Name']: model for model in BaseInferencer._get_models_from_metafile(str(ROOT))}
PUBLISHED = [name for name, model in MODELS.items() if 'GFLOPs' in model['Metadata']]


@pytest.mark.parametrize(
    ('make', 'shape', 'macs', 'activations'),
    [
        (lambda: nn.Conv2d(3, 8, 3, stride=2, padding=1), (2, 3, 32, 64), 2 * 16 * 32 * 8 * 3 * 9, 2 * 16 * 32 * 8),
        (lambda: nn.Conv2d(8, 8, 3, padding='same', groups=8), (1, 8, 6, 6), 36 * 8 * 9, 36 * 8),
        (lambda: nn.Conv1d(4, 6, 3), (1, 4, 10), 8 * 6 * 4 * 3, 8 * 6),
        (lambda: nn.ConvTranspose2d(4, 6, 2, stride=2), (1, 4, 5, 7), 5 * 7 * 4 * 6 * 4, 10 * 14 * 6),
        (lambda: nn.Linear(7, 11), (2, 3, 5, 7), 30 * 7 * 11, 30 * 11),
        (lambda: nn.Linear(7, 11, bias=False), (2, 5, 7), 10 * 7 * 11, 10 * 11),
        (lambda: nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4), nn.GELU(), nn.MaxPool2d(2)), (2, 4, 6, 6), 0, 0),
    ],
)
def test_a_layer(make, shape, macs, activations):
    with torch.device('meta'):
        layer = make().eval()
    assert count_call(layer, torch.empty(shape, device='meta'))[1:] == (macs, activations)


def test_a_linear_layer_on_a_view_and_the_matrix_products_of_attention():
    layer, x = nn.Linear(7, 11, bias=False, device='meta'), torch.empty(2, 7, 3, 5, device='meta')
    assert count_call(layer, x.permute(0, 2, 3, 1))[1:] == (30 * 7 * 11, 30 * 11)
    q, k = torch.empty(2, 4, 49, 8, device='meta'), torch.empty(2, 4, 8, 49, device='meta')
    assert count_call(torch.matmul, q, k)[1:] == (2 * 4 * 49 * 49 * 8, 0)


def convnext_by_hand(arch, width, height, v2):
    """Count parameters, multiply-adds and activations by the layers of a block and the steps between stages."""
    depths, dims = VARIANTS[arch]
    params = macs = activations = 0
    for i, (depth, dim) in enumerate(zip(depths, dims, strict=True)):
        pixels = (width // (4 << i)) * (height // (4 << i))
        taps = 48 if i == 0 else 4 * dims[i - 1]  # 4x4x3 of the image, or 2x2 of the map before
        norm = 2 * dim if i == 0 else 2 * dims[i - 1]
        params += taps * dim + dim + norm
        macs += pixels * taps * dim
        activations += pixels * dim
        scale = 8 * dim if v2 else dim  # GRN's gamma and beta, or layer scale
        params += depth * ((49 * dim + dim) + 2 * dim + (4 * dim * dim + 4 * dim) + scale + (4 * dim * dim + dim))
        macs += depth * pixels * (49 * dim + 8 * dim * dim)
        activations += depth * pixels * 6 * dim
        params += 2 * dim  # the output norm
    return Counts(params, macs, activations)


@pytest.mark.parametrize('v2', [False, True])
@pytest.mark.parametrize('arch', VARIANTS)
def test_convnext_by_hand(arch, v2):
    with torch.device('meta'):
        model, x = ConvNeXt(arch, grn=v2), torch.empty(1, 3, 800, 1280)
    counts = Counts(model_stats.num_params(model), *count_call(model, x)[1:])
    assert counts == convnext_by_hand(arch, 1280, 800, v2)


def test_every_row_of_the_papers_has_published_figures():
    assert len(PUBLISHED) == 27  # 12 + 9 of arXiv 2201.03545, 3 + 3 of arXiv 2301.00808


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_figures(name, leaf_stats):
    """Parameters to the last printed digit, GFLOPs to 0.2 %."""
    stats, published = leaf_stats(ROOT / MODELS[name]['Config']), MODELS[name]['Metadata']
    assert '{}x{}'.format(*stats.size) == published['Image']
    assert round(stats.parts['total'].params / 1e6) == published.get('Parameters (M)', ANY)
    assert stats.parts['total'].macs / 1e9 == pytest.approx(published['GFLOPs'], rel=0.002)


class AllParts(nn.Module):
    """A model with a forward that needs no image, for counters that look at modules."""

    def __init__(self, model, size):
        super().__init__()
        self.model, self.size = model, size

    def forward(self, _):
        count_model(self.model, self.size)


@pytest.mark.parametrize(
    'name', ['mask_rcnn_convnext_t_coco', 'cascade_convnext_t_coco', 'cascade_r50_coco', 'upernet_convnext_t_ade20k']
)
def test_published_figures_to_their_last_digit(name):
    """What mmcv's hooks, which made the published figures, add to multiply-adds is all that lies between them."""
    cfg, size = Config.fromfile(ROOT / MODELS[name]['Config']), ADE if name.startswith('upernet') else COCO
    for norm in [node for node in walk(cfg.model) if node.get('type') == 'SyncBN']:
        norm['type'] = 'BN'
    with configs.model_scope(cfg):
        whole = AllParts(model_stats.build_on_meta(cfg.model), size)
        hooked, _ = get_model_complexity_info(whole, (3, 32, 32), print_per_layer_stat=False, as_strings=False)
    backbone = cfg.model.backbone
    if backbone.type == 'ConvNeXt':  # its faster layers are no modules that hooks look at; the paper's are
        hooked -= sum(getattr(module, '__flops__', 0) for module in whole.model.backbone.modules())
        hooked += convnext_by_hand(backbone.arch, *size, v2=False).macs
        for i, (depth, dim) in enumerate(zip(*VARIANTS[backbone.arch], strict=True)):
            hooked += (depth + 1) * dim * (size[0] // (4 << i)) * (size[1] // (4 << i))  # biases of convolutions
    assert round(hooked / 1e9) == MODELS[name]['Metadata']['GFLOPs']


def test_counting_takes_no_memory():
    cfg = configs.load_config('cascade_convnext_xl_in22k_coco')
    with configs.model_scope(cfg):
        model = model_stats.build_on_meta(cfg.model)
    assert all(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])


def test_parameters_of_a_built_model_and_an_auxiliary_head_that_does_not_run(leaf_stats):
    cfg, parts = Config.fromfile(DRAWN_SEG), leaf_stats(DRAWN_SEG).parts
    with configs.model_scope(cfg):
        model = model_stats.build(cfg.model)
        cfg.model.auxiliary_head = None
        without, _ = count_model(model_stats.build_on_meta(cfg.model), (128, 128))
    assert parts['total'].params == model_stats.num_params(model)
    assert parts['heads'].params > without['heads'].params
    assert parts['heads'][1:] == without['heads'][1:]


# RTMDet: MMDetection's README; YOLOX: half the paper's, which counts a multiply-add twice
@pytest.mark.parametrize(
    ('config', 'params', 'gflops'),
    [('rtmdet/rtmdet_s_8xb32-300e_coco.py', 8.89, 14.8), ('yolox/yolox_s_8xb8-300e_coco.py', 9.0, 13.4)],
)
def test_single_stage_detectors_of_mmdetection(config, params, gflops):
    stats = count_config(MMDET / config)
    assert (stats.size, stats.published) == ((640, 640), {})
    assert stats.parts['total'].params / 1e6 == pytest.approx(params, rel=0.01)
    assert stats.parts['total'].macs / 1e9 == pytest.approx(gflops, rel=0.01)


def test_a_users_config_counts_its_own_rois_and_classes(tmp_path, leaf_stats, capsys):
    own, whole = tmp_path / 'own.py', leaf_stats(CASCADE_T).parts['total']
    own.write_text(f"_base_ = ['{CASCADE_T}']\nmodel = dict(test_cfg=dict(rpn=dict(max_per_img=300)))\n")
    box_macs = 4 * 49 * 256 * 256 * 9 + 49 * 256 * 1024 + 1024 * (81 + 320)
    assert whole.macs - count_config(own, COCO).parts['total'].macs == 3 * 700 * box_macs
    unlimited = dict(_delete_=True, score_thr=0.1)
    own.write_text(f"_base_ = ['{CASCADE_T}']\nmodel = dict(test_cfg=dict(rpn={unlimited}, rcnn={unlimited}))\n")
    assert count_config(own, COCO).parts['total'] == whole  # 1000 and 100 RoIs are the default
    classes = tuple('abcdefghijklmnopqrst')
    own.write_text(f"_base_ = '{CASCADE_T}'\ntrain_dataloader = dict(dataset=dict(metainfo=dict(classes={classes})))\n")
    total = count_config(own).parts['total']
    assert '20 classes' in capsys.readouterr().err
    assert whole.params - total.params == 3 * (60 * 1025 + 240 * 1025 + 60 * 257)  # boxes and masks of 80 classes
    assert whole.macs - total.macs == 3 * (1000 * 300 * 1024 + 100 * 784 * 60 * 256)


@pytest.mark.parametrize(
    ('dataset', 'scope', 'size'),
    [
        ({}, 'mmdet', COCO),
        ({}, 'mmseg', ADE),
        (dict(pipeline=[dict(type='Resize', scale=(1333, 800))]), 'mmdet', COCO),
        (dict(pipeline=[dict(type='Resize', scale=LARGE_ADE)]), 'mmseg', LARGE_ADE),
        (dict(pipeline=[dict(type='Resize', scale=(300, 500), keep_ratio=True)]), 'mmdet', (512, 320)),
        (dict(pipeline=[dict(type='Resize', scale=(300, 500))]), 'mmdet', (320, 512)),
        (dict(pipeline=[dict(type='Resize', scale=640)]), 'mmdet', (640, 640)),
        (dict(pipeline=[dict(type='Resize', scale=(INF, 512), keep_ratio=True)]), 'mmseg', ADE),
        (dict(type='ShapesInstances', size=112), 'mmdet', (128, 128)),
    ],
)
def test_size_of_a_config(dataset, scope, size):
    assert find_size(Config(dict(test_dataloader=dict(dataset=dataset), default_scope=scope))) == size


@pytest.mark.parametrize(
    ('model', 'message'),
    [
        ({}, 'has no model'),
        (dict(type='NoSuchDetector'), 'cannot be built: NoSuchDetector'),
        (dict(type='FPN', in_channels=[8], out_channels=8, num_outs=1), 'FPN has no backbone'),
    ],
)
def test_models_that_are_none(model, message, tmp_path):
    (tmp_path / 'tiny.py').write_text(f"default_scope = 'mmdet'\nmodel = {model!r}\n")
    with pytest.raises(UserError, match=message):
        count_config(tmp_path / 'tiny.py')


# parameters of arXiv 2011.12450 (106 M with 300 proposals) and 2112.01527 (44 M)
@pytest.mark.parametrize(
    ('config', 'params', 'reason'),
    [
        ('sparse_rcnn/sparse-rcnn_r50_fpn_300-proposals_crop-ms-480-800-3x_coco.py', 106, 'SparseRoIHead'),
        ('mask2former/mask2former_r50_8xb2-lsj-50e_coco.py', 44, 'panoptic_head.pixel_decoder'),
    ],
)
def test_heads_that_cannot_be_counted_have_their_parameters(config, params, reason, capsys):
    text, failures = describe_models([MMDET / config])
    assert failures == []
    assert f'{config}: from the heads' in (told := capsys.readouterr().err)
    assert reason in told
    backbone, _, heads, total = (line.split()[2:] for line in text.splitlines()[1:])
    assert float(backbone[2]) == pytest.approx(4.09 * 1280 * 800 / 224**2, rel=0.002)  # ResNet-50 has 4.09 at 224x224
    assert (heads[0], len(heads), len(total)) == ('heads', 2, 2)
    assert float(total[1]) == pytest.approx(params, abs=1)


def test_a_wrong_config_does_not_lose_the_others(tmp_path, capsys):
    wrong, misfit = tmp_path / 'wrong.py', tmp_path / 'misfit.py'
    wrong.write_text(f"_base_ = '{DRAWN_SEG}'\nmodel = dict(backbone=dict(arch='tinny'))\n")
    misfit.write_text(f"_base_ = '{DRAWN_SEG}'\nmodel = dict(decode_head=dict(in_channels=[40, 80, 160, 700]))\n")
    table = tmp_path / 'table.csv'
    with pytest.raises(UserError, match=r'wrong\.py: The config cannot be built(.|\n)*no\.py does not exist'):
        cli.show_stats(configs=[wrong, 'no.py', misfit, DRAWN], out=str(table))
    told = capsys.readouterr()
    assert f'{misfit}: from the heads' in told.err
    assert 'decode_head.' in told.err
    assert DRAWN.name in told.out
    assert len(table.read_text().splitlines()) == 1 + 2 * 4
    with pytest.raises(UserError, match='no.py does not exist'):
        describe_models(['no.py'])


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(size=(1333, 800)), r'--size .* multiples of 32; got 1333 800'),
        (dict(size=(0, 32)), 'got 0 32'),
        (dict(amp=True), '--amp .* --measure or --train'),
        (dict(out='table.txt'), r'--out .*\.md, \.csv, \.json; got table\.txt'),
        (dict(out='no/such/folder/table.md', size=(32, 32)), 'no/such/folder/table.md cannot be written'),
    ],
)
def test_options_that_are_wrong(kwargs, message):
    with pytest.raises(UserError, match=message):
        describe_models([DRAWN], **kwargs)


def test_tables(tmp_path):
    files = {suffix: tmp_path / f'table.{suffix}' for suffix in ('json', 'md', 'csv')}
    text, _ = describe_models([CASCADE_T, DRAWN], out=str(files['json']))
    rows = json.loads(files['json'].read_text())
    assert [row['part'] for row in rows] == ['backbone', 'neck', 'heads', 'total'] * 2
    assert rows[3]['difference (%)'] == round(100 * (rows[3]['GFLOPs'] / 741 - 1), 2)
    head, *lines = text.splitlines()
    assert 'peak memory' not in head
    where = [str(CASCADE_T), '1280x800']
    assert lines[0].split() == [*where, 'backbone', '27.82', '90.91', '274.18']
    assert lines[3].split() == [*where, 'total', '85.93', '86', '740.15', '741', '-0.11', '634.84']
    describe_models([CASCADE_T], out=str(files['md']))
    head, rule, *lines = files['md'].read_text().splitlines()
    assert head.count('|') == rule.count('|') == lines[3].count('|')
    assert '| total | 85.93 | 86 | 740.15 | 741 |' in lines[3]
    describe_models([CASCADE_T], (640, 384), out=str(files['csv']))
    with files['csv'].open(newline='') as stream:
        smaller = list(csv.DictReader(stream))[-1]
    assert float(smaller['GFLOPs']) < 740
    assert (smaller['params (M)'], smaller['published GFLOPs']) == ('85.93', '')  # published at another size


@pytest.fixture
def quick(monkeypatch):
    """Measure a turn or two, in this process."""
    monkeypatch.setattr(model_stats, 'SECONDS', 0)
    monkeypatch.setattr(model_stats, 'ProcessPoolExecutor', lambda *args: ThreadPoolExecutor(1))


@pytest.mark.parametrize('amp', [False, True])
@pytest.mark.parametrize('file', [DRAWN, DRAWN_SEG], ids=['detector', 'segmentor'])
@pytest.mark.usefixtures('quick')
def test_measuring(file, amp, tmp_path, monkeypatch):
    batches, draw = [], samples.draw_for
    monkeypatch.setattr(samples, 'draw_for', lambda *args: batches.append(draw(*args)) or batches[-1])
    (tmp_path / 'own.py').write_text(f"_base_ = ['{file}']\ntrain_dataloader = dict(batch_size=2)\n")
    _, failures = describe_models([tmp_path / 'own.py'], (128, 32), True, True, amp, str(tmp_path / 'table.json'))
    assert failures == []
    side = 128 if file == DRAWN_SEG else 64  # the crop, or as many pixels
    assert [image.shape for image in batches[0]['inputs']] == [(3, side, side)] * 2
    total = json.loads((tmp_path / 'table.json').read_text())[-1]
    assert (total['input'], total['step images']) == ('128x32', f'2 x {side}x{side}')
    assert min(total['time (ms)'], total['step time (ms)']) > 0
    assert total['device'].endswith('AMP' if amp else 'fp32')


@pytest.mark.usefixtures('quick')
def test_a_measurement_that_fails_does_not_lose_the_counts(tmp_path):
    (tmp_path / 'own.py').write_text(f"_base_ = ['{DRAWN_SEG}']\noptim_wrapper = None\n")
    (tmp_path / 'misfit.py').write_text(f"_base_ = ['{DRAWN_SEG}']\nmodel = dict(decode_head=dict(channels=7))\n")
    text, failures = describe_models([tmp_path / 'own.py', tmp_path / 'misfit.py'], (64, 64), train=True)
    assert text.count('total') == 2
    assert len(failures) == 1
    assert 'own.py does not run' in failures[0]
    assert 'optim_wrapper' in failures[0]


def test_an_untrained_detector_gives_its_mask_heads_their_boxes():
    cfg = Config.fromfile(DRAWN)
    with configs.model_scope(cfg):
        work, _ = model_stats.prepare_test(cfg, model_stats.build(cfg.model), (128, 128), False)
        (sample,) = work()
    assert len(sample.pred_instances) >= 20
    assert set(sample.pred_instances.labels.tolist()) == {0}
    assert sample.pred_instances.masks.shape[1:] == (128, 128)


@pytest.mark.parametrize(('training', 'cure'), [(False, '--size'), (True, 'train_dataloader.batch_size')])
@pytest.mark.parametrize('error', [BrokenProcessPool(), MemoryError()])
def test_measuring_more_than_memory_holds(error, training, cure, monkeypatch):
    class Pool(ThreadPoolExecutor):
        def submit(self, *args):
            raise error

    monkeypatch.setattr(model_stats, 'ProcessPoolExecutor', lambda *args: Pool(1))
    with pytest.raises(UserError, match=f'memory is short.*{cure}'):
        model_stats.measure_config(DRAWN, (64, 32), training, False)


def test_a_cpu_that_cannot_allocate_is_a_users_error():
    with pytest.raises(UserError, match='does not run: .*DefaultCPUAllocator'):  # 2e14 bytes
        model_stats.measure(DRAWN_SEG, (8_000_000, 8_000_000), False, False)


@pytest.mark.slow
def test_a_measurement_has_a_process_of_its_own(tmp_path):
    describe_models([DRAWN_SEG], (64, 64), measure=True, out=str(tmp_path / 'table.json'))
    total = json.loads((tmp_path / 'table.json').read_text())[-1]
    # what the process adds holds the weights at least
    assert total['peak memory (MB)'] is None or total['peak memory (MB)'] > 4 * total['params (M)']
