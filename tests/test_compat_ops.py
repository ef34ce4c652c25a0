"""The stand-ins for mmcv's compiled ops against plain loops that are written here, closed forms and gradcheck."""

import ast
import doctest
import importlib.util
import inspect
import math
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from convnext_dense import compat as stack
from convnext_dense.compat.ops import OPS, deform_conv, find_op, nms, roi_align

METHODS = ('naive', 'linear', 'gaussian')


@pytest.fixture(autouse=True)
def _prepared():
    stack.prepare()


@pytest.fixture(params=['distinct', 'ties', 'degenerate', 'nan'])
def kind(request, device):
    if device.type == 'cuda' and request.param != 'distinct':
        pytest.skip("torchvision's CUDA kernels break ties in another order")
    return request.param


def draw_boxes(rng: np.random.Generator, kind: str, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return boxes and scores; few values, so that ties of overlaps and of scores are common."""
    corners = rng.integers(0, 9, (count, 2, 2)).astype(np.float32)
    if kind != 'degenerate':
        corners = np.sort(corners, axis=1)
    boxes = corners.reshape(count, 4)
    scores = rng.integers(1, 6, count).astype(np.float32) / 5
    if kind == 'distinct':
        boxes += rng.random((count, 4), dtype=np.float32)
        scores = rng.permutation(count).astype(np.float32) / count
    if kind == 'nan':
        boxes[rng.integers(0, count, 3), rng.integers(0, 4, 3)] = np.nan
        scores[rng.integers(0, count, 2)] = np.nan
    return torch.from_numpy(boxes), torch.from_numpy(scores)


def overlap_by_hand(box: list, other: list, offset: int) -> np.float32:
    """IoU in float32; where NaN is compared, the first of the two numbers stays."""

    def larger(a, b):
        return b if a < b else a

    def smaller(a, b):
        return b if b < a else a

    zero, offset = np.float32(0), np.float32(offset)
    with np.errstate(all='ignore'):
        width = larger(zero, smaller(box[2], other[2]) - larger(box[0], other[0]) + offset)
        height = larger(zero, smaller(box[3], other[3]) - larger(box[1], other[1]) + offset)
        area, other_area = ((b[2] - b[0] + offset) * (b[3] - b[1] + offset) for b in (box, other))
        return width * height / (area + other_area - width * height)


def groups_by_hand(boxes: torch.Tensor, scores: torch.Tensor, hits, offset: int) -> list[list[int]]:
    rows = list(boxes.numpy())
    waiting = scores.sort(descending=True).indices.tolist()
    groups = []
    while waiting:
        best = waiting.pop(0)
        group = [i for i in waiting if hits(overlap_by_hand(rows[best], rows[i], offset))]
        waiting = [i for i in waiting if i not in group]
        groups.append([best, *group])
    return groups


def decay_by_hand(overlap, threshold, sigma, method):
    if method == 'gaussian':
        return np.float32(math.exp(-(overlap * overlap) / sigma))
    if overlap >= threshold:
        return np.float32(0) if method == 'naive' else np.float32(1) - overlap
    return np.float32(1)


def softnms_by_hand(boxes, scores, threshold, sigma, min_score, method, offset):
    """Move and drop single boxes in a list, one at a time."""
    waiting = [[*row, score, i] for i, (row, score) in enumerate(zip(boxes.numpy(), scores.numpy(), strict=True))]
    done = 0
    while done < len(waiting):
        best = done
        for i in range(done + 1, len(waiting)):
            if waiting[best][4] < waiting[i][4]:
                best = i
        waiting[done], waiting[best] = waiting[best], waiting[done]
        i = done + 1
        while i < len(waiting):
            overlap = overlap_by_hand(waiting[done], waiting[i], offset)
            factor = decay_by_hand(overlap, np.float32(threshold), np.float32(sigma), method)
            waiting[i][4] = waiting[i][4] * factor
            if waiting[i][4] < np.float32(min_score):
                last = waiting.pop()
                if i < len(waiting):
                    waiting[i] = last
            else:
                i += 1
        done += 1
    return waiting


@pytest.mark.parametrize('offset', [0, 1])
def test_nms_keeps_what_a_plain_loop_keeps(kind, offset, device):
    from mmcv.ops import nms

    rng = np.random.default_rng(0)
    for threshold in (0, 0.2, 0.5, 0.6, 1 / 3):
        boxes, scores = draw_boxes(rng, kind, 25)
        expected = groups_by_hand(boxes, scores, lambda o, t=threshold: o > np.float32(t), offset)
        dets, kept = (each.cpu() for each in nms(boxes.to(device), scores.to(device), threshold, offset=offset))
        assert kept.dtype == torch.int64
        assert kept.tolist() == [group[0] for group in expected]
        torch.testing.assert_close(dets, torch.cat([boxes, scores[:, None]], 1)[kept], equal_nan=True, rtol=0, atol=0)


def test_nms_match_groups_what_a_plain_loop_groups(kind, device):
    from mmcv.ops import nms_match

    rng = np.random.default_rng(1)
    for threshold in (0.2, 0.5, 1 / 3):
        boxes, scores = draw_boxes(rng, kind, 25)
        expected = groups_by_hand(boxes, scores, lambda o, t=threshold: o >= np.float32(t), offset=0)
        groups = nms_match(torch.cat([boxes, scores[:, None]], 1).to(device), threshold)
        assert [group.tolist() for group in groups] == expected


@pytest.mark.parametrize('method', METHODS)
def test_soft_nms_is_what_a_plain_loop_does(kind, method, device):
    from mmcv.ops import soft_nms

    rng = np.random.default_rng(2)
    for offset, threshold, min_score in ((0, 0.3, 0.05), (1, 0.5, 0.2), (0, 0.2, 0.3)):
        boxes, scores = draw_boxes(rng, kind, 20)
        expected = softnms_by_hand(boxes, scores, threshold, 0.5, min_score, method, offset)
        given = (boxes.to(device), scores.to(device))
        dets, kept = (each.cpu() for each in soft_nms(*given, threshold, 0.5, min_score, method, offset))
        assert kept.tolist() == [row[5] for row in expected]
        rows = torch.tensor([row[:5] for row in expected], dtype=torch.float32)
        torch.testing.assert_close(dets, rows, equal_nan=True, rtol=0, atol=0)


def test_softnms_fills_the_rows_it_keeps_and_no_other():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [20, 0, 30, 10]])
    dets = torch.full((3, 5), -7.0)
    kept = find_op('softnms')(boxes, torch.tensor([0.9, 0.8, 0.7]), dets, 0.5, 0.5, 0.1, 0, 0)
    assert kept.tolist() == [0, 2]
    assert dets[1].tolist() == pytest.approx([20, 0, 30, 10, 0.7])
    assert dets[2].tolist() == [-7] * 5


def test_a_threshold_is_a_float32_as_in_c():
    # IoU exactly 0.6: the float32 0.6 does not exceed itself, though it does exceed the double 0.6
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 6]])
    assert find_op('nms')(boxes, torch.tensor([0.9, 0.8]), iou_threshold=0.6, offset=0).tolist() == [0, 1]


def test_the_offset_of_one_counts_pixels():
    # 10 x 10 and 10 x 8 pixels: IoU 0.8 by pixels, 7 / 9 by coordinates
    boxes = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 7]])
    scores = torch.tensor([0.9, 0.8])
    assert find_op('nms')(boxes, scores, 0.79, 0).tolist() == [0, 1]
    assert find_op('nms')(boxes, scores, 0.79, 1).tolist() == [0]


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_nms_takes_every_float_type(dtype, offset):
    from mmcv.ops import nms, nms_match, soft_nms

    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 0, 30, 10]], dtype=dtype)
    scores = torch.tensor([0.8, 0.9, 0.5], dtype=dtype)
    assert nms(boxes, scores, 0.5, offset=offset)[1].tolist() == [1, 2]
    assert nms(boxes.float(), scores, 0.5, offset=offset)[1].tolist() == [1, 2]
    dets, kept = soft_nms(boxes, scores, 0.5, method='naive', offset=offset)
    assert kept.tolist() == [1, 2]
    assert dets.dtype == dtype
    assert nms_match(torch.cat([boxes, scores[:, None]], 1), 0.5)[0].tolist() == [1, 0]


def test_scores_that_differ_are_not_made_equal():
    # the two scores are one bfloat16 number
    boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 10]], dtype=torch.bfloat16)
    assert find_op('nms')(boxes, torch.tensor([0.9000, 0.9001]), 0.5, 0).tolist() == [1]


def test_nms_takes_arrays_score_thresholds_and_classes():
    from mmcv.ops import batched_nms, nms

    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 10], [20, 0, 30, 10]], np.float32)
    scores = np.array([0.9, 0.8, 0.1], np.float32)
    _, kept = nms(boxes, scores, 0.5, score_threshold=0.2)
    assert kept.tolist() == [0]
    _, kept = batched_nms(*map(torch.from_numpy, (boxes, scores)), torch.tensor([0, 1, 1]), {'type': 'nms'} | IOU)
    assert kept.tolist() == [0, 1, 2]


IOU = {'iou_threshold': 0.5}


@pytest.mark.parametrize('kind', ['distinct', 'ties', 'degenerate', 'nan'])
def test_nms_in_small_blocks_keeps_what_a_plain_loop_keeps(kind, monkeypatch):
    monkeypatch.setattr(nms, 'BLOCK', 3)
    monkeypatch.setattr(nms, 'numbers_at_once', lambda device: 20)
    boxes, scores = draw_boxes(np.random.default_rng(3), kind, 40)
    expected = groups_by_hand(boxes, scores, lambda o: o > np.float32(0.4), offset=1)
    assert find_op('nms')(boxes, scores, 0.4, 1).tolist() == [group[0] for group in expected]


@pytest.mark.parametrize('offset', [0, 1])
def test_thirty_thousand_boxes_of_which_all_pairs_would_fill_the_memory(offset):
    places = torch.stack(torch.meshgrid(torch.arange(10.0), torch.arange(10.0), indexing='ij'), -1).view(-1, 2) * 100
    center = places.repeat(300, 1) + torch.rand(30_000, 2)
    boxes, scores = torch.cat([center, center + 20], dim=1), torch.rand(30_000)
    assert len(find_op('nms')(boxes, scores, 0.5, offset)) == 100


def test_the_maximum_of_roi_align_is_named_as_missing():
    from mmcv.ops import roi_align as pool

    with pytest.raises(NotImplementedError, match='roi_align with pool_mode 0'):
        pool(torch.zeros(1, 1, 8, 8), torch.zeros(1, 5), 2, 1.0, 0, 'max', True)


def draw_rois(generator: torch.Generator, count: int, images: int, extent: float) -> torch.Tensor:
    """Some reach over the border, one is empty."""
    corners = (torch.rand(count, 2, 2, generator=generator) * 1.4 - 0.2) * extent
    corners = corners.sort(dim=1).values
    corners[0, 1] = corners[0, 0]
    image = torch.randint(0, images, (count, 1), generator=generator)
    return torch.cat([image, corners.flatten(1)], dim=1)


def samples_by_hand(feature: np.ndarray, roi: np.ndarray, cells: int, scale: float, ratio: int, aligned: bool):
    """Yield each cell with its samples as ``(value, y, x)``, one image channel ``(H, W)``."""
    height, width = feature.shape
    x1, y1, x2, y2 = roi[1:] * scale - 0.5 * aligned
    extents = np.array([y2 - y1, x2 - x1])
    if not aligned:
        extents = np.maximum(extents, 1)
    steps = extents / cells
    counts = [ratio or math.ceil(step) for step in steps]
    for row, column in np.ndindex(cells, cells):
        found = []
        for iy, ix in np.ndindex(*counts):
            y = y1 + row * steps[0] + (iy + 0.5) * steps[0] / counts[0]
            x = x1 + column * steps[1] + (ix + 0.5) * steps[1] / counts[1]
            value = 0.0
            if -1 <= y <= height and -1 <= x <= width:
                inner_y, inner_x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
                for corner_y in (math.floor(inner_y), math.floor(inner_y) + 1):
                    for corner_x in (math.floor(inner_x), math.floor(inner_x) + 1):
                        weight = max(0, 1 - abs(inner_y - corner_y)) * max(0, 1 - abs(inner_x - corner_x))
                        if weight:
                            value += weight * feature[corner_y, corner_x]
            found.append((value, y, x))
        yield (row, column), found


@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('ratio', [0, 2])
def test_roi_align_pools_what_the_definition_says(ratio, aligned, device):
    from mmcv.ops import RoIAlign

    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 2, 9, 12, generator=generator)
    rois = draw_rois(generator, 6, 2, extent=40)
    layer = RoIAlign(3, spatial_scale=0.25, sampling_ratio=ratio, aligned=aligned)
    pooled = layer(features.to(device), rois.to(device)).cpu()
    assert pooled.shape == (6, 2, 3, 3)
    for k, channel in np.ndindex(6, 2):
        feature = features[int(rois[k, 0]), channel].double().numpy()
        for (row, column), samples in samples_by_hand(feature, rois[k].double().numpy(), 3, 0.25, ratio, aligned):
            values = [value for value, _, _ in samples]
            expected = sum(values) / max(len(values), 1)  # a cell without samples is 0
            assert pooled[k, channel, row, column].item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize('ratio', [0, 2])
def test_the_gradient_of_roi_align_is_its_derivative(ratio, device):
    from mmcv.ops import roi_align as pool

    generator = torch.Generator().manual_seed(1)
    features = torch.randn(2, 2, 6, 7, generator=generator, dtype=torch.float64).to(device).requires_grad_()
    rois = draw_rois(generator, 4, 2, extent=14).double().to(device)
    assert torch.autograd.gradcheck(lambda f: pool(f, rois, 2, 0.5, ratio, 'avg', True), features)


def test_the_deterministic_gradient_is_the_fast_one():
    generator = torch.Generator().manual_seed(2)
    rois = draw_rois(generator, 5, 2, extent=20)
    gradient = torch.randn(5, 3, 4, 4, generator=generator)
    arguments = (gradient, rois, torch.Size([2, 3, 10, 10]), (4, 4), 0.5, 0, True)
    fast = roi_align._average_gradient(*arguments)
    torch.testing.assert_close(roi_align._average_gradient_deterministic(*arguments), fast)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_roi_align_computes_half_precision_in_float32(dtype, device):
    from mmcv.ops import roi_align as pool

    generator = torch.Generator().manual_seed(3)
    features = torch.randn(1, 3, 8, 8, generator=generator).to(device, dtype).requires_grad_()
    # In bfloat16 these coordinates would be whole multiples of 8.
    rois = torch.tensor([[0.0, 1001, 1003, 1017, 1021]], device=device)
    pooled = pool(features, rois, 2, 1 / 256, 2, 'avg', True)
    assert pooled.dtype == dtype
    torch.testing.assert_close(pooled, pool(features.float(), rois, 2, 1 / 256, 2, 'avg', True).to(dtype))
    pooled.sum().backward()
    assert features.grad.dtype == dtype
    assert features.grad.sum().item() == pytest.approx(12, rel=0.05)


def test_the_ops_take_the_arguments_of_the_compiled_ones():
    source = Path(importlib.util.find_spec('mmcv').origin).parent / 'ops/csrc/pytorch/pybind.cpp'
    if not source.exists():
        pytest.skip('this mmcv comes without its C++ sources')
    bindings = dict(re.findall(r'm\.def\("(\w+)"(.*?)\);', source.read_text(), flags=re.DOTALL))
    for name in OPS:
        expected = re.findall(r'py::arg\("(\w+)"\)', bindings[name])
        taken = [*inspect.signature(find_op(name)).parameters]
        if taken[-1:] == ['sizes']:  # the numbers, by their names
            sizes = deform_conv.MODULATED_SIZES if name.startswith('modulated') else deform_conv.SIZES
            assert set(sizes) < set(expected), name
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
