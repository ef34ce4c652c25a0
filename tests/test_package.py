"""Importing the package: quiet, cheap, repeatable, and without the OpenMMLab libraries."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import convnext_dense

ROOT = Path(__file__).parent.parent


def run_python(code: str, *options: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *options, '-c', code], capture_output=True, text=True, timeout=120, check=False
    )


def test_import_is_quiet_cheap_and_idempotent():
    result = run_python(
        'import sys, convnext_dense, importlib\n'
        'before = list(sys.meta_path)\n'
        'convnext_dense.compat.prepare()\n'
        'assert before == sys.meta_path\n'
        "for name in ('torchvision', 'mmcv', 'mmdet', 'mmseg', 'timm', 'pycocotools'):\n"
        '    assert name not in sys.modules, name\n',
        '-W',
        'error',
        '-W',
        'ignore::ResourceWarning',  # of the folders that PyTorch 2.4 leaves to the end
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, '', '')


def test_registers_in_the_root_registries():
    from mmengine import registry

    for where, name in [
        (registry.MODELS, 'ConvNeXt'),
        (registry.OPTIM_WRAPPER_CONSTRUCTORS, 'ConvNeXtLayerDecay'),
        (registry.OPTIM_WRAPPER_CONSTRUCTORS, 'ConvNeXtStageDecay'),
        (registry.DATASETS, 'ShapesInstances'),
        (registry.DATASETS, 'ShapesLabels'),
        (registry.HOOKS, 'RunSummaryHook'),
        (registry.RUNNERS, 'OneLineRunner'),
    ]:
        assert name in where.module_dict


def test_backbone_is_found_from_mmdetection_and_mmsegmentation():
    from mmdet.registry import MODELS as DET_MODELS
    from mmseg.registry import MODELS as SEG_MODELS

    for models in (DET_MODELS, SEG_MODELS):
        assert isinstance(models.build(dict(type='ConvNeXt', arch='atto')), convnext_dense.ConvNeXt)


def test_core_works_without_the_openmmlab_libraries():
    result = run_python(
        'import sys\n'
        "for name in ('mmcv', 'mmdet', 'mmseg', 'pycocotools'):\n"
        '    sys.modules[name] = None\n'
        'import torch, convnext_dense\n'
        "maps = convnext_dense.ConvNeXt('atto')(torch.zeros(1, 3, 64, 64))\n"
        'assert [m.shape[1] for m in maps] == [40, 80, 160, 320]\n'
        'try:\n'
        '    from mmengine.registry import DATASETS\n'
        "    DATASETS.build(dict(type='ShapesInstances', data_root='nowhere'))\n"
        'except convnext_dense.UserError as error:\n'
        '    print(error)\n'
    )
    assert result.returncode == 0, result.stderr
    assert 'convnext-dense[mm]' in result.stdout


def test_one_version_in_one_place():
    import importlib.metadata

    assert importlib.metadata.version('convnext-dense') == convnext_dense.__version__
    assert f'## {convnext_dense.__version__}' in (ROOT / 'CHANGELOG.md').read_text()


@pytest.mark.parametrize('tool', sorted((ROOT / 'tools').glob('*.py')), ids=lambda tool: tool.stem)
def test_tools_can_be_imported(tool):
    runpy.run_path(str(tool), run_name='imported')
