"""A compiled ``mmcv._ext`` in mmcv's own folder serves the ops; a stand-in that records its calls shows it."""

import pytest

# mmcv asks for about 150 names when it is imported. The box that this nms keeps is not the one that nms keeps.
STAND_IN = """
import torch

calls = []

def __getattr__(name):
    if name.startswith('__'):
        raise AttributeError(name)
    return lambda *args, **kwargs: calls.append(name) or torch.tensor([1])
"""
EXTEND = 'import sys, mmcv; mmcv.__path__.append(sys.argv[1])'
PREPARE = 'import convnext_dense'
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


@pytest.mark.parametrize('order', [(EXTEND, PREPARE), (PREPARE, EXTEND)], ids=['installed', 'added later'])
def test_a_compiled_module_serves_the_ops(order, run_python, tmp_path):
    pytest.importorskip('mmcv')
    (tmp_path / '_ext.py').write_text(STAND_IN)
    result = run_python('\n'.join([*order, USE]), tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        f'the compiled module of mmcv, {tmp_path / "_ext.py"}',
        '[1]',
        "['nms', 'roi_align_forward']",
        '[]',
    ]
