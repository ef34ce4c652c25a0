"""COCO's evaluation by faster-coco-eval."""

import contextlib
import importlib.util
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

AT_ONCE = 10  # categories
NO_LIMIT = 10**6  # detections of an image


@contextlib.contextmanager
def fast_coco_metric() -> Iterator[None]:
    """Let ``CocoMetric`` and ``LVISMetric`` evaluate with faster-coco-eval, where it is installed, to the same digits.

    COCO's predictions go to it without the files that MMDetection writes and reads, and one kind after the other.
    """
    if not all(importlib.util.find_spec(name) for name in ('faster_coco_eval', 'mmdet')):
        yield
        return
    from faster_coco_eval import COCOeval_faster
    from mmdet.evaluation.metrics import coco_metric, lvis_metric

    write, load = coco_metric.CocoMetric.results2json, coco_metric.load

    def results2json(self: Any, results: Sequence[dict], outfile_prefix: str) -> dict[str, Any]:
        if self.outfile_prefix is not None or type(self) is not coco_metric.CocoMetric:
            return write(self, results, outfile_prefix)  # the user wants the files, or LVIS reads them
        kinds = ('bbox', 'proposal', 'segm') if 'masks' in results[0] else ('bbox', 'proposal')
        return {kind: partial(as_annotations, results, self.cat_ids, kind) for kind in kinds}

    faster, lvis = in_parts(COCOeval_faster), lvis_metric.LVISEval  # None where lvis is not installed
    with contextlib.ExitStack() as exchanged:
        for owner, name, value in (
            (coco_metric.CocoMetric, 'results2json', results2json),
            (coco_metric, 'load', lambda given: given() if isinstance(given, partial) else load(given)),
            (coco_metric, 'COCOeval', faster),
            (lvis_metric, 'LVISEval', lvis and of_lvis(lvis, faster)),
        ):
            exchanged.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)
        yield


def of_lvis(slow: type, fast: type) -> type:
    """Return ``LVISEval`` with precision and recall by ``fast``; the evaluation of lvis 0.5 fails with NumPy 2."""

    class FastLVISEval(slow):
        def evaluate(self) -> None:
            """Fill ``eval`` with precision and recall of all categories."""
            from faster_coco_eval import COCO

            truth, found = self.lvis_gt.dataset, self.lvis_dt.dataset
            # An image tells of some categories alone whether they are in it. Predictions of others do not count, and
            # faster-coco-eval fails at them.
            judged = {(each['image_id'], each['category_id']) for each in truth['annotations']}
            judged |= {(each['id'], category) for each in truth['images'] for category in each['neg_category_ids']}
            kept = [each for each in found['annotations'] if (each['image_id'], each['category_id']) in judged]
            judge = fast(COCO(truth), COCO({**found, 'annotations': kept}), self.params.iou_type, lvis_style=True)
            judge.params.imgIds, judge.params.catIds = self.params.img_ids, self.params.cat_ids
            judge.params.maxDets = [self.params.max_dets if self.params.max_dets > 0 else NO_LIMIT]
            judge.evaluate()
            self.eval = {curve: judge.eval[curve][..., 0] for curve in ('precision', 'recall')}
            self.freq_groups = self._prepare_freq_group()

        def accumulate(self) -> None:
            """Do nothing more."""

    return FastLVISEval


def in_parts(base: type) -> type:
    """Return faster-coco-eval's evaluation, in parts of some categories, which takes less memory."""

    class EvaluationInParts(base):
        def evaluate(self) -> None:
            """Fill ``eval`` with precision and recall of all categories."""
            if not self.params.useCats:
                super().evaluate()
                return
            every, found = np.unique(self.params.catIds).tolist(), []
            for start in range(0, len(every), AT_ONCE):
                self.params.catIds = every[start : start + AT_ONCE]
                super().evaluate()
                found.append(self.eval)
                if self.params.iouType == 'segm':
                    for each in self.cocoDt.loadAnns(self.cocoDt.getAnnIds(catIds=self.params.catIds)):
                        each.pop('rle', None)  # its decoded mask
            self.params.catIds = every
            for curve, axis in dict(precision=2, scores=2, recall=1).items():  # the axis of the categories
                self.eval[curve] = np.concatenate([each[curve] for each in found], axis)
            self.dt_dataset.clean()
            for predictions in (self.cocoDt.dataset['annotations'], self.cocoDt.anns, self.cocoDt.imgToAnns):
                predictions.clear()  # CocoMetric would keep them while the next kind comes

    return EvaluationInParts


def as_annotations(results: Sequence[dict], cat_ids: Sequence[int], kind: str) -> list[dict[str, Any]]:
    """Return the predictions of ``CocoMetric`` for its images as COCO annotations of a kind."""
    annotations = []
    for i, result in enumerate(results):
        corners, is_mask = result['bboxes'].astype(float), kind == 'segm'  # double precision, as MMDetection subtracts
        sizes = corners[:, 2:] - corners[:, :2]
        scores = result.get('mask_scores', result['scores']) if is_mask else result['scores']
        for place, label in enumerate(result['labels'].tolist()):
            box = [*corners[place, :2].tolist(), *sizes[place].tolist()]
            found = dict(
                image_id=result.get('img_id', i), bbox=box, score=float(scores[place]), category_id=cat_ids[label]
            )
            if is_mask:
                found['segmentation'] = result['masks'][place]
            annotations.append(found)
    return annotations
