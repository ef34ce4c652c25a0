"""The stand-in for ``mmcv._ext`` as a module, and which ops it serves."""

import ast
import doctest
import importlib.util
import inspect
import pickle
import re
from pathlib import Path

import pytest
import torch

from convnext_dense.compat.ops import OPS, find_op


def test_the_ops_take_the_arguments_of_the_compiled_ones():
    source = Path(importlib.util.find_spec('mmcv').origin).parent / 'ops/csrc/pytorch/pybind.cpp'
    if not source.exists():
        pytest.skip('this mmcv comes without its C++ sources')
    bindings = dict(re.findall(r'm\.def\("(\w+)"(.*?)\);', source.read_text(), flags=re.DOTALL))
    for name in OPS:
        expected = re.findall(r'py::arg\("(\w+)"\)', bindings[name])
        taken = [*inspect.signature(find_op(name)).parameters]
        if taken[-1:] == ['sizes']:  # the numbers, by their names
            taken, expected = taken[:-1], expected[: len(taken) - 1]
        assert taken == expected, name


def test_mmcv_ops_import_and_a_missing_op_says_what_to_do():
    from mmcv.ops import bezier_align, get_compiler_version, get_compiling_cuda_version

    assert 'torchvision' in get_compiler_version()
    assert isinstance(get_compiling_cuda_version(), str)
    with pytest.raises(NotImplementedError, match="'bezier_align_forward' is not .* mmcv with compiled ops"):
        bezier_align(torch.zeros(1, 4, 4, 4), torch.zeros(1, 17), 2)


# They share a file of mmcv with an op that is called, but are not called themselves.
NOT_CALLED = {'bbox_overlaps', 'nms_rotated', 'nms_quadri', 'line_nms_forward'}
NOT_CALLED |= {f'{name}_{way}' for name in ('carafe_naive', 'softmax_focal_loss') for way in ('forward', 'backward')}


@pytest.mark.parametrize('library', ['mmdet', 'mmseg'])
def test_every_op_that_the_libraries_call_is_served(library):
    """A library imports a name of ``mmcv.ops``, or a model or a config of it names a registered type in quotes."""
    wrappers = Path(importlib.util.find_spec('mmcv').origin).parent / 'ops'
    exports = re.findall(r'from \.(\w+) import (\([^)]*\)|[^\n]*)', (wrappers / '__init__.py').read_text())
    file_of = {name: file for file, names in exports for name in re.findall(r'\w+', names)}
    file_of |= {'DCN': 'deform_conv', 'DCNv2': 'modulated_deform_conv', 'MMSyncBN': 'sync_bn', 'carafe': 'carafe'}
    called = set()
    for file in Path(importlib.util.find_spec(library).origin).parent.rglob('*.py'):
        text = file.read_text()
        called.update(re.findall(r'[\'"](\w+)[\'"]', text))
        for names in re.findall(r'from mmcv\.ops[.\w]* import (\([^)]*\)|[^\n]*)', text):
            called.update(re.findall(r'\w+', names))
    files = {file_of[name] for name in called & set(file_of)}
    assert {'mmdet': 'nms', 'mmseg': 'psa_mask'}[library] in files
    for file in files:
        loaded = re.findall(r"load_ext\(\s*'_ext',\s*(\[[^\]]*\])", (wrappers / f'{file}.py').read_text())
        needed = {name for names in loaded for name in ast.literal_eval(names)}
        assert needed <= set(OPS) | NOT_CALLED, file


def test_the_module_behaves_as_a_module():
    import mmcv._ext as ext

    for name in ('__path__', '__wrapped__', '__file__', '_private', '__test__'):
        assert not hasattr(ext, name), name
    assert set(OPS) <= set(dir(ext))
    assert inspect.unwrap(ext) is ext
    assert dict(inspect.getmembers(ext))['nms'] is ext.nms
    assert pickle.loads(pickle.dumps(ext.nms)) is ext.nms
    assert doctest.DocTestFinder().find(ext)
    assert ext.__spec__.origin.endswith('__init__.py')
