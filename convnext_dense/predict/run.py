"""The command ``predict``: a model, images of any number, and files with what it finds on them."""

import hashlib
import importlib.util
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
from tqdm import tqdm

from convnext_dense.compat.errors import UserError, shorten
from convnext_dense.compat.files import explained
from convnext_dense.predict.inputs import PAGED, Frame, Source, ask_video, count_pages, find_sources, read_ahead
from convnext_dense.predict.model import load_model
from convnext_dense.predict.output import DRAWN_SCORE, FORMATS, LOG, Output
from convnext_dense.predict.predictor import Predictor
from convnext_dense.predict.tiles import check_tiles, open_image, predict_tiled
from convnext_dense.results import OBJECTS, Objects, Result
from convnext_dense.speed import keep_memory
from convnext_dense.train.screen import tell


def predict(
    model: str | os.PathLike,
    inputs: Sequence[str | os.PathLike],
    out: str | os.PathLike = 'predictions',
    *,
    config: str | os.PathLike | None = None,
    device: str | None = None,
    tta: bool = False,
    cfg_options: Mapping | None = None,
    amp: bool = False,
    **options: Any,
) -> int:
    """Load a model and predict images and videos with it.

    Args:
        model: As for :func:`~convnext_dense.predict.model.load_model`, with the next five.
        inputs: The images.
        out: The folder to write to.
        config: The config of the model.
        device: Where the model runs; by default a GPU where there is one.
        tta: Test-time augmentation.
        cfg_options: Dotted keys of the config to override.
        amp: Mixed precision.
        **options: Of :func:`predict_with`.

    Returns:
        0, or 1 where files could not be predicted, which are named.

    Raises:
        UserError: A mistake of the user.
    """
    keep_memory()
    return predict_with(load_model(model, config, device, tta, cfg_options, amp), inputs, out, **options)


def predict_with(
    model: Predictor,
    inputs: Sequence[str | os.PathLike],
    out: str | os.PathLike,
    *,
    save: Sequence[str] | None = None,
    score: float | None = None,
    keep_all: bool = False,
    classes: Sequence[str] | None = None,
    batch: int = 1,
    tile: int | None = None,
    overlap: float = 0.25,
    workers: int = 2,
) -> int:
    """Predict images and videos, write what was found into a folder, and print how much that was.

    A prediction that was interrupted goes on where it ended, when it is asked for again with the same folder. A file
    that cannot be read does not end it.

    Args:
        model: The model.
        inputs: As for :func:`~convnext_dense.predict.inputs.find_sources`.
        out: The folder.
        save: What to write, of :data:`~convnext_dense.predict.output.FORMATS`; by default its first two.
        score: The lowest score of an object.
        keep_all: Write objects of lower scores too, but draw none.
        classes: The names of the classes that are wanted; by default all.
        batch: Images in one step.
        tile: Side in pixels of the tiles into which larger images are cut; by default none is cut.
        overlap: The part of a tile that its neighbour covers too; without, objects on a border stay in parts.
        workers: Threads that decode images.

    Returns:
        0, or 1 where files could not be predicted, which are named.

    Raises:
        UserError: A mistake of the user.
    """
    if batch < 1 or workers < 1:
        raise UserError(f'--batch and --workers are 1 or more; got {batch} and {workers}.')
    if score is not None and not 0 <= score <= 1:
        raise UserError(f'--score is a number from 0 to 1; got {score}.')
    check_tiles(1 if tile is None else tile, overlap)
    if tile is not None:
        model.check_tiling()
    folder = Path(out)
    root, sources = find_sources(inputs, folder)
    formats = choose_formats(model.kind, save)
    labels = find_labels(model, score, classes)
    drawn = DRAWN_SCORE if score is None else score
    lowest = 0 if keep_all else drawn
    settings = dict(
        model=model.checkpoint, classes=classes, score=lowest, tile=tile, overlap=overlap, tta=model.has_tta,
        modified=os.path.getmtime(model.checkpoint) if os.path.isfile(model.checkpoint) else None,  # not of an address
        config=hashlib.sha256(model.settings.encode()).hexdigest()[:16],  # which options may have changed
        save=sorted(formats), folder=str(root),
    )  # fmt: skip
    with explained(folder), Output(folder, model, formats, settings, drawn) as output:
        left = [source for source in sources if output.done.get(source.name) != source.state]
        if len(left) < len(sources):
            tell(f'{len(sources) - len(left)} of {len(sources)} files were predicted before; the others follow')
        say_what_is_left_out(model, left, tile, overlap)
        read = model.read if tile is None else partial(open_image, model)
        frames = read_ahead(left, read, workers, 2 * batch + workers)
        with tqdm(total=count_frames(left), unit='image', disable=not sys.stderr.isatty(), leave=False) as bar:
            for frame, result in predict_frames(model, frames, batch, tile, overlap):
                bar.update()
                result = result.select(lowest, labels) if isinstance(result, Objects) else result
                if problem := result if isinstance(result, str) else write(output, frame, result):
                    output.add_error(frame, problem)
        output.write_tables()
        print(summary(model, len(sources), output.counts(), list(output.failed.values()), folder, formats))
    return 1 if output.failed else 0


def say_what_is_left_out(model: Predictor, sources: Iterable[Source], tile: int | None, overlap: float) -> None:
    """Name images of several pages, and tell what tiles without an overlap cannot find."""
    paged = [each.path for each in sources if each.path.suffix.lower() in PAGED and count_pages(each.path) > 1]
    if paged and model.channels == 3:
        tell(f'{len(paged)} images have several pages, of which the first is predicted: {shorten(paged)}')
    if tile is not None and overlap == 0 and model.kind == OBJECTS:
        tell('without an overlap, an object on the border of tiles is found in parts, each of which counts as one')


def write(output: Output, frame: Frame, result: Result) -> str | None:
    """Write what was found on an image; return what went wrong, but for a disk that refuses, which ends all."""
    try:
        output.add(frame, result)
    except (OSError, UserError):
        raise
    except Exception as error:  # of a drawing library, on an image of odd kind
        return one_line(error)
    return None


def one_line(error: Exception) -> str:
    """Return an exception in one line."""
    return ': '.join([type(error).__name__, *str(error).strip().splitlines()[:1]])


def choose_formats(kind: str, save: Sequence[str] | None) -> tuple[str, ...]:
    """Return what is written.

    Raises:
        UserError: It cannot be written for this kind of model.
    """
    allowed = FORMATS[kind]
    if unknown := [name for name in save or () if name not in allowed]:
        raise UserError(f'--save {unknown[0]} is not for a model that predicts {kind}; there are {", ".join(allowed)}.')
    formats = tuple(save or allowed[:2])
    if kind == OBJECTS and 'pictures' in formats and importlib.util.find_spec('supervision') is None:
        raise UserError(
            "Pictures are drawn by the package supervision: pip install 'convnext-dense[predict]'; or leave them out, "
            'with --save coco.'
        )
    return formats


def find_labels(model: Predictor, score: float | None, classes: Sequence[str] | None) -> list[int] | None:
    """Return the numbers of the wanted classes; None for all.

    Raises:
        UserError: The model does not know one of them, or it predicts label maps, which have neither scores nor a
            pixel without a class.
    """
    if model.kind != OBJECTS and (score is not None or classes):
        raise UserError(f'--score and --classes choose among objects; {model.name} predicts {model.kind}.')
    if unknown := [name for name in classes or () if name not in model.classes]:
        raise UserError(f'{model.name} knows no class {unknown[0]!r}; it knows {", ".join(model.classes)}.')
    return [model.classes.index(name) for name in classes] if classes else None


def count_frames(sources: Iterable[Source]) -> int:
    """Return how many images files hold, as far as videos tell it."""
    return sum(int(ask_video(each.path, cv2.CAP_PROP_FRAME_COUNT)) if each.is_video else 1 for each in sources)


def predict_frames(
    model: Predictor, frames: Iterable[Frame], batch: int, tile: int | None, overlap: float
) -> Iterator[tuple[Frame, Result | str]]:
    """Yield each image with its prediction, or with what went wrong, in their order."""
    frames = iter(frames)
    while waiting := list(islice(frames, batch)):
        yield from predict_batch(model, waiting, tile, overlap)


def predict_batch(
    model: Predictor, frames: Sequence[Frame], tile: int | None, overlap: float
) -> Iterator[tuple[Frame, Result | str]]:
    """Yield the predictions of a batch; if it fails as a whole, each image is tried alone."""
    whole = [frame for frame in frames if not isinstance(frame.image, UserError)]
    results: dict[int, Result | str] = {}
    try:
        if tile is None and whole:
            results = dict(zip(map(id, whole), model.predict([frame.image for frame in whole]), strict=True))
    except Exception:  # of whatever library; alone, each image says what is wrong
        results = {}
    for frame in frames:
        yield frame, results[id(frame)] if id(frame) in results else predict_alone(model, frame, tile, overlap)


def predict_alone(model: Predictor, frame: Frame, tile: int | None, overlap: float) -> Result | str:
    """Return the prediction of an image, or what went wrong in one line."""
    if isinstance(frame.image, UserError):
        return str(frame.image)
    try:
        return model.predict([frame.image])[0] if tile is None else predict_tiled(model, frame.image, tile, overlap)
    except Exception as error:  # one bad image does not end the others
        return one_line(error)


def summary(
    model: Predictor, count: int, found: Counter[str], failed: Sequence[str], folder: Path, formats: Sequence[str]
) -> str:
    """Return what a prediction is told to have done."""
    unit = '' if model.kind == OBJECTS else ' pixels'
    amounts = ', '.join(f'{name} {number}{unit}' for name, number in found.most_common(10)) or 'nothing'
    lines = [f'{count - len(failed)} of {count} files predicted with {model.name}: {amounts}']
    lines += [f'failed: {line}' for line in failed[:10]]
    if len(failed) > 10:
        lines.append(f'failed: {len(failed) - 10} more; see {folder / LOG}')
    return '\n'.join([*lines, f'written to {folder}: {", ".join(formats)}'])
