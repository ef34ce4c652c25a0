"""Time the training data of the recipes for COCO and ADE20K in one process: images a second, stock and ours.

    make bench-data

Photos are drawn: noise under ellipses, as JPEG, with the polygons or the label map of the ellipses. All ways get the
same photos and the same random numbers, and take turns, each in a process of its own, in one thread. As in a run, ours
keeps the memory that it frees.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.registry import DATASETS
from tables import write_results

from convnext_dense.configs import load_config, model_scope
from convnext_dense.speed import keep_memory, speed_up_data
from convnext_dense.train.screen import quiet
from convnext_dense.train.switches import apply_switches

NUM_PHOTOS, NUM_OBJECTS, TURNS, ROUNDS = 48, 7, 3, 2
CLASSES = ('ellipse', 'other')
DET, SEG = 'det/cascade_convnext_t_coco', 'seg/upernet_convnext_t_ade20k'
COLUMNS = {'way': '', 'images/s': '.1f', 'speed-up': '.2f', 'milliseconds of each step': ''}
# Title -> config, quality of the JPEG files, and the ways; a way may end with a switch of ``train``. Files are about as
# large as real ones: 144 kB (COCO's of this size have 160), 52 kB (ADE20K's as much), 3.5 MB
TABLES = {
    'COCO instances, photos of 640x480': (DET, 99, ['stock', 'ours', 'ours, --polygons']),
    'ADE20K, photos of 683x512': (SEG, 80, ['stock', 'ours']),
    'ADE20K recipe, photos of 4000x3000': (SEG, 95, ['stock', 'ours', 'ours, --fast-jpeg']),
}
# how a data set finds what was drawn
OBJECTS = dict(ann_file='objects.json', data_prefix=dict(img=''), metainfo=dict(classes=CLASSES))
LABEL_MAPS = dict(data_prefix=dict(img_path='images', seg_map_path='labels'))


def main() -> None:
    """Time all ways, and print a table for each recipe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--turn', nargs=3, help=argparse.SUPPRESS)  # config, way and the folder of the photos
    options = parser.parse_args()
    if options.turn:
        print(json.dumps(take_turn(*options.turn)))
        return
    for title, (config, quality, ways) in TABLES.items():
        with tempfile.TemporaryDirectory() as folder:
            write = write_objects if config == DET else write_label_maps
            write(Path(folder), quality, *map(int, title.rpartition(' ')[2].split('x')))
            turns: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
            for way in ways * TURNS:
                command = [sys.executable, __file__, '--turn', config, way, folder]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                turns[way].append(json.loads(done.stdout.splitlines()[-1]))
        name = title.partition(',')[0].lower().replace(' ', '-')
        write_results(f'data-{name}', f'{title}, one thread', COLUMNS, rows_of(turns))


def take_turn(config: str, way: str, folder: str) -> dict[str, Any]:
    """Return the seconds of each round over all photos, and those of each step in all rounds."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    if way != 'stock':
        keep_memory()
    dataset = build(config, way, folder)
    rounds, steps = [], defaultdict(float)
    for i in range(ROUNDS + 1):
        np.random.seed(i)
        rounds.append(run(dataset, steps if i else defaultdict(float)))  # the first round warms up
    return dict(rounds=rounds[1:], steps=steps)


def build(config: str, way: str, folder: str) -> Any:
    """Return the training data of a recipe with the drawn photos."""
    cfg = load_config(config)
    if switch := way.partition('--')[2]:
        apply_switches(cfg, **{switch.replace('-', '_'): True})
    given = cfg.train_dataloader.dataset
    given.update(OBJECTS if config == DET else LABEL_MAPS, data_root=folder)
    with model_scope(cfg), quiet():
        dataset = DATASETS.build(given)
    if way != 'stock':
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


def rows_of(turns: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return a row for each way."""
    medians = {
        way: statistics.median(seconds for turn in found for seconds in turn['rounds']) for way, found in turns.items()
    }
    return [
        {
            'way': way,
            'images/s': NUM_PHOTOS / medians[way],
            'speed-up': medians['stock'] / medians[way],
            'milliseconds of each step': describe([turn['steps'] for turn in found]),
        }
        for way, found in turns.items()
    ]


def describe(turns: Sequence[dict[str, float]]) -> str:
    """Return how long each step takes for a photo, the median of the turns."""
    scale = 1000 / NUM_PHOTOS / ROUNDS
    return ', '.join(f'{step} {scale * statistics.median(turn[step] for turn in turns):.1f}' for step in turns[0])


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


def write_objects(folder: Path, quality: int, width: int, height: int) -> None:
    """Draw photos and a COCO JSON."""
    rng, images, objects = np.random.default_rng(0), [], []
    for i in range(NUM_PHOTOS):
        photo, outlines = draw(rng, width, height)
        cv2.imwrite(str(folder / f'{i}.jpg'), photo, [cv2.IMWRITE_JPEG_QUALITY, quality])
        images.append(dict(id=i, file_name=f'{i}.jpg', width=width, height=height))
        for outline in outlines:
            (x, y), (x2, y2) = outline.min(0).tolist(), outline.max(0).tolist()
            box = dict(bbox=[x, y, x2 - x, y2 - y], area=(x2 - x) * (y2 - y), iscrowd=0)
            polygon = [outline.ravel().tolist()]
            objects.append(dict(id=len(objects) + 1, image_id=i, category_id=1, segmentation=polygon, **box))
    categories = [dict(id=i + 1, name=name) for i, name in enumerate(CLASSES)]
    content = dict(images=images, annotations=objects, categories=categories)
    (folder / 'objects.json').write_text(json.dumps(content))


def write_label_maps(folder: Path, quality: int, width: int, height: int) -> None:
    """Draw photos and label maps."""
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
        cv2.imwrite(str(folder / f'images/{i}.jpg'), photo, [cv2.IMWRITE_JPEG_QUALITY, quality])
        cv2.imwrite(str(folder / f'labels/{i}.png'), labels)


if __name__ == '__main__':
    main()
