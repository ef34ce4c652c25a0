"""The pages of models: current, complete, and honest about what was trained where."""

import re
import runpy
import sys
from decimal import Decimal
from pathlib import Path

import pytest
from mmengine.config import Config

from convnext_dense.train import model_zoo
from convnext_dense.train.config_header import Header, Metric
from convnext_dense.train.model_tables import describe_models
from convnext_dense.train.stats import Counts, ModelStats, leaf_configs

ROOT = Path(__file__).parent.parent
PAGE, STATS_PAGE = ROOT / 'docs/model_zoo.md', ROOT / 'docs/model_stats.md'
LINK = re.compile(r'^\| \[(\w+)\]\(\.\./(configs/\w+/\w+\.py)\)', re.MULTILINE)


def row_of(name):
    """Return the cells of a row of the page by their column."""
    head = next(line for line in PAGE.read_text().splitlines() if line.startswith('| config '))
    row = next(line for line in PAGE.read_text().splitlines() if line.startswith(f'| [{name}]'))
    columns, cells = ([cell.strip() for cell in line.split('|')[1:-1]] for line in (head, row))
    return dict(zip(columns, cells, strict=True))


def test_the_pages_are_current(leaf_stats, originals, monkeypatch):
    monkeypatch.setattr(model_zoo, 'count_config', leaf_stats)
    assert model_zoo.outdated_pages() == [], 'run python tools/model_zoo.py'


def test_every_leaf_has_one_row():
    links = LINK.findall(PAGE.read_text())
    assert sorted(path for _, path in links) == sorted(str(file.relative_to(ROOT)) for file in leaf_configs())
    assert len(links) >= 20
    assert all(Path(path).stem == name for name, path in links)


def test_a_published_row():
    assert row_of('cascade_convnext_xl_in22k_coco') == {
        'config': '[cascade_convnext_xl_in22k_coco](../configs/det/cascade_convnext_xl_in22k_coco.py)',
        'model': 'Cascade Mask R-CNN, ConvNeXt-XL, ImageNet-22k, COCO, 36 epochs (arXiv 2201.03545, Table 3)',
        'result': 'box AP 55.2, mask AP 47.7 (published; not trained here)',
        'input': '1280x800',
        'params': '406.9 (407)',
        'GFLOPs': '1897.4 (1898)',
        'lr': '1e-4',
        'decay': '0.7 by layer',
        'drop path': '0.8',
        'AMP': 'no',
        'command': '`torchrun --nproc_per_node 8 tools/train.py configs/det/cascade_convnext_xl_in22k_coco.py`',
        'initial weights': '`convnext://xlarge_22k`',
        'licence': 'MIT',
        'note': '',
    }


def test_rows_of_other_kinds():
    row = row_of('upernet_convnext_xl_in22k_ade20k')
    assert (row['lr'], row['decay'], row['input']) == ('8e-5', '0.9 by stage', '2560x640')
    row = row_of('cascade_r50_coco')
    assert (row['decay'], row['drop path'], row['licence']) == ('-', '-', 'BSD-3-Clause')
    row = row_of('cascade_convnext_atto_shapes')
    assert row['result'] == 'box AP50 0.85, mask AP50 0.86 (trained here)'
    assert (row['input'], row['initial weights'], row['licence']) == ('128x128', 'random', '-')


def test_rows_of_modern_heads():
    titles = [line for line in PAGE.read_text().splitlines() if line.startswith('## ')]
    *_, modern, drawn, _ = titles
    section = PAGE.read_text().partition(modern)[2].partition(drawn)[0]
    methods = ('dino', 'mask2former', 'rtmdet', 'retinanet', 'faster_rcnn')
    assert sorted(name for name, _ in LINK.findall(section)) == sorted(
        file.stem for file in leaf_configs() if file.stem.startswith(methods)
    )
    row = row_of('dino_convnext_b_in22k_coco')
    assert (row['result'], row['GFLOPs']) == ('box AP 55.1 (published; not trained here)', '-')
    assert (row['lr'], row['decay'], row['drop path'], row['params']) == ('1e-4', '0.1 for all', '0', '108.9')
    row = row_of('mask2former_convnext_t_ade20k')
    assert (row['result'], row['GFLOPs'], row['params']) == ('not published; not trained here', '-', '47.7')
    row = row_of('rtmdet_convnext_b_in22k_coco')
    assert (row['lr'], row['decay'], row['input']) == ('1e-3', '0.8 by layer', '640x640')


def test_no_row_of_coco_or_ade20k_was_trained_here():
    drawn = PAGE.read_text().index('## Drawn data')
    rows = [line for line in PAGE.read_text()[:drawn].splitlines() if line.startswith('| [')]
    assert len(rows) >= 20
    assert all('not trained here' in row for row in rows)


@pytest.mark.parametrize(
    ('expected', 'measured', 'result'),
    [
        ([], [], 'not published; not trained here'),
        ([Metric('box AP', Decimal('50.4'), False, '')], [], 'box AP 50.4 (published; not trained here)'),
        ([Metric('mIoU', Decimal('60'), True, '')], [], 'not published; not trained here'),
        (
            [Metric('mIoU', Decimal('60'), True, '')],
            [Metric('mIoU', Decimal('61'), False, '')],
            'mIoU 61 (trained here)',
        ),
        (
            [Metric('mIoU', Decimal('60'), False, '')],
            [Metric('mIoU', Decimal('61'), False, '')],
            'mIoU 61 (trained here); mIoU 60 (published)',
        ),
    ],
)
def test_results(expected, measured, result):
    assert model_zoo.describe_result(Header('title', 'command', tuple(expected), tuple(measured))) == result


def test_a_config_without_any_settings_of_ours():
    cfg = Config(dict(model=dict(backbone=dict(type='ResNet')), optim_wrapper=dict(optimizer=dict(lr=0.01))))
    stats = ModelStats(Path('a/b.py'), (64, 32), {'heads': Counts(1_000_000, 2_500_000_000)}, cfg=cfg)
    row = model_zoo.describe_row(Header('title', 'run', weights='https://example.org/c/d.pth', licence='MIT'), stats)
    assert (row['lr'], row['decay'], row['drop path'], row['AMP']) == ('1e-2', '-', '-', 'no')
    assert (row['params'], row['GFLOPs'], row['input']) == ('1.0', '2.5', '64x32')
    assert row['initial weights'] == '[d.pth](https://example.org/c/d.pth)'


@pytest.fixture
def one_leaf(monkeypatch, tmp_path):
    """Make the pages, at another place, of one config."""
    monkeypatch.setattr(model_zoo, 'FOLDER', tmp_path / 'docs')
    leaf = ROOT / 'configs/det/cascade_convnext_atto_shapes.py'
    monkeypatch.setattr(model_zoo, 'leaf_configs', lambda: [leaf])
    return leaf


def test_check(one_leaf):
    assert [file.name for file in model_zoo.outdated_pages()] == ['model_zoo.md', 'model_stats.md']  # there are none
    files = model_zoo.write_pages()
    assert model_zoo.outdated_pages() == []
    assert LINK.findall(files[0].read_text()) == [
        ('cascade_convnext_atto_shapes', 'configs/det/cascade_convnext_atto_shapes.py')
    ]
    for file in files:
        text = file.read_text()
        file.write_text(text.replace('128x128', '64x64'))
        assert model_zoo.outdated_pages() == [file]
        file.write_text(text)


def test_model_stats_writes_the_same_page(one_leaf, tmp_path):
    _, page = model_zoo.write_pages()
    describe_models([one_leaf], out=str(tmp_path / 'own.md'))
    assert page.read_text() == (tmp_path / 'own.md').read_text()


def test_the_counts_by_part():
    rows = [line for line in STATS_PAGE.read_text().splitlines() if line.startswith(('| det/', '| seg/'))]
    assert len(rows) == 4 * len(leaf_configs())
    published = [row.split(' | ') for row in rows if ' total ' in row and '741' in row]
    assert [row[1:8] for row in published] == [['1280x800', 'total', '85.93', '86', '740.15', '741', '-0.11']]
    assert '(model_stats.md)' in PAGE.read_text()


def test_the_tool(one_leaf, monkeypatch, capsys):
    """Pages that are out of date are one line and exit code 1."""

    def run(*arguments):
        monkeypatch.setattr(sys, 'argv', ['model_zoo.py', *arguments])
        runpy.run_path(str(ROOT / 'tools/model_zoo.py'), run_name='__main__')

    with pytest.raises(SystemExit) as leave:
        run('--check')
    # a text means exit code 1, and goes to standard error
    zoo, stats = (model_zoo.FOLDER / name for name in ('model_zoo.md', 'model_stats.md'))
    assert leave.value.code == f'out of date: {zoo}, {stats}. Run python tools/model_zoo.py'
    run()
    assert capsys.readouterr().out == f'written: {zoo}\nwritten: {stats}\n'
    run('--check')
    assert capsys.readouterr() == ('', '')
