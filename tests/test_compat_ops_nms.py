"""Non-maximum suppression of every kind against plain loops that are written here, ties and NaN included."""

import math

import numpy as np
import pytest
import torch

from convnext_dense.compat.ops import find_op, nms


@pytest.fixture(params=['distinct', 'ties', 'degenerate', 'nan'])
def kind(request, device):
    if device.type == 'cuda' and request.param != 'distinct':
        pytest.skip("torchvision's CUDA kernels break ties in another order")
    return request.param


def draw_boxes(kind: str, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return boxes and scores; few values, so that ties of overlaps and of scores are common."""
    corners = torch.randint(0, 9, (count, 2, 2)).float()
    if kind != 'degenerate':
        corners = corners.sort(dim=1).values
    boxes, scores = corners.flatten(1), torch.randint(1, 6, (count,)) / 5
    if kind == 'distinct':
        boxes += torch.rand(count, 4)
        scores = torch.randperm(count) / count
    if kind == 'nan':
        boxes[torch.randint(0, count, (3,)), torch.randint(0, 4, (3,))] = math.nan
        scores[torch.randint(0, count, (2,))] = math.nan
    return boxes, scores


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


def softnms_by_hand(boxes, scores, threshold, min_score, method, offset):
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
            waiting[i][4] *= decay_by_hand(overlap, np.float32(threshold), np.float32(0.5), method)
            if waiting[i][4] < np.float32(min_score):
                last = waiting.pop()
                if i < len(waiting):
                    waiting[i] = last
            else:
                i += 1
        done += 1
    return waiting


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('block', [nms.BLOCK, 3])
def test_nms_keeps_what_a_plain_loop_keeps(kind, block, offset, device, monkeypatch):
    from mmcv.ops import nms as suppress

    monkeypatch.setattr(nms, 'BLOCK', block)
    monkeypatch.setattr(nms, 'numbers_at_once', lambda device: block * 7)
    for threshold in (0, 0.2, 0.5, 0.6, 1 / 3):
        boxes, scores = draw_boxes(kind, 25)
        expected = groups_by_hand(boxes, scores, lambda o, t=threshold: o > np.float32(t), offset)
        dets, kept = (each.cpu() for each in suppress(boxes.to(device), scores.to(device), threshold, offset=offset))
        assert kept.tolist() == [group[0] for group in expected]
        torch.testing.assert_close(dets, torch.cat([boxes, scores[:, None]], 1)[kept], equal_nan=True, rtol=0, atol=0)


def test_nms_match_groups_what_a_plain_loop_groups(kind, device):
    from mmcv.ops import nms_match

    for threshold in (0.2, 0.5, 1 / 3):
        boxes, scores = draw_boxes(kind, 25)
        expected = groups_by_hand(boxes, scores, lambda o, t=threshold: o >= np.float32(t), offset=0)
        groups = nms_match(torch.cat([boxes, scores[:, None]], 1).to(device), threshold)
        assert [group.tolist() for group in groups] == expected


@pytest.mark.parametrize('method', ['naive', 'linear', 'gaussian'])
def test_soft_nms_is_what_a_plain_loop_does(kind, method, device):
    from mmcv.ops import soft_nms

    for offset, threshold, min_score in ((0, 0.3, 0.05), (1, 0.5, 0.2), (0, 0.2, 0.3)):
        boxes, scores = draw_boxes(kind, 20)
        expected = softnms_by_hand(boxes, scores, threshold, min_score, method, offset)
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


@pytest.mark.parametrize(
    ('second', 'scores', 'threshold', 'offset', 'kept'),
    [
        # IoU exactly 0.6: the float32 0.6 does not exceed itself, though it does exceed the double 0.6
        pytest.param([0, 0, 10, 6], [0.9, 0.8], 0.6, 0, [0, 1], id='the threshold is a float32 as in C'),
        # 11 x 11 and 11 x 9 pixels: IoU 9 / 11 by pixels, 0.8 by coordinates
        pytest.param([0, 0, 10, 8], [0.9, 0.8], 0.81, 0, [0, 1], id='coordinates'),
        pytest.param([0, 0, 10, 8], [0.9, 0.8], 0.81, 1, [0], id='the offset of one counts pixels'),
        # one number in bfloat16
        pytest.param([0, 0, 10, 10], [0.9000, 0.9001], 0.5, 0, [1], id='scores are finer than half boxes'),
    ],
)
def test_which_of_two_boxes_stays(second, scores, threshold, offset, kept):
    boxes = torch.tensor([[0, 0, 10, 10], second], dtype=torch.bfloat16 if kept == [1] else torch.float32)
    assert find_op('nms')(boxes, torch.tensor(scores), threshold, offset).tolist() == kept


@pytest.mark.parametrize('offset', [0, 1])
def test_thirty_thousand_boxes_of_which_all_pairs_would_fill_the_memory(offset):
    places = torch.cartesian_prod(torch.arange(10.0), torch.arange(10.0)) * 100
    center = places.repeat(300, 1) + torch.rand(30_000, 2)
    boxes, scores = torch.cat([center, center + 20], dim=1), torch.rand(30_000)
    assert len(find_op('nms')(boxes, scores, 0.5, offset)) == 100
