"""Where predictions go: pictures, label files and one table for all images.

``images.jsonl`` in the output folder has a line for each image that is done, whose other files were written before it.
A prediction that was interrupted goes on behind the last whole line, and the tables are written from it at the end.
"""

import csv
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from convnext_dense.compat.errors import UserError
from convnext_dense.compat.files import replaced
from convnext_dense.predict.inputs import Frame, Source, ask_video
from convnext_dense.results import LABEL_MAPS, OBJECTS, LabelMap, Objects, Result

if TYPE_CHECKING:
    from convnext_dense.predict.model import Model

LOG = 'images.jsonl'
# what can be written of objects and of label maps; the first two are written where nothing else is asked for
FORMATS = {OBJECTS: ('pictures', 'coco', 'csv', 'yolo'), LABEL_MAPS: ('pictures', 'maps', 'csv')}
CSV_COLUMNS = {OBJECTS: ('score', 'x1', 'y1', 'x2', 'y2'), LABEL_MAPS: ('pixels',)}
DRAWN_SCORE = 0.3  # where no other one is asked for
MOST_PIXELS, MOST_SIDE = 2**25, 2**15  # of a picture; JPEG has sides up to 65,500
MOST_SPEED = 1000  # frames a second of a video; the codec refuses some higher ones
OPACITY = 0.45  # of masks and label maps in pictures


def draw(image: np.ndarray, result: Result, palette: Sequence[Sequence[int]]) -> np.ndarray:
    """Return an image (H, W, 3), BGR, with what was predicted; of other channels the first is shown in grey."""
    if image.shape[2] != 3:
        image = image[..., :1].repeat(3, axis=2)
    image = np.ascontiguousarray(image.clip(0, 255).astype(np.uint8))
    if isinstance(result, LabelMap):
        colours = np.array([*palette, (0, 0, 0)], np.uint8)[:, ::-1]  # black for pixels without a class
        shown = colours[np.minimum(result.labels, len(palette))]
        return cv2.addWeighted(shown, OPACITY, image, 1 - OPACITY, 0)
    if not len(result):
        return image
    return annotate(image, result, palette)


def annotate(image: np.ndarray, objects: Objects, palette: Sequence[Sequence[int]]) -> np.ndarray:
    """Return an image (H, W, 3), BGR, with masks, boxes, class names and scores drawn by supervision."""
    import supervision

    found = objects.to_supervision()
    colour = supervision.ColorPalette([supervision.Color(*map(int, each)) for each in palette])
    thickness = supervision.calculate_optimal_line_thickness(image.shape[1::-1])
    scale = supervision.calculate_optimal_text_scale(image.shape[1::-1])
    texts = [f'{name} {score:.2f}' for name, score in zip(objects.names, objects.scores, strict=True)]
    if objects.rles is not None:
        image = supervision.MaskAnnotator(colour, opacity=OPACITY).annotate(image, found)
    image = supervision.BoxAnnotator(colour, thickness).annotate(image, found)
    label = supervision.LabelAnnotator(colour, text_scale=scale, text_thickness=thickness, text_padding=3)
    return label.annotate(image, found, texts)


def yolo_lines(objects: Objects) -> str:
    """Return objects as lines of a YOLO label file: the class, then the box or the outline in parts of the image.

    The outline is that of a mask's largest part; the format has no holes and no second part.
    """
    height, width = objects.size
    scale = np.array([width, height] * 2, np.float64)
    lines = []
    for i, (label, box) in enumerate(zip(objects.labels, objects.boxes / scale, strict=True)):
        outline = np.array([])
        if objects.masks is not None:
            outline = largest_outline(objects.masks[i]) / scale[:2]
        middle_and_size = np.concatenate([(box[:2] + box[2:]) / 2, box[2:] - box[:2]])
        numbers = outline.ravel() if len(outline) else middle_and_size
        lines.append(' '.join([str(label), *(f'{number:.6g}' for number in numbers)]))
    return ''.join(f'{line}\n' for line in lines)


def largest_outline(mask: np.ndarray) -> np.ndarray:
    """Return the outline (N, 2), x and y in pixels, of the largest part of a mask (H, W); none of a line of pixels."""
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    largest = max(outlines, key=cv2.contourArea, default=None)
    if largest is None or cv2.contourArea(largest) == 0:
        return np.zeros((0, 2))
    return largest[:, 0] + 0.5  # the middles of the pixels


def reduce(image: np.ndarray, result: Result) -> tuple[np.ndarray, Result]:
    """Return a very large image and its prediction in a size that can be drawn; masks are then left out."""
    height, width = image.shape[:2]
    step = max(math.ceil(math.sqrt(height * width / MOST_PIXELS)), math.ceil(max(height, width) / MOST_SIDE))
    small = image[::step, ::step]  # an array, also of a file that is read in windows
    if step == 1:
        return small, result
    if isinstance(result, LabelMap):
        return small, replace(result, labels=result.labels[::step, ::step])
    return small, replace(result, boxes=result.boxes / step, size=small.shape[:2], given_masks=None)


def read_rows(log: Path) -> Iterator[dict]:
    """Yield the settings, then what a log has for each image."""
    with log.open(encoding='utf-8') as stream:
        yield from map(json.loads, stream)


def read_images(folder: Path) -> Iterator[dict]:
    """Yield the last line of each image in a folder's log, numbered from 1, without those that failed or began anew."""
    latest: dict[str, dict[int, int]] = {}
    for place, row in enumerate(read_rows(folder / LOG)):
        if 'file_name' in row and 'is_video' not in row:
            own, frame = latest.setdefault(row['file_name'], {}), row.get('frame', 0)
            if own and frame <= next(reversed(own)):  # the file began anew
                own.clear()
            own[frame] = place
    wanted = {place for own in latest.values() for place in own.values()}
    number = 0
    for place, row in enumerate(read_rows(folder / LOG)):
        if place in wanted and 'width' in row:
            number += 1
            yield dict(row, image_id=number)


def result_name(stem: str, frame: int | None, suffix: str) -> str:
    """Return the name of a file with results, below the folder of its kind."""
    return f'{stem}{suffix}' if frame is None else f'{stem}_{frame:06d}{suffix}'


class Output:
    """The files of a prediction in one folder, in some :data:`FORMATS`; objects from ``drawn_score`` on are drawn.

    The ``settings`` are what the predictions depend on; a folder with predictions of other settings is refused.

    Raises:
        UserError: The folder holds other predictions.
    """

    def __init__(
        self, folder: Path, model: 'Model', formats: Sequence[str], settings: Mapping[str, Any], drawn_score: float
    ) -> None:
        self.folder, self.model, self.formats, self.drawn_score = folder, model, formats, drawn_score
        self.video: Source | None = None  # of which frames are being added
        self.failed: dict[Source, str] = {}  # the first problem of each file that is not done
        self.writer: cv2.VideoWriter | None = None
        self.log = folder / LOG
        if folder.is_dir() and any(folder.iterdir()) and not self.log.exists():
            raise UserError(
                f'{folder} holds files that no prediction wrote. Give --out an empty folder, or one that is not there.'
            )
        folder.mkdir(parents=True, exist_ok=True)
        self.done = self.resume(settings)
        self.stream = self.log.open('a', encoding='utf-8')

    def __enter__(self) -> 'Output':
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()

    def resume(self, settings: Mapping[str, Any]) -> dict[str, dict]:
        """Return the last state in which each file was done, and cut the log behind its last whole line."""
        if not self.log.exists():
            with replaced(self.log) as draft:
                draft.write_text(json.dumps(settings) + '\n', encoding='utf-8')
            return {}
        with self.log.open('rb+') as stream:
            content = stream.read()
            stream.truncate(content.rfind(b'\n') + 1)
        before, *rows = read_rows(self.log)
        if different := [key for key in settings if before.get(key) != settings[key]]:
            raise UserError(
                f'{self.folder} holds predictions of another run: its {different[0]} is {before.get(different[0])!r}, '
                f'not {settings[different[0]]!r}. Give another --out, or delete {self.log}.'
            )
        return {row['file_name']: {key: row.get(key) for key in ('modified', 'stem')} for row in rows}

    def add(self, frame: Frame, result: Result) -> None:
        """Write the files of one image, then its line."""
        if self.video not in (None, frame.source):
            self.finish_video()
        if frame.number is not None:
            self.video = frame.source
        if 'pictures' in self.formats:
            self.add_picture(frame, result)
        if 'maps' in self.formats:
            kind = np.uint8 if result.labels.dtype == np.uint8 else np.uint16
            self.write(frame, 'labels', '.png', cv2.imencode('.png', result.labels.astype(kind))[1].tobytes())
        if 'yolo' in self.formats:
            self.write(frame, 'labels', '.txt', yolo_lines(result).encode())
        found = dict(pixels=result.areas()) if isinstance(result, LabelMap) else dict(objects=result.to_coco())
        height, width = result.size
        own = {} if frame.number is not None else frame.source.state
        self.note(frame, width=width, height=height, **own, **found)

    def add_picture(self, frame: Frame, result: Result) -> None:
        """Draw what was predicted: a JPEG for an image, a video for a video."""
        shown = result.select(self.drawn_score) if isinstance(result, Objects) else result
        picture = draw(*reduce(frame.image, shown), self.model.palette)
        if frame.number is None:
            self.write(frame, 'pictures', '.jpg', cv2.imencode('.jpg', picture)[1].tobytes())
            return
        height, width = picture.shape[:2]  # the codec cuts a side that is odd
        picture = cv2.copyMakeBorder(picture, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
        if self.writer is None:
            file = self.place('pictures', result_name(frame.source.stem, None, '.mp4'))
            speed = min(ask_video(frame.source.path, cv2.CAP_PROP_FPS) or 25, MOST_SPEED)
            code = cv2.VideoWriter_fourcc(*'mp4v')
            self.writer = cv2.VideoWriter(str(file), code, speed, picture.shape[1::-1])
        self.writer.write(picture)

    def finish_video(self) -> None:
        """Note that all frames of the video are done, if none failed."""
        if self.writer is not None:
            self.writer.release()
        if self.video is not None and self.video not in self.failed:
            self.note(Frame(self.video, None, None), is_video=True, **self.video.state)
        self.video = self.writer = None

    def add_error(self, frame: Frame, error: str) -> None:
        """Note that an image could not be predicted."""
        place = str(frame.source.path) if frame.number is None else f'{frame.source.path}, frame {frame.number}'
        self.failed.setdefault(frame.source, error if str(frame.source.path) in error else f'{place}: {error}')
        self.note(frame, error=error)

    def note(self, frame: Frame, **values: Any) -> None:
        """Write a line."""
        name = dict(file_name=frame.source.name)
        if frame.number is not None:
            name['frame'] = frame.number
        self.stream.write(json.dumps(name | values) + '\n')
        self.stream.flush()

    def write(self, frame: Frame, folder: str, suffix: str, content: bytes) -> None:
        """Write a file for an image; a later one with the same name takes its place."""
        self.place(folder, result_name(frame.source.stem, frame.number, suffix)).write_bytes(content)

    def place(self, folder: str, name: str) -> Path:
        """Return the path of a file for an image; folders are made."""
        file = self.folder / folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        return file

    def counts(self) -> Counter[str]:
        """Return how many objects of each class were found, or how many pixels it has."""
        counts: Counter[str] = Counter()
        for image in read_images(self.folder):
            counts.update(self.model.classes[found['category_id'] - 1] for found in image.get('objects', ()))
            counts.update(image.get('pixels', {}))
        return counts

    def write_tables(self) -> None:
        """Write the files of all images: ``predictions.json``, ``predictions.csv`` and ``labels/classes.txt``."""
        self.finish_video()
        self.stream.close()
        if 'coco' in self.formats:
            self.write_coco()
        if 'csv' in self.formats:
            self.write_csv()
        if 'yolo' in self.formats or 'maps' in self.formats:
            folder = self.folder / 'labels'
            folder.mkdir(exist_ok=True)
            (folder / 'classes.txt').write_text(''.join(f'{name}\n' for name in self.model.classes), encoding='utf-8')

    def write_coco(self) -> None:
        """Write the objects as results in COCO's format, with the names of their files; one a line."""
        with replaced(self.folder / 'predictions.json') as draft, draft.open('w', encoding='utf-8') as stream:
            separator = '[\n'
            for image in read_images(self.folder):
                names = {key: image[key] for key in ('file_name', 'frame') if key in image}
                for found in image.get('objects', ()):
                    stream.write(separator + json.dumps(found | names | dict(image_id=image['image_id'])))
                    separator = ',\n'
            stream.write('[]\n' if separator.startswith('[') else '\n]\n')

    def write_csv(self) -> None:
        """Write a line for each object, with its box as x1, y1, x2, y2; or for each class of a label map."""
        with (
            replaced(self.folder / 'predictions.csv') as draft,
            draft.open('w', encoding='utf-8', newline='') as stream,
        ):
            table = csv.writer(stream)
            table.writerow(['file_name', 'frame', 'class', *CSV_COLUMNS[self.model.kind]])
            for image in read_images(self.folder):
                place = [image['file_name'], image.get('frame', '')]
                for found in image.get('objects', ()):
                    left, top, width, height = found['bbox']
                    corners = [left, top, round(left + width, 3), round(top + height, 3)]
                    table.writerow([*place, self.model.classes[found['category_id'] - 1], found['score'], *corners])
                for name, pixels in image.get('pixels', {}).items():
                    table.writerow([*place, name, pixels])
