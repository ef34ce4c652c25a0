"""What a user names to be predicted: image files, folders, patterns, lists and videos, one image after the other."""

import glob
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageSequence

from convnext_dense.compat.errors import UserError
from convnext_dense.data.pictures import TIFF, silent
from convnext_dense.data.records import IMAGE_SUFFIXES, find_files
from convnext_dense.train.screen import tell

ANIMATED = '.gif'  # an image, or a video
PAGED = (*TIFF, '.webp')  # images of which the first page is read
COUNTED = '.avi'  # a video that counts its frames; in others frames may be cut off on purpose, or the number is a guess
MOST_LOST = 1000  # frames in a row that cannot be read, behind which a video is over
VIDEO_SUFFIXES = ('.mp4', '.avi', '.mov', '.mkv', '.webm', '.m4v', '.mpg', '.mpeg', '.wmv')
SUBFILE, COPY_OR_MASK = 254, 0b101  # tag of a TIFF file's page, and its bits
LIST_SUFFIX = '.txt'
CLASS_LIST = Path('classes')  # of labels/classes.txt, which no image may have


class Source(NamedTuple):
    """A file to predict."""

    path: Path
    name: str  # its path below the folder that all files share, with slashes
    stem: str  # beginning of its results' names: the name, without its suffix if all files differ without theirs

    @property
    def state(self) -> dict[str, Any]:
        """What its results depend on: when the file was last written, and the stem of their names."""
        return dict(modified=self.path.stat().st_mtime, stem=self.stem)

    @property
    def is_video(self) -> bool:
        """Whether it is a video, or an image that moves."""
        suffix = self.path.suffix.lower()
        return suffix in VIDEO_SUFFIXES or (suffix == ANIMATED and count_pages(self.path) > 1)


def find_sources(inputs: Iterable[str | os.PathLike], out: Path | None = None) -> tuple[Path, list[Source]]:
    """Return the folder that all files that are named share, and the files, each once.

    Args:
        inputs: Files, folders, patterns such as ``photos/*.jpg``, and lists: ``.txt`` files with one of those a line.
        out: The folder to write to, whose files are none to predict.

    Raises:
        UserError: One of them is not there, or is neither an image nor a video.
    """
    if not all(str(given).strip() for given in inputs):
        raise UserError('An input is empty. It is an image, a video, a folder, a pattern or a .txt list.')
    found = [path for given in inputs for path in expand(str(given))]
    paths = list({os.path.abspath(path): path for path in reversed(found)}.values())[::-1]
    paths = [path for path in paths if out is None or out.absolute() not in path.absolute().parents]
    if not paths:
        raise UserError('The inputs name no image and no video outside of the folder to write to.')
    absolute = [Path(os.path.abspath(path)) for path in paths]
    root = Path(os.path.commonpath([path.parent for path in absolute]))
    names = [path.relative_to(root) for path in absolute]
    short = [name.with_suffix('') for name in names]
    stems = short if len({*short, CLASS_LIST}) == len(short) + 1 else names
    rows = zip(paths, names, stems, strict=True)
    return root, [Source(path, name.as_posix(), stem.as_posix()) for path, name, stem in rows]


def read_list(file: Path) -> list[str]:
    """Return the inputs that a text file names, one a line.

    Raises:
        UserError: It is no text, or names nothing.
    """
    try:
        lines = [line.strip() for line in file.read_text(encoding='utf-8-sig').splitlines()]
    except UnicodeDecodeError as error:
        raise UserError(f'The list {file} is not text in UTF-8 ({error.reason}). Save it so.') from error
    lines = [line for line in lines if line]
    if not lines:
        raise UserError(f'The list {file} is empty. It has a file, a folder or a pattern on each line.')
    if nested := [line for line in lines if line.lower().endswith(LIST_SUFFIX)]:
        raise UserError(f'The list {file} names another list, {nested[0]}. Give both to the command.')
    return lines


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
        return [file for line in read_list(path) for file in expand(line, path.parent)]
    if path.suffix.lower() not in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES):
        kinds = ', '.join((*IMAGE_SUFFIXES, *VIDEO_SUFFIXES))
        raise UserError(f'{path} is neither an image nor a video: {path.suffix or "no suffix"} is none of {kinds}.')
    return [path]


class Frame(NamedTuple):
    """An image to predict."""

    source: Source  # the file that it comes from
    number: int | None  # of the frame of a video, from 0; None for an image file
    image: np.ndarray | UserError  # the pixels (H, W, channels), or the error that came in their place


def read_ahead(
    sources: Iterable[Source], read: Callable[[Path], np.ndarray], workers: int = 2, ahead: int = 8
) -> Iterator[Frame]:
    """Yield the images of files in their order; threads decode the next ones meanwhile, at most ``ahead``.

    ``read`` returns the pixels of an image file, or raises a :class:`UserError`.
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
    """Yield the frames of a video (H, W, 3), BGR, that can be read, then an error where it is damaged.

    It is where frames can be read behind one that cannot, and where an AVI file counts more than can be read. In other
    files the number may be a guess, or count frames that were trimmed: it is told where it is larger.
    """
    path, promised = source.path, int(ask_video(source.path, cv2.CAP_PROP_FRAME_COUNT))
    video = cv2.VideoCapture(str(path))
    number = end = count = 0  # the next frame, the one behind the last that was read, and how many were read
    while number < end + MOST_LOST and (number < promised or number == end):
        image = video.read()[1]
        if image is not None:
            yield Frame(source, number, image)
            end, count = number + 1, count + 1
        number += 1
    video.release()
    if count == 0:
        yield Frame(source, None, UserError(f'The video {path} cannot be read.'))
    elif count < end or (count < promised and path.suffix.lower() == COUNTED):
        problem = f'The video {path} is damaged: {count} of {max(end, promised)} frames can be read.'
        yield Frame(source, end, UserError(problem))
    elif count < promised:
        tell(f'{path} has {count} frames, where it promises {promised}: it was trimmed, or is cut short')


def count_pages(path: Path) -> int:
    """Return how many pictures an image file holds; smaller copies and masks in a TIFF file are none."""
    try:
        with silent(), Image.open(path) as image:
            if image.format != 'TIFF':
                return getattr(image, 'n_frames', 1)
            return sum(not page.tag_v2.get(SUBFILE, 0) & COPY_OR_MASK for page in ImageSequence.Iterator(image))
    except Exception:  # whatever a damaged file makes of Pillow; the model's own reader will say it
        return 1


def ask_video(path: Path, what: int) -> float:
    """Return what a video says of itself: ``cv2.CAP_PROP_FPS`` or ``cv2.CAP_PROP_FRAME_COUNT``; 0 where it does not."""
    video = cv2.VideoCapture(str(path))
    value = video.get(what)
    video.release()
    return value if 0 < value < 1e9 else 0
