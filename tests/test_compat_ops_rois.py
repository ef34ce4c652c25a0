"""RoI pooling of every kind against plain loops that are written here, torchvision and closed forms."""

import math

import numpy as np
import pytest
import torch

from convnext_dense.compat.errors import UserError
from convnext_dense.compat.ops import find_op, roi_align
from convnext_dense.compat.ops import rois as rois_of_ops

NAN = math.nan


def draw_rois(count: int, images: int = 2, extent: float = 12.0) -> torch.Tensor:
    """Some reach over the border, one is empty and one has no width."""
    corners = ((torch.rand(count, 2, 2) * 1.4 - 0.2) * extent).sort(dim=1).values
    corners[0, 1], corners[1, 1, 0] = corners[0, 0], corners[1, 0, 0]
    return torch.cat([torch.randint(0, images, (count, 1)), corners.flatten(1)], dim=1)


def sample_by_hand(feature: np.ndarray, y: float, x: float) -> np.ndarray:
    """Interpolate ``(C, H, W)``; a point up to one pixel outside takes the border's value, further out it is 0."""
    height, width = feature.shape[1:]
    if not (-1 <= y <= height and -1 <= x <= width):
        return np.zeros(len(feature))
    rows = np.maximum(0, 1 - abs(np.arange(height) - min(max(y, 0), height - 1)))
    columns = np.maximum(0, 1 - abs(np.arange(width) - min(max(x, 0), width - 1)))
    return rows @ feature @ columns


def pool_by_hand(features, rois, cells, scale, ratio, aligned=True, moves=None, reduce=np.mean) -> torch.Tensor:
    """Sample each cell in a loop. ``moves`` ``(K, 2, PH, PW)`` move cells by (x, y), in sizes of the RoI."""
    features, rois = features.double().numpy(), rois.double().numpy()
    moves = np.zeros((len(rois), 2, *cells)) if moves is None else moves.double().numpy()
    pooled = np.zeros((len(rois), features.shape[1], *cells))
    for k, row, column in np.ndindex(len(rois), *cells):
        x1, y1, x2, y2 = rois[k, 1:] * scale - 0.5 * aligned
        size = np.maximum([y2 - y1, x2 - x1], 0 if aligned else 1)
        step = size / cells
        start = [y1, x1] + moves[k, ::-1, row, column] * size + step * (row, column)
        counts = [ratio or math.ceil(side) for side in step]
        points = [start + step * ((iy + 0.5) / counts[0], (ix + 0.5) / counts[1]) for iy, ix in np.ndindex(*counts)]
        if points:  # a RoI without size may have none
            values = [sample_by_hand(features[int(rois[k, 0])], y, x) for y, x in points]
            pooled[k, :, row, column] = reduce(values, axis=0)
    return torch.from_numpy(pooled).float()


# RoIAlign


@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('ratio', [0, 2])
@pytest.mark.parametrize(('mode', 'reduce'), [('avg', np.mean), ('max', np.max)])
def test_roi_align_pools_what_the_definition_says(mode, reduce, ratio, aligned, device, monkeypatch):
    from mmcv.ops import RoIAlign

    monkeypatch.setattr(rois_of_ops, 'numbers_at_once', lambda device: 10)  # a few RoIs at a time
    features, rois = torch.randn(2, 2, 9, 12), draw_rois(6, extent=40)
    layer = RoIAlign((3, 2), 0.25, ratio, mode, aligned)
    expected = pool_by_hand(features, rois, (3, 2), 0.25, ratio, aligned, reduce=reduce)
    torch.testing.assert_close(layer(features.to(device), rois.to(device)).cpu(), expected, rtol=0, atol=1e-5)
    features = features.double().to(device).requires_grad_()
    assert torch.autograd.gradcheck(lambda f: layer(f, rois.double().to(device)), features, fast_mode=True)


def test_the_deterministic_gradient_is_the_fast_one(monkeypatch):
    arguments = (torch.randn(5, 3, 4, 4), draw_rois(5, extent=20), torch.Size([2, 3, 10, 10]), 0.5, 0, True)
    fast = roi_align._average_gradient(*arguments)
    monkeypatch.setattr(torch, 'are_deterministic_algorithms_enabled', lambda: True)
    monkeypatch.setattr(torch.Tensor, 'is_cpu', False)
    torch.testing.assert_close(roi_align._average_gradient(*arguments), fast)


# RoIPool


def roi_pool_by_hand(features, rois, cells, scale):
    """Return the largest pixels and their places; the last pixel of a RoI belongs to it."""
    features, rois = features.numpy(), rois.numpy()
    channels, height, width = features.shape[1:]
    pooled, places = np.zeros((len(rois), channels, *cells)), np.full((len(rois), channels, *cells), -1)
    for k, row, column in np.ndindex(len(rois), *cells):
        x1, y1, x2, y2 = rois[k, 1:] * scale + np.array([0, 0, scale, scale], np.float32)
        h, w = (y2 - y1) / cells[0], (x2 - x1) / cells[1]
        top, bottom = max(math.floor(y1 + row * h), 0), min(math.ceil(y1 + (row + 1) * h), height)
        left, right = max(math.floor(x1 + column * w), 0), min(math.ceil(x1 + (column + 1) * w), width)
        if h > 0 and w > 0 and top < bottom and left < right:
            pixels = features[int(rois[k, 0]), :, top:bottom, left:right].reshape(channels, -1)
            y, x = np.divmod(pixels.argmax(1), right - left)
            pooled[k, :, row, column], places[k, :, row, column] = pixels.max(1), (top + y) * width + left + x
    return torch.from_numpy(pooled).float(), torch.from_numpy(places)


@pytest.mark.parametrize('scale', [1.0, 0.25, 0.3])
def test_roi_pool_takes_the_largest_pixel_of_each_cell(scale, device):
    features, rois = torch.randn(2, 3, 9, 12).round(decimals=1), draw_rois(8, extent=12 / scale)
    rois[2, 1:] = torch.tensor([3.4, 3.4, 2.1, 2.1]) / scale  # its end lies before its start
    expected, places = roi_pool_by_hand(features, rois, (3, 2), scale)
    output, argmax = torch.zeros(8, 3, 3, 2), torch.zeros(8, 3, 3, 2, dtype=torch.int32)
    buffers = [t.to(device) for t in (features, rois, output, argmax)]
    find_op('roi_pool_forward')(*buffers, 3, 2, scale)
    assert torch.equal(buffers[2].cpu(), expected)
    assert torch.equal(buffers[3].cpu().long(), places)
    assert (places == -1).any()


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
    from mmcv.ops import deform_roi_pool

    monkeypatch.setattr(rois_of_ops, 'numbers_at_once', lambda device: 10)
    features, rois, offset = torch.randn(2, 2, 9, 12), draw_rois(6, extent=24), torch.randn(6, 2, 3, 2)
    arguments = (rois.to(device), offset.to(device) if moved else None, (3, 2), 0.5, ratio, 0.1)
    pooled = deform_roi_pool(features.to(device), *arguments)
    expected = pool_by_hand(features, rois, (3, 2), 0.5, ratio, moves=0.1 * offset if moved else None)
    torch.testing.assert_close(pooled.cpu(), expected, rtol=0, atol=1e-5)
    features, offset = (t.double().to(device).requires_grad_() for t in (features, offset))
    rois = rois.double().to(device)  # over the border, too
    assert torch.autograd.gradcheck(
        lambda f, o: deform_roi_pool(f, rois, o if moved else None, (3, 2), 0.5, ratio, 0.1),
        (features, offset),
        fast_mode=True,
    )


# All of them


def pool(name: str, features: torch.Tensor, rois: torch.Tensor, ratio: int = 2) -> torch.Tensor:
    import mmcv.ops

    if name == 'roi_pool':
        return mmcv.ops.roi_pool(features, rois, 2, 0.5)
    if name == 'deform_roi_pool':
        offset = torch.ones(len(rois), 2, 2, 2, device=rois.device)
        return mmcv.ops.deform_roi_pool(features, rois, offset, 2, 0.5, ratio)
    return mmcv.ops.roi_align(features, rois, 2, 0.5, ratio, name, True)


NAMES = ['roi_pool', 'avg', 'max', 'deform_roi_pool']


@pytest.mark.parametrize('name', NAMES[1:])
def test_rois_far_larger_than_an_image_are_refused(name):
    """torchvision would ask for 32 bytes per sample. So many samples as are asked for are fine."""
    features, rois = torch.zeros(1, 1, 8, 8), torch.tensor([[0.0, 0, 0, 4, 4], [0, -1e9, -1e9, 1e9, 1e9]])
    with pytest.raises(UserError, match=r'RoI 1 would need \d+ samples, .* clip them to the image'):
        pool(name, features, rois, ratio=0)
    with pytest.raises(UserError, match='RoI 0 would need .* samples'):
        pool(name, features, rois, ratio=10**9)
    assert pool(name, features, rois).shape == (2, 1, 2, 2)


@pytest.mark.parametrize('name', NAMES)
def test_gradients_are_the_same_again_in_deterministic_mode(name, device):
    if name == 'deform_roi_pool' and device.type == 'cuda':
        pytest.skip('grid_sample has no deterministic backward on a GPU')
    features, rois = torch.randn(2, 3, 8, 8, device=device), draw_rois(20).to(device)
    torch.use_deterministic_algorithms(True)
    try:
        pooled = pool(name, features.requires_grad_(), rois)
        gradient = torch.randn_like(pooled)
        first, second = (torch.autograd.grad(pooled, features, gradient, retain_graph=True)[0] for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(first, second)


@pytest.mark.parametrize('name', NAMES)
def test_ten_thousand_rois(name, device):
    """Of few distinct ones, so that a few tell what all should be."""
    features, few = torch.randn(2, 1, 8, 8, device=device), draw_rois(10).to(device)
    pooled = pool(name, features, few.repeat(1_000, 1))
    torch.testing.assert_close(pooled, pool(name, features, few).repeat(1_000, 1, 1, 1))


def test_masks_are_pooled_from_whole_images():
    """As mmdet makes the targets of masks."""
    from mmcv.ops import roi_align

    masks, box = torch.ones(1, 1, 3000, 4000), torch.tensor([[0.0, 0, 0, 4000, 3000]])
    assert (roi_align(masks, box, 28, 1.0, 0, 'avg', True) == 1).all()


def test_on_a_gpu_rois_of_no_image_become_nan(device, monkeypatch):
    """There a check would have to wait; so the kernel never sees their index."""
    monkeypatch.setattr(torch.Tensor, 'is_cpu', False)
    stray = torch.tensor([[0.0, 1, 1, 5, 5], [1e6, 1, 1, 5, 5], [-1, 1, 1, 5, 5], [NAN, 1, 1, 5, 5]], device=device)
    features = torch.ones(2, 3, 8, 8, device=device, requires_grad=True)
    pooled = pool('avg', features, stray)
    assert (pooled[0] == 1).all()
    assert pooled[1:].isnan().all()
    pooled[0].sum().backward()
    assert features.grad.sum().item() == pytest.approx(12)


@pytest.mark.parametrize(('layer', 'scale'), [('DeformRoIPoolPack', 1), ('ModulatedDeformRoIPoolPack', 0.5)])
def test_a_new_pack_of_mmdets_dpool_configs_is_roi_align(layer, scale, device):
    """The layers that move the cells start at 0, the mask at one half."""
    import mmcv.ops

    pack = getattr(mmcv.ops, layer)(3, 4, deform_fc_channels=8, spatial_scale=0.25).to(device)
    features, rois = torch.randn(2, 4, 16, 16, device=device), draw_rois(4, extent=60).to(device)
    expected = scale * mmcv.ops.roi_align(features, rois, 3, 0.25, 0, 'avg', True)
    torch.testing.assert_close(pack(features, rois), expected, rtol=0, atol=1e-5)
