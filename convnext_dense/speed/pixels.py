"""Steps of a data pipeline on 8-bit images, with the same result."""

import cv2
import mmcv
import numpy as np
from mmcv.transforms.utils import cache_randomness
from mmseg.datasets.transforms.formatting import PackSegInputs
from mmseg.datasets.transforms.transforms import PhotoMetricDistortion, RandomCrop, RandomFlip
from numpy import random

from convnext_dense.speed.images import OrderedFlip, PixelsLast

TRIES = 10  # of MMSegmentation to find a crop with several classes
VALUES = np.arange(256, dtype=np.uint8)


class CountingRandomCrop(RandomCrop):
    """MMSegmentation's step, which counts the classes of a crop in place of sorting its pixels."""

    @cache_randomness
    def crop_bbox(self, results: dict) -> tuple[int, int, int, int]:
        """Return a crop as top, bottom, left, right; if possible one in which no class has too large a share."""
        labels = results['gt_seg_map']
        if labels.dtype != np.uint8 or labels.ndim != 2:
            return super().crop_bbox(results)
        box = self.draw(results['img'].shape)
        for _ in range(TRIES if self.cat_max_ratio < 1 else 0):
            counts = count_labels(self.crop(labels, box))
            counts[self.ignore_index == VALUES] = 0
            if (counts > 0).sum() > 1 and counts.max() / counts.sum() < self.cat_max_ratio:
                break
            box = self.draw(results['img'].shape)
        return box

    def draw(self, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
        """Return a random crop of an image of this shape."""
        top, left = (random.randint(max(side - crop, 0) + 1) for side, crop in zip(shape, self.crop_size, strict=False))
        return top, top + self.crop_size[0], left, left + self.crop_size[1]


def count_labels(labels: np.ndarray) -> np.ndarray:
    """Return how often a label map (H, W) of uint8 has each of 256 labels: pixels of a row change theirs rarely."""
    pixels = labels.ravel()
    ends = np.append(np.flatnonzero(pixels[1:] != pixels[:-1]), pixels.size - 1)
    return np.bincount(pixels[ends], np.diff(ends, prepend=-1), 256)


class TablePhotoMetricDistortion(PhotoMetricDistortion):
    """MMSegmentation's step, which computes the change of each of 256 values once instead of that of each pixel."""

    def convert(self, img: np.ndarray, alpha: float = 1, beta: float = 0) -> np.ndarray:
        """Return ``alpha * img + beta`` of an image of any shape, cut to 0 to 255."""
        if img.dtype != np.uint8:
            return super().convert(img, alpha, beta)
        return cv2.LUT(img, super().convert(VALUES, alpha, beta))

    def saturation(self, img: np.ndarray) -> np.ndarray:
        """Change the saturation of an image (H, W, 3), or leave it."""
        if img.dtype != np.uint8:
            return super().saturation(img)
        if not random.randint(2):
            return img
        factor = random.uniform(self.saturation_lower, self.saturation_upper)
        return change_hsv(img, 1, super().convert(VALUES, factor))

    def hue(self, img: np.ndarray) -> np.ndarray:
        """Turn the hue of an image (H, W, 3), or leave it."""
        if img.dtype != np.uint8:
            return super().hue(img)
        if not random.randint(2):
            return img
        turn = random.randint(-self.hue_delta, self.hue_delta)
        return change_hsv(img, 0, ((VALUES.astype(int) + turn) % 180).astype(np.uint8))


def change_hsv(img: np.ndarray, channel: int, table: np.ndarray) -> np.ndarray:
    """Exchange the 256 values of hue (channel 0) or saturation (1) of an image (H, W, 3) in the order BGR."""
    hsv = mmcv.bgr2hsv(img)
    cv2.insertChannel(cv2.LUT(cv2.extractChannel(hsv, channel), table), hsv, channel)
    return mmcv.hsv2bgr(hsv)


class OrderedRandomFlip(OrderedFlip, RandomFlip):
    """MMSegmentation's step with a quick copy of the image."""


class PixelsLastPack(PixelsLast, PackSegInputs):
    """MMSegmentation's step without a copy of the image."""
