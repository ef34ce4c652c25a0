"""The drawn scenes as a folder on disk: parameters go in, a data set in COCO's and ADE20K's layouts comes out.

::

    root/images/{train,val}/000000.png
    root/annotations/instances_{train,val}.json     COCO instances, category ids from 1
    root/labels/{train,val}/000000.png              ADE20K: 0 is unlabelled, classes from 1
    root/shapes.json                                the parameters; written last, it marks the folder as complete
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from pathlib import Path

import cv2
import numpy as np

from convnext_dense.compat.errors import UserError
from convnext_dense.data.shapes import SHAPES, SPLITS, Instance, draw_scene

MARKER = 'shapes.json'
FORMAT_VERSION = 1  # raise it with every change to the drawings or to the layout
NUM_TRAIN = 800
NUM_VAL = 100
SIZE = 128
SIZE_RANGE = (64, 1024)


def write_shapes(
    root: str | os.PathLike, *, seed: int = 0, num_train: int = NUM_TRAIN, num_val: int = NUM_VAL, size: int = SIZE
) -> Path:
    """Write the data set, unless it is there already, and return its folder.

    The folder appears in one step when all of it is written. Several processes may write the same one at once.

    Args:
        root: Folder to write; its parents are created.
        seed: Other seeds give other pictures.
        num_train: Pictures of the split ``train``.
        num_val: Pictures of the split ``val``.
        size: Mean side of the pictures in pixels.

    Raises:
        UserError: A parameter is out of range, or something else is in the folder's place, or it cannot be written.
    """
    parameters = {'version': FORMAT_VERSION, 'seed': seed, 'num_train': num_train, 'num_val': num_val, 'size': size}
    _check_parameters(parameters)
    root = Path(root)
    target = Path(os.path.realpath(root.expanduser()))  # through links: only a real folder can be renamed into place
    try:
        if _is_written(target, parameters):
            return root.expanduser()
        target.parent.mkdir(parents=True, exist_ok=True)
        # A unique name: neither other processes nor the remains of a dead one are in the way.
        draft = target.with_name(f'.{target.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp')
        try:
            _write(draft, parameters)
            _move(draft, target, parameters)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f'cannot write the drawn data set to {root}: {error}. '
            'Choose a folder on a disk that is writable and has room, or mend the cause and start again.'
        ) from error
    return root.expanduser()


def _check_parameters(parameters: dict[str, int]) -> None:
    ranges = {'seed': (0, None), 'num_train': (1, None), 'num_val': (1, None), 'size': SIZE_RANGE}
    for name, (low, high) in ranges.items():
        value = parameters[name]
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        if not is_whole or value < low or (high is not None and value > high):
            allowed = f'from {low} to {high}' if high is not None else f'from {low} up'
            raise UserError(f'{name}={value!r} for the drawn data set: give a whole number {allowed}.')


def _is_written(target: Path, parameters: dict[str, int]) -> bool:
    """Whether the folder is there and holds this very data set.

    Raises:
        UserError: Something else is there.
    """
    advice = 'Nothing was changed. Choose another folder, or remove this one yourself if it is not needed.'
    if target.exists() and not target.is_dir():
        raise UserError(f'{target} is a file, and the drawn data set needs a folder of that name. {advice}')
    if not target.is_dir() or not any(target.iterdir()):
        return False
    found = _read_marker(target)
    if found is None:
        names = sorted(entry.name for entry in target.iterdir())
        some = ', '.join(names[:3]) + (', ...' if len(names) > 3 else '')
        raise UserError(f'{target} holds something else than the drawn data set: {some} (and no {MARKER}). {advice}')
    if found != parameters:
        differences = ', '.join(
            f'{name} {found.get(name)} instead of {value}'
            for name, value in parameters.items()
            if found.get(name) != value
        )
        raise UserError(f'{target} holds a drawn data set with other parameters: {differences}. {advice}')
    return True


def _read_marker(target: Path) -> dict | None:
    try:
        found = json.loads((target / MARKER).read_text(encoding='utf-8'))
        return found if set(found) >= {'version', 'seed'} else None
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _move(draft: Path, target: Path, parameters: dict[str, int]) -> None:
    """Give the finished folder its name, or leave it where another process was faster."""
    try:
        if target.is_dir() and not any(target.iterdir()):
            target.rmdir()  # Windows renames onto nothing, not even onto an empty folder
        draft.rename(target)
    except OSError:
        if not _is_written(target, parameters):
            raise


def _write(folder: Path, parameters: dict[str, int]) -> None:
    for split in SPLITS:
        _write_split(folder, split, parameters)
    (folder / MARKER).write_text(json.dumps(parameters, indent=1) + '\n', encoding='utf-8')


def _write_split(folder: Path, split: str, parameters: dict[str, int]) -> None:
    images, labels, annotations = (folder / part for part in (f'images/{split}', f'labels/{split}', 'annotations'))
    for part in (images, labels, annotations):
        part.mkdir(parents=True, exist_ok=True)
    coco = {
        'info': {'description': f'drawn shapes, split {split}, seed {parameters["seed"]}', 'version': '1.0'},
        'licenses': [],
        'images': [],
        'annotations': [],
        'categories': [{'id': 1 + k, 'name': name, 'supercategory': 'shape'} for k, name in enumerate(SHAPES)],
    }
    for index in range(parameters[f'num_{split}']):
        scene = draw_scene(parameters['seed'], split, index, size=parameters['size'])
        name = f'{index:06d}.png'
        _write_png(images / name, scene.image[..., ::-1])  # OpenCV wants BGR
        _write_png(labels / name, scene.label_map)
        height, width = scene.label_map.shape
        coco['images'].append({'id': 1 + index, 'file_name': name, 'width': width, 'height': height})
        for instance in scene.instances:
            ids = {'id': 1 + len(coco['annotations']), 'image_id': 1 + index}
            coco['annotations'].append(ids | _annotation(instance))
    (annotations / f'instances_{split}.json').write_text(json.dumps(coco, separators=(',', ':')), encoding='utf-8')


def _write_png(path: Path, image: np.ndarray) -> None:
    # Not cv2.imwrite: that only returns False when the disk is full.
    path.write_bytes(cv2.imencode('.png', image)[1].tobytes())


def _annotation(instance: Instance) -> dict:
    """Return the COCO entry of an instance, without its ids; the box is x, y, width, height."""
    rows, columns = (np.flatnonzero(instance.mask.any(axis)) for axis in (1, 0))
    x, y = int(columns[0]), int(rows[0])
    return {
        'category_id': 1 + instance.category,
        'iscrowd': int(instance.iscrowd),
        'area': int(instance.mask.sum()),
        'bbox': [x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1],
        'segmentation': run_lengths(instance.mask) if instance.iscrowd else polygons(instance.mask),
    }


def polygons(mask: np.ndarray) -> list[list[int]]:
    """Return the outlines of a mask (H, W) as COCO polygons ``[x0, y0, x1, y1, ...]``.

    The corners lie on the corners of pixels, so that a polygon spans the mask's pixels entirely.

    >>> polygons(np.pad(np.ones((2, 3), bool), 1))
    [[1, 1, 1, 3, 4, 3, 4, 1]]
    """
    # At twice the size, each pixel corner has a contour point of its own.
    doubled = np.repeat(np.repeat(mask.astype(np.uint8), 2, axis=0), 2, axis=1)
    contours = cv2.findContours(doubled, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]
    corners = [cv2.approxPolyDP((contour + 1) // 2, epsilon=0.6, closed=True) for contour in contours]
    return [outline.ravel().tolist() for outline in corners if len(outline) >= 3]


def run_lengths(mask: np.ndarray) -> dict:
    """Return a mask (H, W) as COCO's uncompressed runs: down the columns, the first run counts zeros.

    >>> run_lengths(np.array([[False, True], [True, True]]))
    {'size': [2, 2], 'counts': [1, 3]}
    """
    flat = mask.ravel(order='F')
    changes = np.flatnonzero(np.diff(np.concatenate([[False], flat])))
    return {'size': list(mask.shape), 'counts': np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()}
