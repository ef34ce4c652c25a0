"""Files that name the classes of label maps: names alone, or with the value or the colour of each."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from convnext_dense.data.records import distinct, find_files

# classes.txt, class_dict_seg.csv, _classes.csv, labelmap.txt, label_colors.txt; but classification_report.txt is none.
CLASS_FILE = re.compile(
    r'(?:.*classes|(?:.*[_\-])?class)(?:[_\-](?:dict|names?|list|labels?|colou?rs?|map|seg|info))*\.(?:txt|csv)'
    r'|(?:label_?map|labels?|label_?colou?rs?|names)\.txt',
    re.I,
)
UNCOUNTED = '__ignore__'  # LabelMe's first name, whose number is -1
HEADINGS = ('name', 'names', 'class', 'label', 'classes', 'pixel value', 'value', 'id', 'idx', 'index')  # of a table


@dataclass
class ClassNames:
    """What is known of the classes."""

    names: list[str] = field(default_factory=list)  # in the order of the file
    numbers: dict[object, str] = field(default_factory=dict)  # value in the label maps -> name
    colours: dict[object, str] = field(default_factory=dict)  # colour (R, G, B) -> name
    file: Path | None = None  # that tells it


def read_class_file(path: Path) -> ClassNames:
    """Return the classes that a file in a folder names; of several the outermost counts.

    Raises:
        UserError: It names a class twice.
    """
    files = [file for file in find_files(path, ('.txt', '.csv')) if CLASS_FILE.fullmatch(file.name)]
    for file in sorted(files, key=lambda file: (len(file.parts), 'class' not in file.name.lower(), file)):
        found = parse_classes(file.read_text(encoding='utf-8-sig', errors='replace').splitlines())
        if found.names:
            found.file = file
            distinct(found.names if not (found.numbers or found.colours) else (), file)
            found.names = list(dict.fromkeys(found.names))
            return found
    return ClassNames()


def parse_classes(lines: Sequence[str]) -> ClassNames:
    """Return the classes that the lines of a text or CSV file name.

    >>> parse_classes(['0 sky', '1 road']).numbers, parse_classes(['road:128,64,128::']).colours
    ({0: 'sky', 1: 'road'}, {(128, 64, 128): 'road'})
    >>> parse_classes(['sky', 'road 1', 'road 2']).names, parse_classes(['sky,road']).names
    (['sky', 'road 1', 'road 2'], ['sky', 'road'])
    """
    read = [(line.strip(), parse_row(line)) for line in lines if not line.lstrip().startswith('#')]
    read = [(line, row) for line, row in read if row[0] and row[0][0].lower() not in HEADINGS]
    lines, rows = [line for line, _ in read], [row for _, row in read]
    if len(rows) == 1 and not rows[0][1]:
        return ClassNames(rows[0][0])
    if not re.search(r'[,;:\t]', ''.join(lines)) and not are_numbered(lines, rows):
        names = [line.strip('"\'') for line in lines]
        return ClassNames(names[names[:1] == [UNCOUNTED] :])
    found = ClassNames([texts[0] for texts, _ in rows])
    for (name, *_), numbers in rows:
        if len(numbers) >= 3:
            found.colours[tuple(numbers[-3:])] = name
        if len(numbers) not in (0, 3):
            found.numbers[numbers[0]] = name
    return found


def parse_row(line: str) -> tuple[list[str], list[int]]:
    """Return the texts and the numbers of a line.

    >>> parse_row('64 128 64\\tAnimal'), parse_row('traffic light 3'), parse_row('0, background')
    ((['Animal'], [64, 128, 64]), (['traffic light'], [3]), (['background'], [0]))
    """
    fields = [each.strip(' "\'') for each in re.split(r'[,;:\t]', line)]
    if len(fields) == 1:
        first, name, last = re.fullmatch(r'((?:\d+\s+)*)(.*?)((?:\s+\d+)*)', fields[0]).groups()
        is_name = first and len(last.split()) < 3  # as in "4 level 2"
        fields = [first.strip(), name + last] if is_name else [first.strip(), name, last.strip()]
    numbers = [int(word) for each in fields if is_numbers(each) for word in each.split()]
    return [each for each in fields if each and not is_numbers(each)], numbers


def is_numbers(text: str) -> bool:
    """Tell whether a text is whole numbers."""
    return all(word.isdecimal() for word in text.split()) and bool(text)


def are_numbered(lines: Sequence[str], rows: Sequence[tuple[list[str], list[int]]]) -> bool:
    """Tell whether the numbers of lines are values or colours, and no part of names such as ``level 2``."""
    counts = {len(numbers) for _, numbers in rows}
    if len(counts) != 1 or counts == {0}:
        return False
    is_first = all(line.lstrip(' "\'')[0].isdecimal() for line in lines)
    return is_first or counts != {1} or len({texts[0] for texts, _ in rows}) == len(rows)
