"""Every page by axe-core, light and dark, on a desk and on a phone: no finding above `minor`.

axe-core is an npm package: `make axe` installs it into node_modules, elsewhere this skips.
"""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import pytest

from tests.conftest import ROOT, Browser
from tests.pages.shown import all_pages

AXE = ROOT / "node_modules" / "axe-core" / "axe.min.js"
HARNESS = """
addEventListener('load', () => setTimeout(async () => {
  const found = [], axe = document.getElementById('axe').textContent;
  for (const frame of document.querySelectorAll('iframe')) {
    const inside = frame.contentWindow;
    inside.eval(axe);
    const run = await inside.axe.run(inside.document, {resultTypes: ['violations']});
    const wide = inside.document.documentElement.scrollWidth - frame.clientWidth;
    if (wide > 0) found.push([frame.title, 'serious', 'overflows', `by ${wide} px`]);
    for (const rule of run.violations)
      for (const node of rule.nodes)
        found.push([frame.title, rule.impact, rule.id, node.target.join(' ')]);
  }
  const told = document.createElement('pre');
  told.id = 'found';
  told.textContent = JSON.stringify(found);
  document.body.replaceChildren(told);
}, 300));
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return all_pages(tmp_path_factory.mktemp("pages"))


@pytest.fixture(scope="module")
def axe() -> str:
    if not AXE.is_file():
        pytest.skip("axe-core is not installed: make axe")
    return AXE.read_text(encoding="utf-8").replace("</script", "<\\/script")


@pytest.mark.parametrize(("dark", "widths"), [(False, (1100, 390)), (True, (390,))])
def test_no_page_has_a_serious_finding(
    tmp_path: Path,
    browser: Browser,
    axe: str,
    pages: dict[str, str],
    dark: bool,
    widths: tuple[int, ...],
) -> None:
    frames = "".join(
        f'<iframe title="{name} {width}" style="width:{width}px;height:900px" '
        f'srcdoc="{html.escape(page)}"></iframe>'
        for name, page in pages.items()
        for width in widths
    )
    # one with a fault that must be found, lest nothing was looked at
    frames += '<iframe title="faulty" srcdoc="<html><img src=data:,></html>"></iframe>'
    harness = tmp_path / "harness.html"
    harness.write_text(
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>axe</title></head><body>'
        f'{frames}<script type="text/plain" id="axe">{axe}</script><script>{HARNESS}</script>'
        "</body></html>"
    )
    text, _ = browser(harness, 1200, dark=dark, budget_ms=60_000)
    told = re.search(r'<pre id="found">(.*?)</pre>', text, re.DOTALL)
    assert told, "the harness did not end"
    found = json.loads(html.unescape(told[1]))
    assert any(title == "faulty" and rule == "image-alt" for title, _, rule, _ in found)
    grave = [each for each in found if each[0] != "faulty" and each[1] != "minor"]
    assert grave == []
