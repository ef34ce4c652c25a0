"""The formats in which people have their data: one table, and the choice among its rows."""

from collections import Counter
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from convnext_dense.compat.errors import UserError, printable
from convnext_dense.data.formats import coco, labelme, listed, masks, pairs, voc, yolo
from convnext_dense.data.records import Collection, find_files

ARCHIVES = ('.zip', '.tar', '.gz', '.tgz', '.bz2', '.xz', '.7z', '.rar')


class Format(NamedTuple):
    """A row of the table."""

    title: str  # what it is called
    find: Callable[..., Iterable[Path]]  # returns the files of the format at a path
    read: Callable[..., Collection]  # returns the data set at a path
    has_objects: bool = True  # it has objects with boxes; the others have label maps


FORMATS = {
    'coco': Format('COCO JSON', coco.find_annotations, coco.read),
    'voc': Format('Pascal VOC XML', voc.find, voc.read),
    'yolo': Format('YOLO', yolo.find, yolo.read),
    'labelme': Format('LabelMe JSON', labelme.find_annotations, labelme.read),
    'masks': Format('label maps', masks.find, masks.read, has_objects=False),
    'listed': Format('lists of label maps', listed.find_lists, listed.read, has_objects=False),
}


def describe(path: Path) -> str:
    """Say which kinds of files a folder has most of; nothing of a file."""
    kinds = Counter(file.suffix.lower() or 'other' for file in find_files(path, ['']))
    named = [f'{number} {kind}' for kind, number in kinds.most_common(4)]
    return f' Its files: {", ".join(named)}.' if named else ''


def say_found(row: Format, *places: Path | None) -> str:
    """Say what files of a format are at a path, and in the folders of label maps; empty where there are none."""
    names = [printable(file.name) for file in islice(row.find(*places), 4)]
    return f'{row.title}: {", ".join(names[:3])}{", ..." * (len(names) > 3)}' if names else ''


def recognise(
    path: Path,
    name: str | None = None,
    wants_objects: bool | None = None,
    images: Path | None = None,
    labels: Path | None = None,
) -> str:
    """Return the name of the format of the data at a path.

    Args:
        path: A file or a folder.
        name: The user's choice.
        wants_objects: The data is for a detector; False: for a segmentor, which takes label maps where there are some.
        images: The folder of the images of label maps.
        labels: The folder of the label maps.

    Raises:
        UserError: There is no such file or format, no data in a known format, or several kinds of it.
    """
    if not path.exists():
        raise UserError(f'The data {path} does not exist. Correct the path.')
    if path.suffix.lower() in ARCHIVES and path.is_file():
        raise UserError(f'{path} is an archive. Unpack it, and give the folder.')
    if name is not None and name not in FORMATS:
        raise UserError(f'--format {name!r} is not known. Allowed: {", ".join(FORMATS)}.')
    if labels is not None:
        name = name or 'masks'
    places = {'masks': (images, labels)}
    asked = [name] if name else FORMATS
    found = {each: text for each in asked if (text := say_found(FORMATS[each], path, *places.get(each, ())))}
    if not found and (file := voc.find_cvat(path)):
        raise UserError(f'{file} is "CVAT for images" or "for video". Export from CVAT as COCO 1.0 or Pascal VOC 1.1.')
    if not found:
        raise UserError(
            f'{path} holds no data in {f"the format {name}" if name else "a known format"}.{describe(path)} Known are '
            'COCO JSON, Pascal VOC XML, YOLO (data.yaml or labels/*.txt), LabelMe JSON, and images with label maps '
            '(--images DIR --labels DIR, where the names of the folders do not tell which is which). Export it as one '
            'of these.' + (pairs.explain(path, images, labels) if path.is_dir() else '')
        )
    suitable = {each for each in found if wants_objects is None or FORMATS[each].has_objects == wants_objects}
    chosen = suitable or set(found)
    if len(chosen) > 1:
        readings = '\n'.join(f'  --format {each:8} {found[each]}' for each in found)
        raise UserError(f'{path} can be read in several ways. Choose one:\n{readings}')
    return chosen.pop()
