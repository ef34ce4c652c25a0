"""JPEG files that are decoded at about the size to which they are resized."""

import io
from functools import partial
from typing import Any

import cv2
import numpy as np
from mmengine import fileio
from mmengine.registry import TRANSFORMS

from convnext_dense.data.pictures import read_header

REDUCED = {8: cv2.IMREAD_REDUCED_COLOR_8, 4: cv2.IMREAD_REDUCED_COLOR_4, 2: cv2.IMREAD_REDUCED_COLOR_2}


@TRANSFORMS.register_module()
class LoadDeferredImage:
    """A step that only reads the file of a JPEG; :class:`LoadResizedImage` decodes it.

    Args:
        load: MMCV's ``LoadImageFromFile`` with no option but ``backend_args``, for other formats.
    """

    def __init__(self, load: dict) -> None:
        self.load = TRANSFORMS.build(load)

    def __call__(self, results: dict) -> dict | None:
        """Add ``img_bytes``, or ``img`` (H, W, C) of another format, and the shapes (H, W) of the whole image."""
        try:
            content = fileio.get(results['img_path'], backend_args=self.load.backend_args)
        except OSError:
            return self.load(results)  # which says what is wrong with it
        size, kind = read_header(io.BytesIO(content))
        if kind != 'JPEG':
            return self.load(results)
        shape = size[::-1]
        return {**results, 'img_bytes': content, 'img_shape': shape, 'ori_shape': shape}


@TRANSFORMS.register_module()
class LoadResizedImage:
    """A step that resizes images, which decodes those of :class:`LoadDeferredImage`.

    libjpeg leaves out what an image of a half, a fourth or an eighth of the size does not need. Annotations and sizes
    are those of the step itself; pixels differ, as a reduced image is an average and not a sample of its pixels.

    Args:
        resize: ``Resize`` with a ``scale``, ``RandomResize`` or ``RandomChoiceResize`` of MMDetection or
            MMSegmentation.
    """

    def __init__(self, resize: dict) -> None:
        self.step = TRANSFORMS.build(resize)
        inner = getattr(self.step, 'resize', self.step)
        inner._resize_img = partial(decode_and_resize, inner)

    def __call__(self, results: dict) -> dict:
        """Add ``img`` (H, W, C), and resize what belongs to it."""
        return self.step(results)


def decode_and_resize(resize: Any, results: dict) -> None:
    """Do what ``Resize._resize_img`` does, for an image that is not decoded yet."""
    import mmcv

    content = results.pop('img_bytes', None)
    if content is None:
        type(resize)._resize_img(resize, results)
        return
    height, width = results['img_shape']
    size = mmcv.rescale_size((width, height), results['scale']) if resize.keep_ratio else results['scale']
    fitting = [factor for factor in REDUCED if width // factor >= size[0] and height // factor >= size[1]]
    flag = REDUCED[fitting[0]] if fitting else cv2.IMREAD_COLOR
    image = cv2.imdecode(np.frombuffer(content, np.uint8), flag)
    if image is None:
        raise AssertionError(f'failed to load image: {results["img_path"]}')  # as MMCV says it
    results['img'] = mmcv.imresize(image, size, interpolation=resize.interpolation, backend=resize.backend)
    results['img_shape'] = results['img'].shape[:2]
    results['scale_factor'] = size[0] / width, size[1] / height
    results['keep_ratio'] = resize.keep_ratio
