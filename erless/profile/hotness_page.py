"""A profile as a page: how hot each table's rows are, and how few rows take most accesses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from erless.errors import LogError
from erless.pages.access import HotnessCurve, access_chart, hotness_curve
from erless.pages.bars import Bar, bar_chart
from erless.pages.charts import number
from erless.pages.page import figure, notes, page, save_page, sentences, table, tiles
from erless.specs.profile import MANIFEST, Profile, TableAccess
from erless.storage.tensors import TensorFile

__all__ = ["write_hotness"]

BUSIEST = 30  # tables with a bar
SHARES = (0.001, 0.01, 0.1)  # of a table's rows
MOST = (0.5, 0.9, 0.99)  # of all accesses


def write_hotness(profile: Path, out: Path, warnings: Sequence[str] = ()) -> Profile:
    """Write the page of the profile in the folder `profile` to `out`.

    Args:
        profile: its folder.
        out: the page; it needs nothing but a browser.
        warnings: what whoever counted has to say besides.

    Raises:
        ArtifactError: no profile there, or it is damaged.
        LogError: it has no accesses: only this machine's speed was measured.
        StorageError: the disk refused.
    """
    document = Profile.load(profile / MANIFEST)
    busy = sorted(
        (each for each in document.tables if each.accesses), key=lambda each: -each.accesses
    )
    if not busy:
        raise LogError(f"{profile}: the profile has no accesses: nothing was counted from a log")
    curves = [_curve(profile, each) for each in busy]
    parts = [
        tiles(_tiles(document, curves)),
        sentences([_most(document, curves), *warnings]),
        figure(
            "How hot the hottest rows are",
            "Share of a table's accesses that its hottest rows take. The steeper, the more there "
            "is to gain from keeping few rows close and the others cheap.",
            access_chart(curves),
        ),
        figure(
            "Where accesses go",
            "Each table's accesses, by the hotness of the rows that they went to."
            + (f" The busiest {BUSIEST} of {len(busy)} tables." if len(busy) > BUSIEST else ""),
            bar_chart(
                [_bar(each, curve) for each, curve in zip(busy, curves, strict=True)][:BUSIEST]
            ),
        ),
        figure("Tables", "Busiest first.", _table(busy, curves, document)),
        f"<section><h2>Read from</h2>{notes(document.sources)}</section>",
    ]
    save_page(out, page(f"Hotness of {profile.name}", f"profile {document.digest[:12]}", parts))
    return document


def _curve(profile: Path, access: TableAccess) -> HotnessCurve:
    if access.counts is None:
        raise LogError(f"{profile}: {access.table} has accesses, and no counts of its rows")
    counts = TensorFile(profile / access.counts.path).map("counts")
    return hotness_curve(access.table, access.rows, counts)


def _tiles(document: Profile, curves: Sequence[HotnessCurve]) -> list[tuple[str, str]]:
    rows = sum(each.rows for each in document.tables)
    touched = sum(each.touched for each in document.tables)
    accesses = sum(each.accesses for each in document.tables)
    hottest = sum(each.accesses * each.locality for each in document.tables if each.accesses) / max(
        1, accesses
    )
    return [
        (number(accesses), f"accesses to {len(curves)} of {len(document.tables)} table(s)"),
        (number(rows), "rows"),
        (f"{touched / max(1, rows):.1%}", "of the rows were asked for"),
        (f"{hottest:.1%}", "of accesses go to each table's hottest 10 % of rows"),
    ]


def _most(document: Profile, curves: Sequence[HotnessCurve]) -> str:
    """How few rows take half, most and nearly all of each table's accesses."""
    rows = sum(each.rows for each in document.tables)
    parts = []
    for share in MOST:
        needed = sum(curve.rows_for(share) for curve in curves)
        parts.append(f"{needed / rows:.2%} of all rows take {share:.0%} of the accesses")
    return "; ".join(parts)


def _share_of(curve: HotnessCurve, part: float) -> float:
    """Share of the accesses that the hottest `part` of a table's rows take."""
    return curve.share_at(part * float(curve.ranks[-1]))


def _bar(access: TableAccess, curve: HotnessCurve) -> Bar:
    names = ("hottest 0.1 % of rows", "to 1 %", "to 10 %", "all others")
    edges = [0.0, *(_share_of(curve, part) for part in SHARES), 1.0]
    parts = [
        (name, access.accesses * (high - low), colour)
        for name, low, high, colour in zip(names, edges, edges[1:], (1, 4, 0, 7), strict=False)
    ]
    return Bar(access.table, tuple(parts))


def _table(busy: Sequence[TableAccess], curves: Sequence[HotnessCurve], document: Profile) -> str:
    header = ["table", "rows", "accesses", "asked for", "ids per bag"]
    header += [f"hottest {100 * part:g} %" for part in SHARES]
    rows = [
        [
            each.table,
            f"{each.rows:,}",
            f"{each.accesses:,}",
            f"{each.touched / each.rows:.1%}",
            f"{each.pooling_factor:.1f}" if each.samples else "–",
            *(f"{_share_of(curve, part):.1%}" for part in SHARES),
        ]
        for each, curve in zip(busy, curves, strict=True)
    ]
    idle = [
        [each.table, f"{each.rows:,}", "0", "0.0%", "–", *("–" for _ in SHARES)]
        for each in document.tables
        if not each.accesses
    ]
    return table(header, [*rows, *idle], "tables")
