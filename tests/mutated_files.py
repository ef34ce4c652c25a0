"""Checkpoints changed in ways in which disks, networks, programs and attackers change them; a seed makes each again."""

import functools
import io
import json
import math
import os
import pickle
import random
import struct
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path

import torch

PAGE = 4096


def mutated(source: Path, kind: str, seed: int, file: Path) -> Path:
    """Write a sound file, changed, to another place, and return that; ``kind`` is a key of :data:`KINDS`."""
    draw = random.Random(f'{source.name} {kind} {seed}')
    KINDS[kind](draw, source, file)
    return file


# Bytes


def of_bytes(change):
    """Return a mutation that changes the bytes of a file."""

    def mutate(draw, source, file):
        file.write_bytes(change(draw, bytearray(source.read_bytes())))

    return mutate


def flip(draw, content, number=1):
    for _ in range(number):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    return content


def page_in(draw, content):
    start = PAGE * draw.randrange(math.ceil(len(content) / PAGE))
    return slice(start, min(start + PAGE, len(content)))


def zero_page(draw, content):
    place = page_in(draw, content)
    content[place] = bytes(place.stop - place.start)
    return content


def exchange_pages(draw, content):
    one, other = page_in(draw, content), page_in(draw, content)
    content[one], content[other] = content[other], content[one]
    return content


def cut_at_page(draw, content):
    return content[: page_in(draw, content).start]


def cut(draw, content):
    return content[: draw.randrange(len(content))]


def leave_out(draw, content):
    place = draw.randrange(len(content))
    del content[place : place + draw.choice([1, 4, 64, PAGE])]
    return content


def repeat(draw, content):
    place = draw.randrange(len(content))
    return content[:place] + content[place - draw.choice([1, 4, 64, PAGE]) : place] + content[place:]


BYTES = {
    'a bit flipped': of_bytes(flip),
    'ten bits flipped': of_bytes(lambda draw, content: flip(draw, content, 10)),
    'a page of zeros': of_bytes(zero_page),
    'two pages exchanged': of_bytes(exchange_pages),
    'cut at a page': of_bytes(cut_at_page),
    'cut anywhere': of_bytes(cut),
    'bytes left out': of_bytes(leave_out),
    'bytes repeated': of_bytes(repeat),
    'junk behind': of_bytes(lambda draw, content: content + draw.randbytes(draw.choice([1, 22, PAGE, 20 * PAGE]))),
    'junk before': of_bytes(lambda draw, content: draw.randbytes(draw.choice([1, 22, PAGE])) + content),
}


# Archives: everything that a checksum of PyTorch's covers is right again


def of_records(change, compression=zipfile.ZIP_STORED):
    """Return a mutation that changes the records of an archive, pairs of a name and bytes; the comment stays."""

    def mutate(draw, source, file):
        with zipfile.ZipFile(source) as archive:
            records = [[name, archive.read(name)] for name in archive.namelist()]
            comment = archive.comment
        records = change(draw, records) or records
        with warnings.catch_warnings(), zipfile.ZipFile(file, 'w', compression) as archive:
            warnings.simplefilter('ignore')
            for name, content in records:
                archive.writestr(name, bytes(content))
            archive.comment = comment

    return mutate


def tensors_among(records):
    return [record for record in records if '/data/' in record[0]]


def pair_of(draw, records):
    """Return two records of tensors, of equal size where there are such."""
    tensors = tensors_among(records)
    first = draw.choice(tensors)
    alike = [each for each in tensors if each is not first and len(each[1]) == len(first[1])]
    return first, draw.choice(alike or tensors)


def exchange_contents(draw, records):
    one, other = pair_of(draw, records)
    one[1], other[1] = other[1], one[1]


def exchange_names(draw, records):
    one, other = pair_of(draw, records)
    one[0], other[0] = other[0], one[0]


def rename_record(draw, records):
    record = draw.choice(records)
    record[0] = draw.choice([record[0].upper(), f'{record[0]}0', f'../{record[0]}', record[0].replace('/', '//')])


def drop_record(draw, records):
    records.remove(draw.choice(records))


def double_record(draw, records):
    record = draw.choice(records)
    name = draw.choice([record[0], record[0].upper()])  # zipfile warns, and writes it
    records.insert(draw.randrange(len(records)), [name, bytes(len(record[1]))])


def resize_record(draw, records):
    record = draw.choice(records)
    record[1] = draw.choice([b'', record[1][:-4], record[1] * 2, record[1] + b'\0'])


def change_numbers(draw, records):
    record = draw.choice(tensors_among(records))
    record[1] = flip(draw, bytearray(record[1] or b'\0'))


def pickle_among(records):
    return next(record for record in records if record[0].endswith('data.pkl'))


def change_pickle(draw, records):
    record = pickle_among(records)
    content = bytearray(record[1])
    place = draw.randrange(len(content))
    way = draw.randrange(4)
    if way == 0:
        content = flip(draw, content, draw.choice([1, 1, 5]))
    elif way == 1:
        content[place] = draw.randrange(256)
    elif way == 2:
        content[place:place] = draw.choice(OPCODES)
    else:
        del content[place : place + draw.choice([1, 8])]
    record[1] = content


OPCODES = (
    b'cos\nsystem\n', b'cposix\nmkdir\n', b'cbuiltins\ngetattr\n', b'R', b'b', b'0', b'2', b'(', b't', b'}', b'Q', b'.',
    b'\x81', b'\x80\4', b'j\xff\xff\xff\x7f', b'h\0', b'\x8a\xff', b'\x8b\xff\xff\xff\x7f', b'X\xff\xff\xff\x7f', b'N',
    b'K\1', b'ctorch._utils\n_rebuild_tensor_v2\n', b'ctorch\nFloatStorage\n', b'ccollections\nOrderedDict\n',
)  # fmt: skip


def nest(draw, records):
    inside = io.BytesIO()
    with zipfile.ZipFile(inside, 'w') as archive:
        for name, content in records:
            archive.writestr(name, bytes(content))
    return [['model.pth', inside.getvalue()]]


ARCHIVES = {
    'records with exchanged contents': of_records(exchange_contents),
    'records with exchanged names': of_records(exchange_names),
    'a record renamed': of_records(rename_record),
    'a record left out': of_records(drop_record),
    'a record twice': of_records(double_record),
    'a record of another size': of_records(resize_record),
    'numbers changed': of_records(change_numbers),
    'a pickle changed': of_records(change_pickle),
    'a pickle changed again': of_records(lambda draw, records: [change_pickle(draw, records) for _ in '12'] and None),
    'an archive in an archive': of_records(nest),
    'records compressed': of_records(lambda draw, records: None, zipfile.ZIP_DEFLATED),
}


# safetensors: headers that say something else


def of_header(change):
    """Return a mutation that changes the header of a safetensors file."""

    def mutate(draw, source, file):
        content = source.read_bytes()
        size = int.from_bytes(content[:8], 'little')
        header, numbers = json.loads(content[8 : 8 + size]), content[8 + size :]
        text = change(draw, header)
        text = json.dumps(header, separators=(',', ':')).encode() if text is None else text
        text += b' ' * (-len(text) % 8)
        file.write_bytes(struct.pack('<Q', len(text)) + text + numbers)

    return mutate


def entry_in(draw, header):
    return header[draw.choice([key for key in header if key != '__metadata__'])]


def exchange_tensors(draw, header):
    one = entry_in(draw, header)
    alike = [header[key] for key in header if key != '__metadata__' and header[key]['shape'] == one['shape']]
    other = draw.choice(alike)
    one['data_offsets'], other['data_offsets'] = other['data_offsets'], one['data_offsets']


def reshape(draw, header):
    one = entry_in(draw, header)
    shape = one['shape']
    one['shape'] = draw.choice([shape[::-1], [*shape, 1], [math.prod(shape)], [-1], [2**62, 4], ['a']])


def retype(draw, header):
    entry_in(draw, header)['dtype'] = draw.choice(['F16', 'I32', 'U32', 'BOOL', 'F8_E4M3', 'C64', 'X', None, 7])


def move(draw, header):
    one = entry_in(draw, header)
    begin, end = one['data_offsets']
    one['data_offsets'] = draw.choice(
        [[begin + 4, end + 4], [begin, end + 4], [end, begin], [-4, end], [begin, 2**63], [begin], 'ab', [0.5, 2]]
    )


def rename_tensor(draw, header):
    key = draw.choice([key for key in header if key != '__metadata__'])
    header[draw.choice([f'module.{key}', key.upper(), '', '\x1b[31m', f'{key}.{key}'])] = header.pop(key)


def double_tensor(draw, header):
    key = draw.choice([key for key in header if key != '__metadata__'])
    text = json.dumps(header, separators=(',', ':')).encode()
    return text[:-1] + f',{json.dumps(key)}:{json.dumps(entry_in(draw, header))}}}'.encode()


def odd_metadata(draw, header):
    header['__metadata__'] = {
        **header.get('__metadata__', {}),
        **draw.choice(
            [
                {'convnext_dense': '{"dataset_meta": 3, "cfg": [1], "epoch": "x", "metrics": {"a": "b"}}'},
                {'convnext_dense': '[' * 10**5},
                {'convnext_dense': '[1, 2]'},
                {'convnext_dense': '{"dataset_meta": {"classes": [[1]], "palette": {"a": 1}}, "experiment_name": 5}'},
                {'convnext_dense': '{"epoch": 1e400, "iter": NaN, "time": {}, "a_version": []}'},
                {'convnext_dense': None},
                {'a': 3},
            ]
        ),
    }


def odd_header(draw, header):
    deep = b'{"a":' * 10**4
    return draw.choice([b'{}', b'[]', deep, b'{"__metadata__":3}', b'{"a":{}}', b'{' + bytes(7), b'\xff' * 8])


HEADERS = {
    'tensors exchanged': of_header(exchange_tensors),
    'a tensor of another shape': of_header(reshape),
    'a tensor of another type': of_header(retype),
    'a tensor moved': of_header(move),
    'a tensor renamed': of_header(rename_tensor),
    'a tensor twice': of_header(double_tensor),
    'odd metadata': of_header(odd_metadata),
    'an odd header': of_header(odd_header),
}


# Content: what a program could save


def of_content(change):
    """Return a mutation that changes what a file holds, and saves it as PyTorch does."""

    def mutate(draw, source, file):
        content = torch.load(source, weights_only=False)
        changed = change(draw, content)
        torch.save(content if changed is None else changed, file)

    return mutate


def weights_in(content):
    return content.get('state_dict') or content.get('model') or content


def of_weight(change):
    """Return a mutation that puts something else in the place of a weight."""

    def mutate(draw, content):
        weights = weights_in(content)
        key = draw.choice(list(weights))
        value = weights.pop(key)
        weights.update(change(draw, key, value))

    return of_content(mutate)


def wrap(draw, content):
    for _ in range(draw.choice([1, 2, 6, 100])):
        content = {draw.choice(['state_dict', 'model', 'module', 'net', 'a.b']): content}
    return content


def hold_itself(draw, content):
    content[draw.choice(['state_dict', 'model', 'meta', 'a.b'])] = content


def odd_meta(draw, content):
    value = draw.choice(ODD)
    key = draw.choice(['epoch', 'iter', 'cfg', 'dataset_meta', 'CLASSES', 'time', 'metrics'])
    content['meta'] = draw.choice([value, {key: value}])


ODD = (
    None, True, -1, 10**400, float('nan'), 1e308, 'x', '', b'\xff', '\x1b[31m\n', [], {}, (), [[]], {'x': {}}, {1: 2},
    {None: []}, torch.ones(0), torch.ones(3, 3), torch.tensor(float('nan')), torch.tensor(5),
    torch.ones(2, dtype=torch.complex64), torch.ones(3).to_sparse(), torch.empty(2, device='meta'),
)  # fmt: skip
CONTENTS = {
    'a weight under two prefixes': of_weight(lambda draw, key, value: {key: value, f'module.{key}': value + 1}),
    'a weight renamed': of_weight(
        lambda draw, key, value: {draw.choice([f'{key}s', key[1:], f'a.{key}', '', 5]): value}
    ),
    'a weight left out': of_weight(lambda draw, key, value: {}),
    'a weight of another shape': of_weight(
        lambda draw, key, value: {
            key: draw.choice([value[..., :0], value[None], torch.cat([value, value]), value.sum()])
        }
    ),
    'a weight of another type': of_weight(
        lambda draw, key, value: {key: value.to(draw.choice([torch.float64, torch.int32, torch.complex64, torch.bool]))}
    ),
    'a weight of NaN': of_weight(lambda draw, key, value: {key: value * draw.choice([math.nan, math.inf])}),
    'something odd for a weight': of_weight(lambda draw, key, value: {key: draw.choice(ODD)}),
    'weights wrapped': of_content(wrap),
    'a content that holds itself': of_content(hold_itself),
    'odd meta': of_content(odd_meta),
}


def places_in(tree, found, depth=0):
    """Collect the containers of a tree with their keys."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        found.append((tree, key))
        if depth < 6:
            places_in(value, found, depth + 1)
    return found


def put_odd(draw, content):
    tree, key = draw.choice(places_in(content, []))
    tree[key] = draw.choice(ODD)


def put_odd_near_top(draw, content):
    """Below one of the entries, so that large ones do not get all."""
    key = draw.choice(list(content))
    found = places_in(content[key], []) + [(content, key)] * 3
    tree, key = draw.choice(found)
    tree[key] = draw.choice(ODD)


def take_out(draw, content):
    key = draw.choice(list(content))
    tree, key = draw.choice([*places_in(content[key], []), (content, key)])
    del tree[key]


def add_odd(draw, content):
    (tree, _), odd = draw.choice(places_in(content, [])), draw.choice(ODD)
    if isinstance(tree, list):
        tree.append(odd)
    else:
        tree[draw.choice(['x', 'state', 7])] = odd


def exchange_parts(draw, content):
    places = places_in(content, [])
    (one, a), (other, b) = draw.choice(places), draw.choice(places)
    one[a], other[b] = other[b], one[a]


def odd_history(draw, content):
    history = draw.choice(list(content['message_hub']['log_scalars'].values()))
    setattr(history, draw.choice(['_log_history', '_count_history', 'max_length']), draw.choice(ODD))


STATES = {
    'an odd history': of_content(odd_history),
    'something odd anywhere': of_content(put_odd),
    'something odd': of_content(put_odd_near_top),
    'a part left out': of_content(take_out),
    'a part more': of_content(add_odd),
    'two parts exchanged': of_content(exchange_parts),
}


# Code


MARKER = 'code_was_run'  # beside the file


class Trap:
    """Makes a call when it is unpickled."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


def trap_for(draw, marker):
    path = str(marker)
    return draw.choice(
        [
            Trap(os.mkdir, path),
            Trap(os.system, f'touch {path}'),
            Trap(eval, f"__import__('os').mkdir({path!r})"),
            Trap(exec, f'import os; os.mkdir({path!r})'),
            Trap(Path.touch, Path(path)),
            Trap(torch.save, 1, path),
        ]
    )


def with_code(draw, source, file, **options):
    content = torch.load(source, weights_only=False)
    tree, key = draw.choice(places_in(content, []) + [(content, 'a')] * 9)
    trap = trap_for(draw, file.parent / MARKER)
    if draw.random() < 0.2 and isinstance(tree, dict):
        tree[key] = OrderedDict({Key(trap): 1})
    else:
        tree[key] = trap
    torch.save(content, file, **options)


class Key:
    """A key that becomes a trap."""

    def __init__(self, trap):
        self.trap = trap

    def __reduce__(self):
        return self.trap.__reduce__()


def plain_pickle(draw, source, file):
    file.write_bytes(pickle.dumps({'state_dict': trap_for(draw, file.parent / MARKER)}, protocol=draw.randrange(6)))


def in_safe_frame(draw, source, file):
    """Raw opcodes before the content, with functions that a checkpoint may name."""
    marker = str(file.parent / MARKER)
    call = draw.choice(
        [
            f'cbuiltins\ngetattr\n(cos\nmkdir\nV__call__\ntR(V{marker}\ntR0',
            f'cos\nmkdir\n(V{marker}\ntR0',
            'cbuiltins\ngetattr\n(cmmengine.logging.history_buffer\nHistoryBuffer\nV__init__\ntRV__globals__\n0',
            f"cbuiltins\neval\n(V__import__('os').mkdir({marker!r})\ntR0",
            f'(V{marker}\nios\nmkdir\n0',
            f'cnumpy\ndtype\n(VO\ntR0cos\nsystem\n(Vtouch {marker}\ntR0',
        ]
    ).encode()

    def insert(draw, records):
        record = pickle_among(records)
        record[1] = record[1][:2] + call + record[1][2:]

    of_records(insert)(draw, source, file)


CODE = {
    'code': with_code,
    'code in an old file': functools.partial(with_code, _use_new_zipfile_serialization=False),
    'code in a plain pickle': plain_pickle,
    'code before the content': in_safe_frame,
}

KINDS = {**BYTES, **ARCHIVES, **HEADERS, **CONTENTS, **STATES, **CODE}
