"""Time the training data of the recipes for COCO and ADE20K in one process: images a second, stock and ours.

    make bench-data

Photos are drawn: noise under ellipses, as JPEG, with the polygons or the label map of the ellipses. All ways take turns
on the same photos with the same random numbers, each in the same process, in one thread.
"""

import json
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.registry import DATASETS
from tables import write_results

from convnext_dense.configs import load_config, model_scope
from convnext_dense.speed import speed_up_data
from convnext_dense.train.screen import quiet
from convnext_dense.train.switches import apply_switches

NUM_PHOTOS, NUM_OBJECTS, ROUNDS = 48, 7, 5
CLASSES = ('ellipse', 'other')
DET, SEG = 'det/cascade_convnext_t_coco', 'seg/upernet_convnext_t_ade20k'
COLUMNS = {'way': '', 'images/s': '.1f', 'speed-up': '.2f', 'milliseconds of each step': ''}
TABLES = {  # title -> config, and the switches with which ours is timed as well
    'COCO instances, photos of 640x480': (DET, ['polygons']),
    'ADE20K, photos of 683x512': (SEG, []),
    'ADE20K recipe, photos of 4000x3000': (SEG, ['fast_jpeg']),
}


def main() -> None:
    """Time all ways, and print a table for each recipe."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    for title, (config, switches) in TABLES.items():
        ways: dict[str, dict[str, bool] | None] = {'stock': None, 'ours': {}}
        ways |= {f'ours, --{each.replace("_", "-")}': {each: True} for each in switches}
        with tempfile.TemporaryDirectory() as folder:
            size = tuple(map(int, title.rpartition(' ')[2].split('x')))
            datasets = {name: build(config, each, size, Path(folder)) for name, each in ways.items()}
            times = {name: [] for name in ways}
            steps: dict[str, dict[str, float]] = {name: defaultdict(float) for name in ways}
            for i in range(ROUNDS + 1):
                for name, dataset in datasets.items():
                    np.random.seed(i)
                    seconds = run(dataset, steps[name])
                    if i:  # the first round warms up
                        times[name].append(seconds)
        name = title.partition(',')[0].lower().replace(' ', '-')
        write_results(f'data-{name}', f'{title}, one thread', COLUMNS, rows_of(times, steps))


def build(config: str, switches: dict[str, bool] | None, size: tuple[int, int], folder: Path) -> Any:
    """Return the training data of a recipe with drawn photos of a width and height; None stands for stock steps."""
    cfg = load_config(config)
    apply_switches(cfg, **(switches or {}))
    given = cfg.train_dataloader.dataset
    write = write_label_maps if cfg.default_scope == 'mmseg' else write_objects
    given.update(write(folder, *size), data_root=str(folder))
    with model_scope(cfg), quiet():
        dataset = DATASETS.build(given)
    if switches is not None:
        speed_up_data(dataset)
    return dataset


def run(dataset: Any, steps: dict[str, float]) -> float:
    """Return the seconds in which all photos are loaded; add those of each step."""
    total = 0.0
    for i in range(len(dataset)):
        sample = dataset.get_data_info(i)
        for step in dataset.pipeline.transforms:
            start = time.perf_counter()
            sample = step(sample)
            seconds = time.perf_counter() - start
            steps[type(step).__name__] += seconds
            total += seconds
    return total


def rows_of(times: dict[str, list[float]], steps: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """Return a row for each way."""
    medians = {name: statistics.median(found) for name, found in times.items()}
    shares = {
        name: ', '.join(f'{step} {1000 * s / NUM_PHOTOS / (ROUNDS + 1):.1f}' for step, s in found.items())
        for name, found in steps.items()
    }
    return [
        {
            'way': name,
            'images/s': NUM_PHOTOS / median,
            'speed-up': medians['stock'] / median,
            'milliseconds of each step': shares[name],
        }
        for name, median in medians.items()
    ]


def draw(rng: np.random.Generator, width: int, height: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return a photo (H, W, 3) and the outlines (points, 2) of its ellipses."""
    coarse = rng.integers(0, 256, (height // 16, width // 16, 3), np.uint8)
    photo, outlines = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), []
    for _ in range(NUM_OBJECTS):
        centre = (int(rng.integers(60, width - 60)), int(rng.integers(60, height - 60)))
        axes = (int(rng.integers(10, 90)), int(rng.integers(10, 90)))
        outline = cv2.ellipse2Poly(centre, axes, int(rng.integers(0, 180)), 0, 350, 10)
        outlines.append(np.clip(outline, 0, (width - 1, height - 1)))
        cv2.fillPoly(photo, [outlines[-1]], rng.integers(0, 256, 3).tolist())
    return photo, outlines


def write_objects(folder: Path, width: int, height: int) -> dict[str, Any]:
    """Draw photos and a COCO JSON, and return how the data set finds them."""
    rng, images, objects = np.random.default_rng(0), [], []
    for i in range(NUM_PHOTOS):
        photo, outlines = draw(rng, width, height)
        cv2.imwrite(str(folder / f'{i}.jpg'), photo)
        images.append(dict(id=i, file_name=f'{i}.jpg', width=width, height=height))
        for outline in outlines:
            (x, y), (x2, y2) = outline.min(0).tolist(), outline.max(0).tolist()
            box = dict(bbox=[x, y, x2 - x, y2 - y], area=(x2 - x) * (y2 - y), iscrowd=0)
            polygon = [outline.ravel().tolist()]
            objects.append(dict(id=len(objects) + 1, image_id=i, category_id=1, segmentation=polygon, **box))
    categories = [dict(id=i + 1, name=name) for i, name in enumerate(CLASSES)]
    content = dict(images=images, annotations=objects, categories=categories)
    (folder / 'objects.json').write_text(json.dumps(content))
    return dict(ann_file='objects.json', data_prefix=dict(img=''), metainfo=dict(classes=CLASSES))


def write_label_maps(folder: Path, width: int, height: int) -> dict[str, Any]:
    """Draw photos and label maps, and return how the data set finds them."""
    rng = np.random.default_rng(0)
    for name in ('images', 'labels'):
        (folder / name).mkdir(exist_ok=True)
    for i in range(NUM_PHOTOS):
        photo, outlines = draw(rng, width, height)
        labels = (
            np.repeat(np.sort(rng.integers(1, 5, height)), width).reshape(height, width).astype(np.uint8)
        )  # walls, floor
        for number, outline in enumerate(outlines):
            cv2.fillPoly(labels, [outline], number + 5)
        cv2.imwrite(str(folder / f'images/{i}.jpg'), photo)
        cv2.imwrite(str(folder / f'labels/{i}.png'), labels)
    return dict(data_prefix=dict(img_path='images', seg_map_path='labels'))


if __name__ == '__main__':
    main()
