"""The shell of an HTML report: one file, no network, light and dark, readable on a phone."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from erless.storage.atomic import os_errors, staged_file

__all__ = ["figure", "notes", "page", "save_page", "sentences", "table", "tiles"]

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


def notes(lines: Sequence[str]) -> str:
    """Lines below a figure or in a section, an item each; nothing where there is none."""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<ul class="notes soft">{items}</ul>' if items else ""


def figure(title: str, caption: str, body: str) -> str:
    """A titled plot with its caption; `body` is HTML."""
    return (
        f"<figure><h2>{escape(title)}</h2><figcaption>{escape(caption)}</figcaption>{body}</figure>"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]], name: str) -> str:
    """A table whose cells are text, columns of words to the left and numbers to the right.

    Where it is wider than the screen it scrolls, by keys as well; `name` tells what it is of.
    """
    columns = zip(*rows, strict=True) if rows else [()] * len(header)
    kinds = [' class="words"' if any(map(_is_words, column)) else "" for column in columns]

    def line(cells: Sequence[str], tag: str) -> str:
        """A row; a heading without words is no heading."""
        return "".join(
            f"<{tag if cell else 'td'}{kind}>{escape(cell)}</{tag if cell else 'td'}>"
            for cell, kind in zip(cells, kinds, strict=True)
        )

    head = line(header, "th")
    body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    return (
        f'<div class="scroll" role="region" aria-label="{escape(name)}" tabindex="0">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _is_words(cell: str) -> bool:
    """Whether a cell is read, not compared: it begins with a letter."""
    return cell[:1].isalpha()


def save_page(out: Path, text: str) -> None:
    """Write the page under a temporary name, then rename it.

    Raises:
        StorageError: the disk refused.
    """
    with staged_file(out) as stage, os_errors(stage):
        stage.write_text(text, encoding="utf-8")
