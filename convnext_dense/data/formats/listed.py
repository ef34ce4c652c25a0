"""Label maps that JSON files list, one for each split, as ``check-data --fix`` writes them."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from convnext_dense.compat.errors import UserError, shorten
from convnext_dense.data.formats.class_files import ClassNames
from convnext_dense.data.formats.masks import count_all
from convnext_dense.data.formats.meaning import IGNORED, LabelMaps
from convnext_dense.data.records import Picture, find_files, split_of

HEAD = b'{"metainfo": {"classes": '  # as they begin


def find_lists(path: Path) -> Iterator[Path]:
    """Yield the lists at a path, which all begin alike."""
    for file in [path] if path.is_file() else find_files(path, ['.json']):
        if file.suffix.lower() == '.json':
            with file.open('rb') as opened:
                if opened.read(len(HEAD)) == HEAD:
                    yield file


def read(path: Path, fix: bool = False) -> LabelMaps:
    """Return the data set at a path, a list or a folder with such.

    Args:
        path: The file or the folder.
        fix: Leave out what is an error otherwise: label maps that cannot be used, and values without a class.

    Raises:
        UserError: A file is no list, two name other classes, or their label maps cannot be used.
    """
    root = path if path.is_dir() else path.parent
    collection = LabelMaps('lists of label maps', root, [], {}, is_fixed=fix)
    splits = {}
    for file in find_lists(path):
        classes, palette, pairs = read_list(file)
        if collection.classes not in ([], classes):
            raise UserError(f'{file} names other classes than its neighbour. Write both again, from the same data.')
        collection.classes, collection.palette = classes, palette
        splits |= dict.fromkeys(pairs, split_of(file, root))
    pairs, counted = count_all(list(splits), ClassNames(), collection)
    values = sum((each.values for each in counted), Counter())
    if unknown := values.keys() - {*range(len(collection.classes)), IGNORED}:
        why = f'{root}: the label maps hold {shorten(sorted(unknown), 8)}, and the classes count from 0 to '
        collection.give_up(unknown, values, f'{why}{len(collection.classes) - 1}.')
    if fix:
        collection.recode = {value: value for value in values} | dict.fromkeys(collection.lost, IGNORED)
    for pair, each in zip(pairs, counted, strict=True):
        image, label_map = pair
        collection.splits.setdefault(splits[pair], []).append(Picture(image, *each.size, (), label_map))
    return collection


def read_list(file: Path) -> tuple[list[str], list[tuple[int, int, int]], list[tuple[Path, Path]]]:
    """Return classes, their colours, and the images with their label maps, whose paths begin in the file's folder.

    Raises:
        UserError: The file is no such list.
    """
    try:
        content = json.loads(file.read_bytes())
        classes, palette = (content['metainfo'][key] for key in ('classes', 'palette'))
        entries = [
            (file.parent / each['img_path'], file.parent / each['seg_map_path']) for each in content['data_list']
        ]
        return list(map(str, classes)), [tuple(colour) for colour in palette], entries
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(
            f'{file} is no list of label maps ({error!r}). Write it again with check-data --fix.'
        ) from error
