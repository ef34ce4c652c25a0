"""Pages that need no other file: texts, tables and pictures."""

import base64
import html
from collections.abc import Iterable

STYLE = (
    'body{font:15px sans-serif;margin:2em}img{max-width:100%}'
    'figure{display:inline-block;margin:6px}figure img{width:440px}th,td{padding:2px 12px 2px 0}'
)


def page_text(title: str, parts: Iterable[str]) -> str:
    """Return a page of HTML: a title, and parts that are HTML themselves."""
    title = html.escape(title)
    head = f'<!doctype html><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    return f'{head}<h1>{title}</h1>{"".join(parts)}\n'


def listed(lines: Iterable[str]) -> str:
    """Return texts as a list."""
    return f'<ul>{"".join(f"<li>{html.escape(line)}</li>" for line in lines)}</ul>'


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Return a table."""
    titles = ''.join(f'<th align="left">{html.escape(cell)}</th>' for cell in head)
    body = ''.join(f'<tr>{"".join(f"<td>{html.escape(str(cell))}</td>" for cell in row)}</tr>' for row in rows)
    return f'<table><tr>{titles}</tr>{body}</table>'


def image(content: bytes, text: str = '', kind: str = 'png') -> str:
    """Return a picture, with the text that stands for it, from the bytes of a PNG file, or of one of another kind."""
    return f'<img src="data:image/{kind};base64,{base64.b64encode(content).decode()}" alt="{html.escape(text)}">'
