"""The table of the ops against mmcv, mmdet, mmseg and the ops themselves, and the page and the benchmark made of it."""

import ast
import importlib.util
import re
import runpy
import sys
from collections import Counter
from pathlib import Path

import pytest

from convnext_dense.compat.ops import OPS, coverage, find_op

ONLY_IN_THE_FORK = {'line_nms_forward'}  # for CLRerNet's lanes, in onedl-mmcv and onedl-mmdetection
TOOLS = Path(__file__).parents[1] / 'tools'


def folder_of(package: str) -> Path:
    return Path(importlib.util.find_spec(package).origin).parent


@pytest.fixture(scope='module')
def wrappers() -> dict[str, ast.Module]:
    """The files of mmcv.ops, parsed."""
    return {file.stem: ast.parse(file.read_text()) for file in (folder_of('mmcv') / 'ops').glob('*.py')}


def compiled_ops(tree: ast.Module) -> list[str]:
    """Return what a file asks ``mmcv._ext`` for."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [
        name
        for call in calls
        if getattr(call.func, 'attr', '') == 'load_ext'
        for name in ast.literal_eval(call.args[1])
    ]


def offered_names(wrappers: dict[str, ast.Module]) -> dict[str, str]:
    """Return what mmcv.ops exports or registers -> the file it is from."""
    names = {}
    for node in wrappers['__init__'].body:
        if isinstance(node, ast.ImportFrom):
            names |= {alias.name: node.module for alias in node.names}
    for file, tree in wrappers.items():
        for node in ast.walk(tree):
            for call in getattr(node, 'decorator_list', []):
                if isinstance(call, ast.Call) and getattr(call.func, 'attr', '') == 'register_module':
                    arguments = [*call.args, *(k.value for k in call.keywords if k.arg == 'name')]
                    names |= {name.value: file for name in arguments} or {node.name: file}
    return names


def test_every_op_of_mmcv_stands_in_one_row(wrappers):
    asked_for = [name for tree in wrappers.values() for name in compiled_ops(tree)]
    listed = Counter(op for row in coverage.OPS_TABLE for op in row.ops)
    assert not [op for op, count in listed.items() if count > 1]
    assert set(listed) == set(asked_for) - ONLY_IN_THE_FORK


@pytest.mark.parametrize('row', coverage.OPS_TABLE, ids=lambda row: row.ops[0])
def test_a_row_says_what_serves_its_ops_or_why_nothing_does(row):
    assert row.exactness
    for op in row.ops:
        assert (op in OPS) == bool(row.served_by), op
        if row.served_by:
            assert callable(find_op(op))
            continue
        with pytest.raises(NotImplementedError, match=f"op '{op}' is not implemented here: .* install an mmcv with"):
            find_op(op)()


def test_what_mmdet_and_mmseg_use_is_served(wrappers):
    """They import it, or a config or a model names it: in quotes, as every registered layer and NMS type is."""
    names = offered_names(wrappers)
    quoted = re.compile(r'[\'"](\w+)[\'"]')
    imported = re.compile(r'from mmcv\.ops(?:\.(\w+))? import (\([^)]*\)|[^\n]*)')
    reached = set()
    for package in ('mmdet', 'mmseg'):
        for file in folder_of(package).rglob('*.py'):
            text = file.read_text()
            reached |= {names[name] for name in set(quoted.findall(text)) & set(names)}
            for module, members in imported.findall(text):
                reached |= (
                    {module} if module else {names[name] for name in re.findall(r'\w+', members) if name in names}
                )
    # What these files import from one another
    for file in list(reached):
        for node in ast.walk(wrappers[file]):
            if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module in wrappers:
                reached.add(node.module)
    assert {
        'nms',
        'roi_align',
        'roi_pool',
        'deform_roi_pool',
        'deform_conv',
        'carafe',
        'psa_mask',
        'sync_bn',
    } <= reached
    used = {op for file in reached for op in compiled_ops(wrappers[file])}
    assert not used - set(OPS) - ONLY_IN_THE_FORK
    unused = {op for row in coverage.OPS_TABLE if not row.used_by for op in row.ops}
    # mmdet exports a function of its own by the name of one; two share a file with an op that is used.
    assert used & unused == {'bbox_overlaps', 'softmax_focal_loss_forward', 'softmax_focal_loss_backward'}


def test_the_page_says_what_the_table_says():
    assert coverage.is_current(), 'run python tools/ops_table.py'
    text = coverage.FILE.read_text()
    lines = [line for line in text.splitlines() if line.startswith('| ')]
    assert len(lines) == len(coverage.OPS_TABLE) + 4  # two heads of two lines
    assert {line.count(' | ') for line in lines} == {1, 4}


def test_the_tool_tells_an_old_page(monkeypatch, tmp_path):
    monkeypatch.setattr(coverage, 'FILE', tmp_path / 'ops.md')
    monkeypatch.setattr(sys, 'argv', ['ops_table.py', '--check'])
    with pytest.raises(SystemExit, match=r'ops\.md is out of date: run python tools/ops_table\.py'):
        runpy.run_path(str(TOOLS / 'ops_table.py'), run_name='__main__')
    monkeypatch.setattr(sys, 'argv', ['ops_table.py'])
    runpy.run_path(str(TOOLS / 'ops_table.py'), run_name='__main__')
    assert coverage.is_current()


def test_the_benchmark_prints_a_row_for_each_case(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['benchmark_ops.py', 'nms_m*', 'points*', '--rounds', '1', '--device', 'cpu'])
    runpy.run_path(str(TOOLS / 'benchmark_ops.py'), run_name='__main__')
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split(',')[0] for row in rows] == ['nms_match', 'points_in_polygons']
    assert all(re.search(r'\d\.\d\d ms', row) for row in rows)
