"""The shell of an HTML report: one file, no network, light and dark, readable on a phone."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

__all__ = ["figure", "page", "sentences", "table", "tiles"]

STYLE = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
SCRIPT = Path(__file__).with_name("crosshair.js").read_text(encoding="utf-8")


def page(title: str, subtitle: str, parts: Sequence[str]) -> str:
    """The whole document. `title` and `subtitle` are text, `parts` are HTML."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{escape(title)}</title><style>{STYLE}</style>'
        f'</head><body><main><h1>{escape(title)}</h1><p class="soft">{escape(subtitle)}</p>'
        f"{''.join(parts)}</main><script>{SCRIPT}</script></body></html>\n"
    )


def tiles(entries: Sequence[tuple[str, str]]) -> str:
    """Tiles of a summary, each a value above what it means."""
    cells = "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(meaning)}</span></div>'
        for value, meaning in entries
    )
    return f'<div class="tiles">{cells}</div>'


def sentences(lines: Sequence[str]) -> str:
    """What a page comes to, a sentence an item; nothing where there is none."""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<section><ul class="said">{items}</ul></section>' if items else ""


def figure(title: str, caption: str, body: str) -> str:
    """A titled plot with its caption; `body` is HTML."""
    return (
        f"<figure><h2>{escape(title)}</h2><figcaption>{escape(caption)}</figcaption>{body}</figure>"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose cells are text."""
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
