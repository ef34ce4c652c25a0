"""How good detections are, and what is wrong with those that are not."""

import contextlib
import importlib.util
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from convnext_dense.results import Objects

FOUND = 0.5  # intersection over union from which on an object is found
BACKGROUND = 0.1  # intersection over union up to which a detection is on no object
NUM_BINS = 10  # of scores
RECALLS = np.linspace(0, 1, 101)  # at which COCO takes the precision
SIZES = {'small': 1, 'medium': 2, 'large': 3}  # COCO's areas -> their place in its table
# Kinds of errors, as TIDE (arXiv 2008.08115) names and counts them.
ERRORS = {
    'class': 'on an object of another class',
    'location': 'on an object of its class, but not exact enough',
    'both': 'neither the right class nor exact enough',
    'duplicate': 'on an object that another detection found',
    'background': 'on no object',
    'missed': 'objects that nothing found, not even of another class or not exactly',
}


class Case(NamedTuple):
    """An image with what is on it and what was found."""

    path: str  # the image file
    truth: Objects  # on it; their scores are 1
    is_crowd: np.ndarray  # (N,) bool, objects that count neither as found nor as missed
    found: Objects  # the detections, best first


class Match(NamedTuple):
    """Which detections of an image found which objects."""

    overlaps: np.ndarray  # (detections, objects), intersection over union; with crowds, over the detection
    object_of: np.ndarray  # (detections,), the object that each found; -1 for none
    is_ignored: np.ndarray  # (detections,) bool, those on crowds alone
    found_by: np.ndarray  # (objects,), the detection that found each; -1 for none


def judge(cases: Sequence[Case], classes: Sequence[str]) -> dict[str, Any]:
    """Return all figures of a report on detections, in types that JSON has."""
    matches = [match(case) for case in cases]
    by_class, threshold = rate_classes(cases, matches, classes)
    for kind, name in (('bbox', 'box'), ('segm', 'mask')):
        if kind == 'bbox' or all(None not in (case.found.rles, case.truth.rles) for case in cases):
            add_average_precision(by_class, evaluate(cases, classes, kind), name, classes)
    return dict(
        kind='objects',
        classes=list(classes),
        num_images=len(cases),
        threshold=threshold,
        by_class=by_class,
        errors=count_errors(cases, matches, len(classes)),
        confusion=confuse(cases, len(classes), threshold).tolist(),
        calibration=calibrate(cases, matches),
        images=rate_images(cases, matches, threshold),
    )


def evaluate(cases: Sequence[Case], classes: Sequence[str], kind: str) -> Any:
    """Return ``COCOeval`` after ``accumulate``, for the kind ``'bbox'`` or ``'segm'``.

    It is that of faster-coco-eval where that is installed, which gives the same digits.
    """
    if importlib.util.find_spec('faster_coco_eval'):
        from faster_coco_eval import COCO
        from faster_coco_eval import COCOeval_faster as COCOeval
    else:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = as_coco(cases, classes)
        truth.createIndex()
        results = [each for i, case in enumerate(cases) for each in case.found.to_coco(image_id=i + 1)]
        evaluation = COCOeval(truth, truth.loadRes(results) if results else COCO(), kind)
        evaluation.params.imgIds = [i + 1 for i in range(len(cases))]
        evaluation.params.catIds = [i + 1 for i in range(len(classes))]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def as_coco(cases: Sequence[Case], classes: Sequence[str]) -> dict:
    """Return what is on the images in COCO's format; image ids, category ids and annotation ids begin with 1."""
    annotations = []
    for i, case in enumerate(cases):
        for each, is_crowd in zip(case.truth.to_coco(image_id=i + 1), case.is_crowd, strict=True):
            outline = each.get('segmentation')
            area = float(coco_mask.area(outline)) if outline else each['bbox'][2] * each['bbox'][3]
            annotations.append(dict(each, id=len(annotations) + 1, iscrowd=int(is_crowd), area=area))
    images = [
        dict(id=i + 1, file_name=case.path, height=case.truth.size[0], width=case.truth.size[1])
        for i, case in enumerate(cases)
    ]
    categories = [dict(id=i + 1, name=name) for i, name in enumerate(classes)]
    return dict(info={}, images=images, annotations=annotations, categories=categories)


def add_average_precision(by_class: Mapping[str, dict], evaluation: Any, name: str, classes: Sequence[str]) -> None:
    """Add COCO's average precision to the figures of each class: of all thresholds, of 0.5, and by size."""
    precision = evaluation.eval['precision'][..., -1]  # (thresholds, recalls, classes, areas, limits) without limits
    for label, each in enumerate(classes):
        row = by_class[each]
        row[f'{name}_AP'] = average(precision[:, :, label, 0])
        row[f'{name}_AP50'] = average(precision[0, :, label, 0])
        row.update({f'{name}_AP_{size}': average(precision[:, :, label, place]) for size, place in SIZES.items()})
        if name == 'box':
            row['curve'] = precision[0, :, label, 0].clip(0).round(4).tolist()


def average(values: np.ndarray) -> float | None:
    """Return the mean of what COCO could count; None where there is no object."""
    counted = values[values > -1]
    return float(counted.mean()) if counted.size else None


def match(case: Case) -> Match:
    """Return which detections found which objects, class by class and best first, as COCO counts them at 0.5."""
    found, truth = case.found, case.truth
    overlaps = intersections(found.boxes, truth.boxes, case.is_crowd)
    object_of, is_ignored = np.full(len(found), -1), np.zeros(len(found), bool)
    found_by = np.full(len(truth), -1)
    same = overlaps * (found.labels[:, None] == truth.labels)
    for i, row in enumerate(same):  # best first
        free = np.where((found_by < 0) & ~case.is_crowd, row, 0)
        if free.size and free.max() >= FOUND:
            # of equal ones COCO takes the last
            object_of[i] = len(free) - 1 - int(free[::-1].argmax())
            found_by[object_of[i]] = i
        else:
            is_ignored[i] = bool((row[case.is_crowd] >= FOUND).any())
    return Match(overlaps, object_of, is_ignored, found_by)


def intersections(boxes: np.ndarray, others: np.ndarray, is_crowd: np.ndarray) -> np.ndarray:
    """Return the intersection over union of boxes (N, 4) with others (M, 4), (N, M); of crowds, over the box."""
    if not len(boxes) or not len(others):
        return np.zeros((len(boxes), len(others)))
    as_coco = (np.concatenate([each[:, :2], each[:, 2:] - each[:, :2]], 1).astype(float) for each in (boxes, others))
    return np.asarray(coco_mask.iou(*as_coco, is_crowd.astype(np.uint8).tolist()))


def average_precision(scores: np.ndarray, is_right: np.ndarray, num_objects: int) -> float:
    """Return the average precision of detections at one threshold, from the precision at 101 recalls, as COCO has it.

    >>> average_precision(np.array([0.9, 0.8]), np.array([True, False]), 1)
    1.0
    """
    if num_objects <= 0:
        return 0.0
    order = np.argsort(-scores, kind='stable')
    right = np.cumsum(is_right[order])
    precision = right / np.arange(1, len(order) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(right / num_objects, RECALLS, side='left')
    return float(np.append(precision, 0)[np.minimum(places, len(precision))].mean())


def rate_classes(
    cases: Sequence[Case], matches: Sequence[Match], classes: Sequence[str]
) -> tuple[dict[str, dict], float]:
    """Return precision, recall and F1 of each class at its best threshold, and the best threshold of all together."""
    labels, scores, is_right = counted_detections(cases, matches)
    of_objects = np.concatenate([case.truth.labels[~case.is_crowd] for case in cases])
    rows = {}
    for label, name in enumerate(classes):
        own = labels == label
        best = best_threshold(scores[own], is_right[own], int((of_objects == label).sum()))
        rows[name] = dict(objects=int((of_objects == label).sum()), detections=int(own.sum()), **best)
    return rows, best_threshold(scores, is_right, len(of_objects))['threshold'] or 0.0


def counted_detections(cases: Sequence[Case], matches: Sequence[Match]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return class, score and whether it found an object, of all detections that are not on crowds."""
    is_counted = ~np.concatenate([each.is_ignored for each in matches])
    labels = np.concatenate([case.found.labels for case in cases])
    scores = np.concatenate([case.found.scores for case in cases])
    is_right = np.concatenate([each.object_of >= 0 for each in matches])
    return labels[is_counted], scores[is_counted], is_right[is_counted]


def best_threshold(scores: np.ndarray, is_right: np.ndarray, num_objects: int) -> dict[str, float | None]:
    """Return the score from which on the F1 of detections is largest, with precision, recall and F1 there."""
    if not is_right.any():
        return dict(threshold=None, precision=0.0, recall=0.0, f1=0.0)
    order = np.argsort(-scores, kind='stable')
    right, taken = np.cumsum(is_right[order]), np.arange(1, len(order) + 1)
    is_last = np.append(np.diff(scores[order]) != 0, True)  # of equal scores all are taken
    f1 = np.where(is_last, 2 * right / (taken + num_objects), 0)
    best = int(f1.argmax())
    return dict(
        threshold=float(scores[order][best]),
        precision=float(right[best] / taken[best]),
        recall=float(right[best] / num_objects),
        f1=float(f1[best]),
    )


def count_errors(cases: Sequence[Case], matches: Sequence[Match], num_classes: int) -> dict[str, dict[str, float]]:
    """Return how many errors of each kind there are, and by how much AP50 would rise without them.

    Detections are counted whatever their score, as TIDE does. A detection of the wrong class or place is mended, if it
    is the best for an object that none found, and left out otherwise; other detections are left out; a missed object is
    no longer asked for.
    """
    rows = [sort_errors(case, each) for case, each in zip(cases, matches, strict=True)]
    labels, scores, is_right = counted_detections(cases, matches)
    is_counted = ~np.concatenate([each.is_ignored for each in matches])
    kinds = np.concatenate([row.kinds for row in rows])[is_counted]
    mended = np.concatenate([row.mended for row in rows])[is_counted]
    objects = np.concatenate([case.truth.labels[~case.is_crowd] for case in cases])
    missed = np.concatenate([row.missed for row in rows])
    amounts = np.bincount(objects, minlength=num_classes)

    plain = mean_ap(labels, scores, is_right, amounts)
    result = {}
    for kind in [each for each in ERRORS if each != 'missed']:
        wrong = kinds == kind
        is_mended = wrong & (mended >= 0)
        taken = ~wrong | is_mended
        better = np.where(is_mended, mended, labels), scores, is_right | is_mended
        without = mean_ap(*(values[taken] for values in better), amounts)
        result[kind] = dict(count=int(wrong.sum()), ap50=without - plain)
    left = amounts - np.bincount(missed, minlength=num_classes)
    without = mean_ap(labels, scores, is_right, left, amounts > 0)
    return result | {'missed': dict(count=len(missed), ap50=without - plain)}


def mean_ap(
    labels: np.ndarray, scores: np.ndarray, is_right: np.ndarray, amounts: np.ndarray, present: np.ndarray | None = None
) -> float:
    """Return the mean average precision at one threshold of detections (N,), of as many objects (classes,).

    The mean is over the classes that are present, (classes,) bool; by default those with objects.
    """
    each = []
    for label in np.flatnonzero(amounts > 0 if present is None else present):
        own = labels == label
        each.append(average_precision(scores[own], is_right[own], amounts[label]))
    return float(np.mean(each)) if each else 0.0


class Errors(NamedTuple):
    """The errors on an image."""

    kinds: np.ndarray  # (detections,), a key of ERRORS; empty where a detection is right or on a crowd
    mended: np.ndarray  # (detections,), the class that a detection has when it is mended; -1 where it cannot be
    missed: np.ndarray  # the classes of the objects that nothing found, in no order


def sort_errors(case: Case, found: Match) -> Errors:
    """Return the kind of each error on an image, by its largest overlaps with objects."""
    real = np.flatnonzero(~case.is_crowd)
    overlaps, labels = found.overlaps[:, real], case.truth.labels[real]
    is_free = found.found_by[real] < 0
    kinds, mended = np.full(len(case.found), '', dtype='<U10'), np.full(len(case.found), -1)
    is_mendable = np.zeros(len(real), bool)
    for i in np.flatnonzero((found.object_of < 0) & ~found.is_ignored):  # best first
        kinds[i], target = kind_of(overlaps[i], labels == case.found.labels[i], is_free)
        if target is not None and is_free[target]:
            mended[i] = -1 if is_mendable[target] else labels[target]
            is_mendable[target] = True
    return Errors(kinds, mended, labels[is_free & ~is_mendable])


def kind_of(overlaps: np.ndarray, is_same: np.ndarray, is_free: np.ndarray) -> tuple[str, int | None]:
    """Return the kind of a wrong detection, and the object that it meant.

    Of the objects (N,) these are the overlaps, whether they have its class, and whether no detection found them.
    """
    if not len(overlaps):
        return 'background', None
    same, other = overlaps * is_same, overlaps * ~is_same
    if BACKGROUND <= same.max() < FOUND:
        return 'location', int(same.argmax())
    if other.max() >= FOUND:
        return 'class', int(other.argmax())
    if (same * ~is_free).max() >= FOUND:
        return 'duplicate', None
    return ('background' if overlaps.max() <= BACKGROUND else 'both'), None


def confuse(cases: Iterable[Case], num_classes: int, threshold: float) -> np.ndarray:
    """Return how often an object of each class (rows) was taken for each class (columns); the last is the background.

    A detection belongs to the object that it overlaps most, from :data:`FOUND` on, whatever their classes are. The best
    detection of an object counts, and none below the threshold.
    """
    table = np.zeros((num_classes + 1, num_classes + 1), int)
    for case in cases:
        found = case.found.select(threshold)
        overlaps = intersections(found.boxes, case.truth.boxes, case.is_crowd)
        is_free = ~case.is_crowd
        for row, label in zip(overlaps, found.labels, strict=True):
            free = np.where(is_free, row, 0)
            if free.size and free.max() >= FOUND:
                is_free[free.argmax()] = False
                table[case.truth.labels[free.argmax()], label] += 1
            elif not (row[case.is_crowd] >= FOUND).any():
                table[num_classes, label] += 1
        np.add.at(table, (case.truth.labels[is_free], num_classes), 1)
    return table


def calibrate(cases: Sequence[Case], matches: Sequence[Match]) -> dict[str, Any]:
    """Return for each range of scores how many detections are right, and the mean difference from what they claim."""
    _, scores, is_right = counted_detections(cases, matches)
    places = np.minimum((scores * NUM_BINS).astype(int), NUM_BINS - 1)
    rows, error = [], 0.0
    for place in range(NUM_BINS):
        own = places == place
        row = dict(low=place / NUM_BINS, high=(place + 1) / NUM_BINS, count=int(own.sum()))
        if own.any():
            row.update(score=float(scores[own].mean()), right=float(is_right[own].mean()))
            error += own.sum() * abs(row['score'] - row['right']) / len(scores)
        rows.append(row)
    return dict(bins=rows, error=float(error))


def rate_images(cases: Sequence[Case], matches: Sequence[Match], threshold: float) -> list[dict[str, Any]]:
    """Return right, wrong and missed of each image at a threshold, the worst image first."""
    rows = []
    for case, each in zip(cases, matches, strict=True):
        taken = (case.found.scores >= threshold) & ~each.is_ignored
        right = int((each.object_of[taken] >= 0).sum())
        wrong, missed = int(taken.sum()) - right, int((~case.is_crowd).sum()) - right
        f1 = 2 * right / (2 * right + wrong + missed) if right + wrong + missed else 1.0
        rows.append(dict(path=case.path, right=right, wrong=wrong, missed=missed, f1=f1))
    return sorted(rows, key=lambda row: (row['f1'], -row['wrong'] - row['missed']))
