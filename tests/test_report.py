"""Reports: figures equal to other people's code and to closed forms, and one page that holds all of them."""

import base64
import contextlib
import io
import json
import re
import shutil
import subprocess

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import MODELS
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from convnext_dense import UserError, cli
from convnext_dense.configs import load_config, model_scope
from convnext_dense.data.pictures import choose_palette
from convnext_dense.predict import Objects
from convnext_dense.report import maps, objects
from convnext_dense.report.hook import as_rle
from convnext_dense.report.objects import Case, judge
from convnext_dense.report.page import write_page
from convnext_dense.train import coco_eval

pytestmark = pytest.mark.filterwarnings('ignore::FutureWarning:supervision')
CLASSES = ('a', 'b', 'c')
SIZE = (200, 200)


def draw_cases(seed, crowds=0.0, masks=False):
    """Return images with random objects, and detections near and far from them."""
    rng = np.random.default_rng(seed)
    cases = []
    for i in range(60):
        number = rng.integers(0, 7)
        sides, corners = rng.integers(10, 60, (number, 2)), rng.integers(0, 140, (number, 2))
        boxes = np.concatenate([corners, corners + sides], 1).astype(np.float32)
        labels = rng.integers(0, 3, number)
        is_crowd = np.zeros(number, bool) if not crowds else rng.random(number) < crowds
        amount = rng.integers(0, 9)
        meant = rng.integers(0, number, amount) if number else None
        near = boxes[meant] if number else np.tile(np.float32([[20, 20, 60, 60]]), (amount, 1))
        found = near + rng.normal(0, rng.choice([1, 6, 25], (amount, 1)), (amount, 4)).astype(np.float32)
        found[:, :2] = np.minimum(found[:, :2], found[:, 2:] - 3)
        is_right = rng.random(amount) < 0.7
        others = rng.integers(0, 3, amount)
        guesses = np.where(is_right, labels[meant], others) if number else others
        scores = np.sort(rng.random(amount).astype(np.float32))[::-1].copy()
        rles = [[box_mask(box) for box in each] if masks else None for each in (boxes, found)]
        truth = Objects(boxes, np.ones(number, np.float32), labels, SIZE, CLASSES, rles[0])
        cases.append(Case(f'{i}.png', truth, is_crowd, Objects(found, scores, guesses, SIZE, CLASSES, rles[1])))
    return cases


def box_mask(box):
    left, top, right, bottom = (float(side) for side in box)
    return as_rle([[left, top, right, top, right, bottom, left, bottom]], SIZE)


@pytest.mark.parametrize('crowds', [0, 0.2])
def test_average_precision_equals_that_of_pycocotools(crowds):
    cases = draw_cases(0, crowds, masks=True)
    report = judge(cases, CLASSES)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = objects.as_coco(cases, CLASSES)
        truth.createIndex()
        found = truth.loadRes([each for i, case in enumerate(cases) for each in case.found.to_coco(image_id=i + 1)])
        for kind, name in (('bbox', 'box'), ('segm', 'mask')):
            reference = COCOeval(truth, found, kind)
            reference.evaluate()
            reference.accumulate()
            reference.summarize()
            rows = report['by_class'].values()
            for figure, place in (('AP', 0), ('AP50', 1), ('AP_small', 3), ('AP_medium', 4)):
                mean = np.mean([row[f'{name}_{figure}'] for row in rows])
                assert mean == pytest.approx(reference.stats[place], abs=1e-12)


def test_the_matches_at_one_half_are_those_of_coco():
    cases = draw_cases(1, 0.2)
    matches = [objects.match(case) for case in cases]
    labels, scores, is_right = objects.counted_detections(cases, matches)
    report = judge(cases, CLASSES)
    for label, name in enumerate(CLASSES):
        own = labels == label
        amount = report['by_class'][name]['objects']
        ours = objects.average_precision(scores[own], is_right[own], amount)
        assert ours == pytest.approx(report['by_class'][name]['box_AP50'], abs=1e-12)


# Numbers of errors, and by how much AP50 rises without them, as tidecv 1.0.1 counts them on draw_cases(seed)
TIDE = {
    0: {
        'class': (23, 4.1395677222), 'location': (45, 11.1601142186), 'both': (12, 0.6524510116),
        'duplicate': (28, 1.1937125192), 'background': (81, 4.0482249445), 'missed': (70, 11.2788143598),
    },
    1: {
        'class': (18, 2.6670905164), 'location': (22, 6.7775018567), 'both': (15, 0.3860529931),
        'duplicate': (26, 1.0077039614), 'background': (98, 6.1740482088), 'missed': (86, 14.7504755036),
    },
}  # fmt: skip


@pytest.mark.parametrize('seed', TIDE)
def test_errors_are_those_of_tide(seed):
    errors = judge(draw_cases(seed), CLASSES)['errors']
    assert {kind: row['count'] for kind, row in errors.items()} == {
        kind: count for kind, (count, _) in TIDE[seed].items()
    }
    for kind, (_, gain) in TIDE[seed].items():
        assert 100 * errors[kind]['ap50'] == pytest.approx(gain, abs=1e-9)


@pytest.mark.parametrize('palette', [None, 'random', (220, 20, 60), [(1, 2, 3)]])
def test_a_palette_that_has_no_colour_for_each_class_is_drawn(palette):
    colours = choose_palette(2, palette, [(1, 2, 3), (4, 5, 6)])
    assert colours == [(1, 2, 3), (4, 5, 6)]
    assert len({*choose_palette(2, palette)}) == 2


def one_case(truth, found):
    """Return an image, from rows of x1, y1, x2, y2, class, and of these with a score before the class."""
    truth, found = np.array(truth, float).reshape(-1, 5), np.array(found, float).reshape(-1, 6)
    boxes = [each[:, :4].astype(np.float32) for each in (truth, found)]
    labels = [each[:, -1].astype(int) for each in (truth, found)]
    right = Objects(boxes[0], np.ones(len(truth), np.float32), labels[0], SIZE, CLASSES)
    return Case('x.png', right, np.zeros(len(truth), bool), Objects(boxes[1], found[:, 4], labels[1], SIZE, CLASSES))


def test_figures_of_an_image_that_can_be_counted_by_hand():
    case = one_case(
        [(0, 0, 10, 10, 0), (20, 0, 30, 10, 0), (50, 50, 90, 90, 1)],
        [
            (0, 0, 10, 10, 0.95, 0),  # right
            (0, 0, 10, 9, 0.9, 0),  # again
            (50, 50, 90, 90, 0.8, 2),  # another class
            (20, 0, 30, 3, 0.7, 0),  # not exact
            (150, 150, 160, 160, 0.6, 1),  # on nothing
        ],
    )
    report = judge([case], CLASSES)
    assert {kind: row['count'] for kind, row in report['errors'].items()} == {
        'class': 1, 'location': 1, 'both': 0, 'duplicate': 1, 'background': 1, 'missed': 0,
    }  # fmt: skip
    row = report['by_class']['a']
    assert (row['objects'], row['detections'], row['threshold']) == (2, 3, 0.95)
    assert (row['precision'], row['recall'], row['f1']) == (1, 0.5, pytest.approx(2 / 3))
    assert report['by_class']['c']['box_AP'] is None
    assert report['images'] == [dict(path='x.png', right=1, wrong=0, missed=2, f1=0.5)]
    assert objects.confuse([case], 3, 0.5).tolist() == [[1, 0, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0], [2, 1, 0, 0]]


def test_scores_that_are_what_they_claim_have_no_calibration_error():
    found = [(30 * i, 0, 30 * i + 20, 20, 0.75, 0) for i in range(4)]
    report = judge([one_case([(*each[:4], 0) for each in found[:3]], found)], CLASSES)
    assert report['calibration']['error'] == pytest.approx(0)
    assert report['calibration']['bins'][7] == dict(low=0.7, high=0.8, count=4, score=0.75, right=0.75)


def test_images_without_objects_and_without_detections():
    report = judge([one_case([], []), one_case([(0, 0, 9, 9, 0)], [])], CLASSES)
    assert report['errors']['missed'] == dict(count=1, ap50=0)
    assert [row['f1'] for row in report['images']] == [0, 1]


def coco_of(cases):
    """Return the objects of cases as the content of a COCO file."""
    content = objects.as_coco(cases, CLASSES)
    for entry in content['annotations']:
        entry['segmentation'] = dict(entry['segmentation'])
    return content


def predictions_of(case):
    """Return the detections of a case as MMDetection's metrics take them."""
    found = case.found
    arrays = {'bboxes': found.boxes, 'scores': found.scores, 'labels': found.labels}
    return {key: torch.tensor(value) for key, value in arrays.items()} | {'masks': found.rles}


@pytest.mark.parametrize('kind', ['bbox', 'segm', 'proposal'])
def test_the_fast_metric_of_a_run_gives_the_same_digits(kind, tmp_path, monkeypatch):
    from mmdet.evaluation import CocoMetric

    pytest.importorskip('faster_coco_eval')
    cases = draw_cases(2, 0.2, masks=True)
    content = coco_of(cases)
    (tmp_path / 'ann.json').write_text(json.dumps(content))

    def evaluate():
        metric = CocoMetric(ann_file=str(tmp_path / 'ann.json'), metric=kind, classwise=kind != 'proposal')
        metric.dataset_meta = dict(classes=CLASSES)
        for i, case in enumerate(cases):
            metric.process({}, [dict(img_id=i + 1, ori_shape=SIZE, pred_instances=predictions_of(case))])
        return metric.evaluate(len(cases))

    slow = evaluate()
    monkeypatch.setattr(coco_eval, 'AT_ONCE', 2)
    with coco_eval.fast_coco_metric():
        assert evaluate() == slow
    assert slow


@pytest.mark.parametrize('kind', ['bbox', 'segm'])
def test_the_fast_metric_of_lvis_gives_the_same_digits(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(coco_eval, 'AT_ONCE', 2)
    from mmdet.evaluation import LVISMetric

    monkeypatch.setattr(np, 'float', float, raising=False)  # of which lvis 0.5.3 speaks
    cases = draw_cases(3, masks=True)
    content = coco_of(cases)
    for i, image in enumerate(content['images']):
        image.update(neg_category_ids=[1 + i % 3], not_exhaustive_category_ids=[1 + (i + 1) % 3])
    for category, frequency in zip(content['categories'], 'rcf', strict=True):
        category['frequency'] = frequency
    (tmp_path / 'ann.json').write_text(json.dumps(content))

    def evaluate():
        metric = LVISMetric(ann_file=str(tmp_path / 'ann.json'), metric=kind, classwise=True)
        for i, case in enumerate(cases):
            found = predictions_of(case)
            masks = [coco_mask.decode(each) for each in found['masks']]
            found['masks'] = torch.tensor(np.array(masks, np.uint8).reshape(-1, *SIZE))
            metric.process({}, [dict(img_id=i + 1, ori_shape=SIZE, pred_instances=found)])
        return metric.evaluate(len(cases))

    slow = evaluate()
    monkeypatch.delattr(np, 'float')
    with coco_eval.fast_coco_metric():
        assert evaluate() == slow
    assert {f'lvis/{kind}_AP{which}' for which in ('', '50', 'r', 'c', 'f')} <= slow.keys()
    assert slow[f'lvis/{kind}_AP'] > 0


# --- label maps


def test_figures_of_label_maps_equal_those_of_mmsegmentation():
    from mmseg.evaluation import IoUMetric

    rng = np.random.default_rng(0)
    truth, found = rng.integers(0, 4, (3, 30, 40)), rng.integers(0, 4, (3, 30, 40))
    truth[:, :5] = 255
    metric = IoUMetric(iou_metrics=['mIoU', 'mFscore'])
    metric.dataset_meta = dict(classes=('w', 'x', 'y', 'z'))
    for one, other in zip(truth, found, strict=True):
        sums = metric.intersect_and_union(torch.tensor(other), torch.tensor(one), 4, 255)
        metric.results.append(sums)
    metric.logger = None
    expected = metric.total_area_to_metrics(*[sum(each) for each in zip(*metric.results, strict=True)], metric.metrics)
    pairs = enumerate(zip(truth, found, strict=True))
    report = maps.judge([maps.count(str(i), *pair, 4) for i, pair in pairs], ('w', 'x', 'y', 'z'))
    rows = report['by_class'].values()
    for figure in ('IoU', 'Acc', 'Precision'):
        assert [row[figure] for row in rows] == pytest.approx(expected[figure].tolist())
    assert report['summary']['mIoU'] == pytest.approx(expected['IoU'].mean())
    assert sum(map(sum, report['confusion'])) == 3 * 25 * 40


def test_boundary_iou_of_squares():
    truth, found = np.zeros((100, 100), int), np.zeros((100, 100), int)
    truth[20:60, 20:60] = 1
    found[20:60, 25:65] = 1
    width = round(maps.BAND * 100 * 2**0.5)
    counts = maps.count('x', truth, found, 2)

    def ring(left):
        outer, inner = np.zeros((100, 100), bool), np.zeros((100, 100), bool)
        outer[20:60, left : left + 40] = True
        inner[20 + width : 60 - width, left + width : left + 40 - width] = True
        return outer & ~inner

    one, other = ring(20), ring(25)
    assert counts.borders[:, 1].tolist() == [(one & other).sum(), (one | other).sum()]


def test_the_worst_label_map_comes_first():
    truth = np.zeros((4, 4), int)
    images = [maps.count('good', truth, truth, 2), maps.count('bad', truth, truth + 1, 2)]
    assert [row['path'] for row in maps.judge(images, ('x', 'y'))['images']] == ['bad', 'good']


# --- the command

OPTIONS = {
    'det/cascade_convnext_atto_shapes': ('model.test_cfg.rcnn.max_per_img=10',),
    'seg/upernet_convnext_atto_shapes': (),
}


def run_report(command, config, tmp_path, *options):
    """Run a command on four drawn images and a model with random weights, and return the folder of the report."""
    torch.manual_seed(0)
    cfg = load_config(config)
    with model_scope(cfg):
        torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()), tmp_path / 'epoch_1.pth')
    data = dict(data_root=tmp_path / 'shapes', num_train=1, num_val=4, size=64)
    settings = [f'test_dataloader.dataset.{key}={value}' for key, value in data.items()]
    words = [config, str(tmp_path / 'epoch_1.pth'), '--work-dir', str(tmp_path / 'run'), '--no-check']
    cli.main(command, [*words, *options, '--cfg-options', *settings, *OPTIONS[config]])
    return max((tmp_path / 'run').glob('*/report.html')).parent


@pytest.mark.parametrize('config', OPTIONS)
def test_a_report_is_one_page_and_json(config, tmp_path):
    folder = run_report('report', config, tmp_path)
    report, page = json.loads((folder / 'report.json').read_text()), (folder / 'report.html').read_text()
    assert report['num_images'] == 4
    assert len(report['images']) == 4
    names = {row['path'].split('/')[-1] for row in report['images']}
    assert all(name in page for name in (*names, *report['classes']))
    pictures = re.findall(r'<img src="data:image/(\w+);base64,([^"]+)"', page)
    assert len(pictures) >= 5
    for _, content in pictures:
        assert cv2.imdecode(np.frombuffer(base64.b64decode(content), np.uint8), 1) is not None
    assert not re.search(r'(src|href)="(?!data:)', page)  # nothing outside of the page
    if report['kind'] == 'objects':
        rows = [row for row in report['by_class'].values() if row['objects']]
        means = [np.mean([row[f'{kind}_AP'] for row in rows]) for kind in ('box', 'mask')]
        metrics = [report['metrics'][f'coco/{kind}_mAP'] for kind in ('bbox', 'segm')]
        assert means == pytest.approx(metrics, abs=1e-3)
    else:
        assert report['summary']['mIoU'] == pytest.approx(report['metrics']['mIoU'] / 100, abs=1e-4)


# what a browser makes of a page, written into the page that it returns
PROBE = """<script>addEventListener('load', () => {
    document.body.dataset.widths = [...document.images].map(each => each.naturalWidth);
    const parts = [...document.querySelectorAll('h1,h2,img,td')];
    document.body.dataset.hidden = parts.filter(each => !each.offsetHeight).length;
    document.body.dataset.beyond = document.documentElement.scrollWidth - innerWidth;
})</script>"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which('chromium') is None, reason='needs the browser chromium')
@pytest.mark.parametrize('config', OPTIONS)
def test_a_browser_shows_the_page(config, tmp_path):
    folder = run_report('report', config, tmp_path)
    report, page = json.loads((folder / 'report.json').read_text()), (folder / 'report.html').read_text()
    (tmp_path / 'probed.html').write_text(page + PROBE)
    flags = (
        '--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking '
        '--disable-component-update --disable-sync --window-size=1400,2000 --enable-logging=stderr --dump-dom'
    )
    words = [*flags.split(), f'--user-data-dir={tmp_path / "browser"}', f'file://{tmp_path / "probed.html"}']
    seen = subprocess.run(['chromium', *words], capture_output=True, text=True, timeout=100, check=True)
    assert 'CONSOLE' not in seen.stderr
    probed = dict(re.findall(r' data-(\w+)="([^"]*)"', seen.stdout))
    widths = [int(width) for width in probed['widths'].split(',')]
    assert len(widths) == page.count('<img')
    assert min(widths) > 50
    assert probed['hidden'] == '0'
    assert int(probed['beyond']) <= 0
    titles = re.findall('<h2>(.*?)</h2>', seen.stdout)
    kinds = ['Precision', 'Errors', 'Scores'] if report['kind'] == 'objects' else []
    assert [title.split()[0] for title in titles] == ['Classes', *kinds, 'Confusion', 'The']


def test_two_reports_are_compared(tmp_path):
    config = 'seg/upernet_convnext_atto_shapes'
    first = run_report('report', config, tmp_path)
    second = run_report('test', config, tmp_path, '--report', '--against', str(first))
    page = (second / 'report.html').read_text()
    assert 'IoU, difference' in page
    assert page.count('+0.000') >= 3  # the same model again, where there are figures
    assert not re.search(r'[+-]\d\.\d*[1-9]', page)


def test_a_report_to_compare_with_must_be_one(tmp_path, capsys):
    with pytest.raises(SystemExit, match='2'):
        run_report('report', 'seg/upernet_convnext_atto_shapes', tmp_path, '--against', str(tmp_path / 'none.json'))
    assert 'none.json' in capsys.readouterr().err


def test_objects_of_another_report_are_not_compared_with_label_maps(tmp_path):
    other = tmp_path / 'report.json'
    other.write_text(json.dumps(judge([one_case([], [])], CLASSES)))
    against = json.loads(other.read_text())
    with pytest.raises(UserError, match='objects.*label maps'):
        write_page(dict(kind='label maps'), [], None, against, tmp_path / 'page.html')
