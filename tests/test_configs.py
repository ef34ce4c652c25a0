"""The leaf configs, the metafiles and the recipes page are in step with each other; models fit together."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.infer.infer import BaseInferencer

from convnext_dense.compat.versions import FORKS, find_installed
from convnext_dense.configs import load_config, model_scope, walk
from convnext_dense.train.stats import build_on_meta, count_config, own_configs
from convnext_dense.variants import VARIANTS

ROOT = Path(__file__).parent.parent
LEAVES = sorted([*(ROOT / 'configs').glob('det/*.py'), *(ROOT / 'configs').glob('seg/*.py')])
MODELS = {model['Name']: model for model in BaseInferencer._get_models_from_metafile(str(ROOT))}
PAGE = (ROOT / 'docs/recipes.md').read_text()


def read_tables(page: str) -> dict[str, dict[str, str]]:
    """Return the rows of a page's tables as config -> column -> cell."""
    rows, head = {}, []
    for line in re.findall(r'^\| (.+) \|$', page, re.MULTILINE):
        cells = line.split(' | ')
        if cells[0] == 'config':
            head = cells
        else:
            rows[cells[0].strip('`')] = dict(zip(head, cells, strict=True))
    return rows


ROWS = read_tables(PAGE)


def pytest_generate_tests(metafunc):
    if 'leaf' in metafunc.fixturenames:
        metafunc.parametrize('leaf', LEAVES, ids=lambda leaf: leaf.stem)


@cache
def load(leaf: Path) -> Config:
    """Read a leaf once for the tests that only look at it."""
    return Config.fromfile(leaf)


def metrics_of(name: str) -> dict[str, float]:
    """Return what the metafile has of results, in the words of the headers."""
    words = {'mIoU(ms+flip)': 'mIoU (ms)', 'mIoU': 'mIoU' if name.endswith('_shapes') else 'mIoU (ss)'}
    results = [result['Metrics'] for result in MODELS[name].get('Results', ())]
    return {words.get(metric, metric): value for metrics in results for metric, value in metrics.items()}


def test_a_leaf_is_short_and_shows_its_own_numbers(leaf):
    text, tree = leaf.read_text(), ast.parse(leaf.read_text())
    assert len(text.splitlines()) <= 20
    assert not any(isinstance(node, (ast.Import, ast.ImportFrom)) for node in ast.walk(tree))
    assert re.search(r'\blr=[\d.e-]+', text)
    if load(leaf).model.backbone.type == 'ConvNeXt':
        assert re.search(r"arch='\w+'", text)
        assert 'drop_path_rate=' in text or leaf.stem.startswith('linear')
    if load(leaf).optim_wrapper.get('constructor'):
        assert 'decay_rate=' in text


def test_a_header_has_the_command_and_the_results_of_the_metafile(leaf):
    header, name = ' '.join(ast.get_docstring(ast.parse(leaf.read_text())).split()), leaf.stem
    assert f'tools/train.py configs/{leaf.parent.name}/{leaf.name} ' in header
    metrics, metadata = metrics_of(name), MODELS[name]['Metadata']
    assert all(f'{metric} {value:g}' in header or f'{metric} {value}' in header for metric, value in metrics.items())
    assert bool(metrics) == ('not published' not in header.split('Initial weights')[0])
    assert f'{metadata["Architecture"]}, ' in header
    if 'Parameters (M)' in metadata:
        assert f'{metadata["Parameters (M)"]} M parameters, ' in header
    if 'GFLOPs' in metadata:
        assert f'{metadata["GFLOPs"]} GFLOPs at {metadata["Image"]}' in header


def test_the_metafiles_have_every_leaf_once():
    names = [model['Name'] for model in BaseInferencer._get_models_from_metafile(str(ROOT))]
    assert sorted(names) == sorted(leaf.stem for leaf in LEAVES)
    assert [file.resolve() for file in own_configs()] == LEAVES


def test_a_metafile_tells_of_its_config(leaf):
    model, cfg = MODELS[leaf.stem], load(leaf)
    assert ROOT / model['Config'] == leaf
    loops = cfg.train_cfg.to_dict()
    if 'Epochs' in model['Metadata']:  # Mask2Former counts the steps of 16 images of COCO's 118,287
        epochs = loops.get('max_epochs') or round(loops['max_iters'] * 16 / 118287)
        assert model['Metadata']['Epochs'] == epochs
    else:
        assert model['Metadata']['Iterations'] == loops['max_iters']
    checkpoint = (cfg.model.backbone.get('init_cfg') or {}).get('checkpoint', '')
    published = [result['Dataset'] for result in model.get('Results', ())]
    assert set(published) <= {model['Metadata']['Training Data']}
    if 'dl.fbaipublicfiles.com' in model.get('Weights', ''):
        assert f'_{checkpoint.removeprefix("convnext://")}_' in model['Weights']


def test_the_page_has_the_figures_of_the_metafile_and_of_counting(leaf, leaf_stats):
    stats = leaf_stats(leaf)
    row, total, printed = ROWS[leaf.stem], stats.parts['total'], MODELS[leaf.stem]['Metadata']
    assert row['image'] == '{}x{}'.format(*stats.size)
    if leaf.stem.endswith('_shapes'):
        assert row['result'] == ', '.join(f'{metric} {value}' for metric, value in metrics_of(leaf.stem).items())
    else:
        results = [
            row[metric] for metric in ('box AP', 'mask AP', 'mIoU', 'mIoU(ms+flip)') if row.get(metric, '-') != '-'
        ]
        assert results == [str(value) for value in metrics_of(leaf.stem).values()]
        assert load(leaf).model.backbone.init_cfg.checkpoint in row['initial weights']
    is_counted = leaf.stem.split('_')[0] not in ('dino', 'mask2former')
    assert is_counted == (stats.uncounted == '')
    if not (leaf.stem.startswith('dino') and set(FORKS) & set(find_installed()['mmdet'])):  # whose DINO has 0.1 M more
        assert row['params, M'] == with_published(f'{total.params / 1e6:.2f}', printed.get('Parameters (M)'))
    counted = f'{total.macs / 1e9:.2f}' if is_counted else '-'
    assert row['GFLOPs'] == with_published(counted, printed.get('GFLOPs'))


def with_published(counted: str, published: int | None) -> str:
    return counted if published is None else f'{counted} ({published})'


@pytest.mark.parametrize('text', re.findall(r'```python\n(.*?)```', PAGE, re.DOTALL))
def test_other_sizes_of_the_page_build(text, tmp_path):
    (tmp_path / 'own.py').write_text(text.replace('convnext_dense::', f'{ROOT}/configs/'))
    stats, cfg = count_config(tmp_path / 'own.py'), load_config(tmp_path / 'own.py')
    assert stats.uncounted == ''
    assert stats.parts['backbone'].params > 27e6
    with model_scope(cfg):
        assert build_on_meta(cfg.model).backbone.dims == VARIANTS[cfg.model.backbone.arch].dims


def test_a_config_imports_what_it_builds_on(leaf):
    cfg = load(leaf)
    borrows = any(str(node.get('type')).startswith('mmdet.') for node in walk(cfg.model))  # parts of MMDetection
    assert cfg.custom_imports.imports == ['convnext_dense', *['mmdet.models'] * borrows]


@pytest.mark.parametrize(
    'name',
    [
        *('det/cascade_convnext_atto_shapes', 'det/cascade_swin_t_coco', 'det/mask_rcnn_convnextv2_b_lsj_coco'),
        *('det/rtmdet_convnext_b_in22k_coco', 'seg/mask2former_convnext_t_ade20k', 'seg/upernet_swin_b_in22k_ade20k'),
    ],
)
def test_leaf_survives_a_dump(name, tmp_path):
    cfg = load_config(ROOT / f'configs/{name}.py')
    assert not any(callable(cfg[key]) for key in cfg)  # MMEngine drops the functions that a config imports
    cfg.dump(tmp_path / 'dumped.py')
    dumped = Config.fromfile(tmp_path / 'dumped.py')
    for key in ('model', 'train_dataloader', 'optim_wrapper', 'tta_pipeline'):
        assert dumped.get(key) == cfg.get(key)
