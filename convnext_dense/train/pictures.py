"""Pictures of samples: what the model gets, and what it predicts beside what is right."""

import copy
import math
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.structures import BaseDataElement, PixelData
from mmengine.visualization import Visualizer

from convnext_dense.data.pictures import read_image

MIN_SIDE = 320  # pixels; smaller images are enlarged so that labels can be read
MARGIN = 6  # pixels of white around a picture
MOST = 16  # samples of a batch that are drawn


def draw_predictions(visualizer: Visualizer, samples: Sequence[BaseDataElement], file: Path) -> None:
    """Write a PNG with two columns of pairs: the ground truth on the left and the predictions on the right.

    The samples are what the model returned, with ``img_path`` and the ground truth at the original image size.
    """
    images = [read_image(Path(sample.img_path)).astype(np.uint8)[..., ::-1] for sample in samples]
    write_grid([draw(visualizer, *pair) for pair in zip(images, samples, strict=True)], 2, file)


def draw_batch(
    visualizer: Visualizer, inputs: Sequence[torch.Tensor], samples: Sequence[BaseDataElement], file: Path
) -> None:
    """Write a PNG with training samples and their ground truth, as the pipeline gives them to the model.

    ``inputs`` are images (channels, H, W) before normalisation, BGR; of other channels the first is shown in grey.
    """
    images = [as_rgb(image) for image in inputs[:MOST]]
    drawn = [draw(visualizer, image, sample, draw_pred=False) for image, sample in zip(images, samples, strict=False)]
    write_grid(drawn, 4, file)


def as_rgb(image: torch.Tensor) -> np.ndarray:
    """Return an image (channels, H, W) as (H, W, 3) of uint8."""
    colours = image.flip(0) if len(image) == 3 else image[:1].expand(3, -1, -1)
    return np.ascontiguousarray(colours.permute(1, 2, 0).clamp(0, 255).byte().numpy())


def write_grid(pictures: Sequence[np.ndarray], columns: int, file: Path) -> None:
    """Write pictures (H, W, 3), BGR, into rows of so many columns."""
    height, width = np.max([picture.shape[:2] for picture in pictures], axis=0) + MARGIN
    columns = min(columns, len(pictures))
    grid = np.full((math.ceil(len(pictures) / columns) * height, columns * width, 3), 255, np.uint8)
    for i, picture in enumerate(pictures):
        top, left = i // columns * height, i % columns * width
        grid[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    if not cv2.imwrite(str(file), grid):
        raise OSError(f'{file} cannot be written')


def draw(visualizer: Visualizer, image: np.ndarray, sample: BaseDataElement, **options) -> np.ndarray:
    """Return an image (H, W, 3), RGB, with what a sample says of it, BGR; predictions stand beside the ground truth."""
    factor = max(1, round(MIN_SIDE / min(image.shape[:2])))
    image = image.repeat(factor, axis=0).repeat(factor, axis=1)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter('ignore', UserWarning)  # the visualizer warns of boxes that touch the border
        visualizer.add_datasample('sample', image, enlarge(sample, factor), out_file=f'{folder}/sample.png', **options)
        return cv2.imread(f'{folder}/sample.png')


def enlarge(sample: BaseDataElement, factor: int) -> BaseDataElement:
    """Return a copy of a data sample for an image enlarged by an integer factor."""
    sample = copy.deepcopy(sample)  # a clone shares the instances, which are to be trained on
    for instances in [sample.get(name) for name in ('gt_instances', 'pred_instances') if name in sample]:
        instances.bboxes = getattr(instances.bboxes, 'tensor', instances.bboxes) * factor
        if 'masks' in instances:
            masks = instances.masks
            masks = masks if torch.is_tensor(masks) else masks.to_tensor(torch.bool, 'cpu')
            instances.masks = repeat(masks, factor)
    for name in ('gt_sem_seg', 'pred_sem_seg'):
        if name in sample:
            setattr(sample, name, PixelData(data=repeat(sample.get(name).data, factor)))
    return sample


def repeat(maps: torch.Tensor, factor: int) -> torch.Tensor:
    """Return maps (N, H, W) in which each pixel is a square."""
    return maps.repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2)
