"""Training, validation and test images: those that the data names, or a seeded draw with a share of each class."""

import random
from collections import Counter
from collections.abc import Sequence

from convnext_dense.compat.errors import UserError
from convnext_dense.data.records import Collection, Picture

VAL_SHARE = 0.2
MOST_VAL = 5000  # as many as COCO's


def complete_splits(collection: Collection, seed: int = 0, draw: bool = True) -> None:
    """Give a collection images to train and to validate; what is done is noted.

    A split that the data names is kept. A single split of whatever name is no split. Without one to validate on, a
    share of the training images is drawn.

    Args:
        collection: The data set.
        seed: Of the draw.
        draw: Draw one where there is none; otherwise the splits stay as they are.

    Raises:
        UserError: There are several splits, and none to train on.
    """
    splits = {name: pictures for name, pictures in collection.splits.items() if pictures}
    notes = collection.notes
    if not splits:
        faults = ' '.join(f'{note}.' for note in collection.faults.notes())
        raise UserError(f'{collection.root} has no image that can be used. {faults}'.rstrip())
    if 'train' not in splits and '' in splits:
        splits['train'] = splits.pop('')
    elif 'train' not in splits and len(splits) == 1 and draw:
        name, splits['train'] = splits.popitem()
        notes.append(f'the data has no training images: the {len(splits["train"])} of {name} are taken')
    elif 'train' not in splits and draw:
        raise UserError(
            f'{collection.root} has the splits {", ".join(splits) or "none"}, and no images to train on. Name one of '
            'them train, or give the file or the folder to train on alone.'
        )
    elif unnamed := splits.pop('', []):
        notes.append(f'left out: {len(unnamed)} images that are in no split, where others are')
    keep_apart(splits, notes)
    if 'val' not in splits and draw and len(splits['train']) > 1:
        splits['train'], splits['val'] = draw_split(splits['train'], seed)
        notes.append(
            f'no validation images: {len(splits["val"])} of the {len(splits["train"]) + len(splits["val"])} images are '
            f'kept for it, a share of each class, chosen with seed {seed}'
        )
    elif 'val' not in splits and draw:
        notes.append('the only image is trained on and validated on, so that the scores say nothing')
    collection.splits = {name: splits[name] for name in ('train', 'val', 'test') if name in splits}


def keep_apart(splits: dict[str, list[Picture]], notes: list[str]) -> None:
    """Leave the images out of the training that others are validated or tested on, unless none would be left."""
    for name in ('val', 'test'):
        held_out = {picture.path for picture in splits.get(name, ())}
        rest = [picture for picture in splits.get('train', ()) if picture.path not in held_out]
        shared = len(splits.get('train', ())) - len(rest)
        if shared and rest:
            splits['train'] = rest
            notes.append(f'left out of train: {shared} images that are in {name} too')
        elif shared:
            notes.append(f'train and {name} are the same {shared} images, so that the scores say nothing')


def draw_split(pictures: Sequence[Picture], seed: int) -> tuple[list[Picture], list[Picture]]:
    """Return images to train and to validate, in their order; each class is in both where it is on several images.

    An image counts for the rarest class on it, as in the first step of iterative stratification (Sechidis et al.,
    ECML 2011). The draw depends on the seed and on the names of the files, not on their order or their place.

    >>> from pathlib import Path
    >>> from convnext_dense.data.records import Thing
    >>> things = [[Thing(int(i % 5 == 0), (0, 0, 1, 1))] for i in range(10)]
    >>> pictures = [Picture(Path(f'{i}.png'), 9, 9, each) for i, each in enumerate(things)]
    >>> [len(part) for part in draw_split(pictures, seed=0)]
    [7, 3]
    """
    frequency = Counter(label for picture in pictures for label in {thing.label for thing in picture.things})
    groups: dict[int, list[Picture]] = {}
    for picture in sorted(pictures, key=lambda picture: (picture.path.name, str(picture.path))):
        labels = {thing.label for thing in picture.things}
        rarest = min(labels, key=lambda label: (frequency[label], label)) if labels else -1
        groups.setdefault(rarest, []).append(picture)
    share = min(VAL_SHARE, MOST_VAL / len(pictures))
    drawn: set[int] = set()
    for label in sorted(groups, key=lambda label: (frequency[label], label)):
        group = groups[label]
        random.Random(f'{seed} {label}').shuffle(group)
        wanted = round(share * len(group)) or int(len(group) > 1)
        drawn.update(map(id, group[:wanted]))
    if not drawn:  # each image has a class of its own
        drawn.add(id(pictures[-1]))
    return [p for p in pictures if id(p) not in drawn], [p for p in pictures if id(p) in drawn]
