"""Importing the package: quiet, cheap, repeatable, and without the OpenMMLab libraries."""

import os
import runpy
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import convnext_dense
from convnext_dense.configs import config_folder, find_config, load_config

ROOT = Path(__file__).parent.parent


IMPORT = """
import sys, torch, convnext_dense
compiler = ('torch._inductor',) if torch.__version__ >= '2.6' else ()  # older ones have it at once
for name in (*compiler, 'torchvision', 'mmcv', 'mmdet', 'mmseg', 'timm', 'pycocotools'):
    assert name not in sys.modules, name
"""


def test_import_is_quiet_and_cheap(run_python):
    # PyTorch 2.4 leaves folders to the end
    result = run_python(IMPORT, options=['-W', 'error', '-W', 'ignore::ResourceWarning'])
    assert (result.returncode, result.stdout, result.stderr) == (0, '', '')


WITHOUT_LIBRARIES = """
import sys
sys.modules.update(dict.fromkeys(('mmcv', 'mmdet', 'mmseg', 'pycocotools')))
import torch, convnext_dense
from mmengine.registry import DATASETS
maps = convnext_dense.ConvNeXt('atto')(torch.zeros(1, 3, 64, 64))
assert [m.shape[1] for m in maps] == [40, 80, 160, 320]
for name in ('ShapesInstances', 'ShapesLabels'):
    try:
        DATASETS.build(dict(type=name, data_root=sys.argv[1]))
    except convnext_dense.UserError as error:
        print(error)
"""


def test_core_works_without_the_openmmlab_libraries(run_python, tmp_path):
    result = run_python(WITHOUT_LIBRARIES, tmp_path / 'shapes')
    assert result.returncode == 0, result.stderr
    assert result.stdout.count('convnext-dense[mm]') == 2
    assert list(tmp_path.iterdir()) == []


def test_the_changelog_has_the_version():
    release = convnext_dense.__version__.partition('.dev')[0]
    assert f'## {release}' in (ROOT / 'CHANGELOG.md').read_text()


@pytest.mark.parametrize('tool', sorted((ROOT / 'tools').glob('*.py')), ids=lambda tool: tool.stem)
def test_tools_can_be_imported(tool):
    runpy.run_path(str(tool), run_name='imported')


@pytest.mark.parametrize(
    'name',
    [
        'det/cascade_convnext_t_coco',
        'det/cascade_convnext_t_coco.py',
        'cascade_convnext_t_coco',
        'configs/det/cascade_convnext_t_coco.py',
        'convnext_dense::det/cascade_convnext_t_coco.py',
        str(ROOT / 'configs/det/cascade_convnext_t_coco'),
    ],
)
def test_names_of_a_config(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config(name) == config_folder() / 'det/cascade_convnext_t_coco.py'


def test_configs_of_upstream_and_of_the_folder_at_hand(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config('mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py').is_file()
    (tmp_path / 'cascade_convnext_t_coco.py').touch()
    assert find_config('cascade_convnext_t_coco') == Path('cascade_convnext_t_coco.py')


@pytest.mark.parametrize('name', ['nowhere', 'det', 'mmdet::dino/nowhere.py', 'nowhere::det/x.py'])
def test_names_of_no_config(name):
    with pytest.raises(convnext_dense.UserError, match=name):
        find_config(name)


@pytest.mark.parametrize('key', ['train_dataloder', 'optim_wraper', 'val_evaluatoor', 'Model', 'custom_hoks'])
def test_misspelt_keys(key, tmp_path):
    for text, options in ((f'{key} = dict()', {}), ('', {f'{key}.batch_size': 1})):
        (tmp_path / 'config.py').write_text(text)
        with pytest.raises(convnext_dense.UserError, match=f"'{key}', which nothing reads. Did you mean"):
            load_config(tmp_path / 'config.py', options)


USED = 'train_dataloder = 1\nx = train_dataloder'


@pytest.mark.parametrize('text', ['models = 1', 'test_cfgs = 1', 'train_dataloader2 = 1', 'my_model = 1', USED])
def test_variables_of_a_config(text, tmp_path):
    (tmp_path / 'config.py').write_text(text)
    load_config(tmp_path / 'config.py')


IN_AN_EMPTY_FOLDER = """
import sys
from pathlib import Path
import convnext_dense
from convnext_dense.configs import config_folder
from mmengine.config import Config
assert convnext_dense.__file__.startswith(sys.prefix), convnext_dense.__file__
mim = Path(convnext_dense.__file__).parent / '.mim'
assert config_folder() == mim / 'configs'
assert (mim / 'tools/train.py').is_file() and (mim / 'model-index.yml').is_file()
Path('own.py').write_text("_base_ = 'convnext_dense::det/cascade_convnext_t_coco.py'")
cfg = Config.fromfile('own.py')
assert (cfg.model.backbone.arch, cfg.default_scope) == ('tiny', 'mmdet')
assert '_scope_' not in cfg.model
from mmdet.apis import DetInferencer
inferencer = DetInferencer('cascade_convnext_atto_shapes', device='cpu')
assert type(inferencer.model.backbone) is convnext_dense.ConvNeXt
try:
    DetInferencer('cascade_convnext_nowhere', device='cpu')
except ValueError as error:
    print(error)
"""


@pytest.mark.slow
def test_the_wheel_works_without_its_clone(tmp_path):
    """The libraries are those of this environment; the package comes from the wheel, in an environment of its own."""
    source, folder = tmp_path / 'source', tmp_path / 'empty'
    folder.mkdir()
    files = subprocess.run(['git', 'ls-files', '-z'], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for file in filter(None, files.split('\0')):
        (source / file).parent.mkdir(parents=True, exist_ok=True)
        (source / file).write_bytes((ROOT / file).read_bytes())
    pip = [sys.executable, '-m', 'pip', '--disable-pip-version-check', '--quiet']
    subprocess.run(
        [*pip, 'wheel', '--no-deps', '--no-build-isolation', '-w', tmp_path, source], check=True, capture_output=True
    )
    venv.create(tmp_path / 'venv', with_pip=False)
    bin_folder = tmp_path / 'venv/bin'
    subprocess.run(
        [*pip, '--python', bin_folder / 'python', 'install', '--no-deps', *tmp_path.glob('*.whl')],
        check=True, capture_output=True,
    )  # fmt: skip
    site = next((tmp_path / 'venv/lib').glob('python*/site-packages'))
    (site / 'libraries.pth').write_text('\n'.join(path for path in sys.path if path.endswith('site-packages')))
    environment = {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'}

    def run(*command) -> str:
        done = subprocess.run(
            [*map(str, command)], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert 'ConvNeXtLayerDecay' in run(bin_folder / 'convnext-dense', 'show-lr', 'det/cascade_convnext_atto_shapes')
    assert 'cascade_convnext_nowhere' in run(bin_folder / 'python', '-c', IN_AN_EMPTY_FOLDER)
