"""Cut docs/demo.svg, the README's picture, out of a page of `erless demo`.

python docs/demo_picture.py erless-demo.html
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from erless.pages.page import STYLE

CHART = re.compile(
    r'<figure><h2>Memory</h2>.*?(<ul class="legend">.*?</ul>)(<svg class="chart wide".*?</svg>)',
    re.S,
)
KEY = re.compile(r'style="background:var\(--c(\d)\)"></i>([^<]+)<')
LEGEND_HEIGHT = 22


def picture(page: str) -> str:
    """The memory chart as a file of its own: its colours follow the reader's, light or dark."""
    match = CHART.search(page)
    if match is None:
        raise SystemExit("no memory chart in that page")
    legend, chart = match.groups()
    width, height = (int(number) for number in re.findall(r'viewBox="0 0 (\d+) (\d+)"', chart)[0])
    body = re.sub(r"^<svg[^>]*>|</svg>$", "", chart)
    x, keys = 56, []
    for colour, name in KEY.findall(legend):
        keys.append(
            f'<rect x="{x}" y="7" width="14" height="5" rx="2" style="fill:var(--c{colour})"/>'
            f'<text class="tick" x="{x + 19}" y="14">{name}</text>'
        )
        x += 40 + 7 * len(name)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height + LEGEND_HEIGHT}" '
        f'role="img" aria-label="memory over time"><style>{STYLE}'
        "text{font-family:system-ui,sans-serif}.back{fill:var(--card)}</style>"
        f'<rect class="back" width="100%" height="100%"/>{"".join(keys)}'
        f'<g transform="translate(0 {LEGEND_HEIGHT})">{body}</g></svg>\n'
    )


if __name__ == "__main__":
    text = picture(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Path(__file__).with_name("demo.svg").write_text(text, encoding="utf-8")
