"""What the README shows works; its Python session runs as a doctest."""

import re
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, init_default_scope

from convnext_dense.cli import COMMANDS
from convnext_dense.configs import find_config
from convnext_dense.data import check_dataset, write_shapes
from convnext_dense.data.shapes import SHAPES
from convnext_dense.train import config as run_config

ROOT = Path(__file__).parent.parent
README = (ROOT / 'README.md').read_text()
OWN_DATA = (ROOT / 'docs/own_data.md').read_text()
BLOCKS = re.findall(r'```python\n(.*?)```', README + OWN_DATA, re.DOTALL)


def test_own_data(tmp_path):
    root = write_shapes(tmp_path / 'shapes', num_train=12, num_val=4, size=64)
    text = next(block for block in BLOCKS if 'hazelnut' in block)
    for old, new in {
        "('date', 'fig', 'hazelnut')": repr(tuple(SHAPES)),
        'data/fruits/annotations/val.json': str(root / 'annotations/instances_val.json'),
        'data/fruits/': str(root),
        'annotations/train.json': 'annotations/instances_train.json',
        'annotations/val.json': 'annotations/instances_val.json',
        "img='images/'": "img='images/train/'",
    }.items():
        assert old in text
        text = text.replace(old, new)
    (tmp_path / 'config.py').write_text(text)
    cfg = Config.fromfile(tmp_path / 'config.py')
    assert check_dataset(cfg.train_dataloader.dataset) == []
    assert run_config.fit_classes(cfg)
    init_default_scope('mmdet')
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    assert dataset.metainfo['classes'] == tuple(SHAPES)
    assert len(dataset) > 6
    assert {head.num_classes for head in cfg.model.roi_head.bbox_head} == {len(SHAPES)}


def test_backbone_in_a_stock_mmdetection_config(tmp_path):
    text = next(block for block in BLOCKS if 'custom_imports' in block)
    (tmp_path / 'config.py').write_text("_base_ = ['mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py']\n" + text)
    cfg = Config.fromfile(tmp_path / 'config.py')
    init_default_scope('mmdet')
    model = MODELS.build(cfg.model)
    assert type(model.backbone).__name__ == 'ConvNeXt'
    assert model.neck.in_channels == list(model.backbone.dims)
    assert cfg.optim_wrapper.constructor == 'ConvNeXtLayerDecay'


@pytest.mark.parametrize('path', re.findall(r'\]\((?!http)([^)]+)\)', README))
def test_links_lead_somewhere(path):
    assert (ROOT / path).exists()


def test_commands_name_files_that_exist():
    for path in re.findall(r'(?:tools|configs)/[\w/]+\.py', README):
        assert (ROOT / path).is_file(), path


PAGES = ('index', 'first_training', 'own_data', 'predict', 'report', 'export')


@pytest.mark.parametrize('page', ['README.md', *(f'docs/{name}.md' for name in PAGES)])
def test_commands_exist(page):
    text = (ROOT / page).read_text()
    commands = re.findall(r'^    convnext-dense (\S+)(?: (det/\w+|seg/\w+))?', text, re.MULTILINE)
    assert commands
    for command, config in commands:
        assert command in COMMANDS
        assert not config or find_config(config).is_file()


def test_pages_of_the_site_exist():
    for page in re.findall(r'(\w+\.md)$', (ROOT / 'mkdocs.yml').read_text().partition('nav:')[2], re.MULTILINE):
        assert (ROOT / 'docs' / page).is_file(), page


def test_the_tests_that_stand_for_a_promise_exist():
    named = re.findall(r'`(test_\w+)[.`]', (ROOT / 'docs/reliability.md').read_text())
    written = ''.join(file.read_text() for file in (ROOT / 'tests').glob('test_*.py'))
    assert len(named) > 30
    assert [name for name in named if f'def {name}' not in written] == []
