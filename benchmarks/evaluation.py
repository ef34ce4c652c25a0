"""Time COCO's evaluation of boxes and masks: pycocotools and faster-coco-eval, which runs use where it is installed.

    make bench-evaluation                        # 300 images, a minute
    make bench-evaluation ARGS='--images 5000'   # as many as COCO's validation

Objects and predictions are drawn: 10 objects and 100 predictions an image, 80 classes. Each way has its own process,
and both must print the same numbers.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from tables import write_results

from convnext_dense.train.coco_eval import fast_coco_metric
from convnext_dense.train.screen import quiet

WAYS = {'pycocotools': False, 'faster-coco-eval': True}
SIDE, NUM_CLASSES, NUM_OBJECTS, NUM_FOUND = 480, 80, 10, 100
COLUMNS = {
    'way': '',
    'time (s)': '.1f',
    'speed-up': '.2f',
    'peak memory (GB)': '.2f',
    'box AP': '.6f',
    'mask AP': '.6f',
}


def main() -> None:
    """Run both ways, compare their numbers, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--images', type=int, default=300)
    parser.add_argument('--way', choices=WAYS, help=argparse.SUPPRESS)  # one alone
    options = parser.parse_args()
    if options.way:
        print(json.dumps(run(options.images, WAYS[options.way])))
        return
    rows = []
    for way in WAYS:
        command = [sys.executable, __file__, '--images', str(options.images), '--way', way]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows.append({'way': way, **json.loads(done.stdout.splitlines()[-1])})
    if rows[0].pop('metrics') != rows[1].pop('metrics'):
        sys.exit('error: the two do not print the same numbers')
    for row in rows:
        row['speed-up'] = rows[0]['time (s)'] / row['time (s)']
    title = f'COCO evaluation of {options.images} images, {NUM_FOUND} predictions each'
    write_results(f'evaluation-{options.images}', title, COLUMNS, rows)


def run(num_images: int, is_fast: bool) -> dict[str, Any]:
    """Return the time of an evaluation, its metrics, and the peak of memory."""
    from mmdet.evaluation.metrics import CocoMetric

    if is_fast:
        import faster_coco_eval  # noqa: F401 - without it pycocotools would be timed twice

    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder, quiet():
        file = Path(folder, 'objects.json')
        truth = [draw(rng, NUM_OBJECTS) for _ in range(num_images)]
        file.write_text(json.dumps(as_coco(truth)))
        metric = CocoMetric(ann_file=str(file), metric=['bbox', 'segm'])
        metric.dataset_meta = dict(classes=tuple(map(str, range(NUM_CLASSES))))
        for i, objects in enumerate(truth):
            found = draw(rng, NUM_FOUND)
            for name, right in objects.items():  # the first ones are near the objects
                found[name][:NUM_OBJECTS] = right
            found['bboxes'][:NUM_OBJECTS] += rng.normal(0, 4, (NUM_OBJECTS, 4))
            predicted = dict(
                bboxes=torch.from_numpy(found['bboxes']),
                labels=torch.from_numpy(found['labels']),
                scores=torch.from_numpy(rng.random(NUM_FOUND)),
                masks=encode(found['bboxes']),
            )
            metric.process({}, [dict(img_id=i, ori_shape=(SIDE, SIDE), pred_instances=predicted, gt_instances={})])
        start = time.perf_counter()
        if is_fast:
            with fast_coco_metric():
                metrics = metric.evaluate(num_images)
        else:
            metrics = metric.evaluate(num_images)
        seconds = time.perf_counter() - start
    return {
        'time (s)': seconds,
        'peak memory (GB)': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        'box AP': metrics['coco/bbox_mAP'],
        'mask AP': metrics['coco/segm_mAP'],
        'metrics': metrics,
    }


def draw(rng: np.random.Generator, count: int) -> dict[str, np.ndarray]:
    """Return boxes (count, 4) as corners, and labels."""
    corner = rng.uniform(0, SIDE - 120, (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(8, 120, (count, 2))], axis=1)
    return dict(bboxes=boxes, labels=rng.integers(0, NUM_CLASSES, count))


def encode(boxes: np.ndarray) -> list[dict]:
    """Return the diamonds in boxes (N, 4) as run lengths."""
    return [coco_mask.merge(coco_mask.frPyObjects(diamond(box), SIDE, SIDE)) for box in boxes.tolist()]


def diamond(box: list[float]) -> list[list[float]]:
    """Return a diamond in a box, as COCO's polygons."""
    x1, y1, x2, y2 = box
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    return [[x, y1, x2, y, x, y2, x1, y]]


def as_coco(truth: list[dict[str, np.ndarray]]) -> dict[str, list]:
    """Return a COCO JSON with these objects."""
    images = [dict(id=i, file_name=f'{i}.jpg', width=SIDE, height=SIDE) for i in range(len(truth))]
    objects = []
    for i, each in enumerate(truth):
        for box, label in zip(each['bboxes'].tolist(), each['labels'].tolist(), strict=True):
            width, height = box[2] - box[0], box[3] - box[1]
            extent = dict(bbox=[*box[:2], width, height], area=width * height / 2, iscrowd=0)
            place = dict(id=len(objects) + 1, image_id=i, category_id=label)
            objects.append({**place, **extent, 'segmentation': diamond(box)})
    return dict(images=images, annotations=objects, categories=[dict(id=i, name=str(i)) for i in range(NUM_CLASSES)])


if __name__ == '__main__':
    main()
