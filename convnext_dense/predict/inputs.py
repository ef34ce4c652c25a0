"""What a user names to be predicted: image files, folders, patterns, lists and videos, one image after the other."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import NamedTuple

import cv2
import numpy as np

from convnext_dense.compat.errors import UserError
from convnext_dense.data.records import IMAGE_SUFFIXES, find_files

VIDEO_SUFFIXES = ('.mp4', '.avi', '.mov', '.mkv', '.webm', '.m4v', '.mpg', '.mpeg', '.wmv')
LIST_SUFFIX = '.txt'


class Source(NamedTuple):
    """A file to predict.

    Attributes:
        path: The file.
        name: Its path below the folder that all files share, with slashes.
        stem: What the names of its results begin with: the name, without its suffix where no other file has that.
    """

    path: Path
    name: str
    stem: str

    @property
    def is_video(self) -> bool:
        """Whether it is a video."""
        return self.path.suffix.lower() in VIDEO_SUFFIXES


def find_sources(inputs: Iterable[str | os.PathLike]) -> list[Source]:
    """Return the files that are named, each once.

    Args:
        inputs: Files, folders, patterns such as ``photos/*.jpg``, and lists: ``.txt`` files with one of those a line.

    Raises:
        UserError: One of them is not there, or is neither an image nor a video.
    """
    paths = list(dict.fromkeys(path for given in inputs for path in expand(str(given))))
    root = Path(os.path.commonpath([path.absolute().parent for path in paths])) if paths else Path()
    names = [path.absolute().relative_to(root) for path in paths]
    shared = Counter(name.with_suffix('') for name in names)
    stems = [name.with_suffix('') if shared[name.with_suffix('')] == 1 else name for name in names]
    return [
        Source(path, name.as_posix(), stem.as_posix()) for path, name, stem in zip(paths, names, stems, strict=True)
    ]


def expand(given: str, folder: Path = Path()) -> list[Path]:
    """Return the files that an input names; a relative path in a list begins in the list's folder."""
    path = folder / given
    if path.is_dir():
        found = list(find_files(path, (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)))
        if not found:
            raise UserError(f'The folder {path} holds no images and no videos ({", ".join(IMAGE_SUFFIXES)}, ...).')
        return found
    if not path.exists() and glob.has_magic(given):
        found = [match for name in sorted(glob.glob(str(path), recursive=True)) for match in expand(name)]
        if not found:
            raise UserError(f'No file matches {given}.')
        return found
    if not path.exists():
        raise UserError(f'{path} does not exist. An input is an image, a video, a folder, a pattern or a .txt list.')
    if path.suffix.lower() == LIST_SUFFIX:
        lines = [line.strip() for line in path.read_text(encoding='utf-8-sig').splitlines()]
        return [file for line in lines if line for file in expand(line, path.parent)]
    if path.suffix.lower() not in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES):
        kinds = ', '.join((*IMAGE_SUFFIXES, *VIDEO_SUFFIXES))
        raise UserError(f'{path} is neither an image nor a video: {path.suffix or "no suffix"} is none of {kinds}.')
    return [path]


class Frame(NamedTuple):
    """An image to predict.

    Attributes:
        source: The file that it comes from.
        number: Of the frame of a video, from 0; None for an image file.
        image: The pixels (H, W, channels), or the error that came in their place.
    """

    source: Source
    number: int | None
    image: np.ndarray | UserError


def read_ahead(
    sources: Iterable[Source], read: Callable[[Path], np.ndarray], workers: int = 2, ahead: int = 8
) -> Iterator[Frame]:
    """Yield the images of files in their order; threads decode the next ones meanwhile.

    Args:
        sources: The files.
        read: Returns the pixels of an image file, or raises a :class:`UserError`.
        workers: Threads that decode image files.
        ahead: How many images wait at most.
    """
    waiting: Queue[Future | Frame | BaseException | None] = Queue(maxsize=ahead)
    with ThreadPoolExecutor(workers) as pool:

        def fill() -> None:
            try:
                for source in sources:
                    if source.is_video:
                        for frame in read_video(source):
                            waiting.put(frame)
                    else:
                        waiting.put(pool.submit(read_one, source, read))
                waiting.put(None)
            except BaseException as error:  # it ends the loop below
                waiting.put(error)

        Thread(target=fill, daemon=True).start()
        while (item := waiting.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item.result() if isinstance(item, Future) else item


def read_one(source: Source, read: Callable[[Path], np.ndarray]) -> Frame:
    """Return the image of a file, or the error in its place."""
    try:
        return Frame(source, None, read(source.path))
    except UserError as error:
        return Frame(source, None, error)


def read_video(source: Source) -> Iterator[Frame]:
    """Yield the frames of a video (H, W, 3), BGR; an error where it has none."""
    video = cv2.VideoCapture(str(source.path))
    number = 0
    while (image := video.read()[1]) is not None:
        yield Frame(source, number, image)
        number += 1
    video.release()
    if number == 0:
        yield Frame(source, None, UserError(f'The video {source.path} cannot be read.'))


def ask_video(path: Path, what: int) -> float:
    """Return what a video says of itself: ``cv2.CAP_PROP_FPS`` or ``cv2.CAP_PROP_FRAME_COUNT``; 0 where it does not."""
    video = cv2.VideoCapture(str(path))
    value = video.get(what)
    video.release()
    return value if 0 < value < 1e9 else 0
