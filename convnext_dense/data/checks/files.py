"""Checks whether folders and image files are there and whole, and the words that all checks share."""

import os
from collections.abc import Iterable, Sequence, Sized
from pathlib import Path

from convnext_dense.compat.errors import UserError, shorten
from convnext_dense.data.checks.remembered import look_at
from convnext_dense.data.pictures import image_size

TAIL_BYTES = 4096  # some cameras append to a JPEG; its end marker is looked for in so many bytes


# Where the configs look for a public data set, by a part of its paths.
COCO_PLACES = (
    'data/coco/annotations/instances_train2017.json',
    'data/coco/annotations/instances_val2017.json',
    'data/coco/train2017/',
    'data/coco/val2017/',
)
ADE20K_PLACES = tuple(
    f'data/ade/ADEChallengeData2016/{kind}/{split}/'
    for kind in ('images', 'annotations')
    for split in ('training', 'validation')
)
LAYOUTS = {
    'train2017': ('COCO', COCO_PLACES),
    'val2017': ('COCO', COCO_PLACES),
    'ADEChallengeData2016': ('ADE20K', ADE20K_PLACES),
}


def check_folder(folder: str | os.PathLike, what: str, option: str, key: str) -> None:
    """Raise unless the folder is there."""
    if not os.path.isdir(folder):
        raise UserError(f'{what} folder not found: {in_full(folder)}, from {option}. {where_to_put(folder, key)}')


def where_to_put(path: str | os.PathLike, key: str) -> str:
    """Say where data is looked for, and how to name another place."""
    elsewhere = (
        f'For data in another place: --cfg-options {key}.data_root=/path/to/the/data/ '
        "(likewise the other loaders, and the evaluators' ann_file)."
    )
    for mark, (name, places) in LAYOUTS.items():
        if mark in os.fspath(path):
            lines = ''.join(f'\n  {place}' for place in places)
            return f'The configs expect {name} as{lines}\nLink it there (ln -s). {elsewhere}'
    return f'Correct data_root, ann_file or data_prefix in the config. {elsewhere}'


def check_present(paths: Sequence[str], what: str, key: str) -> None:
    """Look for files, with one listing per folder instead of a question per file."""
    listings: dict[str, set[str]] = {}
    missing = []
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in listings:
            listings[folder] = {entry.name for entry in os.scandir(folder)} if os.path.isdir(folder) else set()
        if name not in listings[folder]:
            missing.append(path)
    if not missing:
        return
    folder, name = os.path.split(missing[0])
    there = sorted(listings[folder])
    similar = [other for other in there if Path(other).stem.lower() == Path(name).stem.lower()]
    if '\\' in missing[0]:
        hint = f'{missing[0]} has backslashes, which separate folders on Windows alone; write slashes'
    elif similar:
        hint = f'Instead of {name} there is {similar[0]}: names must agree letter by letter, suffix included'
    else:
        hint = f'The folder {folder} holds {shorten(there, 5) if there else "nothing, or does not exist"}'
    raise UserError(
        f'{share(missing, paths)} {what} are missing: {shorten(missing, 5)}. {hint}. '
        f'Add the files, or correct the folders and suffixes in {key}.'
    )


def check_files(paths: Sequence[str], what: str) -> list[tuple[int, int] | None]:
    """Return width and height of each image, None where its header does not tell them.

    Raises:
        UserError: The first or last bytes of a file show that it is no whole image.
    """
    headers = look_at(paths, read_header, what)
    broken = [f'{path} ({defect})' for path, (defect, _) in zip(paths, headers, strict=True) if defect]
    if broken:
        raise UserError(
            f'{share(broken, paths)} {what} are broken: {shorten(broken, 5)}. '
            'Copy or download them again, or take them out of the data set.'
        )
    return [tuple(size) if size else None for _, size in headers]


def read_header(path: str) -> list:
    """Return what is wrong with an image file, or None, and its width and height, or None."""
    return [find_defect(path), image_size(Path(path))]


def find_defect(path: str) -> str | None:
    """Say what is wrong with a picture file, judged by its first and last bytes."""
    with open(path, 'rb') as stream:
        head = stream.read(64)
        stream.seek(max(0, os.fstat(stream.fileno()).st_size - TAIL_BYTES))
        tail = stream.read()
    defects = {
        'empty': not head,
        'only zeros where it should begin': not any(head),
        'a web page, not a picture': head.lstrip(b'\xef\xbb\xbf \t\r\n').startswith(b'<'),
        'a Git LFS pointer, not the picture: git lfs pull': head.startswith(b'version https://git-lfs'),
        'a JPEG that is cut short': head.startswith(b'\xff\xd8') and b'\xff\xd9' not in tail,
        'a PNG that is cut short': head.startswith(b'\x89PNG') and b'IEND' not in tail,
    }
    return next((defect for defect, is_so in defects.items() if is_so), None)


def in_full(path: str | os.PathLike) -> str:
    """Name a path, and where that is."""
    path = os.fspath(path)
    return path if os.path.isabs(path) else f'{path} (that is {os.path.abspath(path)})'


def share(part: Sized, whole: Sized) -> str:
    """Say how many of how many."""
    return f'{len(part)} of {len(whole)}'


def listed(names: Iterable) -> str:
    """Name them all."""
    return ', '.join(repr(name) for name in names)


def some(items: Iterable) -> str:
    """Name the first few, as Python writes them."""
    return shorten(map(repr, items), 5)
