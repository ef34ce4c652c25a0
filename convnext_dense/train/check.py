"""A report on data before it is trained on: what is wrong with it, what is worth a look, and images that leak."""

import contextlib
import hashlib
import html
import itertools
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS
from PIL import Image

from convnext_dense import configs
from convnext_dense.compat.errors import UserError, shorten
from convnext_dense.compat.files import write_text
from convnext_dense.configs import SPLITS
from convnext_dense.data import check_split, find_misfits, import_data, open_wrappers
from convnext_dense.data.annotation import FaultError, number
from convnext_dense.data.pictures import read_image
from convnext_dense.data.records import EXAMPLES
from convnext_dense.train.config import fit_classes
from convnext_dense.train.page import image, listed, page_text

NEAR = 2  # bits of 64 in which the hashes of the same image differ after it was stored anew
THUMBNAIL = 320  # pixels
MOST_NAMED = 20  # pairs of images in the report


def check_data(
    source: str | os.PathLike,
    out: str | os.PathLike | None = None,
    as_json: str | os.PathLike | None = None,
    page: str | os.PathLike | None = None,
    cfg_options: Mapping | None = None,
    **data_options,
) -> str:
    """Check the data of a config, or data in any format that can be imported, and return a report.

    Images that are the same in two splits, byte by byte or to the eye (difference hash, package imagehash), make a
    validation too good; within a split they are counted.

    Args:
        source: A config, or data as for :func:`~convnext_dense.data.importing.import_data`.
        out: Where to write copies of the annotations without what no training can use; data alone is imported.
        as_json: A file for the report as JSON.
        page: A file for the report as one HTML page, with pictures of what is wrong.
        cfg_options: Dotted keys to override in a config.
        **data_options: Of ``import_data``.

    Raises:
        UserError: The data has errors, which the message lists after the notes; or options of data alone come with a
            config.
    """
    is_config = Path(source).suffix == '.py' or not Path(source).exists()
    given = [f'--{name.removeprefix("data_")}' for name, value in dict(data_options, fix=out).items() if value]
    if is_config and given:
        raise UserError(
            f'{source} is a config, which says itself how its data is read: {shorten(given)} are for a file or '
            'folder of data. Give that, or leave them out.'
        )
    report = report_on_config(source, cfg_options) if is_config else report_on_data(source, out, data_options)
    examples = report.pop('examples', {})
    report['same images'], examples['images in two splits'] = find_same(report.pop('images'))
    if page is not None:
        write_text(page_text(f'The data {source}', page_parts(report, examples)), Path(page))
    if as_json is not None:
        write_text(json.dumps(report, indent=1), Path(as_json))
    lines = [f'note: {note}' for note in [*report['notes'], *report['same images']]]
    if report['errors']:
        raise UserError('\n'.join([*lines, *report['errors']]))
    return '\n'.join([*lines, *report['summary']])


def report_on_config(config: str | os.PathLike, options: Mapping | None) -> dict:
    """Return notes, errors and the images of each split of a config's data."""
    cfg = configs.load_config(config, options)
    notes, errors, sound = fit_classes(cfg), [], []
    splits = [split for split in SPLITS if cfg.get(f'{split}_dataloader')]
    for split in splits:  # one at a time, so that the errors of all are told
        try:
            notes += check_split(cfg, split)
            sound.append(split)
        except UserError as error:
            errors += str(error).split('\n')
    errors += [line for error in find_misfits(cfg, sound) for line in error.split('\n')]
    images = {} if errors else {split: images_of(cfg, split) for split in splits}
    summary = [f'{split}: {len(files)} images' for split, files in images.items()] + ['no errors']
    return {'notes': list(dict.fromkeys(notes)), 'errors': errors, 'images': images, 'summary': summary}


def images_of(cfg: Config, split: str) -> list[str]:
    """Return the image files that the datasets of a split read."""
    found = []
    with configs.model_scope(cfg), contextlib.redirect_stdout(None):  # pycocotools prints what it does
        for _, given in open_wrappers(cfg[f'{split}_dataloader'].dataset):
            dataset = DATASETS.build({**given, 'pipeline': []})
            found += [dataset.get_data_info(i)['img_path'] for i in range(len(dataset))]
    return found


def report_on_data(path: str | os.PathLike, out: str | os.PathLike | None, options: Mapping) -> dict:
    """Return the same for data that is imported, to ``out`` or to a folder that is thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = import_data(path, out or folder, fix=out is not None, **options)
        except UserError as error:
            return {'notes': [], 'errors': str(error).split('\n'), 'images': {}, 'summary': []}
        images = {split: list(map(str, paths)) for split, paths in found.paths.items()}
        report = {'notes': found.notes, 'errors': [], 'images': images, 'examples': dict(found.examples)}
        summary = [line for line in found.describe().splitlines() if not line.startswith('note')]
        written = f'written to  {out}, which import-data and train --data read' if out else 'no errors'
        return {**report, 'summary': [*summary, written]}


def find_same(images: Mapping[str, Sequence[str]]) -> tuple[list[str], list[tuple[Path, None]]]:
    """Return a line for each two splits that share images, and for each split with an image twice; and such images."""
    if find_spec('imagehash') is None:
        return ["images were not compared with each other: pip install 'convnext-dense[data]'"], []
    distinct: dict[str, Sequence[str]] = {}
    for split, files in images.items():  # a test is often that of the validation images
        if files not in distinct.values():
            distinct[split] = files
    with ThreadPoolExecutor() as pool:
        hashes = {split: list(pool.map(hash_image, files)) for split, files in distinct.items()}
    lines, examples = [], []
    for split, found in hashes.items():
        if twice := len(found) - len({digest for digest, _ in found}):
            lines.append(f'{split} has {twice} images twice, byte by byte')
    for (first, ours), (other, theirs) in itertools.combinations(hashes.items(), 2):
        pairs = [(images[first][i], images[other][j]) for i, j in same_pairs(ours, theirs)]
        if pairs:
            named = shorten([f'{a} = {b}' for a, b in pairs], MOST_NAMED)
            examples += [(Path(file), None) for pair in pairs for file in pair]
            lines.append(f'{first} and {other} share {len(pairs)} images, which makes the scores too good: {named}')
    return lines, examples[: 2 * EXAMPLES]


def page_parts(report: Mapping, examples: Mapping[str, Sequence[tuple[Path, object]]]) -> Iterator[str]:
    """Yield the parts of a page: the report, and pictures of the faults."""
    yield listed([*report['errors'], *report['notes'], *report['same images'], *report['summary']])
    for kind, found in examples.items():
        if found:
            yield f'<h2>{html.escape(kind)}</h2>'
        for file, box in found:
            caption = f'<figcaption>{html.escape(file.name)}</figcaption>'
            yield f'<figure>{image(thumbnail(file, box))}{caption}</figure>'


def thumbnail(image: Path, box: object) -> bytes:
    """Return a small picture as the bytes of a PNG, with a red box where one was given that is four numbers."""
    pixels = read_image(image).astype(np.uint8)
    factor = THUMBNAIL / max(pixels.shape[:2])
    small = cv2.resize(pixels, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
    try:
        x, y, w, h = (number(value) * factor for value in box)
        cv2.rectangle(small, (round(x), round(y)), (round(x + w), round(y + h)), (0, 0, 255), 2)
    except (FaultError, TypeError, ValueError):  # no box
        pass
    return cv2.imencode('.png', small)[1].tobytes()


def hash_image(file: str) -> tuple[str, int]:
    """Return the digest of a file's bytes, and its difference hash of 64 bits (imagehash)."""
    from imagehash import dhash

    digest = hashlib.sha1(Path(file).read_bytes(), usedforsecurity=False).hexdigest()
    bits = dhash(Image.fromarray(read_image(Path(file)).astype(np.uint8))).hash.ravel()
    return digest, int.from_bytes(np.packbits(bits).tobytes(), 'big')


def same_pairs(ours: Sequence[tuple[str, int]], theirs: Sequence[tuple[str, int]]) -> list[tuple[int, int]]:
    """Return the places of images that are the same in two lists, to the byte or to a few bits of their hashes."""
    other = np.array([bits for _, bits in theirs], np.uint64)
    pairs = []
    for i, (digest, bits) in enumerate(ours):
        differing = np.unpackbits((other ^ np.uint64(bits)).view(np.uint8).reshape(-1, 8), axis=1).sum(axis=1)
        is_flat = bits in (0, 2**64 - 1)  # an image of one colour, whose hash says nothing
        near = np.flatnonzero(differing <= NEAR).tolist()
        pairs += [(i, j) for j in near if not is_flat or theirs[j][0] == digest]
    return pairs
