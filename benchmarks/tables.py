"""Results of the benchmarks, as they are committed."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import convnext_dense
from convnext_dense.train.stats import format_markdown

RESULTS = Path(__file__).parent / 'results' / ('gpu' if torch.cuda.is_available() else '')


def read_results(name: str) -> dict[str, Any] | None:
    """Return a table that was written; None where there is none."""
    file = RESULTS / f'{name}.json'
    return json.loads(file.read_text()) if file.is_file() else None


def write_results(name: str, title: str, columns: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a table to the files ``name``.json and .md, with the machine and the versions, and print it."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    machine = f'{torch.cpu.get_capabilities()["cpu_name"]}, {os.cpu_count()} cores'
    if torch.cuda.is_available():
        machine = torch.cuda.get_device_name()
    versions = (
        f'Python {platform.python_version()}, torch {torch.__version__}, convnext-dense {convnext_dense.__version__}'
    )
    text = f'**{title}** ({machine}; {versions})\n\n{format_markdown(rows, columns)}'
    content = dict(title=title, machine=machine, versions=versions, rows=rows)
    (RESULTS / f'{name}.json').write_text(json.dumps(content, indent=1))
    (RESULTS / f'{name}.md').write_text(text)
    print(text, flush=True)
