"""Look at every file of a data set in parallel, with a progress bar, and remember what was found.

What a file holds is kept by its path, size and time of change, so that the next start looks at changed files alone.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from convnext_dense.compat.errors import UserError
from convnext_dense.compat.files import write_text
from convnext_dense.data.pictures import silent

PATIENCE = 2.0  # seconds until the bar is shown


def cache_folder() -> Path:
    """Return where results are kept: ``CONVNEXT_DENSE_CACHE``, or a folder of the user's cache."""
    given = os.environ.get('CONVNEXT_DENSE_CACHE')
    home = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
    return Path(given or Path(home, 'convnext-dense'))


def look_at(files: Sequence[str], function: Callable[[str], Any], what: str) -> list[Any]:
    """Return what a function finds in each file; the result must be one that JSON holds.

    Args:
        files: Paths.
        function: Called with a path, in several threads.
        what: What the files are, for the bar.
    """
    paths = [os.path.abspath(file) for file in files]
    digest = hashlib.sha256(os.path.commonpath(paths).encode()).hexdigest()[:16] if paths else ''
    cache = cache_folder() / f'{function.__name__}-{digest}.json'
    known = read_cache(cache)
    stamps = [stamp(path) for path in paths]
    changed = [i for i, path in enumerate(paths) if known.get(path, [None])[0] != stamps[i]]
    with silent(), ThreadPoolExecutor() as pool:
        found = pool.map(function, [files[i] for i in changed])
        bar = tqdm(found, total=len(changed), desc=f'checking {what}', delay=PATIENCE, leave=False)
        known.update({paths[i]: [stamps[i], result] for i, result in zip(changed, bar, strict=True)})
    if changed:
        with contextlib.suppress(UserError):  # where the disk refuses, nothing is remembered
            write_text(json.dumps(known), cache)
    return [known[path][1] for path in paths]


def remembered(question: object, find: Callable[[], tuple[list[str], list[str]]]) -> list[str]:
    """Return the notes of a check, or those of an earlier one that asked the same of the same unchanged files.

    Args:
        question: All that the notes depend on besides the content of the files, in types that JSON has.
        find: Does the check; returns its notes and the files that it looked at. What it raises is not remembered.
    """
    code = [hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(Path(__file__).parents[1].rglob('*.py'))]
    digest = hashlib.sha256(json.dumps([question, code]).encode()).hexdigest()
    cache = cache_folder() / f'notes-{digest[:16]}.json'
    known = read_cache(cache)
    if known.get('stamps') and known['stamps'] == stamps(known['files']):
        return known['notes']
    notes, files = find()
    files = [os.path.abspath(file) for file in files]
    with contextlib.suppress(UserError):
        write_text(json.dumps(dict(files=files, stamps=stamps(files), notes=notes)), cache)
    return notes


def stamps(files: Sequence[str]) -> str:
    """Return a digest of the sizes of files and of the times of their last change; empty where one is missing."""
    try:
        return hashlib.sha256(json.dumps([stamp(file) for file in files]).encode()).hexdigest()
    except OSError:
        return ''


def stamp(path: str) -> list[int]:
    """Return size and time of the last change."""
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns]


def read_cache(file: Path) -> dict[str, list]:
    """Return what is remembered; nothing where the file is missing or damaged."""
    try:
        known = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
