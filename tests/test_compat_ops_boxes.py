"""Overlaps and suppression of boxes and polygons against shapely, closed forms, plain loops and torchvision."""

import itertools
import math

import numpy as np
import pytest
import torch
from shapely import affinity
from shapely.geometry import MultiPoint, Point, Polygon
from test_compat_ops import draw_boxes, groups_by_hand

from convnext_dense import compat as stack
from convnext_dense.compat.errors import UserError
from convnext_dense.compat.ops import bbox_overlaps, find_op, greedy, polygons, rotated_boxes

NAN, INF = math.nan, math.inf
MODES = ('iou', 'iof')


@pytest.fixture(autouse=True)
def _prepared():
    stack.prepare()


def draw_rotated(count: int, extent: float = 100.0, dtype=torch.float32) -> torch.Tensor:
    """Return boxes of 1 to 60 pixels at any angle."""
    center, size, angle = torch.rand(count, 2) * extent, torch.rand(count, 2) * 59 + 1, torch.randn(count, 1) * 4
    return torch.cat([center, size, angle], dim=1).to(dtype)


def corners_of(boxes: torch.Tensor) -> torch.Tensor:
    """Return the corners ``(N, 8)`` in float64."""
    x, y, w, h, angle = boxes.double().cpu().unbind(1)
    cos, sin = angle.cos(), angle.sin()
    signs = ((1, 1), (-1, 1), (-1, -1), (1, -1))
    points = [(x + (i * w * cos - j * h * sin) / 2, y + (i * w * sin + j * h * cos) / 2) for i, j in signs]
    return torch.stack([number for point in points for number in point], dim=1)


def draw_quadrilaterals(count: int, convex: bool) -> torch.Tensor:
    """Return simple quadrilaterals of either orientation."""
    found = []
    while len(found) < count:
        points = torch.rand(4, 2) * 60 + torch.rand(2) * 40
        polygon = Polygon(points.tolist())
        if polygon.is_valid and polygon.area > 1 and (not convex or polygon.convex_hull.equals(polygon)):
            found.append(points.flatten())
    return torch.stack(found)


def overlap_by_shapely(first: torch.Tensor, second: torch.Tensor, mode: str) -> float:
    a, b = (Polygon(corners.view(4, 2).tolist()) for corners in (first, second))
    common = a.intersection(b).area
    return common / (a.area + b.area - common if mode == 'iou' else a.area)


def overlaps_by_shapely(first: torch.Tensor, second: torch.Tensor, mode: str) -> torch.Tensor:
    return torch.tensor([[overlap_by_shapely(a, b, mode) for b in second] for a in first], dtype=torch.float64)


def suppress_by_hand(corners: torch.Tensor, scores: torch.Tensor, threshold: float) -> list[int]:
    waiting = scores.sort(descending=True).indices.tolist()
    kept = []
    while waiting:
        best = waiting.pop(0)
        kept.append(best)
        waiting = [i for i in waiting if overlap_by_shapely(corners[best], corners[i], 'iou') < threshold]
    return kept


# Rotated boxes and quadrilaterals


@pytest.mark.parametrize('mode', MODES)
def test_the_overlap_of_unit_squares_turned_by_45_degrees(mode, device):
    from mmcv.ops import box_iou_rotated

    squares = torch.tensor([[3.0, 4, 1, 1, 0.2], [3, 4, 1, 1, 0.2 + math.pi / 4]], device=device)
    common = 2 * (math.sqrt(2) - 1)  # a regular octagon
    expected = common / (2 - common) if mode == 'iou' else common
    torch.testing.assert_close(
        box_iou_rotated(squares, squares, mode).cpu(), torch.tensor([[1, expected], [expected, 1]]), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize('clockwise', [True, False])
def test_the_angle_is_clockwise_where_y_points_down(clockwise, device):
    from mmcv.ops import box_iou_rotated

    box = torch.tensor([[10.0, 20, 8, 2, math.pi / 6]], device=device)
    # The middle of the right side, 4 to the right of the centre, goes down by a clockwise turn.
    place = [10 + 3.9 * math.cos(math.pi / 6), 20 + 3.9 * math.sin(math.pi / 6) * (1 if clockwise else -1)]
    probe = torch.tensor([[*place, 0.1, 0.1, 0.0]], device=device)
    assert box_iou_rotated(probe, box, 'iof', clockwise=clockwise).item() == pytest.approx(1, abs=1e-4)
    assert box_iou_rotated(probe, box, 'iof', clockwise=not clockwise).item() == 0


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_the_overlaps_of_rotated_boxes_are_shapelys(mode, dtype, device):
    from mmcv.ops import box_iou_rotated

    boxes, others = draw_rotated(20, extent=50, dtype=dtype), draw_rotated(15, extent=50, dtype=dtype)
    others[:5] *= torch.tensor([1, 1, 0.02, 1, 1])  # thin
    others[5:10] *= torch.tensor([1, 1, 0.3, 0.3, 1])  # small
    expected = overlaps_by_shapely(corners_of(boxes), corners_of(others), mode)
    assert (expected > 0.01).sum() > 50
    tolerance = 2e-6 if dtype == torch.float32 else 1e-12
    found = box_iou_rotated(boxes.to(device), others.to(device), mode)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double().cpu(), expected, rtol=0, atol=tolerance)
    aligned = box_iou_rotated(boxes[:15].to(device), others.to(device), mode, aligned=True)
    torch.testing.assert_close(aligned.double().cpu(), expected.diagonal(), rtol=0, atol=tolerance)


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('convex', [True, False])
def test_the_overlaps_of_quadrilaterals_are_shapelys(mode, convex, device):
    from mmcv.ops import box_iou_quadri

    boxes, others = draw_quadrilaterals(15, convex), draw_quadrilaterals(12, convex)
    expected = overlaps_by_shapely(boxes, others, mode)
    assert (expected > 0.01).sum() > 30
    found = box_iou_quadri(boxes.to(device), others.to(device), mode)
    torch.testing.assert_close(found.cpu().double(), expected, rtol=0, atol=1e-6)
    aligned = box_iou_quadri(boxes[:12].to(device), others.to(device), mode, aligned=True)
    torch.testing.assert_close(aligned.cpu().double(), expected.diagonal(), rtol=0, atol=1e-6)


def test_boxes_with_edges_on_one_line(device):
    """Lists of corner points go wrong here: each corner is found several times, and not quite at the same place."""
    from mmcv.ops import box_iou_quadri, box_iou_rotated

    boxes = draw_rotated(300)
    same = boxes.clone()
    same[:, 2:4] = boxes[:, [3, 2]]
    same[:, 4] += math.pi / 2
    half = boxes * torch.tensor([1, 1, 0.5, 1, 1])
    quarter = boxes.clone()  # shares a corner and the edges there
    quarter[:, :2] = corners_of(boxes)[:, :2].float() / 2 + boxes[:, :2] / 2
    quarter[:, 2:4] /= 2
    for others, expected, tolerance in ((boxes, 1, 0), (same, 1, 1e-5), (half, 0.5, 1e-6), (quarter, 0.25, 2e-5)):
        for overlap, arguments in (
            (box_iou_rotated, (boxes, others)),
            (box_iou_quadri, (corners_of(boxes).float(), corners_of(others).float())),
        ):
            found = overlap(*(a.to(device) for a in arguments), aligned=True)
            if overlap is box_iou_quadri:
                tolerance = 1e-4  # corners near 100 in float32, boxes down to 1 pixel
            assert (found - expected).abs().max() <= tolerance


def test_a_small_box_in_a_large_one(device):
    """Numbers of the large one's size must not enter: in float32 they would be off by a quarter of the small area."""
    from mmcv.ops import box_iou_quadri, box_iou_rotated

    large, small = torch.tensor([[0.0, 0, 4000, 3000, 0.7]]), torch.tensor([[700.0, 300, 2, 1, 0.2]])
    corners = [corners_of(box).float().to(device) for box in (small, large)]
    for found in (
        box_iou_rotated(small.to(device), large.to(device), 'iof'),
        box_iou_rotated(large.to(device), small.to(device)) * 6e6,
        box_iou_quadri(*corners, 'iof'),
    ):
        assert found.item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize('angle', [1e-45, 1e-38, 1e-30, 1e-7, 1e-3])
def test_nearly_parallel_boxes(angle, device):
    from mmcv.ops import box_iou_rotated

    boxes = torch.tensor([[0.0, 0, 8, 4, 0], [1, 1, 6, 2, angle], [0, 0, 20, 20, -angle], [3, 0, 8, 4, angle]])
    expected = overlaps_by_shapely(corners_of(boxes), corners_of(boxes), 'iou')
    found = box_iou_rotated(boxes.to(device), boxes.to(device)).cpu().double()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_touching_boxes_share_nothing(device):
    from mmcv.ops import box_iou_rotated

    boxes = torch.tensor([[0.0, 0, 2, 2, 0], [2, 0, 2, 2, 0], [2, 2, 2, 2, 0], [0, 2, 2, 2, math.pi]], device=device)
    torch.testing.assert_close(box_iou_rotated(boxes, boxes), torch.eye(4, device=device), rtol=0, atol=1e-6)


def test_overlaps_do_not_change_when_all_is_turned_or_moved(device):
    from mmcv.ops import box_iou_quadri, box_iou_rotated

    boxes = draw_rotated(12).double()
    expected = box_iou_rotated(boxes.to(device), boxes.to(device)).cpu()
    torch.testing.assert_close(expected, expected.T, rtol=0, atol=1e-12)
    for angle, dx, dy in ((0.7, 30, -8), (-2.5, 0, 500)):
        moved = [
            affinity.translate(affinity.rotate(Polygon(c), angle, (0, 0), use_radians=True), dx, dy)
            for c in corners_of(boxes).view(-1, 4, 2).tolist()
        ]
        corners = torch.tensor([list(itertools.chain(*p.exterior.coords[:4])) for p in moved], dtype=torch.float64)
        found = box_iou_quadri(corners.to(device), corners.to(device)).cpu()
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
        order = torch.randperm(12)
        torch.testing.assert_close(box_iou_quadri(*[corners[order].to(device)] * 2).cpu(), found[order][:, order])


@pytest.mark.parametrize('mode', MODES)
def test_the_overlaps_of_bad_boxes(mode, device):
    """The values of compiled mmcv: without an area 0, and NaN only by way of an area."""
    from mmcv.ops import box_iou_quadri, box_iou_rotated

    sound = [10.0, 10, 8, 4, 0.3]
    both_negative = [10.0, 10, -8, -4, 0.3]
    cases = [([*sound[:i], bad, *sound[i + 1 :]], 0.0) for i in (0, 1, 4) for bad in (NAN, INF, -INF)]
    cases += [([*sound[:i], bad, *sound[i + 1 :]], 0.0) for i in (2, 3) for bad in (0.0, -3.0, -INF)]
    cases += [([*sound[:i], NAN, *sound[i + 1 :]], NAN) for i in (2, 3)]
    cases += [(both_negative, 1.0)]
    boxes = torch.tensor([box for box, _ in cases], device=device)
    expected = torch.tensor([value for _, value in cases])
    others = torch.tensor(sound, device=device).expand_as(boxes)
    for aligned in (True, False):
        found = box_iou_rotated(boxes, others, mode, aligned).cpu()
        found = found if aligned else found.diagonal()
        torch.testing.assert_close(found, expected, equal_nan=True, rtol=0, atol=1e-6)
        # The other way round, NaN is not divided by.
        found = box_iou_rotated(others, boxes, mode, aligned).cpu()
        found = found if aligned else found.diagonal()
        torch.testing.assert_close(found, expected if mode == 'iou' else expected.nan_to_num(0), equal_nan=True)
    corners = corners_of(torch.tensor([sound])).float()
    bad = torch.cat([corners * NAN, corners * 0, corners]).to(device)
    found = box_iou_quadri(bad, corners.to(device), mode).cpu()
    torch.testing.assert_close(found[:, 0], torch.tensor([NAN, 0, 1]), equal_nan=True, rtol=0, atol=1e-6)


def test_overlaps_of_no_boxes(device):
    from mmcv.ops import bbox_overlaps as upright
    from mmcv.ops import box_iou_quadri, box_iou_rotated

    for overlap, columns in ((box_iou_rotated, 5), (box_iou_quadri, 8), (upright, 4)):
        none, some = torch.zeros(0, columns, device=device), torch.ones(3, columns, device=device)
        assert overlap(none, some).shape == (0, 3)
        assert overlap(some, none).shape == (3, 0)
        assert overlap(none, none, aligned=True).shape == (0,)


def test_overlaps_part_by_part_are_those_of_the_whole(monkeypatch):
    from mmcv.ops import bbox_overlaps as upright
    from mmcv.ops import box_iou_rotated

    boxes, others = draw_rotated(20), draw_rotated(7)
    corners = [draw_boxes(np.random.default_rng(0), 'distinct', n)[0] for n in (20, 7)]
    whole = box_iou_rotated(boxes, others), upright(*corners)
    for module in (rotated_boxes, bbox_overlaps):
        monkeypatch.setattr(module, 'numbers_at_once', lambda device: 50)
    torch.testing.assert_close(box_iou_rotated(boxes, others), whole[0], rtol=0, atol=0)
    torch.testing.assert_close(upright(*corners), whole[1], rtol=0, atol=0)


def test_overlaps_have_no_gradient_and_compute_half_precision_in_float32(device):
    from mmcv.ops import bbox_overlaps as upright
    from mmcv.ops import box_iou_quadri, box_iou_rotated

    boxes = draw_rotated(4).to(device)
    upright_boxes = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:4]], dim=1)
    corners = corners_of(boxes).float().to(device)
    for overlap, values in ((box_iou_rotated, boxes), (box_iou_quadri, corners), (upright, upright_boxes)):
        assert not overlap(values.clone().requires_grad_(), values).requires_grad
        for dtype in (torch.float16, torch.bfloat16):
            half = values.to(dtype)
            found = overlap(half, half)
            assert found.dtype == dtype
            torch.testing.assert_close(found, overlap(half.float(), half.float()).to(dtype))
        with torch.autocast(device.type, dtype=torch.bfloat16):
            assert torch.equal(overlap(values, values), overlap(values, values).float())
            assert overlap(values, values).dtype == torch.float32


@pytest.mark.parametrize('kind', ['rotated', 'quadri'])
def test_rotated_nms_keeps_what_a_plain_loop_keeps(kind, device, monkeypatch):
    from mmcv.ops import nms_quadri, nms_rotated

    monkeypatch.setattr(greedy, 'BLOCK', 7)
    for threshold in (0.1, 0.3, 0.6):
        boxes = draw_rotated(40)
        corners = corners_of(boxes)
        scores = torch.randperm(40) / 40
        suppress, values = (nms_rotated, boxes) if kind == 'rotated' else (nms_quadri, corners.float())
        dets, kept = suppress(values.to(device), scores.to(device), threshold)
        assert kept.tolist() == suppress_by_hand(corners, scores, threshold)
        assert kept.dtype == torch.int64
        assert torch.equal(dets.cpu(), torch.cat([values, scores[:, None]], 1)[kept.cpu()])


def test_rotated_nms_knows_classes_only_through_batched_nms(device):
    from mmcv.ops import batched_nms, nms_quadri, nms_rotated

    boxes = draw_rotated(1).repeat(3, 1).to(device)
    scores, labels = torch.tensor([0.9, 0.8, 0.7], device=device), torch.tensor([0, 1, 1], device=device)
    corners = corners_of(boxes).float().to(device)
    # As in mmcv, which reads the labels and leaves them
    assert nms_rotated(boxes, scores, 0.5, labels)[1].tolist() == [0]
    assert nms_quadri(corners, scores, 0.5, labels)[1].tolist() == [0]
    for values, name in ((boxes, 'nms_rotated'), (corners, 'nms_quadri')):
        dets, kept = batched_nms(values, scores, labels, {'type': name, 'iou_threshold': 0.5})
        assert kept.tolist() == [0, 1]
        assert dets.shape == (2, values.shape[1] + 1)
    _, kept = nms_rotated(boxes * torch.tensor([1, 1, 1, 1, -1], device=device), scores, 0.5, clockwise=False)
    assert kept.tolist() == [0]


def test_rotated_nms_of_bad_boxes(device):
    from mmcv.ops import nms_rotated

    boxes = draw_rotated(1).repeat(5, 1).to(device)
    boxes[1, 0], boxes[2, 2], boxes[3, 3] = NAN, NAN, 0
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5], device=device)
    assert nms_rotated(boxes, scores, 0.5)[1].tolist() == [0, 1, 2, 3]
    assert nms_rotated(boxes[:0], scores[:0], 0.5)[1] is None
    assert len(find_op('nms_rotated')(boxes[:0], scores[:0], scores[:0], boxes[:0], scores[:0], 0.5, 0)) == 0
    # On the CPU a threshold of 0 is reached by all but NaN, on a GPU it has to be exceeded.
    assert nms_rotated(boxes, scores, 0.0)[1].tolist() == ([0, 2] if device.type == 'cpu' else [0, 1, 2, 3])


def test_a_hundred_thousand_boxes(device):
    from mmcv.ops import bbox_overlaps as upright
    from mmcv.ops import box_iou_rotated, nms_match, nms_rotated, points_in_polygons

    # 100 places, each with 1000 nearly equal boxes
    places = torch.stack(torch.meshgrid(torch.arange(10.0), torch.arange(10.0), indexing='ij'), -1).view(-1, 2) * 50
    center = places.repeat(1000, 1) + torch.rand(100_000, 2)
    boxes = torch.cat([center, torch.tensor([20.0, 10, 0.5]).expand(100_000, 3)], dim=1).to(device)
    scores = torch.rand(100_000, device=device)
    dets, kept = nms_rotated(boxes, scores, 0.3)
    assert sorted((dets[:, :2] / 50).floor().tolist()) == sorted((places / 50).tolist())
    assert torch.equal(dets[:, 5].sort(descending=True).values, scores[kept])
    corners = torch.cat([boxes[:, :2] - 10, boxes[:, :2] + 10], dim=1)
    assert len(find_op('nms')(corners, scores, 0.3, 1)) == 100
    assert sum(map(len, nms_match(torch.cat([corners, scores[:, None]], 1), 0.3))) == 100_000
    assert (box_iou_rotated(boxes, boxes[:2])[:, 0] > 0.5).sum() == 1000
    assert (upright(corners, corners[:2])[:, 0] > 0.5).sum() == 1000
    assert points_in_polygons(boxes[:, :2], corners_of(boxes[:2]).float().to(device)).sum() == 2000


@pytest.mark.parametrize(
    ('name', 'columns', 'extra'),
    [('box_iou_rotated', 5, (0, False)), ('box_iou_quadri', 8, (0, False)), ('bbox_overlaps', 4, (0, False, 0))],
)
def test_bad_arguments_of_overlaps_are_named(name, columns, extra):
    op, boxes, ious = find_op(name), torch.zeros(2, columns), torch.zeros(2, 2)
    with pytest.raises(UserError, match=rf'{name} needs its tensors on one device and got .* on cpu, .* on meta\.'):
        op(boxes, boxes.to('meta'), ious, *extra)
    with pytest.raises(UserError, match=rf'{name}: \w+1 is torch\.int64\. Allowed are floating-point numbers'):
        op(boxes.long(), boxes, ious, *extra)
    with pytest.raises(UserError, match=rf'{name} needs boxes \(N, {columns}\) and got \(2, 3\)'):
        op(boxes[:, :3], boxes, ious, *extra)
    with pytest.raises(TypeError, match="unexpected keyword argument 'threshold'"):
        op(boxes, boxes, ious, *extra, threshold=1)


def test_rotated_nms_needs_a_score_for_each_box():
    with pytest.raises(UserError, match=r'nms_quadri needs boxes \(N, 8\) and got \(2, 5\)'):
        find_op('nms_quadri')(torch.zeros(2, 5), torch.zeros(2), torch.zeros(2), torch.zeros(2, 5), 0.5, 0)
    with pytest.raises(UserError, match=r'nms_rotated: scores has shape \(2,\); .* ask for \(3,\)'):
        find_op('nms_rotated')(torch.zeros(3, 5), torch.zeros(2), *[torch.zeros(2)] * 3, 0.5, 0)


def test_aligned_boxes_come_in_pairs():
    with pytest.raises(
        UserError, match='box_iou_rotated needs as many boxes on both sides when aligned, and got 2 and 3'
    ):
        find_op('box_iou_rotated')(torch.zeros(2, 5), torch.zeros(3, 5), torch.zeros(2), 0, True)


# Greedy suppression


def test_owners_are_those_of_a_plain_loop(device, monkeypatch):
    monkeypatch.setattr(greedy, 'BLOCK', 4)
    monkeypatch.setattr(greedy, 'numbers_at_once', lambda device: 20)
    for share in (0.05, 0.3, 0.9):
        matrix = torch.rand(30, 30) < share
        expected = list(range(30))
        for i, j in itertools.combinations(range(30), 2):
            if expected[i] == i and expected[j] == j and matrix[i, j]:
                expected[j] = i
        on_device = matrix.to(device)
        owners = greedy.find_owners(30, lambda rows, columns, m=on_device: m[rows[:, None], columns], device)
        assert owners.tolist() == expected


@pytest.mark.parametrize('kind', ['distinct', 'ties', 'degenerate', 'nan'])
def test_nms_in_blocks_keeps_what_a_plain_loop_keeps(kind, device, monkeypatch):
    monkeypatch.setattr(greedy, 'BLOCK', 3)
    boxes, scores = draw_boxes(np.random.default_rng(3), kind, 40)
    expected = groups_by_hand(boxes, scores, lambda o: o > np.float32(0.4), offset=1)
    kept = find_op('nms')(boxes.to(device), scores.to(device), 0.4, 1)
    if device.type == 'cpu':  # equal scores may be sorted otherwise elsewhere
        assert kept.tolist() == [group[0] for group in expected]
    assert scores[kept.cpu()].nan_to_num(9).tolist() == scores[[group[0] for group in expected]].nan_to_num(9).tolist()


# Upright boxes


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('mode', MODES)
def test_the_overlaps_of_upright_boxes_are_those_of_a_plain_loop(mode, offset, device):
    from mmcv.ops import bbox_overlaps as upright

    boxes, others = (draw_boxes(np.random.default_rng(seed), 'distinct', 12)[0] for seed in (0, 1))
    expected = torch.zeros(12, 12)
    for i, j in itertools.product(range(12), range(12)):
        (a1, b1, a2, b2), (c1, d1, c2, d2) = boxes[i].tolist(), others[j].tolist()
        common = max(0, min(a2, c2) - max(a1, c1) + offset) * max(0, min(b2, d2) - max(b1, d1) + offset)
        area, other = (a2 - a1 + offset) * (b2 - b1 + offset), (c2 - c1 + offset) * (d2 - d1 + offset)
        expected[i, j] = common / (area + other - common if mode == 'iou' else area)
    found = upright(boxes.to(device), others.to(device), mode, offset=offset)
    torch.testing.assert_close(found.cpu(), expected)
    aligned = upright(boxes.to(device), others.to(device), mode, aligned=True, offset=offset)
    torch.testing.assert_close(aligned.cpu(), expected.diagonal())


def test_the_overlaps_of_upright_boxes_are_torchvisions(device):
    import torchvision
    from mmcv.ops import bbox_overlaps as upright

    boxes, others = (draw_boxes(np.random.default_rng(seed), 'distinct', 50)[0].to(device) for seed in (0, 1))
    torch.testing.assert_close(upright(boxes, others), torchvision.ops.box_iou(boxes, others))


def test_the_overlaps_of_bad_upright_boxes():
    from mmcv.ops import bbox_overlaps as upright

    boxes = torch.tensor([[0.0, 0, 2, 2], [1, 1, 1, 1], [NAN, 0, 2, 2], [0, 0, INF, 2]])
    found = upright(boxes, boxes)
    expected = torch.tensor([[1.0, 0, NAN, 0], [0, NAN, NAN, 0], [NAN] * 4, [0, 0, NAN, NAN]])
    torch.testing.assert_close(found, expected, equal_nan=True)


# Points and polygons


@pytest.mark.parametrize('convex', [True, False])
def test_points_in_polygons_are_shapelys(convex, device, monkeypatch):
    from mmcv.ops import points_in_polygons

    monkeypatch.setattr(polygons, 'numbers_at_once', lambda device: 60)
    points, corners = torch.rand(200, 2) * 100, draw_quadrilaterals(8, convex)
    shapes = [Polygon(c.view(4, 2).tolist()) for c in corners]
    expected = torch.tensor([[float(shape.contains(Point(p))) for shape in shapes] for p in points.tolist()])
    found = points_in_polygons(points.to(device), corners.to(device))
    assert found.dtype == torch.float32
    assert torch.equal(found.cpu(), expected)


def test_points_on_the_border_of_a_polygon(device):
    from mmcv.ops import points_in_polygons

    square = torch.tensor([[0.0, 0, 4, 0, 4, 4, 0, 4]], device=device)
    points = torch.tensor([[2.0, 2], [0, 0], [4, 4], [2, 0], [2, 4], [0, 2], [4, 2], [5, 2], [NAN, 2]], device=device)
    # What mmcv's kernel answers: it stops counting at the edge that the point is on.
    assert points_in_polygons(points, square).flatten().tolist() == [1, 0, 0, 0, 1, 0, 0, 0, 0]
    assert points_in_polygons(points, square.roll(4, dims=1)).flatten().tolist() == [1, 0, 0, 0, 1, 1, 0, 0, 0]
    assert points_in_polygons(points[:0], square).shape == (0, 1)
    assert points_in_polygons(points, square[:0]).shape == (9, 0)
    half = points_in_polygons(points.half(), square.half())
    assert half.flatten().tolist() == [1, 0, 0, 0, 1, 0, 0, 0, 0]


@pytest.mark.parametrize('kind', ['anywhere', 'whole numbers', 'grid'])
def test_the_smallest_rectangle_is_shapelys(kind, device, monkeypatch):
    from mmcv.ops import min_area_polygons

    monkeypatch.setattr(polygons, 'numbers_at_once', lambda device: 7 * 9**3)
    points = torch.rand(40, 9, 2) * 20
    if kind == 'whole numbers':
        points = points.round()
    if kind == 'grid':
        grid = torch.stack(torch.meshgrid(*[torch.arange(-1.0, 2)] * 2, indexing='ij'), -1).view(9, 2)
        points, angle = grid * (torch.rand(40, 1, 2) * 9 + 1), torch.rand(40) * 6
        turn = torch.stack([angle.cos(), angle.sin(), -angle.sin(), angle.cos()], 1).view(-1, 2, 2)
        points = points @ turn
    found = min_area_polygons(points.flatten(1).to(device)).cpu()
    for some, corners in zip(points, found.view(-1, 4, 2), strict=True):
        rectangle = Polygon(corners.tolist())
        sides = corners.roll(-1, 0) - corners
        assert (sides * sides.roll(-1, 0)).sum(1).abs().max() < 1e-3 * sides.norm(dim=1).max() ** 2
        assert rectangle.area == pytest.approx(MultiPoint(some.tolist()).minimum_rotated_rectangle.area, rel=1e-4)
        assert rectangle.buffer(1e-3).contains(MultiPoint(some.tolist()))


def test_the_corners_of_an_upright_rectangle_come_in_mmcvs_order(device):
    from mmcv.ops import min_area_polygons

    points = torch.tensor([[0.0, 0, 6, 0, 6, 4, 0, 4, 1, 1, 2, 2, 3, 3, 4, 1, 5, 2]], device=device)
    found = min_area_polygons(points)
    assert found[0].tolist() == pytest.approx([6, 0, 0, 0, 0, 4, 6, 4], abs=1e-5)


def test_the_smallest_rectangles_of_points_without_an_area(device):
    from mmcv.ops import min_area_polygons

    one = torch.tensor([[3.0, 4]]).repeat(1, 9)
    line = (torch.arange(9.0)[:, None] * torch.tensor([3.0, 4])).view(1, 18)
    found = min_area_polygons(torch.cat([one, line, line * NAN]).to(device)).cpu()
    assert found[0].tolist() == pytest.approx([3, 4] * 4, abs=1e-5)
    corners = found[1].view(4, 2)
    assert Polygon(corners.tolist()).area == pytest.approx(0, abs=1e-3)
    assert (corners.amax(0) - corners.amin(0)).tolist() == pytest.approx([24, 32], abs=1e-3)
    assert found[2].isnan().all()
    assert min_area_polygons(torch.zeros(0, 18)).shape == (0, 8)
    with pytest.raises(UserError, match=r'min_area_polygons: pointsets has shape \(2, 16\)'):
        min_area_polygons(torch.zeros(2, 16))
