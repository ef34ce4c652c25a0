"""What the values of label maps mean: from a file of classes, from names in order, or from the values themselves."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from convnext_dense.compat.errors import UserError, shorten
from convnext_dense.data.formats.class_files import ClassNames
from convnext_dense.data.records import Collection

IGNORED = 255
VOID = ('void', 'ignore', 'ignored', 'unlabeled', 'unlabelled')
BACKGROUND = (*VOID, 'background', '_background_', 'bg', 'other', 'others', 'none', 'unknown')
FAR_APART = 16  # values of grey; numbers of classes lie closer together
FEW_STRAYS = 3  # values far from others that form no area, where a value may be of thin lines
NEAR_SHARE = 0.5  # of the pixels of a class close to another one, which JPEG could have made of it
STRAY_SHARE = 0.01  # of the white pixels of black and white maps; other values are on fewer by mistake
AREA_SHARE = 0.1  # of the pixels of a class that lie in squares of 2 x 2; at the edges of JPEG there are none


@dataclass
class LabelMaps(Collection):
    """A data set of label maps."""

    # value or colour (R, G, B) in the files -> class, 255 for unlabelled; None where the values are classes
    recode: Mapping[object, int] | None = None
    reduce_zero_label: bool = False  # 0 is unlabelled, and the classes count from 1
    is_named: bool = False  # the user's names have been given to the values
    is_fixed: bool = False  # values without a class become unlabelled, instead of an error
    lost: set[object] = field(default_factory=set)  # such values

    def give_up(self, unknown: Iterable[object], values: Counter, why: str) -> None:
        """Take values that have no class out of those that are counted, and note it.

        Raises:
            UserError: The data set is not fixed; the message is ``why``.
        """
        if not self.is_fixed:
            raise UserError(f'{why} If they are mistakes, check-data --fix OUT makes their pixels unlabelled.')
        self.lost.update(unknown)
        total, lost = values.total(), sum(values.pop(value) for value in unknown)
        named = shorten(sorted(self.lost), 8)
        self.notes.append(f'values without a class become unlabelled: {named}, {lost / total:.2%} of the pixels')


def give_meaning(
    collection: LabelMaps, values: Counter, areas: Counter, known: ClassNames, is_lossy: bool = False
) -> None:
    """Give the classes of a data set and the meaning of its values.

    Args:
        collection: To be completed.
        values: Value or colour -> pixels.
        areas: Value or colour -> pixels at the corner of a square of 2 x 2 that are alike.
        known: What a file or the user says of the classes.
        is_lossy: The files are JPEG, which changes values.

    Raises:
        UserError: There are values that no class has, or several readings.
    """
    is_colour = any(isinstance(value, tuple) for value in values)
    table = known.colours if is_colour else known.numbers
    are_known = all(value in (table or range(len(known.names))) for value in values)
    snapped = {} if are_known else snap(values, areas, is_lossy)
    clear = Counter()
    for value, count in values.items():
        clear[snapped.get(value, value)] += count
    if known.numbers or known.colours:
        use_table(collection, clear, table, is_colour)
    elif is_colour:
        number_colours(collection, clear, known)
    elif known.names:
        use_names(collection, clear, known.names)
    else:
        number_values(collection, clear)
    if collection.lost or (collection.is_fixed and collection.reduce_zero_label):
        recode = collection.recode or {value: value for value in clear}
        if collection.reduce_zero_label:
            recode = {value: value - 1 if 0 < value < IGNORED else IGNORED for value in recode}
        collection.recode, collection.reduce_zero_label = recode | dict.fromkeys(collection.lost, IGNORED), False
    if moved := sum(values[value] for value, target in snapped.items() if value != target):
        recode = collection.recode or {value: value for value in clear}
        collection.recode = {value: recode[target] for value, target in snapped.items()}
        collection.notes.append(
            f'{moved / values.total():.1%} of the pixels have values that form no area, as JPEG and smooth edges make '
            f'them: each is taken as the nearest of {shorten(sorted(clear), 8)}'
        )
    check_meaning(collection, Counter() if is_colour else values)


def check_meaning(collection: LabelMaps, values: Counter) -> None:
    """Note what is unlabelled by 255.

    Raises:
        UserError: There are no two classes.
    """
    if len(collection.classes) < 2:
        raise UserError(
            f'{collection.root}: the label maps have one class, {shorten(collection.classes, 3)}. Every pixel would '
            'be of it, and nothing could be learned: give the background a value of its own, and a name where others '
            'have one.'
        )
    if values[IGNORED] and (collection.recode or {}).get(IGNORED, IGNORED) == IGNORED:
        collection.notes.append(f'the value 255 is unlabelled: {values[IGNORED] / values.total():.1%} of the pixels')


def snap(values: Counter, areas: Counter, is_lossy: bool) -> dict[object, object]:
    """Return each value with the one that is meant, where others lie between; empty where all are as meant.

    A label map that was saved as JPEG, or resized smoothly, has values between those of its classes along the edges.

    Raises:
        UserError: They come from JPEG files, which do not keep numbers that are close to each other.
    """
    solid: list[object] = []
    strays = 0
    for value, count in values.most_common():
        is_far = all(apart(value, each) >= FAR_APART for each in solid)
        if areas[value] >= AREA_SHARE * count if is_far else areas[value] >= NEAR_SHARE * count and not is_lossy:
            solid.append(value)
        else:
            strays += is_far
    if len(solid) < 2 and is_lossy and len(values) > 1:
        raise UserError(
            f'The label maps are JPEG files with {len(values)} values, {shorten(sorted(values), 8)}, which JPEG may '
            'have made of one. Write label maps as PNG files, from the source.'
        )
    if len(solid) < 2 or (strays < FEW_STRAYS and not is_lossy):
        return {}
    return {value: min(solid, key=lambda each: apart(value, each)) for value in values}


def apart(one: object, other: object) -> int:
    """Return how far two values are from each other; of colours, in the channel that differs most."""
    return int(np.abs(np.subtract(one, other)).max())


def use_table(collection: LabelMaps, values: Counter, table: Mapping[object, str], is_colour: bool) -> None:
    """Take the values of a file of classes; the class void, and 255, are unlabelled.

    Raises:
        UserError: The label maps have other values.
    """
    given, table = table, dict(table)
    counts_from_1 = not is_colour and 0 in values and min(table, default=0) == 1
    if not is_colour:
        table = with_white(collection, values, table)
    allowed = {*table} | (set() if is_colour else {IGNORED}) | ({0} if counts_from_1 else set())
    if unknown := values.keys() - allowed:
        collection.give_up(
            unknown, values, f'{collection.root}: the label maps hold {shorten(sorted(unknown), 3)}, which the file of '
            f'classes does not name; it names {shorten(table, 8) or ("no colours" if is_colour else "no numbers")}. '
            'Add a line for each that is a class: VALUE NAME, or NAME R G B for colours.'
        )  # fmt: skip
        use_table(collection, values, given, is_colour)
        return
    if counts_from_1 and 0 not in table:
        table[0] = VOID[0]
        collection.notes.append(f'the classes count from 1, {table[1]}: 0 is taken as unlabelled')
    void = {value for value, name in table.items() if name.lower() in VOID}
    collection.classes = list(dict.fromkeys(name for value, name in table.items() if value not in void))
    recode = {value: collection.classes.index(name) for value, name in table.items() if value not in void}
    recode |= dict.fromkeys(void, IGNORED) | ({} if is_colour else {IGNORED: recode.get(IGNORED, IGNORED)})
    if is_colour:
        first = {name: value for value, name in reversed(table.items())}
        collection.palette = [first[name] for name in collection.classes]
    is_plain = not is_colour and all(value == number for value, number in recode.items())
    collection.recode = None if is_plain else recode


def with_white(collection: LabelMaps, values: Counter, table: dict[object, str]) -> dict[object, str]:
    """Return the table of black and white label maps, in which 255 is the second of two classes.

    Raises:
        UserError: There are other than two classes.
    """
    if IGNORED in table or set(values) != {0, IGNORED}:
        return table
    if len(table) != 2:
        raise UserError(
            f'{collection.root}: the label maps hold 0 and 255 alone, and the classes are '
            f'{shorten(table.values(), 8)}. Say which of them is which by lines of a classes.txt, such as '
            '"0 background" and "255 foreground".'
        )
    collection.notes.append('the label maps hold 0 and 255 alone: 0 is {}, 255 is {}'.format(*table.values()))
    return dict(zip((0, IGNORED), table.values(), strict=True))


def number_colours(collection: LabelMaps, values: Counter, known: ClassNames) -> None:
    """Number the colours, the most frequent one first."""
    colours = sorted(values, key=lambda colour: (-values[colour], colour))
    collection.classes = ['_'.join(map(str, ('colour', *colour))) for colour in colours]
    collection.palette = colours
    collection.recode = {colour: i for i, colour in enumerate(colours)}
    collection.notes.append(
        f'{f"{known.file} tells no colours" if known.file else "no file of classes"}: the colours are numbered, the '
        'most frequent one first. Name them in classes.txt, a line each: NAME R G B'
    )


def use_names(collection: LabelMaps, values: Counter, names: list[str]) -> None:
    """Take names in the order of the values; where there is a value more than names, 0 is unlabelled.

    Raises:
        UserError: There are larger values.
    """
    largest = max((value for value in values if value != IGNORED), default=0)
    most = len(names) - (0 in values and names[0].lower() in BACKGROUND)  # 0 is the background, and counts
    collection.is_named = True
    if largest == len(names) == most:
        collection.classes, collection.reduce_zero_label = names, True
        collection.notes.append(
            f'the values are 1 to {largest} for {largest} names: 0 is taken as unlabelled, 1 is {names[0]}'
        )
    elif largest > most:
        if len(values) != len(names):
            collection.give_up(
                [value for value in values if most < value != IGNORED], values,
                f'{collection.root}: the label maps hold values up to {largest}, counted from 0, and '
                f'there are {len(names)} names of classes. Name every value, or write "VALUE NAME" lines into the file '
                'of classes.'
            )  # fmt: skip
            use_names(collection, values, names)
            return
        use_table(collection, values, dict(zip(sorted(values), names, strict=True)), is_colour=False)
        collection.notes.append(f'the values {shorten(sorted(values), 8)} are named in their order')
    else:
        use_table(collection, values, dict(enumerate(names)), is_colour=False)
        if names[0].lower() not in BACKGROUND and IGNORED not in values and len(values) < len(names):
            collection.notes.append(
                f'CHECK THIS: 0 is taken as {names[0]}, 1 as {names[1]}, for the names count from 0. If 0 is '
                f'unlabelled and 1 is {names[0]}, put the name void before the others'
            )


def number_values(collection: LabelMaps, values: Counter) -> None:
    """Number the values of a data set that names no classes; 0 and 255 alone are background and foreground.

    Raises:
        UserError: There are 0 and 255 and, on few pixels, others.
    """
    few = values.keys() - {0, IGNORED}
    if few and 0 in values and sum(values[value] for value in few) < STRAY_SHARE * values[IGNORED]:
        collection.give_up(
            few, values, f'{collection.root}: the label maps hold 0 and 255 and, on few pixels, '
            f'{shorten(sorted(few), 8)}. Say what each value means by lines of a classes.txt, such as "0 background" '
            'and "255 foreground", or "255 void" where it is unlabelled.'
        )  # fmt: skip
    found = sorted(values)
    inner = [value for value in found if value != IGNORED]
    are_grey = len(found) > 2 and min(np.diff(found)) >= FAR_APART
    if found == [0, IGNORED]:
        collection.classes, collection.recode = ['background', 'foreground'], {0: 0, IGNORED: 1}
        collection.notes.append('the label maps hold 0 and 255 alone: 0 is background, 255 is foreground')
    elif inner and len(inner) > inner[-1] // 2:
        collection.classes = [f'class_{i}' for i in range(inner[-1] + 1)]
        collection.notes.append(
            'no file of classes: they are numbered. Name them with --classes a,b,c or in classes.txt'
        )
    else:
        taken = found if are_grey else inner
        collection.classes = [f'value_{value}' for value in taken]
        collection.recode = {IGNORED: IGNORED} | {value: i for i, value in enumerate(taken)}
        collection.notes.append(
            f'no file of classes: the values {shorten(taken, 8)} are numbered 0 to {len(taken) - 1}. Name them '
            'in classes.txt, a line each: VALUE NAME'
            + (', or 255 void where it is unlabelled' if IGNORED in taken else '')
        )
