"""What a model predicts for an image, in plain arrays."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from supervision import Detections

OBJECTS, LABEL_MAPS = 'objects', 'label maps'  # what a model predicts


@dataclass(frozen=True)
class Objects:
    """The objects that a detector finds on an image, best first.

    Attributes:
        boxes: (N, 4) float32, as x1, y1, x2, y2 in pixels of the image.
        scores: (N,) float32, from 0 to 1.
        labels: (N,) int64, numbers of the classes from 0.
        size: Height and width of the image in pixels.
        classes: The names of all classes.
        given_masks: A mask for each object, as run lengths in COCO's format or as an array (N, H, W) bool; None for a
            detector of boxes alone.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    size: tuple[int, int]
    classes: tuple[str, ...]
    given_masks: list[dict] | np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    @cached_property
    def masks(self) -> np.ndarray | None:
        """The masks, (N, H, W) bool; None for a detector of boxes alone."""
        if not isinstance(self.given_masks, list):
            return self.given_masks
        from pycocotools import mask

        if not self.given_masks:
            return np.zeros((0, *self.size), bool)
        return mask.decode(self.given_masks).transpose(2, 0, 1).astype(bool)

    @cached_property
    def rles(self) -> list[dict] | None:
        """The masks as run lengths in COCO's format; None for a detector of boxes alone."""
        return encode(self.given_masks) if isinstance(self.given_masks, np.ndarray) else self.given_masks

    @property
    def names(self) -> list[str]:
        """The class name of each object."""
        return [self.classes[label] for label in self.labels]

    def take(self, places: Sequence[int] | np.ndarray) -> 'Objects':
        """Return some of the objects, by their places."""
        places = np.asarray(places, dtype=int)
        chosen = (values[places] for values in (self.boxes, self.scores, self.labels))
        masks = self.given_masks
        if masks is not None:
            masks = [masks[place] for place in places] if isinstance(masks, list) else masks[places]
        return Objects(*chosen, self.size, self.classes, masks)

    def select(self, score: float = 0, labels: Sequence[int] | None = None) -> 'Objects':
        """Return the objects with at least this score, of these classes."""
        wanted = self.scores >= score
        if labels is not None:
            wanted &= np.isin(self.labels, labels)
        return self.take(np.flatnonzero(wanted))

    def to_coco(self, image_id: int = 0, category_ids: Sequence[int] | None = None) -> list[dict]:
        """Return the objects as results in COCO's format.

        Args:
            image_id: Of the image.
            category_ids: For each class; from 1 by default.
        """
        ids = category_ids or range(1, len(self.classes) + 1)
        results = []
        for i, (box, score, label) in enumerate(zip(self.boxes.tolist(), self.scores, self.labels, strict=True)):
            left, top, right, bottom = (round(side, 3) for side in box)
            result = dict(image_id=image_id, category_id=ids[label], score=round(float(score), 6))
            result['bbox'] = [left, top, round(right - left, 3), round(bottom - top, 3)]
            if self.rles is not None:
                result['segmentation'] = dict(self.rles[i], counts=self.rles[i]['counts'].decode())
            results.append(result)
        return results

    def to_supervision(self) -> 'Detections':
        """Return the objects as ``supervision.Detections``, which draws, counts and tracks."""
        from supervision import Detections

        data = {'class_name': np.array(self.names, dtype=str)}
        return Detections(self.boxes, mask=self.masks, confidence=self.scores, class_id=self.labels, data=data)


def encode(masks: np.ndarray) -> list[dict]:
    """Return masks (N, H, W) as run lengths in COCO's format."""
    from pycocotools import mask

    return mask.encode(np.asfortranarray(masks.transpose(1, 2, 0), dtype=np.uint8)) if len(masks) else []


@dataclass(frozen=True)
class LabelMap:
    """The class of each pixel of an image.

    Attributes:
        labels: (H, W), numbers of the classes from 0; uint8, or int32 for more than 256 classes.
        classes: The names of all classes.
        palette: A colour (R, G, B) for each class.
    """

    labels: np.ndarray
    classes: tuple[str, ...]
    palette: Sequence[Sequence[int]]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image in pixels."""
        return self.labels.shape

    def areas(self) -> Mapping[str, int]:
        """Return how many pixels each class has that is there, the largest first."""
        counts = np.bincount(self.labels.ravel(), minlength=len(self.classes))
        return {
            self.classes[label]: int(counts[label]) for label in np.argsort(-counts, kind='stable') if counts[label]
        }

    def to_coco(self, image_id: int = 0, category_ids: Sequence[int] | None = None) -> list[dict]:
        """Return the pixels of each class as one mask in COCO's format, with the score 1."""
        return self.to_objects().to_coco(image_id, category_ids)

    def to_objects(self) -> 'Objects':
        """Return the pixels of each class that is there as one object."""
        from pycocotools import mask

        present = np.unique(self.labels)
        rles = [mask.encode(np.asfortranarray(self.labels == label, dtype=np.uint8)) for label in present]
        boxes = np.array([mask.toBbox(rle) for rle in rles], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        scores = np.ones(len(present), np.float32)
        return Objects(boxes, scores, present.astype(np.int64), self.size, self.classes, rles)

    def to_supervision(self) -> 'Detections':
        """Return the pixels of each class as ``supervision.Detections``."""
        return self.to_objects().to_supervision()


Result = Objects | LabelMap
