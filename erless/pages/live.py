"""The page of what runs now: the shell; `live.js` fills it every second."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from erless.pages.page import STYLE

__all__ = ["live_page"]

SCRIPT = Path(__file__).with_name("live.js").read_text(encoding="utf-8")
LIVE_STYLE = Path(__file__).with_name("live.css").read_text(encoding="utf-8")


def live_page(title: str, plan: Mapping[str, Any] | None) -> str:
    """The whole document; `plan` is shown beside what runs."""
    known = json.dumps(plan or {}, separators=(",", ":")).replace("<", "\\u003c")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{escape(title)}</title>'
        f"<style>{STYLE}{LIVE_STYLE}</style></head><body><main>"
        f'<h1>{escape(title)}</h1><p class="soft" id="release" role="status">asking …</p>'
        '<p class="bad" id="trouble" hidden></p><div class="tiles" id="tiles"></div>'
        "<section><h2>Functions</h2>"
        '<p class="soft">A query comes to the gateway, which asks the others for their rows.</p>'
        '<div class="topology" id="topology"></div></section>'
        '<section><h2>The last minutes</h2><div class="sparks" id="sparks"></div></section>'
        '<section><h2>Events</h2><ol class="events" id="events"><li>none since this page was '
        'opened</li></ol></section><section id="plan" hidden><h2>Plan</h2>'
        '<ul class="notes" id="planned"></ul></section></main>'
        f'<script type="application/json" id="known">{known}</script><script>{SCRIPT}</script>'
        "</body></html>\n"
    )
