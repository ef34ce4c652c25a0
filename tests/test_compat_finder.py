"""Who serves ``mmcv._ext``: a compiled module or this package; and that preparing the stack is cheap and silent."""

import importlib
import importlib.util
import sys
from pathlib import Path

import pytest

from convnext_dense import compat
from convnext_dense.compat.ext_finder import TorchvisionOpsFinder


@pytest.fixture
def mmcv_of_two_files(tmp_path, monkeypatch):
    """An mmcv in its own folder, first on the path, with nothing else of mmcv loaded."""
    (tmp_path / 'mmcv').mkdir()
    (tmp_path / 'mmcv/__init__.py').touch()
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition('.')[0] == 'mmcv']:
        monkeypatch.delitem(sys.modules, name)
    yield tmp_path / 'mmcv'
    for name in [name for name in sys.modules if name.partition('.')[0] == 'mmcv']:
        del sys.modules[name]


def test_torchvision_serves_where_nothing_is_compiled(mmcv_of_two_files):
    assert compat.ops_backend() == 'torchvision'
    assert 'mmcv' not in sys.modules
    assert importlib.import_module('mmcv._ext').nms.__module__ == 'convnext_dense.compat.ops.nms'


def test_a_compiled_module_wins(mmcv_of_two_files):
    (mmcv_of_two_files / '_ext.py').write_text('nms = "compiled"')
    assert compat.ops_backend() == 'compiled'
    assert importlib.import_module('mmcv._ext').nms == 'compiled'


# A stand-in for a compiled module, which records its calls. mmcv asks for about 150 names when it is imported. The box
# that this nms keeps is not the one that nms keeps.
STAND_IN = """
import torch

calls = []

def __getattr__(name):
    if name.startswith('__'):
        raise AttributeError(name)
    return lambda *args, **kwargs: calls.append(name) or torch.tensor([1])
"""
EXTEND = 'import sys, mmcv; mmcv.__path__.append(sys.argv[1])'
IMPORT = 'import convnext_dense'
USE = """
import torch, mmcv._ext
from convnext_dense.compat import doctor
from mmcv.ops import nms, roi_align
print(doctor.ops_line())
boxes = torch.tensor([[0., 0., 9., 9.], [0., 0., 9., 8.]])
print(nms(boxes, torch.tensor([0.9, 0.8]), 0.5)[1].tolist())
roi_align(torch.zeros(1, 1, 8, 8), torch.tensor([[0., 0., 0., 4., 4.]]), 2)
print(mmcv._ext.calls)
print(sorted(name for name in sys.modules if name.startswith('convnext_dense.compat.ops.')))
"""


@pytest.mark.parametrize(
    'order',
    [
        pytest.param((EXTEND, IMPORT), id='installed'),
        pytest.param((IMPORT, EXTEND), id='added later', marks=pytest.mark.slow),
    ],
)
def test_a_compiled_module_serves_the_ops(order, run_python, tmp_path):
    (tmp_path / '_ext.py').write_text(STAND_IN)
    result = run_python('\n'.join([*order, USE]), tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        f'the compiled module of mmcv, {tmp_path / "_ext.py"}',
        '[1]',
        "['nms', 'roi_align_forward']",
        '[]',
    ]


def test_no_mmcv_no_backend(monkeypatch):
    monkeypatch.setitem(sys.modules, 'mmcv', None)
    assert compat.ops_backend() is None


def test_preparing_twice_adds_one_finder_which_serves_no_other_module():
    before = list(sys.meta_path)
    compat.prepare()
    assert sys.meta_path == before
    (finder,) = (finder for finder in sys.meta_path if isinstance(finder, TorchvisionOpsFinder))
    assert finder.find_spec('mmcv.ops') is finder.find_spec('_ext') is None


# compat alone: the package's own __init__ imports more
PREPARE = """
import sys, types
package = types.ModuleType('convnext_dense')
package.__path__ = [sys.argv[1]]
sys.modules['convnext_dense'] = package
from convnext_dense import compat
compat.prepare()
print(sorted({'torch', 'torchvision', 'mmengine', 'mmcv', 'mmdet', 'mmseg'} & set(sys.modules)))
"""


def test_preparing_is_silent_and_imports_none_of_the_stack(run_python):
    result = run_python(PREPARE, Path(compat.__file__).parents[1])
    assert (result.stdout, result.stderr) == ('[]\n', '')


IMPORT_STOCK = """
import sys
sys.modules['pkg_resources'] = None
import convnext_dense
convnext_dense.compat.silence()
import mmdet.apis, mmdet.datasets, mmdet.evaluation, mmdet.models, mmseg.apis, mmseg.models
from mmengine.config import Config
with open(sys.argv[1], 'w') as file:
    file.write("_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'")
print(Config.fromfile(sys.argv[1]).model.type)
"""


@pytest.mark.slow
def test_the_stock_packages_import_silently_without_pkg_resources(run_python, tmp_path):
    result = run_python(IMPORT_STOCK, tmp_path / 'config.py')
    assert (result.stdout.splitlines()[-1:], result.stderr) == (['FasterRCNN'], '')  # a fork prints of its own


@pytest.mark.slow
@pytest.mark.skipif(compat.ops_backend() == 'compiled', reason='this mmcv needs nobody to serve its ops')
def test_the_package_comes_before_a_first_import_of_mmdet(run_python):
    """As docs/versions.md says: nothing of this package can act before it is imported; the test above has the cure."""
    assert "No module named 'mmcv._ext'" in run_python('from mmdet.apis import init_detector').stderr
