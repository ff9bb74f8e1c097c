"""The shell of an HTML report: one file, no network, light and dark, readable on a phone."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

__all__ = ["figure", "page", "table", "tiles"]

STYLE = """
:root{color-scheme:light dark;--bg:#fcfcfb;--card:#fff;--ink:#1c1b19;--soft:#5f5d58;--line:#e3e1dc;
--bad:#b3261e;--c0:#2a6fdb;--c1:#c2571a;--c2:#1f8a70;--c3:#8a4fbf;--c4:#b58a00;--c5:#c23b6e;
--c6:#4d7a96;--c7:#77736c}
@media(prefers-color-scheme:dark){:root{--bg:#161615;--card:#1f1f1d;--ink:#ecebe7;--soft:#a9a69e;
--line:#383733;--bad:#ff8a80;--c0:#6ea8ff;--c1:#f0925a;--c2:#4fc3a1;--c3:#c196ee;--c4:#e0bb4a;
--c5:#f07fa6;--c6:#8ab8d4;--c7:#a5a199}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:940px;margin:0 auto;padding:24px 16px 64px}
h1{font-size:24px;line-height:1.25;margin:0 0 4px}h2{font-size:17px;margin:0 0 2px}
p{margin:0 0 8px}.soft,figcaption,.none{color:var(--soft)}.bad{color:var(--bad);font-weight:600}
figure,section{margin:20px 0 0;padding:16px;background:var(--card);border:1px solid var(--line);
border-radius:10px;overflow-x:auto}
figcaption{font-size:13.5px;margin-bottom:8px;max-width:70ch}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:10px;
margin-top:20px}
.tile{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:12px 14px}
.tile b{display:block;font-size:22px;line-height:1.2}.tile span{font-size:13px;color:var(--soft)}
table{border-collapse:collapse;width:100%;font-size:14px;font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:5px 8px;border-bottom:1px solid var(--line);white-space:nowrap}
th:first-child,td:first-child{text-align:left}th{font-weight:600;color:var(--soft)}
.chart{display:block;width:100%;height:auto}.narrow{display:none}
@media(max-width:640px){.wide{display:none}.narrow{display:block}main{padding:16px 10px 48px}
figure,section{padding:12px 10px}}
.grid{stroke:var(--line)}.tick,.said{font-size:12px;fill:var(--soft)}
.line{fill:none;stroke-width:1.8;stroke-linejoin:round}.dash{stroke-dasharray:5 4}
.area{opacity:.85}.limit{stroke:var(--bad);stroke-dasharray:6 4}.said{fill:var(--bad)}
.mark{stroke:var(--c3);stroke-dasharray:2 3}.cross{stroke:var(--soft);visibility:hidden}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:2px 14px;margin:0 0 6px;padding:0;
font-size:13px;color:var(--soft)}
.legend i{display:inline-block;width:14px;height:4px;border-radius:2px;margin:0 6px 3px 0}
.legend i.dash{opacity:.55}
.plot{position:relative}.tip{position:absolute;top:26px;pointer-events:none;background:var(--card);
color:var(--ink);border:1px solid var(--line);border-radius:8px;padding:6px 9px;font-size:12.5px;
box-shadow:0 2px 8px rgb(0 0 0/.18);z-index:1;white-space:nowrap}
.tip i{display:inline-block;width:8px;height:8px;border-radius:50%;margin-right:6px}
.bar{display:grid;grid-template-columns:minmax(84px,150px) 1fr 84px;gap:8px;align-items:center;
font-size:13.5px;margin:3px 0}
.bar span{overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.bar b{display:flex;height:16px;background:var(--bg);border-radius:3px;overflow:hidden}
.bar i{display:block;height:100%}.bar em{font-style:normal;text-align:right;color:var(--soft)}
ul.notes{margin:4px 0 0;padding-left:18px}
"""

# The crosshair: the nearest point of each series under the pointer.
SCRIPT = """
for (const plot of document.querySelectorAll('.plot')) {
  const data = JSON.parse(plot.querySelector('script').textContent);
  const tip = plot.querySelector('.tip');
  for (const svg of plot.querySelectorAll('svg')) {
    const cross = svg.querySelector('.cross'), own = svg.dataset;
    const left = +own.left, width = +own.width, low = +own.low, high = +own.high;
    const hide = () => { tip.hidden = true; cross.style.visibility = 'hidden'; };
    svg.addEventListener('pointerleave', hide);
    svg.addEventListener('pointermove', event => {
      const box = svg.getBoundingClientRect(), scale = svg.viewBox.baseVal.width / box.width;
      const part = ((event.clientX - box.left) * scale - left) / width;
      if (part < 0 || part > 1) { hide(); return; }
      const at = own.log === '1' ? low * (high / low) ** part : low + (high - low) * part;
      tip.textContent = '';
      const head = document.createElement('div');
      tip.append(head);
      let shown = at;
      for (const series of data.series) {
        let best = 0;
        for (let i = 1; i < series.x.length; i++)
          if (Math.abs(series.x[i] - at) < Math.abs(series.x[best] - at)) best = i;
        if (series.text[best] === null) continue;
        shown = series.x[best];
        const row = document.createElement('div'), dot = document.createElement('i');
        dot.style.background = `var(--c${series.colour})`;
        row.append(dot, `${series.name}: ${series.text[best]}`);
        tip.append(row);
      }
      head.textContent = `${data.x}: ${(+shown.toPrecision(4)).toLocaleString('en')}`;
      const x = left + width * part;
      cross.setAttribute('x1', x); cross.setAttribute('x2', x);
      cross.style.visibility = 'visible';
      tip.hidden = false;
      const place = x / scale, room = box.width - tip.offsetWidth - 4;
      tip.style.left = `${Math.max(0, Math.min(place + 12, room))}px`;
    });
  }
}
"""


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
    """The summary: (value, what it is)."""
    cells = "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(what)}</span></div>'
        for value, what in entries
    )
    return f'<div class="tiles">{cells}</div>'


def figure(title: str, caption: str, body: str) -> str:
    """One titled plot; `body` is HTML."""
    return (
        f"<figure><h2>{escape(title)}</h2><figcaption>{escape(caption)}</figcaption>{body}</figure>"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of text."""
    head = "".join(f"<th>{escape(each)}</th>" for each in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
