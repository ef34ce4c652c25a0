"""Pages that need no other file: texts, tables and pictures."""

import base64
import html
from collections.abc import Iterable

STYLE = (
    'body{font:15px sans-serif;margin:2em}td{padding:2px 12px 2px 0}img{max-width:100%}'
    'figure{display:inline-block;margin:6px}'
)


def page_text(title: str, parts: Iterable[str]) -> str:
    """Return a page of HTML: a title, and parts that are HTML themselves."""
    title = html.escape(title)
    head = f'<!doctype html><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    return f'{head}<h1>{title}</h1>{"".join(parts)}\n'


def listed(lines: Iterable[str]) -> str:
    """Return texts as a list."""
    return f'<ul>{"".join(f"<li>{html.escape(line)}</li>" for line in lines)}</ul>'


def image(png: bytes, text: str = '') -> str:
    """Return a picture, with the text that stands for it, from the bytes of a PNG file."""
    return f'<img src="data:image/png;base64,{base64.b64encode(png).decode()}" alt="{html.escape(text)}">'
