"""Checks of pictures and label maps for semantic segmentation."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from mmengine import fileio
from PIL import Image

from convnext_dense.compat.errors import UserError, shorten
from convnext_dense.data.checks.files import check_files, check_folder, check_present, listed, share
from convnext_dense.data.checks.remembered import look_at
from convnext_dense.data.pictures import UNREADABLE
from convnext_dense.data.records import IMAGE_SUFFIXES, find_files

IGNORED = 255


def check_segmentation(
    image_dir: str | os.PathLike,
    label_dir: str | os.PathLike | None,
    *,
    num_classes: int | None = None,
    img_suffix: str = '.jpg',
    seg_map_suffix: str = '.png',
    reduce_zero_label: bool = False,
    ignore_index: int = IGNORED,
    names_file: str | os.PathLike | None = None,
    key: str = 'train_dataloader.dataset',
) -> list[str]:
    """Check pictures and their label maps, which have the same names but for the suffix.

    Args:
        image_dir: Folder of the pictures, searched with all its folders.
        label_dir: Folder of the label maps, or None for pictures alone.
        num_classes: Classes of the label maps; None checks no values.
        img_suffix: End of a picture's name.
        seg_map_suffix: End of a label map's name.
        reduce_zero_label: 0 is unlabelled, and the classes count from 1.
        ignore_index: Value that is allowed beside the classes.
        names_file: Text file with the names to use, one a line, without suffix; else all pictures are used.
        key: Where the dataset stands in the config, for the advice in the messages.

    Returns:
        Notes: what is allowed but worth a look.

    Raises:
        UserError: Something would stop the run, or spoil it in silence.
    """
    check_folder(image_dir, 'image', f'{key}.data_prefix.img_path', key)
    if label_dir is not None:
        check_folder(label_dir, 'label map', f'{key}.data_prefix.seg_map_path', key)
    names = _read_names(names_file, key) if names_file else _find_names(image_dir, img_suffix, key)
    pictures = [os.path.join(image_dir, name + img_suffix) for name in names]
    if names_file:
        check_present(pictures, f'images named in {names_file}', key)
    sizes = check_files(pictures, 'images')
    if label_dir is None:
        return []
    label_maps = [os.path.join(label_dir, name + seg_map_suffix) for name in names]
    check_present(label_maps, f'label maps of the images in {image_dir}', key)
    check_files(label_maps, 'label maps')
    found = look_at(label_maps, read_values, 'label maps')
    for picture, size, label_map, (own, _) in zip(pictures, sizes, label_maps, found, strict=True):
        if size is not None and list(size) != list(own):
            raise UserError(
                f'{label_map} is {own[0]}x{own[1]} (width x height), and its picture {picture} is {size[0]}x{size[1]} '
                'once loaded, EXIF rotation included. Make the label map at the size of its picture.'
            )
    values = {label_map: numbers for label_map, (_, numbers) in zip(label_maps, found, strict=True)}
    notes = [] if names_file else _other_suffixes(image_dir, img_suffix, key)
    if num_classes is None:
        return [*notes, f'{key} names no classes: the values of the label maps were not checked.']
    _check_values(values, num_classes, reduce_zero_label, ignore_index, key)
    return notes


def _other_suffixes(image_dir: str | os.PathLike, suffix: str, key: str) -> list[str]:
    """Return a note on images that the dataset does not find."""
    others = [file.name for file in find_files(Path(image_dir), IMAGE_SUFFIXES) if not file.name.endswith(suffix)]
    if not others:
        return []
    return [
        f'{image_dir}: {len(others)} images do not end in {suffix!r} and are not used: {shorten(others, 5)}. '
        f'`convnext-dense train CONFIG --data FOLDER` uses images of any suffix; {key}.img_suffix takes one.'
    ]


def _read_names(names_file: str | os.PathLike, key: str) -> list[str]:
    if not os.path.isfile(names_file):
        raise UserError(f'{names_file} not found: the list of names that {key}.ann_file gives. Correct the path.')
    names = [line.strip() for line in Path(names_file).read_text(encoding='utf-8').splitlines()]
    if not any(names):
        raise UserError(f'{names_file} is empty: write one name a line, without suffix.')
    return names


def _find_names(image_dir: str | os.PathLike, suffix: str, key: str) -> list[str]:
    found = list(fileio.list_dir_or_file(os.fspath(image_dir), list_dir=False, recursive=True))
    pictures = sorted(name.removesuffix(suffix) for name in found if name.endswith(suffix))
    if not pictures:
        suffixes = listed(dict.fromkeys(os.path.splitext(name)[1] for name in sorted(found))) if found else 'no files'
        raise UserError(
            f'{image_dir} holds no picture whose name ends in {suffix!r}; it has {suffixes}. '
            f"Set img_suffix='....' in {key}, or correct data_prefix.img_path."
        )
    return pictures


def read_values(label_map: str) -> tuple[tuple[int, int], list[int]]:
    """Return width and height of a label map, and its values.

    Raises:
        UserError: It cannot be read, or has more than one channel.
    """
    try:
        with Image.open(label_map) as opened:
            labels = np.asarray(opened)  # of a palette picture: the indices
    except UNREADABLE as error:
        raise UserError(f'label map {label_map} cannot be read: {error}. Write it again, as a PNG.') from error
    if labels.ndim != 2:
        raise UserError(
            f'{label_map} is a colour picture, shape {labels.shape}: a label map has one channel, with the number of '
            'the class in each pixel. Map the colours to class numbers and write grey (or palette) PNGs.'
        )
    if labels.dtype == np.uint8:  # five times as fast as a sort
        values = np.flatnonzero(np.bincount(labels.ravel(), minlength=256))
    else:
        values = np.unique(labels)
    return labels.shape[::-1], [int(value) for value in values]


def _check_values(
    values: Mapping[str, list[int]], num_classes: int, reduce_zero_label: bool, ignore_index: int, key: str
) -> None:
    first = int(reduce_zero_label)
    classes = set(range(first, first + num_classes))
    ignored = {0, IGNORED} if reduce_zero_label else {IGNORED, ignore_index}
    setting = f'{num_classes} classes, reduce_zero_label={reduce_zero_label}'
    allowed = f'{first} to {first + num_classes - 1}, and {" and ".join(map(str, sorted(ignored)))} for unlabelled'
    seen = set().union(*values.values())
    if seen == {0, IGNORED} and not reduce_zero_label and num_classes > 1:
        raise UserError(
            f'the {len(values)} label maps hold the values 0 and 255 only, and 255 is ignored: class 1 would '
            'never be learned. Write the class numbers, 0 and 1, in the place of black and white.'
        )
    wrong = {label_map: set(found) - classes - ignored for label_map, found in values.items()}
    wrong = {label_map: found for label_map, found in wrong.items() if found}
    if wrong:
        label_map, found = next(iter(wrong.items()))
        cure = 'Correct the label maps, or the classes in the config.'
        if num_classes == 1 and not reduce_zero_label:
            cure = "One class leaves nothing to tell apart: name the background too, as classes=('background', ...)."
        elif not reduce_zero_label and max(seen - ignored) == num_classes:
            cure = f'If 0 means unlabelled and the classes count from 1, set reduce_zero_label=True in {key}.'
        raise UserError(
            f'{label_map} holds the value {shorten(sorted(found), 5)}; allowed are {allowed} ({setting}). '
            f'{share(wrong, values)} label maps have such values. {cure}'
        )
    if not seen & classes:
        raise UserError(
            f'the {len(values)} label maps have no labelled pixel, only {shorten(sorted(seen), 5)}; the '
            f'classes are {allowed} ({setting}). Set reduce_zero_label=False in {key} if 0 is a class.'
        )
