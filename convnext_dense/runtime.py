"""Exported models without PyTorch: NumPy, and onnxruntime or OpenVINO.

    from convnext_dense.runtime import load
    model = load('model.onnx')
    result = model(image)  # (H, W, 3) uint8, as OpenCV reads it

Nothing else needs to be installed; ``pip install --no-deps convnext-dense`` leaves the rest out.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from convnext_dense.results import LABEL_MAPS, LabelMap, Objects, Result

KEY = 'convnext_dense'  # of the metadata in a file
PROVIDERS = ('CUDAExecutionProvider', 'CPUExecutionProvider')  # of onnxruntime
FIXED_POINT = 2048  # OpenCV's weights of neighbours are whole numbers of this size

Run = Callable[[np.ndarray, np.ndarray], Sequence[np.ndarray]]  # of a graph, with images and the size of the original


class Exported:
    """An exported detector or segmentor, ready to predict.

    Attributes:
        meta: What its file says: classes, palette, how images are resized, and how it was exported.
        classes: The names of the classes.
    """

    def __init__(self, run: Run, meta: Mapping[str, Any]) -> None:
        self.run, self.meta = run, meta
        self.classes = tuple(meta['classes'])

    def __call__(self, image: np.ndarray) -> Result:
        """Predict an image.

        Args:
            image: (H, W, channels) uint8, in the order of channels in which the model's pipeline reads files: BGR for
                three, as OpenCV gives it.

        Returns:
            :class:`~convnext_dense.results.Objects` of a detector, :class:`~convnext_dense.results.LabelMap` of a
            segmentor.

        Raises:
            ValueError: The array is no such image.
        """
        channels = self.meta['channels']
        if image.ndim != 3 or image.shape[2] != channels or image.dtype != np.uint8 or not image.size:
            raise ValueError(
                f'An image is an array (height, width, {channels}) of uint8; got {image.shape} of {image.dtype}.'
            )
        size = image.shape[:2]
        resized = resize(image, *resized_size(size, self.meta['resize']))
        outputs = self.run(resized[None], np.array(size, np.int64))
        if self.meta['kind'] == LABEL_MAPS:
            return LabelMap(outputs[0][0], self.classes, self.meta['palette'])
        boxes, scores, labels, *masks = outputs
        pixels = masks[0] if masks else None
        if masks and pixels.dtype != bool:
            pixels = paste(pixels, boxes, size, self.meta['mask_threshold'])
        found = Objects(boxes, scores, labels.astype(np.int64), size, self.classes, pixels)
        return found.take(np.argsort(-scores, kind='stable'))


def load(file: str | os.PathLike, threads: int = 0, device: str | None = None, precision: str = 'f32') -> Exported:
    """Load an exported model.

    Args:
        file: An ``.onnx`` file, the ``.xml`` file of OpenVINO, or a ``.pt2`` file of PyTorch.
        threads: How many threads onnxruntime and OpenVINO may use; 0 for all.
        device: ``'cpu'``, or by default a GPU where onnxruntime has one.
        precision: Of OpenVINO: ``'f32'``, or ``'bf16'``, which is faster on a CPU that has it, and less exact.

    Raises:
        ValueError: ``convnext-dense export`` did not write it.
    """
    path = Path(file)
    if path.suffix not in OPENERS:
        raise ValueError(f'An exported model is a file {", ".join(OPENERS)}; got {path}.')
    run, text = OPENERS[path.suffix](path, threads, device, precision)
    if text is None:
        raise ValueError(
            f'{path} was not written by convnext-dense export: it does not say how its images are prepared.'
        )
    return Exported(run, json.loads(text))


def open_onnx(path: Path, threads: int, device: str | None, precision: str) -> tuple[Run, str | None]:
    """Return what runs an ONNX file, and the metadata in it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    wanted = PROVIDERS[device == 'cpu' :]
    providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
    session = onnxruntime.InferenceSession(os.fspath(path), options, providers=providers)
    text = session.get_modelmeta().custom_metadata_map.get(KEY)
    return lambda images, size: session.run(None, {'image': images, 'size': size}), text


def open_openvino(path: Path, threads: int, device: str | None, precision: str) -> tuple[Run, str | None]:
    """Return what runs a model of OpenVINO on the CPU, and the metadata in it."""
    import openvino

    core = openvino.Core()
    settings = {'INFERENCE_PRECISION_HINT': precision} | ({'INFERENCE_NUM_THREADS': threads} if threads else {})
    model = core.read_model(path)
    text = model.get_rt_info(KEY).value if model.has_rt_info(KEY) else None
    compiled = core.compile_model(model, 'CPU', settings)

    def run(images: np.ndarray, size: np.ndarray) -> list[np.ndarray]:
        results = compiled({'image': images, 'size': size})
        return [results[output] for output in compiled.outputs]

    return run, text


def open_torch(path: Path, threads: int, device: str | None, precision: str) -> tuple[Run, str | None]:
    """Return what runs a program of ``torch.export`` on the CPU, and the metadata in it."""
    import torch
    import torchvision  # noqa: F401  registers its operators

    extra = {KEY: ''}
    module = torch.export.load(path, extra_files=extra).module()

    def run(images: np.ndarray, size: np.ndarray) -> list[np.ndarray]:
        try:
            with torch.inference_mode():
                return [each.numpy() for each in module(torch.from_numpy(images), torch.from_numpy(size))]
        except AssertionError as error:  # a map of one pixel is another graph
            raise ValueError(f'The program takes no image of {images.shape[2]}x{images.shape[1]} ({error}).') from error

    return run, extra[KEY] or None


OPENERS = {'.onnx': open_onnx, '.xml': open_openvino, '.pt2': open_torch}


def resized_size(size: tuple[int, int], how: Mapping[str, Any]) -> tuple[int, int]:
    """Return the height and width to which an image is resized, as MMCV's ``Resize`` does it.

    >>> resized_size((480, 640), dict(scale=(1333, 800), keep_ratio=True))
    (800, 1067)
    """
    height, width = size
    if how.get('scale') is None:
        across, down = how['factor']
    elif how['keep_ratio']:
        long, short = max(how['scale']), min(how['scale'])
        across = down = min(long / max(size), short / min(size))
    else:
        return how['scale'][1], how['scale'][0]
    return int(height * down + 0.5), int(width * across + 0.5)


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize an image (H, W, C) uint8 with bilinear weights, to the values that OpenCV gives."""
    if image.shape[:2] == (height, width):
        return image
    above, below, upper, lower = neighbours(image.shape[0], height)
    left, right, first, second = neighbours(image.shape[1], width, ends=True)
    rows = image[:, left] * first[:, None] + image[:, right] * second[:, None] >> 4
    upper, lower = upper[:, None, None], lower[:, None, None]
    return ((rows[above] * upper >> 16) + (rows[below] * lower >> 16) + 2 >> 2).astype(np.uint8)


def neighbours(length: int, count: int, ends: bool = False) -> tuple[np.ndarray, ...]:
    """Return the two neighbours of each of ``count`` new places along an axis, and their weights, each (count,).

    With ``ends``, a place outside of the axis takes its last pixel alone.
    """
    places = ((np.arange(count) + 0.5) / (count / length) - 0.5).astype(np.float32)
    first = np.floor(places)
    shares = places - first
    if ends:
        shares[(first < 0) | (first >= length - 1)] = 0
    first = first.astype(np.int64)
    weights = (np.rint(each * FIXED_POINT).astype(np.int32) for each in (1 - shares, shares))
    return first.clip(0, length - 1), (first + 1).clip(0, length - 1), *weights


def paste(masks: np.ndarray, boxes: np.ndarray, size: tuple[int, int], threshold: float) -> np.ndarray:
    """Return masks (N, H, W) bool of an image from those of its boxes, as MMDetection's mask heads paste them.

    Args:
        masks: (N, h, w) float32, how sure each part of a box is the object's.
        boxes: (N, 4), x1, y1, x2, y2.
        size: Height and width of the image.
        threshold: From which on a pixel is the object's.
    """
    height, width = size
    pasted = np.zeros((len(masks), height, width), bool)
    for mask, (x1, y1, x2, y2), target in zip(masks, boxes, pasted, strict=True):
        rows, columns = (
            slice(max(int(np.floor(low)) - 1, 0), min(int(np.ceil(high)) + 1, most))
            for low, high, most in ((y1, y2, height), (x1, x2, width))
        )
        down = weights_of(rows, y1, y2, mask.shape[0])
        across = weights_of(columns, x1, x2, mask.shape[1])
        target[rows, columns] = down @ mask @ across.T >= threshold
    return pasted


def weights_of(pixels: slice, low: float, high: float, count: int) -> np.ndarray:
    """Return the bilinear weights (pixels, count) of a mask's places for the pixels of an axis; none beyond its ends.

    The box, which the ``count`` places of the mask fill, lies between ``low`` and ``high``.
    """
    with np.errstate(divide='ignore', invalid='ignore'):
        places = (np.arange(pixels.start, pixels.stop, dtype=np.float32) + 0.5 - low) / (high - low) * 2 - 1
    places = np.where(np.isfinite(places), places, 0)  # of a box without extent
    places = ((places + 1) * count - 1) / 2
    return (1 - np.abs(places[:, None] - np.arange(count, dtype=np.float32))).clip(0)
