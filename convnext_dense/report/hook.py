"""Collect what a test predicts and what is right, and write the report after it."""

import json
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.dist import all_gather_object, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from pycocotools import mask as coco_mask

from convnext_dense.compat.errors import UserError
from convnext_dense.compat.files import write_text
from convnext_dense.data.annotation import decode_counts
from convnext_dense.data.pictures import choose_palette, read_image
from convnext_dense.predict.model import objects_of
from convnext_dense.predict.output import draw
from convnext_dense.report import maps, objects
from convnext_dense.report.page import write_page
from convnext_dense.results import OBJECTS, LabelMap, Objects, Result
from convnext_dense.train.run import test
from convnext_dense.train.summary import CURVES, draw_curves, read_scalars

REPORT = 'report.json'


class ReportHook(Hook):
    """Write ``report.html`` and ``report.json`` after a test, into the folder of its log.

    Args:
        against: The ``report.json`` of another test on the same classes, or the folder that it is in.
        num_pictures: The worst images that are shown.

    Raises:
        UserError: There is no such report.
    """

    priority = 'VERY_LOW'

    def __init__(self, against: str | None = None, num_pictures: int = 20) -> None:
        self.against = None if against is None else read_report(Path(against))
        self.num_pictures = num_pictures

    def before_test_epoch(self, runner: Runner) -> None:
        """Forget an earlier test."""
        self.found: dict[str, Objects | maps.Counts] = {}
        self.label_maps: dict[str, tuple[float, LabelMap, LabelMap]] = {}  # of the worst images
        dataset = runner.test_dataloader.dataset
        self.classes = tuple(dataset.metainfo['classes'])
        self.palette = choose_palette(len(self.classes), dataset.metainfo.get('palette'))

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Sequence[BaseDataElement] = ()
    ) -> None:
        """Keep what was predicted."""
        for sample in outputs:
            if 'pred_sem_seg' in sample and 'gt_sem_seg' in sample:
                self.add_map(sample)
            elif 'pred_instances' in sample:
                self.found[sample.img_path] = objects_of(sample, self.classes)
            else:
                raise UserError(
                    'A report is on objects, or on label maps with their ground truth; the test predicts '
                    f'{", ".join(sample.keys())}.'
                )

    def add_map(self, sample: BaseDataElement) -> None:
        """Count the pixels of an image, and keep its label maps as long as it is among the worst."""
        truth, found = (each.data[0].cpu().numpy() for each in (sample.gt_sem_seg, sample.pred_sem_seg))
        counts = self.found[sample.img_path] = maps.count(sample.img_path, truth, found, len(self.classes))
        both = (LabelMap(each, self.classes, self.palette) for each in (truth, found))
        self.label_maps[sample.img_path] = (maps.rate_image(counts)['mIoU'], *both)
        if len(self.label_maps) > self.num_pictures:
            del self.label_maps[max(self.label_maps, key=lambda path: self.label_maps[path][0])]

    def after_test_epoch(self, runner: Runner, metrics: Mapping[str, float] | None = None) -> None:
        """Judge what all processes predicted, and write the files."""
        parts = all_gather_object((self.found, self.label_maps))
        if not is_main_process():
            return
        found = {path: each for own, _ in parts for path, each in own.items()}
        label_maps = {path: each for _, own in parts for path, each in own.items()}
        if not found:
            runner.logger.warning('no report: the test predicted nothing')
            return
        if isinstance(next(iter(found.values())), Objects):
            cases = self.cases(runner, found)
            report = objects.judge(list(cases.values()), self.classes)
            threshold = report['threshold']
            pairs = {path: (case.truth, case.found.select(threshold)) for path, case in cases.items()}
        else:
            report = maps.judge(list(found.values()), self.classes)
            pairs = {path: (truth, found) for path, (_, truth, found) in label_maps.items()}
        report['metrics'] = {name: float(value) for name, value in (metrics or {}).items()}
        report['checkpoint'] = str(runner._load_from)
        self.write(runner, report, pairs)

    def cases(self, runner: Runner, found: Mapping[str, Objects]) -> dict[str, objects.Case]:
        """Return the images with what is on them, as the dataset says."""
        dataset, cases = runner.test_dataloader.dataset, {}
        for i in range(len(dataset)):
            info = dataset.get_data_info(i)
            if info['img_path'] in found:
                cases[info['img_path']] = read_case(info['img_path'], info['instances'], found[info['img_path']])
        return cases

    def write(self, runner: Runner, report: dict[str, Any], pairs: Mapping[str, tuple[Result, Result]]) -> None:
        """Write the JSON and the page, and say where they are."""
        folder = Path(runner.log_dir)
        write_text(json.dumps(report, indent=1), folder / REPORT)
        worst = [row for row in report['images'] if row['path'] in pairs][: self.num_pictures]
        if report['kind'] == OBJECTS and find_spec('supervision') is None:
            runner.logger.warning("the report shows no images: pip install 'convnext-dense[predict]' draws them")
            worst = []
        pictures = [(row, self.picture(row['path'], pairs[row['path']])) for row in worst]
        curves = draw_training(Path(report['checkpoint']).parent, folder / 'curves.png')
        write_page(report, pictures, curves, self.against, folder / 'report.html')
        runner.logger.info(f'report      {folder / "report.html"}')

    def picture(self, path: str, pair: tuple[Result, Result]) -> bytes:
        """Return a JPEG of an image: what is right on the left, what was predicted on the right."""
        image = read_image(Path(path))
        left, right = (draw(image, result, self.palette) for result in pair)
        line = np.full((len(image), 4, 3), 255, np.uint8)
        return cv2.imencode('.jpg', np.hstack([left, line, right]))[1].tobytes()


def read_case(path: str, instances: Sequence[Mapping], found: Objects) -> objects.Case:
    """Return an image with what a dataset of MMDetection says is on it."""
    boxes = np.array([each['bbox'] for each in instances], np.float32).reshape(-1, 4)
    labels = np.array([each['bbox_label'] for each in instances], np.int64)
    has_masks = found.rles is not None and (not instances or any(each.get('mask') for each in instances))
    rles = [as_rle(each.get('mask'), found.size) for each in instances] if has_masks else None
    truth = Objects(boxes, np.ones(len(boxes), np.float32), labels, found.size, found.classes, rles)
    return objects.Case(path, truth, np.array([bool(each['ignore_flag']) for each in instances], bool), found)


def as_rle(outline: Any, size: tuple[int, int]) -> dict:
    """Return a mask as run lengths, from polygons or from run lengths of either kind; an empty one from nothing."""
    if isinstance(outline, Mapping):
        counts = outline['counts']
        runs = counts if isinstance(counts, list) else decode_counts(counts)
        if tuple(outline['size']) != tuple(size) or sum(runs) != size[0] * size[1]:
            came = f'of size {outline["size"]} with {sum(runs)} pixels'
            raise UserError(f'A mask of the ground truth is {came}, and its image of {list(size)}.')
        return coco_mask.frPyObjects(dict(outline, counts=runs), *size)
    return coco_mask.merge(coco_mask.frPyObjects(outline or [[0.0] * 6], *size))


def read_report(path: Path) -> dict[str, Any]:
    """Return the report of another test.

    Raises:
        UserError: There is none at that place.
    """
    file = path / REPORT if path.is_dir() else path
    if path.is_dir() and not file.is_file():  # the work dir of a test has a folder for each
        file = max(path.glob(f'*/{REPORT}'), key=lambda each: each.stat().st_mtime, default=file)
    try:
        report = json.loads(file.read_text(encoding='utf-8'))
        if not isinstance(report, dict) or not report.keys() >= {'kind', 'classes', 'by_class'}:
            raise ValueError
        return report
    except (OSError, ValueError) as error:
        raise UserError(f'{file} is no report to compare with. Write one with convnext-dense report.') from error


def draw_training(work_dir: Path, file: Path) -> bytes | None:
    """Return the curves of the training that left its log in a folder; None where there are none."""
    rows = [row for row in read_scalars(sorted(work_dir.glob('*/vis_data/scalars.json'))) if 'step' in row]
    if not any('loss' in row for row in rows):
        return None
    draw_curves(rows, CURVES, file)
    return file.read_bytes()


def report(config: str | os.PathLike, checkpoint: str, **options: Any) -> dict:
    """Evaluate a checkpoint as the config says, write ``report.html`` and ``report.json``, and return the metrics.

    Args:
        config: Config file of a detector or a segmentor.
        checkpoint: File with the weights of the whole model.
        **options: Of :func:`~convnext_dense.train.run.test`; ``against`` is another report, or the folder of one.

    Raises:
        UserError: A mistake of the user.
    """
    return test(config, checkpoint, report=True, **options)
