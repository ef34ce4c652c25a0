"""Checksums inside of checkpoints: those that PyTorch writes, and the digest that this package adds to its own files.

A ``.pth`` file is an archive with a CRC-32 of each record. The digest of the list of its records, in the comment of
the archive, also tells records that were exchanged. A safetensors file has no checksums; the digest of all its bytes
stands in its metadata.
"""

import functools
import hashlib
import json
import os
import re
import zipfile
from pathlib import Path
from typing import IO

from .errors import UserError, printable
from .unpickling import first_line

DIGEST_KEY = 'convnext_dense_sha256'
NO_DIGEST = '0' * 64  # stands in a safetensors file while its digest is computed
NOTED = re.compile(rf'"{DIGEST_KEY}":"([0-9a-f]{{64}})"'.encode())
MOST_HEADER_BYTES = 10**8  # safetensors reads no more


def is_safetensors(file: str | os.PathLike) -> bool:
    """Tell whether a file begins like a safetensors file: the length of a JSON header, then the header."""
    with open(file, 'rb') as opened:
        return opened.read(9)[6:] == b'\0\0{'


def check_records(file: str | os.PathLike) -> None:
    """Compare a file with the checksums in it, once for each state of the file.

    A file without any is not compared: one that PyTorch wrote before 1.6 or with ``set_crc32_options(False)``, or a
    safetensors file of others.

    Raises:
        UserError: The file is not what was written.
    """
    state = os.stat(file)
    _check_records(os.path.abspath(file), (state.st_ino, state.st_size, state.st_mtime_ns))


@functools.lru_cache(maxsize=64)
def _check_records(file: str, state: tuple[int, ...]) -> None:
    try:
        if is_safetensors(file):
            problem = safetensors_problem(file)
        else:
            problem = archive_problem(file) if zipfile.is_zipfile(file) else ''
    except Exception as error:  # zipfile and zlib fail in many ways
        problem = first_line(error)
    if problem:
        raise UserError(
            f'The checkpoint {file} is damaged: {printable(problem)}. Copy or download it again, or take an earlier '
            'checkpoint.'
        )


# Archives


def archive_problem(file: str | os.PathLike) -> str:
    """Return what is damaged in an archive; empty if nothing is known to be."""
    with zipfile.ZipFile(file) as archive:
        parts = archive.infolist()
        if len({part.filename.lower() for part in parts}) < len(parts):  # PyTorch would read either
            return 'two of its records have the same name'
        if archive.comment.startswith(DIGEST_KEY.encode()) and archive.comment != list_digest(archive):
            return 'the list of its records is not what was written'
        changed = archive.testzip() if any(part.CRC for part in parts) else None
        return f'its record {changed} is not what was written' if changed else ''


def list_digest(archive: zipfile.ZipFile) -> bytes:
    """Return the comment of an archive with the digest of the names, sizes and checksums of its records."""
    lines = [f'{part.filename} {part.file_size} {part.CRC}' for part in archive.infolist()]
    return f'{DIGEST_KEY} {hashlib.sha256(repr(lines).encode()).hexdigest()}'.encode()


def seal_archive(file: Path) -> None:
    """Write the digest of an archive that ``torch.save`` has written into its comment."""
    with zipfile.ZipFile(file) as archive:
        comment = list_digest(archive)
    with file.open('rb+') as stream:
        stream.seek(-2, os.SEEK_END)  # the length of the comment, of which there is none yet
        stream.write(len(comment).to_bytes(2, 'little') + comment)


# safetensors


def safetensors_problem(file: str | os.PathLike) -> str:
    """Return what is damaged in a safetensors file; empty if nothing is known to be."""
    with open(file, 'rb') as stream:
        size = stream.read(8)
        header = size + stream.read(min(int.from_bytes(size, 'little'), MOST_HEADER_BYTES))
        noted = NOTED.search(header)
        is_changed = noted and noted[1] != content_digest(header, noted, stream)
    return 'its content is not what was written' if is_changed else ''


def content_digest(header: bytes, noted: re.Match, rest: IO[bytes]) -> bytes:
    """Return the digest of a file of which the header is read, with :data:`NO_DIGEST` where one is noted."""
    digest = hashlib.sha256(header[: noted.start(1)] + NO_DIGEST.encode() + header[noted.end(1) :])
    while chunk := rest.read(2**20):
        digest.update(chunk)
    return digest.hexdigest().encode()


def seal_safetensors(file: Path) -> None:
    """Write the digest of a safetensors file into its metadata, where :data:`NO_DIGEST` stands; sort the metadata.

    The package writes them in a random order.
    """
    with file.open('rb+') as stream:
        size = stream.read(8)
        text = stream.read(int.from_bytes(size, 'little'))
        entries = json.loads(text)
        entries['__metadata__'] = dict(sorted(entries['__metadata__'].items()))
        header = size + json.dumps(entries, ensure_ascii=False, separators=(',', ':')).encode().ljust(len(text))
        assert len(header) == 8 + len(text)
        noted = NOTED.search(header)
        digest = content_digest(header, noted, stream)
        stream.seek(0)
        stream.write(header[: noted.start(1)] + digest + header[noted.end(1) :])
