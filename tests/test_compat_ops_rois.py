"""RoI pooling of every kind against plain loops that are written here, torchvision, closed forms and gradcheck."""

import math

import numpy as np
import pytest
import torch
import torchvision

from convnext_dense import compat as stack
from convnext_dense.compat.errors import UserError
from convnext_dense.compat.ops import find_op
from convnext_dense.compat.ops import rois as rois_of_ops

NAN, INF = math.nan, math.inf


@pytest.fixture(autouse=True)
def _prepared():
    stack.prepare()


def draw_rois(count: int, images: int = 2, extent: float = 12.0, dtype=torch.float32) -> torch.Tensor:
    """Some reach over the border, one is empty."""
    corners = ((torch.rand(count, 2, 2) * 1.4 - 0.2) * extent).sort(dim=1).values
    corners[0, 1] = corners[0, 0]
    return torch.cat([torch.randint(0, images, (count, 1)), corners.flatten(1)], dim=1).to(dtype)


def sample_by_hand(feature: np.ndarray, y: float, x: float) -> float:
    """Interpolate ``(H, W)``; a point up to one pixel outside takes the border's value, further out it is 0."""
    height, width = feature.shape
    if not (-1 <= y <= height and -1 <= x <= width):
        return 0.0
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    value = 0.0
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            weight = max(0, 1 - abs(y - row)) * max(0, 1 - abs(x - column))
            if weight:
                value += weight * feature[row, column]
    return value


def middles(extent: float, cells: int, cell: int, ratio: int) -> list[float]:
    """Return where a cell is sampled along one side, from the RoI's edge."""
    step = extent / cells
    count = ratio or math.ceil(step)
    return [(cell + (i + 0.5) / count) * step for i in range(count)]


def pool_by_hand(features, rois, cells, locate, image=lambda roi: int(roi[0])) -> torch.Tensor:
    """Average in each cell the samples at the points that ``locate(roi number, roi, row, column)`` lists."""
    features, rois = features.double().cpu().numpy(), rois.double().cpu().numpy()
    pooled = np.zeros((len(rois), features.shape[1], *cells))
    for k, c, row, column in np.ndindex(*pooled.shape):
        points = locate(k, rois[k], row, column)
        values = [sample_by_hand(features[image(rois[k]), c], y, x) for y, x in points]
        pooled[k, c, row, column] = sum(values) / max(len(values), 1)
    return torch.from_numpy(pooled)


def gradient_of(op, *arguments) -> torch.Tensor:
    """Return the gradient of the first argument for a fixed gradient of the output."""
    first = arguments[0].clone().requires_grad_()
    pooled = op(first, *arguments[1:])
    gradient = torch.linspace(-1, 1, pooled.numel(), device=pooled.device).view_as(pooled).to(pooled.dtype)
    return torch.autograd.grad(pooled, first, gradient)[0]


# RoIPool


def roi_pool_by_hand(features, rois, cells, scale):
    """Return the largest pixels and their places; the last pixel of a RoI belongs to it."""
    features, rois = features.cpu().numpy(), rois.cpu().numpy()
    _, channels, height, width = features.shape
    pooled, places = np.zeros((len(rois), channels, *cells)), np.full((len(rois), channels, *cells), -1)
    for k, c, row, column in np.ndindex(*pooled.shape):
        x1, y1, x2, y2 = rois[k, 1:] * scale + np.array([0, 0, scale, scale], np.float32)
        if x2 <= x1 or y2 <= y1:
            continue
        h, w = (y2 - y1) / cells[0], (x2 - x1) / cells[1]
        found = []
        for y in range(max(math.floor(y1 + row * h), 0), min(math.ceil(y1 + (row + 1) * h), height)):
            for x in range(max(math.floor(x1 + column * w), 0), min(math.ceil(x1 + (column + 1) * w), width)):
                found.append((features[int(rois[k, 0]), c, y, x], -(y * width + x)))
        if found:
            value, place = max(found)
            pooled[k, c, row, column], places[k, c, row, column] = value, -place
    return torch.from_numpy(pooled).float(), torch.from_numpy(places)


@pytest.mark.parametrize('scale', [1.0, 0.25, 0.3])
def test_roi_pool_takes_the_largest_pixel_of_each_cell(scale, device):
    features, rois = torch.randn(2, 3, 9, 12).round(decimals=1), draw_rois(8, extent=12 / scale)
    rois[1, 3:] = rois[1, 1:3] - 1.3 / scale  # no size
    expected, places = roi_pool_by_hand(features, rois, (3, 2), scale)
    output, argmax = torch.zeros(8, 3, 3, 2), torch.zeros(8, 3, 3, 2, dtype=torch.int32)
    buffers = [t.to(device) for t in (features, rois, output, argmax)]
    find_op('roi_pool_forward')(*buffers, 3, 2, scale)
    assert torch.equal(buffers[2].cpu(), expected)
    assert torch.equal(buffers[3].cpu().long(), places)
    assert (places == -1).any()


def test_roi_pool_of_whole_pixels_is_torchvisions(device):
    from mmcv.ops import RoIPool

    features, rois = torch.randn(2, 3, 20, 20, device=device), draw_rois(8, extent=20).round().to(device)
    rois[:, 1:] = rois[:, 1:].clamp(0, 19)
    expected = torchvision.ops.roi_pool(features, rois, (2, 5))
    assert torch.equal(RoIPool((2, 5))(features, rois), expected)
    torch.testing.assert_close(
        gradient_of(RoIPool((2, 5)), features, rois),
        gradient_of(lambda f, r: torchvision.ops.roi_pool(f, r, (2, 5)), features, rois),
    )


def test_the_gradient_of_roi_pool_is_its_derivative(device):
    from mmcv.ops import roi_pool

    features = torch.randperm(2 * 2 * 6 * 7).view(2, 2, 6, 7).double().to(device).requires_grad_()
    rois = draw_rois(5, extent=14, dtype=torch.float64).to(device)
    assert torch.autograd.gradcheck(lambda f: roi_pool(f, rois, 2, 0.5), features)


def test_a_cell_without_pixels_gets_no_gradient(device):
    from mmcv.ops import roi_pool

    features = torch.randn(1, 1, 4, 4, device=device, requires_grad=True)
    rois = torch.tensor([[0.0, 30, 30, 40, 40], [0, 3, 3, 0, 0]], device=device)
    pooled = roi_pool(features, rois, 2, 1.0)
    assert pooled.abs().sum() == 0
    pooled.sum().backward()
    assert features.grad.abs().sum() == 0


def test_roi_pool_leaves_nan_out_as_a_loop_does(device):
    from mmcv.ops import roi_pool

    features = torch.tensor([[[[NAN, 1.0], [3.0, NAN]]]], device=device)
    assert roi_pool(features, torch.tensor([[0.0, 0, 0, 1, 1]], device=device), 1, 1.0).item() == 3
    lowest = torch.finfo(torch.float32).min
    assert roi_pool(features * NAN, torch.tensor([[0.0, 0, 0, 1, 1]], device=device), 1, 1.0).item() == lowest


# DeformRoIPool


@pytest.mark.parametrize('ratio', [0, 2])
@pytest.mark.parametrize('moved', [True, False])
def test_deform_roi_pool_averages_what_a_plain_loop_averages(ratio, moved, device, monkeypatch):
    from mmcv.ops import deform_roi_pool as pool

    monkeypatch.setattr(rois_of_ops, 'numbers_at_once', lambda device: 800)
    features, rois, offset = torch.randn(2, 2, 9, 12), draw_rois(6, extent=24), torch.randn(6, 2, 3, 2)

    def locate(k, roi, row, column):
        x1, y1, x2, y2 = roi[1:] * 0.5 - 0.5
        dx, dy = offset[k, :, row, column].double().tolist() if moved else (0, 0)
        left, top = x1 + 0.1 * (x2 - x1) * dx, y1 + 0.1 * (y2 - y1) * dy
        return [
            (top + y, left + x) for y in middles(y2 - y1, 3, row, ratio) for x in middles(x2 - x1, 2, column, ratio)
        ]

    arguments = (rois.to(device), offset.to(device) if moved else None, (3, 2), 0.5, ratio, 0.1)
    pooled = pool(features.to(device), *arguments)
    torch.testing.assert_close(pooled.cpu().double(), pool_by_hand(features, rois, (3, 2), locate), rtol=0, atol=1e-5)
    in_parts = gradient_of(pool, features.to(device), *arguments)
    monkeypatch.undo()
    torch.testing.assert_close(gradient_of(pool, features.to(device), *arguments), in_parts)


def test_deform_roi_pool_without_offsets_is_roi_align(device):
    from mmcv.ops import deform_roi_pool as pool

    features, rois = torch.randn(2, 3, 16, 16, device=device), draw_rois(6, extent=32).to(device)

    def theirs(f):
        return torchvision.ops.roi_align(f, rois, (4, 3), 0.5, 2, True)

    for offset in (None, torch.zeros(6, 2, 4, 3, device=device)):
        torch.testing.assert_close(pool(features, rois, offset, (4, 3), 0.5, 2), theirs(features), rtol=0, atol=1e-5)
        gradients = gradient_of(pool, features, rois, offset, (4, 3), 0.5, 2), gradient_of(theirs, features)
        torch.testing.assert_close(*gradients, rtol=0, atol=1e-5)


def test_equal_offsets_move_the_roi(device):
    from mmcv.ops import deform_roi_pool as pool

    features = torch.randn(1, 2, 16, 16, device=device)
    roi = torch.tensor([[0.0, 4, 4, 14, 10]], device=device)
    offset = torch.tensor([2.0, -3]).view(1, 2, 1, 1).expand(1, 2, 3, 3).to(device)  # (x, y)
    moved = roi + torch.tensor([0, 2, -1.8, 2, -1.8], device=device)  # 0.1 * 10 * 2, 0.1 * 6 * -3
    torch.testing.assert_close(pool(features, roi, offset, 3, 1.0, 2), pool(features, moved, None, 3, 1.0, 2))


@pytest.mark.parametrize('ratio', [0, 2])
def test_the_gradients_of_deform_roi_pool_are_its_derivatives(ratio, device):
    from mmcv.ops import deform_roi_pool as pool

    features = torch.randn(2, 2, 6, 7, dtype=torch.float64, device=device, requires_grad=True)
    rois = draw_rois(4, extent=16, dtype=torch.float64).to(device)  # over the border, too
    offset = torch.randn(4, 2, 2, 3, dtype=torch.float64, device=device, requires_grad=True)
    assert torch.autograd.gradcheck(lambda f, o: pool(f, rois, o, (2, 3), 0.5, ratio, 0.3), (features, offset))


def test_offsets_of_another_shape_are_refused():
    from mmcv.ops import deform_roi_pool as pool

    with pytest.raises(UserError, match=r'offset has shape \(3, 2, 2, 2\); .* ask for \(4, 2, 3, 3\)'):
        pool(torch.zeros(1, 1, 8, 8), torch.zeros(4, 5), torch.zeros(3, 2, 2, 2), 3)


# All of them

POOLS = {
    'roi_pool': lambda f, r: _mmcv('roi_pool')(f, r, 2, 0.5),
    'roi_align': lambda f, r: _mmcv('roi_align')(f, r, 2, 0.5, 2, 'avg', True),
    'deform_roi_pool': lambda f, r: _mmcv('deform_roi_pool')(
        f, r, torch.ones(len(r), 2, 2, 2, device=r.device), 2, 0.5, 2
    ),
}


def _mmcv(name):
    import mmcv.ops

    return getattr(mmcv.ops, name)


@pytest.mark.parametrize('name', POOLS)
@pytest.mark.parametrize('roi', [[0, NAN, 0, 4, 4], [2, 0, 0, 4, 4], [-1, 0, 0, 4, 4], [0, 0, 0, INF, 4]])
def test_a_roi_that_cannot_be_pooled_is_named(name, roi):
    rois = torch.tensor([[0.0, 0, 0, 4, 4], roi])
    with pytest.raises(UserError, match=rf'{name} got 1 of 2 RoIs .* image index below 2\. NaN .* has diverged'):
        POOLS[name](torch.zeros(2, 1, 8, 8), rois)


def test_a_roi_larger_than_any_image_is_refused():
    from mmcv.ops import deform_roi_pool as pool

    rois = torch.tensor([[0.0, 0, 0, 4, 4], [0, -1e9, -1e9, 1e9, 1e9]])
    with pytest.raises(UserError, match=r'deform_roi_pool: RoI 1 would need \d+ samples, .* clip them to the image'):
        pool(torch.zeros(1, 1, 8, 8), rois, None, 2, 1.0, 0)
    assert pool(torch.zeros(1, 1, 8, 8), rois, None, 2, 1.0, 2).shape == (2, 1, 2, 2)


@pytest.mark.parametrize('name', POOLS)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(name, dtype, device):
    features = torch.randn(1, 3, 8, 8, device=device).to(dtype).requires_grad_()
    rois = torch.tensor([[0.0, 1.01, 3.01, 12.99, 11.01]], device=device)
    pooled = POOLS[name](features, rois)
    assert pooled.dtype == dtype
    assert torch.equal(pooled, POOLS[name](features.float(), rois).to(dtype))  # the RoIs were not rounded either
    pooled.sum().backward()
    assert features.grad.sum().item() == pytest.approx(12, rel=0.05)


@pytest.mark.parametrize('name', POOLS)
def test_gradients_are_the_same_again_in_deterministic_mode(name, device):
    features, rois = torch.randn(2, 3, 8, 8, device=device), draw_rois(20).to(device)
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (gradient_of(POOLS[name], features, rois) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(first, second)


@pytest.mark.parametrize('name', POOLS)
def test_ten_thousand_rois(name, device):
    """Of few distinct ones, so that a few tell what all should be."""
    features, few = torch.randn(2, 1, 8, 8, device=device), draw_rois(10).to(device)
    pooled = POOLS[name](features, few.repeat(1_000, 1))
    torch.testing.assert_close(pooled, POOLS[name](features, few).repeat(1_000, 1, 1, 1))


@pytest.mark.parametrize(
    ('layer', 'tolerance'),
    [
        (dict(type='RoIPool', output_size=3), None),
        (dict(type='DeformRoIPoolPack', output_size=3, output_channels=4, deform_fc_channels=8), 1e-5),
        (dict(type='ModulatedDeformRoIPoolPack', output_size=3, output_channels=4, deform_fc_channels=8), 0.5),
    ],
    ids=lambda value: value['type'] if isinstance(value, dict) else '',
)
def test_a_roi_extractor_of_mmdet_pools_with_it(layer, tolerance, device):
    from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor

    extractor = SingleRoIExtractor(layer, out_channels=4, featmap_strides=[4, 8]).to(device)
    features = [torch.randn(2, 4, size, size, device=device, requires_grad=True) for size in (16, 8)]
    rois = torch.tensor([[0.0, 0, 0, 20, 30], [1, 4, 4, 60, 60], [0, 0, 0, 500, 400]], device=device)
    pooled = extractor(features, rois)
    assert pooled.shape == (3, 4, 3, 3)
    pooled.sum().backward()
    assert features[0].grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in extractor.parameters() if p.grad is not None)
    if tolerance:
        # The layers that move the cells start at 0, the mask at one half: so it is RoIAlign at first.
        plain = SingleRoIExtractor(dict(type='RoIAlign', output_size=3, sampling_ratio=0), 4, [4, 8]).to(device)
        expected = plain(features, rois) * (0.5 if 'Modulated' in layer['type'] else 1)
        torch.testing.assert_close(pooled, expected, rtol=0, atol=1e-5)
