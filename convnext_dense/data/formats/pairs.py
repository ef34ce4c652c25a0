"""Images and label maps, which go together by their names and by the folders above them."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from convnext_dense.compat.errors import UserError, shorten
from convnext_dense.data.records import IMAGE_SUFFIXES, JPEG, bare_name, find_files, is_label_map, split_lists, split_of

MANY = 10  # files of one name; of more, those are compared that share a folder's name
# Words of a file or folder: pictures of labels, or numbers of objects. They count where nothing better is there.
NOT_CLASSES = re.compile(
    r'(?:^|[_\-/])(colou?rs?|colou?r_?maps?|instance_?ids|instances?|panoptic|polygons|vis|overlays?|segmentationobject)'
    r'(?=[_\-/]|$)',
    re.I,
)


class Side:
    """The image files of one kind, by name.

    Attributes:
        root: The folder that they lie in.
        files: In a fixed order.
    """

    def __init__(self, root: Path, files: Iterable[Path]) -> None:
        self.root, self.files = root, list(files)
        self.by_name: dict[str, list[Path]] = {}
        self.folders: dict[Path, Counter[str]] = {}
        self.splits: dict[Path, str] = {}
        for file in self.files:
            self.by_name.setdefault(bare_name(file), []).append(file)
            self.folders[file] = Counter(file.relative_to(root).parts[:-1])
            self.splits[file] = split_of(file, root)


@dataclass
class Pairing:
    """What goes together."""

    pairs: list[tuple[Path, Path]] = field(default_factory=list)  # an image and its label map
    unclear: dict[Path, list[Path]] = field(default_factory=dict)  # a file -> the several that it fits equally well
    images: list[Path] = field(default_factory=list)  # those without a label map
    label_maps: list[Path] = field(default_factory=list)  # those without an image

    def notes(self) -> list[str]:
        """Return a line on the images, and one on the label maps, that have no partner."""
        alone = {'images that have no label map': self.images, 'label maps that have no image': self.label_maps}
        return [f'left out: {len(files)} {what}: {shorten(files, 3)}' for what, files in alone.items() if files]

    def check(self) -> None:
        """Raise a :class:`UserError` where files fit several."""
        for file, others in self.unclear.items():
            raise UserError(
                f'{file} fits several files equally well: {shorten(others, 3)}. An image has one label map, and a '
                'label map one image: if each holds one object, draw them into one; if they are of different kinds, '
                'name the folders with --images DIR --labels DIR.'
            )


def find_sides(root: Path, images: Path | None = None, labels: Path | None = None) -> tuple[Side, Side]:
    """Return the images and the label maps in a folder, or in the two that the user names."""
    if images and labels:
        return Side(images, find_files(images, IMAGE_SUFFIXES)), Side(labels, find_files(labels, IMAGE_SUFFIXES))
    files = list(find_files(root, IMAGE_SUFFIXES))
    # A folder that holds everything tells nothing, whatever its name.
    common = Path(os.path.commonpath([file.parent for file in files])) if files else root
    kinds = {file: is_label_map(file, common) for file in files}
    drawn = {(file.parent, bare_name(file)) for file in files if kinds[file] and file.suffix.lower() not in JPEG}
    photographs = [file for file in files if kinds[file] and file.suffix.lower() in JPEG]
    if not all(kinds.values()):  # there are images elsewhere
        photographs = [file for file in photographs if (file.parent, bare_name(file)) in drawn]
    if drawn:
        kinds |= {file: 'mask' in file.stem.lower() for file in photographs}
    return Side(root, (f for f in files if not kinds[f])), Side(root, (f for f in files if kinds[f]))


def find_pairs(root: Path, images: Path | None = None, labels: Path | None = None) -> Pairing:
    """Return images with their label maps, whose names agree but for suffix and affixes such as ``_mask``.

    Of several of a name the nearest one is meant: in the same split, of classes, below folders of the same names. A
    label map goes to the image that it is nearest to, and to no other.

    Args:
        root: The folder of both.
        images: The folder of the images, where the names of the folders do not tell it.
        labels: The folder of the label maps.
    """
    ours, theirs = find_sides(root, images, labels)
    ranks: dict[Path, dict[Path, tuple]] = {image: {} for image in ours.files}
    nearest: dict[Path, tuple] = {}
    for image in ours.files:
        for label_map in candidates(image, ours, theirs):
            ranks[image][label_map] = rank = distance(image, label_map, ours, theirs)
            nearest[label_map] = min(rank, nearest.get(label_map, rank))
    alone = [file for file in theirs.files if file not in nearest and not NOT_CLASSES.search(file.stem)]
    found, taken = Pairing(label_maps=alone), {}
    for image, own in ranks.items():
        own = {label_map: rank for label_map, rank in own.items() if rank == nearest[label_map]}
        best = [label_map for label_map, rank in own.items() if rank[:-1] == min(own.values())[:-1]]
        if len(best) > 1:
            found.unclear[image] = best
        elif best:
            taken.setdefault(best[0], []).append(image)
        else:
            found.images.append(image)
    found.pairs = [(fitting[0], label_map) for label_map, fitting in taken.items()]
    found.unclear |= {label_map: fitting for label_map, fitting in taken.items() if len(fitting) > 1}
    return found


def candidates(image: Path, ours: Side, theirs: Side) -> Iterator[Path]:
    """Yield the label maps of an image's name that are of no other split."""
    found = theirs.by_name.get(bare_name(image), [])
    if len(found) > MANY:
        shared = [[file for file in found if folder in theirs.folders[file]] for folder in ours.folders[image]]
        found = min(filter(None, shared), key=len, default=found)
    split = ours.splits[image]
    return (file for file in found if not (split and theirs.splits[file]) or split == theirs.splits[file])


def distance(image: Path, label_map: Path, ours: Side, theirs: Side) -> tuple:
    """Return how far a label map is from an image; the first number that differs decides."""
    mine, other = ours.folders[image], theirs.folders[label_map]
    stem = label_map.stem.lower()
    return (
        ours.splits[image] != theirs.splits[label_map],
        bool(NOT_CLASSES.search('/'.join([*other, stem]))),
        'trainids' not in stem,
        sum(((mine - other) + (other - mine)).values()),
        label_map.suffix.lower() in JPEG,
        image.stem != label_map.stem,  # tells images of similar names apart, and not label maps of one image
    )


def explain(root: Path, images: Path | None = None, labels: Path | None = None) -> str:
    """Say why no image of a folder has a label map; empty where there are no images, or nothing like label maps."""
    ours, theirs = find_sides(root, images, labels)
    if not (ours.files and theirs.files):
        return ''
    return (
        f' There are {len(ours.files)} images, such as {ours.files[0]}, and {len(theirs.files)} label maps, such as '
        f'{theirs.files[0]}, but no names agree. A label map has the name of its image; where each holds one object, '
        'draw those of an image into one.'
    )


def read_lists(path: Path) -> dict[tuple[str, ...], str]:
    """Return the split of each image that lists such as ``train.txt`` name, by the end of its path without suffix.

    Those for segmentation count before others, and those for training and validation before the rest.
    """
    lists = split_lists(path)
    lists = [each for each in lists if each[1].parent.name.lower() == 'segmentation'] or lists
    splits = {}
    for split, _, lines in sorted(lists, key=lambda each: each[0] != 'test'):
        for line in lines:
            for name in (line, line.split()[0]):  # alone, or before a flag or its label map
                parts = name.replace('\\', '/').strip('/').split('/')
                splits[(*parts[:-1], without_suffix(parts[-1]))] = split
    return splits


def without_suffix(name: str) -> str:
    """Return the name of an image file without its suffix; other dots stay."""
    return name[: -len(Path(name).suffix)] if name.lower().endswith(IMAGE_SUFFIXES) else name


def listed_split(image: Path, splits: Mapping[tuple[str, ...], str]) -> str:
    """Return the split in which lists name an image; '' where they do not."""
    parts = image.with_name(without_suffix(image.name)).parts
    return next((splits[parts[i:]] for i in range(len(parts)) if parts[i:] in splits), '')
